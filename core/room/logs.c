/*
 * The log of an instance. A container's has a header on each line (docs/containers.md), "TIME STREAM F|P ",
 * and older files beside it; a machine's console is plain bytes. The end of an instance is seen by its lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "core/room/room.h"

#define LINE_BYTES    (16u << 10) /* headers and at most 4 KiB of text, which may be escaped by nothing */
#define OLD_FILES_MAX 100
#define POLL_NS       50000000

struct log {
    bool timestamps;
    int64_t skip; /* records to leave out: all but the last so many */
    char line[LINE_BYTES];
    size_t len;
};

static int put(int fd, const char *bytes, size_t size)
{
    while (size) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        bytes += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* One record, with its line's end. */
static int put_record(struct log *log, char *line, size_t len)
{
    char *stream = memchr(line, ' ', len);
    char *flag = stream ? memchr(stream + 1, ' ', (size_t)(line + len - stream - 1)) : NULL;
    if (!flag || line + len - flag < 4) {
        return 0; /* no record */
    }
    if (log->skip > 0) {
        log->skip--;
        return 0;
    }
    int fd = memcmp(stream + 1, "stderr", 6) == 0 ? STDERR_FILENO : STDOUT_FILENO;
    const char *text = flag + 3;
    size_t size = (size_t)(line + len - text) - (flag[1] == 'P');
    int rc = log->timestamps ? put(fd, line, (size_t)(stream - line + 1)) : 0;
    return rc < 0 ? rc : put(fd, text, size);
}

/* What is in the file from where it stands. */
static int drain(struct log *log, int fd, bool plain, int64_t *count)
{
    ssize_t n;
    while ((n = read(fd, log->line + log->len, sizeof(log->line) - log->len)) > 0) {
        log->len += (size_t)n;
        if (plain) {
            int rc = count ? 0 : put(STDOUT_FILENO, log->line, log->len);
            log->len = 0;
            if (rc < 0) {
                return rc;
            }
            continue;
        }
        char *from = log->line, *end;
        while ((end = memchr(from, '\n', (size_t)(log->line + log->len - from)))) {
            size_t len = (size_t)(end + 1 - from);
            int rc = count ? (++*count, 0) : put_record(log, from, len);
            if (rc < 0) {
                return rc;
            }
            from = end + 1;
        }
        log->len = (size_t)(log->line + log->len - from);
        memmove(log->line, from, log->len);
        log->len = log->len == sizeof(log->line) ? 0 : log->len;
    }
    return n < 0 ? -errno : 0;
}

/* Older files first; the last one stays open. With count, lines are counted and nothing is shown. */
static int all_files(struct log *log, const char *base, bool plain, int64_t *count, int *ret_fd)
{
    char path[PATH_MAX + 16];
    int rc = 0;
    for (int i = OLD_FILES_MAX; rc == 0 && i >= 0; i--) {
        snprintf(path, sizeof(path), i ? "%s.%d" : "%s", base, i);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        rc = fd < 0 ? 0 : drain(log, fd, plain, count);
        if (fd >= 0 && (i || count)) {
            close(fd);
        } else if (i == 0) {
            *ret_fd = fd;
        }
    }
    return rc;
}

static bool lives(const char *dir)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/lock", dir);
    auto_close int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0;
}

/* The file that has the name now, when it is another one than that which is open. */
static int follow_rotation(int fd, const char *base)
{
    struct stat open_one, named;
    if (fd >= 0 && (stat(base, &named) < 0 || fstat(fd, &open_one) < 0 || named.st_ino == open_one.st_ino)) {
        return -1;
    }
    return open(base, O_RDONLY | O_CLOEXEC);
}

int room_logs(const char *dir, const char *how_text, struct err *err)
{
    static struct log log;
    char base[PATH_MAX];
    json_t *how = json_loads(how_text, 0, NULL);
    snprintf(base, sizeof(base), "%s/monitor/log", dir);
    bool plain = access(base, F_OK) < 0;
    if (plain) {
        snprintf(base, sizeof(base), "%s/console.log", dir);
    }
    const json_t *tail = json_object_get(how, "tail");
    bool follow = json_is_true(json_object_get(how, "follow"));
    log.timestamps = json_is_true(json_object_get(how, "timestamps"));
    int fd = -1;
    if (json_is_integer(tail) && !plain) {
        int64_t count = 0;
        (void)all_files(&log, base, plain, &count, &fd);
        log.skip = count - json_integer_value(tail);
        log.len = 0;
    }
    json_decref(how);
    int rc = all_files(&log, base, plain, NULL, &fd);
    while (rc == 0 && follow) {
        bool more = lives(dir); /* asked before the last look */
        rc = fd < 0 ? 0 : drain(&log, fd, plain, NULL);
        int next = rc == 0 ? follow_rotation(fd, base) : -1;
        if (next >= 0) {
            if (fd >= 0) {
                close(fd);
            }
            fd = next;
            continue;
        }
        if (!more) {
            break;
        }
        struct timespec ts = {0, POLL_NS};
        nanosleep(&ts, NULL);
    }
    if (fd >= 0) {
        close(fd);
    }
    return rc < 0 && rc != -EPIPE ? err_sys(err, rc, "cannot read the log") : 0;
}
