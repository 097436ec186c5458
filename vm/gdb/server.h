/*
 * --gdb: a listening socket on the main loop, at most one client, and a machine as the session's target.
 *
 * Threads: main loop, but for gdb_server_notify.
 */
#ifndef FONDA_VM_GDB_SERVER_H
#define FONDA_VM_GDB_SERVER_H

#include <stdbool.h>
#include <uv.h>

#include "base/err.h"

struct gdb_server;
struct machine;
struct mem;

/* Listens. wait: the machine is held until a client says continue; call before machine_start then. A port of
 * 0 takes a free one; it is reported on standard error. Errors: those of the socket. */
int gdb_server_new(const char *where, bool wait, uv_loop_t *loop, struct machine *machine, struct mem *mem,
                   struct gdb_server **ret_server, struct err *err);
/* A vCPU has stopped for the debugger. Any thread. */
void gdb_server_notify(struct gdb_server *server);
/* The machine has ended: the client is told. */
void gdb_server_ended(struct gdb_server *server, int status);
/* Closes everything; the loop has to run once more before gdb_server_free. NULL is accepted by both. */
void gdb_server_close(struct gdb_server *server);
void gdb_server_free(struct gdb_server *server);

#endif
