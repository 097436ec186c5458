/*
 * Host I/O by io_uring. Its completion queue makes the ring's file descriptor readable, so the loop watches
 * that.
 */
#include <errno.h>
#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "block/aio_int.h"

struct aio_uring {
    struct io_uring ring;
    unsigned under_way;
    bool unsubmitted;
};

/* What file.c needs; IORING_FEAT_NODROP lets completions outnumber the queue's entries. */
static const int needed_ops[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE};

/* For the ring's life: it can't be made to open, connect or execute anything, whoever writes to its queue,
 * and its registrations are closed. Kernels from 5.10 on (io_uring_register(2)); older ones do without
 * io_uring. */
static int restrict_ring(struct io_uring *ring)
{
    struct io_uring_restriction allowed[ARRAY_SIZE(needed_ops)] = {0};
    for (size_t i = 0; i < ARRAY_SIZE(needed_ops); i++) {
        allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
        allowed[i].sqe_op = (uint8_t)needed_ops[i];
    }
    /* Debian 12's liburing does not export its functions for these two. */
    if (syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, allowed,
                ARRAY_SIZE(allowed)) < 0) {
        return -errno;
    }
    return syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0 ? -errno
                                                                                                    : 0;
}

int aio_uring_new(struct aio_uring **ret_uring)
{
    struct aio_uring *uring = calloc(1, sizeof(*uring));
    if (!uring) {
        return -ENOMEM;
    }
    int error = io_uring_queue_init(AIO_DEPTH, &uring->ring, IORING_SETUP_R_DISABLED);
    if (error < 0) {
        free(uring);
        return error;
    }
    struct io_uring_probe *probe = io_uring_get_probe_ring(&uring->ring);
    error = probe && (uring->ring.features & IORING_FEAT_NODROP) ? 0 : -ENOSYS;
    for (size_t i = 0; !error && i < ARRAY_SIZE(needed_ops); i++) {
        error = io_uring_opcode_supported(probe, needed_ops[i]) ? 0 : -ENOSYS;
    }
    io_uring_free_probe(probe);
    if (!error) {
        error = restrict_ring(&uring->ring) < 0 ? -ENOSYS : 0;
    }
    if (error) {
        aio_uring_free(uring);
        return error;
    }
    *ret_uring = uring;
    return 0;
}

void aio_uring_free(struct aio_uring *uring)
{
    if (uring) {
        io_uring_queue_exit(&uring->ring);
        free(uring);
    }
}

int aio_uring_fd(struct aio_uring *uring)
{
    return uring->ring.ring_fd;
}

bool aio_uring_queue(struct aio_uring *uring, struct blk_aio *aio)
{
    if (uring->under_way >= AIO_DEPTH) {
        return false;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (!sqe) {
        aio_uring_submit(uring);
        sqe = io_uring_get_sqe(&uring->ring);
        if (!sqe) {
            return false;
        }
    }
    switch (aio->op) {
    case BLK_READ: io_uring_prep_readv(sqe, aio->fd, aio->iov, aio->iov_count, aio->offset); break;
    case BLK_WRITE: io_uring_prep_writev(sqe, aio->fd, aio->iov, aio->iov_count, aio->offset); break;
    case BLK_FLUSH: io_uring_prep_fsync(sqe, aio->fd, IORING_FSYNC_DATASYNC); break;
    default:
        io_uring_prep_fallocate(sqe, aio->fd, aio->fallocate_mode, (off_t)aio->offset, (off_t)aio->bytes);
        break;
    }
    io_uring_sqe_set_data(sqe, aio);
    uring->under_way++;
    uring->unsubmitted = true;
    return true;
}

void aio_uring_submit(struct aio_uring *uring)
{
    while (uring->unsubmitted) {
        int n = io_uring_submit(&uring->ring);
        if (n >= 0) {
            uring->unsubmitted = io_uring_sq_ready(&uring->ring) != 0;
        } else if (n != -EINTR) {
            return; /* -EAGAIN, -EBUSY: the host is short of room; the loop submits again after reaping */
        }
    }
}

bool aio_uring_unsubmitted(struct aio_uring *uring)
{
    return uring->unsubmitted;
}

struct blk_aio *aio_uring_reap(struct aio_uring *uring)
{
    struct io_uring_cqe *cqe = NULL;
    if (uring->under_way == 0 || io_uring_peek_cqe(&uring->ring, &cqe) < 0 || !cqe) {
        return NULL;
    }
    struct blk_aio *aio = io_uring_cqe_get_data(cqe);
    aio->result = cqe->res;
    io_uring_cqe_seen(&uring->ring, cqe);
    uring->under_way--;
    return aio;
}
