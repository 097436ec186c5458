/*
 * The other room: the image as a machine. A disk is made once for each image and kept beside the store's
 * layers; each machine writes into a qcow2 file of its own above it.
 *
 *     STORE/machines/DIGEST.ext4       the image's files; gone when nothing uses the image any more
 *     STORE/machines/HASH.initramfs, kernel/ see guest/kernel.h
 *     DIR/root.qcow2                   what the machine wrote
 *     DIR/bundle/machine.json          for fonda-guest
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "core/room/room.h"
#include "guest/kernel.h"
#include "image/disk.h"

#define MACHINE_ARCH "amd64"

struct machine {
    const json_t *room;
    struct image_store *store;
    void (*say)(const char *what);
    char cache[PATH_MAX];
};

static void say_step(void *opaque, const char *what)
{
    const struct machine *m = opaque;
    if (m->say) {
        m->say(what);
    }
}

static int machine_init(struct machine *m, const json_t *room, struct image_store *store,
                        void (*say)(const char *what), struct err *err)
{
    *m = (struct machine){.room = room, .store = store, .say = say};
    snprintf(m->cache, sizeof(m->cache), "%s/machines", image_store_path(store));
    return mkdir(m->cache, 0755) < 0 && errno != EEXIST ? err_sys(err, -errno, "cannot make '%s'", m->cache)
                                                        : 0;
}

/* "sha256:0123..." as a file's name. */
static void disk_path(const struct machine *m, const char *digest, char path[static PATH_MAX + 128])
{
    const char *colon = strchr(digest, ':');
    snprintf(path, PATH_MAX + 128, "%s/%.80s.ext4", m->cache, colon ? colon + 1 : digest);
}

static int get_kernel(struct machine *m, struct guest_kernel *ret_kernel, struct err *err)
{
    const struct guest_kernel_options options = {
        .kernel = room_text(json_object_get(m->room, "spec"), "kernel"),
        .init = room_text(m->room, "guest_init"),
        .cache = m->cache,
        .say = say_step,
        .opaque = m,
    };
    return options.init ? guest_kernel_get(&options, ret_kernel, err)
                        : err_set(err, -EINVAL, "room.json lacks a member");
}

/* ---- disks ---- */

static int fill(const char *path, struct image_rootfs *rootfs, struct err *err)
{
    int rc = image_rootfs_mount(rootfs, NULL, err);
    if (rc < 0) {
        return rc;
    }
    auto_close int root = open(rootfs->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    auto_close int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600); /* mke2fs inherits it */
    rc = root < 0 || fd < 0 ? err_sys(err, -errno, "cannot write '%s'", path)
                            : image_disk_fill(root, fd, IMAGE_DISK_SIZE, err);
    return rc == 0 && fsync(fd) < 0 ? err_sys(err, -errno, "cannot write '%s'", path) : rc;
}

/* Two machines of one image at the same moment make its disk once. */
static int get_disk(struct machine *m, struct image_rootfs *rootfs, const char *path, struct err *err)
{
    char lock_path[PATH_MAX + 16], temp[PATH_MAX + 160];
    snprintf(lock_path, sizeof(lock_path), "%s/disks.lock", m->cache);
    auto_close int lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX) < 0) {
        return err_sys(err, -errno, "cannot lock '%s'", lock_path);
    }
    if (access(path, R_OK) == 0) {
        return 0;
    }
    say_step(m, "making a disk of the image");
    snprintf(temp, sizeof(temp), "%s.new", path);
    int rc = fill(temp, rootfs, err);
    if (rc == 0 && rename(temp, path) < 0) {
        rc = err_sys(err, -errno, "cannot write '%s'", path);
    }
    if (rc < 0) {
        (void)unlink(temp);
    }
    return rc;
}

/* What the machine writes goes into a file above the image's disk. */
static int make_overlay(const struct machine *m, const char *base, const char *overlay, struct err *err)
{
    const char *tool = room_text(m->room, "image_tool");
    int status = 0;
    pid_t pid = tool ? fork() : -1;
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        execl(tool, "fonda-image", "create", "--format", "qcow2", "--backing", base, "--backing-format",
              "raw", overlay, NULL);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid < 0 || status ? err_set(err, -EIO, "cannot make the machine's disk '%s'", overlay) : 0;
}

/* Disks of images that are gone. */
static void clean(const struct machine *m)
{
    DIR *dir = opendir(m->cache);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char digest[96], path[PATH_MAX + 300];
        struct image *image = NULL;
        const char *dot = strstr(e->d_name, ".ext4");
        if (!dot || dot[5] || dot - e->d_name != 64) {
            continue;
        }
        snprintf(digest, sizeof(digest), "sha256:%.64s", e->d_name);
        if (image_lookup(m->store, digest, &image, NULL) == -ENOENT) {
            snprintf(path, sizeof(path), "%s/%s", m->cache, e->d_name);
            (void)unlink(path);
        }
        image_free(image);
    }
    if (dir) {
        closedir(dir);
    }
}

/* ---- steps ---- */

int room_machine_check(const struct image *image, struct err *err)
{
    const struct platform *p = &image->config.platform;
    if (strcmp(p->os, "linux") != 0 || strcmp(p->arch, MACHINE_ARCH) != 0) {
        return err_set(err, -EINVAL, "the image '%s' is for %s/%s: machines here are linux/" MACHINE_ARCH,
                       image->name, p->os, p->arch);
    }
    return 0;
}

int room_machine_create(const json_t *room, const char *dir, struct image_store *store,
                        struct image_rootfs *rootfs, void (*say)(const char *what), struct err *err)
{
    struct machine m;
    struct guest_kernel kernel;
    char base[PATH_MAX + 128], overlay[PATH_MAX + 32];
    int rc = machine_init(&m, room, store, say, err);
    rc = rc < 0 ? rc : get_kernel(&m, &kernel, err);
    if (rc < 0) {
        return rc;
    }
    disk_path(&m, rootfs->manifest, base);
    snprintf(overlay, sizeof(overlay), "%s/root.qcow2", dir);
    rc = get_disk(&m, rootfs, base, err);
    return rc < 0 ? rc : make_overlay(&m, base, overlay, err);
}

int room_machine_write(const json_t *room, const char *dir, const char *bundle, struct image_store *store,
                       struct err *err)
{
    struct machine m;
    struct guest_kernel kernel;
    const json_t *spec = json_object_get(room, "spec"), *publish = json_object_get(spec, "publish");
    const char *network = room_text(spec, "network_mode");
    char path[PATH_MAX + 32];
    int rc = machine_init(&m, room, store, NULL, err);
    rc = rc < 0 ? rc : get_kernel(&m, &kernel, err);
    if (rc < 0) {
        return rc;
    }
    snprintf(path, sizeof(path), "%s/root.qcow2", dir);
    json_t *machine = json_pack("{s:s*, s:s, s:s, s:s, s:O*, s:O*, s:O*, s:b, s:O*}", "vmm",
                                room_text(room, "vmm"), "kernel", kernel.kernel, "initrd", kernel.initrd,
                                "disk", path, "memory", json_object_get(spec, "memory"), "cpus",
                                json_object_get(spec, "cpus"), "engine", json_object_get(spec, "engine"),
                                "network", !network || strcmp(network, "none") != 0, "publish", publish);
    snprintf(path, sizeof(path), "%s/machine.json", bundle);
    rc = !machine || json_dump_file(machine, path, JSON_INDENT(2)) < 0
             ? err_set(err, -EIO, "cannot write '%s'", path)
             : 0;
    json_decref(machine);
    return rc;
}

void room_machine_removed(const json_t *room, struct image_store *store)
{
    struct machine m;
    if (machine_init(&m, room, store, NULL, NULL) == 0) {
        clean(&m);
    }
}
