#include "vm/output.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "base/thread.h"
#include "base/util.h"

struct output {
    int fd;
    void (*room)(void *opaque);
    void *opaque;
    pthread_t thread;
    bool runs; /* main loop's */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t filled, drained;
    uint8_t ring[OUTPUT_BYTES];
    size_t head, used; /* the first byte to write out, and how many */
    bool starved;      /* output_write took less than it was given */
    bool closing;
    bool broken; /* the other side is gone: bytes are dropped */
};

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Writes one stretch without the lock. Returns what was written; a closed other side takes everything. */
static size_t write_some(struct output *output, size_t head, size_t len)
{
    ssize_t n;
    do {
        n = write(output->fd, output->ring + head, len);
    } while (n < 0 && (errno == EINTR || errno == EAGAIN));
    if (n < 0) {
        output->broken = true;
        return len;
    }
    return (size_t)n;
}

static void *output_main(void *opaque)
{
    struct output *output = opaque;
    thread_enter("output", NULL);
    pthread_mutex_lock(&output->lock);
    for (;;) {
        while (output->used == 0 && !output->closing) {
            pthread_cond_wait(&output->filled, &output->lock);
        }
        if (output->used == 0) {
            break;
        }
        size_t head = output->head, len = min_size(output->used, OUTPUT_BYTES - head);
        bool broken = output->broken;
        pthread_mutex_unlock(&output->lock);
        size_t written = broken ? len : write_some(output, head, len);
        pthread_mutex_lock(&output->lock);
        output->head = (head + written) % OUTPUT_BYTES;
        output->used -= written;
        bool starved = output->starved;
        output->starved = false;
        if (output->used == 0) {
            pthread_cond_signal(&output->drained);
        }
        if (starved && !output->closing) {
            pthread_mutex_unlock(&output->lock);
            output->room(output->opaque);
            pthread_mutex_lock(&output->lock);
        }
    }
    pthread_mutex_unlock(&output->lock);
    return NULL;
}

int output_new(int fd, void (*room)(void *opaque), void *opaque, struct output **ret_output, struct err *err)
{
    struct output *output = calloc(1, sizeof(*output));
    if (!output) {
        return err_sys(err, -ENOMEM, "cannot make the output");
    }
    output->fd = fd;
    output->room = room;
    output->opaque = opaque;
    pthread_mutex_init(&output->lock, NULL);
    pthread_cond_init(&output->filled, NULL);
    pthread_cond_init(&output->drained, NULL);
    *ret_output = output;
    return 0;
}

int output_start(struct output *output, struct err *err)
{
    if (!output) {
        return 0;
    }
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int rc = pthread_create(&output->thread, NULL, output_main, output);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    output->runs = rc == 0;
    return rc != 0 ? err_sys(err, -rc, "cannot start the output's thread") : 0;
}

size_t output_write(struct output *output, const uint8_t *bytes, size_t len)
{
    pthread_mutex_lock(&output->lock);
    size_t taken = min_size(len, OUTPUT_BYTES - output->used);
    size_t tail = (output->head + output->used) % OUTPUT_BYTES;
    size_t first = min_size(taken, OUTPUT_BYTES - tail);
    memcpy(output->ring + tail, bytes, first);
    memcpy(output->ring, bytes + first, taken - first);
    output->used += taken;
    output->starved |= taken < len;
    if (taken > 0) {
        pthread_cond_signal(&output->filled);
    }
    pthread_mutex_unlock(&output->lock);
    return taken;
}

int output_drain(struct output *output, unsigned timeout_ms)
{
    if (!output || !output->runs) {
        return 0;
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&output->lock);
    int rc = 0;
    while (output->used > 0 && rc == 0) {
        rc = pthread_cond_timedwait(&output->drained, &output->lock, &until);
    }
    pthread_mutex_unlock(&output->lock);
    return -rc;
}

void output_free(struct output *output, unsigned timeout_ms)
{
    if (!output) {
        return;
    }
    int rc = output_drain(output, timeout_ms);
    pthread_mutex_lock(&output->lock);
    output->closing = true;
    pthread_cond_signal(&output->filled);
    pthread_mutex_unlock(&output->lock);
    if (rc < 0) {
        pthread_detach(output->thread);
        return;
    }
    if (output->runs) {
        pthread_join(output->thread, NULL);
    }
    pthread_cond_destroy(&output->filled);
    pthread_cond_destroy(&output->drained);
    pthread_mutex_destroy(&output->lock);
    close(output->fd);
    free(output);
}
