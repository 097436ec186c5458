/*
 * Inside core/: the core itself, and what its files call of one another.
 */
#ifndef FONDA_CORE_CORE_INT_H
#define FONDA_CORE_CORE_INT_H

#include <pthread.h>

#include "core/core.h"

struct watched {
    char id[32];
    pid_t pid;
    int pidfd;
};

struct signin {
    char code[SIGNIN_CODE_LEN + 1], user[64];
    bool local;
    uint64_t expires_ms; /* monotonic; 0: free */
};

struct track;

struct core {
    struct core_config config;
    char *state_dir;
    struct store *store;
    uint64_t opened_ms;
    pthread_mutex_t lock;

    /* job.c */
    struct job *jobs; /* open ones, oldest first */
    unsigned job_open;
    int64_t job_last; /* greatest number so far */
    pthread_cond_t job_cond;
    pthread_t workers[JOB_WORKERS];
    unsigned worker_count;
    bool closing;
    unsigned trim_in; /* events until the next trim */

    uint64_t job_serial;

    /* signin.c */
    struct signin signins[16];

    /* history.c */
    struct track *tracks;
    pthread_t sampler;
    pthread_cond_t sampler_cond;
    bool sampling;

    /* supervise.c */
    pthread_t supervisor;
    bool supervising;
    int epoll_fd, wake_fd;
    struct watched *watched;
    unsigned watched_count, watched_room;
};

int jobs_open(struct core *core, struct err *err); /* ends those of the last daemon; starts workers */
void jobs_close(struct core *core);

int history_open(struct core *core, struct err *err);
void history_close(struct core *core);

int supervise_open(struct core *core, struct err *err);
void supervise_close(struct core *core);
/* The process of instance `id` is watched until it ends. Locked. */
int supervise_add(struct core *core, const char *id, pid_t pid, struct fault *fault);
/* Whether the process of `id` is still watched: it has not ended, or its end has not been seen. Locked. */
bool supervise_has(struct core *core, const char *id);

/* Adopts what runs, cleans up what the last daemon left half done. Before workers start; locked. */
int recover(struct core *core, struct err *err);
void recover_autostart(struct core *core);

/* The name of the instance with this id; free() it. NULL: none. Locked. */
char *instance_name_of(struct core *core, const char *id);
/* What a machine has unless said otherwise; a container has no limits. */
void instance_kind_defaults(json_t *in);
/* Makes the store's references those of the instance's members. Locked, in a transaction. */
int instance_link(struct core *core, const json_t *instance, struct fault *fault);
/* An instance's process ended; status -1: unknown. Locked. */
void instance_ended(struct core *core, const char *id, int status);
/* Sets the state (and reason) of an instance, with an event. Locked. */
int instance_set_state(struct core *core, const char *name, const char *state, const char *reason,
                       const char *event, const char *who, struct fault *fault);
void instance_paths(struct core *core, const char *id, struct driver_instance *instance);
void volume_path(struct core *core, const json_t *volume, char *buf, size_t size);
int volume_make(struct core *core, const json_t *volume, struct fault *fault);

/* Removes a directory and everything in it; it is fine when there is none. */
int tree_remove(const char *path);
int make_dirs(const char *path);
/* 12 random hexadecimal digits. */
void random_id(char *buf);
uint64_t monotonic_ms(void);

extern const struct job_type job_instance_create, job_instance_start, job_instance_stop, job_instance_restart,
    job_instance_pause, job_instance_resume, job_instance_delete, job_instance_clone;

#endif
