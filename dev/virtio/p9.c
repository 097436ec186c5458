/* See p9.h. Messages, fids, lookups; the requests themselves are in p9_ops.c. */
#include "dev/virtio/p9.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "dev/virtio/p9_int.h"

#define HEADER_BYTES 7u /* size[4] type[1] tag[2] */
#define RLERROR      7u
#define ERROR_BYTES  (HEADER_BYTES + 4)

/* --- messages --- */

uint64_t p9_get(struct p9_reader *in, unsigned bytes)
{
    uint64_t value = 0;
    if ((size_t)(in->end - in->at) < bytes) {
        in->bad = true;
        return 0;
    }
    memcpy(&value, in->at, bytes);
    in->at += bytes;
    return value;
}

void p9_get_text(struct p9_reader *in, char *buf, size_t size)
{
    size_t len = p9_get(in, 2);
    buf[0] = '\0';
    if ((size_t)(in->end - in->at) < len || len >= size || memchr(in->at, '\0', len)) {
        in->bad = true;
        return;
    }
    memcpy(buf, in->at, len);
    buf[len] = '\0';
    in->at += len;
}

void p9_get_name(struct p9_reader *in, struct p9_name *ret)
{
    p9_get_text(in, ret->text, sizeof(ret->text));
    if (!ret->text[0] || strchr(ret->text, '/') || strcmp(ret->text, ".") == 0 ||
        strcmp(ret->text, "..") == 0) {
        in->bad = true;
    }
}

void p9_put(struct p9_writer *out, uint64_t value, unsigned bytes)
{
    if ((size_t)(out->end - out->at) < bytes) {
        out->bad = true;
        return;
    }
    memcpy(out->at, &value, bytes);
    out->at += bytes;
}

void p9_put_text(struct p9_writer *out, const char *text, size_t len)
{
    p9_put(out, len, 2);
    if (out->bad || (size_t)(out->end - out->at) < len) {
        out->bad = true;
        return;
    }
    memcpy(out->at, text, len);
    out->at += len;
}

void p9_put_qid(struct p9_writer *out, const struct stat *st)
{
    uint8_t type = S_ISDIR(st->st_mode) ? 0x80 : S_ISLNK(st->st_mode) ? 0x02 : 0;
    p9_put(out, type, 1);
    p9_put(out, (uint32_t)(st->st_mtim.tv_sec ^ st->st_mtim.tv_nsec),
           4); /* version: changes with the contents */
    p9_put(out, st->st_ino, 8);
}

/* --- fids --- */

struct p9_fid *p9_fid_find(struct p9 *p9, uint32_t id)
{
    for (struct p9_fid *fid = p9->fids[id % P9_BUCKETS]; fid; fid = fid->next) {
        if (fid->id == id) {
            return fid;
        }
    }
    return NULL;
}

static void close_io(struct p9_fid *fid)
{
    if (fid->dir) {
        closedir(fid->dir);
    } else if (fid->io_fd >= 0) {
        close(fid->io_fd);
    }
    fid->dir = NULL;
    fid->io_fd = -1;
}

int p9_fid_add(struct p9 *p9, uint32_t id, int path_fd)
{
    struct p9_fid *fid = NULL;
    int rc = p9_fid_find(p9, id) ? -EBADF : p9->fid_count >= P9_FIDS_MAX ? -ENFILE : 0;
    if (rc == 0) {
        fid = calloc(1, sizeof(*fid));
        rc = fid ? 0 : -ENOMEM;
    }
    if (rc < 0) {
        close(path_fd);
        return rc;
    }
    *fid = (struct p9_fid){.id = id, .path_fd = path_fd, .io_fd = -1, .next = p9->fids[id % P9_BUCKETS]};
    p9->fids[id % P9_BUCKETS] = fid;
    p9->fid_count++;
    return 0;
}

void p9_fid_drop(struct p9 *p9, uint32_t id)
{
    for (struct p9_fid **link = &p9->fids[id % P9_BUCKETS]; *link; link = &(*link)->next) {
        struct p9_fid *fid = *link;
        if (fid->id == id) {
            *link = fid->next;
            close_io(fid);
            close(fid->path_fd);
            free(fid);
            p9->fid_count--;
            return;
        }
    }
}

void p9_reset(struct p9 *p9)
{
    for (unsigned i = 0; i < P9_BUCKETS; i++) {
        while (p9->fids[i]) {
            p9_fid_drop(p9, p9->fids[i]->id);
        }
    }
    p9->msize = P9_MESSAGE_MAX;
}

/* --- files --- */

int p9_lookup(int dir_fd, const char *name)
{
    static const struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
                                        .resolve =
                                            RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    int fd = (int)syscall(SYS_openat2, dir_fd, name, &how, sizeof(how));
    if (fd < 0 && (errno == ENOSYS || errno == EPERM || errno == ELOOP)) {
        /* Kernels and filters without openat2, and symlinks themselves: a single component that is not ".."
         * can't leave its directory either. */
        fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    }
    return fd < 0 ? -errno : fd;
}

void p9_fd_name(int fd, char buf[16])
{
    snprintf(buf, 16, "%d", fd);
}

int p9_fid_open(struct p9 *p9, struct p9_fid *fid, int flags)
{
    struct stat st;
    char name[16];
    if (fstat(fid->path_fd, &st) < 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
        return -EPERM; /* a pipe or a device of the host's */
    }
    close_io(fid);
    p9_fd_name(fid->path_fd, name);
    int fd = openat(p9->proc_fd, name, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        return -errno;
    }
    if (S_ISDIR(st.st_mode)) {
        fid->dir = fdopendir(fd);
        if (!fid->dir) {
            close(fd);
            return -ENOMEM;
        }
    }
    fid->io_fd = fd;
    return 0;
}

/* --- the server --- */

static const struct p9_request *find_request(uint8_t type)
{
    for (unsigned i = 0; i < p9_request_count; i++) {
        if (p9_requests[i].type == type) {
            return &p9_requests[i];
        }
    }
    return NULL;
}

static void put_header(uint8_t *out, uint32_t size, uint8_t type, uint16_t tag)
{
    memcpy(out, &size, 4);
    out[4] = type;
    memcpy(out + 5, &tag, 2);
}

uint32_t p9_handle(struct p9 *p9, const uint8_t *in, uint32_t len, uint8_t *out, uint32_t room)
{
    uint32_t size;
    uint16_t tag;
    if (len < HEADER_BYTES || room < ERROR_BYTES) {
        return 0;
    }
    memcpy(&size, in, 4);
    memcpy(&tag, in + 5, 2);
    if (size < HEADER_BYTES || size > len) {
        return 0;
    }
    const struct p9_request *request = find_request(in[4]);
    struct p9_reader reader = {in + HEADER_BYTES, in + size, false};
    struct p9_writer writer = {out, out + HEADER_BYTES, out + MIN(room, p9->msize), false};
    int rc = !request ? -EOPNOTSUPP : request->changes && p9->read_only ? -EROFS : 0;
    if (rc == 0) {
        rc = request->run(p9, &reader, &writer);
    }
    if (rc == 0 && reader.bad) {
        rc = -EINVAL;
    }
    if (rc == 0 && writer.bad) {
        rc = -EMSGSIZE;
    }
    if (rc < 0) {
        uint32_t error = (uint32_t)-rc;
        put_header(out, ERROR_BYTES, RLERROR, tag);
        memcpy(out + HEADER_BYTES, &error, 4);
        return ERROR_BYTES;
    }
    uint32_t answer = (uint32_t)(writer.at - out);
    put_header(out, answer, (uint8_t)(in[4] + 1), tag);
    return answer;
}

struct p9 *p9_new(const char *dir, bool read_only, struct err *err)
{
    struct p9 *p9 = calloc(1, sizeof(*p9));
    if (!p9) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    p9->read_only = read_only;
    p9->msize = P9_MESSAGE_MAX;
    p9->root_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (p9->root_fd < 0 || faccessat(p9->root_fd, ".", R_OK | X_OK, AT_EACCESS) < 0) {
        err_sys(err, -errno, "cannot share directory '%s'", dir);
        if (p9->root_fd >= 0) {
            close(p9->root_fd);
        }
        free(p9);
        return NULL;
    }
    p9->proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (p9->proc_fd < 0) {
        err_sys(err, -errno, "cannot share directory '%s': /proc/self/fd", dir);
        close(p9->root_fd);
        free(p9);
        return NULL;
    }
    return p9;
}

void p9_free(struct p9 *p9)
{
    if (p9) {
        p9_reset(p9);
        close(p9->root_fd);
        close(p9->proc_fd);
        free(p9);
    }
}

unsigned p9_fids(const struct p9 *p9)
{
    return p9->fid_count;
}
