/*
 * How the core makes instances live: a driver for each kind of instance. Every instance is a process of its
 * own that outlives the daemon and speaks the control protocol (control/control.h) on a socket in its
 * directory.
 *
 *     start --> process with --control SOCKET, holding the instance's lock file
 *     adopt --> finds it again after the daemon was restarted: whoever holds the lock is alive
 *
 * Contract
 *   1. start() hands the locked descriptor of `lock_path` to the process, so that the lock lives exactly as
 *      long as the process; a daemon that dies between fork and commit loses nothing.
 *   2. All functions may block (seconds) and are called on worker threads, one at a time per instance.
 *   3. Functions return 0, or -1 with *fault set.
 */
#ifndef FONDA_CORE_DRIVER_H
#define FONDA_CORE_DRIVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fault.h"

#define DRIVER_PATH_MAX 512

/* What a driver knows of an instance. */
struct driver_instance {
    const char *name, *id;
    const json_t *spec;        /* members of model_instance */
    const json_t *volumes;     /* array of {"path", "format"} */
    const json_t *networks;    /* array of {"mode", "options"} */
    char dir[DRIVER_PATH_MAX]; /* the instance's own */
    char control[DRIVER_PATH_MAX], lock[DRIVER_PATH_MAX], log[DRIVER_PATH_MAX], status[DRIVER_PATH_MAX];
};

enum driver_state { DRIVER_DEAD, DRIVER_RUNNING, DRIVER_PAUSED };

struct driver_status {
    enum driver_state state;
    pid_t pid; /* while it lives */
};

struct driver_ops {
    const char *kind; /* "vm", "container" */
    /* Whether such an instance can be, before anything is made. */
    int (*check)(const json_t *spec, struct fault *fault);
    int (*start)(const struct driver_instance *instance, pid_t *ret_pid, struct fault *fault);
    int (*adopt)(const struct driver_instance *instance, struct driver_status *ret_status,
                 struct fault *fault);
    int (*status)(const struct driver_instance *instance, struct driver_status *ret_status,
                  struct fault *fault);
    /* Asks the guest to end; the process ends when it did. */
    int (*stop)(const struct driver_instance *instance, struct fault *fault);
    int (*kill)(const struct driver_instance *instance, struct fault *fault);
    int (*pause)(const struct driver_instance *instance, struct fault *fault);
    int (*resume)(const struct driver_instance *instance, struct fault *fault);
    int (*stats)(const struct driver_instance *instance, json_t **ret_stats, struct fault *fault);
    /* A raw byte stream to "serial" and the like; the caller closes it. first: bytes that came with the
     * reply. */
    int (*attach)(const struct driver_instance *instance, const char *channel, int *ret_fd, char *first,
                  size_t size, size_t *ret_first, struct fault *fault);
    /* NULL: this kind can't (machines without an agent). params as the API has them. */
    int (*exec)(const struct driver_instance *instance, const json_t *params, int *ret_fd,
                struct fault *fault);
    /* Removes what start() made outside the instance's directory. */
    int (*remove)(const struct driver_instance *instance, struct fault *fault);
};

extern const struct driver_ops driver_vm;

/* All drivers; ends with NULL. */
extern const struct driver_ops *const drivers[];
const struct driver_ops *driver_find(const char *kind);

/* ---- for drivers whose processes speak the control protocol (driver_control.c) ---- */

/* Forks program (argv[0], found as program_find does) with its standard streams on /dev/null and
 * `dir`/output, in a session of its own, holding the lock. Errors: FAULT_STATE (it runs already). */
int driver_spawn(const struct driver_instance *instance, char *const *argv, pid_t *ret_pid,
                 struct fault *fault);
/* Waits until the control socket answers, or the process ended: then what it said last is in the fault. */
int driver_await(const struct driver_instance *instance, pid_t pid, struct fault *fault);
int driver_control_adopt(const struct driver_instance *instance, struct driver_status *ret_status,
                         struct fault *fault);
int driver_control_status(const struct driver_instance *instance, struct driver_status *ret_status,
                          struct fault *fault);
int driver_control_stop(const struct driver_instance *instance, struct fault *fault);
int driver_control_kill(const struct driver_instance *instance, struct fault *fault);
int driver_control_pause(const struct driver_instance *instance, struct fault *fault);
int driver_control_resume(const struct driver_instance *instance, struct fault *fault);
int driver_control_stats(const struct driver_instance *instance, json_t **ret_stats, struct fault *fault);
int driver_control_attach(const struct driver_instance *instance, const char *channel, int *ret_fd,
                          char *first, size_t size, size_t *ret_first, struct fault *fault);
int driver_control_remove(const struct driver_instance *instance, struct fault *fault);

#endif
