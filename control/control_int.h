/*
 * What the files of control/ share: connections, calls and jobs.
 *
 * Ownership: the server holds its connections; a connection is freed when it is closed and its last call is
 * answered. A call holds its connection. control_free leaves the server object until its last connection has
 * gone.
 */
#ifndef FONDA_CONTROL_CONTROL_INT_H
#define FONDA_CONTROL_CONTROL_INT_H

#include "control/control.h"

struct control {
    uv_pipe_t listener;
    uv_loop_t *loop;
    const struct control_method *methods;
    unsigned method_count;
    void *opaque;
    char path[108];
    uint64_t path_dev, path_ino; /* of the socket file, so that nobody else's is removed */
    struct control_conn *conns;
    unsigned conn_count;
    struct control_job *jobs; /* newest first */
    unsigned job_count;
    uint64_t job_serial;
    unsigned refs; /* the owner's (until control_free), the listener's, each connection's and each job's */
    bool closing;
};

enum conn_state {
    CONN_OPEN,   /* lines in, lines out */
    CONN_STREAM, /* raw bytes both ways */
    CONN_CUT,    /* nothing more is read; closes when drained, or at the timer */
    CONN_CLOSED,
};

struct control_stream {
    struct control_stream_ops ops;
    void *opaque;
};

struct control_conn {
    uv_pipe_t pipe;
    uv_timer_t timer;
    struct control *control;
    struct control_conn *next, **prev;
    enum conn_state state;
    bool subscribed, reading, at_eof;
    unsigned calls;   /* unanswered */
    unsigned handles; /* that are not closed yet */
    unsigned writes;  /* under way */
    struct control_stream stream;
    int fds[CONTROL_FDS_MAX]; /* that came, and no method has taken */
    unsigned fd_count;
    char *in; /* bytes that no line (or no stream) has taken yet */
    size_t in_used, in_size, in_scanned;
    char read_buf[16384];
};

struct control_call {
    struct control_conn *conn;
    json_t *id, *request;
    json_t *params;                   /* borrowed from request, or our own empty object */
    struct control_call *next_waiter; /* of a job */
};

struct control_job {
    struct control *control;
    struct control_job *next;
    char name[48];
    void (*cancel)(void *opaque);
    void *opaque;
    uint64_t done, total;
    bool ended, cancelled;
    json_t *result, *error; /* once ended, one of them */
    struct control_call *waiters;
};

/* server.c */
void control_unref(struct control *control);
int64_t control_time_ns(void);

/* conn.c */
void conn_accept(struct control *control);
void conn_close(struct control_conn *conn);
/* Sends message and a newline; takes it over. */
void conn_send(struct control_conn *conn, json_t *message);
/* An error object for a reply. */
json_t *control_error(const char *code, const char *hint, const char *text);
void control_answer(struct control_call *call, const char *member, json_t *value);

/* job.c: the built-in methods. */
extern const struct control_method control_builtins[];
extern const unsigned control_builtin_count;
void control_jobs_free(struct control *control);

#endif
