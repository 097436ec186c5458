/*
 * fonda-guest: a runtime in the words of an OCI runtime whose "container" is a machine. fonda-monitor calls
 * it in place of fonda-oci, so that logs, restarts, health checks and attached clients are the same in both
 * rooms.
 *
 *     create --bundle DIR --pid-file FILE ID    starts the keeper, which starts fonda-vmm; waits until the
 *                                               machine's init has found the program
 *     start ID                                  lets the program begin
 *     exec, events --stats, ps, export, import  one connection to the init each
 *     pause, resume                             by fonda-vmm's control socket
 *     delete [--force] ID
 *
 * The keeper (keeper.c) is what the pid file names: its streams are the program's, signals to it are passed
 * on, and it ends with the program's status. When it is killed, fonda-vmm goes with it.
 *
 * ROOT/ID holds: lock (held by the keeper), pid, bundle (a path), v and v_1 (vsock), c (fonda-vmm's control
 * socket), console.log (the kernel's), vmm.log. BUNDLE holds config.json and machine.json
 * (core/room/machine.c writes it):
 *     {"vmm", "kernel", "initrd", "disk", "memory", "cpus", "engine"?, "network", "publish": [...]}
 *
 * Files: main.c (commands), create.c (create, delete), keeper.c, exec.c, copy.c, request.c (from config.json
 * to a request), relay.c (streams), link.c (connections, state), numbers.c (stats, ps).
 *
 * Invariant: what comes from the machine goes through guest/wire.h, relay.c and numbers.c, and nowhere else.
 */
#ifndef FONDA_GUEST_HOST_HOST_H
#define FONDA_GUEST_HOST_HOST_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>

#include "base/err.h"
#include "guest/wire.h"

#define ARGS_MAX 2048

struct options {
    const char *root, *log; /* of all commands */
    const char *bundle, *pid_file, *console_socket, *user, *cwd;
    const char *size; /* of a terminal at its start: "ROWSxCOLUMNS" */
    const char *env[ARGS_MAX + 1];
    unsigned env_count;
    bool tty, force, json_log;
    const char *id;
    char **rest; /* behind the id */
    int rest_count;
};

/* ---- link.c ---- */
/* The directory ROOT/ID, opened; -ENOENT says that there is no such machine. */
int link_open(const struct options *o, struct err *err);
/* The bundle's config.json or machine.json; NULL with *err. */
json_t *link_load(int dir, const char *file, struct err *err);
/* The keeper's pid; 0: it has ended. */
int link_keeper(int dir);
/* A connection to the machine's init. Errors: -ETIMEDOUT, -ECONNREFUSED... */
int link_connect(int dir, struct wire *wire, struct err *err);
/* A request that is answered by output alone, at most WIRE_REQUEST_MAX bytes. ret_reply may be NULL. */
int link_ask(int dir, const struct wire_texts *request, struct wire_texts *ret_reply, struct err *err);
/* A method of fonda-vmm's. ret_result may be NULL. */
int link_vmm(int dir, const char *method, json_t **ret_result, struct err *err);
/* The process that is the machine: who serves its control socket (unix(7), SO_PEERCRED), as "status" names
 * the one that watches over its jail. 0: it does not answer. */
pid_t link_vmm_pid(int dir);
/* Text of the machine's, as one line that a terminal can show. */
void link_clean(const uint8_t *data, size_t size, char *buf, size_t room);
/* The path of a file in ROOT/ID, short enough for a socket. */
void link_path(int dir, const char *name, char buf[static 64]);

/* ---- request.c ---- */
/* The first program, with what it wants around it, from config.json. */
int request_first(json_t *config, struct wire_texts *request, struct err *err);
/* --share of the folders of config.json: "SOURCE:TAG[:ro]", NULL at the end; free each, and the list. */
int request_shares(json_t *config, char ***ret_shares, struct err *err);
int request_exec(json_t *config, const struct options *o, struct wire_texts *request, struct err *err);

/* ---- relay.c ---- */
struct relay {
    struct wire *wire;
    int in, out, err; /* -1: none */
    int signal_fd;    /* signalfd, or -1 */
    int watch_fd;     /* readable: give up with -ECHILD; or -1 */
    int terminal;     /* whose size is told when SIGWINCH comes; -1: none */
    void (*on_signal)(void *opaque, int signal);
    void *opaque;
};
/* Until the program has ended: its status; 125 to 127 with *err when it did not run; negative: the machine is
 * gone. */
int relay_run(struct relay *relay, struct err *err);
/* A terminal for a program, whose master goes to whoever listens at `socket`. Returns our end, in raw mode.
 */
int relay_terminal(const char *socket, struct err *err);

/* ---- keeper.c ---- */
/* Never returns. report: gets a byte (a status) and a text on failure, and is closed when the program can
 * begin. */
_Noreturn void keeper_run(const struct options *o, int dir, int report);

/* ---- commands: status for the shell, or a negative errno with *err ---- */
int cmd_create(const struct options *o, struct err *err);
int cmd_delete(const struct options *o, struct err *err);
int cmd_exec(const struct options *o, struct err *err);
int cmd_copy(const struct options *o, bool out, struct err *err);
int cmd_events(const struct options *o, struct err *err);
int cmd_ps(const struct options *o, struct err *err);

/* ---- numbers.c, for the fuzzer and tests as well ---- */
/* What the machine says of itself as JSON; unknown words are dropped, numbers are checked. */
json_t *numbers_guest(const struct wire_texts *reply);
json_t *numbers_processes(const struct wire_texts *reply);

#endif
