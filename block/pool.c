/*
 * Host I/O by a pool of threads, where io_uring is forbidden. Threads start when requests wait and none is
 * idle, and stay until the pool is freed.
 *
 * lock guards todo, finished, idle, thread_count and stop. The event descriptor counts finished requests.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "base/thread.h"
#include "block/aio_int.h"

#define POOL_THREADS_MAX 16u

struct aio_list {
    struct blk_aio *head, **tail;
};

struct aio_pool {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct aio_list todo, finished;
    unsigned idle, waiting, thread_count;
    bool stop;
    int event_fd;
    pthread_t threads[POOL_THREADS_MAX];
};

static void list_push(struct aio_list *list, struct blk_aio *aio)
{
    aio->next = NULL;
    *list->tail = aio;
    list->tail = &aio->next;
}

static struct blk_aio *list_pop(struct aio_list *list)
{
    struct blk_aio *aio = list->head;
    if (aio) {
        list->head = aio->next;
        if (!list->head) {
            list->tail = &list->head;
        }
    }
    return aio;
}

static int64_t perform(struct blk_aio *aio)
{
    for (;;) {
        ssize_t n = 0;
        switch (aio->op) {
        case BLK_READ: n = preadv(aio->fd, aio->iov, (int)aio->iov_count, (off_t)aio->offset); break;
        case BLK_WRITE: n = pwritev(aio->fd, aio->iov, (int)aio->iov_count, (off_t)aio->offset); break;
        case BLK_FLUSH: n = fdatasync(aio->fd); break;
        default: n = fallocate(aio->fd, aio->fallocate_mode, (off_t)aio->offset, (off_t)aio->bytes); break;
        }
        if (n >= 0) {
            return n;
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
}

static void *worker(void *arg)
{
    struct aio_pool *pool = arg;
    thread_enter("block", NULL);
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct blk_aio *aio = list_pop(&pool->todo);
        if (!aio) {
            if (pool->stop) {
                break;
            }
            pool->idle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->idle--;
            continue;
        }
        pool->waiting--;
        pthread_mutex_unlock(&pool->lock);
        aio->result = perform(aio);
        pthread_mutex_lock(&pool->lock);
        bool first = !pool->finished.head;
        list_push(&pool->finished, aio);
        if (first) {
            eventfd_write(pool->event_fd, 1);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int aio_pool_new(struct aio_pool **ret_pool)
{
    struct aio_pool *pool = calloc(1, sizeof(*pool));
    if (!pool) {
        return -ENOMEM;
    }
    pool->todo.tail = &pool->todo.head;
    pool->finished.tail = &pool->finished.head;
    pool->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pool->event_fd < 0) {
        int error = -errno;
        free(pool);
        return error;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    /* One thread has to exist; further ones are a matter of speed. */
    int error = pthread_create(&pool->threads[0], NULL, worker, pool);
    if (error) {
        aio_pool_free(pool);
        return -error;
    }
    pool->thread_count = 1;
    *ret_pool = pool;
    return 0;
}

void aio_pool_rest(struct aio_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    pool->thread_count = 0;
    pool->stop = false;
}

void aio_pool_free(struct aio_pool *pool)
{
    if (!pool) {
        return;
    }
    aio_pool_rest(pool);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    close(pool->event_fd);
    free(pool);
}

int aio_pool_fd(struct aio_pool *pool)
{
    return pool->event_fd;
}

void aio_pool_queue(struct aio_pool *pool, struct blk_aio *aio)
{
    pthread_mutex_lock(&pool->lock);
    list_push(&pool->todo, aio);
    pool->waiting++;
    if (pool->waiting > pool->idle && pool->thread_count < POOL_THREADS_MAX &&
        pthread_create(&pool->threads[pool->thread_count], NULL, worker, pool) == 0) {
        pool->thread_count++;
    }
    if (pool->thread_count == 0) { /* none, behind aio_pool_rest */
        pool->waiting--;
        list_pop(&pool->todo);
        aio->result = -EAGAIN;
        list_push(&pool->finished, aio);
        eventfd_write(pool->event_fd, 1);
    }
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

struct blk_aio *aio_pool_reap(struct aio_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct blk_aio *aio = list_pop(&pool->finished);
    if (!aio) {
        eventfd_t count;
        eventfd_read(pool->event_fd, &count);
    }
    pthread_mutex_unlock(&pool->lock);
    return aio;
}
