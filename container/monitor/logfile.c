#include "container/monitor/logfile.h"

#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

static int open_current(struct logfile *log)
{
    struct stat st;
    log->fd = openat(log->dir_fd, "log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    log->size_bytes = log->fd >= 0 && fstat(log->fd, &st) == 0 ? (uint64_t)st.st_size : 0;
    return log->fd < 0 ? -errno : 0;
}

int logfile_open(struct logfile *log, int dir_fd, uint64_t limit_bytes, unsigned files, struct err *err)
{
    *log = (struct logfile){.dir_fd = dir_fd, .fd = -1, .limit_bytes = limit_bytes, .files = files};
    int rc = limit_bytes ? open_current(log) : 0;
    return rc < 0 ? err_sys(err, rc, "cannot open the container's log") : 0;
}

static void rotate(struct logfile *log)
{
    char from[24] = "log";
    char to[24];
    close(log->fd);
    for (unsigned n = log->files; n > 0; n--) {
        snprintf(to, sizeof(to), "log.%u", n);
        snprintf(from, sizeof(from), n > 1 ? "log.%u" : "log", n - 1);
        (void)renameat(log->dir_fd, from, log->dir_fd, to); /* there may be none yet */
    }
    if (log->files == 0) {
        (void)unlinkat(log->dir_fd, "log", 0);
    }
    (void)open_current(log); /* failing, what comes is counted as lost */
}

static void write_record(struct logfile *log, int stream, int64_t time_ns, bool complete, const char *bytes,
                         size_t size)
{
    char head[64];
    struct tm tm;
    time_t seconds = (time_t)(time_ns / 1000000000);
    gmtime_r(&seconds, &tm);
    size_t n = strftime(head, sizeof(head), "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(head + n, sizeof(head) - n, ".%09ldZ %s %c ", (long)(time_ns % 1000000000),
                          stream ? "stderr" : "stdout", complete ? 'F' : 'P');
    struct iovec iov[3] = {{head, n}, {(void *)(uintptr_t)bytes, size}, {"\n", 1}};
    size_t total = n + size + 1;
    if (log->fd >= 0 && log->size_bytes + total > log->limit_bytes && log->size_bytes > 0) {
        rotate(log);
    }
    if (log->fd < 0) {
        (void)open_current(log);
    }
    ssize_t done = log->fd < 0 ? -1 : writev(log->fd, iov, 3);
    if (done != (ssize_t)total) {
        log->lost_bytes += size;
        if (done > 0) { /* half a record would make the next one unreadable */
            (void)!ftruncate(log->fd, (off_t)log->size_bytes);
        }
        return;
    }
    log->size_bytes += total;
    log->partial[stream] = !complete;
}

void logfile_write(struct logfile *log, int stream, int64_t time_ns, const char *bytes, size_t size)
{
    while (log->limit_bytes && size > 0) {
        size_t room = MIN(size, (size_t)LOGFILE_RECORD_MAX);
        const char *end = memchr(bytes, '\n', room);
        size_t n = end ? (size_t)(end - bytes) : room;
        write_record(log, stream, time_ns, end != NULL, bytes, n);
        n += end ? 1 : 0;
        bytes += n;
        size -= n;
    }
}

void logfile_end(struct logfile *log, int stream, int64_t time_ns)
{
    if (log->limit_bytes && log->partial[stream]) {
        write_record(log, stream, time_ns, true, "", 0);
    }
}

void logfile_close(struct logfile *log)
{
    if (log->fd >= 0) {
        (void)fdatasync(log->fd);
        close(log->fd);
        log->fd = -1;
    }
}
