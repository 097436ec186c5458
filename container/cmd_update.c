/* update, events, checkpoint. */
#include "base/log.h"
#include "base/util.h"
#include "container/cg_systemd.h"
#include "container/cmd.h"
#include "container/json.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* Options that set one member of resources each. */
static const struct {
    const char *option;
    const char *section;
    const char *key;
    bool text;
} members[] = {
    {"memory", "memory", "limit", false},
    {"memory-reservation", "memory", "reservation", false},
    {"memory-swap", "memory", "swap", false},
    {"cpu-period", "cpu", "period", false},
    {"cpu-quota", "cpu", "quota", false},
    {"cpu-burst", "cpu", "burst", false},
    {"cpu-share", "cpu", "shares", false},
    {"cpu-shares", "cpu", "shares", false},
    {"cpu-rt-period", "cpu", "realtimePeriod", false},
    {"cpu-rt-runtime", "cpu", "realtimeRuntime", false},
    {"cpu-idle", "cpu", "idle", false},
    {"cpuset-cpus", "cpu", "cpus", true},
    {"cpuset-mems", "cpu", "mems", true},
    {"pids-limit", "pids", "limit", false},
    {"blkio-weight", "blockIO", "weight", false},
};

/* "512m" and the like; -1: unlimited. */
static int parse_amount(const char *text, int64_t *ret)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    static const char units[] = "bkmgt";
    if (end == text || errno) {
        return -EINVAL;
    }
    if (*end) {
        const char *unit = strchr(units, *end | 0x20);
        if (!unit || end[1] || __builtin_mul_overflow(value, 1ll << (10 * (unit - units)), &value)) {
            return -EINVAL;
        }
    }
    *ret = value;
    return 0;
}

static int set_member(json_t *resources, size_t which, const char *text, struct err *err)
{
    int64_t value = 0;
    if (!members[which].text && parse_amount(text, &value) < 0) {
        return err_set(err, -EINVAL, "update: --%s '%s' is not a number", members[which].option, text);
    }
    json_t *section = json_object_get(resources, members[which].section);
    if (!section) {
        section = json_object();
        json_object_set_new(resources, members[which].section, section);
    }
    json_object_set_new(section, members[which].key,
                        members[which].text ? json_string(text) : json_integer(value));
    return 0;
}

static int read_resources(const char *path, json_t **ret, struct err *err)
{
    auto_free char *text = NULL;
    size_t size = 0;
    int rc = file_read_all(AT_FDCWD, strcmp(path, "-") == 0 ? "/dev/stdin" : path, &text, &size, err);
    if (rc < 0) {
        return rc;
    }
    json_t *value = json_parse(text, size, path, err);
    if (!json_is_object(value)) {
        json_decref(value);
        return value ? err_set(err, -EINVAL, "'%s' must hold an object", path) : -EINVAL;
    }
    json_decref(*ret);
    *ret = value;
    return 0;
}

int cmd_update(const struct globals *g, int argc, char **argv, struct err *err)
{
    struct option longs[ARRAY_SIZE(members) + 2] = {{NULL, 0, NULL, 0}};
    struct handle h;
    json_t *resources = json_object();
    const char *id = NULL;
    int rc = 0;
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        longs[i] = (struct option){members[i].option, required_argument, NULL, 256 + (int)i};
    }
    longs[ARRAY_SIZE(members)] = (struct option){"resources", required_argument, NULL, 'r'};
    optind = 0; /* from the start, options anywhere: getopt(3) */
    for (int opt; rc == 0 && (opt = getopt_long(argc, argv, "r:", longs, NULL)) != -1;) {
        if (opt == 'r') {
            rc = read_resources(optarg, &resources, err);
        } else if (opt >= 256) {
            rc = set_member(resources, (size_t)(opt - 256), optarg, err);
        } else {
            rc = cmd_bad_option(argv, err);
        }
    }
    rc = rc < 0 ? rc : cmd_id(argc, argv, &id, err);
    if (rc == 0 && (rc = handle_open_locked(g, id, &h, err)) == 0) {
        if (h.status == STATUS_STOPPED || h.status == STATUS_CREATING) {
            rc = err_set(err, -EINVAL, "cannot update container '%s': it is %s", id, status_names[h.status]);
        }
        if (rc == 0 && h.state.systemd_unit) { /* first, as it writes the files too */
            rc = cg_systemd_update(h.state.systemd_unit, resources, err);
        }
        rc = rc < 0 ? rc : cg_apply(&h.cg, resources, true, err);
        handle_done(&h);
    }
    json_decref(resources);
    return rc;
}

static void print_event(const char *type, const char *id, json_t *data)
{
    json_t *event = json_object();
    json_object_set_new(event, "type", json_string(type));
    json_object_set_new(event, "id", json_string(id));
    if (data) {
        json_object_set_new(event, "data", data);
    }
    json_dumpf(event, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(event);
}

static uint64_t oom_kills(const struct cg *cg)
{
    char text[1024];
    for (size_t i = 0; i < cg->count; i++) {
        const char *file = cg->h[i].v2 ? "memory.events" : "memory.oom_control";
        if (cg->h[i].fd >= 0 && cg_read(cg->h[i].fd, file, text, sizeof(text)) > 0) {
            const char *p = strstr(text, "oom_kill ");
            if (p) {
                return strtoull(p + 9, NULL, 10);
            }
        }
    }
    return 0;
}

int cmd_events(const struct globals *g, int argc, char **argv, struct err *err)
{
    static const struct option longs[] = {
        {"stats", no_argument, NULL, 's'}, {"interval", required_argument, NULL, 'i'}, {NULL, 0, NULL, 0}};
    struct handle h;
    bool once = false;
    int interval_s = 5;
    const char *id = NULL;
    optind = 0; /* from the start, options anywhere: getopt(3) */
    for (int opt; (opt = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        switch (opt) {
        case 's': once = true; break;
        case 'i': interval_s = atoi(optarg); break; /* "5s" */
        default: return cmd_bad_option(argv, err);
        }
    }
    int rc = cmd_id(argc, argv, &id, err);
    if (rc < 0 || (rc = handle_open(g, id, &h, err)) < 0) {
        return rc;
    }
    if (h.status == STATUS_STOPPED || h.status == STATUS_CREATING) {
        rc = err_set(err, -EINVAL, "container '%s' is %s", id, status_names[h.status]);
    }
    uint64_t kills = oom_kills(&h.cg);
    int64_t wait_ms = 0;
    while (rc == 0) {
        if (wait_ms <= 0) {
            print_event("stats", id, cg_stats(&h.cg));
            wait_ms = (int64_t)MAX(interval_s, 1) * 1000;
        }
        if (once || !state_alive(&h.state)) {
            break;
        }
        usleep(100000);
        wait_ms -= 100;
        uint64_t now = oom_kills(&h.cg);
        if (now > kills) {
            print_event("oom", id, NULL);
            kills = now;
        }
    }
    handle_done(&h);
    return rc;
}

int cmd_checkpoint(const struct globals *g, int argc, char **argv, struct err *err)
{
    return err_set(err, -EOPNOTSUPP, "%s is not supported: it needs CRIU, which this runtime doesn't drive",
                   argv[0]);
}
