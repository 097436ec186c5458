/* Namespaces: making, joining, and the id maps of user namespaces. */
#ifndef FONDA_CONTAINER_NS_H
#define FONDA_CONTAINER_NS_H

#include "base/err.h"
#include "container/config.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

extern const int ns_flags[NS_KINDS];         /* CLONE_NEW* */
extern const char *const ns_files[NS_KINDS]; /* in /proc/<pid>/ns */

/* Namespaces that clone3 makes. The cgroup and time ones are made later: the first belongs to the cgroup that
 * the process is in by then, and a clock's offsets can only be set before anybody enters
 * (time_namespaces(7)). */
uint64_t ns_clone_flags(const struct oci_linux *lnx);

/* Opens the paths of namespaces that are to be joined (-1 elsewhere), refusing files that are no such
 * namespace. A namespace that the caller is in already counts as nothing to do. */
int ns_open(const struct oci_linux *lnx, int ret_fds[NS_KINDS], struct err *err);
int ns_join(const int fds[NS_KINDS], bool with_user, bool with_pid, struct err *err);

/* clone3, or clone where that is missing; cgroup_fd -1: stay. -ENOSYS, -EBUSY...: as the kernel says. */
pid_t ns_clone(uint64_t flags, int cgroup_fd);

/* Writes the maps of pid's new user namespace, by itself or with newuidmap(1) and newgidmap(1). */
int ns_write_maps(pid_t pid, const struct oci_idmaps *uids, const struct oci_idmaps *gids, struct err *err);

/* A descriptor of a user namespace with these maps, for id-mapped mounts. */
int ns_user_fd(const struct oci_idmaps *uids, const struct oci_idmaps *gids, struct err *err);

int ns_time(const struct oci_linux *lnx, struct err *err); /* makes and enters a time namespace */
int ns_loopback_up(struct err *err);

bool ns_is_own_user(const char *path);
bool ns_in_initial_user(void); /* this process is in the machine's first user namespace */
bool ns_maps_have(const struct oci_idmaps *maps, uint32_t inside);

#endif
