/*
 * Control groups on v1, v2 and hybrid hosts.
 *
 * A container has one path, made below every hierarchy. Which hierarchy serves a controller is looked up: a
 * v1 hierarchy that has it, else v2. Life cycle (kill, freeze, "is anybody there") goes by the v2 files
 * wherever a cgroup2 is mounted, even with no controller, and else by v1 means. A limit that can't be applied
 * is an error.
 *
 * Files: cg.c (hierarchies, making, joining, removing), cg_life.c (kill, freeze, processes), cg_limits.c
 * (resources to files), cg_devices.c (device rules), cg_mount.c (mounts of type cgroup), cg_stats.c (events
 * --stats).
 */
#ifndef FONDA_CONTAINER_CG_H
#define FONDA_CONTAINER_CG_H

#include "base/err.h"
#include "container/arena.h"
#include "container/config.h"
#include "container/mnt.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CG_HIERARCHIES_MAX 24

struct cg_hierarchy {
    const char *mount;       /* e.g. /sys/fs/cgroup/memory */
    const char *root;        /* what of the hierarchy is mounted there, "/" mostly */
    const char *controllers; /* ",memory," or ",cpu,cpuacct,"; named ones ",name=systemd,"; v2: what it has */
    const char *own;         /* this process's path in it */
    bool v2;
    int enter_fd; /* for cg_enter(), -1: not open */
    int fd;       /* of the container's cgroup, -1: not there */
    bool created;
    size_t made_from; /* length of the topmost part of the path that this process made, 0: none */
};

struct cg {
    struct arena arena;
    struct cg_hierarchy h[CG_HIERARCHIES_MAX];
    size_t count;
    const char *path;         /* the container's, with a leading "/" */
    const char *parent;       /* what root makes them below; NULL: "/fonda-oci" */
    const char *slice, *unit; /* cg_systemd.h; NULL: systemd has no part in it */
    pid_t placeholder;        /* holds the scope until the container's process is in it; 0: none */
    bool scope_asked;         /* so that it may be there */
    bool may_skip;            /* without rights over cgroups, and nothing asks for them: none is made */
    bool skipped;
    bool
        devices_implicit; /* a user namespace can't make device nodes, so the device list may be unenforced */
};

/* Looks at the host. */
int cg_open(struct cg *cg, struct err *err);
void cg_close(struct cg *cg);

/* Chooses the path: cgroupsPath from the config (NULL: default), for container id. */
int cg_choose(struct cg *cg, const char *cgroups_path, const char *id, struct err *err);

/* Makes the cgroup in every hierarchy; what was made is known to cg_remove(). */
int cg_create(struct cg *cg, json_t *resources, struct err *err);
int cg_attach(struct cg *cg, struct err *err); /* opens those that exist, of an existing container */
int cg_apply(struct cg *cg, json_t *resources, bool update, struct err *err);

/* A descriptor for CLONE_INTO_CGROUP, -1: there is no v2. */
int cg_clone_fd(const struct cg *cg);

/*
 * Joining is done by the process itself, with descriptors that the runtime opened: a v1 `tasks` file takes
 * "0", the writer, without the lock over all forks of the host that a pid would cost (an RCU grace period, 5
 * to 15 ms).
 */
int cg_prepare_enter(struct cg *cg, struct err *err);             /* the runtime, before the clone */
int cg_enter(struct cg *cg, bool in_v2_already, struct err *err); /* the process */

int cg_remove(struct cg *cg, struct err *err); /* with all below; waits a little for the last process to go */

/* cg_life.c */
int cg_kill(struct cg *cg, struct err *err); /* SIGKILL to everybody, frozen or not, until nobody is left */
int cg_signal(struct cg *cg, int signal, struct err *err);
int cg_freeze(struct cg *cg, bool freeze, struct err *err); /* waits until it is so */
bool cg_frozen(const struct cg *cg);
int cg_pids(const struct cg *cg, pid_t **ret_pids, size_t *ret_count, struct err *err); /* malloc'ed */
bool cg_populated(const struct cg *cg);

/* cg_mount.c */
int cg_mount(struct cg *cg, const struct oci_mount *m, bool namespaced, struct mnt_target *t,
             struct err *err);

/* Gives the cgroups to the root user of a container with user namespace, so that it makes its own below. */
int cg_delegate(struct cg *cg, uid_t uid, gid_t gid, struct err *err);

/* cg_stats.c: as containerd and podman read `events --stats` */
json_t *cg_stats(const struct cg *cg);

/* Inside the cg_*.c files. */
struct cg_hierarchy *cg_find(struct cg *cg, const char *controller); /* NULL: the host hasn't got it */
void cg_directory(const struct cg *cg, const struct cg_hierarchy *h, char *text,
                  size_t room);                                    /* the container's */
struct cg_hierarchy *cg_v2(struct cg *cg);                         /* NULL: no cgroup2 is mounted */
int cg_read(int dirfd, const char *file, char *text, size_t room); /* length or a negative errno */
int cg_devices_v1(int dirfd, json_t *rules, bool update, struct err *err);
int cg_devices_v2(int dirfd, json_t *rules, struct err *err);

#endif
