/*
 * What the runtime remembers of a container between its calls: a directory <root>/<id> with
 *
 *   state.json   written before anything else is made, so that `delete --force` can clear up after a killed
 * create config.json  as it was at create start.sock   the first process listens here until it is started:
 * created while it exists, running after
 *
 * The directory's flock(2) is held by the call that changes the container. A pid counts only together with
 * its start time, so that a recycled pid is never signalled.
 */
#ifndef FONDA_CONTAINER_STATE_H
#define FONDA_CONTAINER_STATE_H

#include "base/err.h"
#include "container/arena.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define STATE_ID_MAX 1023

enum status { STATUS_CREATING, STATUS_CREATED, STATUS_RUNNING, STATUS_PAUSED, STATUS_STOPPED };
extern const char *const status_names[];

struct state {
    struct arena arena;
    const char *id;
    const char *version;
    const char *bundle;
    const char *rootfs;
    const char *created;      /* RFC 3339 */
    const char *cgroup;       /* path in every hierarchy; NULL: none of its own */
    const char *systemd_unit; /* NULL: cgroups are the runtime's own */
    const char *owner;
    json_t *annotations; /* or NULL */
    json_t *json;        /* backing of a loaded state */
    pid_t pid;           /* 0 until it runs */
    uint64_t start_time; /* of pid, clock ticks since boot */
    bool has_poststart;  /* config.json has such hooks */
    bool has_poststop;
    int root_fd;
    int dir_fd; /* of <root>/<id> */
};

/* The directory that holds all state: option, or the default for this user. Made if missing when make is set.
 */
int state_open_root(const char *option, bool make, struct err *err);

int state_check_id(const char *id, struct err *err);
int state_new(struct state *state, int root_fd, const char *id,
              struct err *err); /* makes the directory, locked */
int state_save(struct state *state, struct err *err);

/* -ENOENT with a text when there is no such container. A directory without a readable state file (a create
 * killed very early) loads with everything unknown: status "creating". */
int state_load(struct state *state, int root_fd, const char *id, struct err *err);
int state_lock(struct state *state, int timeout_ms, struct err *err);
void state_unlock(struct state *state);
void state_remove(struct state *state); /* the directory and what is in it */
void state_done(struct state *state);

enum status state_status(const struct state *state, bool frozen);
bool state_alive(const struct state *state); /* the first process lives (a zombie doesn't) */
int state_pidfd(const struct state *state);  /* of the first process, checked; -ESRCH when dead */
uint64_t process_start_time(pid_t pid);      /* 0: no such process, or a zombie */
json_t *state_to_json(const struct state *state, enum status status); /* runtime.md "State" and more */

/* The state as hooks and seccomp agents get it (runtime.md "State"); malloc'ed text. */
char *state_for_hooks(const struct state *state, enum status status);

#endif
