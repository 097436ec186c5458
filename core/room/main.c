/* The steps of fonda-room; see room.h. */
#include "core/room/room.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"

#define ARGS_MAX      128
#define STATUS_FAILED 1
#define STATUS_USAGE  2

struct room {
    const char *dir;
    json_t *json;
};

static int room_load(struct room *room, const char *dir, struct err *err)
{
    char path[PATH_MAX];
    json_error_t why;
    snprintf(path, sizeof(path), "%s/room.json", dir);
    room->dir = dir;
    room->json = json_load_file(path, 0, &why);
    return room->json ? 0 : err_set(err, -EINVAL, "cannot read '%s': %s", path, why.text);
}

static int open_store(const struct room *room, struct image_store **ret_store, struct err *err)
{
    return image_store_open(room_text(room->json, "store"), ret_store, err);
}

/* As root of the host: a mount namespace of its own, from which nothing spreads. */
static int own_mounts(struct err *err)
{
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0) {
        return err_sys(err, -errno, "cannot make a mount namespace");
    }
    return 0;
}

/* ---- create ---- */

static void on_progress(void *opaque, const struct image_progress *p)
{
    json_t *line = json_pack("{s:s, s:I, s:I, s:I, s:I}", "what", p->what ? p->what : "", "done",
                             (json_int_t)p->done, "total", (json_int_t)p->total, "index",
                             (json_int_t)p->index, "count", (json_int_t)p->count);
    auto_free char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (text) {
        puts(text);
        fflush(stdout);
    }
}

/* A line of its own, behind those of the download. */
static void on_step(const char *what)
{
    static unsigned step = 1000; /* more than an image has layers */
    const struct image_progress progress = {.what = what, .index = step++, .count = 0};
    on_progress(NULL, &progress);
}

static bool is_machine(const struct room *room)
{
    return json_is_true(json_object_get(room->json, "machine"));
}

static enum image_pull_policy policy_of(const json_t *spec)
{
    const char *pull = room_text(spec, "pull");
    return pull && strcmp(pull, "always") == 0  ? IMAGE_PULL_ALWAYS
           : pull && strcmp(pull, "never") == 0 ? IMAGE_PULL_NEVER
                                                : IMAGE_PULL_MISSING;
}

static int do_create(struct room *room, struct err *err)
{
    struct image_store *store = NULL;
    struct image *image = NULL;
    struct image_rootfs *rootfs = NULL;
    const json_t *spec = json_object_get(room->json, "spec");
    const char *name = room_text(spec, "image");
    struct image_options options = {
        .policy = policy_of(spec),
        .insecure = json_is_true(json_object_get(spec, "insecure_registry")),
        .progress = on_progress,
    };
    int rc = open_store(room, &store, err);
    rc = rc < 0 ? rc : image_get(store, name ? name : "", &options, &image, err);
    rc = rc < 0 || !is_machine(room) ? rc : room_machine_check(image, err);
    rc = rc < 0 ? rc : image_unpack(store, image, err);
    rc = rc < 0 ? rc : image_rootfs_create(store, image, room_text(room->json, "layer"), &rootfs, err);
    if (rc == 0 && is_machine(room)) {
        rc = image_host_root() ? own_mounts(err) : 0;
        rc = rc < 0 ? rc : room_machine_create(room->json, room->dir, store, rootfs, on_step, err);
    }
    image_rootfs_close(rootfs);
    image_free(image);
    image_store_close(store);
    return rc;
}

/* ---- run ---- */

/* Runs a program and waits; its messages are dropped. */
static void run_quietly(char *const *argv)
{
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        execv(argv[0], argv);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

/* What a monitor that was killed has left. */
static void clear_container(const struct room *room)
{
    char *argv[] = {(char *)(uintptr_t)room_text(room->json, "oci"),
                    (char *)(uintptr_t) "--root",
                    (char *)(uintptr_t)room_text(room->json, "oci_root"),
                    (char *)(uintptr_t) "delete",
                    (char *)(uintptr_t) "--force",
                    (char *)(uintptr_t)room_text(room->json, "id"),
                    NULL};
    if (argv[0] && argv[2] && argv[5]) {
        run_quietly(argv);
    }
}

/* The image's configuration as JSON; it stays the image's. */
static int config_of(struct image_store *store, const struct image_rootfs *rootfs, struct image **ret_image,
                     struct err *err)
{
    /* By its digest: the name may stand for another image by now. */
    return image_lookup(store, rootfs->manifest, ret_image, err);
}

static int become_monitor(const struct room *room, const char *bundle, json_t *image_args, struct err *err)
{
    const char *argv[ARGS_MAX + 1];
    size_t n = 0, i;
    char dir[PATH_MAX];
    json_t *item;
    snprintf(dir, sizeof(dir), "%s/monitor", room->dir);
    const char *fixed[] = {room_text(room->json, "monitor"),
                           "--foreground",
                           "--id",
                           room_text(room->json, "id"),
                           "--bundle",
                           bundle,
                           "--dir",
                           dir,
                           "--oci",
                           room_text(room->json, "oci"),
                           "--oci-root",
                           room_text(room->json, "oci_root"),
                           "--netd",
                           room_text(room->json, "netd")};
    for (i = 0; i < ARRAY_SIZE(fixed); i++) {
        if (!fixed[i]) {
            return err_set(err, -EINVAL, "room.json lacks a member");
        }
        argv[n++] = fixed[i];
    }
    json_array_foreach(image_args, i, item)
    {
        if (n < ARGS_MAX) {
            argv[n++] = json_string_value(item);
        }
    }
    json_array_foreach(json_object_get(room->json, "args"), i, item)
    {
        if (n == ARGS_MAX || !json_string_value(item)) {
            return err_set(err, -E2BIG, "too many options");
        }
        argv[n++] = json_string_value(item);
    }
    argv[n] = NULL;
    execv(argv[0], (char *const *)(uintptr_t)argv);
    return err_sys(err, -errno, "cannot run '%s'", argv[0]);
}

static int do_run(struct room *room, struct err *err)
{
    char bundle[PATH_MAX];
    struct image_store *store = NULL;
    struct image_rootfs *rootfs = NULL;
    struct image *image = NULL;
    snprintf(bundle, sizeof(bundle), "%s/bundle", room->dir);
    clear_container(room);
    int rc = image_host_root() ? own_mounts(err) : 0;
    rc = rc < 0 ? rc : open_store(room, &store, err);
    rc = rc < 0 ? rc : image_rootfs_open(store, room_text(room->json, "layer"), &rootfs, err);
    rc = rc < 0 ? rc : config_of(store, rootfs, &image, err);
    bool mapped =
        image_host_root() && json_is_true(json_object_get(json_object_get(room->json, "spec"), "system"));
    rc = rc < 0   ? rc
         : mapped ? image_rootfs_mount_mapped(rootfs, room_map_first(room->json), ROOM_MAP_COUNT, err)
                  : image_rootfs_mount(rootfs, NULL, err);
    if (rc == 0 && mkdir(bundle, 0700) < 0 && errno != EEXIST) {
        rc = err_sys(err, -errno, "cannot make '%s'", bundle);
    }
    json_t *args = json_array();
    json_t *config = rc == 0 ? json_object_get(image->config.json, "config") : NULL;
    rc = rc < 0 ? rc : room_bundle(room->json, bundle, rootfs->dir, config, err);
    if (rc == 0 && is_machine(room)) {
        rc = image_rootfs_unmount(rootfs, err); /* it was needed for the names of users */
        rc = rc < 0 ? rc : room_machine_write(room->json, room->dir, bundle, store, err);
    }
    room_system_args(room->json, bundle, args);
    rc = rc < 0 ? rc : room_monitor_args(config, args, err);
    /* All of the store's descriptors are close-on-exec. */
    rc = rc < 0 ? rc : become_monitor(room, bundle, args, err);
    json_decref(args);
    image_free(image);
    image_rootfs_close(rootfs);
    image_store_close(store);
    return rc;
}

/* ---- enter, exec, remove ---- */

/* The container's first process, as the monitor wrote it down; 0: there is none. */
static json_int_t first_pid(const struct room *room)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/monitor/status.json", room->dir);
    json_t *status = json_load_file(path, 0, NULL);
    json_int_t pid = json_integer_value(json_object_get(status, "pid"));
    json_decref(status);
    return pid;
}

/* Into the namespaces of process `pid`; its user namespace first, which gives the right to the other. */
static int enter(const char *pid, struct err *err)
{
    static const struct {
        const char *name;
        int type;
    } kinds[] = {{"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS}};
    int fds[ARRAY_SIZE(kinds)];
    char path[64], own[64];
    struct stat a, b;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        snprintf(path, sizeof(path), "/proc/%.16s/ns/%s", pid, kinds[i].name);
        snprintf(own, sizeof(own), "/proc/self/ns/%s", kinds[i].name);
        fds[i] = open(path, O_RDONLY | O_CLOEXEC);
        if (fds[i] < 0 || fstat(fds[i], &a) < 0 || stat(own, &b) < 0) {
            return err_sys(err, -errno, "cannot enter process %s", pid);
        }
        if (a.st_ino == b.st_ino) {
            close(fds[i]);
            fds[i] = -1;
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (fds[i] >= 0 && setns(fds[i], kinds[i].type) < 0) {
            return err_sys(err, -errno, "cannot enter the %s namespace of process %s", kinds[i].name, pid);
        }
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    if (getuid() != 0 && fds[0] >= 0 && (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)) {
        return err_sys(err, -errno, "cannot become root of the namespace");
    }
    return 0;
}

/* A program in the running container, as the options in JSON say. */
static int do_exec(const struct room *room, char **argv, struct err *err)
{
    json_t *args = json_array(), *item;
    const char *list[ARGS_MAX * 2 + 1];
    size_t i, n = 0;
    json_t *how = json_loads(argv[2], 0, NULL);
    char path[64];
    snprintf(path, sizeof(path), "/proc/%lld/root", (long long)first_pid(room));
    int rc = how ? 0 : err_set(err, -EINVAL, "exec: the options are not JSON");
    rc = rc < 0 || is_machine(room) ? rc : enter(argv[0], err);
    rc = rc < 0 ? rc : room_exec_args(room->json, how, path, argv[1], args, err);
    if (rc == 0 && json_array_size(args) > ARGS_MAX * 2) {
        rc = err_set(err, -E2BIG, "exec: too many arguments");
    }
    if (rc == 0) {
        json_array_foreach(args, i, item)
        {
            list[n++] = json_string_value(item);
        }
        list[n] = NULL;
        execv(list[0], (char *const *)(uintptr_t)list);
        rc = err_sys(err, -errno, "cannot run '%s'", list[0]);
    }
    json_decref(args);
    json_decref(how);
    return rc;
}

static int do_remove(struct room *room, struct err *err)
{
    struct image_store *store = NULL;
    clear_container(room);
    int rc = open_store(room, &store, err);
    rc = rc < 0 ? rc : image_rootfs_remove(store, room_text(room->json, "layer"), err);
    if (store && is_machine(room)) {
        room_machine_removed(room->json, store);
    }
    image_store_close(store);
    return rc == -ENOENT ? 0 : rc;
}

/* ---- copies ---- */

/* The container's root: as its first process sees it, or its layer. pid is the monitor's. */
static int open_root(struct room *room, const char *pid, struct err *err)
{
    char path[PATH_MAX];
    int fd;
    if (pid) {
        json_int_t first = first_pid(room);
        int rc = enter(pid, err);
        snprintf(path, sizeof(path), "/proc/%lld/root", (long long)first);
        fd = rc < 0 ? rc : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd >= 0 || rc < 0 ? fd : err_sys(err, -errno, "cannot open the container's root");
    }
    struct image_store *store = NULL;
    struct image_rootfs *rootfs = NULL;
    int rc = image_enter_namespace(err);
    rc = rc < 0 || !image_host_root() ? rc : own_mounts(err);
    rc = rc < 0 ? rc : open_store(room, &store, err);
    rc = rc < 0 ? rc : image_rootfs_open(store, room_text(room->json, "layer"), &rootfs, err);
    rc = rc < 0 ? rc : image_rootfs_mount(rootfs, NULL, err);
    if (rc < 0) {
        return rc;
    }
    fd = open(rootfs->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* The mount goes with this process. */
    return fd >= 0 ? fd : err_sys(err, -errno, "cannot open '%s'", rootfs->dir);
}

/* A machine's files are on its own disk: its init copies them. */
static int copy_machine(const struct room *room, const char *verb, const char *path, bool runs,
                        struct err *err)
{
    const char *oci = room_text(room->json, "oci");
    if (!runs) {
        return err_set(err, -ESRCH, "a machine's files can be copied while it runs: start it first");
    }
    execl(oci, "fonda-guest", "--root", room_text(room->json, "oci_root"), verb, room_text(room->json, "id"),
          path, NULL);
    return err_sys(err, -errno, "cannot run '%s'", oci);
}

static void usage(FILE *out)
{
    fprintf(out,
            "usage: fonda-room create | run | clear | remove DIR\n"
            "       fonda-room exec DIR PID SOCKET JSON\n       fonda-room logs DIR JSON\n"
            "       fonda-room export | import DIR PATH [PID]\n\n"
            "Steps in the life of a container, for fondad: DIR is an instance's directory, with room.json.\n"
            "export writes a tar, import reads one; PID is the monitor of a container that runs.\n\n"
            "Example:\n  fonda-room export /var/lib/fonda/instances/0123456789ab /etc > etc.tar\n");
}

static int step(int argc, char **argv, struct err *err)
{
    const char *verb = argv[1];
    struct room room = {0};
    bool exec = strcmp(verb, "exec") == 0 && argc == 6, logs = strcmp(verb, "logs") == 0 && argc == 4;
    bool copy = strcmp(verb, "export") == 0 || strcmp(verb, "import") == 0;
    if (exec || logs) {
        int rc = room_load(&room, argv[2], err);
        rc = rc < 0 ? rc : exec ? do_exec(&room, argv + 3, err) : room_logs(argv[2], argv[3], err);
        json_decref(room.json);
        return rc;
    }
    if (copy ? argc < 4 || argc > 5 : argc != 3) {
        return err_set(err, -EINVAL, "wrong arguments (see fonda-room --help)");
    }
    int rc = room_load(&room, argv[2], err);
    if (rc == 0 && copy && is_machine(&room)) {
        rc = copy_machine(&room, verb, argv[3], argc > 4, err);
    } else if (rc == 0 && copy) {
        int root = open_root(&room, argc > 4 ? argv[4] : NULL, err);
        rc = root < 0         ? root
             : verb[0] == 'e' ? room_export(root, argv[3], err)
                              : room_import(root, argv[3], err);
    } else if (rc == 0) {
        rc = image_enter_namespace(err);
        rc = rc < 0                        ? rc
             : strcmp(verb, "create") == 0 ? do_create(&room, err)
             : strcmp(verb, "run") == 0    ? do_run(&room, err)
             : strcmp(verb, "clear") == 0  ? (clear_container(&room), 0)
             : strcmp(verb, "remove") == 0 ? do_remove(&room, err)
                                           : err_set(err, -EINVAL, "there is no step '%s'", verb);
    }
    json_decref(room.json);
    return rc;
}

int main(int argc, char **argv)
{
    struct err err = {.code = 0};
    log_init("fonda-room", LOG_LEVEL_WARNING);
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return 0;
    }
    if (argc < 3) {
        usage(stderr);
        return STATUS_USAGE;
    }
    if (step(argc, argv, &err) < 0) {
        log_error("%s", err.text);
        return STATUS_FAILED;
    }
    return 0;
}
