/*
 * What tests/gdb/run debugs: a bare-metal guest of known instructions at labels, and data at known places.
 */
#include "rt/rt.h"

#define SYSCALL_STAR (0x8ull << 32) /* CS 8, SS 10H */

uint64_t gdb_watched[4] __attribute__((aligned(64)));
volatile uint64_t gdb_go_on;
uint8_t gdb_from[64], gdb_to[64];
uint64_t gdb_vector[8] __attribute__((aligned(64))) = {
    0x1111222233334444, 0x5555666677778888, 0x99aabbccddeeff00, 0x0123456789abcdef, 11, 12, 13, 14};
static uint64_t tiny = 0x123456789abcull;

void gdb_code(void);
void gdb_syscall_entry(void);

#define L(name) ".globl " #name "\n" #name ":\n"
asm(".pushsection .text\n" L(
    gdb_code) "  mov $0x1122334455667788, %rax\n  mov $1, %ebx\n  mov $2, %r8d\n  mov $15, %r15d\n" L(gdb_set) "  add $5, %rbx\n"
                                                                                                               "  fninit\n  fldpi\n  movdqa gdb_vector, %xmm3\n" L(gdb_x87) "  mov $gdb_from, %esi\n  mov $gdb_to, %edi\n  mov $5, %ecx\n  cld\n" L(gdb_rep) "  rep movsb\n" L(gdb_rep_behind) "  nop\n" L(gdb_int) "  int $0x44\n" L(gdb_int_behind) "  nop\n" L(
                                                                                                                   gdb_fault) "  ud2\n" L(gdb_fault_behind) "  nop\n" L(gdb_sys) "  syscall\n" L(gdb_sys_behind) "  nop\n" L(gdb_store) "  movq $7, gdb_watched\n" L(gdb_store_behind) "  movq $8, gdb_watched + 8\n"
                                                                                                                                                                                                                                                                                       "  mov gdb_watched + 16, %rdx\n" L(gdb_load_behind) "  addq $1, gdb_watched + 24\n" L(gdb_rmw_behind) "  push %rax\n  pop %rax\n"
                                                                                                                                                                                                                                                                                                                                                                                             "  xor %ecx, %ecx\n" L(
                                                                                                                                                                                                                                                                                                                                                                                                 gdb_loop) "  inc %ecx\n  cmp $100000, %ecx\n  jne gdb_loop\n" L(gdb_loop_behind) "  ret\n" L(gdb_syscall_entry) "  jmp *%rcx\n"
                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                 ".popsection\n");

static bool on_int(struct frame *f)
{
    return true;
}

static bool on_ud(struct frame *f)
{
    f->rip += 2;
    return true;
}

void test_main(void)
{
    for (unsigned i = 0; i < sizeof(gdb_from); i++) {
        gdb_from[i] = (uint8_t)(i + 1);
    }
    gdb_watched[2] = tiny;
    rt_on(0x44, on_int);
    rt_on(UD, on_ud);
    wrmsr(0xc0000081, SYSCALL_STAR);
    wrmsr(0xc0000082, (uint64_t)gdb_syscall_entry);
    wrmsr(0xc0000084, 0);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
    asm volatile("call gdb_code" ::
                     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r11", "r15", "memory", "cc");
    ok(true, "ran through");
    while (!gdb_go_on) { /* until the debugger says so */
        asm volatile("pause");
    }
    ok(gdb_go_on == 42, "the debugger wrote");
}
