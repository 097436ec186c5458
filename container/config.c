/* The document as a whole, root, process and hooks. */
#include "container/config.h"

#include "base/log.h"
#include "base/util.h"
#include "container/caps.h"
#include "container/json.h"

#include <errno.h>
#include <linux/ioprio.h>
#include <linux/sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

const char *const hook_names[HOOK_KINDS] = {"prestart",       "createRuntime", "createContainer",
                                            "startContainer", "poststart",     "poststop"};

static const struct {
    const char *name;
    int resource;
} rlimit_names[] = {
    {"RLIMIT_CPU", RLIMIT_CPU},           {"RLIMIT_FSIZE", RLIMIT_FSIZE},
    {"RLIMIT_DATA", RLIMIT_DATA},         {"RLIMIT_STACK", RLIMIT_STACK},
    {"RLIMIT_CORE", RLIMIT_CORE},         {"RLIMIT_RSS", RLIMIT_RSS},
    {"RLIMIT_NPROC", RLIMIT_NPROC},       {"RLIMIT_NOFILE", RLIMIT_NOFILE},
    {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK},   {"RLIMIT_AS", RLIMIT_AS},
    {"RLIMIT_LOCKS", RLIMIT_LOCKS},       {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING},
    {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE}, {"RLIMIT_NICE", RLIMIT_NICE},
    {"RLIMIT_RTPRIO", RLIMIT_RTPRIO},     {"RLIMIT_RTTIME", RLIMIT_RTTIME},
};

static int parse_rlimits(json_t *process, struct arena *arena, struct oci_process *p, struct err *err)
{
    json_t *list = NULL;
    int rc = json_arr(process, "process", "rlimits", &list, err);
    if (rc < 0) {
        return rc;
    }
    p->rlimits = arena_array(arena, json_array_size(list), sizeof(*p->rlimits));
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct oci_rlimit *limit = &p->rlimits[p->rlimit_count];
        json_t *item = json_array_get(list, i);
        if ((rc = json_str(item, "process.rlimits[]", "type", &limit->name, err)) < 0 ||
            (rc = json_u64(item, "process.rlimits[]", "soft", &limit->soft, err)) < 0 ||
            (rc = json_u64(item, "process.rlimits[]", "hard", &limit->hard, err)) < 0) {
            return rc;
        }
        limit->resource = -1;
        for (size_t k = 0; limit->name && k < ARRAY_SIZE(rlimit_names); k++) {
            if (strcmp(limit->name, rlimit_names[k].name) == 0) {
                limit->resource = rlimit_names[k].resource;
            }
        }
        if (limit->resource < 0) {
            return err_set(err, -EINVAL, "process.rlimits: unknown type '%s'",
                           limit->name ? limit->name : "");
        }
        for (size_t k = 0; k < p->rlimit_count; k++) {
            if (p->rlimits[k].resource == limit->resource) {
                return err_set(err, -EINVAL, "process.rlimits: %s is listed twice", limit->name);
            }
        }
        p->rlimit_count++;
    }
    return 0;
}

static int parse_capabilities(json_t *process, struct arena *arena, struct oci_process *p, struct err *err)
{
    static const char *const keys[CAPSET_COUNT] = {"bounding", "effective", "inheritable", "permitted",
                                                   "ambient"};
    json_t *caps = NULL;
    int rc = json_obj(process, "process", "capabilities", &caps, err);
    if (rc < 0 || !caps) {
        return rc;
    }
    p->has_capabilities = true;
    for (int set = 0; set < CAPSET_COUNT; set++) {
        const char **names = NULL;
        rc = json_strv(caps, "process.capabilities", keys[set], arena, &names, NULL, err);
        if (rc < 0) {
            return rc;
        }
        for (size_t i = 0; names && names[i]; i++) {
            int number = caps_number(names[i]);
            if (number < 0) {
                log_warning("capability '%s' is unknown and ignored", names[i]);
                continue;
            }
            p->caps[set] |= BIT64(number);
        }
    }
    return 0;
}

struct name_value {
    const char *name;
    uint64_t value;
};

/* The value of name in a table; an error that names the member when it isn't there. */
static int parse_name(const struct name_value *table, size_t count, const char *what, const char *name,
                      uint64_t *ret, struct err *err)
{
    for (size_t i = 0; name && i < count; i++) {
        if (strcmp(table[i].name, name) == 0) {
            *ret = table[i].value;
            return 0;
        }
    }
    return err_set(err, -EINVAL, "%s: unknown value '%s'", what, name ? name : "");
}

static int parse_scheduler(json_t *process, struct arena *arena, struct oci_process *p, struct err *err)
{
    static const struct name_value policies[] = {
        {"SCHED_OTHER", 0}, {"SCHED_FIFO", 1}, {"SCHED_RR", 2},       {"SCHED_BATCH", 3},
        {"SCHED_ISO", 4},   {"SCHED_IDLE", 5}, {"SCHED_DEADLINE", 6},
    };
    static const struct name_value flags[] = {
        {"SCHED_FLAG_RESET_ON_FORK", SCHED_FLAG_RESET_ON_FORK},
        {"SCHED_FLAG_RECLAIM", SCHED_FLAG_RECLAIM},
        {"SCHED_FLAG_DL_OVERRUN", SCHED_FLAG_DL_OVERRUN},
        {"SCHED_FLAG_KEEP_POLICY", SCHED_FLAG_KEEP_POLICY},
        {"SCHED_FLAG_KEEP_PARAMS", SCHED_FLAG_KEEP_PARAMS},
        {"SCHED_FLAG_UTIL_CLAMP_MIN", SCHED_FLAG_UTIL_CLAMP_MIN},
        {"SCHED_FLAG_UTIL_CLAMP_MAX", SCHED_FLAG_UTIL_CLAMP_MAX},
    };
    json_t *o = NULL;
    int rc = json_obj(process, "process", "scheduler", &o, err);
    if (rc < 0 || !o) {
        return rc;
    }
    struct oci_scheduler *s = &p->scheduler;
    const char *policy = NULL;
    const char **names = NULL;
    uint64_t value = 0;
    int64_t nice = 0;
    const char *where = "process.scheduler";
    if ((rc = json_str(o, where, "policy", &policy, err)) < 0 ||
        (rc = json_i64(o, where, "nice", &nice, err)) < 0 ||
        (rc = json_u32(o, where, "priority", &s->priority, err)) < 0 ||
        (rc = json_u64(o, where, "runtime", &s->runtime_ns, err)) < 0 ||
        (rc = json_u64(o, where, "deadline", &s->deadline_ns, err)) < 0 ||
        (rc = json_u64(o, where, "period", &s->period_ns, err)) < 0 ||
        (rc = json_strv(o, where, "flags", arena, &names, NULL, err)) < 0 ||
        (rc = parse_name(policies, ARRAY_SIZE(policies), "process.scheduler.policy", policy, &value, err)) <
            0) {
        return rc;
    }
    if (nice < -20 || nice > 19) {
        return err_set(err, -EINVAL, "process.scheduler.nice must be between -20 and 19");
    }
    s->policy = (uint32_t)value;
    s->nice = (int32_t)nice;
    for (size_t i = 0; names && names[i]; i++) {
        rc = parse_name(flags, ARRAY_SIZE(flags), "process.scheduler.flags", names[i], &value, err);
        if (rc < 0) {
            return rc;
        }
        s->flags |= value;
    }
    s->set = true;
    return 0;
}

static int parse_ioprio(json_t *process, struct oci_process *p, struct err *err)
{
    static const struct name_value classes[] = {
        {"IOPRIO_CLASS_RT", IOPRIO_CLASS_RT},
        {"IOPRIO_CLASS_BE", IOPRIO_CLASS_BE},
        {"IOPRIO_CLASS_IDLE", IOPRIO_CLASS_IDLE},
    };
    json_t *o = NULL;
    int rc = json_obj(process, "process", "ioPriority", &o, err);
    if (rc < 0 || !o) {
        return rc;
    }
    const char *class = NULL;
    int64_t priority = 0;
    uint64_t value = 0;
    if ((rc = json_str(o, "process.ioPriority", "class", &class, err)) < 0 ||
        (rc = json_i64(o, "process.ioPriority", "priority", &priority, err)) < 0 ||
        (rc = parse_name(classes, ARRAY_SIZE(classes), "process.ioPriority.class", class, &value, err)) < 0) {
        return rc;
    }
    if (priority < 0 || priority > 7) {
        return err_set(err, -EINVAL, "process.ioPriority.priority must be between 0 and 7");
    }
    p->has_ioprio = true;
    p->ioprio = (int)((value << 13) | (uint64_t)priority);
    return 0;
}

static int parse_user(json_t *process, struct arena *arena, struct oci_process *p, struct err *err)
{
    json_t *user = NULL;
    json_t *groups = NULL;
    int rc = json_obj(process, "process", "user", &user, err);
    if (rc < 0 || !user) {
        return rc;
    }
    p->has_umask = json_is_integer(json_object_get(user, "umask"));
    if ((rc = json_u32(user, "process.user", "uid", &p->uid, err)) < 0 ||
        (rc = json_u32(user, "process.user", "gid", &p->gid, err)) < 0 ||
        (rc = json_u32(user, "process.user", "umask", &p->umask, err)) < 0 ||
        (rc = json_arr(user, "process.user", "additionalGids", &groups, err)) < 0) {
        return rc;
    }
    size_t count = json_array_size(groups);
    if (count > CONFIG_GROUPS_MAX) {
        return err_set(err, -EINVAL, "process.user.additionalGids has more than %d members",
                       CONFIG_GROUPS_MAX);
    }
    p->groups = arena_array(arena, count, sizeof(*p->groups));
    for (size_t i = 0; i < count; i++) {
        json_t *gid = json_array_get(groups, i);
        if (!json_is_integer(gid) || json_integer_value(gid) < 0 || json_integer_value(gid) > UINT32_MAX) {
            return err_set(err, -EINVAL, "process.user.additionalGids must be an array of group ids");
        }
        p->groups[i] = (uint32_t)json_integer_value(gid);
    }
    p->group_count = count;
    return 0;
}

int config_parse_process(json_t *object, struct arena *arena, struct oci_process *ret, struct err *err)
{
    struct oci_process p = {.cwd = NULL};
    json_t *size = NULL;
    json_t *affinity = NULL;
    const char *where = "process";
    int rc;
    if (!json_is_object(object)) {
        return err_set(err, -EINVAL, "process must be an object");
    }
    p.has_oom_score_adj = json_is_integer(json_object_get(object, "oomScoreAdj"));
    if ((rc = json_flag(object, where, "terminal", &p.terminal, err)) < 0 ||
        (rc = json_flag(object, where, "noNewPrivileges", &p.no_new_privileges, err)) < 0 ||
        (rc = json_str(object, where, "cwd", &p.cwd, err)) < 0 ||
        (rc = json_str(object, where, "apparmorProfile", &p.apparmor_profile, err)) < 0 ||
        (rc = json_str(object, where, "selinuxLabel", &p.selinux_label, err)) < 0 ||
        (rc = json_i64(object, where, "oomScoreAdj", &p.oom_score_adj, err)) < 0 ||
        (rc = json_obj(object, where, "consoleSize", &size, err)) < 0 ||
        (rc = json_obj(object, where, "execCPUAffinity", &affinity, err)) < 0 ||
        (rc = json_strv(object, where, "args", arena, &p.args, &p.arg_count, err)) < 0 ||
        (rc = json_strv(object, where, "env", arena, &p.env, &p.env_count, err)) < 0 ||
        (rc = parse_user(object, arena, &p, err)) < 0 || (rc = parse_rlimits(object, arena, &p, err)) < 0 ||
        (rc = parse_capabilities(object, arena, &p, err)) < 0 ||
        (rc = parse_scheduler(object, arena, &p, err)) < 0 || (rc = parse_ioprio(object, &p, err)) < 0) {
        return rc;
    }
    if (size && ((rc = json_u32(size, "process.consoleSize", "width", &p.console_width, err)) < 0 ||
                 (rc = json_u32(size, "process.consoleSize", "height", &p.console_height, err)) < 0)) {
        return rc;
    }
    where = "process.execCPUAffinity";
    if (affinity && ((rc = json_str(affinity, where, "initial", &p.cpu_affinity_initial, err)) < 0 ||
                     (rc = json_str(affinity, where, "final", &p.cpu_affinity_final, err)) < 0)) {
        return rc;
    }
    if (!p.cwd || p.cwd[0] != '/') {
        return err_set(err, -EINVAL, "process.cwd must be an absolute path");
    }
    if (p.has_oom_score_adj && (p.oom_score_adj < -1000 || p.oom_score_adj > 1000)) {
        return err_set(err, -EINVAL, "process.oomScoreAdj must be between -1000 and 1000");
    }
    if (!p.env) {
        p.env = arena_array(arena, 1, sizeof(*p.env));
    }
    *ret = p;
    return 0;
}

static int parse_hooks(struct oci_config *config, struct err *err)
{
    json_t *hooks = NULL;
    int rc = json_obj(config->json, "", "hooks", &hooks, err);
    for (int kind = 0; hooks && rc == 0 && kind < HOOK_KINDS; kind++) {
        json_t *list = NULL;
        rc = json_arr(hooks, "hooks", hook_names[kind], &list, err);
        size_t count = json_array_size(list);
        if (count > CONFIG_HOOKS_MAX) {
            return err_set(err, -EINVAL, "hooks.%s has more than %d members", hook_names[kind],
                           CONFIG_HOOKS_MAX);
        }
        config->hooks[kind].v = arena_array(&config->arena, count, sizeof(struct oci_hook));
        for (size_t i = 0; rc == 0 && i < count; i++) {
            struct oci_hook *hook = &config->hooks[kind].v[i];
            json_t *item = json_array_get(list, i);
            json_t *timeout = json_object_get(item, "timeout");
            if ((rc = json_str(item, "hooks[]", "path", &hook->path, err)) < 0 ||
                (rc = json_strv(item, "hooks[]", "args", &config->arena, &hook->args, NULL, err)) < 0 ||
                (rc = json_strv(item, "hooks[]", "env", &config->arena, &hook->env, NULL, err)) < 0 ||
                (rc = json_u32(item, "hooks[]", "timeout", &hook->timeout_s, err)) < 0) {
                return rc;
            }
            if (!hook->path || hook->path[0] != '/') {
                return err_set(err, -EINVAL, "hooks.%s[%zu].path must be an absolute path", hook_names[kind],
                               i);
            }
            if (timeout && !json_is_null(timeout) && hook->timeout_s == 0) {
                return err_set(err, -EINVAL, "hooks.%s[%zu].timeout must be greater than zero",
                               hook_names[kind], i);
            }
            config->hooks[kind].count++;
        }
    }
    return rc;
}

static int parse_annotations(struct oci_config *config, struct err *err)
{
    int rc = json_obj(config->json, "", "annotations", &config->annotations, err);
    const char *key;
    json_t *value;
    json_object_foreach(config->annotations, key, value)
    {
        if (!json_is_string(value) || !*key) {
            return err_set(err, -EINVAL, "annotations must have names and be strings");
        }
    }
    /* podman's --group-add keep-groups; the name is what all runtimes know it by. */
    const char *groups = config_annotation(config, "run.oci.keep_original_groups");
    config->process.keep_groups = groups && strcmp(groups, "1") == 0;
    const char *landlock = rc < 0 ? NULL : config_annotation(config, LANDLOCK_ANNOTATION);
    if (landlock && config->has_process && !config->process.no_new_privileges) {
        return err_set(err, -EINVAL, "annotation %s needs process.noNewPrivileges", LANDLOCK_ANNOTATION);
    }
    return landlock ? landlock_parse(landlock, &config->arena, &config->landlock, err) : rc;
}

/* config.md "Specification version": 1.x of any minor version, and the 1.0.0 release candidates. */
static int check_version(const char *version, struct err *err)
{
    unsigned major;
    unsigned minor;
    unsigned patch;
    int used = 0;
    if (!version || !*version) {
        return err_set(err, -EINVAL, "ociVersion is missing");
    }
    if (sscanf(version, "%3u.%5u.%5u%n", &major, &minor, &patch, &used) != 3 ||
        (version[used] && !strchr("-+", version[used]))) {
        return err_set(err, -EINVAL, "ociVersion '%s' is not a version", version);
    }
    if (major != 1) {
        return err_set(err, -EINVAL, "ociVersion '%s' is not supported, this runtime implements %s", version,
                       OCI_VERSION);
    }
    return 0;
}

static int parse_document(struct oci_config *config, struct err *err)
{
    json_t *root = NULL;
    json_t *process = NULL;
    int rc;
    if (!json_is_object(config->json)) {
        return err_set(err, -EINVAL, "the document must be an object");
    }
    if ((rc = json_str(config->json, "", "ociVersion", &config->version, err)) < 0 ||
        (rc = check_version(config->version, err)) < 0 ||
        (rc = json_str(config->json, "", "hostname", &config->hostname, err)) < 0 ||
        (rc = json_str(config->json, "", "domainname", &config->domainname, err)) < 0 ||
        (rc = json_obj(config->json, "", "root", &root, err)) < 0 ||
        (rc = json_str(root, "root", "path", &config->root_path, err)) < 0 ||
        (rc = json_flag(root, "root", "readonly", &config->root_readonly, err)) < 0 ||
        (rc = json_obj(config->json, "", "process", &process, err)) < 0) {
        return rc;
    }
    if (!config->root_path || !*config->root_path) {
        return err_set(err, -EINVAL, "root.path is missing");
    }
    if (process) {
        config->has_process = true;
        rc = config_parse_process(process, &config->arena, &config->process, err);
        if (rc < 0) {
            return rc;
        }
    }
    if ((rc = parse_hooks(config, err)) < 0 || (rc = parse_annotations(config, err)) < 0 ||
        (rc = config_parse_linux(config, err)) < 0) {
        return rc;
    }
    return config_parse_mounts(config, err);
}

int config_parse(struct oci_config *config, const char *text, size_t size, const char *name, struct err *err)
{
    memset(config, 0, sizeof(*config));
    config->json = json_parse(text, size, name, err);
    if (!config->json) {
        return -EINVAL;
    }
    int rc = parse_document(config, err);
    if (rc < 0) {
        err_prefix(err, "%s", name);
        config_free(config);
    }
    return rc;
}

int config_load(struct oci_config *config, int dirfd, const char *path, struct err *err)
{
    auto_free char *text = NULL;
    size_t size = 0;
    int rc = file_read_all(dirfd, path, &text, &size, err);
    return rc < 0 ? rc : config_parse(config, text, size, path, err);
}

void config_free(struct oci_config *config)
{
    landlock_done(&config->landlock);
    json_decref(config->json);
    arena_free(&config->arena);
    memset(config, 0, sizeof(*config));
}

const char *config_annotation(const struct oci_config *config, const char *key)
{
    return json_string_value(json_object_get(config->annotations, key));
}
