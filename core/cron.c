/* See cron.h. */
#include "core/cron.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define DAYS_MAX (5 * 366)

static bool number(const char **at, unsigned *ret)
{
    unsigned value = 0, digits = 0;
    while (**at >= '0' && **at <= '9' && digits < 3) {
        value = value * 10 + (unsigned)(**at - '0');
        digits++;
        (*at)++;
    }
    *ret = value;
    return digits > 0;
}

/* "*", "5", "1-5", each with "/2". */
static bool part(const char **at, unsigned min, unsigned max, uint64_t *bits, bool *star)
{
    unsigned from = min, to = max, step = 1;
    if (**at == '*') {
        (*at)++;
        *star = true;
    } else {
        if (!number(at, &from)) {
            return false;
        }
        to = from;
        if (**at == '-') {
            (*at)++;
            if (!number(at, &to)) {
                return false;
            }
        }
    }
    if (**at == '/') {
        (*at)++;
        if (!number(at, &step) || step == 0) {
            return false;
        }
        to = to == from ? max : to;
    }
    if (from < min || to > max || from > to) {
        return false;
    }
    for (unsigned i = from; i <= to; i += step) {
        *bits |= BIT64(i);
    }
    return true;
}

static int field(const char **at, const char *name, unsigned min, unsigned max, uint64_t *ret_bits,
                 bool *ret_any, struct err *err)
{
    uint64_t bits = 0;
    bool star = false;
    const char *start = *at;
    do {
        *at += bits && **at == ',';
        if (!part(at, min, max, &bits, &star)) {
            return err_set(err, -EINVAL, "%s: '%.20s' is none: %u to %u, '*', ranges, lists and steps", name,
                           start, min, max);
        }
    } while (**at == ',');
    if (**at != ' ' && **at != '\0') {
        return err_set(err, -EINVAL, "%s: '%.20s' has something behind it", name, start);
    }
    *at += strspn(*at, " ");
    *ret_bits = bits;
    *ret_any = star && strchr(" /", start[1]) != NULL;
    return 0;
}

int cron_parse(const char *text, struct cron *ret_cron, struct err *err)
{
    static const struct {
        const char *name;
        unsigned min, max;
    } fields[] = {{"minute", 0, 59},
                  {"hour", 0, 23},
                  {"day of the month", 1, 31},
                  {"month", 1, 12},
                  {"day of the week", 0, 7}};
    uint64_t bits[ARRAY_SIZE(fields)];
    bool any[ARRAY_SIZE(fields)];
    const char *at = text + strspn(text, " ");
    for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
        int rc = field(&at, fields[i].name, fields[i].min, fields[i].max, &bits[i], &any[i], err);
        if (rc < 0) {
            return rc;
        }
    }
    if (*at) {
        return err_set(err, -EINVAL, "there are more than five fields: '%.20s'", at);
    }
    if (bits[4] & BIT64(7)) {
        bits[4] |= 1; /* Sunday */
    }
    *ret_cron = (struct cron){
        bits[0], (uint32_t)bits[1], (uint32_t)bits[2], (uint32_t)bits[3], (uint32_t)bits[4], any[2], any[4]};
    return 0;
}

static bool day_fits(const struct cron *cron, const struct tm *tm)
{
    bool day = cron->days & BIT(tm->tm_mday), weekday = cron->weekdays & BIT(tm->tm_wday);
    if (!(cron->months & BIT(tm->tm_mon + 1))) {
        return false;
    }
    return cron->any_day || cron->any_weekday ? day && weekday : day || weekday;
}

/* The first minute of that day, from hour and minute on; -1: none. What daylight saving leaves out of a day
 * is passed over: mktime moves it, and it no longer fits. */
static time_t in_day(const struct cron *cron, const struct tm *day, int hour, int minute)
{
    for (; hour < 24; hour++, minute = 0) {
        for (; (cron->hours & BIT(hour)) && minute < 60; minute++) {
            struct tm at = *day;
            at.tm_hour = hour;
            at.tm_min = minute;
            at.tm_isdst = -1;
            time_t when = cron->minutes & BIT64(minute) ? mktime(&at) : -1;
            if (when != -1 && at.tm_hour == hour && at.tm_min == minute) {
                return when;
            }
        }
    }
    return -1;
}

time_t cron_next(const struct cron *cron, time_t after)
{
    struct tm tm;
    time_t from = after - after % 60 + 60;
    localtime_r(&from, &tm);
    int hour = tm.tm_hour, minute = tm.tm_min;
    for (unsigned i = 0; i < DAYS_MAX; i++) {
        struct tm day = {.tm_year = tm.tm_year,
                         .tm_mon = tm.tm_mon,
                         .tm_mday = tm.tm_mday + (int)i,
                         .tm_hour = 12,
                         .tm_isdst = -1};
        mktime(&day); /* noon is in every day; the date is a true one now */
        day.tm_sec = 0;
        time_t when = day_fits(cron, &day) ? in_day(cron, &day, i ? 0 : hour, i ? 0 : minute) : -1;
        if (when > after) {
            return when;
        }
    }
    return -1;
}
