/*
 * The requests of 9P2000.L: see p9.h. Message layouts are those of Linux's include/net/9p and Documentation
 * of the protocol extension; numbers in the table at the end.
 *
 * Every request reads all its arguments first and checks that the message had them; only then it acts.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "base/util.h"
#include "dev/virtio/p9_int.h"

#define VERSION   "9P2000.L"
#define MSIZE_MIN 4096u
#define NO_FID    UINT32_MAX
#define IO_HEADER 24u /* what a read's or write's message has around its data, at most */

/* The protocol's open flags are Linux's on most machines, in octal. */
#define L_ACCMODE   00000003u
#define L_EXCL      00000200u
#define L_TRUNC     00001000u
#define L_APPEND    00002000u
#define L_DIRECTORY 00200000u

#define MODE_MASK 0777u /* set-user-id files would be the host user's: they are not made */

#define ATTR_MODE      0x001u
#define ATTR_UID       0x002u
#define ATTR_GID       0x004u
#define ATTR_SIZE      0x008u
#define ATTR_ATIME     0x010u
#define ATTR_MTIME     0x020u
#define ATTR_ATIME_SET 0x080u
#define ATTR_MTIME_SET 0x100u
#define GETATTR_BASIC  0x7ffu

#define LOCK_GRANTED     0u
#define LOCK_TYPE_UNLOCK 2u

/* Reads a fid and finds it. */
static struct p9_fid *get_fid(struct p9 *p9, struct p9_reader *in)
{
    return p9_fid_find(p9, (uint32_t)p9_get(in, 4));
}

static int op_version(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    char version[32];
    uint32_t msize = (uint32_t)p9_get(in, 4);
    p9_get_text(in, version, sizeof(version));
    if (in->bad || msize < MSIZE_MIN) {
        return -EINVAL;
    }
    bool known = strcmp(version, VERSION) == 0;
    p9_reset(p9);
    p9->msize = MIN(msize, P9_MESSAGE_MAX);
    p9_put(out, p9->msize, 4);
    p9_put_text(out, known ? VERSION : "unknown", strlen(known ? VERSION : "unknown"));
    return 0;
}

static int op_attach(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    char text[PATH_MAX];
    struct stat st;
    uint32_t fid = (uint32_t)p9_get(in, 4), auth = (uint32_t)p9_get(in, 4);
    p9_get_text(in, text, sizeof(text)); /* the user's name */
    p9_get_text(in, text, sizeof(text)); /* which tree: there is one */
    p9_get(in, 4);
    if (in->bad || auth != NO_FID) {
        return -EINVAL;
    }
    int fd = fcntl(p9->root_fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) {
        return -errno;
    }
    if (fstat(fd, &st) < 0) {
        close(fd);
        return -EIO;
    }
    p9_put_qid(out, &st);
    return p9_fid_add(p9, fid, fd);
}

/* Answers with as many names as were found; only a whole walk makes the new fid. */
static int op_walk(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name names[P9_WALK_MAX];
    struct stat st;
    struct p9_fid *fid = get_fid(p9, in);
    uint32_t new_id = (uint32_t)p9_get(in, 4);
    unsigned count = (unsigned)p9_get(in, 2), found = 0;
    for (unsigned i = 0; i < count && i < P9_WALK_MAX && !in->bad; i++) {
        p9_get_name(in, &names[i]);
    }
    if (in->bad || count > P9_WALK_MAX) {
        return -ENOENT; /* also for "..", which Linux resolves by itself */
    }
    if (!fid || (new_id != fid->id && p9_fid_find(p9, new_id))) {
        return -EBADF;
    }
    uint8_t *count_at = out->at;
    p9_put(out, 0, 2);
    int fd = fcntl(fid->path_fd, F_DUPFD_CLOEXEC, 3), rc = fd < 0 ? -errno : 0;
    while (found < count && rc == 0) {
        int next = p9_lookup(fd, names[found].text);
        if (next >= 0 && fstat(next, &st) < 0) {
            close(next);
            next = -EIO;
        }
        if (next < 0) {
            rc = next;
            break;
        }
        close(fd);
        fd = next;
        p9_put_qid(out, &st);
        found++;
    }
    if (rc < 0 && (found == 0 || fd < 0)) {
        if (fd >= 0) {
            close(fd);
        }
        return rc;
    }
    uint16_t found16 = (uint16_t)found;
    memcpy(count_at, &found16, 2);
    if (found < count) {
        close(fd);
        return 0;
    }
    if (new_id == fid->id) {
        p9_fid_drop(p9, new_id);
    }
    return p9_fid_add(p9, new_id, fd);
}

/* Flags of open(2) for the protocol's. */
static int open_flags(uint32_t flags)
{
    int result = (int)(flags & L_ACCMODE);
    result |= flags & L_TRUNC ? O_TRUNC : 0;
    result |= flags & L_APPEND ? O_APPEND : 0;
    return result;
}

static int put_opened(struct p9_writer *out, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    p9_put_qid(out, &st);
    p9_put(out, 0, 4); /* iounit: as msize allows */
    return 0;
}

static int op_lopen(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = get_fid(p9, in);
    uint32_t flags = (uint32_t)p9_get(in, 4);
    if (in->bad || !fid) {
        return -EBADF;
    }
    if (p9->read_only && ((flags & L_ACCMODE) != O_RDONLY || (flags & L_TRUNC))) {
        return -EROFS;
    }
    int rc = p9_fid_open(p9, fid, open_flags(flags) | (flags & L_DIRECTORY ? O_DIRECTORY : 0));
    return rc < 0 ? rc : put_opened(out, fid->io_fd);
}

static int op_lcreate(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name name;
    struct p9_fid *fid = get_fid(p9, in);
    p9_get_name(in, &name);
    uint32_t flags = (uint32_t)p9_get(in, 4), mode = (uint32_t)p9_get(in, 4);
    p9_get(in, 4); /* the group: files are the host user's */
    if (in->bad || !fid) {
        return in->bad ? -EINVAL : -EBADF;
    }
    int fd = openat(fid->path_fd, name.text,
                    open_flags(flags) | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY |
                        (flags & L_EXCL ? O_EXCL : 0),
                    (mode_t)(mode & MODE_MASK));
    if (fd < 0) {
        return -errno;
    }
    struct stat st;
    char fd_name[16];
    p9_fd_name(fd, fd_name);
    int path_fd =
        fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? openat(p9->proc_fd, fd_name, O_PATH | O_CLOEXEC) : -1;
    if (path_fd < 0) {
        close(fd);
        return -EPERM;
    }
    /* The fid means the file from now on. */
    uint32_t id = fid->id;
    p9_fid_drop(p9, id);
    int rc = p9_fid_add(p9, id, path_fd);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    p9_fid_find(p9, id)->io_fd = fd;
    return put_opened(out, fd);
}

static int op_read(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = get_fid(p9, in);
    uint64_t offset = p9_get(in, 8);
    uint32_t count = (uint32_t)p9_get(in, 4);
    if (in->bad || !fid || fid->io_fd < 0 || fid->dir || offset > INT64_MAX) {
        return -EBADF;
    }
    p9_put(out, 0, 4);
    size_t room = (size_t)(out->end - out->at);
    ssize_t n = out->bad ? -1 : pread(fid->io_fd, out->at, MIN(count, room), (off_t)offset);
    if (n < 0) {
        return -errno;
    }
    uint32_t got = (uint32_t)n;
    memcpy(out->at - 4, &got, 4);
    out->at += n;
    return 0;
}

static int op_write(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = get_fid(p9, in);
    uint64_t offset = p9_get(in, 8);
    uint32_t count = (uint32_t)p9_get(in, 4);
    if (in->bad || !fid || fid->io_fd < 0 || fid->dir || offset > INT64_MAX ||
        count > (size_t)(in->end - in->at)) {
        return -EBADF;
    }
    ssize_t n = pwrite(fid->io_fd, in->at, count, (off_t)offset);
    if (n < 0) {
        return -errno;
    }
    p9_put(out, (uint64_t)n, 4);
    return 0;
}

static int op_clunk(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = get_fid(p9, in);
    if (!fid) {
        return -EBADF;
    }
    p9_fid_drop(p9, fid->id);
    return 0;
}

static void put_time(struct p9_writer *out, const struct timespec *ts)
{
    p9_put(out, (uint64_t)ts->tv_sec, 8);
    p9_put(out, (uint64_t)ts->tv_nsec, 8);
}

static int op_getattr(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    static const struct timespec none;
    struct stat st;
    struct p9_fid *fid = get_fid(p9, in);
    p9_get(in, 8); /* which: all are cheap */
    if (in->bad || !fid) {
        return -EBADF;
    }
    if (fstat(fid->io_fd >= 0 ? fid->io_fd : fid->path_fd, &st) < 0) {
        return -errno;
    }
    p9_put(out, GETATTR_BASIC, 8);
    p9_put_qid(out, &st);
    p9_put(out, st.st_mode, 4);
    p9_put(out, st.st_uid, 4);
    p9_put(out, st.st_gid, 4);
    p9_put(out, st.st_nlink, 8);
    p9_put(out, st.st_rdev, 8);
    p9_put(out, (uint64_t)st.st_size, 8);
    p9_put(out, (uint64_t)st.st_blksize, 8);
    p9_put(out, (uint64_t)st.st_blocks, 8);
    put_time(out, &st.st_atim);
    put_time(out, &st.st_mtim);
    put_time(out, &st.st_ctim);
    put_time(out, &none); /* birth */
    p9_put(out, 0, 8);    /* generation */
    p9_put(out, 0, 8);    /* data version */
    return 0;
}

static int set_size(struct p9 *p9, struct p9_fid *fid, uint64_t size)
{
    if (size > INT64_MAX) {
        return -EFBIG;
    }
    if (fid->io_fd >= 0 && !fid->dir) {
        return ftruncate(fid->io_fd, (off_t)size) < 0 ? -errno : 0;
    }
    struct p9_fid other = {.path_fd = fid->path_fd, .io_fd = -1};
    int rc = p9_fid_open(p9, &other, O_WRONLY);
    if (rc == 0) {
        rc = ftruncate(other.io_fd, (off_t)size) < 0 ? -errno : 0;
        close(other.io_fd);
    }
    return rc;
}

static int op_setattr(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = get_fid(p9, in);
    uint32_t valid = (uint32_t)p9_get(in, 4), mode = (uint32_t)p9_get(in, 4);
    uint32_t uid = (uint32_t)p9_get(in, 4), gid = (uint32_t)p9_get(in, 4);
    uint64_t size = p9_get(in, 8);
    struct timespec times[2];
    for (unsigned i = 0; i < 2; i++) {
        times[i].tv_sec = (time_t)p9_get(in, 8);
        times[i].tv_nsec = (long)(p9_get(in, 8) % 1000000000);
    }
    if (in->bad || !fid) {
        return in->bad ? -EINVAL : -EBADF;
    }
    struct stat st;
    char name[16];
    p9_fd_name(fid->path_fd, name);
    if (fstat(fid->path_fd, &st) < 0) {
        return -errno;
    }
    if ((valid & ATTR_MODE) &&
        (S_ISLNK(st.st_mode) || fchmodat(p9->proc_fd, name, (mode_t)(mode & MODE_MASK), 0) < 0)) {
        return S_ISLNK(st.st_mode) ? -EOPNOTSUPP : -errno;
    }
    if (valid & (ATTR_UID | ATTR_GID)) {
        uid_t to_uid = valid & ATTR_UID ? uid : (uid_t)-1;
        gid_t to_gid = valid & ATTR_GID ? gid : (gid_t)-1;
        if (fchownat(fid->path_fd, "", to_uid, to_gid, AT_EMPTY_PATH) < 0) {
            return -errno;
        }
    }
    if (valid & ATTR_SIZE) {
        int rc = set_size(p9, fid, size);
        if (rc < 0) {
            return rc;
        }
    }
    if (valid & (ATTR_ATIME | ATTR_MTIME)) {
        static const uint32_t bits[2][2] = {{ATTR_ATIME, ATTR_ATIME_SET}, {ATTR_MTIME, ATTR_MTIME_SET}};
        for (unsigned i = 0; i < 2; i++) {
            times[i].tv_nsec = !(valid & bits[i][0]) ? UTIME_OMIT
                               : valid & bits[i][1]  ? times[i].tv_nsec
                                                     : UTIME_NOW;
        }
        if (S_ISLNK(st.st_mode) ? 0 : utimensat(p9->proc_fd, name, times, 0) < 0) {
            return -errno;
        }
    }
    return 0;
}

/* Offsets are the host's cookies. Entries whose names could not come back in a walk are left out. */
static int op_readdir(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = get_fid(p9, in);
    uint64_t offset = p9_get(in, 8);
    uint32_t count = (uint32_t)p9_get(in, 4);
    if (in->bad || !fid || !fid->dir) {
        return -EBADF;
    }
    uint8_t *count_at = out->at;
    p9_put(out, 0, 4);
    if (out->bad) {
        return -EMSGSIZE;
    }
    uint8_t *limit = out->at + MIN((size_t)(out->end - out->at), count);
    seekdir(fid->dir, (long)offset);
    for (struct dirent *entry; (entry = readdir(fid->dir));) {
        size_t len = strlen(entry->d_name);
        struct stat st = {.st_ino = entry->d_ino,
                          .st_mode = entry->d_type == DT_DIR   ? S_IFDIR
                                     : entry->d_type == DT_LNK ? S_IFLNK
                                                               : S_IFREG};
        if (len > P9_NAME_MAX) {
            continue;
        }
        if ((size_t)(limit - out->at) < 13 + 8 + 1 + 2 + len) {
            break;
        }
        p9_put_qid(out, &st);
        p9_put(out, (uint64_t)entry->d_off, 8);
        p9_put(out, entry->d_type, 1);
        p9_put_text(out, entry->d_name, len);
    }
    uint32_t bytes = (uint32_t)(out->at - count_at - 4);
    memcpy(count_at, &bytes, 4);
    return 0;
}

static int op_fsync(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = get_fid(p9, in);
    bool data_only = in->at < in->end && p9_get(in, 4) != 0;
    if (!fid || fid->io_fd < 0) {
        return -EBADF;
    }
    return (data_only ? fdatasync(fid->io_fd) : fsync(fid->io_fd)) < 0 ? -errno : 0;
}

static int op_statfs(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct statfs fs;
    struct p9_fid *fid = get_fid(p9, in);
    if (!fid) {
        return -EBADF;
    }
    if (fstatfs(fid->path_fd, &fs) < 0) {
        return -errno;
    }
    p9_put(out, (uint32_t)fs.f_type, 4);
    p9_put(out, (uint32_t)fs.f_bsize, 4);
    p9_put(out, fs.f_blocks, 8);
    p9_put(out, fs.f_bfree, 8);
    p9_put(out, fs.f_bavail, 8);
    p9_put(out, fs.f_files, 8);
    p9_put(out, fs.f_ffree, 8);
    p9_put(out, 0, 8); /* the host's file system ID says nothing to a guest */
    p9_put(out, P9_NAME_MAX, 4);
    return 0;
}

/* The qid of a new entry. */
static int put_new(struct p9_writer *out, int dir_fd, const char *name)
{
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        return -errno;
    }
    p9_put_qid(out, &st);
    return 0;
}

static int op_mkdir(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name name;
    struct p9_fid *fid = get_fid(p9, in);
    p9_get_name(in, &name);
    uint32_t mode = (uint32_t)p9_get(in, 4);
    p9_get(in, 4);
    if (in->bad || !fid) {
        return in->bad ? -EINVAL : -EBADF;
    }
    return mkdirat(fid->path_fd, name.text, (mode_t)(mode & MODE_MASK)) < 0
               ? -errno
               : put_new(out, fid->path_fd, name.text);
}

static int op_symlink(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name name;
    char target[PATH_MAX];
    struct p9_fid *fid = get_fid(p9, in);
    p9_get_name(in, &name);
    p9_get_text(in, target, sizeof(target));
    p9_get(in, 4);
    if (in->bad || !fid) {
        return in->bad ? -EINVAL : -EBADF;
    }
    return symlinkat(target, fid->path_fd, name.text) < 0 ? -errno : put_new(out, fid->path_fd, name.text);
}

/* Pipes, sockets and files; devices would be the host's. */
static int op_mknod(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name name;
    struct p9_fid *fid = get_fid(p9, in);
    p9_get_name(in, &name);
    uint32_t mode = (uint32_t)p9_get(in, 4);
    p9_get(in, 4);
    p9_get(in, 4);
    p9_get(in, 4);
    if (in->bad || !fid) {
        return in->bad ? -EINVAL : -EBADF;
    }
    if (S_ISCHR(mode) || S_ISBLK(mode)) {
        return -EPERM;
    }
    return mknodat(fid->path_fd, name.text, (mode_t)(mode & (S_IFMT | MODE_MASK)), 0) < 0
               ? -errno
               : put_new(out, fid->path_fd, name.text);
}

static int op_readlink(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    char target[PATH_MAX];
    struct p9_fid *fid = get_fid(p9, in);
    if (!fid) {
        return -EBADF;
    }
    ssize_t n = readlinkat(fid->path_fd, "", target, sizeof(target));
    if (n < 0) {
        return -errno;
    }
    p9_put_text(out, target, (size_t)n);
    return 0;
}

static int op_link(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name name;
    char fd_name[16];
    struct p9_fid *dir = get_fid(p9, in), *fid = get_fid(p9, in);
    p9_get_name(in, &name);
    if (in->bad || !dir || !fid) {
        return in->bad ? -EINVAL : -EBADF;
    }
    p9_fd_name(fid->path_fd, fd_name);
    return linkat(p9->proc_fd, fd_name, dir->path_fd, name.text, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

static int op_renameat(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name from, to;
    struct p9_fid *from_dir = get_fid(p9, in);
    p9_get_name(in, &from);
    struct p9_fid *to_dir = get_fid(p9, in);
    p9_get_name(in, &to);
    if (in->bad || !from_dir || !to_dir) {
        return in->bad ? -EINVAL : -EBADF;
    }
    return renameat(from_dir->path_fd, from.text, to_dir->path_fd, to.text) < 0 ? -errno : 0;
}

static int op_unlinkat(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_name name;
    struct p9_fid *fid = get_fid(p9, in);
    p9_get_name(in, &name);
    uint32_t flags = (uint32_t)p9_get(in, 4);
    if (in->bad || !fid) {
        return in->bad ? -EINVAL : -EBADF;
    }
    return unlinkat(fid->path_fd, name.text, flags & AT_REMOVEDIR ? AT_REMOVEDIR : 0) < 0 ? -errno : 0;
}

/* Locks are among the guest's processes only, whose kernel keeps them too: granted. */
static int op_lock(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    if (!get_fid(p9, in)) {
        return -EBADF;
    }
    p9_put(out, LOCK_GRANTED, 1);
    return 0;
}

static int op_getlock(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    char client[256];
    struct p9_fid *fid = get_fid(p9, in);
    p9_get(in, 1);
    uint64_t start = p9_get(in, 8), length = p9_get(in, 8);
    uint32_t process = (uint32_t)p9_get(in, 4);
    p9_get_text(in, client, sizeof(client));
    if (in->bad || !fid) {
        return -EBADF;
    }
    p9_put(out, LOCK_TYPE_UNLOCK, 1);
    p9_put(out, start, 8);
    p9_put(out, length, 8);
    p9_put(out, process, 4);
    p9_put_text(out, client, strlen(client));
    return 0;
}

/* Requests are answered in order and at once, so there is none left to give up. */
static int op_flush(struct p9 *p9, struct p9_reader *in, struct p9_writer *out)
{
    return 0;
}

const struct p9_request p9_requests[] = {
    {8, false, op_statfs},    {12, false, op_lopen},    {14, true, op_lcreate},  {16, true, op_symlink},
    {18, true, op_mknod},     {22, false, op_readlink}, {24, false, op_getattr}, {26, true, op_setattr},
    {40, false, op_readdir},  {50, false, op_fsync},    {52, false, op_lock},    {54, false, op_getlock},
    {70, true, op_link},      {72, true, op_mkdir},     {74, true, op_renameat}, {76, true, op_unlinkat},
    {100, false, op_version}, {104, false, op_attach},  {108, false, op_flush},  {110, false, op_walk},
    {116, false, op_read},    {118, true, op_write},    {120, false, op_clunk},
};
const unsigned p9_request_count = ARRAY_SIZE(p9_requests);
