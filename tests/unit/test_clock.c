/* base/clock.c: timer order, cancelling, re-arming, the wake callback; a random run against a simple twin. */
#include "base/clock.h"
#include "tests/unit/unit.h"

struct probe {
    struct clock *clock;
    struct clock_timer timer;
    unsigned runs;
    uint64_t ran_at;
    uint64_t period_ns;
};

static void probe_fn(void *opaque)
{
    struct probe *probe = opaque;
    probe->runs++;
    probe->ran_at = clock_now_ns(probe->clock);
    if (probe->period_ns) {
        clock_timer_arm(probe->clock, &probe->timer, probe->ran_at + probe->period_ns);
    }
}

static void probe_init(struct probe *probe, struct clock *clock)
{
    *probe = (struct probe){.clock = clock};
    clock_timer_init(&probe->timer, probe_fn, probe);
}

static void test_order(void **state)
{
    struct clock *clock = clock_new_manual();
    struct probe a;
    struct probe b;
    probe_init(&a, clock);
    probe_init(&b, clock);
    assert_int_equal(clock_now_ns(clock), 0);
    assert_true(clock_next_deadline(clock) == CLOCK_NEVER);
    clock_timer_arm(clock, &a.timer, 200);
    clock_timer_arm(clock, &b.timer, 100);
    assert_int_equal(clock_next_deadline(clock), 100);
    clock_advance(clock, 99);
    assert_int_equal(b.runs, 0);
    clock_advance(clock, 1);
    assert_int_equal(b.runs, 1);
    assert_int_equal(a.runs, 0);
    clock_timer_arm(clock, &b.timer, 150);
    clock_timer_cancel(clock, &b.timer);
    clock_timer_cancel(clock, &b.timer);
    clock_advance(clock, 1000);
    assert_int_equal(b.runs, 1);
    assert_int_equal(a.runs, 1);
    assert_int_equal(a.ran_at, 200);
    assert_int_equal(clock_now_ns(clock), 1100);
    clock_free(clock);
}

static void test_periodic(void **state)
{
    struct clock *clock = clock_new_manual();
    struct probe a;
    probe_init(&a, clock);
    a.period_ns = 10;
    clock_timer_arm(clock, &a.timer, 10);
    clock_advance(clock, 1005);
    assert_int_equal(a.runs, 100);
    assert_int_equal(a.ran_at, 1000);
    clock_free(clock);
}

static void past_fn(void *opaque)
{
    struct probe *probe = opaque;
    probe->runs++;
    clock_timer_arm(probe->clock, &probe->timer, 0);
}

static void test_run_is_bounded(void **state)
{
    struct clock *clock = clock_new_host();
    struct probe a;
    probe_init(&a, clock);
    a.timer.fn = past_fn;
    clock_timer_arm(clock, &a.timer, 0);
    clock_run(clock);
    assert_int_equal(a.runs, 1);
    clock_run(clock);
    assert_int_equal(a.runs, 2);
    clock_free(clock);
}

static void count_wake(void *opaque)
{
    (*(unsigned *)opaque)++;
}

static void test_wake(void **state)
{
    struct clock *clock = clock_new_manual();
    unsigned wakes = 0;
    struct probe a;
    struct probe b;
    probe_init(&a, clock);
    probe_init(&b, clock);
    clock_set_wake(clock, count_wake, &wakes);
    clock_timer_arm(clock, &a.timer, 500);
    assert_int_equal(wakes, 1);
    clock_next_deadline(clock);
    clock_timer_arm(clock, &b.timer, 600);
    assert_int_equal(wakes, 1);
    clock_timer_arm(clock, &b.timer, 400);
    assert_int_equal(wakes, 2);
    clock_timer_arm(clock, &b.timer, 450);
    assert_int_equal(wakes, 2);
    a.period_ns = 1; /* re-arming from a callback needs no wake: the loop that runs it looks again */
    clock_advance(clock, 510);
    assert_int_equal(wakes, 2);
    clock_free(clock);
}

#define TWIN_TIMERS 100u

static void test_random(void **state)
{
    struct clock *clock = clock_new_manual();
    static struct probe probes[TWIN_TIMERS];
    uint64_t due[TWIN_TIMERS];
    unsigned runs[TWIN_TIMERS] = {0};
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < TWIN_TIMERS; i++) {
        probe_init(&probes[i], clock);
        due[i] = CLOCK_NEVER;
    }
    for (unsigned step = 0; step < 20000; step++) {
        unsigned i = (unsigned)(unit_random(&rng) % TWIN_TIMERS);
        uint64_t now = clock_now_ns(clock);
        switch (unit_random(&rng) % 4) {
        case 0:
        case 1:
            due[i] = now + unit_random(&rng) % 1000;
            assert_int_equal(clock_timer_arm(clock, &probes[i].timer, due[i]), 0);
            break;
        case 2:
            due[i] = CLOCK_NEVER;
            clock_timer_cancel(clock, &probes[i].timer);
            break;
        default: {
            uint64_t ns = unit_random(&rng) % 50;
            clock_advance(clock, ns);
            for (unsigned k = 0; k < TWIN_TIMERS; k++) {
                if (due[k] <= now + ns) {
                    assert_int_equal(probes[k].ran_at, due[k] > now ? due[k] : now);
                    due[k] = CLOCK_NEVER;
                    runs[k]++;
                }
            }
        }
        }
        uint64_t next = CLOCK_NEVER;
        for (unsigned k = 0; k < TWIN_TIMERS; k++) {
            next = due[k] < next ? due[k] : next;
            assert_int_equal(probes[k].runs, runs[k]);
        }
        assert_true(clock_next_deadline(clock) == next);
    }
    clock_free(clock);
}

static void test_host(void **state)
{
    struct clock *clock = clock_new_host();
    uint64_t first = clock_now_ns(clock);
    assert_true(first < 60000000000ull);
    assert_true(clock_now_ns(clock) >= first);
    struct probe a;
    probe_init(&a, clock);
    clock_timer_arm(clock, &a.timer, clock_now_ns(clock) + 3600000000000ull);
    clock_run(clock);
    assert_int_equal(a.runs, 0);
    clock_free(clock);
    clock_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order), cmocka_unit_test(test_periodic), cmocka_unit_test(test_run_is_bounded),
        cmocka_unit_test(test_wake),  cmocka_unit_test(test_random),   cmocka_unit_test(test_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
