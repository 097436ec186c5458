/* See ext4.h. inode and block numbers come from the disk: each is checked where it is used (read_block,
 * read_inode). */
#include "vm/bootdisk/ext4.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"

/* Superblock: Documentation/filesystems/ext4/super.rst. */
#define SUPER_OFFSET       1024u
#define SUPER_BYTES        1024u
#define S_BLOCKS_LO        0x04u
#define S_FIRST_DATA_BLOCK 0x14u
#define S_LOG_BLOCK_SIZE   0x18u
#define S_BLOCKS_PER_GROUP 0x20u
#define S_INODES_PER_GROUP 0x28u
#define S_MAGIC            0x38u
#define S_REV_LEVEL        0x4cu
#define S_INODE_SIZE       0x58u
#define S_FEATURE_INCOMPAT 0x60u
#define S_UUID             0x68u
#define S_DESC_SIZE        0xfeu
#define S_INODES_COUNT     0x00u
#define S_BLOCKS_HI        0x150u
#define MAGIC              0xef53u
#define LOG_BLOCK_SIZE_MAX 6u /* 64 KiB */
#define ROOT_INODE         2u

#define INCOMPAT_FILETYPE  0x2u
#define INCOMPAT_RECOVER   0x4u
#define INCOMPAT_EXTENTS   0x40u
#define INCOMPAT_64BIT     0x80u
#define INCOMPAT_MMP       0x100u
#define INCOMPAT_FLEX_BG   0x200u
#define INCOMPAT_EA_INODE  0x400u
#define INCOMPAT_CSUM_SEED 0x2000u
#define INCOMPAT_LARGEDIR  0x4000u
#define INCOMPAT_INLINE    0x8000u  /* refused file by file */
#define INCOMPAT_ENCRYPT   0x10000u /* refused file by file */
#define INCOMPAT_CASEFOLD  0x20000u /* names compare exactly here */
#define INCOMPAT_KNOWN                                                                                       \
    (INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_EXTENTS | INCOMPAT_64BIT | INCOMPAT_MMP |               \
     INCOMPAT_FLEX_BG | INCOMPAT_EA_INODE | INCOMPAT_CSUM_SEED | INCOMPAT_LARGEDIR | INCOMPAT_INLINE |       \
     INCOMPAT_ENCRYPT | INCOMPAT_CASEFOLD)

/* Group descriptors: group_descr.rst. */
#define GD_INODE_TABLE_LO 0x08u
#define GD_INODE_TABLE_HI 0x28u

/* Inodes: inodes.rst. */
#define I_MODE       0x00u
#define I_SIZE_LO    0x04u
#define I_FLAGS      0x20u
#define I_BLOCK      0x28u
#define I_SIZE_HI    0x6cu
#define INODE_BYTES  128u
#define FLAG_ENCRYPT 0x800u
#define FLAG_EXTENTS 0x80000u
#define FLAG_INLINE  0x10000000u

/* Extents: ifork.rst. */
#define EXTENT_MAGIC     0xf30au
#define EXTENT_BYTES     12u
#define EXTENT_DEPTH_MAX 5u
#define EXTENT_INIT_MAX  32768u /* longer ones are not written yet: they read as zeroes */

/* Block maps: ifork.rst. */
#define MAP_DIRECT 12u

struct ext4 {
    const struct disk_source *disk;
    uint64_t start, blocks;
    uint32_t block_bytes, inodes, inodes_per_group, groups;
    uint32_t first_data_block, desc_bytes, inode_bytes;
    bool wide;
    uint8_t uuid[16];
    uint8_t *scratch; /* one block: extent nodes and block maps */
};

/* A run of blocks of a file; physical 0: a hole. */
struct run {
    uint64_t physical, count;
};

static int damaged(struct err *err, const char *what)
{
    return err_set(err, -EUCLEAN, "the file system is damaged: %s", what);
}

static int read_bytes(struct ext4 *fs, uint64_t offset, void *buf, uint64_t bytes, struct err *err)
{
    int rc = disk_source_read(fs->disk, fs->start + offset, buf, bytes);
    return rc == -EUCLEAN ? damaged(err, "it is larger than its disk")
           : rc < 0       ? err_sys(err, rc, "cannot read the disk")
                          : 0;
}

static int read_block(struct ext4 *fs, uint64_t block, uint8_t *buf, struct err *err)
{
    if (block == 0 || block >= fs->blocks) {
        return damaged(err, "a block number is beyond its end");
    }
    return read_bytes(fs, block * fs->block_bytes, buf, fs->block_bytes, err);
}

/* ---- opening ---- */

static int check_features(const uint8_t *super, struct err *err)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } names[] = {{0x1, "compression"}, {0x8, "journal device"}, {0x10, "meta_bg"}, {0x1000, "dirdata"}};
    uint32_t unknown = get_le32(super + S_FEATURE_INCOMPAT) & ~INCOMPAT_KNOWN;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (unknown & names[i].bit) {
            return err_set(err, -ENOTSUP, "its ext4 feature '%s' is not supported here", names[i].name);
        }
    }
    return unknown ? err_set(err, -ENOTSUP, "its ext4 features %#x are not supported here", unknown) : 0;
}

static int parse_super(struct ext4 *fs, const uint8_t *super, uint64_t size_bytes, struct err *err)
{
    uint32_t log_size = get_le32(super + S_LOG_BLOCK_SIZE);
    bool old = get_le32(super + S_REV_LEVEL) == 0; /* before features and inode sizes */
    uint32_t blocks_per_group = get_le32(super + S_BLOCKS_PER_GROUP);
    if (log_size > LOG_BLOCK_SIZE_MAX) {
        return damaged(err, "its block size is none");
    }
    int rc = old ? 0 : check_features(super, err);
    if (rc < 0) {
        return rc;
    }
    fs->wide = !old && get_le32(super + S_FEATURE_INCOMPAT) & INCOMPAT_64BIT;
    fs->block_bytes = 1024u << log_size;
    fs->blocks =
        get_le32(super + S_BLOCKS_LO) | (fs->wide ? (uint64_t)get_le32(super + S_BLOCKS_HI) << 32 : 0);
    fs->inodes = get_le32(super + S_INODES_COUNT);
    fs->inodes_per_group = get_le32(super + S_INODES_PER_GROUP);
    fs->first_data_block = get_le32(super + S_FIRST_DATA_BLOCK);
    fs->inode_bytes = old ? INODE_BYTES : get_le16(super + S_INODE_SIZE);
    fs->desc_bytes = fs->wide ? get_le16(super + S_DESC_SIZE) : 32;
    memcpy(fs->uuid, super + S_UUID, sizeof(fs->uuid));
    if (fs->inode_bytes < INODE_BYTES || fs->inode_bytes > fs->block_bytes || fs->inodes_per_group == 0 ||
        blocks_per_group == 0 || fs->first_data_block > 1 || fs->desc_bytes < (fs->wide ? 64u : 32u) ||
        fs->desc_bytes > fs->block_bytes) {
        return damaged(err, "its superblock contradicts itself");
    }
    if (fs->blocks == 0 || fs->blocks > size_bytes / fs->block_bytes) {
        return damaged(err, "it is larger than its partition");
    }
    return 0;
}

int ext4_open(const struct disk_source *disk, uint64_t start_bytes, uint64_t size_bytes, struct ext4 **ret_fs,
              bool *ret_mine, struct err *err)
{
    uint8_t super[SUPER_BYTES];
    *ret_mine = false;
    if (size_bytes < SUPER_OFFSET + SUPER_BYTES || start_bytes > disk->size_bytes ||
        size_bytes > disk->size_bytes - start_bytes) {
        return -EUCLEAN;
    }
    int rc = disk_source_read(disk, start_bytes + SUPER_OFFSET, super, sizeof(super));
    if (rc < 0) {
        *ret_mine = true;
        return err_sys(err, rc, "cannot read the disk");
    }
    if (get_le16(super + S_MAGIC) != MAGIC) {
        return -EUCLEAN;
    }
    *ret_mine = true;
    struct ext4 *fs = calloc(1, sizeof(*fs));
    if (!fs) {
        return err_sys(err, -ENOMEM, "cannot read the file system");
    }
    fs->disk = disk;
    fs->start = start_bytes;
    rc = parse_super(fs, super, size_bytes, err);
    if (rc == 0) {
        fs->scratch = malloc(fs->block_bytes);
        rc = fs->scratch ? 0 : err_sys(err, -ENOMEM, "cannot read the file system");
    }
    if (rc < 0) {
        ext4_free(fs);
        return rc;
    }
    *ret_fs = fs;
    return 0;
}

void ext4_free(struct ext4 *fs)
{
    if (fs) {
        free(fs->scratch);
        free(fs);
    }
}

void ext4_uuid(const struct ext4 *fs, char ret_text[EXT4_UUID_TEXT])
{
    const uint8_t *u = fs->uuid;
    snprintf(ret_text, EXT4_UUID_TEXT, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
}

/* ---- inodes and their blocks ---- */

static int read_inode(struct ext4 *fs, uint32_t number, struct ext4_file *ret_file, struct err *err)
{
    uint8_t desc[64] = {0}, raw[INODE_BYTES];
    if (number == 0 || number > fs->inodes) {
        return damaged(err, "an inode number is beyond its end");
    }
    uint32_t group = (number - 1) / fs->inodes_per_group, index = (number - 1) % fs->inodes_per_group;
    uint64_t table =
        ((uint64_t)fs->first_data_block + 1) * fs->block_bytes + (uint64_t)group * fs->desc_bytes;
    int rc = read_bytes(fs, table, desc, MIN(fs->desc_bytes, sizeof(desc)), err);
    if (rc < 0) {
        return rc;
    }
    uint64_t block = get_le32(desc + GD_INODE_TABLE_LO);
    block |= fs->wide ? (uint64_t)get_le32(desc + GD_INODE_TABLE_HI) << 32 : 0;
    if (block == 0 || block >= fs->blocks) {
        return damaged(err, "an inode table is beyond its end");
    }
    rc = read_bytes(fs, block * fs->block_bytes + (uint64_t)index * fs->inode_bytes, raw, sizeof(raw), err);
    if (rc < 0) {
        return rc;
    }
    struct ext4_file file = {.inode = number,
                             .mode = get_le16(raw + I_MODE),
                             .flags = get_le32(raw + I_FLAGS),
                             .size_bytes = get_le32(raw + I_SIZE_LO) | (uint64_t)get_le32(raw + I_SIZE_HI)
                                                                           << 32};
    memcpy(file.block, raw + I_BLOCK, sizeof(file.block));
    if (file.flags & (FLAG_INLINE | FLAG_ENCRYPT)) {
        return err_set(err, -ENOTSUP, "the file is %s, which is not supported here",
                       file.flags & FLAG_INLINE ? "stored inside of its inode ('inline_data')" : "encrypted");
    }
    *ret_file = file;
    return 0;
}

/* Entries of a node are sorted; the last one that starts at or before the wanted block is the way down. */
static const uint8_t *pick_extent(const uint8_t *node, unsigned entries, uint64_t wanted, uint64_t *ret_next)
{
    const uint8_t *found = NULL;
    for (unsigned i = 0; i < entries; i++) {
        const uint8_t *entry = node + EXTENT_BYTES * (1 + i);
        if (get_le32(entry) > wanted) {
            *ret_next = MIN(*ret_next, get_le32(entry));
            break;
        }
        found = entry;
    }
    return found;
}

static struct run leaf_run(const uint8_t *extent, uint64_t wanted, uint64_t next)
{
    uint64_t first = get_le32(extent), length = get_le16(extent + 4);
    bool unwritten = length > EXTENT_INIT_MAX;
    length -= unwritten ? EXTENT_INIT_MAX : 0;
    if (wanted - first >= length) {
        return (struct run){0, next - wanted};
    }
    uint64_t physical = get_le32(extent + 8) | (uint64_t)get_le16(extent + 6) << 32;
    return (struct run){unwritten ? 0 : physical + (wanted - first), length - (wanted - first)};
}

static int map_extents(struct ext4 *fs, const struct ext4_file *file, uint64_t wanted, struct run *ret_run,
                       struct err *err)
{
    const uint8_t *node = file->block;
    uint64_t room = sizeof(file->block), next = UINT32_MAX;
    for (unsigned depth = 0; depth <= EXTENT_DEPTH_MAX; depth++) {
        unsigned entries = get_le16(node + 2);
        if (get_le16(node) != EXTENT_MAGIC || (entries + 1) * EXTENT_BYTES > room) {
            return damaged(err, "an extent tree");
        }
        bool leaf = get_le16(node + 6) == 0;
        const uint8_t *entry = pick_extent(node, entries, wanted, &next);
        if (!entry) {
            *ret_run = (struct run){0, next > wanted ? next - wanted : 1};
            return 0;
        }
        if (leaf) {
            *ret_run = leaf_run(entry, wanted, MAX(next, wanted + 1));
            return 0;
        }
        uint64_t below = get_le32(entry + 4) | (uint64_t)get_le16(entry + 8) << 32;
        int rc = read_block(fs, below, fs->scratch, err);
        if (rc < 0) {
            return rc;
        }
        node = fs->scratch;
        room = fs->block_bytes;
    }
    return damaged(err, "an extent tree is too deep");
}

static int map_indirect(struct ext4 *fs, const struct ext4_file *file, uint64_t wanted, struct run *ret_run,
                        struct err *err)
{
    uint64_t per_block = fs->block_bytes / 4, span = 1, index = wanted;
    unsigned slot = (unsigned)MIN(wanted, (uint64_t)MAP_DIRECT), levels = 0;
    *ret_run = (struct run){0, 1};
    if (wanted >= MAP_DIRECT) {
        index -= MAP_DIRECT;
        for (levels = 1, span = per_block; levels < 3 && index >= span; levels++) {
            index -= span;
            span *= per_block;
        }
        if (index >= span) {
            return damaged(err, "a file is larger than it can be");
        }
        slot = MAP_DIRECT + levels - 1;
    }
    uint64_t block = get_le32(file->block + slot * 4);
    for (; levels > 0 && block != 0; levels--) {
        span /= per_block;
        int rc = read_block(fs, block, fs->scratch, err);
        if (rc < 0) {
            return rc;
        }
        block = get_le32(fs->scratch + index / span * 4);
        index %= span;
    }
    ret_run->physical = block;
    return 0;
}

int ext4_read(struct ext4 *fs, const struct ext4_file *file, uint64_t offset, void *buf, uint64_t bytes,
              uint64_t *ret_bytes, struct err *err)
{
    uint64_t done = 0;
    bytes = offset < file->size_bytes ? MIN(bytes, file->size_bytes - offset) : 0;
    while (done < bytes) {
        struct run run = {0, 1};
        uint64_t at = offset + done, block = at / fs->block_bytes, inside = at % fs->block_bytes;
        int rc = block > UINT32_MAX - 1       ? damaged(err, "a file is larger than it can be")
                 : file->flags & FLAG_EXTENTS ? map_extents(fs, file, block, &run, err)
                                              : map_indirect(fs, file, block, &run, err);
        if (rc < 0) {
            return rc;
        }
        uint64_t n = MIN(bytes - done, run.count * fs->block_bytes - inside);
        if (run.physical == 0) {
            memset((uint8_t *)buf + done, 0, n);
        } else if (run.physical >= fs->blocks || run.count > fs->blocks - run.physical) {
            return damaged(err, "a block number is beyond its end");
        } else {
            rc = read_bytes(fs, run.physical * fs->block_bytes + inside, (uint8_t *)buf + done, n, err);
        }
        if (rc < 0) {
            return rc;
        }
        done += n;
    }
    *ret_bytes = done;
    return 0;
}

/* ---- directories and paths ---- */

/* Entries of one block: directory.rst, "Linear (Classic) Directories". Blocks of a hash tree look like blocks
 * with one unused entry. */
static int list_block(struct ext4 *fs, const uint8_t *block,
                      bool (*each)(void *opaque, const char *name, uint32_t inode), void *opaque,
                      bool *ret_more, struct err *err)
{
    for (uint32_t at = 0; at + 8 <= fs->block_bytes && *ret_more;) {
        char name[EXT4_NAME_MAX + 1];
        const uint8_t *entry = block + at;
        uint32_t inode = get_le32(entry), length = get_le16(entry + 4), name_length = entry[6];
        /* 64 KiB blocks: their whole length doesn't fit, and is written as 0 or 65535. */
        if (fs->block_bytes == 65536 && (length == 0 || length == 65535)) {
            length = fs->block_bytes - at;
        }
        if (length < 8 || length % 4 != 0 || length > fs->block_bytes - at || name_length + 8 > length) {
            return damaged(err, "a directory entry");
        }
        if (inode != 0 && name_length > 0) {
            memcpy(name, entry + 8, name_length);
            name[name_length] = '\0';
            *ret_more = each(opaque, name, inode);
        }
        at += length;
    }
    return 0;
}

int ext4_list(struct ext4 *fs, const struct ext4_file *dir,
              bool (*each)(void *opaque, const char *name, uint32_t inode), void *opaque, struct err *err)
{
    if (!S_ISDIR(dir->mode)) {
        return err_set(err, -ENOTDIR, "not a directory");
    }
    if (dir->size_bytes > EXT4_DIRECTORY_MAX) {
        return damaged(err, "a directory is too large");
    }
    auto_free uint8_t *block = malloc(fs->block_bytes);
    if (!block) {
        return err_sys(err, -ENOMEM, "cannot read the file system");
    }
    bool more = true;
    int rc = 0;
    for (uint64_t at = 0; at < dir->size_bytes && rc == 0 && more; at += fs->block_bytes) {
        uint64_t got = 0;
        memset(block, 0, fs->block_bytes);
        rc = ext4_read(fs, dir, at, block, fs->block_bytes, &got, err);
        if (rc == 0 && got == fs->block_bytes) {
            rc = list_block(fs, block, each, opaque, &more, err);
        }
    }
    return rc;
}

struct wanted_name {
    const char *name;
    uint32_t inode;
};

static bool match_name(void *opaque, const char *name, uint32_t inode)
{
    struct wanted_name *wanted = opaque;
    if (strcmp(name, wanted->name) == 0) {
        wanted->inode = inode;
    }
    return wanted->inode == 0;
}

/* The target of a link: inside of the inode when it is short (ifork.rst, "Symbolic Links"). */
static int read_link(struct ext4 *fs, const struct ext4_file *link, char *buf, uint64_t room, struct err *err)
{
    uint64_t got = link->size_bytes;
    if (got == 0 || got >= room) {
        return err_set(err, -ENAMETOOLONG, "a symbolic link's target has %llu bytes",
                       (unsigned long long)got);
    }
    int rc = 0;
    if (got < sizeof(link->block) && !(link->flags & FLAG_EXTENTS)) {
        memcpy(buf, link->block, got);
    } else {
        rc = ext4_read(fs, link, 0, buf, got, &got, err);
    }
    buf[got] = '\0';
    return rc;
}

/* path: what is left to walk, from dir. A link's target takes the place of its name. */
struct walk {
    struct ext4_file at;
    char path[EXT4_PATH_MAX];
    unsigned links, steps;
};

static int follow(struct ext4 *fs, struct walk *walk, const struct ext4_file *link, const char *rest,
                  struct err *err)
{
    char joined[2 * EXT4_PATH_MAX], target[EXT4_PATH_MAX];
    if (++walk->links > EXT4_LINKS_MAX) {
        return err_set(err, -ELOOP, "too many symbolic links");
    }
    int rc = read_link(fs, link, target, sizeof(target), err);
    if (rc < 0) {
        return rc;
    }
    int n = snprintf(joined, sizeof(joined), "%s/%s", target, rest);
    if ((size_t)n >= sizeof(walk->path)) {
        return err_set(err, -ENAMETOOLONG, "the path is too long behind a symbolic link");
    }
    strcpy(walk->path, joined);
    return target[0] == '/' ? read_inode(fs, ROOT_INODE, &walk->at, err) : 0;
}

/* One name of the path. ret_done: it was the last. */
static int step(struct ext4 *fs, struct walk *walk, bool *ret_done, struct err *err)
{
    char *name = walk->path + strspn(walk->path, "/");
    size_t len = strcspn(name, "/");
    *ret_done = len == 0;
    if (len == 0) {
        return 0;
    }
    if (len > EXT4_NAME_MAX || ++walk->steps > EXT4_STEPS_MAX) {
        return err_set(err, -ENAMETOOLONG, "the path is too long, or a name of it");
    }
    char rest[EXT4_PATH_MAX], wanted_text[EXT4_NAME_MAX + 1];
    strcpy(rest, name + len);
    memcpy(wanted_text, name, len);
    wanted_text[len] = '\0';
    struct wanted_name wanted = {wanted_text, 0};
    struct ext4_file next = {0};
    int rc = ext4_list(fs, &walk->at, match_name, &wanted, err);
    if (rc == 0 && wanted.inode == 0) {
        rc = err_set(err, -ENOENT, "there is no '%s'", wanted_text);
    }
    rc = rc == 0 ? read_inode(fs, wanted.inode, &next, err) : rc;
    if (rc < 0) {
        return rc;
    }
    if (S_ISLNK(next.mode)) {
        return follow(fs, walk, &next, rest, err);
    }
    strcpy(walk->path, rest);
    walk->at = next;
    return 0;
}

int ext4_lookup(struct ext4 *fs, const char *path, struct ext4_file *ret_file, struct err *err)
{
    struct walk walk = {0};
    if (strlen(path) >= sizeof(walk.path)) {
        return err_set(err, -ENAMETOOLONG, "the path is too long");
    }
    strcpy(walk.path, path);
    int rc = read_inode(fs, ROOT_INODE, &walk.at, err);
    bool done = false;
    while (rc == 0 && !done) {
        rc = step(fs, &walk, &done, err);
    }
    if (rc == 0) {
        *ret_file = walk.at;
    }
    return rc;
}
