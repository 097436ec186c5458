/*
 * Between loop.c and the two ways to do host I/O: uring.c and pool.c.
 */
#ifndef FONDA_BLOCK_AIO_INT_H
#define FONDA_BLOCK_AIO_INT_H

#include "block/block_provider.h"

/* Requests that the host has at the same time; more wait in the loop. */
#define AIO_DEPTH 256u
/* After the host had no room to take a request over. */
#define AIO_RETRY_MS 10

struct aio_uring;
struct aio_pool;

int aio_uring_new(struct aio_uring **ret_uring); /* -ENOSYS, -EPERM, -ENOMEM ... */
void aio_uring_free(struct aio_uring *uring);
int aio_uring_fd(struct aio_uring *uring);
/* Takes one request; false: full. */
bool aio_uring_queue(struct aio_uring *uring, struct blk_aio *aio);
void aio_uring_submit(struct aio_uring *uring);
bool aio_uring_unsubmitted(struct aio_uring *uring); /* the host would not take all */
/* The next request that is complete, with its result; NULL: none. */
struct blk_aio *aio_uring_reap(struct aio_uring *uring);

int aio_pool_new(struct aio_pool **ret_pool);
/* Ends its threads, behind what they have to do; they start anew when there is work. */
void aio_pool_rest(struct aio_pool *pool);
void aio_pool_free(struct aio_pool *pool);
int aio_pool_fd(struct aio_pool *pool);
void aio_pool_queue(struct aio_pool *pool, struct blk_aio *aio);
struct blk_aio *aio_pool_reap(struct aio_pool *pool);

#endif
