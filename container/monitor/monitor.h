/*
 * One container's monitor: what its parts share. One thread, one loop.
 *
 *            life_begin                life_created            (hold: "start")
 *   (none) ------------> creating -------------------> created ---------------> running <---> paused
 *                           |                                                      | life_child_ended
 *                           | fonda-oci failed                                     v
 *                           v                          back-off over           (cleared away)
 *                        stopped <----------------- restarting <------------------ |
 *                           ^------------------------------------------------------ policy says no
 *
 * Files: main.c (options, leaving the caller), life.c (the diagram), oci.c (calls of fonda-oci), streams.c
 * (the container's output and input, attached clients), logfile.c, server.c and methods.c (control protocol),
 * health.c, memory.c (its /proc/meminfo), record.c (status.json).
 *
 * Invariants
 *  1. The monitor is a subreaper, so every process of the container that loses its parent becomes its child;
 * only life_reap() waits for children, so a pid that it knows can't have been given away.
 *  2. status.json says what clients are told, and is written first.
 *  3. A client can't make the monitor hold more than CLIENT_INPUT_MAX and CLIENT_OUTPUT_MAX bytes for it.
 */
#ifndef FONDA_CONTAINER_MONITOR_MONITOR_H
#define FONDA_CONTAINER_MONITOR_MONITOR_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/options.h"
#include "container/monitor/logfile.h"
#include "container/monitor/loop.h"

#define SECOND_NS         INT64_C(1000000000)
#define CLIENTS_MAX       32u
#define CLIENT_INPUT_MAX  (1u << 20) /* a request's line */
#define CLIENT_OUTPUT_MAX (1u << 20)
#define OCI_OUTPUT_MAX    (256u << 10) /* of a call of fonda-oci that is kept */
#define EXEC_OUTPUT_MAX   4096u        /* of a health check that is kept */
#define OCI_SECONDS       60           /* a call that takes longer has failed */

enum life {
    LIFE_CREATING,
    LIFE_CREATED,
    LIFE_RUNNING,
    LIFE_PAUSED,
    LIFE_RESTARTING,
    LIFE_STOPPED,
};
extern const char *const life_names[];

enum restart_policy { RESTART_NO, RESTART_ON_FAILURE, RESTART_ALWAYS };
enum health_action { HEALTH_NONE, HEALTH_KILL, HEALTH_STOP };
enum health_status { HEALTH_OFF, HEALTH_STARTING, HEALTH_HEALTHY, HEALTH_UNHEALTHY };

struct monitor_options {
    const char *id, *bundle, *dir, *oci, *oci_root, *netd;
    const char *restart, *stop_signal, *health_cmd, *health_action, *network;
    uint64_t stop_timeout_s, log_bytes, log_files;
    uint64_t health_interval_s, health_timeout_s, health_retries, health_start_s;
    const char *meminfo;   /* file that is /proc/meminfo in there; NULL: none */
    uint64_t memory, swap; /* what it has, in bytes; swap 0: the host's */
    struct option_list publish;
    bool hold, foreground, stdin_open, help;
};

struct monitor;

/* --- oci.c: a child program whose end is told --- */
struct call {
    struct monitor *m;
    struct call *next;
    pid_t pid;
    struct loop_source out, log;
    struct loop_timer timer;
    char *text; /* what it printed, NUL-terminated */
    size_t size, room, limit;
    char message[ERR_TEXT_MAX]; /* why it failed */
    int status;                 /* as a shell has it, behind done; 124: took too long */
    bool timed_out;
    void (*done)(struct call *call);    /* the call is freed afterwards */
    void (*overdue)(struct call *call); /* or NULL */
    void *opaque;
};

/* fonda-oci with the global options and then args (NULL-terminated, at most 16). stdio: three descriptors, or
 * NULL: output is kept up to `limit` bytes. NULL when it can't be started, with *err. */
struct call *oci_call(struct monitor *m, const char *const *args, const int *stdio, size_t limit,
                      unsigned seconds, void (*done)(struct call *), void *opaque, struct err *err);
/* The same for any program; more: its descriptors from 3 on. */
pid_t child_spawn(const char *path, char *const *argv, const int *stdio, const int *more, size_t count,
                  struct err *err);
bool call_ended(struct monitor *m, pid_t pid, int status); /* from life_reap(); false: no call has that pid */

/* --- streams.c --- */
struct stream {
    struct monitor *m;
    struct loop_source source; /* fd -1: closed */
    int index;                 /* 0 stdout or the terminal, 1 stderr */
    bool stalled;              /* a client has too much unsent */
    bool ending;               /* what is left is read, and then it is closed */
    struct loop_timer hung;    /* until the terminal is looked at again */
};

struct attached {
    struct monitor *m;
    struct attached *next;
    struct loop_source source;
    struct loop_timer timer; /* running while it holds output up */
    unsigned wants;          /* bit n: stream n; bit 2: gives input */
    bool held;               /* its input waits for the container to read */
    bool in_ended;
    char *queue;
    size_t queued;
};

#define HUNG_NS      (SECOND_NS / 20)
#define ATTACH_INPUT 4u
#define ATTACH_STALL (10 * SECOND_NS) /* a client that takes nothing for so long is cut */

/* Makes the pipes or the console socket for the next create; stdio gets the container's ends. */
int streams_prepare(struct monitor *m, int stdio[3], struct err *err);
void streams_created(struct monitor *m, int stdio[3]);         /* closes the container's ends */
int streams_take_terminal(struct monitor *m, struct err *err); /* behind a create with a terminal */
/* A socket in the run directory, to which fonda-oci sends descriptors. */
int receiver_listen(struct monitor *m, struct loop_source *source, const char *name, struct err *err);
/* Takes `count` of them and closes it. */
int receiver_take(struct monitor *m, struct loop_source *source, const char *name, int *ret_fds, size_t count,
                  struct err *err);
void streams_drain(struct monitor *m); /* what is still in the pipes; then closes them */
void streams_end(struct monitor *m);   /* ends the loop once attached clients have got all */
int streams_resize(struct monitor *m, unsigned rows, unsigned columns, struct err *err);
int attach_new(struct monitor *m, int fd, unsigned wants, const char *first,
               size_t first_size); /* takes fd */

/* --- health.c --- */
struct health {
    enum health_status status;
    unsigned failures; /* in a row */
    int64_t last_ns;   /* wall clock, of the last check; 0: none */
    int last_status;
    char last_output[EXEC_OUTPUT_MAX + 1];
    struct loop_timer timer;
    struct call *call;
};
extern const char *const health_names[];
void health_begin(struct monitor *m); /* the container runs */
void health_end(struct monitor *m);

/* --- memory.c --- */
struct memory {
    struct loop_timer timer;
    int cgroup_fd, file_fd;
    bool open, v2, told;
};
void memory_begin(struct monitor *m); /* the container has a first process */
void memory_end(struct monitor *m);

/* --- server.c --- */
struct client {
    struct monitor *m;
    struct client *next;
    struct loop_source source;
    char *in, *out;
    size_t in_size, in_room, out_size, out_room;
    bool subscribed;
    bool closing;     /* when all is sent */
    unsigned waiting; /* calls that will reply */
    bool gone;        /* freed when nothing is waited for any more */
};

int server_start(struct monitor *m, struct err *err);
void server_stop(struct monitor *m);                             /* sends what can be sent at once */
void server_reply(struct client *c, json_t *id, json_t *result); /* takes both */
void server_error(struct client *c, json_t *id, const char *code, const char *hint, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));                            /* takes id; hint may be NULL */
void server_event(struct monitor *m, const char *name, json_t *data); /* takes data */
void server_release(struct client *c);                                /* a waiting call is over */
/* Stops serving the client and hands its descriptor over, and what came behind the request. */
int server_hijack(struct client *c, char **ret_rest, size_t *ret_size);
void method_call(struct client *c, json_t *request); /* methods.c; borrows the request */
void methods_job_ended(struct monitor *m);
json_t *methods_job_json(const struct monitor *m); /* of the one job that there is */
#define STOP_JOB "stop-1"

/* --- life.c --- */
int life_begin(struct monitor *m, struct err *err); /* the first create */
int life_start(struct monitor *m, struct err *err); /* a held container */
void life_reap(struct monitor *m);
int life_signal(struct monitor *m, int signal, struct err *err);
void life_stop(struct monitor *m, bool force); /* no restart; job "stop" */
void life_quit(struct monitor *m);             /* kills and ends */
void life_set(struct monitor *m, enum life life);

/* --- record.c --- */
json_t *record_status(const struct monitor *m);
void record_write(const struct monitor *m, bool durable);

enum job_state { JOB_NONE, JOB_RUNNING, JOB_DONE };

struct waiter { /* for the job "stop" */
    struct waiter *next;
    struct client *client;
    json_t *id;
};

struct ended { /* a child that nobody knew when it was waited for */
    pid_t pid;
    int status;
};

#define ENDED_MAX 16u

struct monitor {
    struct monitor_options o;
    struct loop loop;
    int dir_fd;
    int report_fd; /* to whoever started it: "" on success, else why not; -1: told already */
    bool terminal;
    enum restart_policy restart;
    unsigned restart_limit; /* 0: none */
    enum health_action health_action;
    int stop_signal;

    enum life life;
    pid_t pid; /* of the container's first process, a child; 0: none */
    pid_t netd;
    int64_t created_ns, started_ns, ended_ns; /* wall clock, 0: not yet */
    int64_t started_mono_ns;
    int exit_status, exit_signal; /* of the last run */
    bool has_exit, stopping, quitting, finished;
    unsigned restarts, attempt;
    char error[ERR_TEXT_MAX]; /* why the last start failed; "" */
    enum job_state stop_job;
    bool starting;    /* fonda-oci start is running */
    bool child_ended; /* meanwhile the first process has ended, with child_status */
    bool never_ran;   /* the first start isn't through yet: a failure is the caller's to hear */
    int child_status;
    struct ended ended[ENDED_MAX];
    unsigned ended_next;
    struct loop_timer stop_timer, restart_timer;
    struct loop_source signals, netd_ready;

    struct call *calls;
    struct logfile log;
    struct stream streams[2];
    struct loop_source input; /* stdin pipe (or a duplicate of the terminal), for writing; fd -1: none */
    char *input_text;
    size_t input_size;
    struct loop_source console; /* listens for the terminal */
    struct loop_source ns;      /* and for the namespaces, where fonda-netd will need them */
    struct attached *attached;
    struct health health;
    struct memory memory;
    struct loop_source server;
    struct client *clients;
    struct waiter *waiters;
    unsigned client_count;
};

#endif
