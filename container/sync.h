/*
 * Messages between the runtime and the container's first process, over a SOCK_SEQPACKET pair. One side's
 * death is seen by the other as end of file, so neither can wait for ever.
 *
 *   runtime                                   first process
 *     maps written, or none                -->  SYNC_MAPPED    (only with a new user namespace)
 *     prestart and createRuntime hooks     <--  SYNC_HOOKS     (only if there are any)
 *       done                               -->  SYNC_HOOKS
 *     state and pid file written           <--  SYNC_READY
 *       its life is its own                -->  SYNC_GO
 *   SYNC_ERROR with a text goes to the runtime at any time.
 */
#ifndef FONDA_CONTAINER_SYNC_H
#define FONDA_CONTAINER_SYNC_H

#include "base/err.h"

enum sync_kind { SYNC_MAPPED = 1, SYNC_HOOKS, SYNC_READY, SYNC_GO, SYNC_ERROR, SYNC_END };

int sync_pair(int ret_fds[2], struct err *err); /* close-on-exec */
int sync_send(int fd, enum sync_kind kind);
void sync_send_error(int fd, const struct err *err);

/* The next message; SYNC_END when the other side is gone. SYNC_ERROR fills *err. */
enum sync_kind sync_recv(int fd, struct err *err);

/* Waits for one kind; another one, or the end, is an error. */
int sync_expect(int fd, enum sync_kind kind, struct err *err);

int fd_send(int socket_fd, int fd, const char *text); /* SCM_RIGHTS; 0 or a negative errno */

/* Connects to a unix socket path of any length. A descriptor or a negative errno. */
int unix_connect(const char *path);

#endif
