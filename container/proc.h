/* The user's process: what is set on it from outside, what it sets itself, and execve. Shared by init.c and
 * exec.c. */
#ifndef FONDA_CONTAINER_PROC_H
#define FONDA_CONTAINER_PROC_H

#include "base/err.h"
#include "container/config.h"
#include "container/seccomp.h"

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

/* From the runtime, with its rights: rlimits, OOM score, scheduler, I/O priority. */
int proc_set_outside(pid_t pid, const struct oci_process *process, struct err *err);
int proc_set_affinity(pid_t pid, const char *cpus, struct err *err); /* "0-3,7"; pid 0: itself */

struct proc_exec {
    const struct oci_process *process;
    const struct oci_linux *lnx;           /* personality, memory policy; NULL: neither */
    const struct seccomp_program *seccomp; /* NULL: none */
    const struct landlock *landlock;       /* NULL: none */
    unsigned preserve_fds;
    int error_fd;            /* where the caller sends what proc_execve() says; moved by it */
    int proc_fd;             /* the host's procfs, opened before the root changed */
    int agent_fd;            /* seccomp agent's socket, -1: none */
    const char *agent_state; /* the container's state for the agent */
    char path[PATH_MAX];     /* from proc_find() */
};

/* After the pivot: goes to the working directory (making it) and finds the executable. */
int proc_find(struct proc_exec *x, struct err *err);

/* Checks that AppArmor or SELinux is there if labels are asked for. */
int proc_check_labels(const struct oci_process *process, struct err *err);

/* Everything up to execve. Returns only on failure, with a text that says what is wrong with the file. */
int proc_execve(struct proc_exec *x, struct err *err);

#endif
