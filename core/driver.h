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
    const json_t *spec;          /* members of model_instance */
    const json_t *volumes;       /* array of {"path", "format"} */
    const json_t *networks;      /* array of {"mode", "options"} */
    char dir[DRIVER_PATH_MAX];   /* the instance's own */
    char saved[DRIVER_PATH_MAX]; /* its memory, when it is saved */
    char control[DRIVER_PATH_MAX], lock[DRIVER_PATH_MAX], log[DRIVER_PATH_MAX], status[DRIVER_PATH_MAX];
};

/* How far a long step is. Called on the thread of the step. */
struct driver_progress {
    void (*step)(void *opaque, const char *what);
    void (*bytes)(void *opaque, int64_t done, int64_t total);
    bool (*canceled)(void *opaque);
    void *opaque;
};

/* Bytes to and from something in an instance. Whoever opened it calls driver_stream_done. */
struct driver_stream {
    int fds[3];          /* its input (to write), output and errors (to read); -1: not there */
    pid_t pid;           /* of a process whose end is the stream's; 0: none */
    bool terminal;       /* output and errors are one */
    char first[2][4096]; /* of output and errors: bytes that came with the reply */
    size_t first_len[2];
    struct control_client *events; /* attach: hears of the end */
};

struct driver_ops;

enum driver_state { DRIVER_DEAD, DRIVER_RUNNING, DRIVER_PAUSED };

struct driver_status {
    enum driver_state state;
    pid_t pid; /* while it lives */
};

struct driver_ops {
    const char *kind; /* "vm", "container" */
    /* Whether such an instance can be, before anything is made. */
    int (*check)(const json_t *spec, struct fault *fault);
    /* Brings what start() needs (an image); part of the job that creates. NULL: nothing. */
    int (*prepare)(const struct driver_instance *instance, const struct driver_progress *progress,
                   struct fault *fault);
    int (*start)(const struct driver_instance *instance, pid_t *ret_pid, struct fault *fault);
    /* Goes on from a file that save() or a snapshot made; when it returns 0, the guest runs. NULL: this kind
     * can't be saved, and has no snapshots. */
    int (*restore)(const struct driver_instance *instance, const char *file, pid_t *ret_pid,
                   struct fault *fault);
    /* The same, but its program waits until somebody attaches. NULL: this kind can't. */
    int (*hold)(const struct driver_instance *instance, pid_t *ret_pid, struct fault *fault);
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
    /* Makes what runs what the spec says, as far as that can be; otherwise the fault says what can't. NULL:
     * it takes a restart. */
    int (*apply)(const struct driver_instance *instance, struct fault *fault);
    /* The following may be NULL: this kind can't (machines without an agent).
     * Opens a stream: "attach" {no_input}, "exec" {command, env, user, workdir, terminal, rows, columns,
     * privileged}, "logs" {follow, tail, timestamps}, "export" and "import" {path}: tar. */
    int (*stream)(const struct driver_instance *instance, const char *verb, const json_t *how,
                  struct driver_stream *ret_stream, struct fault *fault);
    int (*resize)(const struct driver_instance *instance, struct driver_stream *stream, unsigned rows,
                  unsigned columns, struct fault *fault);
    int (*signal)(const struct driver_instance *instance, const char *signal, struct fault *fault);
    /* The processes inside: a list of objects. */
    int (*top)(const struct driver_instance *instance, json_t **ret_list, struct fault *fault);
    /* How the last run ended, as far as the instance wrote it down; -1: unknown. */
    int (*exit_status)(const struct driver_instance *instance);
    /* Removes what start() made outside the instance's directory. */
    int (*remove)(const struct driver_instance *instance, struct fault *fault);
};

extern const struct driver_ops driver_vm, driver_container, driver_image_machine;

/* All drivers; ends with NULL. */
extern const struct driver_ops *const drivers[];
const struct driver_ops *driver_find(const char *kind);
/* Of an instance: a machine with an image has a driver of its own. */
const struct driver_ops *driver_of(const json_t *spec);
/* Whether a monitor keeps its log, its restarts and its streams: containers, and machines of images. */
bool driver_has_room(const json_t *spec);

/* Whether a process holds the instance's lock (contract, 1): also the last of several. */
bool driver_is_locked(const struct driver_instance *instance);

/* The process that serves the instance's control socket: of a machine in its jail the one inside, whose
 * supervisor is the instance's process. 0: nobody, or none that can be named here. */
pid_t driver_server(const struct driver_instance *instance);

/* ---- for drivers whose processes speak the control protocol (driver_control.c) ---- */

/* Forks program (argv[0], found as program_find does) with its standard streams on /dev/null and
 * `dir`/output, in a session of its own, holding the lock. Errors: FAULT_STATE (it runs already). */
int driver_spawn(const struct driver_instance *instance, char *const *argv, pid_t *ret_pid,
                 struct fault *fault);
/* Waits until the control socket answers, or the process ended: then what it said last is in the fault. */
int driver_await(const struct driver_instance *instance, pid_t pid, struct fault *fault);
/* The same for one that restores: until its main loop answers, which it does when the guest runs. */
int driver_await_answer(const struct driver_instance *instance, pid_t pid, struct fault *fault);
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

/* One call of the control protocol; params is taken over. */
int driver_control_call(const struct driver_instance *instance, const char *method, json_t *params,
                        json_t **ret_result, struct fault *fault);

/* A call that begins a job there, and the job's end, with its progress; cancels it when the caller is. Errors
 * also: FAULT_CANCELED; FAULT_UNAVAILABLE: the process has ended. */
int driver_control_job(const struct driver_instance *instance, const char *method, json_t *params,
                       const struct driver_progress *progress, json_t **ret_result, struct fault *fault);

/* ---- programs and streams (driver_container.c, driver_exec.c) ---- */

/* The path of one of Fonda's programs, from the daemon's own: installed, or in a build tree. */
int driver_program(const char *name, char *buf, size_t size, struct fault *fault);
/* Forks argv with these standard streams (-1: /dev/null) in a session of its own. Negative: it can't. */
pid_t driver_fork(char *const *argv, const int stdio[3]);
int driver_container_stream(const struct driver_instance *instance, const char *verb, const json_t *how,
                            struct driver_stream *ret_stream, struct fault *fault);
int driver_container_resize(const struct driver_instance *instance, struct driver_stream *stream,
                            unsigned rows, unsigned columns, struct fault *fault);
/* No more input comes. */
void driver_stream_close_input(struct driver_stream *stream);
/* Behind the end of output and errors: the exit status; -1: unknown. */
int driver_stream_end(struct driver_stream *stream, const struct driver_instance *instance,
                      const struct driver_ops *ops);
void driver_stream_done(struct driver_stream *stream); /* ends what still runs */

#endif
