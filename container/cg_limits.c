/*
 * linux.resources to control files: config-linux.md "Control groups", v1 and v2.
 *
 * Each limit names its controller and its file in either version. A limit whose controller or file isn't
 * there is an error: nothing that was asked for is left out.
 */
#include "base/log.h"
#include "base/util.h"
#include "container/cg.h"
#include "container/fault.h"
#include "container/json.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct apply {
    struct cg *cg;
    bool update;
    struct err *err;
};

/* Writes text for limit (its name in the config). file NULL: this version of cgroups has no such limit. */
static int put(struct apply *a, const char *limit, const char *controller, const char *v1, const char *v2,
               const char *text)
{
    struct cg_hierarchy *h = cg_find(a->cg, controller);
    if (!h) {
        return err_set(a->err, -EOPNOTSUPP,
                       "linux.resources.%s can't be applied: this host has no '%s' cgroup controller", limit,
                       controller);
    }
    const char *file = h->v2 ? v2 : v1;
    if (!file) {
        return err_set(a->err, -EOPNOTSUPP,
                       "linux.resources.%s can't be applied: cgroup %s has no such limit", limit,
                       h->v2 ? "v2" : "v1");
    }
    if (h->fd < 0) {
        return err_set(a->err, -EACCES,
                       "linux.resources.%s can't be applied: this user may not make cgroups below '%s' "
                       "(it needs a delegated cgroup, or leave the limit out)",
                       limit, h->mount);
    }
    int rc = write_file_at(h->fd, file, text);
    if (rc == -ENOENT && h->v2) {
        return err_set(a->err, -EOPNOTSUPP,
                       "linux.resources.%s can't be applied: '%s' is missing (is controller '%s' enabled for "
                       "this cgroup?)",
                       limit, file, controller);
    }
    return rc < 0 ? err_sys(a->err, rc, "linux.resources.%s: cannot write '%s' to %s", limit, text, file) : 0;
}

static int put_number(struct apply *a, const char *limit, const char *controller, const char *v1,
                      const char *v2, int64_t value, bool minus_is_max)
{
    char text[32];
    struct cg_hierarchy *h = cg_find(a->cg, controller);
    snprintf(text, sizeof(text), "%" PRId64, value);
    return put(a, limit, controller, v1, v2, minus_is_max && value < 0 && h && h->v2 ? "max" : text);
}

/* A member of resources.<section>; false: absent (or null), or 0 where 0 means "not set". */
static bool number(json_t *section, const char *key, int64_t *ret)
{
    json_t *value = json_object_get(section, key);
    if (!json_is_integer(value)) {
        return false;
    }
    *ret = json_integer_value(value);
    return true;
}

/* Numbers where numbers belong: checked once, so that the rest may look members up without further ado. */
static int check_numbers(json_t *section, const char *name, const char *const *keys, struct err *err)
{
    for (; *keys; keys++) {
        json_t *value = json_object_get(section, *keys);
        if (value && !json_is_null(value) && !json_is_integer(value)) {
            return err_set(err, -EINVAL, "linux.resources.%s.%s must be an integer", name, *keys);
        }
    }
    return 0;
}

static int apply_memory(struct apply *a, json_t *o)
{
    static const char *const keys[] = {"limit",     "swap",       "reservation", "kernel",
                                       "kernelTCP", "swappiness", NULL};
    int64_t limit = 0;
    int64_t swap = 0;
    int64_t value = 0;
    bool flag = false;
    int rc = check_numbers(o, "memory", keys, a->err);
    if (rc < 0) {
        return rc;
    }
    number(o, "limit", &limit);
    number(o, "swap", &swap);
    struct cg_hierarchy *h = cg_find(a->cg, "memory");
    if ((rc = json_flag(o, "linux.resources.memory", "checkBeforeUpdate", &flag, a->err)) < 0) {
        return rc;
    }
    if (flag && limit > 0 && h && h->fd >= 0) {
        char text[32];
        if (cg_read(h->fd, h->v2 ? "memory.current" : "memory.usage_in_bytes", text, sizeof(text)) > 0 &&
            strtoll(text, NULL, 10) > limit) {
            return err_set(a->err, -EBUSY, "linux.resources.memory.limit: %s bytes are in use already", text);
        }
    }
    if (h && h->v2 && swap > 0) { /* v1 counts memory and swap together, v2 swap alone */
        if (limit <= 0) {
            return err_set(a->err, -EINVAL, "linux.resources.memory.swap needs memory.limit on cgroup v2");
        }
        if (swap < limit) {
            return err_set(a->err, -EINVAL,
                           "linux.resources.memory.swap is the sum of memory and swap: it can't be "
                           "less than memory.limit");
        }
        swap -= limit;
        if ((rc = put_number(a, "memory.swap", "memory", NULL, "memory.swap.max", swap, true)) < 0) {
            return rc;
        }
        swap = 0;
    }
    if (limit < 0 && swap == 0 && h && !h->v2 &&
        faccessat(h->fd, "memory.memsw.limit_in_bytes", F_OK, 0) == 0) {
        swap = -1; /* memory without a limit can't be less than the two together */
    }
    if (limit != 0) {
        rc = put_number(a, "memory.limit", "memory", "memory.limit_in_bytes", "memory.max", limit, true);
        if (rc == -EINVAL && swap != 0 && h && !h->v2) {
            /* Raising both: memory may not go above memory+swap, so that one first. */
            rc = put_number(a, "memory.swap", "memory", "memory.memsw.limit_in_bytes", NULL, swap, true);
            rc = rc < 0 ? rc
                        : put_number(a, "memory.limit", "memory", "memory.limit_in_bytes", NULL, limit, true);
        }
        if (rc < 0) {
            return rc;
        }
    }
    if (swap != 0 && (rc = put_number(a, "memory.swap", "memory", "memory.memsw.limit_in_bytes",
                                      "memory.swap.max", swap, true)) < 0) {
        return rc;
    }
    static const struct {
        const char *key, *name, *v1, *v2;
        bool zero_counts;
    } plain[] = {
        {"reservation", "memory.reservation", "memory.soft_limit_in_bytes", "memory.low", false},
        {"kernel", "memory.kernel", "memory.kmem.limit_in_bytes", NULL, false},
        {"kernelTCP", "memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", NULL, false},
        {"swappiness", "memory.swappiness", "memory.swappiness", NULL, true},
    };
    for (size_t i = 0; i < ARRAY_SIZE(plain); i++) {
        if (number(o, plain[i].key, &value) && (value != 0 || plain[i].zero_counts) &&
            (rc = put_number(a, plain[i].name, "memory", plain[i].v1, plain[i].v2, value, true)) < 0) {
            return rc;
        }
    }
    if (number(o, "kernel", &value) && value > 0) { /* Linux 5.16 and later take the number and do nothing */
        char text[32] = "";
        cg_read(h->fd, "memory.kmem.limit_in_bytes", text, sizeof(text));
        if (strtoll(text, NULL, 10) > value) {
            return err_set(a->err, -EOPNOTSUPP,
                           "linux.resources.memory.kernel can't be applied: this kernel has no such "
                           "limit any more");
        }
    }
    flag = false;
    if ((rc = json_flag(o, "linux.resources.memory", "disableOOMKiller", &flag, a->err)) < 0) {
        return rc;
    }
    if (flag && (rc = put(a, "memory.disableOOMKiller", "memory", "memory.oom_control", NULL, "1")) < 0) {
        return rc;
    }
    flag = false;
    if ((rc = json_flag(o, "linux.resources.memory", "useHierarchy", &flag, a->err)) < 0) {
        return rc;
    }
    return flag && h && !h->v2 ? put(a, "memory.useHierarchy", "memory", "memory.use_hierarchy", NULL, "1")
                               : 0;
}

/* Shares 2..262144 to weight 1..10000, so that the defaults 1024 and 100 meet (as runc and crun do since
 * 2025). */
static uint64_t weight_of_shares(int64_t shares)
{
    if (shares <= 2) {
        return 1;
    }
    if (shares >= 262144) {
        return 10000;
    }
    double l = log2((double)shares);
    return (uint64_t)ceil(pow(10, (l * l + 125 * l) / 612.0 - 7.0 / 34.0));
}

static int apply_bandwidth(struct apply *a, json_t *o)
{
    struct cg_hierarchy *h = cg_find(a->cg, "cpu");
    int64_t quota = 0;
    int64_t period = 0;
    int64_t burst = 0;
    int rc = 0;
    number(o, "quota", &quota);
    number(o, "period", &period);
    if ((quota || period) && h && h->v2) {
        char text[64];
        char old[64] = "max 100000";
        if (h->fd >= 0) {
            cg_read(h->fd, "cpu.max", old, sizeof(old));
        }
        char *old_period = strchr(old, ' ');
        if (old_period) {
            *old_period++ = '\0';
        }
        int n = quota > 0 ? snprintf(text, sizeof(text), "%" PRId64, quota)
                          : snprintf(text, sizeof(text), "%s", quota < 0 ? "max" : old);
        if (period > 0) {
            snprintf(text + n, sizeof(text) - (size_t)n, " %" PRId64, period);
        } else {
            snprintf(text + n, sizeof(text) - (size_t)n, " %s", old_period ? old_period : "100000");
        }
        rc = put(a, quota ? "cpu.quota" : "cpu.period", "cpu", NULL, "cpu.max", text);
    } else {
        if (period > 0) {
            rc = put_number(a, "cpu.period", "cpu", "cpu.cfs_period_us", NULL, period, false);
        }
        if (rc == -EINVAL && quota != 0) { /* the old quota with the new period may be out of bounds */
            rc = put_number(a, "cpu.quota", "cpu", "cpu.cfs_quota_us", NULL, quota, false);
            rc = rc < 0 ? rc : put_number(a, "cpu.period", "cpu", "cpu.cfs_period_us", NULL, period, false);
        }
        if (rc == 0 && quota != 0) {
            rc = put_number(a, "cpu.quota", "cpu", "cpu.cfs_quota_us", NULL, quota, false);
        }
    }
    if (rc == 0 && number(o, "burst", &burst)) {
        rc = put_number(a, "cpu.burst", "cpu", "cpu.cfs_burst_us", "cpu.max.burst", burst, false);
    }
    return rc;
}

static int apply_cpu(struct apply *a, json_t *o)
{
    static const char *const keys[] = {"shares",          "quota",          "period", "burst",
                                       "realtimeRuntime", "realtimePeriod", "idle",   NULL};
    const char *text = NULL;
    int64_t value = 0;
    struct cg_hierarchy *h = cg_find(a->cg, "cpu");
    int rc = check_numbers(o, "cpu", keys, a->err);
    if (rc < 0) {
        return rc;
    }
    if (number(o, "idle", &value) &&
        (rc = put_number(a, "cpu.idle", "cpu", "cpu.idle", "cpu.idle", value, false)) < 0) {
        return rc;
    }
    if (number(o, "shares", &value) && value != 0) {
        if (value < 0) {
            return err_set(a->err, -EINVAL, "linux.resources.cpu.shares can't be negative");
        }
        value = h && h->v2 ? (int64_t)weight_of_shares(value) : value;
        if ((rc = put_number(a, "cpu.shares", "cpu", "cpu.shares", "cpu.weight", value, false)) < 0) {
            return rc;
        }
    }
    if ((rc = apply_bandwidth(a, o)) < 0) {
        return rc;
    }
    if (number(o, "realtimePeriod", &value) && value != 0 &&
        (rc = put_number(a, "cpu.realtimePeriod", "cpu", "cpu.rt_period_us", NULL, value, false)) < 0) {
        return rc;
    }
    if (number(o, "realtimeRuntime", &value) && value != 0 &&
        (rc = put_number(a, "cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", NULL, value, false)) < 0) {
        return rc;
    }
    if ((rc = json_str(o, "linux.resources.cpu", "cpus", &text, a->err)) < 0) {
        return rc;
    }
    if (text && *text && (rc = put(a, "cpu.cpus", "cpuset", "cpuset.cpus", "cpuset.cpus", text)) < 0) {
        return rc;
    }
    text = NULL;
    if ((rc = json_str(o, "linux.resources.cpu", "mems", &text, a->err)) < 0) {
        return rc;
    }
    return text && *text ? put(a, "cpu.mems", "cpuset", "cpuset.mems", "cpuset.mems", text) : 0;
}

static int apply_pids(struct apply *a, json_t *o)
{
    static const char *const keys[] = {"limit", NULL};
    char text[32] = "max";
    int64_t value = 0;
    int rc = check_numbers(o, "pids", keys, a->err);
    if (rc < 0 || !number(o, "limit", &value)) {
        return rc;
    }
    if (value > 0) {
        snprintf(text, sizeof(text), "%" PRId64, value);
    }
    return put(a, "pids.limit", "pids", "pids.max", "pids.max", text);
}

static const char *blkio_controller(struct cg *cg)
{
    struct cg_hierarchy *h = cg_find(cg, "blkio");
    return h && !h->v2 ? "blkio" : "io";
}

/* The one of two files that this kernel has: the I/O schedulers name theirs differently. */
static const char *blkio_file(struct cg *cg, const char *plain, const char *bfq)
{
    struct cg_hierarchy *h = cg_find(cg, blkio_controller(cg));
    return h && h->fd >= 0 && faccessat(h->fd, plain, F_OK, 0) < 0 && faccessat(h->fd, bfq, F_OK, 0) == 0
               ? bfq
               : plain;
}

static int apply_blkio_weights(struct apply *a, json_t *o)
{
    int64_t weight = 0;
    int rc = 0;
    const char *controller = blkio_controller(a->cg);
    if (number(o, "weight", &weight) && weight != 0) {
        const char *v2 = blkio_file(a->cg, "io.weight", "io.bfq.weight");
        bool convert = strcmp(controller, "io") == 0 && strcmp(v2, "io.weight") == 0;
        rc =
            put_number(a, "blockIO.weight", controller, blkio_file(a->cg, "blkio.weight", "blkio.bfq.weight"),
                       v2, convert ? 1 + (weight - 10) * 9999 / 990 : weight, false);
    }
    if (rc == 0 && number(o, "leafWeight", &weight) && weight != 0) {
        rc = put_number(a, "blockIO.leafWeight", controller, "blkio.leaf_weight", NULL, weight, false);
    }
    json_t *list = NULL;
    if (rc == 0) {
        rc = json_arr(o, "linux.resources.blockIO", "weightDevice", &list, a->err);
    }
    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
        char text[96];
        int64_t major = 0;
        int64_t minor = 0;
        json_t *item = json_array_get(list, i);
        number(item, "major", &major);
        number(item, "minor", &minor);
        if (number(item, "weight", &weight)) {
            snprintf(text, sizeof(text), "%" PRId64 ":%" PRId64 " %" PRId64, major, minor, weight);
            rc = put(a, "blockIO.weightDevice", controller,
                     blkio_file(a->cg, "blkio.weight_device", "blkio.bfq.weight_device"), "io.bfq.weight",
                     text);
        }
        if (rc == 0 && number(item, "leafWeight", &weight)) {
            snprintf(text, sizeof(text), "%" PRId64 ":%" PRId64 " %" PRId64, major, minor, weight);
            rc = put(a, "blockIO.weightDevice", controller, "blkio.leaf_weight_device", NULL, text);
        }
    }
    return rc;
}

static int apply_blkio(struct apply *a, json_t *o)
{
    static const char *const keys[] = {"weight", "leafWeight", NULL};
    static const struct {
        const char *key, *v1, *v2;
    } throttles[] = {
        {"throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"},
        {"throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"},
        {"throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"},
        {"throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"},
    };
    int rc = check_numbers(o, "blockIO", keys, a->err);
    if (rc < 0 || (rc = apply_blkio_weights(a, o)) < 0) {
        return rc;
    }
    const char *controller = blkio_controller(a->cg);
    struct cg_hierarchy *h = cg_find(a->cg, controller);
    for (size_t k = 0; rc == 0 && k < ARRAY_SIZE(throttles); k++) {
        json_t *list = NULL;
        rc = json_arr(o, "linux.resources.blockIO", throttles[k].key, &list, a->err);
        for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
            char text[96];
            char name[64];
            int64_t major = 0;
            int64_t minor = 0;
            int64_t rate = 0;
            json_t *item = json_array_get(list, i);
            number(item, "major", &major);
            number(item, "minor", &minor);
            number(item, "rate", &rate);
            if (h && h->v2) {
                snprintf(text, sizeof(text), "%" PRId64 ":%" PRId64 " %s=%" PRId64, major, minor,
                         throttles[k].v2, rate);
            } else {
                snprintf(text, sizeof(text), "%" PRId64 ":%" PRId64 " %" PRId64, major, minor, rate);
            }
            snprintf(name, sizeof(name), "blockIO.%s", throttles[k].key);
            rc = put(a, name, controller, throttles[k].v1, "io.max", text);
        }
    }
    return rc;
}

/* Names become parts of file names. */
static bool plain_name(const char *name)
{
    return name && *name && strlen(name) < 64 && !strchr(name, '/') && !strstr(name, "..");
}

static int apply_hugepages(struct apply *a, json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *item = json_array_get(list, i);
        const char *size = json_string_value(json_object_get(item, "pageSize"));
        json_t *limit = json_object_get(item, "limit");
        char v1[128];
        char v2[128];
        char text[32];
        if (!plain_name(size) || !json_is_integer(limit)) {
            return err_set(a->err, -EINVAL,
                           "linux.resources.hugepageLimits[%zu] needs a pageSize and a limit", i);
        }
        snprintf(text, sizeof(text), "%" PRIu64, (uint64_t)json_integer_value(limit));
        snprintf(v1, sizeof(v1), "hugetlb.%s.limit_in_bytes", size);
        snprintf(v2, sizeof(v2), "hugetlb.%s.max", size);
        int rc = put(a, "hugepageLimits", "hugetlb", v1, v2, text);
        if (rc < 0) {
            return rc;
        }
        /* Reservations too, where the kernel (5.7) counts them: mmap takes pages by reserving. */
        struct cg_hierarchy *h = cg_find(a->cg, "hugetlb");
        snprintf(v1, sizeof(v1), "hugetlb.%s.rsvd.limit_in_bytes", size);
        snprintf(v2, sizeof(v2), "hugetlb.%s.rsvd.max", size);
        if (faccessat(h->fd, h->v2 ? v2 : v1, F_OK, 0) == 0 &&
            (rc = put(a, "hugepageLimits", "hugetlb", v1, v2, text)) < 0) {
            return rc;
        }
    }
    return 0;
}

static int apply_network(struct apply *a, json_t *o)
{
    int64_t class_id = 0;
    json_t *list = NULL;
    int rc = json_arr(o, "linux.resources.network", "priorities", &list, a->err);
    if (rc == 0 && number(o, "classID", &class_id) && class_id != 0) {
        rc = put_number(a, "network.classID", "net_cls", "net_cls.classid", NULL, class_id, false);
    }
    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
        json_t *item = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        int64_t priority = 0;
        char text[96];
        if (!plain_name(name) || !number(item, "priority", &priority)) {
            return err_set(a->err, -EINVAL,
                           "linux.resources.network.priorities[%zu] needs a name and a priority", i);
        }
        snprintf(text, sizeof(text), "%s %" PRId64, name, priority);
        rc = put(a, "network.priorities", "net_prio", "net_prio.ifpriomap", NULL, text);
    }
    return rc;
}

static int apply_rdma(struct apply *a, json_t *o)
{
    const char *key;
    json_t *value;
    int rc = 0;
    json_object_foreach(o, key, value)
    {
        char text[160];
        int64_t n = 0;
        int used = snprintf(text, sizeof(text), "%s", plain_name(key) ? key : "");
        if (number(value, "hcaHandles", &n)) {
            used += snprintf(text + used, sizeof(text) - (size_t)used, " hca_handle=%" PRId64, n);
        }
        if (number(value, "hcaObjects", &n)) {
            snprintf(text + used, sizeof(text) - (size_t)used, " hca_object=%" PRId64, n);
        }
        if (rc == 0) {
            rc = put(a, "rdma", "rdma", "rdma.max", "rdma.max", text);
        }
    }
    return rc;
}

static int apply_unified(struct apply *a, json_t *o)
{
    struct cg_hierarchy *h = cg_v2(a->cg);
    const char *key;
    json_t *value;
    json_object_foreach(o, key, value)
    {
        if (!plain_name(key) || !strchr(key, '.') || !json_is_string(value)) {
            return err_set(a->err, -EINVAL,
                           "linux.resources.unified: '%.64s' is not the name of a control file with a "
                           "string",
                           key);
        }
        if (!h) {
            return err_set(a->err, -EOPNOTSUPP,
                           "linux.resources.unified.%s can't be applied: no cgroup v2 is mounted", key);
        }
        if (h->fd < 0) {
            return err_set(a->err, -EACCES,
                           "linux.resources.unified.%s can't be applied: this user may not make cgroups",
                           key);
        }
        int rc = write_file_at(h->fd, key, json_string_value(value));
        if (rc < 0) {
            return err_sys(a->err, rc, "linux.resources.unified.%s can't be applied: cannot write '%s'%s",
                           key, json_string_value(value),
                           rc == -ENOENT ? " (no such file: is the controller a v2 one on this host?)" : "");
        }
    }
    return 0;
}

static int apply_devices(struct apply *a, json_t *list)
{
    struct cg_hierarchy *h = cg_find(a->cg, "devices");
    if (h && !h->v2 && h->fd >= 0 && !fault_without("devicesv1")) {
        return cg_devices_v1(h->fd, list, a->update, a->err);
    }
    if (a->cg->devices_implicit) {
        return 0; /* nobody in a user namespace can make or mount device nodes */
    }
    h = cg_v2(a->cg);
    if (!h || h->fd < 0) {
        return json_array_size(list) ? err_set(a->err, -EOPNOTSUPP,
                                               "linux.resources.devices can't be applied: this host "
                                               "has neither the v1 devices controller nor cgroup v2")
                                     : 0;
    }
    return cg_devices_v2(h->fd, list, a->err);
}

int cg_apply(struct cg *cg, json_t *resources, bool update, struct err *err)
{
    static const struct {
        const char *key;
        bool array;
        int (*fn)(struct apply *a, json_t *section);
    } sections[] = {
        {"memory", false, apply_memory},
        {"cpu", false, apply_cpu},
        {"pids", false, apply_pids},
        {"blockIO", false, apply_blkio},
        {"hugepageLimits", true, apply_hugepages},
        {"network", false, apply_network},
        {"rdma", false, apply_rdma},
        {"unified", false, apply_unified},
        {"devices", true, apply_devices},
    };
    struct apply a = {.cg = cg, .update = update, .err = err};
    for (size_t i = 0; i < ARRAY_SIZE(sections); i++) {
        json_t *section = NULL;
        int rc = sections[i].array ? json_arr(resources, "linux.resources", sections[i].key, &section, err)
                                   : json_obj(resources, "linux.resources", sections[i].key, &section, err);
        if (rc == 0 && section) {
            rc = sections[i].fn(&a, section);
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}
