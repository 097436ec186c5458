/*
 * A target for the gdb protocol that is no machine: 64 KiB of memory mapped to itself, two vCPUs that are
 * always where they were. For the fuzzer and for unit tests.
 */
#ifndef FONDA_FUZZ_GDB_TARGET_H
#define FONDA_FUZZ_GDB_TARGET_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vm/gdb/session.h"

#define FAKE_MEMORY 0x10000u

static uint8_t fake_memory[FAKE_MEMORY];
static struct x86_state fake_state[2];
static void (*fake_sink)(const void *bytes, size_t len);

static void fake_send(void *opaque, const void *bytes, size_t len)
{
    if (fake_sink) {
        fake_sink(bytes, len);
    }
}

static bool fake_halt(void *opaque)
{
    return true;
}

static int fake_resume(void *opaque, const enum gdb_action *actions, const struct engine_point *points,
                       unsigned count)
{
    return 0;
}

static int fake_try_points(void *opaque, const struct engine_point *points, unsigned count)
{
    return count > 100 ? -ENOSPC : 0;
}

static void fake_nothing(void *opaque)
{
}

static int fake_get_state(void *opaque, unsigned cpu, struct x86_state *ret_state, uint64_t *ret_cr8)
{
    *ret_state = fake_state[cpu];
    *ret_cr8 = 0;
    return 0;
}

static int fake_set_state(void *opaque, unsigned cpu, const struct x86_state *state)
{
    fake_state[cpu] = *state;
    return 0;
}

static int fake_read(void *opaque, uint64_t gpa, void *buf, size_t len)
{
    if (gpa >= FAKE_MEMORY || len > FAKE_MEMORY - gpa) {
        return -EFAULT;
    }
    memcpy(buf, fake_memory + gpa, len);
    return 0;
}

static int fake_write(void *opaque, uint64_t gpa, const void *buf, size_t len)
{
    if (gpa >= FAKE_MEMORY || len > FAKE_MEMORY - gpa) {
        return -EFAULT;
    }
    memcpy(fake_memory + gpa, buf, len);
    return 0;
}

static int fake_walk(void *opaque, unsigned cpu, uint64_t va, uint64_t *ret_gpa)
{
    *ret_gpa = va;
    return va < FAKE_MEMORY ? 0 : -EFAULT;
}

static const char *fake_describe(void *opaque, unsigned cpu)
{
    return "running";
}

static inline struct gdb *fake_gdb_new(void (*sink)(const void *bytes, size_t len))
{
    static const struct gdb_target target = {
        .cpus = 2,
        .send = fake_send,
        .halt = fake_halt,
        .resume = fake_resume,
        .try_points = fake_try_points,
        .detach = fake_nothing,
        .kill = fake_nothing,
        .get_state = fake_get_state,
        .set_state = fake_set_state,
        .read = fake_read,
        .write = fake_write,
        .walk = fake_walk,
        .describe = fake_describe,
    };
    memset(fake_state, 0, sizeof(fake_state));
    memset(fake_memory, 0, sizeof(fake_memory));
    fake_state[0].rip = fake_state[1].rip = 0xfff0;
    fake_sink = sink;
    struct gdb *gdb = gdb_new(&target);
    if (!gdb) {
        abort();
    }
    return gdb;
}

/* The input as it is; then cut at newlines into packets with right checksums, so that it gets behind the
 * framing. */
static inline void fake_gdb_fuzz(const uint8_t *data, size_t size)
{
    struct gdb *gdb = fake_gdb_new(NULL);
    gdb_attached(gdb);
    gdb_input(gdb, data, size);
    gdb_attached(gdb);
    for (size_t at = 0; at < size;) {
        static const char letters[] = "?gGpPmMXZzHTcCsSvqQDk";
        uint8_t sum = (uint8_t)letters[data[at] % (sizeof(letters) - 1)], end[3];
        gdb_input(gdb, (const uint8_t *)"$", 1);
        gdb_input(gdb, &sum, 1);
        size_t from = ++at;
        while (at < size && data[at] != '\n') {
            at++;
        }
        for (size_t i = from; i < at; i++) {
            if (data[i] != '#') {
                gdb_input(gdb, data + i, 1);
                sum = (uint8_t)(sum + data[i]);
            }
        }
        snprintf((char *)end, sizeof(end), "%02x", sum);
        gdb_input(gdb, (const uint8_t *)"#", 1);
        gdb_input(gdb, end, 2);
        if (gdb_is_running(gdb)) {
            gdb_stopped(gdb, from % 2, GDB_SIGTRAP, NULL);
        }
        if (!gdb_is_attached(gdb)) {
            gdb_attached(gdb);
        }
    }
    gdb_ended(gdb, 1);
    gdb_free(gdb);
}

#endif
