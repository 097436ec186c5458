/*
 * What the files of the main loop share: host.c (the loop), methods.c (the control socket), saved/save.c and
 * saved/restore.c. Only for vm/.
 */
#ifndef FONDA_VM_HOST_INT_H
#define FONDA_VM_HOST_INT_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "vm/config.h"
#include "vm/console.h"
#include "vm/host.h"
#include "vm/status.h"

#define HOST_INPUT_BYTES 4096u
#define HOST_END_SIGNALS 3u

struct channel;
struct leaving;
struct control;
struct saving;
struct restoring;

struct host {
    const struct vm_config *config;
    const struct engine_ops *engine;
    struct boot *own_boot; /* since a reboot; NULL: the caller's is in use */
    bool term_seen;
    struct boot *boot; /* NULL: restored, and no kernel was needed since */
    struct mem *mem;
    struct clock *clock;
    struct machine *machine;
    struct devices *devices;
    struct output *terminal; /* NULL: nothing is on it */
    struct output *serial;   /* NULL: none; may be the terminal's */
    bool console_on_terminal;
    struct gdb_server *gdb; /* NULL: no --gdb */

    uv_loop_t loop;
    uv_poll_t timer_poll, input_poll;
    uv_timer_t timeout;
    uv_signal_t signals[HOST_END_SIGNALS];
    uv_async_t async;
    uv_signal_t resized;
    _Atomic bool stop_wanted, input_wanted, output_room; /* why async was sent */

    int timer_fd;
    pthread_mutex_t timer_lock; /* the deadline's reading and the timer's setting are one step */

    /* Input that the serial port has not taken yet. */
    int input_fd; /* -1: none, or at its end */
    bool input_is_terminal, input_pollable, input_polling;
    struct console console;
    uint8_t input[HOST_INPUT_BYTES + 1];
    size_t input_used;

    struct control *control;     /* NULL: no --control */
    struct channel *channel;     /* the same */
    struct leaving *leaving;     /* devices whose going somebody waits for (device_methods.c) */
    bool user_paused;            /* PAUSE_USER was taken by the method "pause" */
    bool frozen;                 /* machine_freeze holds */
    struct saving *saving;       /* NULL: nothing is being saved */
    bool saved;                  /* and ends as soon as whoever asked has been told */
    uv_timer_t saved_timer;      /* while saved */
    struct restoring *restoring; /* NULL: the machine was not restored, or its memory is all there */
    const char *again;           /* behind the end: the state file to start again from, or NULL */
    uint64_t started_ns;         /* CLOCK_MONOTONIC */

    int status;
    struct err err;
};

/* host.c */
void host_arm_timer(struct host *host);

/* debug_methods.c: methods "translate" and "count". */
struct control_call;
void host_method_translate(struct control_call *call, json_t *params, void *opaque);
void host_method_count(struct control_call *call, json_t *params, void *opaque);

/* device_methods.c: "devices", "disk_attach"... */
void host_method_devices(struct control_call *call, json_t *params, void *opaque);
void host_method_disk_attach(struct control_call *call, json_t *params, void *opaque);
void host_method_disk_detach(struct control_call *call, json_t *params, void *opaque);
void host_method_throttle(struct control_call *call, json_t *params, void *opaque);
void host_method_nic_attach(struct control_call *call, json_t *params, void *opaque);
void host_method_nic_detach(struct control_call *call, json_t *params, void *opaque);
void host_method_nic_link(struct control_call *call, json_t *params, void *opaque);
void host_method_nic_plug(struct control_call *call, json_t *params, void *opaque);
/* For "stats": lists of disks and networks. */
json_t *host_disk_stats(struct host *host);
json_t *host_network_stats(struct host *host);
/* Before the control socket's first and behind its last request. */
void host_device_methods_begin(struct host *host);
void host_device_methods_end(struct host *host);

/* methods.c. Errors: those of the socket. */
int host_control_open(struct host *host, struct err *err);
void host_control_close(struct host *host);
/* To the subscribers: {"state": ...}. */
void host_state_event(struct host *host);
/* Holds and lets go a machine with its clock: a person's pause, or a save. Main loop. Errors: -ETIMEDOUT. */
int host_pause(struct host *host, bool user, struct err *err);
void host_unpause(struct host *host, bool user);

#endif
