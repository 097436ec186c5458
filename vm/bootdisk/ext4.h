/*
 * A read-only ext2, ext3 and ext4, as far as finding files by name needs it: extents and block maps, linear
 * and hashed directories (both are read as linear), symbolic links, 64-bit and flexible block groups. The
 * journal is not replayed, and checksums are not verified.
 *
 * Facts: Linux, Documentation/filesystems/ext4/.
 *
 * Any bytes may come: work and memory are bounded by the limits below, and damage is -EUCLEAN.
 */
#ifndef FONDA_VM_BOOTDISK_EXT4_H
#define FONDA_VM_BOOTDISK_EXT4_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "vm/bootdisk/source.h"

#define EXT4_NAME_MAX      255u
#define EXT4_PATH_MAX      4096u
#define EXT4_LINKS_MAX     16u        /* symbolic links of one look-up */
#define EXT4_STEPS_MAX     64u        /* names that one look-up walks through, those of links too */
#define EXT4_DIRECTORY_MAX (4u << 20) /* bytes of one directory */
#define EXT4_UUID_TEXT     37u

struct ext4;

struct ext4_file {
    uint32_t inode;
    uint16_t mode; /* as in <sys/stat.h> */
    uint32_t flags;
    uint64_t size_bytes;
    uint8_t block[60]; /* extents, block map, or a short link's target */
};

/* start_bytes and size_bytes: where on the disk. *ret_mine is false when nothing there looks like this file
 * system: -EUCLEAN then, err untouched. Errors: -EUCLEAN (damaged), -ENOTSUP (with the feature's name), those
 * of reading. disk has to outlive it. */
int ext4_open(const struct disk_source *disk, uint64_t start_bytes, uint64_t size_bytes, struct ext4 **ret_fs,
              bool *ret_mine, struct err *err);
void ext4_free(struct ext4 *fs);
/* The file system's UUID as Linux's root=UUID= wants it. */
void ext4_uuid(const struct ext4 *fs, char ret_text[EXT4_UUID_TEXT]);

/* An absolute path; symbolic links are followed, within the file system. Errors: -ENOENT, -ENOTDIR, -ELOOP,
 * -ENAMETOOLONG, -ENOTSUP (inline data, encryption), -EUCLEAN, those of reading. */
int ext4_lookup(struct ext4 *fs, const char *path, struct ext4_file *ret_file, struct err *err);
/* Up to the file's end; *ret_bytes is less than bytes only there. Holes are zeroes. */
int ext4_read(struct ext4 *fs, const struct ext4_file *file, uint64_t offset, void *buf, uint64_t bytes,
              uint64_t *ret_bytes, struct err *err);
/* Calls each() for every name of a directory until it returns false. Errors: -ENOTDIR and those of reading.
 */
int ext4_list(struct ext4 *fs, const struct ext4_file *dir,
              bool (*each)(void *opaque, const char *name, uint32_t inode), void *opaque, struct err *err);

#endif
