/*
 * The APIC timer: one-shot and periodic counts of the divided input clock, and the TSC deadline (SDM 10.5.4).
 *
 * A running count is the time at which it ends (timer_ends_ns); the current-count register is worked out from
 * it. Expirations that the host misses, or that come faster than LAPIC_TIMER_MIN_NS, coalesce into one, as
 * they do in the IRR of a processor that has interrupts off.
 */
#include "base/state.h"
#include "base/util.h"
#include "dev/irq/lapic_int.h"

#define NS_PER_S 1000000000ull

/* The shortest distance between two periodic expirations: keeps a guest from drowning the main loop. */
#define LAPIC_TIMER_MIN_NS 20000u

_Static_assert(LAPIC_TIMER_HZ == NS_PER_S, "one tick of the input clock is one nanosecond");

/* SDM figure 10-10: bits 0, 1 and 3 encode 2, 4, ... 128, 1. */
static uint64_t divider(const struct lapic *lapic)
{
    uint32_t code = (lapic->timer_divide & 3) | (lapic->timer_divide & 8) >> 1;
    return code == 7 ? 1 : 2ull << code;
}

static unsigned timer_mode(const struct lapic *lapic)
{
    return LVT_TIMER_MODE(lapic->lvt[LVT_TIMER]);
}

static void timer_fire(struct lapic *lapic)
{
    uint32_t lvt = lapic->lvt[LVT_TIMER];
    if (!(lvt & LVT_MASKED)) {
        lapic_request(lapic, (uint8_t)lvt, false);
    }
}

static void timer_stop(struct lapic *lapic)
{
    lapic->timer_ends_ns = 0;
    lapic->tsc_deadline = 0;
    clock_timer_cancel(lapic->bus->config.clock, &lapic->timer);
}

/* Arms the clock for the TSC deadline, or fires at once when it has passed. */
static void deadline_check(struct lapic *lapic)
{
    const struct lapic_cpu *cpu = &lapic->config.cpu;
    uint64_t tsc = cpu->tsc_read(cpu->opaque);
    if (tsc >= lapic->tsc_deadline) {
        timer_stop(lapic); /* the MSR reads zero from here on: SDM 10.5.4.1 */
        timer_fire(lapic);
        return;
    }
    struct clock *clock = lapic->bus->config.clock;
    unsigned __int128 delta_ns =
        ((unsigned __int128)(lapic->tsc_deadline - tsc) * NS_PER_S + lapic->config.tsc_hz - 1) /
        lapic->config.tsc_hz;
    uint64_t now_ns = clock_now_ns(clock);
    uint64_t room_ns = CLOCK_NEVER - 1 - now_ns;
    (void)clock_timer_arm(clock, &lapic->timer, now_ns + (delta_ns < room_ns ? (uint64_t)delta_ns : room_ns));
}

/* Moves the end of a periodic count beyond now, by whole periods. */
static uint64_t next_end_ns(const struct lapic *lapic, uint64_t now_ns)
{
    uint64_t period_ns = lapic->timer_initial * divider(lapic);
    uint64_t ends_ns = lapic->timer_ends_ns;
    return ends_ns > now_ns ? ends_ns : ends_ns + ((now_ns - ends_ns) / period_ns + 1) * period_ns;
}

static void timer_expired(void *opaque)
{
    struct lapic *lapic = opaque;
    if (lapic->tsc_deadline) {
        deadline_check(lapic);
        return;
    }
    if (!lapic->timer_ends_ns) {
        return;
    }
    if (timer_mode(lapic) == TIMER_PERIODIC) {
        struct clock *clock = lapic->bus->config.clock;
        uint64_t now_ns = clock_now_ns(clock);
        lapic->timer_ends_ns = next_end_ns(lapic, now_ns);
        (void)clock_timer_arm(clock, &lapic->timer, MAX(lapic->timer_ends_ns, now_ns + LAPIC_TIMER_MIN_NS));
    } else {
        lapic->timer_ends_ns = 0;
    }
    timer_fire(lapic);
}

void lapic_timer_init(struct lapic *lapic)
{
    clock_timer_init(&lapic->timer, timer_expired, lapic);
}

void lapic_timer_reset(struct lapic *lapic)
{
    timer_stop(lapic);
    lapic->timer_initial = 0;
    lapic->timer_divide = 0;
}

static void count_start(struct lapic *lapic, uint64_t count)
{
    struct clock *clock = lapic->bus->config.clock;
    lapic->timer_ends_ns = clock_now_ns(clock) + count * divider(lapic);
    (void)clock_timer_arm(clock, &lapic->timer, lapic->timer_ends_ns);
}

void lapic_timer_write_initial(struct lapic *lapic, uint32_t value)
{
    if (timer_mode(lapic) == TIMER_TSC_DEADLINE) {
        return; /* SDM 10.5.4.1 */
    }
    lapic->timer_initial = value;
    if (value) {
        count_start(lapic, value);
    } else {
        timer_stop(lapic);
    }
}

uint32_t lapic_timer_current(const struct lapic *lapic)
{
    if (!lapic->timer_ends_ns) {
        return 0;
    }
    uint64_t now_ns = clock_now_ns(lapic->bus->config.clock);
    uint64_t ends_ns = lapic->timer_ends_ns;
    if (ends_ns <= now_ns) {
        if (timer_mode(lapic) != TIMER_PERIODIC) {
            return 0;
        }
        ends_ns = next_end_ns(lapic, now_ns);
    }
    uint64_t div = divider(lapic);
    return (uint32_t)((ends_ns - now_ns + div - 1) / div);
}

void lapic_timer_write_divide(struct lapic *lapic, uint32_t value)
{
    uint32_t count = lapic_timer_current(lapic);
    lapic->timer_divide = value & 0xb;
    if (count) {
        count_start(lapic, count); /* what is left runs on at the new rate */
    }
}

void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value)
{
    bool was_deadline = timer_mode(lapic) == TIMER_TSC_DEADLINE;
    bool is_deadline = LVT_TIMER_MODE(value) == TIMER_TSC_DEADLINE;
    if (was_deadline != is_deadline) {
        timer_stop(lapic); /* "switching between TSC-deadline and other modes disarms": SDM 10.5.4.1 */
        lapic->timer_initial = 0;
    }
    lapic->lvt[LVT_TIMER] = value;
}

uint64_t lapic_timer_read_deadline(const struct lapic *lapic)
{
    return timer_mode(lapic) == TIMER_TSC_DEADLINE ? lapic->tsc_deadline : 0;
}

void lapic_timer_write_deadline(struct lapic *lapic, uint64_t value)
{
    if (timer_mode(lapic) != TIMER_TSC_DEADLINE) {
        return;
    }
    if (!value) {
        timer_stop(lapic);
        return;
    }
    lapic->tsc_deadline = value;
    deadline_check(lapic);
}

void lapic_timer_state(struct lapic *lapic, struct state *s)
{
    state_field(s, "timer_initial", &lapic->timer_initial);
    state_field(s, "timer_divide", &lapic->timer_divide);
    state_field(s, "timer_ends_ns", &lapic->timer_ends_ns);
    state_field(s, "tsc_deadline", &lapic->tsc_deadline);
    state_require(s, !(lapic->timer_divide & ~0xbu), "timer_divide");
    state_require(s,
                  lapic->timer_ends_ns < CLOCK_NEVER / 2 && (!lapic->timer_ends_ns || lapic->timer_initial),
                  "timer_ends_ns");
    if (!state_loaded(s)) {
        return;
    }
    struct clock *clock = lapic->bus->config.clock;
    if (lapic->tsc_deadline) {
        /* Not by deadline_check: the guest's TSC is set only later. A look at once comes to the same. */
        (void)clock_timer_arm(clock, &lapic->timer, clock_now_ns(clock));
    } else if (lapic->timer_ends_ns) {
        (void)clock_timer_arm(clock, &lapic->timer, lapic->timer_ends_ns);
    }
}
