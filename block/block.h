/*
 * The contract of virtual storage: devices, tools and exports see disks through this header only.
 *
 * A disk is a graph of nodes: a format (raw, qcow2) over a transport (file), with filters (throttle) between
 * or on top. A qcow2 node may have a further node below it, its backing image. blk_open() builds the graph.
 *
 * Loop and threads: a graph belongs to one struct blk_loop, and a loop to one thread. Every function here is
 * called on that thread, except blk_loop_post(). Requests are asynchronous: blk_submit() returns at once, and
 * done() runs later on the loop's thread, from blk_loop_poll(), never from within blk_submit(). A program
 * with an event loop of its own watches blk_loop_fd() for input and calls blk_loop_poll(loop, 0); one without
 * calls it with a timeout.
 *
 * Order and durability, as for a disk with a volatile write cache:
 * - Requests that are under way at the same time may take effect in any order.
 * - A write is durable when a flush that was submitted after its completion has completed, or, with
 *   BLK_REQ_FUA, when it has itself completed. Without that, after a power cut each 512-byte sector has its
 *   old or its new contents.
 * - A request that failed may have taken effect in part. It can be submitted again.
 *
 * Errors are negative errnos. Those that a device treats differently:
 *   -ENOSPC   the host has no room for the data (never: "beyond the end", which is -EINVAL). The request can
 * be submitted again when there is room; nothing that was acknowledged is lost. -EROFS    a write to a
 * read-only node -EUCLEAN  the image is damaged. After the first such error a format refuses writes
 * ("latched"). -EIO      the host failed. Once a flush has failed, every further flush of that file fails:
 * what the host dropped from its cache can't be known (reads and writes go on).
 */
#ifndef FONDA_BLOCK_BLOCK_H
#define FONDA_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/uio.h>

#include "base/err.h"

struct blk_loop;
struct blk_node;

#define BLK_SECTOR_SIZE   512u
#define BLK_REQ_BYTES_MAX (1u << 30) /* of one read or write */
#define BLK_REQ_IOV_MAX   1024u
#define BLK_CHAIN_MAX     64u /* images of a backing chain, the top one included */
#define BLK_PATH_MAX      4096u

/* ---- the loop ---- */

enum blk_engine {
    BLK_ENGINE_AUTO,    /* io_uring where the host allows it, else threads; FONDA_BLOCK_ENGINE=uring|threads
                           decides */
    BLK_ENGINE_URING,   /* fails where the host forbids it */
    BLK_ENGINE_THREADS, /* a pool of at most 16 threads */
};

/* Errors: -ENOSYS, -EPERM (io_uring was asked for and isn't available), -ENOMEM, -EMFILE. */
int blk_loop_new(enum blk_engine engine, struct blk_loop **ret_loop, struct err *err);
/* All nodes must be closed. Accepts NULL. */
void blk_loop_free(struct blk_loop *loop);
/* Ends the threads that do host I/O, until there is I/O again: those that start then are what the thread that
 * submits may start (base/thread.h: their role is "block"). */
void blk_loop_rest(struct blk_loop *loop);
const char *blk_loop_engine_name(struct blk_loop *loop); /* "io_uring" or "threads" */
/* Readable when blk_loop_poll() has something to do. Belongs to the loop. */
int blk_loop_fd(struct blk_loop *loop);
/* Waits up to timeout_ms (-1: without limit; 0: not at all), then runs what is due. Not from within a
 * callback. Returns the number of callbacks that ran. */
int blk_loop_poll(struct blk_loop *loop, int timeout_ms);
/* Any thread: has fn(arg) run on the loop's thread. Errors: -ENOMEM. */
int blk_loop_post(struct blk_loop *loop, void (*fn)(void *arg), void *arg);
/* Between the two, requests for the host are collected and then handed over in one system call. They nest. A
 * device that takes several requests from its queue puts them around its loop. blk_loop_poll() does it by
 * itself. */
void blk_loop_plug(struct blk_loop *loop);
void blk_loop_unplug(struct blk_loop *loop);

/* ---- requests ---- */

enum blk_op { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_DISCARD, BLK_WRITE_ZEROES, BLK_MAP };
#define BLK_OP_COUNT 6

enum blk_req_flags {
    BLK_REQ_FUA = 1,        /* write, write zeroes: durable when complete */
    BLK_REQ_UNMAP = 2,      /* write zeroes: the space may be given back */
    BLK_REQ_NO_BACKING = 4, /* map: look at this image only, not at those below it */
};

enum blk_map_flags {
    BLK_MAP_DATA = 1,      /* must be read to know its contents */
    BLK_MAP_ZERO = 2,      /* reads as zeroes */
    BLK_MAP_ALLOCATED = 4, /* in this image; not in those below */
    BLK_MAP_OFFSET = 8,    /* host_offset is valid: stored as it is there in the file below */
    BLK_MAP_COMPRESSED = 16,
};

struct blk_map {
    uint64_t bytes; /* from the request's offset on, of the same kind; at least 1 */
    unsigned flags;
    unsigned depth; /* which image of the chain has it; 0: the top one */
    uint64_t host_offset;
};

/* The caller owns it, and the vector and buffers, until done() runs. Offsets and sizes are in bytes with no
 * alignment demanded; aligned to blk_info.align they are fastest. */
struct blk_req {
    enum blk_op op;
    unsigned flags;
    uint64_t offset;
    uint64_t bytes; /* read, write: the sum of the vector, at most BLK_REQ_BYTES_MAX; flush: 0 */
    const struct iovec *iov;
    unsigned iov_count;                           /* at most BLK_REQ_IOV_MAX */
    void (*done)(struct blk_req *req, int error); /* error: 0 or a negative errno */
    void *opaque;
    struct blk_map map; /* result of BLK_MAP */

    /* Private to the block layer. */
    struct blk_node *node;
    struct blk_req *next;
    int error;
    struct blk_node *file_node;
    bool nested;
};

/* Never fails by itself: a request that is out of bounds, not allowed or malformed completes with an error.
 */
void blk_submit(struct blk_node *node, struct blk_req *req);
/* Requests under way. */
unsigned blk_in_flight(struct blk_node *node);
/* Runs the loop until no request of the node is under way. */
void blk_drain(struct blk_node *node);

/* Synchronous twins for tools: they run the loop until the request is complete. Inside a coroutine of a
 * driver they suspend it instead. Not from within done(). 0 or a negative errno. */
int blk_pread(struct blk_node *node, uint64_t offset, void *buf, uint64_t bytes);
int blk_pwrite(struct blk_node *node, uint64_t offset, const void *buf, uint64_t bytes);
int blk_preadv(struct blk_node *node, uint64_t offset, const struct iovec *iov, unsigned count);
int blk_pwritev(struct blk_node *node, uint64_t offset, const struct iovec *iov, unsigned count,
                unsigned flags);
int blk_flush(struct blk_node *node);
int blk_discard(struct blk_node *node, uint64_t offset, uint64_t bytes);
int blk_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags);
int blk_map(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags, struct blk_map *ret_map);

/* ---- what a device does with an error ---- */

enum blk_error_policy {
    BLK_ON_ERROR_ENOSPC, /* default: stop on -ENOSPC and -EDQUOT, report everything else */
    BLK_ON_ERROR_REPORT,
    BLK_ON_ERROR_STOP,
    BLK_ON_ERROR_IGNORE,
};

enum blk_error_action {
    BLK_ACTION_REPORT, /* fail the guest's request */
    BLK_ACTION_STOP,   /* keep the request, pause the machine, say blk_error_text(), and submit it again on
                          resume */
    BLK_ACTION_IGNORE, /* complete it as if it had worked */
};

enum blk_error_action blk_error_action(enum blk_error_policy policy, enum blk_op op, int error);
/* One sentence with the image's name: "no space left on the host for image 'a.qcow2'". */
void blk_error_text(struct blk_node *node, enum blk_op op, int error, char *buf, size_t size);

/* ---- opening ---- */

enum blk_open_flags {
    BLK_OPEN_RDWR = 1,
    BLK_OPEN_NO_LOCK = 2,    /* look at an image although another program writes it */
    BLK_OPEN_NO_BACKING = 4, /* only the top image: what is not in it reads as zeroes */
    BLK_OPEN_CHECK = 8, /* a damaged or unclean image is opened as it is, nothing is repaired; for `check` */
};

enum blk_cache {
    BLK_CACHE_WRITEBACK,    /* the host's page cache; a flush makes durable */
    BLK_CACHE_NONE,         /* O_DIRECT; a flush makes durable */
    BLK_CACHE_WRITETHROUGH, /* page cache; every write is durable when complete */
    BLK_CACHE_UNSAFE,       /* page cache; a flush does nothing: for scratch images */
};

/* A token bucket for each; 0: no limit. Bursts are what may be used at once after a pause, in the limit's
 * unit; 0: a tenth of a second's worth, and at least one. */
struct blk_throttle_limits {
    uint64_t iops, iops_burst;
    uint64_t bytes_per_s, bytes_burst;
};

/* A file that the caller has open already, for an image (or one below it) of that name. */
struct blk_open_file {
    const char *path; /* exactly as the image, or the one above it, names it */
    int fd;           /* stays the caller's; for writing, if the image is opened for that */
};

struct blk_open_options {
    const char
        *format; /* NULL: found out from the image; see docs/storage.md about raw images that guests write */
    unsigned flags; /* enum blk_open_flags */
    enum blk_cache cache;
    const char *snapshot;                /* read-only, the contents of an internal snapshot: its id or name */
    struct blk_throttle_limits throttle; /* all 0: no throttle node */
    const struct blk_open_file *files;   /* used instead of opening those names; count of them */
    unsigned file_count;
};

/* Opens an image with everything below it. The sentence in err names the image of the chain that is at fault,
 * also when another program has it open (-EBUSY). options may be NULL. */
int blk_open(struct blk_loop *loop, const char *path, const struct blk_open_options *options,
             struct blk_node **ret_node, struct err *err);
/* Drains, writes back, marks the image clean, closes the graph; 0 or the error of writing back, closed in any
 * case. Accepts NULL. */
int blk_close(struct blk_node *node);

/* ---- facts ---- */

struct blk_info {
    const char *format;   /* "raw", "qcow2" */
    const char *filename; /* as it was opened; belongs to the node */
    uint64_t size_bytes;
    uint64_t host_bytes;    /* allocated in the host's file system, this image alone */
    uint64_t host_length;   /* the file's length */
    uint32_t align;         /* best alignment of requests */
    uint32_t cluster_bytes; /* unit of allocation; 0: none */
    uint32_t discard_align; /* unit of discard */
    bool read_only, has_backing, latched;
};

struct blk_stats {
    uint64_t ops[BLK_OP_COUNT], errors[BLK_OP_COUNT];
    uint64_t read_bytes, write_bytes;
};

uint64_t blk_size(struct blk_node *node);
void blk_get_info(struct blk_node *node, struct blk_info *ret_info);
void blk_get_stats(struct blk_node *node, struct blk_stats *ret_stats);
/* Grows, or shrinks when shrink is true. Drained first. Errors: -ENOTSUP, -EINVAL, -EFBIG, those of a write.
 */
int blk_resize(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err);
/* New limits for a graph that has a throttle node; -ENOTSUP without one. */
int blk_set_throttle(struct blk_node *node, const struct blk_throttle_limits *limits);
/* The same for any graph: one that has no throttle node gets one on top, which is the graph's name from then
 * on. What waits goes on under the new limits within a tenth of a second. Errors: -ENOMEM. */
int blk_add_throttle(struct blk_node **node, const struct blk_throttle_limits *limits);

#endif
