/* See snapshot.h. */
#include "vm/saved/snapshot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/util.h"
#include "block/image.h"
#include "control/control.h"
#include "vm/devices.h"
#include "vm/host_int.h"
#include "vm/hotplug.h"
#include "vm/machine.h"
#include "vm/rundir.h"
#include "vm/saved/file.h"
#include "vm/saved/save.h"

#define DISKS_MAX OPTION_LIST_MAX
#define SUFFIX    ".state"

/* --- disks ------------------------------------------------------------------------------------------------
 */

static bool is_name(const char *name)
{
    return strlen(name) <= SNAPSHOT_NAME_MAX && rundir_name_valid(name);
}

/* The first disk that is written to; NULL, without an error: there is none. */
static const char *first_disk(struct devices *devices, const char *name, struct err *err)
{
    const char *first = NULL;
    if (!is_name(name)) {
        err_set(err, -EINVAL, "'%.64s' is no name for a snapshot: 1 to 40 letters, digits, '-', '_', '.'",
                name);
        return NULL;
    }
    for (unsigned i = 0; i < devices_disks(devices); i++) {
        struct blk_node *node = devices_disk(devices, i);
        struct blk_info info;
        blk_get_info(node, &info);
        if (info.read_only) {
            continue;
        }
        if (strcmp(info.format, "qcow2") != 0) {
            err_set(err, -ENOTSUP, "disk '%.256s' is %s, which has no snapshots: convert it to qcow2",
                    info.filename, info.format);
            return NULL;
        }
        first = first ? first : info.filename;
    }
    return first;
}

int snapshot_check(struct devices *devices, const char *name, bool disks_needed, struct err *err)
{
    struct err why = {0};
    if (!first_disk(devices, name, &why)) {
        if (why.code || disks_needed) {
            return err_set(err, why.code ? why.code : -ENOTSUP, "%s",
                           why.code ? why.text : "the machine has no disk that it writes to");
        }
    }
    return 0;
}

int snapshot_path(struct devices *devices, const char *name, char *buf, size_t size, struct err *err)
{
    struct err why = {0};
    const char *first = first_disk(devices, name, &why);
    if (!first) {
        return err_set(err, why.code ? why.code : -ENOTSUP, "%s",
                       why.code ? why.text
                                : "the machine has no disk that it writes to: use 'fonda vm save'");
    }
    int n = snprintf(buf, size, "%s.%s" SUFFIX, first, name);
    return n > 0 && (size_t)n < size ? 0 : err_set(err, -ENAMETOOLONG, "the snapshot's path is too long");
}

static bool writable(struct blk_node *node)
{
    struct blk_info info;
    blk_get_info(node, &info);
    return !info.read_only;
}

int snapshot_save_disks(struct devices *devices, const char *name, struct err *err)
{
    for (unsigned i = 0; i < devices_disks(devices); i++) {
        struct blk_node *node = devices_disk(devices, i);
        int rc = writable(node) ? image_snapshot_create(node, name, err) : 0;
        if (rc < 0) {
            snapshot_delete_disks(devices, name, NULL);
            return rc;
        }
    }
    return 0;
}

static bool is_latched(struct blk_node *node)
{
    struct blk_info info;
    blk_get_info(node, &info);
    return info.latched;
}

static bool has_snapshot(struct blk_node *node, const char *name)
{
    struct image_snapshot *list = NULL;
    unsigned count = 0;
    bool found = false;
    if (image_snapshots(node, &list, &count, NULL) == 0) {
        for (unsigned i = 0; i < count; i++) {
            found |= strcmp(list[i].name, name) == 0;
        }
        free(list);
    }
    return found;
}

int snapshot_delete_disks(struct devices *devices, const char *name, struct err *err)
{
    int result = 0;
    for (unsigned i = 0; i < devices_disks(devices); i++) {
        struct blk_node *node = devices_disk(devices, i);
        if (writable(node) && has_snapshot(node, name)) {
            int rc = image_snapshot_delete(node, name, result == 0 ? err : NULL);
            result = result == 0 ? rc : result;
        }
    }
    return result;
}

/* --- going back
 * ---------------------------------------------------------------------------------------------
 */

/* No names for snapshots of machines (is_name), so nobody else's. */
#define UNDO_FIRST "fonda: loading, the first disk before"
#define UNDO_OTHER "fonda: loading, another disk before"

/* The writable disks, at most max of them; the first is the sign. */
static unsigned writable_disks(struct devices *devices, struct blk_node **nodes, unsigned max)
{
    unsigned count = 0;
    for (unsigned i = 0; i < devices_disks(devices) && count < max; i++) {
        if (writable(devices_disk(devices, i))) {
            nodes[count++] = devices_disk(devices, i);
        }
    }
    return count;
}

static const char *undo_name(unsigned index)
{
    return index == 0 ? UNDO_FIRST : UNDO_OTHER;
}

/* From the last disk to the first, whose snapshot is the sign that there is something to undo. */
static int undo(struct blk_node **nodes, unsigned count, struct err *err)
{
    int rc = 0;
    for (unsigned i = count; i-- > 0 && rc == 0;) {
        rc = has_snapshot(nodes[i], undo_name(i)) ? image_snapshot_apply(nodes[i], undo_name(i), err) : 0;
    }
    for (unsigned i = count; i-- > 0 && rc == 0;) {
        rc = has_snapshot(nodes[i], undo_name(i)) ? image_snapshot_delete(nodes[i], undo_name(i), err) : 0;
    }
    return rc;
}

/* The first disk's goes first: from then on all is done. What remains of the others is only room. */
static int conclude(struct blk_node **nodes, unsigned count, struct err *err)
{
    int rc = has_snapshot(nodes[0], UNDO_FIRST) ? image_snapshot_delete(nodes[0], UNDO_FIRST, err) : 0;
    if (rc < 0 && has_snapshot(nodes[0], UNDO_FIRST)) {
        return rc;
    }
    for (unsigned i = 1; i < count; i++) {
        if (has_snapshot(nodes[i], UNDO_OTHER)) {
            (void)image_snapshot_delete(nodes[i], UNDO_OTHER, NULL);
        }
    }
    return 0;
}

int snapshot_load_disks(struct devices *devices, const char *name, struct err *err)
{
    struct blk_node *nodes[DISKS_MAX];
    unsigned count = writable_disks(devices, nodes, ARRAY_SIZE(nodes));
    int rc = 0;
    for (unsigned i = 0; i < count && rc == 0; i++) {
        rc = image_snapshot_create(nodes[i], undo_name(i), err);
    }
    for (unsigned i = 0; i < count && rc == 0; i++) {
        rc = image_snapshot_apply(nodes[i], name, err);
    }
    if (rc == 0) {
        rc = conclude(nodes, count, err);
        if (rc < 0 &&
            is_latched(nodes[0])) { /* nobody knows whether it is concluded: nothing more may change */
            return err_set(err, -EUCLEAN,
                           "the snapshot's loading can't be concluded: the machine ends, and its next start "
                           "puts the disks back or has the snapshot's");
        }
    }
    struct err more = {0};
    if (rc < 0 && count > 0 && undo(nodes, count, &more) < 0 && has_snapshot(nodes[0], UNDO_FIRST)) {
        return err_set(err, -EUCLEAN,
                       "the snapshot can't be loaded, nor can what has changed be taken back now (%s): the "
                       "machine ends, "
                       "and its next start puts the disks back",
                       more.text);
    }
    return rc;
}

int snapshot_recover_disks(struct devices *devices, struct err *err)
{
    struct blk_node *nodes[DISKS_MAX];
    unsigned count = writable_disks(devices, nodes, ARRAY_SIZE(nodes));
    if (count == 0) {
        return 0;
    }
    int rc = has_snapshot(nodes[0], UNDO_FIRST) ? undo(nodes, count, err) : conclude(nodes, count, err);
    return rc < 0 ? err_prefix(err, "a snapshot was being loaded when the machine ended") : 0;
}

/* --- methods ----------------------------------------------------------------------------------------------
 */

static json_t *describe(const char *path, const char *name)
{
    struct stat st;
    return stat(path, &st) < 0 ? NULL
                               : json_pack("{s:s, s:I, s:I}", "name", name, "state_bytes",
                                           (json_int_t)st.st_size, "time_s", (json_int_t)st.st_mtime);
}

void host_snapshot_list(struct host *host, struct control_call *call)
{
    char path[PATH_MAX];
    struct err err = {0};
    int rc = snapshot_path(host->devices, "x", path, sizeof(path), &err);
    if (rc < 0) {
        control_fail_err(call, &err);
        return;
    }
    struct image_snapshot *list = NULL;
    unsigned count = 0, i = 0;
    while (!writable(devices_disk(host->devices, i))) { /* there is one: snapshot_path has seen it */
        i++;
    }
    image_snapshots(devices_disk(host->devices, i), &list, &count, NULL);
    json_t *out = json_array();
    for (i = 0; i < count; i++) {
        if (is_name(list[i].name) &&
            snapshot_path(host->devices, list[i].name, path, sizeof(path), NULL) == 0) {
            json_t *one = describe(path, list[i].name);
            if (one) {
                json_array_append_new(out, one);
            }
        }
    }
    free(list);
    control_reply(call, json_pack("{s:o}", "snapshots", out));
}

/* The path of one that is there; otherwise the call is failed. */
static bool find(struct host *host, const char *name, char *path, size_t size, struct control_call *call)
{
    struct err err = {0};
    if (host->saving) {
        control_fail(call, "busy", "wait for it, or cancel its job", "the machine is being saved");
    } else if (snapshot_path(host->devices, name, path, size, &err) < 0) {
        control_fail_err(call, &err);
    } else if (access(path, F_OK) < 0) {
        control_fail(call, "not_found", "'fonda vm snapshot list' shows them", "there is no snapshot '%s'",
                     name);
    } else {
        return true;
    }
    return false;
}

void host_snapshot_delete(struct host *host, const struct snapshot_request *request,
                          struct control_call *call)
{
    char path[PATH_MAX];
    struct err err = {0};
    bool kept = request->file || !request->memory; /* by the caller: what is gone already is fine */
    if (kept && host->saving) {
        control_fail(call, "busy", "wait for it, or cancel its job", "the machine is being saved");
        return;
    }
    if (!kept && !find(host, request->name, path, sizeof(path), call)) {
        return;
    }
    if (request->file) {
        snprintf(path, sizeof(path), "%s", request->file);
    }
    if (request->memory && unlink(path) < 0 && !(kept && errno == ENOENT)) {
        err_sys(&err, -errno, "cannot remove '%s'", path);
        control_fail_err(call, &err);
        return;
    }
    int rc = host_pause(host, false, &err);
    if (rc == 0) {
        devices_settle(host->devices);
        rc = snapshot_delete_disks(host->devices, request->name, &err);
        host_unpause(host, false);
    }
    if (rc < 0) {
        control_fail_err(call, &err);
    } else {
        control_reply(call, NULL);
    }
}

/* A disk that came or went since has no snapshot, or would be left out of it. */
static int same_devices(struct host *host, const char *config, struct err *err)
{
    json_t *root = json_loads(config, 0, NULL), *devices = json_object_get(root, "devices");
    auto_free char *then = devices ? json_dumps(devices, JSON_COMPACT) : NULL;
    bool same = devices_changes_equal(host->devices, then);
    json_decref(root);
    return same ? 0
                : err_set(err, -EBUSY,
                          "the machine had other disks and NICs then: attach and detach until they are the "
                          "same again");
}

/* A file that can't be loaded is found out before the machine is given up for it. */
void host_snapshot_load(struct host *host, const char *name, struct control_call *call)
{
    char path[PATH_MAX];
    struct err err = {0};
    struct saved_reader *reader = NULL;
    if (!find(host, name, path, sizeof(path), call)) {
        return;
    }
    int rc = saved_open(path, &reader, &err);
    rc = rc ? rc : same_devices(host, saved_head(reader)->config, &err);
    saved_close(reader);
    for (unsigned i = 0; i < devices_disks(host->devices) && rc == 0; i++) {
        struct blk_node *node = devices_disk(host->devices, i);
        if (writable(node) && !has_snapshot(node, name)) {
            rc = err_set(&err, -ENOENT, "a disk has no snapshot '%s' any more", name);
        }
    }
    if (rc == 0) {
        rc = host_pause(host, false, &err); /* for good: the machine ends */
    }
    if (rc < 0) {
        control_fail_err(call, &err);
        return;
    }
    devices_settle(host->devices);
    rc = snapshot_load_disks(host->devices, name, &err);
    if (rc < 0) {
        control_fail_err(call, &err);
        if (rc == -EUCLEAN) {
            host->err = err;
            machine_request_stop(host->machine, VM_STATUS_HOST);
        } else {
            host_unpause(host, false);
        }
        return;
    }
    host->again = strdup(path);
    control_reply(call, NULL);
    machine_request_stop(host->machine, VM_STATUS_OFF);
}

/* The options of this run that the command line had, with --restore for what the machine is made of. */
int snapshot_start_again(const struct vm_config *config, const char *path, struct err *err)
{
    char *argv[32 + 2 * OPTION_LIST_MAX];
    char timeout[24];
    int argc = 0;
    argv[argc++] = "fonda-vmm";
    argv[argc++] = "--restore";
    argv[argc++] = (char *)(uintptr_t)path;
    argv[argc++] = "--engine";
    argv[argc++] = (char *)(uintptr_t)config->engine;
    argv[argc++] = "--serial";
    argv[argc++] = (char *)(uintptr_t)config->serial;
    if (config->name) {
        argv[argc++] = "--name";
        argv[argc++] = (char *)(uintptr_t)config->name;
    }
    if (config->control) {
        argv[argc++] = "--control";
        argv[argc++] = (char *)(uintptr_t)config->control;
    }
    if (config->timeout_s) {
        snprintf(timeout, sizeof(timeout), "%llu", (unsigned long long)config->timeout_s);
        argv[argc++] = "--timeout";
        argv[argc++] = timeout;
    }
    argv[argc++] = "--jail";
    argv[argc++] = (char *)(uintptr_t)config->jail;
    for (unsigned i = 0; i < config->save_dirs.count; i++) {
        argv[argc++] = "--save-dir";
        argv[argc++] = (char *)(uintptr_t)config->save_dirs.values[i];
    }
    if (config->no_reboot) {
        argv[argc++] = "--no-reboot";
    }
    if (config->stats) {
        argv[argc++] = "--stats";
    }
    argv[argc] = NULL;
    execv("/proc/self/exe", argv);
    return err_sys(err, -errno, "cannot start again from '%s'", path);
}
