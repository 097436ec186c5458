/*
 * The jail: what the process that runs a stranger's kernel can still do once its files are open.
 *
 *     main thread, alone
 *     jail_split   --> the caller goes on as the only process of its own namespaces; the process that called
 *                      stays outside as its supervisor, and never returns
 *     jail_grant   --> (any number) a path that is needed later on
 *     jail_enter   --> the layers close: root directory, capabilities, Landlock, limits, seccomp
 *     thread_enter --> (base/thread.h) every thread that begins from then on is narrowed to its role
 *
 * A layer that the host can't give is left out and reported; jail_enter fails for it only in
 * JAIL_REQUIRE. One jail per process. docs/jail.md says what each layer and each system call is for.
 *
 * Threads: main, and before there are others (jail_enter checks it).
 */
#ifndef FONDA_SANDBOX_JAIL_H
#define FONDA_SANDBOX_JAIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/err.h"

enum jail_mode {
    JAIL_OFF,
    JAIL_ON,
    JAIL_REQUIRE, /* every layer, or an error */
};

/* In the order in which they are reported. */
enum jail_layer {
    JAIL_LAYER_USER,
    JAIL_LAYER_PID,
    JAIL_LAYER_MOUNT,
    JAIL_LAYER_IPC, /* with UTS and control groups */
    JAIL_LAYER_NET,
    JAIL_LAYER_ROOT,
    JAIL_LAYER_CAPS, /* with no_new_privs */
    JAIL_LAYER_LANDLOCK,
    JAIL_LAYER_LIMITS,
    JAIL_LAYER_SECCOMP,
    JAIL_LAYERS
};

/* What the process has to be able to do later on; rows of the table of system calls depend on it. */
enum jail_need {
    JAIL_NEED_INTERNET = 1 << 0, /* IP sockets of its own, in the host's network: user-mode NAT */
    JAIL_NEED_TAP = 1 << 1,      /* a device of the host's network is opened between split and enter */
    JAIL_NEED_UNIX = 1 << 2,     /* unix sockets, in granted directories */
    JAIL_NEED_TREE = 1 << 3,     /* files beneath directories that are open: shared directories */
    JAIL_NEED_OWNERS = 1 << 4,   /* ... and, where it is root, files of any owner there */
    JAIL_NEED_KVM = 1 << 5,
    JAIL_NEED_FILES = 1 << 6, /* files in granted directories */
};

enum jail_rights {
    JAIL_GRANT_FILE,      /* one file, to read */
    JAIL_GRANT_SOCKETS,   /* a directory: make, connect and remove unix sockets */
    JAIL_GRANT_DIR,       /* a directory: make, read, write, rename and remove files */
    JAIL_GRANT_TREE,      /* beneath a directory whose descriptor is open at jail_enter: everything */
    JAIL_GRANT_TREE_READ, /* the same, to read */
};

struct jail_config {
    enum jail_mode mode;
    unsigned needs; /* enum jail_need */
    /* The supervisor, when the jail's process was ended by a system call that it may not make: says so and
     * returns the exit status. */
    int (*violated)(void);
    /* The supervisor, behind the end of the inside: removes what that can't, and (jail_again was called, with
     * a word that the callback has to judge: it may come from a stranger) starts the program again, or
     * returns the exit status. */
    void (*ended)(void *opaque);
    int (*again)(void *opaque, const char *word);
    void *opaque;
};
#define JAIL_WORD_MAX 4096u

/* Returns 0 in the new process, and never in the old one: that waits, hands SIGTERM, SIGINT and SIGHUP on,
 * and ends as the new one ends. The two die together. What is open stays
 * open inside, and is closed outside. Nothing happens in JAIL_OFF. Errors: those of fork
 * and socketpair. */
int jail_split(const struct jail_config *config, struct err *err);

/* path keeps meaning the same, absolute or relative to the current directory. One that does not exist is no
 * error: it will not exist later on either. Errors: -ENOMEM, -E2BIG (more than JAIL_GRANTS_MAX). */
int jail_grant(const char *path, enum jail_rights rights, struct err *err);
#define JAIL_GRANTS_MAX 64u

/* Closes the jail. Every directory descriptor that is open and granted becomes the root of a mount of its
 * own:
 * "..", from there, leads nowhere; others become useless. Errors: -EPERM in JAIL_REQUIRE, with what is
 * missing; -EBUSY when there are other threads; others when a layer fails half-way, which leaves the process
 * unfit for a stranger's code. */
int jail_enter(struct err *err);

/* Whether a jail is closed around this process. */
bool jail_is_closed(void);
/* Whether this process can do what a need stands for: it has no jail, or one that was made for it. */
bool jail_has(enum jail_need need);

/* Inside: what the supervisor's again() gets when this process has ended with exit(). Errors: -ENOSYS (there
 * is no jail), -ENAMETOOLONG, -EPIPE. */
int jail_again(const char *word);
/* The process as the host knows it: the supervisor, or without a jail this one. */
pid_t jail_pid(void);

/* Behind jail_enter: the layers that are missing, as "user namespace (Operation not permitted), ...". Returns
 * how many; 0 with an empty text when all are there, or when there is no jail. */
unsigned jail_missing(char *text, size_t size);

/* Tries every layer in child processes, and prints a line for each. Returns how many are missing. */
unsigned jail_report(FILE *out);

/* The table of system calls, as docs/jail.md has it: a line of "| name | roles | when | why |" each. */
void jail_print_table(FILE *out);

#endif
