/*
 * For who implements a node: the driver table, coroutines, range locks, and host I/O. Neighbours: node.c
 * (graphs, requests), co.c, loop.c, rangelock.c, aio.c.
 *
 * A driver has one of
 *   submit()  starts a request and completes it later with blk_req_complete() (transports), or
 *   co_io()   runs in a coroutine and returns the result (formats, filters). It calls blk_pread() and so on,
 * or blk_co_io(), on the nodes below, which suspend the coroutine.
 *
 * Coroutines run on the loop's thread. Between two suspensions nothing else runs, so plain variables need no
 * lock; across a suspension a co_mutex or a range lock does it.
 */
#ifndef FONDA_BLOCK_BLOCK_PROVIDER_H
#define FONDA_BLOCK_BLOCK_PROVIDER_H

#include "base/util.h"
#include "block/block.h"
#include "block/image.h"

/* ---- coroutines (co.c) ---- */

struct co;
struct co_queue {
    struct co *head, **tail;
};
struct co_mutex {
    bool locked;
    struct co_queue waiters;
    struct blk_loop *loop;
};

/* Runs fn(arg) until it first suspends. Errors: -ENOMEM (nothing ran). */
int co_start(void (*fn)(void *arg), void *arg);
struct co *co_self(void); /* NULL outside of coroutines */
/* Suspends the running coroutine until co_resume(). */
void co_suspend(void);
/* Goes on with it, on this stack; returns when it suspends or ends. */
void co_resume(struct co *co);
/* Frees this thread's idle stacks. */
void co_trim(void);

void co_queue_init(struct co_queue *queue);
void co_queue_push(struct co_queue *queue, struct co *co);
struct co *co_queue_pop(struct co_queue *queue); /* the first; NULL: none */
/* Waits for co_queue_wake_all(); outside of coroutines runs the loop once. */
void co_queue_wait(struct co_queue *queue, struct blk_loop *loop);
void co_queue_wake_all(struct co_queue *queue, struct blk_loop *loop);
void co_mutex_init(struct co_mutex *mutex, struct blk_loop *loop);
void co_mutex_lock(struct co_mutex *mutex); /* first come, first served */
void co_mutex_unlock(struct co_mutex *mutex);

/* ---- range locks (rangelock.c) ---- */

/* Requests on overlapping ranges, of which one is exclusive, run in the order of their arrival. */
struct range_lock {
    uint64_t start, end;
    bool exclusive;
    struct range_lock *prev, *next;
};
struct range_locks {
    struct range_lock *first, *last;
    struct co_queue waiters;
    struct blk_loop *loop;
};
void range_locks_init(struct range_locks *locks, struct blk_loop *loop);
/* lock lies on the caller's stack. [start, end) */
void range_lock(struct range_locks *locks, struct range_lock *lock, uint64_t start, uint64_t end,
                bool exclusive);
/* The same, when that needs no wait; false: it does, and lock is not held. */
bool range_trylock(struct range_locks *locks, struct range_lock *lock, uint64_t start, uint64_t end,
                   bool exclusive);
void range_unlock(struct range_locks *locks, struct range_lock *lock);

/* ---- loop (loop.c) ---- */

/* Has a coroutine resumed from blk_loop_poll(). */
void blk_loop_wake(struct blk_loop *loop, struct co *co);
/* Has blk_req_finish(req) run from blk_loop_poll(). */
void blk_loop_done(struct blk_loop *loop, struct blk_req *req);
/* Suspends the running coroutine for at least that long. */
void blk_loop_sleep(struct blk_loop *loop, uint64_t ns);
/* What blk_open was given, for as long as it runs; and the one of that name, or NULL. */
void blk_loop_give(struct blk_loop *loop, const struct blk_open_file *files, unsigned count);
const struct blk_open_file *blk_loop_given(const struct blk_loop *loop, const char *path);
uint64_t blk_loop_now_ns(void); /* CLOCK_MONOTONIC */

/* Host I/O on a file descriptor: completes on the loop. */
struct blk_aio {
    enum blk_op op;
    int fd;
    int fallocate_mode; /* discard, write zeroes */
    uint64_t offset, bytes;
    const struct iovec *iov;
    unsigned iov_count;
    void (*done)(struct blk_aio *aio);
    int64_t result; /* bytes, 0, or a negative errno */
    struct blk_aio *next;
};
void blk_aio_submit(struct blk_loop *loop, struct blk_aio *aio);

/* ---- nodes (node.c) ---- */

struct blk_driver {
    const char *name;
    bool is_format; /* may be named in blk_open_options.format */
    size_t state_size;
    /* How sure an image's first bytes (of a file of `length` bytes) make it: 0 to 100. NULL: never guessed.
     */
    int (*probe)(const uint8_t *head, size_t head_size, uint64_t length);
    /* node->file is open. Reads what it needs; opens node->backing with blk_open_backing(). */
    int (*open)(struct blk_node *node, const struct blk_open_options *options, struct err *err);
    /* Writes back; then frees what open made, also when open failed half way. */
    int (*close)(struct blk_node *node);
    void (*submit)(struct blk_node *node, struct blk_req *req);
    int (*co_io)(struct blk_node *node, struct blk_req *req);
    int (*resize)(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err);
    void (*info)(struct blk_node *node, struct blk_info *info);

    /* Images; NULL: -ENOTSUP */
    int (*create)(struct blk_node *file, const char *path, const struct image_create_options *options,
                  struct err *err);
    void (*details)(struct blk_node *node, struct image_details *details);
    int (*snapshots)(struct blk_node *node, struct image_snapshot **ret_list, unsigned *ret_count,
                     struct err *err);
    int (*snapshot_create)(struct blk_node *node, const char *name, struct err *err);
    int (*snapshot_apply)(struct blk_node *node, const char *id, struct err *err);
    int (*snapshot_delete)(struct blk_node *node, const char *id, struct err *err);
    int (*check)(struct blk_node *node, enum image_repair repair, void (*report)(void *arg, const char *text),
                 void *arg, struct image_check *ret_check, struct err *err);
    int (*set_backing)(struct blk_node *node, const char *backing, const char *backing_format,
                       struct err *err);
    int (*empty)(struct blk_node *node, struct err *err);
};

struct blk_node {
    const struct blk_driver *driver;
    struct blk_loop *loop;
    char *filename;
    void *state;
    struct blk_node *file;    /* what holds this node's bytes; NULL: a transport */
    struct blk_node *backing; /* the image below; NULL: none */
    uint64_t size_bytes;
    unsigned flags; /* enum blk_open_flags */
    unsigned depth; /* in the backing chain; 0: the top image */
    enum blk_cache cache;
    bool growable; /* writes beyond the end extend it: a file below a format */
    bool guessed;  /* the format was not given */
    unsigned in_flight;
    struct blk_stats stats;
};

extern const struct blk_driver *const blk_drivers[];
extern const unsigned blk_driver_count;
extern const struct blk_driver blk_file_driver, blk_raw_driver, blk_qcow2_driver, blk_throttle_driver;

/* Runs the request where the caller is (see block.h about synchronous twins). req->done is not called. */
int blk_co_io(struct blk_node *node, struct blk_req *req);
/* For submit(), also from within: the request is complete. done() runs from blk_loop_poll(). */
void blk_req_complete(struct blk_req *req, int error);
/* The loop runs what blk_req_complete() queued. */
void blk_req_finish(struct blk_req *req);

struct blk_node *blk_node_new(struct blk_loop *loop, const struct blk_driver *driver, const char *filename);
void blk_node_free(struct blk_node *node);
/* Opens a format over a transport that is open already; takes file over, also on error. */
int blk_open_over(struct blk_node *file, const struct blk_open_options *options, unsigned depth,
                  struct blk_node **ret_node, struct err *err);
/* Opens the image that `name`, recorded in node's image, stands for. */
int blk_open_backing(struct blk_node *node, const char *name, const char *format, struct err *err);
/* The path that `name`, recorded in the image `overlay`, stands for: malloc'd. NULL: no memory. */
char *blk_backing_path(const char *overlay, const char *name);
int blk_open_file(struct blk_loop *loop, const char *path, unsigned flags, enum blk_cache cache,
                  struct blk_node **ret_node, struct err *err);
const struct blk_driver *blk_format(const char *name);
/* The topmost node that is not a filter. */
struct blk_node *blk_format_node(struct blk_node *node);

/* ---- vectors (node.c) ---- */

/* Describes [offset, offset + bytes) of src in dst, which has room for as many. Returns the count. */
unsigned iov_slice(struct iovec *dst, const struct iovec *src, unsigned count, uint64_t offset,
                   uint64_t bytes);
void iov_zero(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes);
void iov_from_buf(const struct iovec *iov, unsigned count, uint64_t offset, const void *buf, uint64_t bytes);
void iov_to_buf(const struct iovec *iov, unsigned count, uint64_t offset, void *buf, uint64_t bytes);

#endif
