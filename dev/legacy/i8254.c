/*
 * The 8254: see i8254.h.
 *
 * A channel that counts is a point in time (start_ns) and an initial count; the counter and the output are
 * worked out from the clock ticks since then. While the gate stops it, held_ticks says how far it was.
 *
 * Differences to the chip that no known guest sees: a count takes effect at once instead of at the next clock
 * pulse, and a new count in modes 2 and 3 starts a new period instead of waiting for the end of the running
 * one.
 */
#include "dev/legacy/i8254.h"

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>

#define NS_PER_S 1000000000ull

/* The shortest distance between two ticks of channel 0: keeps a guest from drowning the main loop. */
#define I8254_MIN_NS 20000u

/* Control word (data sheet, "Control Word Format"). */
#define CONTROL_CHANNEL(v)  ((v) >> 6)
#define CONTROL_RW(v)       (((v) >> 4) & 3)
#define CONTROL_MODE(v)     (((v) >> 1) & 7)
#define CONTROL_BCD         0x01u
#define READ_BACK           3u
#define READ_BACK_NO_COUNT  0x20u
#define READ_BACK_NO_STATUS 0x10u

#define STATUS_OUT        0x80u
#define STATUS_NULL_COUNT 0x40u

/* Port 0x61. */
#define PORT61_GATE2   0x01u
#define PORT61_SPEAKER 0x02u
#define PORT61_CHECKS  0x0cu /* channel check and parity check enables: kept, without effect */
#define PORT61_REFRESH 0x10u
#define PORT61_OUT2    0x20u
#define REFRESH_NS     15085u

enum access { ACCESS_LATCH, ACCESS_LSB, ACCESS_MSB, ACCESS_BOTH };

struct pit_channel {
    uint8_t mode; /* 0-5 */
    uint8_t access;
    bool bcd;
    bool gate;
    bool loaded;                /* a count was written since the control word */
    bool started;               /* counting, or held by the gate */
    bool held;                  /* the gate stopped it */
    bool write_high, read_high; /* ACCESS_BOTH: the next byte is the high one */
    uint8_t write_low;
    uint32_t count; /* 1 to 65536 (10000 in BCD) */
    uint64_t start_ns;
    uint64_t held_ticks;
    bool count_latched, status_latched;
    uint16_t count_latch;
    uint8_t status_latch;
};

struct i8254 {
    struct device device;
    struct clock *clock;
    struct irq_line irq;
    bool replaced;
    struct clock_timer timer; /* the next rising edge of channel 0's output */
    struct pit_channel channel[3];
    uint8_t port61;
};

static uint64_t ns_to_ticks(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * I8254_HZ / NS_PER_S);
}

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * NS_PER_S + I8254_HZ - 1) / I8254_HZ);
}

static uint64_t channel_ticks(const struct i8254 *pit, const struct pit_channel *ch)
{
    return ch->held ? ch->held_ticks : ns_to_ticks(clock_now_ns(pit->clock) - ch->start_ns);
}

static bool periodic(const struct pit_channel *ch)
{
    return ch->mode == 2 || ch->mode == 3;
}

/* The OUT pin (data sheet, "Mode Definitions"). */
static bool channel_out(const struct i8254 *pit, const struct pit_channel *ch)
{
    if (!ch->started) {
        return ch->mode != 0;
    }
    uint64_t ticks = channel_ticks(pit, ch);
    switch (ch->mode) {
    case 0:
    case 1: return ticks >= ch->count;
    case 2: return ch->held || ticks % ch->count != ch->count - 1;
    case 3: return ch->held || ticks % ch->count < (ch->count + 1) / 2;
    default: return ticks != ch->count; /* 4 and 5: low for one clock at the end */
    }
}

static uint16_t to_bcd(uint32_t value)
{
    return (uint16_t)(value % 10 | (value / 10 % 10) << 4 | (value / 100 % 10) << 8 |
                      (value / 1000 % 10) << 12);
}

static uint32_t from_bcd(uint32_t value)
{
    return (value & 15) + (value >> 4 & 15) * 10 + (value >> 8 & 15) * 100 + (value >> 12 & 15) * 1000;
}

/* The counting element as the guest reads it. */
static uint16_t channel_counter(const struct i8254 *pit, const struct pit_channel *ch)
{
    uint32_t modulus = ch->bcd ? 10000 : 65536;
    uint64_t ticks = ch->started ? channel_ticks(pit, ch) : 0;
    uint32_t counter;
    switch (ch->mode) {
    case 2: counter = ch->count - (uint32_t)(ticks % ch->count); break;
    case 3: {
        /* Counts down by two, twice in a period. */
        uint32_t even = ch->count & ~1u;
        counter = even ? even - (uint32_t)(2 * (ticks % ch->count)) % even : 1;
        break;
    }
    default:
        counter = (uint32_t)((ch->count + modulus - ticks % modulus) % modulus);
        break; /* wraps and goes on */
    }
    counter %= modulus;
    return ch->bcd ? to_bcd(counter) : (uint16_t)counter;
}

/* Plans the next rising edge of channel 0's output. */
static void plan_edge(struct i8254 *pit)
{
    const struct pit_channel *ch = &pit->channel[0];
    clock_timer_cancel(pit->clock, &pit->timer);
    if (!ch->started || ch->held) {
        return;
    }
    uint64_t now_ns = clock_now_ns(pit->clock);
    uint64_t ticks = channel_ticks(pit, ch);
    uint64_t edge; /* in ticks since the start */
    uint64_t at_ns;
    if (periodic(ch)) {
        edge = (ticks / ch->count + 1) * ch->count;
        at_ns = ch->start_ns + ticks_to_ns(edge);
        if (at_ns < now_ns + I8254_MIN_NS && ch->count < ns_to_ticks(I8254_MIN_NS)) {
            at_ns = now_ns + I8254_MIN_NS;
        }
    } else {
        /* Mode 0 rises at the end of the count, modes 4 and 5 one clock later. Once. */
        edge = (uint64_t)ch->count + (ch->mode >= 4 ? 1 : 0);
        if (ticks >= edge) {
            return;
        }
        at_ns = ch->start_ns + ticks_to_ns(edge);
    }
    (void)clock_timer_arm(pit->clock, &pit->timer, at_ns);
}

static void edge_reached(void *opaque)
{
    struct i8254 *pit = opaque;
    plan_edge(pit);
    if (!pit->replaced) {
        irq_set(&pit->irq, true);
        if (pit->channel[0].mode >
            1) { /* in modes 0 and 1 OUT stays high until the next count or control word */
            irq_set(&pit->irq, false);
        }
    }
}

static void channel_start(struct i8254 *pit, struct pit_channel *ch)
{
    ch->started = true;
    ch->start_ns = clock_now_ns(pit->clock);
    ch->held_ticks = 0;
    ch->held = !ch->gate && ch->mode != 1 && ch->mode != 5;
    if (ch == &pit->channel[0]) {
        irq_set(&pit->irq, false);
        plan_edge(pit);
    }
}

static void channel_load(struct i8254 *pit, struct pit_channel *ch, uint32_t value)
{
    uint32_t max = ch->bcd ? 10000 : 65536;
    uint32_t count = ch->bcd ? from_bcd(value) : value;
    ch->count = count == 0 || count > max ? max : count;
    if (periodic(ch) && ch->count == 1) {
        ch->count = 2; /* 1 is illegal there (data sheet, modes 2 and 3) */
    }
    ch->loaded = true;
    if (ch->mode != 1 && ch->mode != 5) { /* those wait for their gate */
        channel_start(pit, ch);
    }
}

static void channel_set_gate(struct i8254 *pit, struct pit_channel *ch, bool gate)
{
    bool rising = gate && !ch->gate;
    bool falling = !gate && ch->gate;
    ch->gate = gate;
    if (!ch->loaded) {
        return;
    }
    if (ch->mode == 1 || ch->mode == 5) {
        if (rising) {
            channel_start(pit, ch);
        }
    } else if (falling && !ch->held) {
        ch->held_ticks = channel_ticks(pit, ch);
        ch->held = true;
    } else if (rising && periodic(ch)) {
        channel_start(pit, ch);
    } else if (rising && ch->held) {
        ch->held = false;
        uint64_t now_ns = clock_now_ns(pit->clock);
        uint64_t past_ns = ticks_to_ns(ch->held_ticks);
        ch->start_ns = now_ns > past_ns ? now_ns - past_ns : 0;
    }
}

static uint8_t channel_status(const struct i8254 *pit, const struct pit_channel *ch)
{
    return (uint8_t)((channel_out(pit, ch) ? STATUS_OUT : 0) | (ch->loaded ? 0 : STATUS_NULL_COUNT) |
                     ch->access << 4 | ch->mode << 1 | (ch->bcd ? 1 : 0));
}

static void latch_count(const struct i8254 *pit, struct pit_channel *ch)
{
    if (!ch->count_latched) {
        ch->count_latch = channel_counter(pit, ch);
        ch->count_latched = true;
    }
}

static void read_back(struct i8254 *pit, uint8_t value)
{
    for (unsigned i = 0; i < 3; i++) {
        struct pit_channel *ch = &pit->channel[i];
        if (!(value & (2u << i))) {
            continue;
        }
        if (!(value & READ_BACK_NO_COUNT)) {
            latch_count(pit, ch);
        }
        if (!(value & READ_BACK_NO_STATUS) && !ch->status_latched) {
            ch->status_latch = channel_status(pit, ch);
            ch->status_latched = true;
        }
    }
}

static void control_write(struct i8254 *pit, uint8_t value)
{
    if (CONTROL_CHANNEL(value) == READ_BACK) {
        read_back(pit, value);
        return;
    }
    struct pit_channel *ch = &pit->channel[CONTROL_CHANNEL(value)];
    if (CONTROL_RW(value) == ACCESS_LATCH) {
        latch_count(pit, ch);
        return;
    }
    ch->access = CONTROL_RW(value);
    ch->mode =
        CONTROL_MODE(value) > 5 ? CONTROL_MODE(value) - 4 : CONTROL_MODE(value); /* 6 and 7 are 2 and 3 */
    ch->bcd = value & CONTROL_BCD;
    ch->loaded = false;
    ch->started = false;
    ch->held = false;
    ch->write_high = false;
    ch->read_high = false;
    ch->count_latched = false;
    ch->status_latched = false;
    if (ch == &pit->channel[0]) {
        irq_set(&pit->irq, false);
        plan_edge(pit);
    }
}

static void counter_write(struct i8254 *pit, struct pit_channel *ch, uint8_t value)
{
    switch (ch->access) {
    case ACCESS_LSB: channel_load(pit, ch, value); break;
    case ACCESS_MSB: channel_load(pit, ch, (uint32_t)value << 8); break;
    default:
        if (ch->write_high) {
            channel_load(pit, ch, ch->write_low | (uint32_t)value << 8);
        } else {
            ch->write_low = value;
            if (ch->mode == 0) {
                ch->started = false; /* the first byte stops the count */
                if (ch == &pit->channel[0]) {
                    plan_edge(pit);
                }
            }
        }
        ch->write_high = !ch->write_high;
    }
}

static uint8_t counter_read(struct i8254 *pit, struct pit_channel *ch)
{
    if (ch->status_latched) {
        ch->status_latched = false;
        return ch->status_latch;
    }
    uint16_t value = ch->count_latched ? ch->count_latch : channel_counter(pit, ch);
    bool high = ch->access == ACCESS_MSB || (ch->access == ACCESS_BOTH && ch->read_high);
    if (ch->access == ACCESS_BOTH) {
        ch->read_high = !ch->read_high;
    }
    if (ch->access != ACCESS_BOTH || high) {
        ch->count_latched = false;
    }
    return (uint8_t)(high ? value >> 8 : value);
}

static uint64_t pit_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8254 *pit = opaque;
    return size == 1 && offset < 3 ? counter_read(pit, &pit->channel[offset]) : UINT64_MAX;
}

static void pit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8254 *pit = opaque;
    for (unsigned i = 0; i < size; i++, value >>= 8) {
        if (offset + i < 3) {
            counter_write(pit, &pit->channel[offset + i], (uint8_t)value);
        } else {
            control_write(pit, (uint8_t)value);
        }
    }
}

static uint64_t port61_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct i8254 *pit = opaque;
    uint64_t value = pit->port61;
    if (channel_out(pit, &pit->channel[2])) {
        value |= PORT61_OUT2;
    }
    if (clock_now_ns(pit->clock) / REFRESH_NS & 1) {
        value |= PORT61_REFRESH;
    }
    return value;
}

static void port61_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8254 *pit = opaque;
    pit->port61 = value & (PORT61_GATE2 | PORT61_SPEAKER | PORT61_CHECKS);
    channel_set_gate(pit, &pit->channel[2], value & PORT61_GATE2);
}

static const struct mem_io_ops pit_ops = {pit_read, pit_write};
static const struct mem_io_ops port61_ops = {port61_read, port61_write};

void i8254_set_replaced(void *opaque, bool replaced)
{
    struct i8254 *pit = opaque;
    pit->replaced = replaced;
}

static void i8254_reset(struct device *dev)
{
    struct i8254 *pit = CONTAINER_OF(dev, struct i8254, device);
    for (unsigned i = 0; i < 3; i++) {
        pit->channel[i] =
            (struct pit_channel){.mode = 3, .access = ACCESS_BOTH, .count = 65536, .gate = i < 2};
    }
    pit->port61 = 0;
    pit->replaced = false;
    plan_edge(pit);
}

static void i8254_free(struct device *dev)
{
    struct i8254 *pit = CONTAINER_OF(dev, struct i8254, device);
    clock_timer_cancel(pit->clock, &pit->timer);
    free(pit);
}

static unsigned i8254_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct i8254 *pit = CONTAINER_OF(dev, const struct i8254, device);
    unsigned len = 0;
    for (unsigned i = 0; i < 3 && len < size; i++) {
        const struct pit_channel *ch = &pit->channel[i];
        int n =
            snprintf(buf + len, size - len, "channel %u: mode=%u count=%u counter=%04x out=%d gate=%d%s\n", i,
                     ch->mode, ch->count, channel_counter(pit, ch), channel_out(pit, ch), ch->gate,
                     ch->started ? "" : " stopped");
        len += (unsigned)MAX(n, 0);
    }
    return MIN(len, size);
}

static void i8254_state(struct device *dev, struct state *s)
{
    struct i8254 *pit = CONTAINER_OF(dev, struct i8254, device);
    state_field(s, "replaced", &pit->replaced);
    state_field(s, "port61", &pit->port61);
    for (unsigned i = 0; i < 3; i++) {
        struct pit_channel *ch = &pit->channel[i];
        state_prefix(s, "channel%u.", i);
        state_field(s, "mode", &ch->mode);
        state_require(s, ch->mode <= 5, "mode");
        state_field(s, "access", &ch->access);
        state_require(s, ch->access <= ACCESS_BOTH, "access");
        state_field(s, "bcd", &ch->bcd);
        state_field(s, "gate", &ch->gate);
        state_field(s, "loaded", &ch->loaded);
        state_field(s, "started", &ch->started);
        state_field(s, "held", &ch->held);
        state_field(s, "write_high", &ch->write_high);
        state_field(s, "read_high", &ch->read_high);
        state_field(s, "write_low", &ch->write_low);
        state_field(s, "count", &ch->count);
        state_require(s, ch->count >= (periodic(ch) ? 2u : 1u) && ch->count <= (ch->bcd ? 10000u : 65536u),
                      "count");
        state_field(s, "start_ns", &ch->start_ns);
        state_require(s, ch->start_ns <= clock_now_ns(pit->clock), "start_ns");
        state_field(s, "held_ticks", &ch->held_ticks);
        state_field(s, "count_latched", &ch->count_latched);
        state_field(s, "status_latched", &ch->status_latched);
        state_field(s, "count_latch", &ch->count_latch);
        state_field(s, "status_latch", &ch->status_latch);
    }
    if (state_loaded(s)) {
        plan_edge(pit);
    }
}

static const struct device_ops i8254_device_ops = {.name = "i8254",
                                                   .reset = i8254_reset,
                                                   .free = i8254_free,
                                                   .describe = i8254_describe,
                                                   .state = i8254_state};

struct i8254 *i8254_new(const struct i8254_config *config, struct err *err)
{
    struct i8254 *pit = calloc(1, sizeof(*pit));
    if (!pit) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    pit->device.ops = &i8254_device_ops;
    pit->clock = config->clock;
    pit->irq = config->irq;
    clock_timer_init(&pit->timer, edge_reached, pit);
    if (mem_add_pio(config->mem, 0x40, 4, &pit_ops, pit, "i8254", err) < 0 ||
        mem_add_pio(config->mem, 0x61, 1, &port61_ops, pit, "port61", err) < 0) {
        free(pit);
        return NULL;
    }
    i8254_reset(&pit->device);
    return pit;
}

struct device *i8254_device(struct i8254 *pit)
{
    return &pit->device;
}
