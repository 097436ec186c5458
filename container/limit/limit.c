/* Members of an instance to linux.resources, which cg_limits.c knows to apply. */
#include "container/limit/limit.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

#define CPU_PERIOD_US 100000 /* the kernel's own default: sched-bwc.rst */
#define CPUS_MIN      0.01   /* a quota of 1 ms, the least that kernels take */
#define CPUS_MAX      4096.0
#define WEIGHT        100 /* cgroup-v2.rst: the default of cpu.weight */
#define SHARES        1024

/* The names that cg_limits.c gives in its messages, and ours. The longer of two with one beginning first. */
static const char *const names[][2] = {
    {"linux.resources.unified.cpu.weight", "cpu_weight"}, {"linux.resources.cpu.shares", "cpu_weight"},
    {"linux.resources.cpu.quota", "cpu_limit"},           {"linux.resources.cpu.period", "cpu_limit"},
    {"linux.resources.memory.limit", "memory_limit"},     {"linux.resources.memory.swap", "memory_swap"},
    {"linux.resources.pids.limit", "pids_limit"},
};

static void rename_in(struct err *err)
{
    for (size_t i = 0; err && i < ARRAY_SIZE(names); i++) {
        char *at = strstr(err->text, names[i][0]);
        if (at) {
            size_t old = strlen(names[i][0]), new = strlen(names[i][1]);
            memcpy(at, names[i][1], new);
            memmove(at + new, at + old, strlen(at + old) + 1);
            return;
        }
    }
}

static int check(const json_t *limits, struct err *err)
{
    static const char *const members[] = {"cpu_limit", "cpu_weight", "memory_limit", "memory_swap",
                                          "pids_limit"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)limits, key, value)
    {
        size_t i = 0;
        while (i < ARRAY_SIZE(members) && strcmp(members[i], key) != 0) {
            i++;
        }
        if (i == ARRAY_SIZE(members)) {
            return err_set(err, -EINVAL, "there is no limit '%.64s'", key);
        }
        if (i == 0 ? !json_is_string(value) : !json_is_integer(value) || json_integer_value(value) < 0) {
            return err_set(err, -EINVAL, "%s must be %s", key, i == 0 ? "a text" : "a number, 0 or more");
        }
    }
    return json_is_object(limits) ? 0 : err_set(err, -EINVAL, "the limits are no JSON object");
}

static json_int_t number(const json_t *limits, const char *member)
{
    return json_integer_value(json_object_get(limits, member));
}

/* Whether the cgroup has the file: only what is there needs taking away. */
static bool has(struct cg *cg, const char *controller, const char *v1, const char *v2)
{
    const struct cg_hierarchy *h = cg_find(cg, controller);
    return h && h->fd >= 0 && faccessat(h->fd, h->v2 ? v2 : v1, F_OK, 0) == 0;
}

static int add_cpu(struct cg *cg, const json_t *limits, bool update, json_t *resources, struct err *err)
{
    const char *cpus = json_string_value(json_object_get(limits, "cpu_limit"));
    json_int_t weight = number(limits, "cpu_weight");
    json_t *cpu = json_object();
    json_object_set_new(resources, "cpu", cpu);
    if (cpus) {
        char *end = NULL;
        double value = strspn(cpus, "0123456789.") == strlen(cpus) ? strtod(cpus, &end) : 0;
        if (!end || *end || value < CPUS_MIN || value > CPUS_MAX) {
            return err_set(err, -EINVAL, "cpu_limit: '%.32s' is no number of CPUs from %.2f to %.0f", cpus,
                           CPUS_MIN, CPUS_MAX);
        }
        json_object_set_new(cpu, "period", json_integer(CPU_PERIOD_US));
        json_object_set_new(cpu, "quota", json_integer((json_int_t)llround(value * CPU_PERIOD_US)));
    } else if (update && has(cg, "cpu", "cpu.cfs_quota_us", "cpu.max")) {
        json_object_set_new(cpu, "quota", json_integer(-1));
    }
    if (!weight && update && has(cg, "cpu", "cpu.shares", "cpu.weight")) {
        weight = WEIGHT;
    }
    const struct cg_hierarchy *h = cg_find(cg, "cpu");
    if (weight && h && h->v2) { /* cpu.shares would be converted by a curve of its own */
        json_object_set_new(resources, "unified",
                            json_pack("{s:o}", "cpu.weight", json_sprintf("%lld", (long long)weight)));
    } else if (weight) {
        json_object_set_new(cpu, "shares", json_integer(MAX(weight * SHARES / WEIGHT, (json_int_t)2)));
    }
    return 0;
}

static int add_memory(struct cg *cg, const json_t *limits, bool update, json_t *resources, struct err *err)
{
    json_int_t limit = number(limits, "memory_limit"), swap = number(limits, "memory_swap");
    json_t *memory = json_object();
    json_object_set_new(resources, "memory", memory);
    if (swap && (!limit || swap < limit)) {
        return err_set(
            err, -EINVAL,
            "memory_swap counts memory and swap together: it needs memory_limit, and can't be less");
    }
    if (!limit && update && has(cg, "memory", "memory.limit_in_bytes", "memory.max")) {
        limit = -1;
    }
    if (!swap && update && has(cg, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")) {
        swap = -1;
    }
    if (limit) {
        json_object_set_new(memory, "limit", json_integer(limit));
        json_object_set_new(memory, "checkBeforeUpdate", json_boolean(update));
    }
    if (swap) {
        json_object_set_new(memory, "swap", json_integer(swap));
    }
    return 0;
}

int limit_apply(struct cg *cg, const json_t *limits, bool update, struct err *err)
{
    json_t *resources = json_object();
    json_int_t pids = number(limits, "pids_limit");
    int rc = check(limits, err);
    rc = rc < 0 ? rc : add_memory(cg, limits, update, resources, err);
    rc = rc < 0 ? rc : add_cpu(cg, limits, update, resources, err);
    if (pids || (update && has(cg, "pids", "pids.max", "pids.max"))) {
        json_object_set_new(resources, "pids", json_pack("{s:I}", "limit", pids));
    }
    if (rc == 0 && (rc = cg_apply(cg, resources, update, err)) < 0) {
        rename_in(err);
    }
    json_decref(resources);
    return rc;
}
