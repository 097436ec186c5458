/* See bootdisk.h. */
#include "vm/bootdisk/bootdisk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"
#include "vm/bootdisk/ext4.h"
#include "vm/bootdisk/partition.h"

#define COPY_BYTES    (1u << 20)
#define KERNEL_PREFIX "vmlinuz-"
#define VERSION_MAX   128u

/* A file of the disk as a file descriptor. */
static int copy_out(struct ext4 *fs, const struct ext4_file *file, const char *name, int *ret_fd,
                    struct err *err)
{
    if (!S_ISREG(file->mode)) {
        return err_set(err, -EINVAL, "'%s' is not a regular file", name);
    }
    if (file->size_bytes > BOOTDISK_FILE_MAX) {
        return err_set(err, -EFBIG, "'%s' is larger than %llu MiB", name, BOOTDISK_FILE_MAX / MiB);
    }
    auto_close int fd = memfd_create("bootdisk", MFD_CLOEXEC);
    auto_free uint8_t *buf = malloc(COPY_BYTES);
    if (fd < 0 || !buf) {
        return err_sys(err, -ENOMEM, "cannot read '%s'", name);
    }
    for (uint64_t at = 0, got = 0; at < file->size_bytes; at += got) {
        int rc = ext4_read(fs, file, at, buf, COPY_BYTES, &got, err);
        if (rc < 0) {
            return err_prefix(err, "'%s'", name);
        }
        if (got == 0 || pwrite(fd, buf, got, (off_t)at) != (ssize_t)got) {
            return err_sys(err, -ENOMEM, "cannot read '%s'", name);
        }
    }
    *ret_fd = take_fd(&fd);
    return 0;
}

/* ---- names ---- */

struct newest {
    char version[VERSION_MAX];
};

/* Kernels are called by their release; packages keep others beside them under the same name with a suffix. */
static bool is_leftover(const char *version)
{
    static const char *const suffixes[] = {".old", ".bak", ".dpkg-new", ".dpkg-bak", ".dpkg-tmp", "~"};
    size_t len = strlen(version);
    for (size_t i = 0; i < ARRAY_SIZE(suffixes); i++) {
        size_t n = strlen(suffixes[i]);
        if (len >= n && strcmp(version + len - n, suffixes[i]) == 0) {
            return true;
        }
    }
    return strstr(version, "rescue") != NULL;
}

static bool consider(void *opaque, const char *name, uint32_t inode)
{
    struct newest *newest = opaque;
    const char *version = name + strlen(KERNEL_PREFIX);
    if (strncmp(name, KERNEL_PREFIX, strlen(KERNEL_PREFIX)) == 0 && *version &&
        strlen(version) < VERSION_MAX && !is_leftover(version) && strverscmp(version, newest->version) > 0) {
        strcpy(newest->version, version);
    }
    return true;
}

/* True when the path is there. Damage counts as "not there", with its sentence kept in err for whoever finds
 * nothing better. */
static bool exists(struct ext4 *fs, const char *path, struct ext4_file *ret_file, struct err *err)
{
    struct err own = {0};
    int rc = ext4_lookup(fs, path, ret_file, &own);
    if (rc < 0 && rc != -ENOENT && rc != -ENOTDIR && err->code == 0) {
        err_set(err, rc, "'%s': %s", path, own.text);
    }
    return rc == 0;
}

struct names {
    char kernel[BOOTDISK_TEXT_MAX], initrd[BOOTDISK_TEXT_MAX];
    struct ext4_file kernel_file, initrd_file;
    bool has_initrd;
};

static bool find_links(struct ext4 *fs, struct names *names, struct err *err)
{
    static const char *const pairs[][2] = {{"/vmlinuz", "/initrd.img"},
                                           {"/boot/vmlinuz", "/boot/initrd.img"}};
    for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
        if (exists(fs, pairs[i][0], &names->kernel_file, err) && S_ISREG(names->kernel_file.mode)) {
            strcpy(names->kernel, pairs[i][0]);
            strcpy(names->initrd, pairs[i][1]);
            names->has_initrd = exists(fs, names->initrd, &names->initrd_file, err);
            return true;
        }
    }
    return false;
}

static bool find_newest(struct ext4 *fs, struct names *names, struct err *err)
{
    /* "": a partition that is mounted as /boot. */
    static const char *const folders[] = {"/boot", ""};
    static const char *const initrds[] = {"%s/initrd.img-%s", "%s/initramfs-%s.img", "%s/initrd-%s"};
    for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
        struct newest newest = {""};
        struct ext4_file folder;
        const char *path = folders[i][0] ? folders[i] : "/";
        if (!exists(fs, path, &folder, err) || !S_ISDIR(folder.mode) ||
            ext4_list(fs, &folder, consider, &newest, NULL) < 0 || !newest.version[0]) {
            continue;
        }
        snprintf(names->kernel, sizeof(names->kernel), "%s/" KERNEL_PREFIX "%s", folders[i], newest.version);
        if (!exists(fs, names->kernel, &names->kernel_file, err)) {
            continue;
        }
        for (size_t k = 0; k < ARRAY_SIZE(initrds) && !names->has_initrd; k++) {
            snprintf(names->initrd, sizeof(names->initrd), initrds[k], folders[i], newest.version);
            names->has_initrd = exists(fs, names->initrd, &names->initrd_file, err);
        }
        return true;
    }
    return false;
}

/* ---- partitions ---- */

struct search {
    const struct disk_source *disk;
    struct bootdisk *found;
    bool has_root;
    unsigned file_systems;
    struct err err; /* the first problem that kept something from being found */
};

/* How the kernel finds its root: by UUID an initrd's tools are needed. */
static void name_root(struct ext4 *fs, const struct partition *part, bool has_initrd, char *ret, size_t size)
{
    char uuid[EXT4_UUID_TEXT];
    ext4_uuid(fs, uuid);
    if (has_initrd) {
        snprintf(ret, size, "root=UUID=%s", uuid);
    } else if (part->number) {
        snprintf(ret, size, "root=/dev/vda%u", part->number);
    } else {
        snprintf(ret, size, "root=/dev/vda");
    }
}

static int take_kernel(struct search *search, struct ext4 *fs, const struct names *names, struct err *err)
{
    struct bootdisk *found = search->found;
    strcpy(found->kernel, names->kernel);
    int rc = copy_out(fs, &names->kernel_file, names->kernel, &found->kernel_fd, err);
    if (rc == 0 && names->has_initrd) {
        strcpy(found->initrd, names->initrd);
        rc = copy_out(fs, &names->initrd_file, names->initrd, &found->initrd_fd, err);
    }
    return rc;
}

static int search_partition(struct search *search, const struct partition *part, bool for_root,
                            struct err *err)
{
    struct ext4 *fs;
    struct names names = {0};
    struct ext4_file file;
    bool mine;
    struct err own = {0};
    int rc = ext4_open(search->disk, part->start_bytes, part->size_bytes, &fs, &mine, &own);
    if (rc < 0) {
        if (mine && search->err.code == 0) {
            search->err = own;
        }
        return 0;
    }
    search->file_systems++;
    if (for_root) {
        search->has_root =
            exists(fs, "/etc/fstab", &file, &search->err) || exists(fs, "/sbin/init", &file, &search->err);
        if (search->has_root) {
            name_root(fs, part, search->found->initrd_fd >= 0, search->found->root,
                      sizeof(search->found->root));
        }
    } else if (find_links(fs, &names, &search->err) || find_newest(fs, &names, &search->err)) {
        rc = take_kernel(search, fs, &names, err);
    }
    ext4_free(fs);
    return rc;
}

static int nothing_found(const struct search *search, struct err *err)
{
    if (search->err.code) {
        return err_set(err, search->err.code, "%s", search->err.text);
    }
    if (search->file_systems == 0) {
        return err_set(err, -ENOENT, "there is no ext4 file system in it");
    }
    return err_set(err, -ENOENT, "it has no /vmlinuz and no /boot/vmlinuz-*");
}

int bootdisk_find(const struct disk_source *disk, struct bootdisk *ret_found, struct err *err)
{
    struct partition parts[PARTITIONS_MAX];
    unsigned count = 0;
    struct bootdisk found = {.kernel_fd = -1, .initrd_fd = -1};
    struct search search = {.disk = disk, .found = &found};
    int rc = partition_list(disk, parts, &count, err);
    for (unsigned i = 0; i < count && rc == 0 && found.kernel_fd < 0; i++) {
        rc = search_partition(&search, &parts[i], false, err);
    }
    if (rc == 0 && found.kernel_fd < 0) {
        rc = nothing_found(&search, err);
    }
    for (unsigned i = 0; i < count && rc == 0 && !search.has_root; i++) {
        rc = search_partition(&search, &parts[i], true, err);
    }
    if (rc < 0) {
        bootdisk_done(&found);
        return rc;
    }
    *ret_found = found;
    return 0;
}

void bootdisk_done(struct bootdisk *found)
{
    if (found->kernel_fd >= 0) {
        close(found->kernel_fd);
    }
    if (found->initrd_fd >= 0) {
        close(found->initrd_fd);
    }
    found->kernel_fd = found->initrd_fd = -1;
}
