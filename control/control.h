/*
 * The control socket of an instance's process: JSON requests and replies, one object per line, over a unix
 * stream socket. The protocol is described in docs/control.md; this is the server's side, client.h the other.
 *
 * The owner registers a table of methods. A method gets a `struct control_call` and answers it exactly once,
 * at once or later, with control_reply, control_fail or control_attach. A client that went away is no special
 * case: the answer then goes nowhere.
 *
 *     struct control_method  --control_new-->  listening socket
 *     request line  -->  method->fn(call, params)  -->  control_reply / control_fail / control_attach
 *     control_event  -->  every connection that has subscribed
 *     control_job_*  -->  "job" events, and the built-in methods job_status, job_wait, job_cancel, jobs
 *
 * Built-in methods: subscribe, methods, jobs, job_status, job_wait, job_cancel.
 *
 * Everything that a client can grow has a limit below. Threads: the loop's, for all functions and callbacks.
 */
#ifndef FONDA_CONTROL_CONTROL_H
#define FONDA_CONTROL_CONTROL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"

#define CONTROL_LINE_MAX    (1u << 20)   /* bytes in a request, with its newline */
#define CONTROL_UNSENT_MAX  (1u << 20)   /* bytes that wait for a slow reader before it is cut */
#define CONTROL_UNSENT_HOLD (256u << 10) /* from here on no further request of that client is read */
#define CONTROL_CONNS_MAX   64u          /* connections at a time; one more is told so and closed */
#define CONTROL_CALLS_MAX   16u /* unanswered requests of one connection; the next ones wait unread */
#define CONTROL_FDS_MAX     16u /* descriptors of one connection that no method has taken; more are closed */
#define CONTROL_JOBS_MAX    64u /* jobs that are remembered; ended ones are forgotten, the oldest first */
#define CONTROL_CUT_MS      2000u /* how long a cut connection may still drain */

struct control;
struct control_call;
struct control_job;
struct control_stream;

struct control_method {
    const char *name;
    const char *about; /* one line, for the method "methods" */
    /* params is an object (an empty one when the request had none), valid until the call is answered. */
    void (*fn)(struct control_call *call, json_t *params, void *opaque);
};

struct control_config {
    uv_loop_t *loop;
    const char *path; /* of the socket, at most 107 bytes; its directory exists */
    const struct control_method *methods;
    unsigned method_count;
    void *opaque; /* for the methods */
};

/* Listens. The process has to ignore SIGPIPE. A socket file that nobody listens on any more is replaced. The
 * methods stay the caller's. Errors: -EADDRINUSE (another process listens there), -ENAMETOOLONG, -ENOMEM and
 * those of socket, bind, chmod. */
int control_new(const struct control_config *config, struct control **ret_control, struct err *err);
/* Removes the socket file, closes every connection (unanswered calls may still be answered) and frees itself
 * once the loop has run. NULL is accepted. Streams get closed(). */
void control_free(struct control *control);

/* --- answers: each ends the call ----------------------------------------------------------------------- */

/* Takes result over; NULL stands for {} (and for no memory). */
void control_reply(struct control_call *call, json_t *result);
/* code: a stable snake_case word; hint: what to do, or NULL; then what was wrong, with what. */
void control_fail(struct control_call *call, const char *code, const char *hint, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The same from an error object; code follows from err->code ("not_found", "busy", "no_space"...). */
void control_fail_err(struct control_call *call, const struct err *err);
/* The word for a negative errno, as control_fail_err uses it. */
const char *control_code(int error);

/* --- parameters ---------------------------------------------------------------------------------------- */

enum control_type {
    CONTROL_STRING, /* const char *, NULL when absent; lives as long as params */
    CONTROL_UINT,   /* uint64_t, min to max; unchanged when absent */
    CONTROL_BOOL,   /* bool; unchanged when absent */
    CONTROL_OBJECT, /* json_t *, borrowed; NULL when absent */
    CONTROL_ARRAY,  /* the same */
};

struct control_param {
    const char *name;
    enum control_type type;
    bool required;
    size_t offset; /* into the target struct */
    uint64_t min, max;
};

/* Fills target by the table. Wrong types, values out of range, missing and unknown members fail the call
 * (code "bad_params", naming the member) and return false. */
bool control_params(struct control_call *call, json_t *params, const struct control_param *table,
                    unsigned count, void *target);

/* --- descriptors (SCM_RIGHTS) -------------------------------------------------------------------------- */

/* The oldest descriptor that came over the call's connection and was not taken: the caller's, close-on-exec.
 * -1: none. What nobody takes is closed with the connection. */
int control_take_fd(struct control_call *call);

/* --- events -------------------------------------------------------------------------------------------- */

/* To every subscriber: {"event": name, "time_ns": CLOCK_REALTIME, "data": data}. Takes data over. */
void control_event(struct control *control, const char *name, json_t *data);

/* --- jobs ---------------------------------------------------------------------------------------------- */

/* Begins a job; its name is "KIND-N". cancel (NULL: it can't be cancelled) runs on the loop when a client
 * asks, at most once; the job still has to be ended. NULL: no memory, or CONTROL_JOBS_MAX jobs run. */
struct control_job *control_job_new(struct control *control, const char *kind, void (*cancel)(void *opaque),
                                    void *opaque);
const char *control_job_name(const struct control_job *job);
/* Sends a "job" event; say it a few times a second at most. */
void control_job_progress(struct control_job *job, uint64_t done, uint64_t total);
/* Ends it: with a result (taken over; NULL: {}) or, where err is given, with its error. Waiters are answered.
 * job is not the caller's any more. */
void control_job_end(struct control_job *job, json_t *result, const struct err *err);
/* Answers call with {"job": name}. */
void control_reply_job(struct control_call *call, const struct control_job *job);

/* --- raw byte streams ---------------------------------------------------------------------------------- */

struct control_stream_ops {
    /* Bytes from the client. Returns how many it took; the rest comes again behind control_stream_room. */
    size_t (*input)(void *opaque, const uint8_t *bytes, size_t len);
    /* The client is gone, or was too slow, or the server ends. The stream is invalid from then on. */
    void (*closed)(void *opaque);
};

/* Answers with result (taken over) and turns the connection into a byte stream. NULL: the client is gone, or
 * has other requests unanswered (the call was failed then). */
struct control_stream *control_attach(struct control_call *call, json_t *result,
                                      const struct control_stream_ops *ops, void *opaque);
/* Queues bytes; a client that leaves CONTROL_UNSENT_MAX of them unread is cut, and closed() runs later. */
void control_stream_write(struct control_stream *stream, const uint8_t *bytes, size_t len);
/* input() can take more again. */
void control_stream_room(struct control_stream *stream);
/* Ends it once what was written is sent; closed() is not called. */
void control_stream_close(struct control_stream *stream);

#endif
