/*
 * What the files of the 9P server share: fids, and the reader and writer of messages, which latch `bad`
 * instead of leaving their buffers.
 */
#ifndef FONDA_DEV_VIRTIO_P9_INT_H
#define FONDA_DEV_VIRTIO_P9_INT_H

#include <dirent.h>
#include <stddef.h>
#include <sys/stat.h>

#include "dev/virtio/p9.h"

struct p9_fid {
    uint32_t id;
    int path_fd; /* O_PATH: what the fid means */
    int io_fd;   /* opened, or -1 */
    DIR *dir;    /* an opened directory; owns io_fd */
    struct p9_fid *next;
};

#define P9_BUCKETS 256u

struct p9 {
    int root_fd, proc_fd;
    bool read_only;
    uint32_t msize;
    unsigned fid_count;
    struct p9_fid *fids[P9_BUCKETS];
};

struct p9_reader {
    const uint8_t *at, *end;
    bool bad;
};

struct p9_writer {
    uint8_t *start, *at, *end;
    bool bad;
};

struct p9_name {
    char text[P9_NAME_MAX + 1];
};

uint64_t p9_get(struct p9_reader *in, unsigned bytes);
/* A name of one component; others make the reader bad. */
void p9_get_name(struct p9_reader *in, struct p9_name *ret);
/* A string of up to size - 1 bytes. */
void p9_get_text(struct p9_reader *in, char *buf, size_t size);
void p9_put(struct p9_writer *out, uint64_t value, unsigned bytes);
void p9_put_text(struct p9_writer *out, const char *text, size_t len);
void p9_put_qid(struct p9_writer *out, const struct stat *st);

struct p9_fid *p9_fid_find(struct p9 *p9, uint32_t id);
/* Takes path_fd over, also on failure. Returns 0, -EBADF (the id is in use), -ENFILE, -ENOMEM. */
int p9_fid_add(struct p9 *p9, uint32_t id, int path_fd);
void p9_fid_drop(struct p9 *p9, uint32_t id);
/* Closes what a fid has open and opens it with flags of open(2). Regular files and directories only. */
int p9_fid_open(struct p9 *p9, struct p9_fid *fid, int flags);
/* One component below a directory: an O_PATH descriptor or a negative errno. */
int p9_lookup(int dir_fd, const char *name);
/* "/proc/self/fd" relative name of a descriptor. */
void p9_fd_name(int fd, char buf[16]);

/* p9_ops.c: the requests. Each reads its arguments, and writes its answer behind the header. Returns 0 or a
 * negative errno. */
struct p9_request {
    uint8_t type;
    bool changes; /* the host's files: refused where read-only */
    int (*run)(struct p9 *p9, struct p9_reader *in, struct p9_writer *out);
};
extern const struct p9_request p9_requests[];
extern const unsigned p9_request_count;

#endif
