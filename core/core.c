/*
 * Opening and closing the core, and the small things that all of its files use.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "base/util.h"
#include "core/core_int.h"

const struct driver_ops *const drivers[] = {&driver_vm, &driver_container, NULL};

const struct driver_ops *driver_find(const char *kind)
{
    for (size_t i = 0; drivers[i]; i++) {
        if (strcmp(drivers[i]->kind, kind) == 0) {
            return drivers[i];
        }
    }
    return NULL;
}

static bool is_image_machine(const json_t *spec)
{
    return strcmp(obj_text(spec, "kind"), "vm") == 0 && obj_text(spec, "image")[0];
}

const struct driver_ops *driver_of(const json_t *spec)
{
    return is_image_machine(spec) ? &driver_image_machine : driver_find(obj_text(spec, "kind"));
}

bool driver_has_room(const json_t *spec)
{
    return strcmp(obj_text(spec, "kind"), "container") == 0 || is_image_machine(spec);
}

uint64_t monotonic_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void random_id(char *buf)
{
    uint8_t bytes[6];
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        abort(); /* never for so few bytes (getrandom(2)) */
    }
    for (size_t i = 0; i < sizeof(bytes); i++) {
        snprintf(buf + 2 * i, 3, "%02x", bytes[i]);
    }
}

int make_dirs(const char *path)
{
    char part[DRIVER_PATH_MAX];
    if (strlen(path) >= sizeof(part)) {
        return -ENAMETOOLONG;
    }
    for (size_t i = 1;; i++) {
        if (path[i] != '/' && path[i] != '\0') {
            continue;
        }
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0700) < 0 && errno != EEXIST) {
            return -errno;
        }
        if (path[i] == '\0') {
            return 0;
        }
    }
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path) < 0 && errno != ENOENT ? errno : 0;
}

int tree_remove(const char *path)
{
    int rc = nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    return rc > 0 ? -rc : rc < 0 && errno != ENOENT ? -errno : 0;
}

void core_lock(struct core *core)
{
    pthread_mutex_lock(&core->lock);
}

void core_unlock(struct core *core)
{
    pthread_mutex_unlock(&core->lock);
}

struct store *core_store(struct core *core)
{
    return core->store;
}

const char *core_state_dir(const struct core *core)
{
    return core->state_dir;
}

uint64_t core_uptime_ms(const struct core *core)
{
    return monotonic_ms() - core->opened_ms;
}

static int open_dirs(struct core *core, struct err *err)
{
    static const char *const names[] = {"", "/instances", "/volumes"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char path[DRIVER_PATH_MAX];
        snprintf(path, sizeof(path), "%s%s", core->state_dir, names[i]);
        int rc = make_dirs(path);
        if (rc < 0) {
            return err_sys(err, rc, "cannot make the state directory '%s'", path);
        }
    }
    int rc = make_dirs(core->backup_dir);
    return rc < 0 ? err_sys(err, rc, "cannot make the backup directory '%s'", core->backup_dir) : 0;
}

/* Control sockets lie in the state directory, and socket addresses are short: sun_path, unix(7). */
#define STATE_DIR_MAX 70

int core_open(const struct core_config *config, struct core **ret_core, struct err *err)
{
    if (config->state_dir[0] != '/' || strlen(config->state_dir) > STATE_DIR_MAX) {
        return err_set(err, -EINVAL,
                       "the state directory '%s' must be an absolute path of at most %d bytes: sockets "
                       "lie in it",
                       config->state_dir, STATE_DIR_MAX);
    }
    if (config->backup_dir &&
        (config->backup_dir[0] != '/' || strlen(config->backup_dir) >= DRIVER_PATH_MAX)) {
        return err_set(err, -EINVAL,
                       "the backup directory '%s' must be an absolute path of less than %d bytes",
                       config->backup_dir, DRIVER_PATH_MAX);
    }
    struct core *core = calloc(1, sizeof(*core));
    if (!core) {
        return err_set(err, -ENOMEM, "no memory");
    }
    core->config = *config;
    core->opened_ms = monotonic_ms();
    core->epoll_fd = core->wake_fd = -1;
    pthread_mutex_init(&core->lock, NULL);
    pthread_cond_init(&core->job_cond, NULL);
    pthread_cond_init(&core->sampler_cond, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&core->scheduler_cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    core->state_dir = strdup(config->state_dir);
    if (asprintf(&core->backup_dir, "%s%s", config->backup_dir ? config->backup_dir : config->state_dir,
                 config->backup_dir ? "" : "/backups") < 0) {
        core->backup_dir = NULL;
    }
    int rc = core->state_dir && core->backup_dir ? open_dirs(core, err) : err_set(err, -ENOMEM, "no memory");
    if (rc == 0) {
        rc = store_open(core->state_dir, &core->store, err);
    }
    if (rc == 0) {
        rc = supervise_open(core, err);
    }
    if (rc == 0) {
        core_lock(core);
        rc = jobs_open(core, err);
        if (rc == 0) {
            rc = recover(core, err);
        }
        if (rc == 0 && !config->no_autostart) {
            recover_autostart(core);
        }
        core_unlock(core);
    }
    if (rc == 0) {
        rc = history_open(core, err);
    }
    if (rc == 0) {
        rc = schedule_open(core, err);
    }
    if (rc < 0) {
        core_close(core);
        return rc;
    }
    *ret_core = core;
    return 0;
}

void core_close(struct core *core)
{
    if (!core) {
        return;
    }
    schedule_close(core);
    history_close(core);
    jobs_close(core);
    supervise_close(core);
    store_close(core->store);
    pthread_cond_destroy(&core->job_cond);
    pthread_mutex_destroy(&core->lock);
    pthread_cond_destroy(&core->scheduler_cond);
    free(core->state_dir);
    free(core->backup_dir);
    free(core);
}
