/*
 * One container being created, as the runtime's process fills it in and its first process (a fork) finds it.
 *
 * Flow: spawn.c (runtime's side) and init.c (first process), which meet in sync.h. What init.c calls:
 * rootfs.c (mounts, pivot), rootfs_dev.c (devices, masked paths), tty.c (terminal), proc.c (the user's
 * process up to execve).
 */
#ifndef FONDA_CONTAINER_CONTAINER_H
#define FONDA_CONTAINER_CONTAINER_H

#include "base/err.h"
#include "container/config.h"
#include "container/ns.h"
#include "container/state.h"
#include "container/undo.h"

#include <stdbool.h>
#include <sys/types.h>

struct cg;
struct seccomp_program;

struct container {
    struct oci_config config;
    struct state state;
    struct undo undo;
    const char *rootfs; /* absolute */
    /* options */
    bool no_pivot;
    bool no_new_keyring;
    bool run; /* no start needed: the first process goes on to execve by itself */
    bool no_cgroups;
    bool systemd; /* the cgroup is a scope of systemd's */
    unsigned preserve_fds;
    const char *console_socket; /* path, or NULL */
    const char *ns_socket;      /* path that gets the user and network namespaces, or NULL */
    const char *pid_file;       /* path, or NULL */
    /* made on the way */
    bool new_user; /* a user namespace that isn't the runtime's */
    bool in_v2;    /* the clone put the first process into its v2 cgroup */
    pid_t pid;
    int ns_fds[NS_KINDS];
    int sync_fds[2];  /* runtime's, first process's */
    int start_fd;     /* run: the runtime's end, which sees execve or an error; create: -1 */
    int listen_fd;    /* first process: start.sock (create), or its end of the pair (run) */
    int console_fd;   /* socket that takes the terminal, -1: none */
    int ns_socket_fd; /* gets the namespaces, -1: nobody asks */
    int agent_fd;     /* seccomp agent's socket, -1: none */
    int *mount_fds;   /* per mount: a detached tree made by the runtime, or -1 */
    int root_tree_fd; /* the same for the root file system, or -1 */
    struct cg *cg;
    struct seccomp_program *seccomp; /* NULL: none */
};

/* spawn.c */
int container_create(struct container *c, struct err *err); /* to the point where it waits for start */
void container_done(struct container *c);

/* init.c: never returns. */
void container_init(struct container *c) __attribute__((noreturn));

/* rootfs.c, in the first process. root_fd: the root file system's mount. */
int rootfs_attach(struct container *c, int *ret_root_fd, struct err *err);
int rootfs_mounts(struct container *c, int root_fd, struct err *err);
int rootfs_pivot(struct container *c, int root_fd, struct err *err);
int rootfs_prepare_sources(struct container *c, struct err *err); /* in the runtime, before the clone */

/* rootfs_dev.c */
int rootfs_devices(struct container *c, int root_fd, struct err *err);
int rootfs_masked(struct container *c, int root_fd, struct err *err);
int rootfs_readonly(struct container *c, int root_fd, struct err *err);

/* copyup.c: copies what is in from_fd (a directory) into to_fd. */
int copy_up(int from_fd, int to_fd, struct err *err);

#endif
