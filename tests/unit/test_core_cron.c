/* core/cron: what is refused, known times, daylight saving, and random fields against a look at each minute.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/cron.h"

static void zone(const char *name)
{
    setenv("TZ", name, 1);
    tzset();
}

static time_t at(const char *text)
{
    struct tm tm = {.tm_isdst = -1};
    assert_non_null(strptime(text, "%Y-%m-%d %H:%M", &tm));
    return mktime(&tm);
}

static void check_next(const char *fields, const char *after, const char *expected)
{
    struct cron cron;
    struct err err = {0};
    assert_int_equal(cron_parse(fields, &cron, &err), 0);
    time_t next = cron_next(&cron, at(after));
    char text[32];
    struct tm tm;
    strftime(text, sizeof(text), "%Y-%m-%d %H:%M", localtime_r(&next, &tm));
    assert_string_equal(text, expected);
}

static void refused(void **state)
{
    static const char *const wrong[] = {"",
                                        "* * * *",
                                        "* * * * * *",
                                        "60 * * * *",
                                        "* 24 * * *",
                                        "* * 0 * *",
                                        "* * 32 * *",
                                        "* * * 13 *",
                                        "* * * * 8",
                                        "-1 * * * *",
                                        "5-1 * * * *",
                                        "*/0 * * * *",
                                        "1,,2 * * * *",
                                        "a * * * *",
                                        "1- * * * *",
                                        "1;2 * * * *",
                                        "9999999999 * * * *"};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        struct cron cron;
        struct err err = {0};
        if (cron_parse(wrong[i], &cron, &err) == 0 || !err.text[0]) {
            fail_msg("'%s' was taken", wrong[i]);
        }
    }
}

static void known(void **state)
{
    zone("UTC");
    check_next("* * * * *", "2024-05-06 07:08", "2024-05-06 07:09");
    check_next("30 3 * * *", "2024-05-06 03:30", "2024-05-07 03:30");
    check_next("30 3 * * *", "2024-12-31 03:31", "2025-01-01 03:30");
    check_next("*/15 8-18 * * 1-5", "2024-05-03 18:45", "2024-05-06 08:00"); /* from a Friday to Monday */
    check_next("0 0 29 2 *", "2024-03-01 00:00", "2028-02-29 00:00");
    check_next("0 0 13 * 5", "2024-05-06 00:00", "2024-05-10 00:00"); /* the 13th, or a Friday */
    check_next("0 12 * * 7", "2024-05-06 00:00", "2024-05-12 12:00");
    check_next("5/20 * * * *", "2024-05-06 00:30", "2024-05-06 00:45");
    struct cron cron;
    assert_int_equal(cron_parse("0 0 30 2 *", &cron, NULL), 0);
    assert_int_equal(cron_next(&cron, at("2024-05-06 00:00")), -1);
}

static void daylight_saving(void **state)
{
    zone("CET-1CEST,M3.5.0,M10.5.0/3");
    /* 2024-03-31 has no 02:30. */
    check_next("30 2 * * *", "2024-03-30 02:30", "2024-04-01 02:30");
    check_next("30 3 * * *", "2024-03-30 03:30", "2024-03-31 03:30");
    check_next("0 12 * * *", "2024-10-26 12:00", "2024-10-27 12:00");
}

static bool fits(const struct cron *cron, time_t when)
{
    struct tm tm;
    gmtime_r(&when, &tm);
    bool day = cron->days & BIT(tm.tm_mday), weekday = cron->weekdays & BIT(tm.tm_wday);
    bool days = cron->any_day || cron->any_weekday ? day && weekday : day || weekday;
    return (cron->minutes & BIT64(tm.tm_min)) && (cron->hours & BIT(tm.tm_hour)) &&
           (cron->months & BIT(tm.tm_mon + 1)) && days;
}

static void against_each_minute(void **state)
{
    unsigned seed = (unsigned)time(NULL);
    const char *given = getenv("FONDA_SEED");
    seed = given ? (unsigned)atol(given) : seed;
    print_message("FONDA_SEED=%u\n", seed);
    srandom(seed);
    zone("UTC");
    for (unsigned i = 0; i < 200; i++) {
        char text[64], day[16] = "*", weekday[16] = "*";
        struct cron cron;
        if (random() % 3 == 0) {
            snprintf(day, sizeof(day), "%ld", 1 + random() % 28);
        }
        if (random() % 3 == 0) {
            snprintf(weekday, sizeof(weekday), "%ld", random() % 7);
        }
        snprintf(text, sizeof(text), "%ld-59/%ld %ld,%ld %s * %s", random() % 60, 1 + random() % 30,
                 random() % 24, random() % 24, day, weekday);
        assert_int_equal(cron_parse(text, &cron, NULL), 0);
        time_t after = 1700000000 + random() % 100000000, when = after - after % 60 + 60;
        while (!fits(&cron, when)) {
            when += 60;
        }
        if (cron_next(&cron, after) != when) {
            fail_msg("'%s' behind %lld: %lld, not %lld", text, (long long)after,
                     (long long)cron_next(&cron, after), (long long)when);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(refused), cmocka_unit_test(known),
                                       cmocka_unit_test(daylight_saving),
                                       cmocka_unit_test(against_each_minute)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
