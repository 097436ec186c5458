#include "container/cg_systemd.h"

#include "base/log.h"
#include "base/util.h"
#include "container/dbus.h"
#include "container/fault.h"
#include "container/json.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* systemd.unit(5): what names may consist of; "/" and ".." never get into a path this way. */
static bool is_unit_text(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.@\\-", text[i])) {
            return false;
        }
    }
    return n < 200;
}

int cg_systemd_choose(struct cg *cg, const char *cgroups_path, const char *id, struct err *err)
{
    const char *slice = cgroups_path ? cgroups_path : "";
    size_t slice_size = strcspn(slice, ":");
    const char *prefix = slice[slice_size] ? slice + slice_size + 1 : "";
    size_t prefix_size = strcspn(prefix, ":");
    const char *name = prefix[prefix_size] ? prefix + prefix_size + 1 : "";
    if (cgroups_path &&
        (strchr(cgroups_path, '/') || slice[slice_size] != ':' || prefix[prefix_size] != ':')) {
        return err_set(err, -EINVAL,
                       "linux.cgroupsPath '%.64s': with --systemd-cgroup it is of the form SLICE:PREFIX:NAME",
                       cgroups_path);
    }
    name = *name ? name : id;
    if (!is_unit_text(slice, slice_size) || !is_unit_text(prefix, prefix_size) ||
        !is_unit_text(name, strlen(name))) {
        return err_set(err, -EINVAL, "linux.cgroupsPath '%.64s' is no name for a unit of systemd's",
                       cgroups_path ? cgroups_path : id);
    }
    cg->slice = slice_size  ? arena_printf(&cg->arena, "%.*s", (int)slice_size, slice)
                : geteuid() ? "user.slice"
                            : "system.slice";
    if (!cgroups_path) {
        prefix = "fonda-oci";
        prefix_size = strlen(prefix);
    }
    cg->unit =
        arena_printf(&cg->arena, "%.*s%s%s.scope", (int)prefix_size, prefix, prefix_size ? "-" : "", name);
    cg->path = NULL;
    return 0;
}

/* --- properties: an array of (name, variant) --- */

static void put_name(struct dbus_body *b, const char *name, const char *signature)
{
    dbus_put_struct(b);
    dbus_put_string(b, name);
    dbus_put_signature(b, signature);
}

static void put_text(struct dbus_body *b, const char *name, const char *value)
{
    put_name(b, name, "s");
    dbus_put_string(b, value);
}

static void put_flag(struct dbus_body *b, const char *name, bool value)
{
    put_name(b, name, "b");
    dbus_put_u32(b, value);
}

static void put_number(struct dbus_body *b, const char *name, uint64_t value)
{
    put_name(b, name, "t");
    dbus_put_u64(b, value);
}

static int64_t limit(json_t *resources, const char *section, const char *key)
{
    return json_integer_value(json_object_get(json_object_get(resources, section), key));
}

/* Those limits that have a property; a negative one means none (systemd: the largest number). */
static void put_limits(struct dbus_body *b, json_t *resources)
{
    int64_t memory = limit(resources, "memory", "limit");
    int64_t pids = limit(resources, "pids", "limit");
    int64_t quota = limit(resources, "cpu", "quota");
    int64_t period = limit(resources, "cpu", "period");
    int64_t shares = limit(resources, "cpu", "shares");
    if (memory) {
        put_number(b, "MemoryMax", memory < 0 ? UINT64_MAX : (uint64_t)memory);
    }
    if (pids) {
        put_number(b, "TasksMax", pids < 0 ? UINT64_MAX : (uint64_t)pids);
    }
    if (quota) {
        period = period > 0 ? period : 100000;
        put_number(b, "CPUQuotaPerSecUSec",
                   quota < 0 ? UINT64_MAX : (uint64_t)quota * 1000000 / (uint64_t)period);
    }
    if (shares > 1) { /* as cg_limits.c maps shares to a weight */
        put_number(b, "CPUWeight", MIN((uint64_t)(1 + (shares - 2) * 9999 / 262142), 10000u));
    }
}

/* --- the scope --- */

static struct dbus bus; /* large */
static struct dbus_body body;

static pid_t start_placeholder(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            pause();
        }
    }
    return pid;
}

void cg_systemd_let_go(struct cg *cg)
{
    if (cg->placeholder > 0) {
        kill(cg->placeholder, SIGKILL);
        while (waitpid(cg->placeholder, NULL, 0) < 0 && errno == EINTR) {
        }
        cg->placeholder = 0;
    }
}

static int start_scope(struct cg *cg, json_t *resources, struct err *err)
{
    char job[256];
    body.size = 0;
    body.failed = false;
    dbus_put_string(&body, cg->unit);
    dbus_put_string(&body, "fail"); /* never somebody else's unit */
    size_t properties = dbus_put_array(&body, 8);
    put_text(&body, "Description", "container of fonda-oci");
    put_text(&body, "Slice", cg->slice);
    put_flag(&body, "Delegate", true);
    put_flag(&body, "DefaultDependencies", false);
    put_text(&body, "CollectMode", "inactive-or-failed");
    put_flag(&body, "MemoryAccounting", true);
    put_flag(&body, "CPUAccounting", true);
    put_flag(&body, "TasksAccounting", true);
    put_name(&body, "PIDs", "au");
    size_t pids = dbus_put_array(&body, 4);
    dbus_put_u32(&body, (uint32_t)cg->placeholder);
    dbus_end_array(&body, pids, 4);
    put_limits(&body, resources);
    dbus_end_array(&body, properties, 8);
    dbus_end_array(&body, dbus_put_array(&body, 8), 8); /* auxiliary units: none */
    int rc = dbus_subscribe(&bus, err);
    cg->scope_asked = rc == 0;
    rc = rc < 0 ? rc : dbus_call_manager(&bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body, err);
    if (rc < 0) {
        return rc;
    }
    snprintf(job, sizeof(job), "%s", dbus_get_string(&bus.in));
    do { /* id, job, unit, result */
        rc = dbus_wait_signal(&bus, "JobRemoved", err);
        if (rc < 0) {
            return rc;
        }
        (void)dbus_get_u32(&bus.in);
    } while (strcmp(dbus_get_string(&bus.in), job) != 0);
    (void)dbus_get_string(&bus.in);
    const char *result = dbus_get_string(&bus.in);
    return strcmp(result, "done") == 0
               ? 0
               : err_set(err, -EIO, "systemd could not start '%s': %s", cg->unit, result);
}

/* Where systemd has put the placeholder: in its named v1 hierarchy, or in v2. */
static int find_path(struct cg *cg, struct err *err)
{
    char file[32];
    auto_free char *text = NULL;
    size_t size = 0;
    snprintf(file, sizeof(file), "/proc/%d/cgroup", (int)cg->placeholder);
    int rc = file_read_all(AT_FDCWD, file, &text, &size, err);
    char *save = NULL;
    for (char *line = rc < 0 ? NULL : strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        const char *named = strstr(line, ":name=systemd:");
        const char *path = named                          ? named + strlen(":name=systemd:")
                           : strncmp(line, "0::", 3) == 0 ? line + 3
                                                          : NULL;
        size_t n = path ? strlen(path) : 0;
        size_t unit = strlen(cg->unit);
        if (n > unit && strcmp(path + n - unit, cg->unit) == 0) {
            cg->path = arena_strdup(&cg->arena, path);
        }
    }
    return rc < 0 ? rc
           : cg->path
               ? 0
               : err_set(err, -EIO, "systemd has made '%s', but no cgroup for it is to be seen", cg->unit);
}

int cg_systemd_start(struct cg *cg, json_t *resources, struct err *err)
{
    int rc = fault_step("scope", err);
    rc = rc < 0 ? rc : dbus_open(&bus, geteuid() != 0, err);
    if (rc < 0) {
        return err_prefix(err, "--systemd-cgroup");
    }
    cg->placeholder = start_placeholder();
    rc = cg->placeholder < 0 ? err_sys(err, -errno, "cannot fork") : start_scope(cg, resources, err);
    dbus_close(&bus);
    return rc < 0 ? rc : find_path(cg, err);
}

int cg_systemd_update(const char *unit, json_t *resources, struct err *err)
{
    int rc = dbus_open(&bus, geteuid() != 0, err);
    if (rc < 0) {
        return rc;
    }
    body.size = 0;
    body.failed = false;
    dbus_put_string(&body, unit);
    dbus_put_u32(&body, true); /* until the next boot */
    size_t properties = dbus_put_array(&body, 8);
    put_limits(&body, resources);
    dbus_end_array(&body, properties, 8);
    rc = dbus_call_manager(&bus, "SetUnitProperties", "sba(sv)", &body, err);
    dbus_close(&bus);
    return rc;
}

void cg_systemd_stop(const char *unit)
{
    struct err err = {.code = 0};
    if (dbus_open(&bus, geteuid() != 0, &err) == 0) {
        body.size = 0;
        body.failed = false;
        dbus_put_string(&body, unit);
        dbus_put_string(&body, "replace");
        dbus_call_manager(&bus, "StopUnit", "ss", &body, &err);
        dbus_close(&bus);
    }
    if (err.code) {
        log_debug("%s: %s", unit, err.text);
    }
}
