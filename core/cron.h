/*
 * Times like cron's: five fields (minute 0-59, hour 0-23, day of the month 1-31, month 1-12, day of the week
 * 0-7, 0 and 7 are Sunday), each '*', a number, a range, a list of those, with steps: "STAR/15 8-18 * * 1-5"
 * (STAR: '*'). As in crontab(5), when both days are restricted, either is enough.
 */
#ifndef FONDA_CORE_CRON_H
#define FONDA_CORE_CRON_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "base/err.h"

struct cron {
    uint64_t minutes;
    uint32_t hours, days, months, weekdays; /* bits */
    bool any_day, any_weekday;
};

/* Errors: -EINVAL, with the field named. */
int cron_parse(const char *text, struct cron *ret_cron, struct err *err);
/* The first such minute behind `after`, in the process's time zone; -1: there is none within five years ("0 0
 * 30 2 *"). */
time_t cron_next(const struct cron *cron, time_t after);

#endif
