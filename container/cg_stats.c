/* Numbers of a container's cgroups, as `events --stats` prints them (the form that runc made common). */
#include "base/util.h"
#include "container/cg.h"

#include <stdio.h>
#include <string.h>

static const struct cg_hierarchy *serving(const struct cg *cg, const char *controller)
{
    struct cg *c = (struct cg *)cg;
    const struct cg_hierarchy *h = cg_find(c, controller);
    return h && h->fd >= 0 ? h : NULL;
}

static void add_number(json_t *o, const char *key, int dirfd, const char *file)
{
    char text[64];
    if (dirfd >= 0 && cg_read(dirfd, file, text, sizeof(text)) > 0 && strcmp(text, "max") != 0) {
        json_object_set_new(o, key, json_integer((json_int_t)strtoull(text, NULL, 10)));
    }
}

/* The number after "key " at a line's start in a flat keyed file; 0: not there. */
static uint64_t keyed(int dirfd, const char *file, const char *key)
{
    char text[8192];
    size_t n = strlen(key);
    if (cg_read(dirfd, file, text, sizeof(text)) <= 0) {
        return 0;
    }
    for (const char *p = text; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        if (strncmp(p, key, n) == 0 && p[n] == ' ') {
            return strtoull(p + n + 1, NULL, 10);
        }
    }
    return 0;
}

static json_t *cpu_stats(const struct cg *cg)
{
    json_t *cpu = json_object();
    json_t *usage = json_object();
    json_t *throttling = json_object();
    const struct cg_hierarchy *h = serving(cg, "cpuacct");
    const struct cg_hierarchy *bandwidth = serving(cg, "cpu");
    if (h && !h->v2) {
        add_number(usage, "total", h->fd, "cpuacct.usage");
        add_number(usage, "kernel", h->fd, "cpuacct.usage_sys");
        add_number(usage, "user", h->fd, "cpuacct.usage_user");
    } else {
        for (size_t i = 0; i < cg->count; i++) {
            if (cg->h[i].v2 && cg->h[i].fd >= 0) {
                static const char *const names[][2] = {
                    {"total", "usage_usec"}, {"user", "user_usec"}, {"kernel", "system_usec"}};
                for (size_t k = 0; k < ARRAY_SIZE(names); k++) {
                    json_object_set_new(
                        usage, names[k][0],
                        json_integer((json_int_t)keyed(cg->h[i].fd, "cpu.stat", names[k][1]) * 1000));
                }
            }
        }
    }
    if (bandwidth) {
        bool v2 = bandwidth->v2;
        json_object_set_new(throttling, "periods",
                            json_integer((json_int_t)keyed(bandwidth->fd, "cpu.stat", "nr_periods")));
        json_object_set_new(throttling, "throttledPeriods",
                            json_integer((json_int_t)keyed(bandwidth->fd, "cpu.stat", "nr_throttled")));
        uint64_t time = v2 ? keyed(bandwidth->fd, "cpu.stat", "throttled_usec") * 1000
                           : keyed(bandwidth->fd, "cpu.stat", "throttled_time");
        json_object_set_new(throttling, "throttledTime", json_integer((json_int_t)time));
    }
    json_object_set_new(cpu, "usage", usage);
    json_object_set_new(cpu, "throttling", throttling);
    return cpu;
}

static json_t *memory_stats(const struct cg *cg)
{
    json_t *memory = json_object();
    json_t *usage = json_object();
    json_t *raw = json_object();
    const struct cg_hierarchy *h = serving(cg, "memory");
    if (h) {
        char text[8192];
        add_number(usage, "usage", h->fd, h->v2 ? "memory.current" : "memory.usage_in_bytes");
        add_number(usage, "limit", h->fd, h->v2 ? "memory.max" : "memory.limit_in_bytes");
        add_number(usage, "max", h->fd, h->v2 ? "memory.peak" : "memory.max_usage_in_bytes");
        if (!h->v2) {
            add_number(usage, "failcnt", h->fd, "memory.failcnt");
        }
        char *save = NULL;
        if (cg_read(h->fd, "memory.stat", text, sizeof(text)) > 0) {
            for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                char *value = strchr(line, ' ');
                if (value) {
                    *value++ = '\0';
                    json_object_set_new(raw, line, json_integer((json_int_t)strtoull(value, NULL, 10)));
                }
            }
        }
    }
    json_object_set_new(memory, "usage", usage);
    json_object_set_new(memory, "raw", raw);
    return memory;
}

json_t *cg_stats(const struct cg *cg)
{
    json_t *data = json_object();
    json_t *pids = json_object();
    const struct cg_hierarchy *h = serving(cg, "pids");
    if (h) {
        add_number(pids, "current", h->fd, "pids.current");
        add_number(pids, "limit", h->fd, "pids.max");
    }
    json_object_set_new(data, "cpu", cpu_stats(cg));
    json_object_set_new(data, "memory", memory_stats(cg));
    json_object_set_new(data, "pids", pids);
    return data;
}
