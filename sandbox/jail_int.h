/*
 * What the files of the jail share. Only for sandbox/.
 */
#ifndef FONDA_SANDBOX_JAIL_INT_H
#define FONDA_SANDBOX_JAIL_INT_H

#include <stdint.h>

#include "sandbox/jail.h"

struct grant {
    char *path;
    enum jail_rights rights;
    int fd; /* O_PATH, while jail_enter runs; -1 */
};

struct jail {
    struct jail_config config;
    pid_t outer_pid;         /* the supervisor's, as the host sees it */
    bool privileged;         /* ns_is_privileged(), when the program began */
    bool split;              /* this is the process inside */
    bool closed;             /* ... and its layers are there */
    int errors[JAIL_LAYERS]; /* 0: there, negative errno: missing */
    int supervisor_fd;       /* -1 outside of a split */
    struct grant grants[JAIL_GRANTS_MAX];
    unsigned grant_count;
};

extern struct jail the_jail;

/* Only the tests' own build can leave a layer out, or give a thread to somebody else once it is locked in. */
#ifdef JAIL_TEST
extern unsigned jail_test_without;
extern void (*jail_test_taken)(const char *role);
#define JAIL_TAKEN(role) (jail_test_taken ? jail_test_taken(role) : (void)0)
#else
#define JAIL_TAKEN(role) ((void)0)
#endif

/* split.c: asks the supervisor, which is outside, to write this process's user map. Returns 0 or -errno. */
int split_ask_map(struct jail *jail);
/* Tells it that the jail is closed. */
void split_ready(struct jail *jail);

/* namespaces.c. Each records errors in jail->errors. */
void ns_unshare_early(struct jail *jail);
void ns_unshare_late(struct jail *jail);
/* Before a fork: the pid namespace, and, where this needs it, the user namespace. */
void ns_unshare_before_fork(struct jail *jail);
/* Writes /proc/PID/{setgroups,gid_map,uid_map}: everything as it is in the caller's namespace (whole), or the
 * caller's own ids only. Returns 0 or -errno. */
int ns_write_maps(pid_t pid, bool whole);
bool ns_is_privileged(void); /* CAP_SYS_ADMIN and CAP_SETUID */

/* root.c: an empty root directory with what is granted; directory descriptors become roots. */
int root_enter(struct jail *jail);

/* caps.c. keep: a mask of capabilities. */
int caps_keep(uint64_t keep);
/* The same, with no_new_privs and the bounding set. */
int caps_drop(uint64_t keep);
int limits_set(void);

/* landlock.c. Returns the ABI version, or -errno. */
int landlock_abi(void);
int landlock_enter(struct jail *jail);

/* filter.c: compiles the roles' filters and installs the main thread's. */
int filter_enter(unsigned needs);

#endif
