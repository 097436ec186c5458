/*
 * A whole operating system in a container (bundle.h, struct bundle_system): what its init needs beyond an
 * ordinary container, and files that stand in for parts of /proc and /sys which would show the host.
 */
#include "container/bundle.h"

#include "base/util.h"
#include "container/json.h"
#include "container/meminfo.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* What init, its units, and administration inside need; all of it counts in the container's user namespace
 * alone. */
const uint64_t bundle_system_caps =
    BIT64(CAP_AUDIT_CONTROL) | BIT64(CAP_AUDIT_WRITE) | BIT64(CAP_DAC_READ_SEARCH) | BIT64(CAP_IPC_OWNER) |
    BIT64(CAP_LEASE) | BIT64(CAP_MKNOD) | BIT64(CAP_NET_ADMIN) | BIT64(CAP_NET_BROADCAST) |
    BIT64(CAP_NET_RAW) | BIT64(CAP_SYS_ADMIN) | BIT64(CAP_SYS_BOOT) | BIT64(CAP_SYS_NICE) |
    BIT64(CAP_SYS_PTRACE) | BIT64(CAP_SYS_RESOURCE) | BIT64(CAP_SYS_TTY_CONFIG);

/* ---- CPUs ---- */

const char *bundle_system_cpus(const char *cpus, const char *id, char *buf, size_t size)
{
    cpu_set_t mine;
    double wanted = cpus ? strtod(cpus, NULL) : 0;
    int count = wanted > 0 ? (int)MIN(ceil(wanted), (double)CPU_SETSIZE) : 0;
    if (count == 0 || sched_getaffinity(0, sizeof(mine), &mine) < 0 || count >= CPU_COUNT(&mine)) {
        return NULL;
    }
    /* From a place that the name chooses, so that not all containers share the first ones. */
    unsigned start = 0;
    for (const char *p = id; p && *p; p++) {
        start = start * 31 + (unsigned char)*p;
    }
    size_t used = 0;
    int skip = (int)(start % (unsigned)CPU_COUNT(&mine));
    buf[0] = '\0';
    for (int round = 0; round < 2 && count > 0; round++) {
        int at = 0;
        for (int cpu = 0; cpu < CPU_SETSIZE && count > 0; cpu++) {
            if (!CPU_ISSET(cpu, &mine)) {
                continue;
            }
            bool second = at++ < skip;
            if (second == (round == 1)) {
                used +=
                    (size_t)snprintf(buf + used, used < size ? size - used : 0, "%s%d", used ? "," : "", cpu);
                count--;
            }
        }
    }
    return used < size ? buf : NULL;
}

static bool list_has(const char *list, int cpu)
{
    for (const char *p = list; *p;) {
        char *end;
        if (strtol(p, &end, 10) == cpu) {
            return true;
        }
        p = end + (*end == ',');
    }
    return false;
}

/* The processors of the list, as the kernel describes and numbers them. */
static char *cpuinfo_of(const char *list)
{
    FILE *in = fopen("/proc/cpuinfo", "re");
    char *text = NULL, *line = NULL;
    size_t size = 0, room = 0;
    FILE *out = in ? open_memstream(&text, &size) : NULL;
    bool wanted = true;
    while (out && getline(&line, &room, in) >= 0) {
        int cpu;
        if (sscanf(line, "processor : %d", &cpu) == 1) {
            wanted = list_has(list, cpu);
        }
        if (wanted) {
            fputs(line, out);
        }
    }
    free(line);
    if (in) {
        fclose(in);
    }
    if (out) {
        fclose(out);
    }
    return text;
}

/* ---- files ---- */

static int write_text(const struct bundle_options *o, const char *name, const char *text, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", o->dir, name);
    auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    /* Read by users of the container, whatever the umask here. */
    int rc = fd < 0 || fchmod(fd, 0644) < 0 ? -errno : text ? write_all(fd, text, strlen(text)) : -ENOMEM;
    return rc < 0 ? err_sys(err, rc, "cannot write '%s'", path) : 0;
}

int bundle_system_files(const struct bundle_options *o, struct err *err)
{
    int rc = 0;
    if (o->memory) {
        char text[MEMINFO_MAX];
        int64_t limit = 0;
        rc = bundle_bytes("--memory", o->memory, &limit, err);
        struct meminfo m = {.limit = (uint64_t)limit};
        meminfo_format(&m, text);
        rc = rc < 0 ? rc : write_text(o, BUNDLE_MEMINFO, text, err);
    }
    if (rc == 0 && o->cpuset) {
        char online[1024];
        auto_free char *cpuinfo = cpuinfo_of(o->cpuset);
        snprintf(online, sizeof(online), "%s\n", o->cpuset);
        rc = write_text(o, "cpuinfo", cpuinfo, err);
        rc = rc < 0 ? rc : write_text(o, "online", online, err);
    }
    return rc;
}

/* ---- config.json ---- */

static bool host_has_cgroup2(void)
{
    auto_free char *text = NULL;
    size_t size;
    return file_read_all(AT_FDCWD, "/proc/self/mountinfo", &text, &size, NULL) == 0 &&
           strstr(text, " - cgroup2 ") != NULL;
}

static void add(json_t *mounts, const char *destination, const char *type, const char *source,
                json_t *options)
{
    json_array_append_new(mounts, json_pack("{s:s, s:s, s:s, s:o}", "destination", destination, "type", type,
                                            "source", source, "options", options));
}

static void cover(const struct bundle_options *o, json_t *mounts, const char *file, const char *destination)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", o->dir, file);
    add(mounts, destination, "bind", path,
        json_pack("[s, s, s, s, s, s]", "bind", "rprivate", "nosuid", "noexec", "nodev", "ro"));
}

void bundle_system_mounts(const struct bundle_options *o, json_t *mounts)
{
    /* init makes cgroups of its own below; v2 is what every systemd can use, also beside v1 hierarchies. */
    add(mounts, "/sys/fs/cgroup", host_has_cgroup2() ? "cgroup2" : "cgroup", "cgroup",
        json_pack("[s, s, s, s]", "nosuid", "noexec", "nodev", "relatime"));
    add(mounts, "/run", "tmpfs", "tmpfs", json_pack("[s, s, s]", "nosuid", "nodev", "mode=755"));
    add(mounts, "/run/lock", "tmpfs", "tmpfs",
        json_pack("[s, s, s, s, s]", "nosuid", "noexec", "nodev", "mode=1777", "size=5m"));
    if (o->memory) {
        cover(o, mounts, BUNDLE_MEMINFO, "/proc/meminfo");
    }
    if (o->cpuset) {
        cover(o, mounts, "cpuinfo", "/proc/cpuinfo");
        cover(o, mounts, "online", "/sys/devices/system/cpu/online");
    }
}

void bundle_system_linux(const struct bundle_options *o, json_t *lnx)
{
    json_t *namespaces = json_object_get(lnx, "namespaces");
    const struct bundle_system *s = o->system;
    if (s->map_count) {
        json_array_append_new(namespaces, json_pack("{s:s}", "type", "user"));
        static const char *const keys[] = {"uidMappings", "gidMappings"};
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
            json_object_set_new(lnx, keys[i],
                                json_pack("[{s:i, s:I, s:I}]", "containerID", 0, "hostID",
                                          (json_int_t)s->map_first, "size", (json_int_t)s->map_count));
        }
    }
    /* Its clocks begin with it: /proc/uptime and the boot time in /proc/stat are the container's. */
    struct timespec monotonic, boot;
    if (access("/proc/self/ns/time", F_OK) < 0 || clock_gettime(CLOCK_MONOTONIC, &monotonic) < 0 ||
        clock_gettime(CLOCK_BOOTTIME, &boot) < 0) {
        return;
    }
    json_array_append_new(namespaces, json_pack("{s:s}", "type", "time"));
    json_object_set_new(lnx, "timeOffsets",
                        json_pack("{s:{s:I}, s:{s:I}}", "monotonic", "secs", -(json_int_t)monotonic.tv_sec,
                                  "boottime", "secs", -(json_int_t)boot.tv_sec));
}
