/*
 * From what a person asks for (the options of `docker run`) and what the image says to an OCI bundle. Used by
 * core/; linked as bundle_lib. Nothing here starts anything.
 *
 * Files: bundle.c (config.json as a whole, files of the bundle), bundle_parse.c (volumes, devices, limits,
 * users), bundle_seccomp.c (the default profile), bundle_system.c (containers with an init of their own).
 *
 * Invariant: the root file system is the image's and hostile: what is read from it goes through paths.h.
 */
#ifndef FONDA_CONTAINER_BUNDLE_H
#define FONDA_CONTAINER_BUNDLE_H

#include "base/err.h"
#include "container/arena.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define BUNDLE_LIST_MAX 1024 /* members of each list below */

enum bundle_network { BUNDLE_NETWORK_NONE, BUNDLE_NETWORK_HOST, BUNDLE_NETWORK_USER };

/* A container that is a whole operating system: systemd or another init is its first process. */
struct bundle_system {
    uint32_t map_first,
        map_count; /* the host's ids behind its own from 0 on; 0, 0: the caller's user namespace */
};
#define BUNDLE_MEMINFO "meminfo" /* the file in the bundle that its /proc/meminfo is, with a memory limit */

/* Lists are NULL-terminated, or NULL for none. Strings are borrowed for the call. */
struct bundle_options {
    const char *dir;    /* the bundle's directory, which exists; absolute */
    const char *rootfs; /* absolute */
    json_t *image;      /* the member "config" of the image's configuration; NULL: no image */
    const char *id;     /* for the hostname where none is given */

    const char *const *command; /* NULL: the image's */
    const char *entrypoint;     /* NULL: the image's; "": none */
    const char *const *env;     /* "NAME=VALUE", or "NAME": as this process has it */
    const char *const *volumes; /* "SOURCE:TARGET[:ro]"; SOURCE: a path, or a name below volumes_dir */
    const char *volumes_dir;    /* NULL: names are refused */
    const char *const *tmpfs;   /* "TARGET[:OPTIONS]" */
    const char *const *devices; /* "SOURCE[:TARGET][:rwm]" */
    const char *const *cap_add; /* "NET_ADMIN", "ALL" */
    const char *const *cap_drop;
    const char *const *security; /* no-new-privileges, seccomp=unconfined, seccomp=FILE, apparmor=NAME,
                                    label=TEXT, unmask=ALL */
    const char *const *ulimits;  /* "nofile=SOFT[:HARD]" */
    const char *const *sysctls;  /* "net.ipv4.ip_forward=1" */
    const char *user;            /* "USER[:GROUP]", names or numbers; NULL: the image's */
    const char *workdir;         /* NULL: the image's */
    const char *hostname;        /* NULL: the first 12 characters of id */
    const char *memory;          /* "512m", "1.5G", or bytes; NULL: no limit. So are the others: */
    const char *memory_swap;     /* memory and swap together */
    const char *cpus;            /* "1.5" */
    const char *cpuset;          /* "0-2,4" */
    const char *shm_size;        /* default 64m */
    uint64_t pids_limit;         /* 0: none */
    const char *cgroups_path;    /* NULL: fonda-oci's choice */
    const char *init;            /* path of fonda-init on the host: runs as the first process; NULL: no */
    enum bundle_network network;
    bool terminal, read_only, privileged;
    bool rootless;                      /* in a user namespace with the caller's own ids (bundle_own_maps) */
    const struct bundle_system *system; /* NULL: an ordinary container */
    bool bind_devices; /* the caller is in such a namespace already: nodes are bound, not made */
};

/* The config.json; the caller's. NULL: *err says what was wrong with which option. */
json_t *bundle_config(const struct bundle_options *o, struct err *err);

/* Writes it, and the files that it mounts (hosts, hostname, resolv.conf), into o->dir. */
int bundle_write(const struct bundle_options *o, struct err *err);

/* For a container that is a system and may use so many CPUs ("1.5"): which ones, as cpuset(7) lists them, so
 * that what counts CPUs inside sees the limit. NULL: all. */
const char *bundle_system_cpus(const char *cpus, const char *id, char *buf, size_t size);

/* What an image wants of the monitor; strings are the arena's. */
struct bundle_monitoring {
    const char *stop_signal; /* NULL: not said */
    const char *health_cmd;  /* for /bin/sh -c; NULL: none */
    uint64_t health_interval_s, health_timeout_s, health_start_s, health_retries; /* 0: not said */
};
int bundle_monitoring(json_t *image, struct arena *arena, struct bundle_monitoring *ret, struct err *err);

/* --- between the bundle*.c files --- */

struct bundle_user {
    uint32_t uid, gid;
    uint32_t *groups; /* the arena's */
    size_t group_count;
    const char *home; /* NULL: not known */
};
int bundle_find_user(const char *rootfs, const char *text, struct arena *arena, struct bundle_user *ret,
                     struct err *err);
int bundle_bytes(const char *what, const char *text, int64_t *ret, struct err *err);
json_t *bundle_resources(const struct bundle_options *o, json_t *device_rules,
                         struct err *err); /* takes device_rules */
int bundle_volumes(const struct bundle_options *o, json_t *mounts, struct err *err);
int bundle_devices(const struct bundle_options *o, json_t *devices, json_t *rules, json_t *mounts,
                   struct err *err);
json_t *bundle_rlimits(const struct bundle_options *o, struct err *err);
json_t *bundle_seccomp(uint64_t caps); /* the default profile for a container with these capabilities */
extern const uint64_t bundle_system_caps;
int bundle_system_files(const struct bundle_options *o, struct err *err);
void bundle_system_mounts(const struct bundle_options *o, json_t *mounts);
void bundle_system_linux(const struct bundle_options *o, json_t *lnx);
int bundle_own_maps(json_t *linux_,
                    struct err *err); /* adds uidMappings and gidMappings of the calling user */

#endif
