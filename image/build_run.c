/*
 * RUN: a bundle with the mounted root, executed by fonda-oci. The step sees the host's network (or none), its
 * own processes, and the capabilities that containers usually have.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/util.h"
#include "image/build_int.h"
#include "image/fs.h"

static json_t *mount_json(const char *dest, const char *type, const char *source, const char *options)
{
    json_t *list = json_array();
    auto_free char *copy = strdup(options);
    char *rest = copy;
    for (char *word; (word = strsep(&rest, ","));) {
        json_array_append_new(list, json_string(word));
    }
    return json_pack("{s:s, s:s, s:s, s:o}", "destination", dest, "type", type, "source", source, "options",
                     list);
}

static json_t *strings_json(char *const *list)
{
    json_t *array = json_array();
    for (; *list; list++) {
        json_array_append_new(array, json_string(*list));
    }
    return array;
}

/* Folders and files that the mounts need: those that the image hasn't got are taken away again after the
 * step. */
static const struct {
    const char *path;
    bool file;
} points[] = {{"proc", false}, {"sys", false}, {"dev", false}, {"etc/resolv.conf", true}, {"etc", false}};

static json_t *config_json(const struct image_rootfs *rootfs, const struct run *run, uid_t uid, gid_t gid)
{
    static const char *const caps[] = {"CAP_CHOWN",   "CAP_DAC_OVERRIDE",     "CAP_FOWNER",    "CAP_FSETID",
                                       "CAP_KILL",    "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",   "CAP_SETGID",
                                       "CAP_SETPCAP", "CAP_SETUID",           "CAP_SYS_CHROOT"};
    json_t *list = json_array(), *mounts = json_array(), *spaces = json_array();
    for (unsigned i = 0; i < ARRAY_SIZE(caps); i++) {
        json_array_append_new(list, json_string(caps[i]));
    }
    json_array_append_new(mounts, mount_json("/proc", "proc", "proc", "nosuid,noexec,nodev"));
    json_array_append_new(mounts,
                          mount_json("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"));
    json_array_append_new(mounts, mount_json("/dev/pts", "devpts", "devpts",
                                             "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"));
    json_array_append_new(
        mounts, mount_json("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"));
    json_array_append_new(mounts, image_host_root()
                                      ? mount_json("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro")
                                      : mount_json("/sys", "bind", "/sys", "rbind,nosuid,noexec,nodev,ro"));
    if (!run->network_none && access("/etc/resolv.conf", R_OK) == 0) {
        json_array_append_new(mounts, mount_json("/etc/resolv.conf", "bind", "/etc/resolv.conf", "rbind,ro"));
    }
    static const char *const kinds[] = {"pid", "ipc", "uts", "mount", "network"};
    for (unsigned i = 0; i < (run->network_none ? 5u : 4u); i++) {
        json_array_append_new(spaces, json_pack("{s:s}", "type", kinds[i]));
    }
    json_t *process =
        json_pack("{s:b, s:{s:I, s:I}, s:o, s:o, s:s, s:b}", "terminal", 0, "user", "uid", (json_int_t)uid,
                  "gid", (json_int_t)gid, "args", strings_json(run->args), "env",
                  strings_json((char *const *)run->env), "cwd", run->cwd, "noNewPrivileges", 0);
    json_object_set_new(process, "capabilities",
                        json_pack("{s:O, s:O, s:O}", "bounding", list, "effective", list, "permitted", list));
    json_decref(list);
    return json_pack("{s:s, s:o, s:{s:s, s:b}, s:s, s:o, s:{s:o, s:[s,s,s,s]}}", "ociVersion", "1.1.0",
                     "process", process, "root", "path", rootfs->dir, "readonly", 0, "hostname", "build",
                     "mounts", mounts, "linux", "namespaces", spaces, "maskedPaths", "/proc/kcore",
                     "/proc/keys", "/proc/timer_list", "/sys/firmware");
}

static int execute(const struct run *run, const char *bundle, const char *state, const char *id,
                   int *ret_status)
{
    char *argv[] = {(char *)run->runtime, (char *)"--root", (char *)state, (char *)"run",
                    (char *)"--bundle",   (char *)bundle,   (char *)id,    NULL};
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0) {
            dup2(null, 0);
        }
        dup2(2, 1); /* this program's own standard output is the image's digest */
        execvp(argv[0], argv);
        _exit(127);
    }
    if (child < 0) {
        return -errno;
    }
    while (waitpid(child, ret_status, 0) < 0) {
        if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

int build_run(struct image_store *store, struct image_rootfs *rootfs, const struct run *run, struct err *err)
{
    char bundle[PATH_MAX], state[PATH_MAX + 16], name[STORE_TEMP_MAX], id[64], file[PATH_MAX + 16];
    bool missing[ARRAY_SIZE(points)];
    uid_t uid = 0;
    gid_t gid = 0;
    struct stat st;
    auto_close int root = open(rootfs->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = root < 0 ? err_sys(err, -errno, "cannot open '%s'", rootfs->dir) : 0;
    if (rc == 0 && run->user && *run->user) {
        rc = build_find_user(root, run->user, &uid, &gid, err);
    }
    if (rc < 0) {
        return rc;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(points); i++) {
        auto_close int fd = fs_open(root, points[i].path, O_PATH | O_NOFOLLOW, 0, FS_IN_ROOT);
        missing[i] = fd == -ENOENT;
    }
    snprintf(name, sizeof(name), "tmp/bundle-%d", getpid());
    snprintf(id, sizeof(id), "fonda-build-%d", getpid());
    snprintf(bundle, sizeof(bundle), "%s/%s", store->path, name);
    snprintf(state, sizeof(state), "%s/state", bundle);
    snprintf(file, sizeof(file), "%s/config.json", name);
    (void)fs_remove_tree(store->fd, name);
    if (mkdirat(store->fd, name, 0700) < 0) {
        return err_sys(err, -errno, "cannot make '%s'", bundle);
    }
    json_t *config = config_json(rootfs, run, uid, gid);
    auto_free char *text = config ? json_dumps(config, 0) : NULL;
    json_decref(config);
    rc = text ? fs_write_file(store->fd, file, text, strlen(text), err)
              : err_set(err, -EINVAL, "an argument or variable is no UTF-8");
    int status = 0;
    if (rc == 0 && (rc = execute(run, bundle, state, id, &status)) < 0) {
        err_sys(err, rc, "cannot start a process");
    }
    (void)fs_remove_tree(store->fd, name);
    for (unsigned i = 0; i < ARRAY_SIZE(points); i++) {
        const char *leaf;
        auto_close int dir = missing[i] ? fs_open_parent(root, points[i].path, FS_IN_ROOT, &leaf) : -1;
        if (dir >= 0 && fstatat(dir, leaf, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            (S_ISDIR(st.st_mode) || st.st_size == 0)) {
            (void)unlinkat(dir, leaf, points[i].file ? 0 : AT_REMOVEDIR);
        }
    }
    if (rc == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 127 && access(run->runtime, X_OK) < 0) {
        return err_set(err, -ENOENT, "cannot run '%s': RUN needs fonda-oci (see --runtime)", run->runtime);
    }
    if (rc == 0 && status != 0) {
        rc = WIFEXITED(status)
                 ? err_set(err, -ECANCELED, "the command ended with status %d", WEXITSTATUS(status))
                 : err_set(err, -ECANCELED, "the command was ended by signal %d", WTERMSIG(status));
    }
    return rc;
}
