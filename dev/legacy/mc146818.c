/*
 * The MC146818A: see mc146818.h.
 *
 * The time of day is the machine clock plus offset_ns. The ten time registers are filled from it when they
 * are read; while register B's SET bit stops updates they keep what was written, and the offset is taken anew
 * when it clears. Flags of register C are caught up lazily: rtc_catch_up() looks at what happened since it
 * ran last.
 *
 * Invariants
 *  1. Updates happen on whole seconds of the time of day; UIP is on during the 244 microseconds before
 *     (data sheet, "Update Cycle"), so a guest that saw it off has that long to read.
 *  2. The clock timer is armed only while an interrupt is enabled that it could raise.
 */
#include "dev/legacy/mc146818.h"

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define NS_PER_S  1000000000ll
#define UIP_NS    244000
#define CMOS_SIZE 128u
#define DAY_S     86400

enum rtc_reg {
    RTC_SECONDS = 0,
    RTC_SECONDS_ALARM = 1,
    RTC_MINUTES = 2,
    RTC_MINUTES_ALARM = 3,
    RTC_HOURS = 4,
    RTC_HOURS_ALARM = 5,
    RTC_WEEKDAY = 6,
    RTC_DAY = 7,
    RTC_MONTH = 8,
    RTC_YEAR = 9,
    RTC_A = 10,
    RTC_B = 11,
    RTC_C = 12,
    RTC_D = 13,
};

#define A_UIP     0x80u
#define A_DIV(a)  (((a) >> 4) & 7)
#define A_DIV_RUN 2u /* 32,768 Hz */
#define A_RATE    0x0fu
#define B_SET     0x80u
#define B_PIE     0x40u
#define B_AIE     0x20u
#define B_UIE     0x10u
#define B_BINARY  0x04u
#define B_24H     0x02u
#define C_IRQF    0x80u
#define C_PF      0x40u
#define C_AF      0x20u
#define C_UF      0x10u
#define D_VALID   0x80u /* the battery is good */
#define ALARM_ANY 0xc0u /* both bits on in an alarm register: matches always */
#define HOURS_PM  0x80u

struct mc146818 {
    struct device device;
    struct clock *clock;
    struct irq_line irq;
    struct clock_timer timer;
    bool replaced;
    bool irq_level;
    uint8_t index;
    bool nmi_masked;
    int64_t offset_ns;     /* time of day = machine clock + this */
    int64_t seen_ns;       /* time of day up to which flags are caught up */
    uint64_t periods_seen; /* of the periodic interrupt, at that time */
    uint8_t cmos[CMOS_SIZE];
};

static int64_t tod_ns(const struct mc146818 *rtc)
{
    return (int64_t)clock_now_ns(rtc->clock) + rtc->offset_ns;
}

static bool running(const struct mc146818 *rtc)
{
    return !(rtc->cmos[RTC_B] & B_SET) && A_DIV(rtc->cmos[RTC_A]) == A_DIV_RUN;
}

static uint8_t encode(const struct mc146818 *rtc, int value)
{
    return (uint8_t)(rtc->cmos[RTC_B] & B_BINARY ? value : value / 10 * 16 + value % 10);
}

static int decode(const struct mc146818 *rtc, uint8_t value)
{
    return rtc->cmos[RTC_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 15);
}

static uint8_t encode_hour(const struct mc146818 *rtc, int hour)
{
    if (rtc->cmos[RTC_B] & B_24H) {
        return encode(rtc, hour);
    }
    uint8_t value = encode(rtc, hour % 12 == 0 ? 12 : hour % 12);
    return (uint8_t)(value | (hour >= 12 ? HOURS_PM : 0));
}

static int decode_hour(const struct mc146818 *rtc, uint8_t value)
{
    if (rtc->cmos[RTC_B] & B_24H) {
        return decode(rtc, value);
    }
    return decode(rtc, value & 0x7f) % 12 + (value & HOURS_PM ? 12 : 0);
}

static int64_t floor_s(int64_t ns)
{
    return ns / NS_PER_S - (ns % NS_PER_S < 0);
}

/* Fills the time registers from the time of day. */
static void registers_from_time(struct mc146818 *rtc)
{
    time_t seconds = (time_t)floor_s(tod_ns(rtc));
    struct tm tm;
    if (!gmtime_r(&seconds, &tm)) {
        return;
    }
    int year = (tm.tm_year + 1900) % 10000;
    rtc->cmos[RTC_SECONDS] = encode(rtc, tm.tm_sec);
    rtc->cmos[RTC_MINUTES] = encode(rtc, tm.tm_min);
    rtc->cmos[RTC_HOURS] = encode_hour(rtc, tm.tm_hour);
    rtc->cmos[RTC_WEEKDAY] = encode(rtc, tm.tm_wday + 1);
    rtc->cmos[RTC_DAY] = encode(rtc, tm.tm_mday);
    rtc->cmos[RTC_MONTH] = encode(rtc, tm.tm_mon + 1);
    rtc->cmos[RTC_YEAR] = encode(rtc, year % 100);
    rtc->cmos[MC146818_CENTURY] = encode(rtc, year / 100);
}

/* Sets the time of day from the registers, which may hold any nonsense: timegm() normalizes it. */
static void time_from_registers(struct mc146818 *rtc)
{
    struct tm tm = {
        .tm_sec = decode(rtc, rtc->cmos[RTC_SECONDS]),
        .tm_min = decode(rtc, rtc->cmos[RTC_MINUTES]),
        .tm_hour = decode_hour(rtc, rtc->cmos[RTC_HOURS]),
        .tm_mday = decode(rtc, rtc->cmos[RTC_DAY]),
        .tm_mon = decode(rtc, rtc->cmos[RTC_MONTH]) - 1,
        .tm_year = decode(rtc, rtc->cmos[MC146818_CENTURY]) * 100 + decode(rtc, rtc->cmos[RTC_YEAR]) - 1900,
    };
    int64_t seconds = timegm(&tm);
    /* What a nanosecond count can hold: the years 1678 to 2262. */
    int64_t limit = INT64_MAX / NS_PER_S / 2;
    seconds = seconds > limit ? limit : seconds < -limit ? -limit : seconds;
    rtc->offset_ns = seconds * NS_PER_S - (int64_t)clock_now_ns(rtc->clock);
    rtc->seen_ns = tod_ns(rtc);
}

/* Nanoseconds between two periodic interrupts, 0: none (data sheet, table 5, for the 32,768 Hz time base). */
static uint64_t period_ns(const struct mc146818 *rtc)
{
    unsigned rate = rtc->cmos[RTC_A] & A_RATE;
    if (rate == 0 || A_DIV(rtc->cmos[RTC_A]) != A_DIV_RUN) {
        return 0;
    }
    if (rate < 3) {
        rate += 7;
    }
    return ((uint64_t)NS_PER_S << (rate - 1)) / 32768;
}

static uint64_t periods(const struct mc146818 *rtc)
{
    uint64_t period = period_ns(rtc);
    return period ? clock_now_ns(rtc->clock) / period : 0;
}

static bool alarm_field(const struct mc146818 *rtc, enum rtc_reg reg, int have, bool hour)
{
    uint8_t value = rtc->cmos[reg];
    if ((value & ALARM_ANY) == ALARM_ANY) {
        return true;
    }
    return (hour ? decode_hour(rtc, value) : decode(rtc, value)) == have;
}

/* Whether the alarm matched in a second of (from, to]. At most a day of seconds tells all. */
static bool alarm_between(const struct mc146818 *rtc, int64_t from, int64_t to)
{
    from = MAX(from, to - DAY_S);
    for (int64_t s = from + 1; s <= to; s++) {
        int of_day = (int)(((s % DAY_S) + DAY_S) % DAY_S);
        if (alarm_field(rtc, RTC_SECONDS_ALARM, of_day % 60, false) &&
            alarm_field(rtc, RTC_MINUTES_ALARM, of_day / 60 % 60, false) &&
            alarm_field(rtc, RTC_HOURS_ALARM, of_day / 3600, true)) {
            return true;
        }
    }
    return false;
}

static void irq_update(struct mc146818 *rtc)
{
    uint8_t raised = rtc->cmos[RTC_B] & rtc->cmos[RTC_C] & (C_PF | C_AF | C_UF);
    rtc->cmos[RTC_C] = (uint8_t)((rtc->cmos[RTC_C] & ~C_IRQF) | (raised ? C_IRQF : 0));
    bool level = raised && !rtc->replaced;
    if (level != rtc->irq_level) {
        rtc->irq_level = level;
        irq_set(&rtc->irq, level);
    }
}

/* Sets the flags of what happened since the last call, and plans the next look. */
static void rtc_catch_up(struct mc146818 *rtc)
{
    int64_t now = tod_ns(rtc);
    if (running(rtc)) {
        int64_t from = floor_s(rtc->seen_ns);
        int64_t to = floor_s(now);
        if (to > from) {
            rtc->cmos[RTC_C] |= C_UF;
            if (alarm_between(rtc, from, to)) {
                rtc->cmos[RTC_C] |= C_AF;
            }
        }
    }
    rtc->seen_ns = now;
    uint64_t count = periods(rtc);
    if (count != rtc->periods_seen) {
        rtc->cmos[RTC_C] |= C_PF;
        rtc->periods_seen = count;
    }
    irq_update(rtc);

    uint8_t enabled = rtc->cmos[RTC_B];
    uint64_t now_ns = clock_now_ns(rtc->clock);
    uint64_t next_ns = CLOCK_NEVER;
    if ((enabled & (B_UIE | B_AIE)) && running(rtc)) {
        next_ns = now_ns + (uint64_t)((floor_s(now) + 1) * NS_PER_S - now);
    }
    uint64_t period = period_ns(rtc);
    if ((enabled & B_PIE) && period) {
        next_ns = MIN(next_ns, (now_ns / period + 1) * period);
    }
    if (next_ns == CLOCK_NEVER) {
        clock_timer_cancel(rtc->clock, &rtc->timer);
    } else {
        (void)clock_timer_arm(rtc->clock, &rtc->timer, next_ns);
    }
}

static void timer_expired(void *opaque)
{
    rtc_catch_up(opaque);
}

static bool is_time(unsigned reg)
{
    return reg == RTC_SECONDS || reg == RTC_MINUTES || reg == RTC_HOURS ||
           (reg >= RTC_WEEKDAY && reg <= RTC_YEAR) || reg == MC146818_CENTURY;
}

static uint8_t rtc_read(struct mc146818 *rtc)
{
    unsigned reg = rtc->index;
    if (is_time(reg)) {
        if (running(rtc)) {
            registers_from_time(rtc);
        }
        return rtc->cmos[reg];
    }
    switch (reg) {
    case RTC_A: {
        int64_t into = tod_ns(rtc) - floor_s(tod_ns(rtc)) * NS_PER_S;
        bool updating = running(rtc) && into >= NS_PER_S - UIP_NS;
        return (uint8_t)((rtc->cmos[RTC_A] & ~A_UIP) | (updating ? A_UIP : 0));
    }
    case RTC_C: {
        rtc_catch_up(rtc);
        uint8_t flags = rtc->cmos[RTC_C];
        rtc->cmos[RTC_C] = 0;
        irq_update(rtc);
        return flags;
    }
    case RTC_D: return D_VALID;
    default: return rtc->cmos[reg];
    }
}

/* Registers A and B stop and start the time of day, whose registers must be right before and after. */
static void control_write(struct mc146818 *rtc, unsigned reg, uint8_t value)
{
    rtc_catch_up(rtc);
    bool ran = running(rtc);
    if (ran) {
        registers_from_time(rtc);
    }
    if (reg == RTC_B) {
        if (value & B_SET) {
            value &= (uint8_t)~B_UIE; /* data sheet, register B */
        }
        rtc->cmos[RTC_B] = value;
    } else {
        rtc->cmos[RTC_A] = value & (uint8_t)~A_UIP;
    }
    if (!ran && running(rtc)) {
        time_from_registers(rtc);
    }
    rtc->periods_seen = periods(rtc);
    rtc_catch_up(rtc);
}

static void rtc_write(struct mc146818 *rtc, uint8_t value)
{
    unsigned reg = rtc->index;
    switch (reg) {
    case RTC_A:
    case RTC_B: control_write(rtc, reg, value); return;
    case RTC_C:
    case RTC_D: return; /* read-only */
    default: break;
    }
    if (is_time(reg) && running(rtc)) {
        /* Written on the run: the other fields go on from what they are. */
        int64_t fraction = tod_ns(rtc) - floor_s(tod_ns(rtc)) * NS_PER_S;
        rtc_catch_up(rtc);
        registers_from_time(rtc);
        rtc->cmos[reg] = value;
        time_from_registers(rtc);
        rtc->offset_ns += fraction;
        rtc->seen_ns = tod_ns(rtc);
    } else {
        rtc_catch_up(rtc); /* what an old alarm matched stays matched */
        rtc->cmos[reg] = value;
    }
    rtc_catch_up(rtc);
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    return size == 1 && offset == 1 ? rtc_read(opaque) : UINT64_MAX; /* port 0x70 can't be read */
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct mc146818 *rtc = opaque;
    for (unsigned i = 0; i < size; i++, value >>= 8) {
        if (offset + i == 0) {
            rtc->index = value & (CMOS_SIZE - 1);
            rtc->nmi_masked = value & 0x80;
        } else {
            rtc_write(rtc, (uint8_t)value);
        }
    }
}

static const struct mem_io_ops port_ops = {port_read, port_write};

bool mc146818_nmi_masked(const struct mc146818 *rtc)
{
    return rtc->nmi_masked;
}

void mc146818_set_replaced(void *opaque, bool replaced)
{
    struct mc146818 *rtc = opaque;
    rtc->replaced = replaced;
    irq_update(rtc);
}

static void put16(uint8_t *at, uint64_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

/* The memory sizes that PC firmware keeps in CMOS. */
static void set_memory_bytes(struct mc146818 *rtc, uint64_t low, uint64_t high)
{
    uint64_t above_1m = low > MiB ? (low - MiB) / KiB : 0;
    uint64_t above_16m = low > 16 * MiB ? (low - 16 * MiB) / (64 * KiB) : 0;
    put16(&rtc->cmos[0x15], MIN(low / KiB, 640u));
    put16(&rtc->cmos[0x17], MIN(above_1m, 0xffffu));
    put16(&rtc->cmos[0x30], MIN(above_1m, 0xffffu));
    put16(&rtc->cmos[0x34], MIN(above_16m, 0xffffu));
    uint64_t above_4g = MIN(high / (64 * KiB), 0xffffffu);
    put16(&rtc->cmos[0x5b], above_4g);
    rtc->cmos[0x5d] = (uint8_t)(above_4g >> 16);
}

/* A reset leaves time, calendar and memory alone, and clears the enables and flags (data sheet, "RESET"). */
static void mc146818_reset(struct device *dev)
{
    struct mc146818 *rtc = CONTAINER_OF(dev, struct mc146818, device);
    rtc->index = 0;
    rtc->nmi_masked = false;
    rtc->replaced = false;
    rtc->cmos[RTC_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE);
    rtc_catch_up(rtc);
    rtc->cmos[RTC_C] = 0;
    irq_update(rtc);
}

static void mc146818_free(struct device *dev)
{
    struct mc146818 *rtc = CONTAINER_OF(dev, struct mc146818, device);
    clock_timer_cancel(rtc->clock, &rtc->timer);
    free(rtc);
}

static unsigned mc146818_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct mc146818 *rtc = CONTAINER_OF(dev, const struct mc146818, device);
    int n = snprintf(buf, size, "utc=%lld a=%02x b=%02x c=%02x index=%02x\n", (long long)floor_s(tod_ns(rtc)),
                     rtc->cmos[RTC_A], rtc->cmos[RTC_B], rtc->cmos[RTC_C], rtc->index);
    return MIN((unsigned)MAX(n, 0), size);
}

#define CENTURY_NS (100ll * 366 * DAY_S * NS_PER_S)

static int64_t utc_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static void mc146818_state(struct device *dev, struct state *s)
{
    struct mc146818 *rtc = CONTAINER_OF(dev, struct mc146818, device);
    /* Of a running clock, the distance to the world's time goes along, not the time itself: it went on. */
    int64_t ahead_ns = tod_ns(rtc) - utc_ns();
    int64_t unseen_ns = tod_ns(rtc) - rtc->seen_ns;
    state_field(s, "replaced", &rtc->replaced);
    state_field(s, "irq", &rtc->irq_level);
    state_field(s, "index", &rtc->index);
    state_require(s, rtc->index < CMOS_SIZE, "index");
    state_field(s, "nmi_masked", &rtc->nmi_masked);
    state_field(s, "ahead_ns", &ahead_ns);
    state_field(s, "unseen_ns", &unseen_ns);
    state_require(s, ahead_ns > -CENTURY_NS && ahead_ns < CENTURY_NS, "ahead_ns");
    state_require(s, unseen_ns >= 0 && unseen_ns < CENTURY_NS, "unseen_ns");
    state_field(s, "periods_seen", &rtc->periods_seen);
    state_array(s, "cmos", rtc->cmos);
    if (state_loaded(s)) {
        rtc->offset_ns = utc_ns() + ahead_ns - (int64_t)clock_now_ns(rtc->clock);
        rtc->seen_ns = tod_ns(rtc) - unseen_ns;
        rtc_catch_up(rtc);
    }
}

static const struct device_ops mc146818_device_ops = {.name = "mc146818",
                                                      .reset = mc146818_reset,
                                                      .free = mc146818_free,
                                                      .describe = mc146818_describe,
                                                      .state = mc146818_state};

struct mc146818 *mc146818_new(const struct mc146818_config *config, struct err *err)
{
    struct mc146818 *rtc = calloc(1, sizeof(*rtc));
    if (!rtc) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    rtc->device.ops = &mc146818_device_ops;
    rtc->clock = config->clock;
    rtc->irq = config->irq;
    clock_timer_init(&rtc->timer, timer_expired, rtc);
    struct timespec ts = {.tv_sec = config->utc_s};
    if (!config->utc_s) {
        clock_gettime(CLOCK_REALTIME, &ts);
    }
    rtc->offset_ns = ts.tv_sec * NS_PER_S + ts.tv_nsec - (int64_t)clock_now_ns(rtc->clock);
    rtc->seen_ns = tod_ns(rtc);
    rtc->cmos[RTC_A] = A_DIV_RUN << 4 | 6; /* 1,024 Hz, as PC firmware leaves it */
    rtc->cmos[RTC_B] = B_24H;
    rtc->periods_seen = periods(rtc);
    set_memory_bytes(rtc, config->ram_low_bytes, config->ram_high_bytes);
    if (mem_add_pio(config->mem, 0x70, 2, &port_ops, rtc, "mc146818", err) < 0) {
        free(rtc);
        return NULL;
    }
    mc146818_reset(&rtc->device);
    return rtc;
}

struct device *mc146818_device(struct mc146818 *rtc)
{
    return &rtc->device;
}
