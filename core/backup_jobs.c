/* The work behind backup.c, on worker threads. See backup.h. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "core/backup.h"
#include "core/copy.h"
#include "core/export.h"
#include "core/snapshot.h"

#define PATH_SIZE (2 * DRIVER_PATH_MAX)

static int get_driver(struct core *core, const char *name, struct driver_instance *instance,
                      const struct driver_ops **ops, struct fault *fault)
{
    core_lock(core);
    int rc = instance_driver(core, name, instance, ops, fault);
    core_unlock(core);
    return rc;
}

static int failed(const char *what, const char *path, struct fault *fault)
{
    struct err err = {0};
    err_sys(&err, -errno, "%s '%s'", what, path);
    return fault_from_err(fault, &err);
}

static int sync_folder(const char *path, struct fault *fault)
{
    char copy[4096 + 64];
    snprintf(copy, sizeof(copy), "%s", path);
    auto_close int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? failed("cannot save the folder of", path, fault) : 0;
}

/* ---- out ---- */

static json_t *manifest_of(const struct origin *origin)
{
    json_t *disks = json_array(), *disk, *config = origin_config(origin);
    size_t i;
    json_array_foreach(origin->disks, i, disk)
    {
        json_t *one = json_pack("{s:s, s:I}", "label", obj_text(disk, "label"), "size",
                                (json_int_t)align_up((uint64_t)obj_int(disk, "size"), 512));
        const char *volume = obj_text(disk, "volume");
        obj_set_text(one, "volume", volume[0] ? volume : NULL);
        json_array_append_new(disks, one);
    }
    json_object_del(config, "volumes");
    json_t *manifest = json_pack("{s:i, s:s, s:s, s:o, s:o}", "format", EXPORT_FORMAT, "fonda", FONDA_VERSION,
                                 "name", origin->name, "config", config, "disks", disks);
    obj_set_now(manifest, "created_at");
    return manifest;
}

static int write_origin(struct job *job, const struct origin *origin, int fd, char *ret_sha256,
                        struct fault *fault)
{
    struct disk_source sources[EXPORT_DISKS_MAX];
    unsigned count = (unsigned)json_array_size(origin->disks);
    size_t i;
    json_t *disk;
    if (count > EXPORT_DISKS_MAX) {
        return fault_set(fault, FAULT_UNSUPPORTED, NULL, "an instance with more than %u disks",
                         EXPORT_DISKS_MAX);
    }
    json_array_foreach(origin->disks, i, disk)
    {
        const char *format = obj_text(disk, "format"), *snapshot = obj_text(disk, "snapshot");
        sources[i] = (struct disk_source){obj_text(disk, "path"), format[0] ? format : NULL,
                                          snapshot[0] ? snapshot : NULL};
    }
    json_t *manifest = manifest_of(origin);
    int rc = export_write(fd, manifest, sources, count, copy_progress, job, ret_sha256, fault);
    json_decref(manifest);
    return rc;
}

/* The instance's disks at one moment, whether it runs or not. */
static int write_instance(struct core *core, struct job *job, int fd, char *ret_sha256, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    struct origin origin = {0};
    json_t *held = NULL;
    if (get_driver(core, job_target(job), &instance, &ops, fault) < 0) {
        return -1;
    }
    core_lock(core);
    bool running = supervise_has(core, instance.id);
    json_t *disks = instance_disks(core, instance.spec);
    core_unlock(core);
    int rc = 0;
    if (running && json_array_size(disks)) {
        job_step(core, job, 0, 2, "holding its disks");
        rc = snapshot_hold_disks(core, job, &instance, &held, fault);
    }
    json_decref(disks);
    if (rc == 0) {
        job_step(core, job, 1, 2, "writing its disks");
        core_lock(core);
        origin_from_spec(core, instance.spec, held ? obj_text(held, "id") : NULL, &origin);
        core_unlock(core);
        rc = origin_look(&origin, fault);
    }
    rc = rc ? rc : write_origin(job, &origin, fd, ret_sha256, fault);
    origin_done(&origin);
    if (held) {
        snapshot_release_disks(core, job, &instance, held);
    }
    instance_driver_done(&instance);
    return rc;
}

/* A file without a name gets one; where the file system knows no such files, it has one that recover.c or the
 * owner of the folder can tell. */
static int open_target(const char *path, char *partial, size_t size, struct fault *fault)
{
    char copy[4096 + 64];
    snprintf(copy, sizeof(copy), "%s", path);
    partial[0] = '\0';
    int fd = open(dirname(copy), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
        snprintf(partial, size, "%s.partial", path);
        fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    return fd < 0 ? failed("cannot make", path, fault) : fd;
}

static int give_name(int fd, const char *partial, const char *path, struct fault *fault)
{
    char self[64];
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    int rc = partial[0] ? renameat2(AT_FDCWD, partial, AT_FDCWD, path, RENAME_NOREPLACE)
                        : linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
    return rc < 0 ? failed("cannot make", path, fault) : sync_folder(path, fault);
}

static int write_to(struct core *core, struct job *job, const char *path, char *ret_sha256,
                    struct fault *fault)
{
    char partial[4096 + 64];
    if (job_canceled(job)) {
        return fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
    }
    auto_close int fd = open_target(path, partial, sizeof(partial), fault);
    if (fd < 0) {
        return -1;
    }
    int rc = write_instance(core, job, fd, ret_sha256, fault);
    rc = rc ? rc : give_name(fd, partial, path, fault);
    if (rc < 0 && partial[0]) {
        unlink(partial);
    }
    return rc;
}

static int run_export(struct core *core, struct job *job, struct fault *fault)
{
    char sha256[65];
    const char *path = obj_text(job_args(job), "path");
    if (write_to(core, job, path, sha256, fault) < 0) {
        return -1;
    }
    job_log(core, job, "sha256 %s", sha256);
    core_lock(core);
    struct fault ignored = {0};
    event_add(core, "instance.exported", &model_instance, job_target(job), job_who(job),
              json_pack("{s:s}", "sha256", sha256), &ignored);
    core_unlock(core);
    job_step(core, job, 2, 2, "exported");
    return 0;
}

static int run_backup(struct core *core, struct job *job, struct fault *fault)
{
    char path[PATH_SIZE], sha256[65];
    json_t *row = NULL;
    struct stat st;
    core_lock(core);
    int rc = object_get(core, &model_backup, obj_text(job_args(job), "backup"), &row, NULL, fault);
    core_unlock(core);
    if (rc < 0) {
        return -1;
    }
    backup_path(core, row, path, sizeof(path));
    rc = write_to(core, job, path, sha256, fault);
    core_lock(core);
    if (rc == 0) {
        obj_set_text(row, "state", "ready");
        obj_set_text(row, "sha256", sha256);
        obj_set_int(row, "size", stat(path, &st) == 0 ? st.st_size : 0);
        rc = object_put(core, &model_backup, row, STORE_VERSION_ANY, "backup.created", job_who(job), fault);
    }
    if (rc < 0) {
        struct fault ignored = {0};
        backup_drop(core, row, job_who(job), &ignored);
    }
    core_unlock(core);
    json_decref(row);
    if (rc == 0) {
        job_step(core, job, 2, 2, "backed up");
    }
    return rc;
}

/* ---- in ---- */

struct importing {
    struct core *core;
    struct job *job;
    struct driver_instance *instance;
    bool trust;
    json_t *config, *disks; /* what the instance becomes; the manifest's disks */
};

static void file_of(const struct importing *in, unsigned index, char *buf, size_t size)
{
    snprintf(buf, size, "%s/import-%u.qcow2", in->instance->dir, index);
}

static void on_disk_path(void *opaque, unsigned index, char *buf, size_t size)
{
    file_of(opaque, index, buf, size);
}

static bool on_progress(void *opaque, uint64_t done, uint64_t total)
{
    const struct importing *in = opaque;
    return copy_progress(in->job, done, total);
}

static bool is_nothing(const json_t *value)
{
    return json_is_null(value) || json_is_false(value) || (json_is_array(value) && !json_array_size(value)) ||
           (json_is_object(value) && !json_object_size(value));
}

/* What may be believed of the members in an archive. */
static json_t *filter_config(const struct importing *in, const json_t *config)
{
    json_t *out = json_object();
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)config, key, value)
    {
        const struct field *field = field_find(&model_instance, key, strlen(key));
        if (!field || (field->flags & F_RO) || strcmp(key, "name") == 0 || strcmp(key, "volumes") == 0) {
            continue;
        }
        if ((field->flags & F_HOST) && !in->trust) {
            if (!is_nothing(value)) {
                job_log(in->core, in->job, "left out: '%s' names the host's files", key);
            }
            continue;
        }
        json_object_set(out, key, value);
    }
    return out;
}

/* Networks of another host are not this one's. */
static void filter_networks(const struct importing *in, json_t *config)
{
    json_t *kept = json_array(), *item;
    size_t i;
    json_array_foreach(json_object_get(config, "networks"), i, item)
    {
        const char *name = json_string_value(item);
        json_t *network = NULL;
        struct fault ignored = {0};
        core_lock(in->core);
        bool there = name && (strcmp(name, "user") == 0 ||
                              object_get(in->core, &model_network, name, &network, NULL, &ignored) == 0);
        core_unlock(in->core);
        json_decref(network);
        if (there) {
            json_array_append(kept, item);
        } else {
            job_log(in->core, in->job, "left out: there is no network '%.64s' here", name ? name : "");
        }
    }
    json_object_set_new(config, "networks", kept);
}

static int check_quotas(const struct importing *in, struct fault *fault)
{
    const char *owner = obj_text(in->instance->spec, "owner");
    int64_t bytes = 0;
    size_t i;
    json_t *disk;
    json_array_foreach(in->disks, i, disk)
    {
        bytes += obj_int(disk, "size");
    }
    json_t *more = json_pack("{s:I}", "size", (json_int_t)bytes);
    core_lock(in->core);
    int rc = quota_check(in->core, owner, &model_instance, in->config, in->instance->name, fault);
    rc = rc ? rc : quota_check(in->core, owner, &model_volume, more, NULL, fault);
    core_unlock(in->core);
    json_decref(more);
    return rc;
}

static int on_manifest(void *opaque, json_t *manifest, struct fault *fault)
{
    struct importing *in = opaque;
    bool volumes_first = obj_bool(json_object_get(manifest, "config"), "volumes_first");
    json_t *config = filter_config(in, json_object_get(manifest, "config"));
    in->config = config;
    in->disks = json_incref(json_object_get(manifest, "disks"));
    filter_networks(in, config);
    obj_set_text(config, "name", in->instance->name);
    if (field_check(&model_instance, config, FIELD_CREATE, in->trust, fault) < 0) {
        char detail[400];
        snprintf(detail, sizeof(detail), "%.390s", fault->detail);
        return fault_set(fault, FAULT_INVALID, fault->hint, "the archive's manifest: %s", detail);
    }
    if (driver_has_room(config)) {
        return fault_set(fault, FAULT_UNSUPPORTED, NULL, "the archive is no machine's");
    }
    if (volumes_first) {
        json_object_set_new(config, "volumes_first", json_true());
    }
    return check_quotas(in, fault);
}

/* Rows and places for the disks; names of volumes are the new instance's, or, in place, those they had. The
 * files of volumes that are replaced are left in ret_old. Locked, in a transaction. */
static int place_disks(struct importing *in, bool in_place, json_t *names, json_t *ret_old,
                       struct fault *fault)
{
    struct core *core = in->core;
    size_t i;
    json_t *disk;
    json_array_foreach(in->disks, i, disk)
    {
        char name[2 * FIELD_NAME_MAX + 2], id[16], from[PATH_SIZE], to[PATH_SIZE];
        const char *had = obj_text(disk, "volume");
        json_t *volume = NULL;
        struct fault ignored = {0};
        snprintf(name, sizeof(name), "%s-%s", in->instance->name, obj_text(disk, "label"));
        bool its_own = false;
        size_t j;
        json_t *item;
        json_array_foreach(json_object_get(in->instance->spec, "volumes"), j, item)
        {
            its_own |= in_place && strcmp(json_string_value(item), had) == 0;
        }
        if (its_own) {
            snprintf(name, sizeof(name), "%s", had);
        }
        if (!field_name_ok(name)) {
            return fault_set(fault, FAULT_INVALID, "choose a shorter one",
                             "the volume would be called '%s', which is too long", name);
        }
        random_id(id);
        if (its_own && object_get(core, &model_volume, name, &volume, NULL, &ignored) == 0) {
            volume_path(core, volume, to, sizeof(to));
            json_array_append_new(ret_old, json_string(to));
        } else {
            volume = json_pack("{s:s, s:s, s:s}", "name", name, "owner",
                               obj_text(in->instance->spec, "owner"), "made_for", in->instance->id);
            field_defaults(&model_volume, volume);
            obj_set_now(volume, "created_at");
            its_own = false;
        }
        obj_set_text(volume, "id", id);
        obj_set_text(volume, "format", "qcow2");
        obj_set_text(volume, "backing", NULL);
        obj_set_int(volume, "size", obj_int(disk, "size"));
        volume_path(core, volume, to, sizeof(to));
        file_of(in, (unsigned)i, from, sizeof(from));
        int rc = object_put(core, &model_volume, volume, its_own ? STORE_VERSION_ANY : STORE_VERSION_NEW,
                            its_own ? "volume.changed" : "volume.created", job_who(in->job), fault);
        json_decref(volume);
        struct err err = {0};
        if (rc == 0 && its_own && store_unlink_all(core->store, "volume", name, &err) < 0) {
            rc = fault_from_err(fault, &err); /* it is no linked copy any more */
        }
        if (rc == 0 && rename(from, to) < 0) {
            rc = failed("cannot place", to, fault);
        }
        if (rc < 0) {
            return -1;
        }
        json_array_append_new(names, json_string(name));
    }
    return 0;
}

/* The instance becomes what was read. Files that lie in the volumes' directory without a row, should this
 * fail, are swept by the next daemon. */
static int register_import(struct importing *in, bool in_place, struct fault *fault)
{
    struct core *core = in->core;
    json_t *instance = NULL, *names = json_array(), *old = json_array(), *path;
    size_t i;
    core_lock(core);
    int rc = core_begin(core, fault);
    if (rc == 0) {
        rc = object_get(core, &model_instance, in->instance->name, &instance, NULL, fault);
        rc = rc ? rc : place_disks(in, in_place, names, old, fault);
        if (rc == 0) {
            json_object_update(instance, in->config);
            json_object_set(instance, "volumes", names);
            if (!json_object_get(in->config, "volumes_first")) {
                json_object_del(instance, "volumes_first");
            }
            if (obj_bool(job_args(in->job), "twin")) {
                char machine_id[33];
                random_machine_id(machine_id, sizeof(machine_id));
                obj_set_text(instance, "machine_id", machine_id);
            }
            obj_set_text(instance, "state", "stopped");
            obj_set_text(instance, "state_reason", "");
            rc = driver_vm.check(instance, fault);
        }
        rc = rc ? rc
                : object_put(core, &model_instance, instance, STORE_VERSION_ANY,
                             in_place ? "instance.restored" : "instance.created", job_who(in->job), fault);
        rc = rc ? rc : instance_link(core, instance, fault);
        rc = core_end(core, rc, "", fault);
    }
    json_array_foreach(old, i, path)
    {
        if (rc == 0) {
            unlink(json_string_value(path));
        }
    }
    core_unlock(core);
    json_decref(instance);
    json_decref(names);
    json_decref(old);
    return rc;
}

static int import(struct core *core, struct job *job, const char *path, bool trust, bool in_place,
                  struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    char file[PATH_SIZE];
    if (get_driver(core, job_target(job), &instance, &ops, fault) < 0) {
        return -1;
    }
    struct importing in = {.core = core, .job = job, .instance = &instance, .trust = trust};
    const struct export_reader_ops reader = {on_manifest, on_disk_path, on_progress, &in};
    int rc = make_dirs(instance.dir);
    if (rc < 0) {
        errno = -rc;
        rc = failed("cannot make", instance.dir, fault);
    }
    auto_close int fd = rc == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (rc == 0 && fd < 0) {
        rc = failed("cannot read", path, fault);
    }
    job_step(core, job, 0, 2, "reading and verifying it");
    rc = rc ? rc : export_read(fd, &reader, fault);
    if (rc == 0) {
        job_step(core, job, 1, 2, "taking it over");
        rc = sync_folder(instance.control, fault); /* any name in it */
        rc = rc ? rc : register_import(&in, in_place, fault);
    }
    for (unsigned i = 0; i < json_array_size(in.disks); i++) {
        file_of(&in, i, file, sizeof(file));
        unlink(file);
    }
    json_decref(in.config);
    json_decref(in.disks);
    instance_driver_done(&instance);
    return rc;
}

static int run_import(struct core *core, struct job *job, struct fault *fault)
{
    int rc =
        import(core, job, obj_text(job_args(job), "path"), obj_bool(job_args(job), "trust"), false, fault);
    if (rc < 0) {
        struct fault ignored = {0};
        instance_forget(core, job_target(job), job_who(job), &ignored);
    } else {
        job_step(core, job, 2, 2, "imported");
    }
    return rc;
}

static int get_backup(struct core *core, const char *name, char *path, size_t size, json_t **ret_row,
                      struct fault *fault)
{
    core_lock(core);
    int rc = object_get(core, &model_backup, name, ret_row, NULL, fault);
    core_unlock(core);
    if (rc == 0) {
        backup_path(core, *ret_row, path, size);
    }
    return rc;
}

static int run_restore(struct core *core, struct job *job, struct fault *fault)
{
    char path[PATH_SIZE];
    json_t *row = NULL;
    int rc = get_backup(core, obj_text(job_args(job), "backup"), path, sizeof(path), &row, fault);
    rc = rc ? rc : import(core, job, path, true, true, fault);
    json_decref(row);
    if (rc == 0) {
        job_step(core, job, 2, 2, "restored");
    }
    return rc;
}

static int run_verify(struct core *core, struct job *job, struct fault *fault)
{
    char path[PATH_SIZE];
    json_t *row = NULL;
    const struct export_reader_ops reader = {.progress = copy_progress, .opaque = job};
    int rc = get_backup(core, job_target(job), path, sizeof(path), &row, fault);
    auto_close int fd = rc == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (rc == 0 && fd < 0) {
        rc = failed("cannot read", path, fault);
    }
    job_step(core, job, 0, 1, "reading all of it");
    rc = rc ? rc : export_read(fd, &reader, fault);
    if (rc == 0) {
        core_lock(core);
        obj_set_now(row, "verified_at");
        rc = object_put(core, &model_backup, row, STORE_VERSION_ANY, "backup.verified", job_who(job), fault);
        core_unlock(core);
        job_step(core, job, 1, 1, "as it was written");
    }
    json_decref(row);
    return rc;
}

const struct job_type job_instance_export = {"instance.export", run_export};
const struct job_type job_instance_import = {"instance.import", run_import};
const struct job_type job_backup_create = {"backup.create", run_backup};
const struct job_type job_backup_restore = {"backup.restore", run_restore};
const struct job_type job_backup_verify = {"backup.verify", run_verify};
