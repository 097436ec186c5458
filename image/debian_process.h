/*
 * Other people's programs: run one, read its messages line by line, and its output from a pipe.
 */
#ifndef FONDA_IMAGE_DEBIAN_PROCESS_H
#define FONDA_IMAGE_DEBIAN_PROCESS_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

#define PROCESS_LINE_MAX 400u

struct process_result {
    int status;                       /* exit status; 128 + signal */
    char last_line[PROCESS_LINE_MAX]; /* of its messages */
};

/* Runs argv (ending with NULL) with its input and output at /dev/null, to its end. PATH is extended by the
 * folders for administration. Errors: -ENOENT (no such program), others of starting it. */
int process_run(const char *const *argv, struct process_result *ret_result, struct err *err);

struct process {
    pid_t pid;
    int out_fd; /* its output; the reader's */
    int err_fd;
    pthread_t thread;
    void (*line)(void *opaque, const char *line); /* each message, on a thread of its own */
    void *opaque;
    char last_line[PROCESS_LINE_MAX];
};

/* The struct has to stay where it is until process_wait. Errors: as above. */
int process_start(struct process *process, const char *const *argv,
                  void (*line)(void *opaque, const char *line), void *opaque, struct err *err);
/* Closes its output (if it still writes, it ends by that) and waits. Returns the exit status; 128 + signal.
 */
int process_wait(struct process *process);

#endif
