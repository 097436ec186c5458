/*
 * --systemd-cgroup: the container's cgroup is a scope that systemd has made and delegated.
 *
 * systemd makes a scope around processes that exist, so a placeholder process goes first, and ends when the
 * container's own is in. Limits are written by cg_limits.c as ever; those that systemd knows are told to it
 * too, as it writes its own again when it reloads.
 */
#ifndef FONDA_CONTAINER_CG_SYSTEMD_H
#define FONDA_CONTAINER_CG_SYSTEMD_H

#include "container/cg.h"

/* cgroupsPath is "SLICE:PREFIX:NAME" then, each of which may be empty; sets cg->slice and cg->unit. */
int cg_systemd_choose(struct cg *cg, const char *cgroups_path, const char *id, struct err *err);
int cg_systemd_start(struct cg *cg, json_t *resources, struct err *err); /* sets cg->path */
void cg_systemd_let_go(struct cg *cg);                                   /* of the placeholder */
int cg_systemd_update(const char *unit, json_t *resources, struct err *err);
void cg_systemd_stop(const char *unit); /* what can't be done is logged: it may be gone already */

#endif
