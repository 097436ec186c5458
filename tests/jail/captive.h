/*
 * What captive.c and deeds.c share.
 */
#ifndef FONDA_TESTS_JAIL_CAPTIVE_H
#define FONDA_TESTS_JAIL_CAPTIVE_H

#include <stddef.h>

struct captive {
    const char *argument;
    int share_fd;   /* a shared directory's, or -1 */
    int outside_fd; /* the host's root directory, open when the jail closes */
};

extern struct captive captive;

struct deed {
    const char *name;
    int (*run)(void); /* 0: it worked, which is an escape; -errno */
};

extern const struct deed deeds[];
extern const size_t deed_count;

/* deeds.c: the io_uring ring as disks have it, made before the jail closes. */
void captive_open_ring(void);

#endif
