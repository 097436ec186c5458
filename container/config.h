/*
 * A decoded config.json (OCI runtime specification 1.3.0, config.md and config-linux.md).
 *
 * config_parse() checks everything that can be checked without touching the system, so that creating a
 * container only fails for reasons of the host. Strings are borrowed from the JSON tree, which lives as long
 * as the config.
 *
 * Files: config.c (document, root, process), config_mount.c (mounts and their options), config_linux.c
 * (linux), hooks in config.c. Resource limits stay JSON: cg_limits.c reads them for create and update alike.
 */
#ifndef FONDA_CONTAINER_CONFIG_H
#define FONDA_CONTAINER_CONFIG_H

#include "base/err.h"
#include "container/arena.h"
#include "container/landlock.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define OCI_VERSION "1.3.0"

/* Limits on what a config can make the runtime do. */
#define CONFIG_MOUNTS_MAX  4096
#define CONFIG_DEVICES_MAX 4096
#define CONFIG_HOOKS_MAX   1024
#define CONFIG_IDMAPS_MAX  340 /* the kernel's own, user_namespaces(7) */
#define CONFIG_GROUPS_MAX  65536

struct oci_idmap {
    uint32_t inside;
    uint32_t outside;
    uint32_t size;
};

struct oci_idmaps {
    struct oci_idmap *v;
    size_t count;
};

enum oci_capset {
    CAPSET_BOUNDING,
    CAPSET_EFFECTIVE,
    CAPSET_INHERITABLE,
    CAPSET_PERMITTED,
    CAPSET_AMBIENT,
    CAPSET_COUNT
};

struct oci_rlimit {
    int resource;
    const char *name;
    uint64_t soft;
    uint64_t hard;
};

struct oci_scheduler {
    bool set;
    uint32_t policy;
    int32_t nice;
    uint32_t priority;
    uint64_t flags;
    uint64_t runtime_ns;
    uint64_t deadline_ns;
    uint64_t period_ns;
};

struct oci_process {
    bool terminal;
    bool no_new_privileges;
    bool has_capabilities;
    bool has_oom_score_adj;
    bool has_umask;
    bool has_ioprio;
    bool keep_groups; /* of whoever runs the runtime, by annotation */
    uint32_t console_width;
    uint32_t console_height;
    uint32_t uid;
    uint32_t gid;
    uint32_t umask;
    uint32_t *groups;
    size_t group_count;
    const char *cwd;
    const char **args; /* NULL-terminated */
    const char **env;  /* NULL-terminated */
    size_t arg_count;
    size_t env_count;
    uint64_t caps[CAPSET_COUNT]; /* bit n: capability n */
    struct oci_rlimit *rlimits;
    size_t rlimit_count;
    int64_t oom_score_adj;
    int ioprio; /* as ioprio_set(2) takes it */
    struct oci_scheduler scheduler;
    const char *apparmor_profile;
    const char *selinux_label;
    const char *cpu_affinity_initial;
    const char *cpu_affinity_final;
};

/* What one mount option asks for; config_mount.c has the table. */
enum mount_idmap { MOUNT_IDMAP_NONE, MOUNT_IDMAP_TOP, MOUNT_IDMAP_RECURSIVE };

struct oci_mount {
    const char *destination;
    const char *source; /* NULL: none */
    const char *type;   /* never NULL; "bind" for bind mounts */
    bool bind;
    bool recursive; /* rbind */
    bool remount;
    bool copy_up;      /* tmpcopyup */
    bool no_follow;    /* src-nofollow */
    bool explicit_rw;  /* option "rw" was written out */
    uint64_t attr_set; /* MOUNT_ATTR_* of the mount itself */
    uint64_t attr_clear;
    uint64_t rec_set; /* of the mount and all below it */
    uint64_t rec_clear;
    unsigned long
        sb_flags; /* MS_SYNCHRONOUS, MS_DIRSYNC, MS_MANDLOCK, MS_LAZYTIME, MS_SILENT, MS_I_VERSION */
    unsigned long propagation; /* MS_SHARED, ..., with MS_REC; 0: as it comes */
    const char *data;          /* what is left, comma separated; NULL: nothing */
    enum mount_idmap idmap;
    struct oci_idmaps uid_maps;
    struct oci_idmaps gid_maps;
};

struct oci_hook {
    const char *path;
    const char **args;  /* NULL: path alone */
    const char **env;   /* NULL: the runtime's own */
    uint32_t timeout_s; /* 0: none */
};

enum oci_hook_kind {
    HOOK_PRESTART,
    HOOK_CREATE_RUNTIME,
    HOOK_CREATE_CONTAINER,
    HOOK_START_CONTAINER,
    HOOK_POSTSTART,
    HOOK_POSTSTOP,
    HOOK_KINDS
};

struct oci_hooks {
    struct oci_hook *v;
    size_t count;
};

enum ns_kind { NS_USER, NS_PID, NS_NETWORK, NS_MOUNT, NS_IPC, NS_UTS, NS_CGROUP, NS_TIME, NS_KINDS };

struct oci_namespace {
    bool wanted;
    const char *path; /* NULL: a new one */
};

struct oci_device {
    char type; /* c, b or p */
    const char *path;
    uint32_t major;
    uint32_t minor;
    uint32_t mode; /* permission bits */
    uint32_t uid;
    uint32_t gid;
    bool
        is_default; /* one of config-linux.md "Default Devices": the host's is bound where mknod is refused */
};

struct oci_netdev {
    const char *host_name;
    const char *name; /* inside */
};

struct oci_linux {
    struct oci_namespace ns[NS_KINDS];
    struct oci_idmaps uid_maps;
    struct oci_idmaps gid_maps;
    struct oci_device *devices;
    size_t device_count;
    struct oci_netdev *netdevs;
    size_t netdev_count;
    const char *cgroups_path;         /* NULL: the runtime chooses */
    json_t *resources;                /* NULL: none */
    json_t *seccomp;                  /* NULL: none */
    json_t *sysctl;                   /* NULL: none */
    unsigned long rootfs_propagation; /* MS_* flags, 0: the default */
    const char **masked_paths;
    const char **readonly_paths;
    const char *mount_label;
    bool has_personality;
    unsigned long personality;
    bool has_time_offset[2]; /* monotonic, boottime */
    int64_t time_offset_s[2];
    uint32_t time_offset_ns[2];
    bool has_memory_policy;
    int memory_policy_mode; /* as set_mempolicy(2), with mode flags */
    uint64_t memory_policy_nodes;
    const char *rdt_clos; /* Intel RDT: refused with a clear error unless resctrl is there */
    bool has_rdt;
};

struct oci_config {
    struct arena arena;
    json_t *json;
    const char *version;
    const char *root_path;
    bool root_readonly;
    const char *hostname;
    const char *domainname;
    bool has_process;
    struct oci_process process;
    struct oci_mount *mounts;
    size_t mount_count;
    struct oci_hooks hooks[HOOK_KINDS];
    struct oci_linux lnx;
    json_t *annotations; /* object of strings, or NULL */
    struct landlock landlock;
};

/* Decodes text; name is what errors call it. On failure nothing is left in config. */
int config_parse(struct oci_config *config, const char *text, size_t size, const char *name, struct err *err);
int config_load(struct oci_config *config, int dirfd, const char *path, struct err *err);
void config_free(struct oci_config *config);

/* Decodes a process object alone (exec --process); the arena and the tree must outlive *ret. */
int config_parse_process(json_t *object, struct arena *arena, struct oci_process *ret, struct err *err);

const char *config_annotation(const struct oci_config *config, const char *key); /* NULL: not there */

/* Shared by the config_*.c files. */
int config_parse_mounts(struct oci_config *config, struct err *err);
int config_parse_linux(struct oci_config *config, struct err *err);
int config_parse_idmaps(json_t *object, const char *where, const char *key, struct arena *arena,
                        struct oci_idmaps *ret, struct err *err);
const char *const *config_mount_option_names(size_t *ret_count); /* for features */

extern const char *const hook_names[HOOK_KINDS];
extern const char *const ns_type_names[NS_KINDS]; /* as config.json spells them */

#endif
