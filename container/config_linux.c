/* The linux section: config-linux.md, without resources and seccomp, which cg_limits.c and seccomp.c read. */
#include "base/util.h"
#include "container/config.h"
#include "container/json.h"

#include <ctype.h>
#include <errno.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/personality.h>

const char *const ns_type_names[NS_KINDS] = {"user", "pid", "network", "mount",
                                             "ipc",  "uts", "cgroup",  "time"};

int config_parse_idmaps(json_t *object, const char *where, const char *key, struct arena *arena,
                        struct oci_idmaps *ret, struct err *err)
{
    json_t *list = NULL;
    int rc = json_arr(object, where, key, &list, err);
    size_t count = json_array_size(list);
    if (rc < 0) {
        return rc;
    }
    if (count > CONFIG_IDMAPS_MAX) {
        return err_set(err, -EINVAL, "%s.%s has more than %d members", where, key, CONFIG_IDMAPS_MAX);
    }
    ret->v = arena_array(arena, count, sizeof(*ret->v));
    for (size_t i = 0; i < count; i++) {
        json_t *item = json_array_get(list, i);
        struct oci_idmap *map = &ret->v[i];
        if ((rc = json_u32(item, key, "containerID", &map->inside, err)) < 0 ||
            (rc = json_u32(item, key, "hostID", &map->outside, err)) < 0 ||
            (rc = json_u32(item, key, "size", &map->size, err)) < 0) {
            return rc;
        }
        if (map->size == 0) {
            return err_set(err, -EINVAL, "%s.%s[%zu].size must be greater than zero", where, key, i);
        }
    }
    ret->count = count;
    return 0;
}

static int parse_namespaces(struct oci_config *config, json_t *linux_, struct err *err)
{
    json_t *list = NULL;
    int rc = json_arr(linux_, "linux", "namespaces", &list, err);
    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
        json_t *item = json_array_get(list, i);
        const char *type = NULL;
        const char *path = NULL;
        if ((rc = json_str(item, "linux.namespaces[]", "type", &type, err)) < 0 ||
            (rc = json_str(item, "linux.namespaces[]", "path", &path, err)) < 0) {
            return rc;
        }
        int kind = 0;
        while (kind < NS_KINDS && (!type || strcmp(type, ns_type_names[kind]) != 0)) {
            kind++;
        }
        if (kind == NS_KINDS) {
            return err_set(err, -EINVAL, "linux.namespaces: unknown type '%s'", type ? type : "");
        }
        struct oci_namespace *ns = &config->lnx.ns[kind];
        if (ns->wanted) {
            return err_set(err, -EINVAL, "linux.namespaces: '%s' is listed twice", type);
        }
        if (path && *path && path[0] != '/') {
            return err_set(err, -EINVAL, "linux.namespaces: path '%s' is not absolute", path);
        }
        ns->wanted = true;
        ns->path = path && *path ? path : NULL;
    }
    return rc;
}

static int parse_devices(struct oci_config *config, json_t *linux_, struct err *err)
{
    json_t *list = NULL;
    int rc = json_arr(linux_, "linux", "devices", &list, err);
    size_t count = json_array_size(list);
    if (rc < 0) {
        return rc;
    }
    if (count > CONFIG_DEVICES_MAX) {
        return err_set(err, -EINVAL, "linux.devices has more than %d members", CONFIG_DEVICES_MAX);
    }
    config->lnx.devices = arena_array(&config->arena, count, sizeof(struct oci_device));
    for (size_t i = 0; i < count; i++) {
        struct oci_device *dev = &config->lnx.devices[i];
        json_t *item = json_array_get(list, i);
        const char *type = NULL;
        const char *where = "linux.devices[]";
        dev->mode = 0666;
        if ((rc = json_str(item, where, "type", &type, err)) < 0 ||
            (rc = json_str(item, where, "path", &dev->path, err)) < 0 ||
            (rc = json_u32(item, where, "major", &dev->major, err)) < 0 ||
            (rc = json_u32(item, where, "minor", &dev->minor, err)) < 0 ||
            (rc = json_u32(item, where, "fileMode", &dev->mode, err)) < 0 ||
            (rc = json_u32(item, where, "uid", &dev->uid, err)) < 0 ||
            (rc = json_u32(item, where, "gid", &dev->gid, err)) < 0) {
            return rc;
        }
        if (!dev->path || dev->path[0] != '/') {
            return err_set(err, -EINVAL, "linux.devices[%zu].path must be an absolute path", i);
        }
        if (!type || strlen(type) != 1 || !strchr("cbup", type[0])) {
            return err_set(err, -EINVAL, "device '%s': type must be c, b, u or p", dev->path);
        }
        dev->type = type[0] == 'u' ? 'c' : type[0];
        if (dev->type != 'p' && !json_is_integer(json_object_get(item, "major"))) {
            return err_set(err, -EINVAL, "device '%s': major and minor are missing", dev->path);
        }
        dev->mode &= 07777;
        config->lnx.device_count++;
    }
    return 0;
}

static int parse_propagation(struct oci_config *config, const char *name, struct err *err)
{
    static const struct {
        const char *name;
        unsigned long flags;
    } modes[] = {
        {"shared", MS_SHARED},         {"rshared", MS_SHARED | MS_REC},
        {"slave", MS_SLAVE},           {"rslave", MS_SLAVE | MS_REC},
        {"private", MS_PRIVATE},       {"rprivate", MS_PRIVATE | MS_REC},
        {"unbindable", MS_UNBINDABLE}, {"runbindable", MS_UNBINDABLE | MS_REC},
    };
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        if (strcmp(name, modes[i].name) == 0) {
            config->lnx.rootfs_propagation = modes[i].flags;
            return 0;
        }
    }
    return err_set(err, -EINVAL, "linux.rootfsPropagation: unknown value '%s'", name);
}

static int parse_personality(struct oci_config *config, json_t *linux_, struct err *err)
{
    json_t *o = NULL;
    int rc = json_obj(linux_, "linux", "personality", &o, err);
    if (rc < 0 || !o) {
        return rc;
    }
    const char *domain = NULL;
    rc = json_str(o, "linux.personality", "domain", &domain, err);
    if (rc < 0) {
        return rc;
    }
    if (json_array_size(json_object_get(o, "flags")) > 0) {
        return err_set(err, -EINVAL, "linux.personality.flags: no flag is defined");
    }
    if (domain && strcmp(domain, "LINUX") == 0) {
        config->lnx.personality = PER_LINUX;
    } else if (domain && strcmp(domain, "LINUX32") == 0) {
        config->lnx.personality = PER_LINUX32;
    } else {
        return err_set(err, -EINVAL, "linux.personality.domain must be LINUX or LINUX32");
    }
    config->lnx.has_personality = true;
    return 0;
}

static int parse_time_offsets(struct oci_config *config, json_t *linux_, struct err *err)
{
    static const char *const clocks[] = {"monotonic", "boottime"};
    json_t *o = NULL;
    int rc = json_obj(linux_, "linux", "timeOffsets", &o, err);
    for (size_t i = 0; rc == 0 && o && i < ARRAY_SIZE(clocks); i++) {
        json_t *clock = NULL;
        if ((rc = json_obj(o, "linux.timeOffsets", clocks[i], &clock, err)) < 0 || !clock) {
            continue;
        }
        if ((rc = json_i64(clock, clocks[i], "secs", &config->lnx.time_offset_s[i], err)) < 0 ||
            (rc = json_u32(clock, clocks[i], "nanosecs", &config->lnx.time_offset_ns[i], err)) < 0) {
            return rc;
        }
        if (config->lnx.time_offset_ns[i] > 999999999) {
            return err_set(err, -EINVAL, "linux.timeOffsets.%s.nanosecs must be below 1000000000", clocks[i]);
        }
        config->lnx.has_time_offset[i] = true;
    }
    if (rc == 0 && (config->lnx.has_time_offset[0] || config->lnx.has_time_offset[1]) &&
        (!config->lnx.ns[NS_TIME].wanted || config->lnx.ns[NS_TIME].path)) {
        return err_set(err, -EINVAL, "linux.timeOffsets needs a new time namespace");
    }
    return rc;
}

/* "0-3,7" into a bit set; nodes above 63 are refused. */
static int parse_nodes(const char *text, uint64_t *ret, struct err *err)
{
    uint64_t set = 0;
    for (const char *p = text; *p;) {
        char *end;
        unsigned long first = strtoul(p, &end, 10);
        unsigned long last = first;
        bool ok = end != p && isdigit((unsigned char)*p);
        if (ok && *end == '-') {
            p = end + 1;
            last = strtoul(p, &end, 10);
            ok = end != p && isdigit((unsigned char)*p);
        }
        if (!ok || last < first || last > 63 || (*end && *end != ',')) {
            return err_set(err, -EINVAL, "linux.memoryPolicy.nodes: '%s' is not a list of nodes from 0 to 63",
                           text);
        }
        for (unsigned long n = first; n <= last; n++) {
            set |= BIT64(n);
        }
        p = *end ? end + 1 : end;
    }
    *ret = set;
    return 0;
}

static int parse_memory_policy(struct oci_config *config, json_t *linux_, struct err *err)
{
    static const struct {
        const char *name;
        int value;
    } modes[] =
        {
            {"MPOL_DEFAULT", MPOL_DEFAULT},  {"MPOL_PREFERRED", MPOL_PREFERRED},
            {"MPOL_BIND", MPOL_BIND},        {"MPOL_INTERLEAVE", MPOL_INTERLEAVE},
            {"MPOL_LOCAL", MPOL_LOCAL},      {"MPOL_PREFERRED_MANY", 5},
            {"MPOL_WEIGHTED_INTERLEAVE", 6},
        },
      flags[] = {
          {"MPOL_F_NUMA_BALANCING", 1 << 13},
          {"MPOL_F_RELATIVE_NODES", MPOL_F_RELATIVE_NODES},
          {"MPOL_F_STATIC_NODES", MPOL_F_STATIC_NODES},
      };
    json_t *o = NULL;
    int rc = json_obj(linux_, "linux", "memoryPolicy", &o, err);
    if (rc < 0 || !o) {
        return rc;
    }
    const char *mode = NULL;
    const char *nodes = NULL;
    const char **names = NULL;
    if ((rc = json_str(o, "linux.memoryPolicy", "mode", &mode, err)) < 0 ||
        (rc = json_str(o, "linux.memoryPolicy", "nodes", &nodes, err)) < 0 ||
        (rc = json_strv(o, "linux.memoryPolicy", "flags", &config->arena, &names, NULL, err)) < 0) {
        return rc;
    }
    bool found = false;
    for (size_t i = 0; mode && i < ARRAY_SIZE(modes); i++) {
        if (strcmp(mode, modes[i].name) == 0) {
            config->lnx.memory_policy_mode = modes[i].value;
            found = true;
        }
    }
    if (!found) {
        return err_set(err, -EINVAL, "linux.memoryPolicy.mode: unknown value '%s'", mode ? mode : "");
    }
    for (size_t i = 0; names && names[i]; i++) {
        found = false;
        for (size_t k = 0; k < ARRAY_SIZE(flags); k++) {
            if (strcmp(names[i], flags[k].name) == 0) {
                config->lnx.memory_policy_mode |= flags[k].value;
                found = true;
            }
        }
        if (!found) {
            return err_set(err, -EINVAL, "linux.memoryPolicy.flags: unknown value '%s'", names[i]);
        }
    }
    config->lnx.has_memory_policy = true;
    return nodes ? parse_nodes(nodes, &config->lnx.memory_policy_nodes, err) : 0;
}

static int parse_netdevs(struct oci_config *config, json_t *linux_, struct err *err)
{
    json_t *o = NULL;
    int rc = json_obj(linux_, "linux", "netDevices", &o, err);
    size_t count = json_object_size(o);
    if (rc < 0 || !o) {
        return rc;
    }
    if (count > CONFIG_DEVICES_MAX) {
        return err_set(err, -EINVAL, "linux.netDevices has more than %d members", CONFIG_DEVICES_MAX);
    }
    if (count && !config->lnx.ns[NS_NETWORK].wanted) {
        return err_set(err, -EINVAL, "linux.netDevices needs a network namespace");
    }
    config->lnx.netdevs = arena_array(&config->arena, count, sizeof(struct oci_netdev));
    const char *key;
    json_t *value;
    json_object_foreach(o, key, value)
    {
        struct oci_netdev *dev = &config->lnx.netdevs[config->lnx.netdev_count++];
        dev->host_name = key;
        dev->name = key;
        if ((rc = json_str(value, "linux.netDevices", "name", &dev->name, err)) < 0) {
            return rc;
        }
        if (!*dev->name || strlen(dev->name) > 15 || strpbrk(dev->name, "/: \t\n") ||
            !strcmp(dev->name, ".") || !strcmp(dev->name, "..") || strchr(dev->name, '%') || !*key ||
            strlen(key) > 15) {
            return err_set(err, -EINVAL, "linux.netDevices: '%s' is not a name for a network device",
                           dev->name);
        }
    }
    return 0;
}

static int check_linux(const struct oci_config *config, struct err *err)
{
    const struct oci_linux *l = &config->lnx;
    if (l->uid_maps.count || l->gid_maps.count) {
        if (!l->ns[NS_USER].wanted) {
            return err_set(err, -EINVAL, "linux.uidMappings and gidMappings need a user namespace");
        }
        if (l->ns[NS_USER].path) {
            return err_set(err, -EINVAL,
                           "linux.uidMappings can't be given for a user namespace that is joined");
        }
    } else if (l->ns[NS_USER].wanted && !l->ns[NS_USER].path) {
        return err_set(err, -EINVAL, "a new user namespace needs linux.uidMappings and linux.gidMappings");
    }
    if ((config->hostname || config->domainname) && !l->ns[NS_UTS].wanted) {
        return err_set(err, -EINVAL, "hostname and domainname need a uts namespace of their own");
    }
    if (!l->ns[NS_MOUNT].wanted) {
        return err_set(err, -EINVAL, "a container needs a mount namespace (linux.namespaces)");
    }
    return 0;
}

int config_parse_linux(struct oci_config *config, struct err *err)
{
    json_t *o = NULL;
    json_t *rdt = NULL;
    const char *propagation = NULL;
    const char *where = "linux";
    struct oci_linux *l = &config->lnx;
    int rc = json_obj(config->json, "", "linux", &o, err);
    if (rc < 0) {
        return rc;
    }
    if ((rc = parse_namespaces(config, o, err)) < 0 ||
        (rc = config_parse_idmaps(o, where, "uidMappings", &config->arena, &l->uid_maps, err)) < 0 ||
        (rc = config_parse_idmaps(o, where, "gidMappings", &config->arena, &l->gid_maps, err)) < 0 ||
        (rc = check_linux(config, err)) < 0 || (rc = parse_devices(config, o, err)) < 0 ||
        (rc = parse_netdevs(config, o, err)) < 0 || (rc = parse_personality(config, o, err)) < 0 ||
        (rc = parse_time_offsets(config, o, err)) < 0 || (rc = parse_memory_policy(config, o, err)) < 0 ||
        (rc = json_str(o, where, "cgroupsPath", &l->cgroups_path, err)) < 0 ||
        (rc = json_str(o, where, "rootfsPropagation", &propagation, err)) < 0 ||
        (rc = json_str(o, where, "mountLabel", &l->mount_label, err)) < 0 ||
        (rc = json_strv(o, where, "maskedPaths", &config->arena, &l->masked_paths, NULL, err)) < 0 ||
        (rc = json_strv(o, where, "readonlyPaths", &config->arena, &l->readonly_paths, NULL, err)) < 0 ||
        (rc = json_obj(o, where, "resources", &l->resources, err)) < 0 ||
        (rc = json_obj(o, where, "seccomp", &l->seccomp, err)) < 0 ||
        (rc = json_obj(o, where, "sysctl", &l->sysctl, err)) < 0 ||
        (rc = json_obj(o, where, "intelRdt", &rdt, err)) < 0) {
        return rc;
    }
    l->has_rdt = rdt != NULL;
    if (l->cgroups_path && !*l->cgroups_path) {
        l->cgroups_path = NULL;
    }
    return propagation && *propagation ? parse_propagation(config, propagation, err) : 0;
}
