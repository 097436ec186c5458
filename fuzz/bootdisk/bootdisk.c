/*
 * Disks that should hold a kernel: whatever the bytes are, the readers answer within bounds, and what they
 * find lies inside of the disk.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "fuzz/fuzz.h"
#include "vm/bootdisk/bootdisk.h"
#include "vm/bootdisk/ext4.h"
#include "vm/bootdisk/partition.h"

#define READ_MAX (64 * KiB)

struct bytes {
    const uint8_t *data;
    size_t size;
};

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static int read_bytes(void *opaque, uint64_t offset, void *buf, uint64_t bytes)
{
    const struct bytes *disk = opaque;
    require(offset <= disk->size && bytes <= disk->size - offset);
    memcpy(buf, disk->data + offset, bytes);
    return 0;
}

static bool use_name(void *opaque, const char *name, uint32_t inode)
{
    unsigned *count = opaque;
    require(strlen(name) <= EXT4_NAME_MAX && inode != 0);
    return ++*count < 1000;
}

/* Not bootdisk_find alone: that copies whole files, which may be large holes. */
static void use_file_system(const struct disk_source *disk, const struct partition *part)
{
    static const char *const paths[] = {"/", "/vmlinuz", "/boot", "/boot/vmlinuz-1", "/etc/fstab"};
    static uint8_t buf[READ_MAX];
    struct ext4 *fs;
    bool mine;
    struct err err = {0};
    if (ext4_open(disk, part->start_bytes, part->size_bytes, &fs, &mine, &err) < 0) {
        require(mine == (err.code != 0));
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        struct ext4_file file;
        uint64_t got = 0;
        unsigned count = 0;
        if (ext4_lookup(fs, paths[i], &file, &err) == 0) {
            ext4_read(fs, &file, 0, buf, READ_MAX, &got, &err);
            ext4_read(fs, &file, file.size_bytes - MIN(file.size_bytes, 100u), buf, READ_MAX, &got, &err);
            ext4_list(fs, &file, use_name, &count, &err);
        }
    }
    ext4_free(fs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes bytes = {data, size};
    const struct disk_source disk = {size, read_bytes, &bytes};
    struct partition parts[PARTITIONS_MAX];
    unsigned count = 0;
    if (partition_list(&disk, parts, &count, NULL) == 0) {
        require(count > 0 && count <= PARTITIONS_MAX);
        for (unsigned i = 0; i < count; i++) {
            require(parts[i].start_bytes <= size && parts[i].size_bytes <= size - parts[i].start_bytes);
            use_file_system(&disk, &parts[i]);
        }
    }
    return 0;
}
