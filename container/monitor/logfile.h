/*
 * The container's log: lines of the form
 *
 *     2026-01-31T12:00:00.123456789Z stdout F text\n
 *
 * (time in UTC; stdout or stderr; F: the line is complete, P: it goes on in the next record of the same
 * stream; the bytes as they came), which is also what Kubernetes' container runtime interface calls its log
 * format. A line longer than LOGFILE_RECORD_MAX is cut into P records.
 *
 * Bounded: `log` is renamed to `log.1`, that to `log.2` and so on before it grows beyond its limit, and the
 * oldest goes. What can't be written (a full disk) is counted and left out: the container never waits for its
 * log.
 */
#ifndef FONDA_CONTAINER_MONITOR_LOGFILE_H
#define FONDA_CONTAINER_MONITOR_LOGFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define LOGFILE_RECORD_MAX 4096u /* bytes of text in a record */

struct logfile {
    int dir_fd;
    int fd;               /* -1: nothing is kept */
    uint64_t size_bytes;  /* of `log` now */
    uint64_t limit_bytes; /* of one file */
    unsigned files;       /* kept besides the current one */
    uint64_t lost_bytes;  /* could not be written */
    bool partial[2];      /* the stream's last record was P */
};

/* Appends to DIR/log; limit_bytes 0: keeps nothing. */
int logfile_open(struct logfile *log, int dir_fd, uint64_t limit_bytes, unsigned files, struct err *err);
/* stream: 0 stdout, 1 stderr. time_ns: since 1970. */
void logfile_write(struct logfile *log, int stream, int64_t time_ns, const char *bytes, size_t size);
void logfile_end(struct logfile *log, int stream,
                 int64_t time_ns); /* of the stream: completes a partial line */
void logfile_close(struct logfile *log);

#endif
