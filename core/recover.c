/*
 * What a daemon does first: brings the store, the processes and the directories of the last one together.
 *
 *   state in the store      its process lives            it does not
 *   creating                (never)                      undone: directory, row and the volumes made for it
 * go deleting                ended by force, then         directory and row go starting running stopped, with
 * a reason running, paused         as it says                   stopped; restart policy applies stopping
 * running                      stopped, or saved where its memory is complete restoring a snapshot    as
 * above                     as above; then the job begins anew
 *
 * Templates in state creating go, with their volumes; snapshots in state creating or deleting get a job that
 * deletes them (only the machine's process may touch its disks). Then directories and volume files that no
 * row knows are removed.
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/util.h"
#include "core/backup.h"
#include "core/copy.h"
#include "core/snapshot.h"

static bool collect_row(void *arg, const struct store_row *row)
{
    json_array_append_new(arg, json_loads(row->json, 0, NULL));
    return true;
}

static json_t *all_of(struct core *core, const char *kind, struct err *err)
{
    json_t *list = json_array();
    struct store_query query = {.limit = UINT32_MAX};
    if (store_list(core->store, kind, &query, collect_row, list, NULL, err) < 0) {
        json_decref(list);
        return NULL;
    }
    return list;
}

static void drop_instance(struct core *core, const json_t *spec)
{
    struct driver_instance paths;
    struct fault fault = {0};
    struct err err = {0};
    instance_paths(core, obj_text(spec, "id"), &paths);
    if (tree_remove(paths.dir) < 0 ||
        store_delete(core->store, "instance", obj_text(spec, "name"), STORE_VERSION_ANY, &err) < 0) {
        log_warning("cannot remove what is left of instance '%s'", obj_text(spec, "name"));
        return;
    }
    event_add(core, "instance.deleted", &model_instance, obj_text(spec, "name"), "", NULL, &fault);
}

/* Whether a process was started since the lock was emptied (driver_spawn). */
static bool was_spawned(const struct driver_instance *instance)
{
    struct stat st;
    return stat(instance->lock, &st) == 0 && st.st_size > 0;
}

static void adopt_one(struct core *core, const json_t *spec)
{
    const char *name = obj_text(spec, "name"), *state = obj_text(spec, "state");
    struct driver_instance instance;
    const struct driver_ops *ops;
    struct driver_status status = {0};
    struct fault fault = {0};
    if (instance_driver(core, name, &instance, &ops, &fault) < 0) {
        log_warning("instance '%s': %s", name, fault.detail);
        return;
    }
    if (ops->adopt(&instance, &status, &fault) < 0) {
        log_warning("instance '%s': %s", name, fault.detail);
    }
    if (strcmp(state, "creating") == 0 || strcmp(state, "deleting") == 0) {
        if (status.state != DRIVER_DEAD) {
            ops->kill(&instance, &fault);
        }
        ops->remove(&instance, &fault);
        drop_instance(core, spec);
        if (strcmp(state, "creating") == 0) {
            copy_forget_volumes(core, obj_text(spec, "id"));
        }
    } else if (status.state != DRIVER_DEAD) {
        if (strcmp(state, "starting") == 0) {
            unlink(instance.saved); /* it went on from there */
        }
        const char *now = status.state == DRIVER_PAUSED ? "paused" : "running";
        json_t *copy = json_deep_copy(spec);
        obj_set_text(copy, "state", now);
        obj_set_int(copy, "pid", status.pid);
        if (!json_equal(copy, (json_t *)spec)) {
            object_put(core, &model_instance, copy, STORE_VERSION_ANY, "instance.adopted", NULL, &fault);
        }
        json_decref(copy);
        if (supervise_add(core, instance.id, status.pid, &fault) < 0) {
            instance_ended(core, instance.id, -1); /* it ended just now */
        }
    } else if (strcmp(state, "starting") == 0 || strcmp(state, "stopping") == 0 ||
               strcmp(state, "running") == 0 || strcmp(state, "paused") == 0) {
        if (strcmp(state, "starting") == 0 && was_spawned(&instance)) {
            unlink(instance.saved); /* its disks may have gone on from there */
        }
        int code = -1;
        FILE *file = fopen(instance.status, "re");
        if (file) {
            code = fscanf(file, "%d", &code) == 1 ? code : -1;
            fclose(file);
        }
        if (code < 0 && ops->exit_status) {
            code = ops->exit_status(&instance);
        }
        instance_ended(core, instance.id, code);
    }
    instance_driver_done(&instance);
}

/* Rows of snapshots whose instance is gone, and templates that are half made. */
static int drop_rest(struct core *core, const json_t *instances, struct err *err)
{
    json_t *templates = all_of(core, "template", err), *snapshots = snapshot_rows(core, NULL), *row, *other;
    size_t i, j;
    json_array_foreach(templates, i, row)
    {
        if (strcmp(obj_text(row, "state"), "creating") == 0) {
            template_undo(core, obj_text(row, "name"));
        }
    }
    json_array_foreach(snapshots, i, row)
    {
        bool known = false;
        json_array_foreach(instances, j, other)
        {
            known |= strcmp(obj_text(other, "id"), obj_text(row, "instance_id")) == 0;
        }
        struct fault fault = {0};
        json_t *nobody = json_object();
        if (!known && snapshot_drop(core, nobody, row, "recovery", &fault) < 0) {
            log_warning("cannot forget snapshot '%s': %s", obj_text(row, "name"), fault.detail);
        }
        json_decref(nobody);
    }
    json_decref(snapshots);
    json_decref(templates);
    return templates ? 0 : -1;
}

/* Removes entries of dir whose names are no "id" of the list. */
static void sweep(struct core *core, const char *folder, const json_t *list)
{
    char dir[DRIVER_PATH_MAX], path[2 * DRIVER_PATH_MAX];
    snprintf(dir, sizeof(dir), "%s/%s", core->state_dir, folder);
    DIR *d = opendir(dir);
    const struct dirent *entry;
    while (d && (entry = readdir(d))) {
        bool known = entry->d_name[0] == '.';
        size_t i;
        json_t *item;
        json_array_foreach(list, i, item)
        {
            known |= strcmp(obj_text(item, "id"), entry->d_name) == 0;
        }
        if (!known) {
            snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
            log_info("removing '%s', which nothing refers to", path);
            tree_remove(path);
        }
    }
    if (d) {
        closedir(d);
    }
}

/* A volume whose file was never made. */
static void check_volumes(struct core *core, const json_t *volumes)
{
    size_t i;
    json_t *volume;
    json_array_foreach(volumes, i, volume)
    {
        char path[DRIVER_PATH_MAX];
        struct fault fault = {0};
        volume_path(core, volume, path, sizeof(path));
        if (access(path, F_OK) < 0 && volume_make(core, volume, &fault) == 0) {
            log_warning("the file of volume '%s' was missing; it is empty now", obj_text(volume, "name"));
        }
    }
}

int recover(struct core *core, struct err *err)
{
    json_t *instances = all_of(core, "instance", err);
    if (!instances) {
        return err ? err->code : -1;
    }
    size_t i;
    json_t *spec;
    json_array_foreach(instances, i, spec)
    {
        if (strcmp(obj_text(spec, "state"), "stopped") != 0 &&
            strcmp(obj_text(spec, "state"), "failed") != 0) {
            adopt_one(core, spec);
        } else { /* its end was seen, what it left may not have been removed any more */
            struct driver_instance paths;
            instance_paths(core, obj_text(spec, "id"), &paths);
            limit_clear_aside(paths.dir);
        }
    }
    /* As it is now: what was half made is gone. */
    json_decref(instances);
    instances = all_of(core, "instance", err);
    int rc = instances ? drop_rest(core, instances, err) : -1;
    json_t *volumes = rc == 0 ? all_of(core, "volume", err) : NULL;
    if (volumes) {
        sweep(core, "instances", instances);
        sweep(core, "volumes", volumes);
        check_volumes(core, volumes);
        snapshot_recover(core);
        backup_recover(core, instances);
    }
    json_decref(instances);
    json_decref(volumes);
    return volumes ? 0 : err && err->code ? err->code : -1;
}

static bool name_row(void *arg, const struct store_row *row)
{
    json_array_append_new(arg, json_string(row->name));
    return true;
}

void recover_autostart(struct core *core)
{
    static const struct store_node nodes[] = {
        {.op = STORE_OP_EQ, .path = "autostart", .type = STORE_BOOL, .number = 1},
        {.op = STORE_OP_EQ, .path = "state", .type = STORE_TEXT, .text = "stopped"},
        {.op = STORE_OP_AND, .left = 0, .right = 1},
    };
    struct store_query query = {.nodes = nodes,
                                .count = ARRAY_SIZE(nodes),
                                .limit = UINT32_MAX,
                                .sort_count = 1,
                                .sort = {{"autostart_order", false}}};
    json_t *names = json_array(), *name;
    size_t i;
    store_list(core->store, "instance", &query, name_row, names, NULL, NULL);
    json_array_foreach(names, i, name)
    {
        char job[24];
        struct fault fault = {0};
        if (instance_start(core, json_string_value(name), "autostart", job, &fault) < 0) {
            log_warning("cannot start '%s': %s", json_string_value(name), fault.detail);
        }
    }
    json_decref(names);
}
