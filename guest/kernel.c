/*
 * See kernel.h. Fetching is in kernel_fetch.c, modules are found in kernel_modules.c, kernel_extract.c takes
 * the kernel out of its file.
 */
#include "guest/kernel.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "guest/kernel_int.h"

#define INIT_MAX (64u << 20)
#define KEEP_S   (30 * 24 * 3600)

/* ---- the initramfs ---- */

static int pack_failed(struct archive *a, struct err *err)
{
    return err_set(err, -EIO, "cannot write the initramfs: %s", archive_error_string(a));
}

static int put(struct archive *out, const char *path, unsigned mode, const void *data, size_t size,
               struct err *err)
{
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, path);
    archive_entry_set_mode(entry, mode);
    archive_entry_set_size(entry, (la_int64_t)size);
    archive_entry_set_nlink(entry, 1);
    archive_entry_set_rdevmajor(entry, 5); /* of dev/console, the one node: (5, 1) in Linux's devices.txt */
    archive_entry_set_rdevminor(entry, 1);
    int rc = archive_write_header(out, entry) < ARCHIVE_WARN ||
                     (size && archive_write_data(out, data, size) != (la_ssize_t)size)
                 ? pack_failed(out, err)
                 : 0;
    archive_entry_free(entry);
    return rc;
}

static int put_file(struct archive *out, const char *path, unsigned mode, const char *from, struct err *err)
{
    auto_free uint8_t *data = NULL;
    size_t size = 0;
    int rc = kernel_read_file(from, INIT_MAX, &data, &size, err);
    return rc < 0 ? rc : put(out, path, mode, data, size, err);
}

static int pack(const char *path, const char *init, const struct kernel_modules *modules, struct err *err)
{
    static const char *const folders[] = {"dev", "proc", "sys", "root", "modules"};
    struct archive *out = archive_write_new();
    char order[KERNEL_MODULES_MAX * 64] = "", name[300];
    archive_write_set_format_cpio_newc(out);
    archive_write_add_filter_none(out);
    int rc = archive_write_open_filename(out, path) < ARCHIVE_WARN ? pack_failed(out, err) : 0;
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(folders); i++) {
        rc = put(out, folders[i], S_IFDIR | 0755, NULL, 0, err);
    }
    rc = rc < 0 ? rc : put(out, "dev/console", S_IFCHR | 0600, NULL, 0, err);
    rc = rc < 0 ? rc : put_file(out, "init", S_IFREG | 0755, init, err);
    for (unsigned i = 0; rc == 0 && i < modules->count; i++) {
        size_t len = strlen(order);
        snprintf(order + len, sizeof(order) - len, "%s\n", modules->all[i].name);
        snprintf(name, sizeof(name), "modules/%s", modules->all[i].name);
        rc = put(out, name, S_IFREG | 0644, modules->all[i].data, modules->all[i].size, err);
    }
    rc = rc < 0 ? rc : put(out, "modules/order", S_IFREG | 0644, order, strlen(order), err);
    if (rc == 0 && archive_write_close(out) < ARCHIVE_WARN) {
        rc = pack_failed(out, err);
    }
    archive_write_free(out);
    return rc;
}

/* ---- the cache ---- */

/* What tells one pair of kernel and init from another: path, size and time of both (FNV-1a, 64 bits). */
static int stamp(uint64_t *hash, const char *path, struct err *err)
{
    char text[PATH_MAX + 96];
    struct stat st;
    if (stat(path, &st) < 0) {
        return err_sys(err, -errno, "'%s'", path);
    }
    snprintf(text, sizeof(text), "%s:%lld:%lld.%09ld", path, (long long)st.st_size,
             (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    for (const char *c = text; *c; c++) {
        *hash = (*hash ^ (uint8_t)*c) * 0x100000001b3ull;
    }
    return 0;
}

/* Pairs that nobody has used for long: of earlier versions. Files that a machine runs from are used at its
 * start. */
static void clean(const char *cache)
{
    DIR *dir = opendir(cache);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        const char *dot = strrchr(e->d_name, '.');
        struct stat st;
        if (dot && (strcmp(dot, ".initramfs") == 0 || strcmp(dot, ".vmlinux") == 0) &&
            fstatat(dirfd(dir), e->d_name, &st, 0) == 0 && time(NULL) - st.st_mtim.tv_sec > KEEP_S) {
            (void)unlinkat(dirfd(dir), e->d_name, 0);
        }
    }
    if (dir) {
        closedir(dir);
    }
}

/* The kernel is the ELF file, where that works; else the bzImage as it is. */
static int make_pair(const struct guest_kernel_options *o, const char *file, struct guest_kernel *pair,
                     const char *vmlinux, struct err *err)
{
    char temp[PATH_MAX + 128];
    if (o->say) {
        o->say(o->opaque, "unpacking the kernel");
    }
    snprintf(temp, sizeof(temp), "%s.new", vmlinux);
    if (kernel_extract(file, temp) && rename(temp, vmlinux) == 0) {
        snprintf(pair->kernel, sizeof(pair->kernel), "%s", vmlinux);
    }
    struct kernel_modules modules = {.count = 0};
    if (o->say) {
        o->say(o->opaque, "packing the initramfs");
    }
    int rc = kernel_modules_find(file, &modules, err);
    snprintf(temp, sizeof(temp), "%s.new", pair->initrd);
    rc = rc < 0 ? rc : pack(temp, o->init, &modules, err);
    kernel_modules_done(&modules);
    clean(o->cache);
    if (rc == 0 && rename(temp, pair->initrd) < 0) {
        rc = err_sys(err, -errno, "cannot write '%s'", pair->initrd);
    }
    return rc;
}

static int find_file(const struct guest_kernel_options *o, char *path, size_t size, struct err *err)
{
    const char *named = o->kernel && o->kernel[0] ? o->kernel : getenv("FONDA_GUEST_KERNEL");
    if (named && named[0]) {
        snprintf(path, size, "%s", named);
        return access(path, R_OK) == 0 ? 0 : err_sys(err, -errno, "cannot read the kernel '%s'", path);
    }
    snprintf(path, size, "%s/kernel/vmlinuz", o->cache);
    return access(path, R_OK) == 0 ? 0 : kernel_fetch(o, err);
}

int guest_kernel_get(const struct guest_kernel_options *o, struct guest_kernel *ret_kernel, struct err *err)
{
    char file[PATH_MAX], path[PATH_MAX + 16];
    struct guest_kernel pair;
    uint64_t hash = 0xcbf29ce484222325ull;
    (void)mkdir(o->cache, 0755);
    snprintf(path, sizeof(path), "%s/lock", o->cache);
    auto_close int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX) < 0) {
        return err_sys(err, -errno, "cannot lock '%s'", path);
    }
    int rc = find_file(o, file, sizeof(file), err);
    rc = rc < 0 ? rc : stamp(&hash, file, err);
    rc = rc < 0 ? rc : stamp(&hash, o->init, err);
    if (rc < 0) {
        return rc;
    }
    char vmlinux[PATH_MAX + 64];
    snprintf(vmlinux, sizeof(vmlinux), "%s/%016" PRIx64 ".vmlinux", o->cache, hash);
    snprintf(pair.kernel, sizeof(pair.kernel), "%s", access(vmlinux, R_OK) == 0 ? vmlinux : file);
    snprintf(pair.initrd, sizeof(pair.initrd), "%s/%016" PRIx64 ".initramfs", o->cache, hash);
    rc = access(pair.initrd, R_OK) == 0 ? 0 : make_pair(o, file, &pair, vmlinux, err);
    if (rc == 0) {
        (void)utimensat(AT_FDCWD, pair.initrd, NULL, 0);
        if (strcmp(pair.kernel, file) != 0) {
            (void)utimensat(AT_FDCWD, pair.kernel, NULL, 0);
        }
        *ret_kernel = pair;
    }
    return rc;
}
