/* spec: an example config.json. features: what this runtime supports (features.md of the specification). */
#include "base/log.h"
#include "base/util.h"
#include "container/caps.h"
#include "container/cmd.h"
#include "container/config.h"
#include "container/paths.h"
#include "container/seccomp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static const char spec_mounts[] =
    "[{\"destination\":\"/proc\",\"type\":\"proc\",\"source\":\"proc\"},"
    "{\"destination\":\"/dev\",\"type\":\"tmpfs\",\"source\":\"tmpfs\","
    "\"options\":[\"nosuid\",\"strictatime\",\"mode=755\",\"size=65536k\"]},"
    "{\"destination\":\"/dev/pts\",\"type\":\"devpts\",\"source\":\"devpts\","
    "\"options\":[\"nosuid\",\"noexec\",\"newinstance\",\"ptmxmode=0666\",\"mode=0620\"]},"
    "{\"destination\":\"/dev/shm\",\"type\":\"tmpfs\",\"source\":\"shm\","
    "\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"mode=1777\",\"size=65536k\"]},"
    "{\"destination\":\"/dev/mqueue\",\"type\":\"mqueue\",\"source\":\"mqueue\","
    "\"options\":[\"nosuid\",\"noexec\",\"nodev\"]},"
    "{\"destination\":\"/sys\",\"type\":\"sysfs\",\"source\":\"sysfs\","
    "\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"ro\"]},"
    "{\"destination\":\"/sys/fs/cgroup\",\"type\":\"cgroup\",\"source\":\"cgroup\","
    "\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"relatime\",\"ro\"]}]";

static json_t *strings(const char *const *v, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(list, json_string(v[i]));
    }
    return list;
}

#define STRINGS(...)                                                                                         \
    strings((const char *const[]){__VA_ARGS__}, ARRAY_SIZE(((const char *const[]){__VA_ARGS__})))

static json_t *example(bool rootless)
{
    json_t *caps = json_object();
    static const char *const sets[] = {"bounding", "effective", "permitted"};
    for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
        json_object_set_new(caps, sets[i], STRINGS("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"));
    }
    json_t *namespaces = json_array();
    for (int kind = 0; kind < NS_KINDS; kind++) {
        bool skip = kind == NS_TIME || (kind == NS_USER && !rootless) || (kind == NS_NETWORK && rootless);
        if (!skip) {
            json_array_append_new(namespaces, json_pack("{s:s}", "type", ns_type_names[kind]));
        }
    }
    json_t *mounts = json_loads(spec_mounts, 0, NULL);
    json_t *lnx = json_object();
    if (rootless) {
        json_object_set_new(
            lnx, "uidMappings",
            json_pack("[{s:i, s:i, s:i}]", "containerID", 0, "hostID", (int)geteuid(), "size", 1));
        json_object_set_new(
            lnx, "gidMappings",
            json_pack("[{s:i, s:i, s:i}]", "containerID", 0, "hostID", (int)getegid(), "size", 1));
        json_array_set_new(mounts, 5,
                           json_pack("{s:s, s:s, s:s, s:[s,s,s,s,s]}", "destination", "/sys", "type", "none",
                                     "source", "/sys", "options", "rbind", "nosuid", "noexec", "nodev",
                                     "ro"));
        json_array_remove(mounts, 6);
    } else {
        json_object_set_new(lnx, "resources",
                            json_pack("{s:[{s:b, s:s}]}", "devices", "allow", 0, "access", "rwm"));
    }
    json_object_set_new(lnx, "namespaces", namespaces);
    json_object_set_new(lnx, "maskedPaths",
                        STRINGS("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys",
                                "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                                "/proc/sched_debug", "/sys/firmware", "/proc/scsi", "/proc/interrupts",
                                "/sys/devices/virtual/powercap"));
    json_object_set_new(lnx, "readonlyPaths",
                        STRINGS("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"));
    json_t *process = json_pack("{s:b, s:{s:i, s:i}, s:[s], s:[s,s], s:s, s:o, s:[{s:s, s:i, s:i}], s:b}",
                                "terminal", 1, "user", "uid", 0, "gid", 0, "args", "sh", "env",
                                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                                "TERM=xterm", "cwd", "/", "capabilities", caps, "rlimits", "type",
                                "RLIMIT_NOFILE", "hard", 1024, "soft", 1024, "noNewPrivileges", 1);
    return json_pack("{s:s, s:o, s:{s:s, s:b}, s:s, s:o, s:o}", "ociVersion", OCI_VERSION, "process", process,
                     "root", "path", "rootfs", "readonly", 1, "hostname", "fonda", "mounts", mounts, "linux",
                     lnx);
}

int cmd_spec(const struct globals *g, int argc, char **argv, struct err *err)
{
    static const struct option longs[] = {
        {"rootless", no_argument, NULL, 'r'}, {"bundle", required_argument, NULL, 'b'}, {NULL, 0, NULL, 0}};
    bool rootless = false;
    const char *bundle = ".";
    optind = 0; /* from the start, options anywhere: getopt(3) */
    for (int opt; (opt = getopt_long(argc, argv, "b:", longs, NULL)) != -1;) {
        switch (opt) {
        case 'r': rootless = true; break;
        case 'b': bundle = optarg; break;
        default: return cmd_bad_option(argv, err);
        }
    }
    auto_close int dir = open(bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        return err_sys(err, -errno, "bundle '%s'", bundle);
    }
    auto_close int fd = openat(dir, "config.json", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        return errno == EEXIST
                   ? err_set(err, -EEXIST, "'%s/config.json' exists already; remove it first", bundle)
                   : err_sys(err, -errno, "cannot write '%s/config.json'", bundle);
    }
    json_t *config = example(rootless);
    auto_free char *text = json_dumps(config, JSON_INDENT(2));
    json_decref(config);
    int rc = text ? write_all(fd, text, strlen(text)) : -ENOMEM;
    return rc < 0 ? err_sys(err, rc, "cannot write '%s/config.json'", bundle) : 0;
}

static json_t *seccomp_features(void)
{
    size_t count;
    json_t *o = json_object();
    json_object_set_new(o, "enabled", json_true());
    const char *const *names = seccomp_action_names(&count);
    json_object_set_new(o, "actions", strings(names, count));
    names = seccomp_operator_names(&count);
    json_object_set_new(o, "operators", strings(names, count));
    names = seccomp_arch_names(&count);
    json_object_set_new(o, "archs", strings(names, count));
    names = seccomp_flag_names(&count);
    json_object_set_new(o, "knownFlags", strings(names, count));
    json_object_set_new(o, "supportedFlags", strings(names, count));
    return o;
}

int cmd_features(const struct globals *g, int argc, char **argv, struct err *err)
{
    size_t count;
    const char *const *options = config_mount_option_names(&count);
    json_t *lnx = json_object();
    json_object_set_new(lnx, "namespaces", strings(ns_type_names, NS_KINDS));
    json_object_set_new(lnx, "capabilities", strings(caps_names, CAPS_COUNT));
    json_object_set_new(
        lnx, "cgroup",
        json_pack("{s:b, s:b, s:b, s:b, s:b}", "v1", 1, "v2", 1, "systemd", 1, "systemdUser", 1, "rdma", 1));
    json_object_set_new(lnx, "seccomp", seccomp_features());
    json_object_set_new(lnx, "apparmor", json_pack("{s:b}", "enabled", 1));
    json_object_set_new(lnx, "selinux", json_pack("{s:b}", "enabled", 1));
    json_object_set_new(lnx, "intelRdt", json_pack("{s:b}", "enabled", 0));
    json_object_set_new(
        lnx, "memoryPolicy",
        json_pack("{s:o, s:o}", "modes",
                  STRINGS("MPOL_DEFAULT", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE",
                          "MPOL_PREFERRED", "MPOL_PREFERRED_MANY", "MPOL_LOCAL"),
                  "flags", STRINGS("MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES")));
    json_object_set_new(lnx, "mountExtensions", json_pack("{s:{s:b}}", "idmap", "enabled", 1));
    json_object_set_new(lnx, "netDevices", json_pack("{s:b}", "enabled", 1));
    json_t *o = json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "ociVersionMin", "1.0.0", "ociVersionMax",
                          OCI_VERSION, "hooks", strings(hook_names, HOOK_KINDS), "mountOptions",
                          strings(options, count), "linux", lnx, "annotations", json_object(),
                          "potentiallyUnsafeConfigAnnotations", json_array());
    cmd_print_json(o);
    return 0;
}
