#include "container/state.h"

#include "base/log.h"
#include "base/util.h"
#include "container/config.h"
#include "container/fault.h"
#include "container/json.h"
#include "container/ns.h"
#include "container/paths.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

const char *const status_names[] = {"creating", "created", "running", "paused", "stopped"};

static int make_directories(const char *path, mode_t mode)
{
    char buffer[PATH_MAX];
    size_t n = strlen(path);
    if (n >= sizeof(buffer)) {
        return -ENAMETOOLONG;
    }
    memcpy(buffer, path, n + 1);
    for (char *p = buffer + 1;; p++) {
        if (*p && *p != '/') {
            continue;
        }
        char c = *p;
        *p = '\0';
        if (mkdir(buffer, mode) < 0 && errno != EEXIST) {
            return -errno;
        }
        *p = c;
        if (!c) {
            return 0;
        }
    }
}

int state_open_root(const char *option, bool make, struct err *err)
{
    char path[PATH_MAX];
    const char *run = getenv("XDG_RUNTIME_DIR");
    if (option) {
        snprintf(path, sizeof(path), "%s", option);
    } else if (run && *run && (geteuid() != 0 || !ns_in_initial_user())) {
        snprintf(path, sizeof(path), "%s/fonda-oci", run);
    } else if (geteuid() == 0) {
        snprintf(path, sizeof(path), "/run/fonda-oci");
    } else {
        snprintf(path, sizeof(path), "/tmp/fonda-oci-%u", (unsigned)geteuid());
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && make) {
        int rc = make_directories(path, 0700);
        if (rc < 0) {
            return err_sys(err, rc, "cannot make the state directory '%s'", path);
        }
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        int code = -errno;
        if (fd >= 0) {
            close(fd);
        }
        return err_sys(err, code, "cannot open the state directory '%s'", path);
    }
    if (st.st_uid != geteuid() && st.st_uid != 0) {
        close(fd);
        return err_set(err, -EPERM, "the state directory '%s' belongs to somebody else (uid %u)", path,
                       st.st_uid);
    }
    return fd;
}

int state_check_id(const char *id, struct err *err)
{
    size_t n = strlen(id);
    size_t good = strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-");
    if (n == 0 || n > NAME_MAX || good != n || id[0] == '.') {
        return err_set(
            err, -EINVAL,
            "'%.64s' can't be a container's id: letters, digits and _ + - . (not in front), at most %d", id,
            NAME_MAX);
    }
    return 0;
}

int state_new(struct state *state, int root_fd, const char *id, struct err *err)
{
    *state = (struct state){.root_fd = root_fd, .dir_fd = -1};
    int rc = state_check_id(id, err);
    if (rc < 0) {
        return rc;
    }
    state->id = arena_strdup(&state->arena, id);
    if (mkdirat(root_fd, id, 0700) < 0) {
        return errno == EEXIST ? err_set(err, -EEXIST, "container '%s' exists already", id)
                               : err_sys(err, -errno, "cannot make the state of container '%s'", id);
    }
    state->dir_fd = openat(root_fd, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (state->dir_fd < 0 || flock(state->dir_fd, LOCK_EX | LOCK_NB) < 0) {
        rc = err_sys(err, -errno, "cannot lock the state of container '%s'", id);
        unlinkat(root_fd, id, AT_REMOVEDIR);
        return rc;
    }
    struct timespec now;
    struct tm tm;
    char text[64];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + n, sizeof(text) - n, ".%09ldZ", now.tv_nsec);
    state->created = arena_strdup(&state->arena, text);
    snprintf(text, sizeof(text), "%u", (unsigned)geteuid());
    state->owner = arena_strdup(&state->arena, text);
    return 0;
}

static void set_str(json_t *o, const char *key, const char *value)
{
    if (value) {
        json_object_set_new(o, key, json_string(value));
    }
}

json_t *state_to_json(const struct state *state, enum status status)
{
    json_t *o = json_object();
    set_str(o, "ociVersion", OCI_VERSION);
    set_str(o, "id", state->id);
    set_str(o, "status", status_names[status]);
    if (state->pid > 0 && status != STATUS_STOPPED) {
        json_object_set_new(o, "pid", json_integer(state->pid));
    }
    set_str(o, "bundle", state->bundle);
    set_str(o, "rootfs", state->rootfs);
    set_str(o, "created", state->created);
    set_str(o, "owner", state->owner);
    if (state->annotations) {
        json_object_set(o, "annotations", state->annotations);
    }
    return o;
}

char *state_for_hooks(const struct state *state, enum status status)
{
    json_t *o = json_object();
    set_str(o, "ociVersion", OCI_VERSION);
    set_str(o, "id", state->id);
    set_str(o, "status", status_names[status]);
    if (state->pid > 0) {
        json_object_set_new(o, "pid", json_integer(state->pid));
    }
    set_str(o, "bundle", state->bundle);
    if (state->annotations) {
        json_object_set(o, "annotations", state->annotations);
    }
    char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return text;
}

int state_save(struct state *state, struct err *err)
{
    json_t *o = state_to_json(state, STATUS_CREATING);
    json_object_del(o, "status");
    json_object_set_new(o, "pid", json_integer(state->pid));
    json_object_set_new(o, "startTime", json_integer((json_int_t)state->start_time));
    set_str(o, "cgroup", state->cgroup);
    set_str(o, "systemdUnit", state->systemd_unit);
    json_object_set_new(o, "poststart", json_boolean(state->has_poststart));
    json_object_set_new(o, "poststop", json_boolean(state->has_poststop));
    auto_free char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    auto_close int fd = openat(state->dir_fd, "state.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int rc = fd < 0 ? -errno : text ? write_all(fd, text, strlen(text)) : -ENOMEM;
    if (rc == 0 && renameat(state->dir_fd, "state.new", state->dir_fd, "state.json") < 0) {
        rc = -errno;
    }
    return rc < 0 ? err_sys(err, rc, "cannot write the state of container '%s'", state->id) : 0;
}

static int load_members(struct state *state, struct err *err)
{
    json_t *o = state->json;
    int64_t pid = 0;
    int rc;
    if (!json_is_object(o)) {
        return err_set(err, -EINVAL, "not an object");
    }
    if ((rc = json_str(o, "", "ociVersion", &state->version, err)) < 0 ||
        (rc = json_str(o, "", "bundle", &state->bundle, err)) < 0 ||
        (rc = json_str(o, "", "rootfs", &state->rootfs, err)) < 0 ||
        (rc = json_str(o, "", "created", &state->created, err)) < 0 ||
        (rc = json_str(o, "", "owner", &state->owner, err)) < 0 ||
        (rc = json_str(o, "", "cgroup", &state->cgroup, err)) < 0 ||
        (rc = json_str(o, "", "systemdUnit", &state->systemd_unit, err)) < 0 ||
        (rc = json_i64(o, "", "pid", &pid, err)) < 0 ||
        (rc = json_u64(o, "", "startTime", &state->start_time, err)) < 0 ||
        (rc = json_flag(o, "", "poststart", &state->has_poststart, err)) < 0 ||
        (rc = json_flag(o, "", "poststop", &state->has_poststop, err)) < 0 ||
        (rc = json_obj(o, "", "annotations", &state->annotations, err)) < 0) {
        return rc;
    }
    state->pid = (pid_t)pid;
    return 0;
}

int state_load(struct state *state, int root_fd, const char *id, struct err *err)
{
    *state = (struct state){.root_fd = root_fd, .dir_fd = -1};
    int rc = state_check_id(id, err);
    if (rc < 0) {
        return rc;
    }
    state->id = arena_strdup(&state->arena, id);
    state->dir_fd = openat(root_fd, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (state->dir_fd < 0) {
        rc = errno == ENOENT ? err_set(err, -ENOENT, "container '%s' does not exist", id)
                             : err_sys(err, -errno, "cannot open the state of container '%s'", id);
        state_done(state);
        return rc;
    }
    auto_free char *text = NULL;
    size_t size = 0;
    if (faccessat(state->dir_fd, "state.json", F_OK, 0) < 0 && errno == ENOENT) {
        return 0;
    }
    rc = file_read_all(state->dir_fd, "state.json", &text, &size, err);
    if (rc == 0) {
        state->json = json_parse(text, size, "state.json", err);
        rc = state->json ? load_members(state, err) : -EINVAL;
    }
    if (rc < 0) {
        err_prefix(err, "state of container '%s'", id);
        state_done(state);
    }
    return rc;
}

int state_lock(struct state *state, int timeout_ms, struct err *err)
{
    while (flock(state->dir_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            return err_sys(err, -errno, "cannot lock the state of container '%s'", state->id);
        }
        if (timeout_ms <= 0) {
            return err_set(err, -EBUSY, "container '%s' is busy: another call is changing it", state->id);
        }
        usleep(5000);
        timeout_ms -= 5;
    }
    struct stat st;
    if (fstat(state->dir_fd, &st) == 0 && st.st_nlink == 0) {
        return err_set(err, -ENOENT, "container '%s' does not exist", state->id);
    }
    return 0;
}

void state_unlock(struct state *state)
{
    flock(state->dir_fd, LOCK_UN);
}

void state_remove(struct state *state)
{
    static const char *const files[] = {"start.sock", "config.json", "state.new", "state.json"};
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        unlinkat(state->dir_fd, files[i], 0);
    }
    if (unlinkat(state->root_fd, state->id, AT_REMOVEDIR) < 0) {
        log_warning("cannot remove the state of container '%s': %s", state->id, strerror(errno));
    }
}

void state_done(struct state *state)
{
    if (state->dir_fd >= 0) {
        close(state->dir_fd);
    }
    state->dir_fd = -1;
    json_decref(state->json);
    state->json = NULL;
    arena_free(&state->arena);
}

uint64_t process_start_time(pid_t pid)
{
    char path[64];
    char text[1024];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    auto_close int fd = pid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    char *p = strrchr(text, ')'); /* proc(5): the name may hold anything; field 3 comes two bytes later */
    if (!p || strlen(p) < 3 || p[2] == 'Z' || p[2] == 'X') {
        return 0;
    }
    p += 2;
    for (int field = 3; p && field < 22; field++) {
        p = strchr(p, ' ');
        p = p ? p + 1 : NULL;
    }
    return p ? strtoull(p, NULL, 10) : 0;
}

bool state_alive(const struct state *state)
{
    uint64_t start = process_start_time(state->pid);
    return start != 0 && start == state->start_time;
}

int state_pidfd(const struct state *state)
{
    if (state->pid <= 0 || !state_alive(state)) {
        return -ESRCH;
    }
    long fd = fault_without("pidfd") ? -1 : syscall(SYS_pidfd_open, state->pid, 0u);
    if (fd < 0) {
        return fault_without("pidfd") ? -ENOSYS : -errno;
    }
    if (!state_alive(state)) { /* the pid was recycled between the two */
        close((int)fd);
        return -ESRCH;
    }
    return (int)fd;
}

enum status state_status(const struct state *state, bool frozen)
{
    if (state->pid == 0) {
        return STATUS_CREATING;
    }
    if (!state_alive(state)) {
        return STATUS_STOPPED;
    }
    if (frozen) {
        return STATUS_PAUSED;
    }
    return faccessat(state->dir_fd, "start.sock", F_OK, 0) == 0 ? STATUS_CREATED : STATUS_RUNNING;
}
