/*
 * What device tests drive: an address space, a manual clock, a recorder of interrupt lines, and a hammer.
 */
#ifndef FONDA_TESTS_UNIT_RIG_H
#define FONDA_TESTS_UNIT_RIG_H

#include <stdbool.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "dev/device.h"
#include "mem/mem.h"
#include "tests/unit/unit.h"

#define RIG_LINES 32u

struct rig {
    struct mem *mem;
    struct clock *clock;
    bool level[RIG_LINES];
    unsigned rises[RIG_LINES];
    unsigned calls[8]; /* for callbacks of the test's own */
    uint64_t last;
};

static inline void rig_open(struct rig *rig)
{
    *rig = (struct rig){.clock = clock_new_manual()};
    assert_non_null(rig->clock);
    assert_int_equal(mem_new(MiB, &rig->mem, NULL), 0);
}

static inline void rig_close(struct rig *rig, struct device *dev)
{
    char text[2048];
    unsigned len = dev->ops->describe(dev, text, sizeof(text));
    assert_true(len < sizeof(text));
    assert_true(dev->ops->describe(dev, text, 5) <= 5);
    dev->ops->reset(dev);
    dev->ops->free(dev);
    assert_true(clock_next_deadline(rig->clock) == CLOCK_NEVER); /* nothing stays armed */
    mem_free(rig->mem);
    clock_free(rig->clock);
}

static inline void rig_set_line(void *opaque, unsigned n, bool level)
{
    struct rig *rig = opaque;
    assert_in_range(n, 0, RIG_LINES - 1);
    rig->rises[n] += level && !rig->level[n];
    rig->level[n] = level;
}

static inline struct irq_line rig_line(struct rig *rig, unsigned n)
{
    return (struct irq_line){.set = rig_set_line, .opaque = rig, .n = n};
}

static inline uint8_t in8(const struct rig *rig, uint16_t port)
{
    return (uint8_t)mem_pio_read(rig->mem, port, 1);
}

static inline void out8(const struct rig *rig, uint16_t port, unsigned value)
{
    mem_pio_write(rig->mem, port, 1, value);
}

static inline uint64_t mmio(const struct rig *rig, uint64_t gpa, unsigned size)
{
    return mem_mmio_read(rig->mem, GPA(gpa), size);
}

static inline void mmio_out(const struct rig *rig, uint64_t gpa, unsigned size, uint64_t value)
{
    mem_mmio_write(rig->mem, GPA(gpa), size, value);
}

/* Random accesses of all widths to count ports from each of ports[], with time passing. Under the sanitizers
 * this shows that no value in any register does harm. */
static inline void rig_hammer_ports(const struct rig *rig, const uint16_t *ports, const uint16_t *counts,
                                    unsigned n)
{
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 30000; i++) {
        unsigned k = (unsigned)(unit_random(&rng) % n);
        uint16_t port = (uint16_t)(ports[k] + unit_random(&rng) % counts[k]);
        unsigned size = (unsigned)(unit_random(&rng) % 5);
        if (unit_random(&rng) & 1) {
            mem_pio_write(rig->mem, port, size, (uint32_t)unit_random(&rng));
        } else {
            mem_pio_read(rig->mem, port, size);
        }
        if (i % 64 == 0) {
            clock_advance(rig->clock, unit_random(&rng) % 3000000);
        }
    }
}

/* The same for a range of guest-physical addresses. */
static inline void rig_hammer_mmio(const struct rig *rig, uint64_t base, uint64_t bytes)
{
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 30000; i++) {
        uint64_t gpa = base + unit_random(&rng) % bytes;
        unsigned size = (unsigned)(unit_random(&rng) % 9);
        if (i & 1) { /* mostly whole registers */
            gpa &= ~3ull;
            size = i & 2 ? 4 : 8;
        }
        if (unit_random(&rng) & 1) {
            uint64_t value = unit_random(&rng);
            mem_mmio_write(rig->mem, GPA(gpa), size, i & 4 ? value : value & 0xfff);
        } else {
            mem_mmio_read(rig->mem, GPA(gpa), size);
        }
        if (i % 64 == 0) {
            clock_advance(rig->clock, unit_random(&rng) % 1000000);
        }
    }
}

#endif
