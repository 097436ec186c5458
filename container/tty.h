/* The container's terminal: config.md "process.terminal". */
#ifndef FONDA_CONTAINER_TTY_H
#define FONDA_CONTAINER_TTY_H

#include "base/err.h"
#include "container/config.h"

/* A pair from the devpts that is mounted at /dev/pts below root_fd; anything else at that path is refused. */
int tty_open(int root_fd, int *ret_master, int *ret_slave, struct err *err);

int tty_bind_console(int root_fd, int slave, struct err *err); /* makes it /dev/console */

/* Sets size and owner, sends the master to the socket, and takes the slave as stdio and controlling terminal.
 */
int tty_take(int master, int slave, int socket_fd, const struct oci_process *process, struct err *err);

/* The runtime's side without --console-socket: receives the master, and later copies between it and the
 * runtime's own terminal until pid (a child) ends. Returns its wait status. */
int tty_receive(int socket_fd, struct err *err);
int tty_proxy(int master, pid_t pid);

#endif
