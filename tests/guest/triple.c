/*
 * A triple fault: an exception whose double fault can't be delivered either shuts the processor down (SDM
 * vol. 3A, 6.15, interrupt 8). The machine must say so; nothing behind the fault may run.
 */
#include "rt/rt.h"

void test_main(void)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) empty = {0, 0};
    ok(true, "about to shut down");
    asm volatile("lidt %0\n ud2" ::"m"(empty));
    ok(false, "the processor goes on behind a triple fault");
}
