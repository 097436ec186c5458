/*
 * Which system calls each thread role may make: the table, with a reason for each row. docs/jail.md has the
 * same table, and a test compares the two. Only for sandbox/.
 *
 * Everything that the table does not name ends the process.
 */
#ifndef FONDA_SANDBOX_ROLES_H
#define FONDA_SANDBOX_ROLES_H

#include <stddef.h>
#include <stdint.h>

#define ROLE_CONDS_MAX 2u

enum role {
    ROLE_MAIN,   /* the event loop: devices, disks, networks; and what makes the other threads */
    ROLE_VCPU,   /* guest code, and the chips that it touches */
    ROLE_OUTPUT, /* writes what the serial port sends */
    ROLE_BLOCK,  /* disk I/O where there is no io_uring */
    ROLE_SAVE,   /* writes a saved machine's or a snapshot's memory to its file */
    ROLE_FILL,   /* brings a restored machine's memory in */
    ROLES
};

/* The words of thread_enter() and of the document. */
extern const char *const role_names[ROLES];

/* Beside enum jail_need: nothing makes openat(2) needed. */
#define ROLE_NEED_NO_FILES (1u << 31)

/* (argument & mask) == value. A mask of 0 ends the list. */
struct role_cond {
    unsigned arg;
    uint64_t mask, value;
};

#define ROLE_OWN_PID UINT64_MAX /* as a value: the process's id, known when the jail closes */

struct role_row {
    const char *syscall;
    unsigned roles; /* bits of enum role */
    unsigned needs; /* enum jail_need: any of these; 0: always */
    int error;      /* 0: allowed; else this errno is returned, quietly */
    struct role_cond conds[ROLE_CONDS_MAX];
    const char *with; /* conds in words, or NULL */
    const char *why;
};

extern const struct role_row role_table[];
extern const size_t role_table_len;

#endif
