/*
 * The parts of vm/ that stand alone: console keys, the paravirtual clock, output that may block.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <time.h>
#include <x86intrin.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/util.h"
#include "vm/console.h"
#include "vm/output.h"
#include "vm/pvclock.h"

/* --- console --- */

static enum console_command feed(struct console *console, const char *text, char *out, size_t *used)
{
    size_t n;
    enum console_command command;
    *used = console_input(console, (const uint8_t *)text, strlen(text), (uint8_t *)out, &n, &command);
    out[n] = '\0';
    return command;
}

static void test_console(void **state)
{
    struct console console = {0};
    char out[64];
    size_t used;
    assert_int_equal(feed(&console, "hello", out, &used), CONSOLE_NONE);
    assert_string_equal(out, "hello");
    assert_int_equal(feed(&console, "a\001xb", out, &used), CONSOLE_QUIT);
    assert_string_equal(out, "a");
    assert_int_equal(used, 3);
    assert_int_equal(feed(&console, "\001\001b", out, &used), CONSOLE_NONE);
    assert_string_equal(out, "\001b");
    assert_int_equal(feed(&console, "\001q", out, &used), CONSOLE_NONE);
    assert_string_equal(out, "\001q");
    assert_int_equal(feed(&console, "\001H", out, &used), CONSOLE_HELP);
    assert_int_equal(feed(&console, "\001?", out, &used), CONSOLE_HELP);
    /* The two bytes may come apart. */
    assert_int_equal(feed(&console, "x\001", out, &used), CONSOLE_NONE);
    assert_string_equal(out, "x");
    assert_int_equal(feed(&console, "sx", out, &used), CONSOLE_STATS);
    assert_string_equal(out, "");
    assert_int_equal(used, 1);
}

/* An escape left over from before adds one byte to what goes out: there is room for it. */
static void test_console_longest(void **state)
{
    struct console console = {.escaped = true};
    uint8_t in[16], out[17];
    size_t n;
    enum console_command command;
    memset(in, 'q', sizeof(in));
    assert_int_equal(console_input(&console, in, sizeof(in), out, &n, &command), sizeof(in));
    assert_int_equal(n, sizeof(in) + 1);
}

/* --- paravirtual clock --- */

/* What a guest computes: Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW. */
static uint64_t guest_ns(uint64_t ticks, uint32_t mul, int8_t shift)
{
    ticks = shift >= 0 ? ticks << shift : ticks >> -shift;
    return (uint64_t)(((unsigned __int128)ticks * mul) >> 32);
}

static void test_pvclock_scale(void **state)
{
    static const uint64_t rates[] = {1,          1000,       999999999,  1000000000, 1000000001, 1999999999,
                                     2000000000, 2000000001, 2599998765, 4000000001, 7999999999};
    for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
        uint32_t mul;
        int8_t shift;
        pvclock_scale(rates[i], &mul, &shift);
        uint64_t ns = guest_ns(rates[i] * 10, mul, shift); /* ten seconds */
        assert_in_range(ns, 10000000000ull - 100, 10000000000ull);
    }
}

static void test_pvclock_msrs(void **state)
{
    struct mem *mem;
    struct clock *clock = clock_new_manual();
    assert_int_equal(mem_new(MiB, &mem, NULL), 0);
    struct pvclock pv = {.mem = mem, .clock = clock, .tsc_hz = 2000000000};
    uint8_t time[32];
    uint64_t value, system_time, timestamp;
    clock_advance(clock, 12345);
    assert_int_equal(pvclock_write(&pv, 0x4b564d01, 0x2000 | 1, 777), 0);
    assert_int_equal(mem_read(mem, GPA(0x2000), time, sizeof(time)), 0);
    memcpy(&timestamp, time + 8, 8);
    memcpy(&system_time, time + 16, 8);
    assert_int_equal(time[0] & 1, 0);
    assert_int_equal(timestamp, 777);
    assert_int_equal(system_time, 12345);
    assert_int_equal(time[29], 1); /* the TSC is stable */
    assert_int_equal(pvclock_read(&pv, 0x12, &value), 0);
    assert_int_equal(value, 0x2001);
    /* The wall clock's structure gets a time between 2020 and 2100. */
    uint32_t wall[3];
    assert_int_equal(pvclock_write(&pv, 0x4b564d00, 0x3000, 0), 0);
    assert_int_equal(mem_read(mem, GPA(0x3000), wall, sizeof(wall)), 0);
    assert_in_range(wall[1], 1577836800u, 4102444800u);
    assert_in_range(wall[2], 0, 999999999);
    /* Addresses outside of RAM do no harm; unknown MSRs raise #GP; disabling writes nothing. */
    assert_int_equal(pvclock_write(&pv, 0x4b564d01, ~0ull, 0), 0);
    assert_int_equal(pvclock_write(&pv, 0x4b564d00, ~0ull, 0), 0);
    assert_int_equal(pvclock_write(&pv, 0x4b564d01, 0x4000, 0), 0);
    assert_int_equal(mem_read(mem, GPA(0x4000), time, sizeof(time)), 0);
    assert_int_equal(time[0], 0);
    assert_int_equal(pvclock_write(&pv, 0x4b564d02, 0, 0), -1);
    assert_int_equal(pvclock_read(&pv, 0x4b564d77, &value), -1);
    mem_free(mem);
    clock_free(clock);
}

static void test_pvclock_pairing(void **state)
{
    struct mem *mem;
    assert_int_equal(mem_new(MiB, &mem, NULL), 0);
    const struct pvclock pv = {.mem = mem};
    const uint64_t good[4] = {0x2000, 0}, other_clock[4] = {0x2000, 1}, nowhere[4] = {1ull << 40, 0},
                   beyond[4] = {MiB - 8, 0};
    struct timespec before, after;
    uint64_t time[8], tsc_before, tsc_after;
    const uint64_t offset = 1ull << 50;
    tsc_before = __rdtsc();
    clock_gettime(CLOCK_REALTIME, &before);
    assert_int_equal(pvclock_hypercall(&pv, 9, good, offset), 0);
    clock_gettime(CLOCK_REALTIME, &after);
    tsc_after = __rdtsc();
    assert_int_equal(mem_read(mem, GPA(0x2000), time, sizeof(time)), 0);
    assert_in_range(time[0] * 1000000000 + time[1],
                    (uint64_t)before.tv_sec * 1000000000 + (uint64_t)before.tv_nsec,
                    (uint64_t)after.tv_sec * 1000000000 + (uint64_t)after.tv_nsec);
    assert_in_range(time[1], 0, 999999999);
    assert_in_range(time[2], tsc_before + offset, tsc_after + offset);
    assert_int_equal(time[3], 0); /* flags */
    assert_int_equal((int64_t)pvclock_hypercall(&pv, 9, other_clock, 0), -95);
    assert_int_equal((int64_t)pvclock_hypercall(&pv, 9, nowhere, 0), -14);
    assert_int_equal((int64_t)pvclock_hypercall(&pv, 9, beyond, 0), -14);
    assert_int_equal((int64_t)pvclock_hypercall(&pv, 1, good, 0), -1000);
    mem_free(mem);
}

/* --- output --- */

struct reader {
    int fd;
    uint64_t bytes;
    bool in_order;
};

static void *reader_main(void *opaque)
{
    struct reader *reader = opaque;
    uint8_t buf[1000];
    ssize_t n;
    while ((n = read(reader->fd, buf, sizeof(buf))) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            reader->in_order &= buf[i] == (uint8_t)(reader->bytes++ % 251);
        }
    }
    return NULL;
}

static void no_room(void *opaque)
{
}

/* Everything comes out in order, though the ring wraps and fills. */
static void test_output(void **state)
{
    int fds[2];
    struct output *output;
    pthread_t thread;
    assert_int_equal(pipe(fds), 0);
    struct reader reader = {fds[0], 0, true};
    assert_int_equal(output_new(fds[1], no_room, NULL, &output, NULL), 0);
    assert_int_equal(output_start(output, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, reader_main, &reader), 0);
    uint64_t sent = 0;
    while (sent < 10 * OUTPUT_BYTES) {
        uint8_t buf[777];
        for (size_t i = 0; i < sizeof(buf); i++) {
            buf[i] = (uint8_t)((sent + i) % 251);
        }
        sent += output_write(output, buf, sizeof(buf));
    }
    assert_int_equal(output_drain(output, 60000), 0);
    output_free(output, 60000);
    pthread_join(thread, NULL);
    assert_int_equal(reader.bytes, sent);
    assert_true(reader.in_order);
    close(fds[0]);
}

/* A reader that never reads: writing never blocks, and the end has a bound. */
static void test_output_blocked(void **state)
{
    int fds[2];
    struct output *output;
    assert_int_equal(pipe(fds), 0);
    assert_in_range(fcntl(fds[1], F_SETPIPE_SZ, 4096), 4096, OUTPUT_BYTES / 2); /* less than the ring holds */
    assert_int_equal(output_new(fds[1], no_room, NULL, &output, NULL), 0);
    assert_int_equal(output_start(output, NULL), 0);
    static uint8_t buf[4 * OUTPUT_BYTES];
    size_t taken = 0, n;
    do {
        n = output_write(output, buf, sizeof(buf));
        taken += n;
    } while (n > 0 && taken < sizeof(buf));
    assert_in_range(taken, OUTPUT_BYTES, sizeof(buf));
    assert_int_equal(output_drain(output, 1), -ETIMEDOUT);
    /* The reader goes away: what is left is dropped, and the thread ends. */
    close(fds[0]);
    output_free(output, 60000);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_console),         cmocka_unit_test(test_console_longest),
        cmocka_unit_test(test_pvclock_scale),   cmocka_unit_test(test_pvclock_msrs),
        cmocka_unit_test(test_pvclock_pairing), cmocka_unit_test(test_output),
        cmocka_unit_test(test_output_blocked),
    };
    return cmocka_run_group_tests_name("vm", tests, NULL, NULL);
}
