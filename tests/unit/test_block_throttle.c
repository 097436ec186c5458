/* The arithmetic of the throttle filter, under a clock that the test moves. */
#include "tests/unit/unit.h"

#include "block/throttle.h"

#define S 1000000000ull

static void no_limit_never_waits(void **state)
{
    struct throttle_bucket b;
    throttle_bucket_init(&b, 0, 0, 0);
    throttle_bucket_take(&b, UINT64_MAX);
    assert_int_equal(throttle_bucket_wait_ns(&b, 0), 0);
}

static void a_burst_passes_then_the_rate_holds(void **state)
{
    struct throttle_bucket b;
    throttle_bucket_init(&b, 100, 10, 0);
    unsigned passed = 0;
    for (uint64_t now = 0; now <= 10 * S; now += S / 1000) {
        while (throttle_bucket_wait_ns(&b, now) == 0) {
            throttle_bucket_take(&b, 1);
            passed++;
        }
    }
    assert_in_range(passed, 1000 + 9, 1000 + 11);
}

static void a_wait_is_enough(void **state)
{
    struct throttle_bucket b;
    uint64_t now = 5 * S;
    throttle_bucket_init(&b, 1000, 1, now);
    throttle_bucket_take(&b, 501);
    uint64_t wait = throttle_bucket_wait_ns(&b, now);
    assert_in_range(wait, S / 2, S / 2 + 10000);
    assert_int_equal(throttle_bucket_wait_ns(&b, now + wait), 0);
}

static void larger_than_the_burst_is_not_starved(void **state)
{
    struct throttle_bucket b;
    throttle_bucket_init(&b, 1 << 20, 4096, 0);
    assert_int_equal(throttle_bucket_wait_ns(&b, 0), 0);
    throttle_bucket_take(&b, 8 << 20);
    uint64_t wait = throttle_bucket_wait_ns(&b, 0);
    assert_in_range(wait, 79 * S / 10, 8 * S);
}

static void a_pause_saves_no_more_than_the_burst(void **state)
{
    struct throttle_bucket b;
    unsigned passed = 0;
    throttle_bucket_init(&b, 100, 20, 0);
    while (throttle_bucket_wait_ns(&b, 3600 * S) == 0) {
        throttle_bucket_take(&b, 1);
        passed++;
    }
    assert_int_equal(passed, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_limit_never_waits),
        cmocka_unit_test(a_burst_passes_then_the_rate_holds),
        cmocka_unit_test(a_wait_is_enough),
        cmocka_unit_test(larger_than_the_burst_is_not_starved),
        cmocka_unit_test(a_pause_saves_no_more_than_the_burst),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
