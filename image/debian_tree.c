/* See debian_tree.h. libext2fs does the writing; its error codes include errno's. */
#include "image/debian_tree.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/util.h"
#include "image/debian_process.h"

#define COPY_BYTES (256u * 1024u)
#define EDIT_BYTES 65536u /* files that edit() sees are no larger */
#define BLOCK_TEXT "4096"
#define INODE_TEXT "256"
/* By name, so that the host's mke2fs.conf doesn't bring what the guest's kernel or fsck doesn't know. */
static const char features[] =
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,"
    "flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

struct tree {
    ext2_filsys fs;
    char path[32]; /* of the file descriptor */
    char uuid[37];
    /* The folder that was used last. */
    char *folder;
    ext2_ino_t folder_inode;
    uint8_t *copy;
};

static int failed(struct err *err, errcode_t code, const char *what)
{
    if (code == EXT2_ET_BLOCK_ALLOC_FAIL || code == EXT2_ET_INODE_ALLOC_FAIL ||
        code == EXT2_ET_DIR_NO_SPACE) {
        return err_set(err, -ENOSPC, "the system does not fit into the disk: give a larger --size");
    }
    if (code > 0 && code < 4096) {
        return err_sys(err, -(int)code, "cannot write the file system (%s)", what);
    }
    return err_set(err, -EIO, "cannot write the file system (%s): %s", what, error_message(code));
}

/* ---- making and closing ---- */

static int format(struct tree *tree, uint64_t size_bytes, struct err *err)
{
    char blocks[32];
    snprintf(blocks, sizeof(blocks), "%lluk", (unsigned long long)(size_bytes / 1024));
    const char *const argv[] = {
        "mke2fs", "-q",       "-F",       "-t",       "ext4",
        "-b",     BLOCK_TEXT, "-I",       INODE_TEXT, "-m",
        "1",      "-O",       features,   "-E",       "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        "-L",     "root",     tree->path, blocks,     NULL};
    struct process_result result;
    int rc = process_run(argv, &result, err);
    if (rc == -ENOENT) {
        return err_set(err, -ENOENT, "mke2fs is missing: apt-get install e2fsprogs");
    }
    if (rc == 0 && result.status != 0) {
        rc = err_set(err, -EIO, "mke2fs failed: %s", result.last_line);
    }
    return rc;
}

/* The file's blocks are zeroes already, so that the guest's kernel needs not zero inode tables in the
 * background. */
static void mark_zeroed(ext2_filsys fs)
{
    for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
        ext2fs_bg_flags_set(fs, group, EXT2_BG_INODE_ZEROED);
        ext2fs_group_desc_csum_set(fs, group);
    }
    ext2fs_mark_super_dirty(fs);
}

int tree_new(int fd, uint64_t size_bytes, struct tree **ret_tree, struct err *err)
{
    struct tree *tree = calloc(1, sizeof(*tree));
    if (!tree || !(tree->copy = malloc(COPY_BYTES))) {
        free(tree);
        return err_sys(err, -ENOMEM, "cannot make the file system");
    }
    initialize_ext2_error_table();
    snprintf(tree->path, sizeof(tree->path), "/proc/self/fd/%d", fd);
    int rc = format(tree, size_bytes, err);
    if (rc == 0) {
        errcode_t code =
            ext2fs_open(tree->path, EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &tree->fs);
        code = code ? code : ext2fs_read_bitmaps(tree->fs);
        rc = code ? failed(err, code, "opening it") : 0;
    }
    if (rc < 0) {
        tree_close(tree, NULL);
        return rc;
    }
    mark_zeroed(tree->fs);
    const uint8_t *u = tree->fs->super->s_uuid;
    snprintf(tree->uuid, sizeof(tree->uuid),
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3],
             u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    *ret_tree = tree;
    return 0;
}

int tree_close(struct tree *tree, struct err *err)
{
    int rc = 0;
    if (!tree) {
        return 0;
    }
    if (tree->fs) {
        errcode_t code = ext2fs_close_free(&tree->fs);
        rc = code ? failed(err, code, "closing it") : 0;
    }
    free(tree->folder);
    free(tree->copy);
    free(tree);
    return rc;
}

const char *tree_uuid(const struct tree *tree)
{
    return tree->uuid;
}

/* ---- names ---- */

static errcode_t make_folder(ext2_filsys fs, ext2_ino_t parent, const char *name)
{
    errcode_t code = ext2fs_mkdir(fs, parent, 0, name);
    if (code == EXT2_ET_DIR_NO_SPACE) {
        code = ext2fs_expand_dir(fs, parent);
        code = code ? code : ext2fs_mkdir(fs, parent, 0, name);
    }
    return code;
}

static errcode_t add_name(ext2_filsys fs, ext2_ino_t parent, const char *name, ext2_ino_t inode, int type)
{
    errcode_t code = ext2fs_link(fs, parent, name, inode, type);
    if (code == EXT2_ET_DIR_NO_SPACE) {
        code = ext2fs_expand_dir(fs, parent);
        code = code ? code : ext2fs_link(fs, parent, name, inode, type);
    }
    return code;
}

/* Symbolic links in the middle of a path are followed: "lib/x" may come after lib -> usr/lib. */
static errcode_t lookup(struct tree *tree, ext2_ino_t folder, const char *name, ext2_ino_t *ret_inode)
{
    return ext2fs_namei_follow(tree->fs, EXT2_ROOT_INO, folder, name, ret_inode);
}

/* The folder that path lies in; *ret_name is the rest. Missing folders are made with mode 0755. */
static errcode_t find_parent(struct tree *tree, const char *path, ext2_ino_t *ret_parent,
                             const char **ret_name)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    *ret_name = slash ? slash + 1 : path;
    if (tree->folder && strlen(tree->folder) == len && memcmp(tree->folder, path, len) == 0) {
        *ret_parent = tree->folder_inode;
        return 0;
    }
    auto_free char *folder = strndup(path, len);
    if (!folder) {
        return ENOMEM;
    }
    ext2_ino_t at = EXT2_ROOT_INO;
    for (char *save = NULL, *name = strtok_r(folder, "/", &save); name; name = strtok_r(NULL, "/", &save)) {
        ext2_ino_t next;
        errcode_t code = lookup(tree, at, name, &next);
        if (code == EXT2_ET_FILE_NOT_FOUND) {
            code = make_folder(tree->fs, at, name);
            code = code ? code : lookup(tree, at, name, &next);
        }
        if (code) {
            return code;
        }
        at = next;
    }
    free(tree->folder);
    tree->folder = strndup(path, len);
    tree->folder_inode = at;
    *ret_parent = at;
    return 0;
}

/* ---- entries ---- */

struct owner {
    uint32_t mode, uid, gid;
    int64_t time_s;
};

static void set_owner(struct ext2_inode *inode, const struct owner *owner)
{
    inode->i_mode = (uint16_t)((inode->i_mode & LINUX_S_IFMT) | (owner->mode & 07777));
    inode->i_uid = (uint16_t)owner->uid;
    inode->osd2.linux2.l_i_uid_high = (uint16_t)(owner->uid >> 16);
    inode->i_gid = (uint16_t)owner->gid;
    inode->osd2.linux2.l_i_gid_high = (uint16_t)(owner->gid >> 16);
    inode->i_atime = inode->i_ctime = inode->i_mtime = (uint32_t)owner->time_s;
}

static errcode_t update_owner(struct tree *tree, ext2_ino_t number, const struct owner *owner)
{
    struct ext2_inode inode;
    errcode_t code = ext2fs_read_inode(tree->fs, number, &inode);
    if (!code) {
        set_owner(&inode, owner);
        code = ext2fs_write_inode(tree->fs, number, &inode);
    }
    return code;
}

static errcode_t new_file(struct tree *tree, ext2_ino_t parent, const char *name, const struct owner *owner,
                          ext2_ino_t *ret_inode)
{
    ext2_ino_t number;
    ext2_extent_handle_t handle;
    struct ext2_inode inode = {.i_mode = LINUX_S_IFREG, .i_links_count = 1};
    errcode_t code = ext2fs_new_inode(tree->fs, parent, (int)(LINUX_S_IFREG | 0644), 0, &number);
    code = code ? code : add_name(tree->fs, parent, name, number, EXT2_FT_REG_FILE);
    if (code) {
        return code;
    }
    ext2fs_inode_alloc_stats2(tree->fs, number, 1, 0);
    set_owner(&inode, owner);
    code = ext2fs_extent_open2(tree->fs, number, &inode, &handle); /* an empty extent tree */
    if (!code) {
        ext2fs_extent_free(handle);
        code = ext2fs_write_new_inode(tree->fs, number, &inode);
    }
    *ret_inode = number;
    return code;
}

static errcode_t write_all(ext2_file_t file, const void *buf, size_t bytes)
{
    errcode_t code = 0;
    for (unsigned done = 0; bytes > 0 && !code; bytes -= done) {
        code = ext2fs_file_write(file, buf, (unsigned)bytes, &done);
        buf = (const uint8_t *)buf + done;
    }
    return code;
}

static errcode_t write_text(struct tree *tree, ext2_ino_t number, const char *text)
{
    ext2_file_t file;
    errcode_t code = ext2fs_file_open(tree->fs, number, EXT2_FILE_WRITE, &file);
    if (!code) {
        code = write_all(file, text, strlen(text));
        errcode_t close_code = ext2fs_file_close(file);
        code = code ? code : close_code;
    }
    return code;
}

static void remove_file(struct tree *tree, ext2_ino_t parent, const char *name, ext2_ino_t number)
{
    struct ext2_inode inode;
    ext2fs_unlink(tree->fs, parent, name, number, 0);
    if (ext2fs_read_inode(tree->fs, number, &inode) || inode.i_links_count == 0) {
        return;
    }
    inode.i_links_count--;
    if (inode.i_links_count == 0) {
        inode.i_dtime = (uint32_t)time(NULL);
        if (ext2fs_inode_has_valid_blocks2(tree->fs, &inode)) {
            ext2fs_punch(tree->fs, number, &inode, NULL, 0, ~0ULL);
        }
        ext2fs_inode_alloc_stats2(tree->fs, number, -1, 0);
    }
    ext2fs_write_inode(tree->fs, number, &inode);
}

int tree_add(struct tree *tree, const struct tree_entry *entry, struct err *err)
{
    const struct owner owner = {.mode = entry->mode, .time_s = time(NULL)};
    ext2_ino_t parent, number = 0;
    const char *name;
    errcode_t code = find_parent(tree, entry->path, &parent, &name);
    if (!code && ext2fs_lookup(tree->fs, parent, name, (int)strlen(name), NULL, &number) == 0) {
        if (S_ISDIR(entry->mode)) {
            code = update_owner(tree, number, &owner);
            return code ? failed(err, code, entry->path) : 0;
        }
        remove_file(tree, parent, name, number);
    }
    if (!code && S_ISDIR(entry->mode)) {
        code = make_folder(tree->fs, parent, name);
        code = code ? code : lookup(tree, parent, name, &number);
        code = code ? code : update_owner(tree, number, &owner);
    } else if (!code && S_ISLNK(entry->mode)) {
        code = ext2fs_symlink(tree->fs, parent, 0, name, entry->text);
        if (code == EXT2_ET_DIR_NO_SPACE) {
            code = ext2fs_expand_dir(tree->fs, parent);
            code = code ? code : ext2fs_symlink(tree->fs, parent, 0, name, entry->text);
        }
    } else if (!code) {
        code = new_file(tree, parent, name, &owner, &number);
        code = code ? code : write_text(tree, number, entry->text);
    }
    return code ? failed(err, code, entry->path) : 0;
}

/* ---- tar ---- */

struct tar {
    struct archive *archive;
    bool (*edit)(void *opaque, const char *path, const char *text, char **ret_text);
    void *opaque;
};

static errcode_t add_xattrs(struct tree *tree, ext2_ino_t number, struct archive_entry *entry)
{
    struct ext2_xattr_handle *handle;
    const char *name;
    const void *value;
    size_t bytes;
    if (archive_entry_xattr_reset(entry) == 0) {
        return 0;
    }
    errcode_t code = ext2fs_xattrs_open(tree->fs, number, &handle);
    if (code) {
        return code;
    }
    code = ext2fs_xattrs_read(handle);
    while (!code && archive_entry_xattr_next(entry, &name, &value, &bytes) == ARCHIVE_OK) {
        code = ext2fs_xattr_set(handle, name, value, bytes);
    }
    ext2fs_xattrs_close(&handle);
    return code;
}

static errcode_t copy_data(struct tree *tree, struct tar *tar, ext2_ino_t number, struct err *err)
{
    ext2_file_t file;
    errcode_t code = ext2fs_file_open(tree->fs, number, EXT2_FILE_WRITE, &file);
    while (!code) {
        la_ssize_t n = archive_read_data(tar->archive, tree->copy, COPY_BYTES);
        if (n < 0) {
            err_set(err, -EIO, "the stream of the system's files breaks off: %s",
                    archive_error_string(tar->archive));
            code = EIO;
        }
        if (n <= 0) {
            break;
        }
        code = write_all(file, tree->copy, (size_t)n);
    }
    errcode_t close_code = ext2fs_file_close(file);
    return code ? code : close_code;
}

/* A small file whole, ending with a NUL; NULL: too large, or an error. */
static char *read_small(struct tar *tar, struct archive_entry *entry)
{
    int64_t size = archive_entry_size(entry);
    char *text = size <= (int64_t)EDIT_BYTES ? calloc(1, (size_t)size + 1) : NULL;
    if (text && archive_read_data(tar->archive, text, (size_t)size) != size) {
        free(text);
        text = NULL;
    }
    return text;
}

static errcode_t add_regular(struct tree *tree, struct tar *tar, struct archive_entry *entry,
                             const char *path, ext2_ino_t parent, const char *name, const struct owner *owner,
                             struct err *err)
{
    ext2_ino_t number;
    auto_free char *replacement = NULL;
    auto_free char *text = archive_entry_size(entry) <= (int64_t)EDIT_BYTES ? read_small(tar, entry) : NULL;
    if (!tar->edit(tar->opaque, path, text, &replacement)) {
        return 0;
    }
    errcode_t code = new_file(tree, parent, name, owner, &number);
    if (!code && replacement) {
        code = write_text(tree, number, replacement);
    } else if (!code && text) {
        ext2_file_t file;
        code = ext2fs_file_open(tree->fs, number, EXT2_FILE_WRITE, &file);
        if (!code) {
            code = write_all(file, text, (size_t)archive_entry_size(entry));
            errcode_t close_code = ext2fs_file_close(file);
            code = code ? code : close_code;
        }
    } else if (!code) {
        code = copy_data(tree, tar, number, err);
    }
    return code ? code : add_xattrs(tree, number, entry);
}

static errcode_t add_hard_link(struct tree *tree, const char *target, ext2_ino_t parent, const char *name)
{
    struct ext2_inode inode;
    ext2_ino_t number;
    target += strncmp(target, "./", 2) == 0 ? 2 : 0;
    errcode_t code = ext2fs_namei(tree->fs, EXT2_ROOT_INO, EXT2_ROOT_INO, target, &number);
    code = code ? code : add_name(tree->fs, parent, name, number, EXT2_FT_REG_FILE);
    code = code ? code : ext2fs_read_inode(tree->fs, number, &inode);
    if (!code) {
        inode.i_links_count++;
        code = ext2fs_write_inode(tree->fs, number, &inode);
    }
    return code;
}

static errcode_t add_link(struct tree *tree, struct archive_entry *entry, ext2_ino_t parent, const char *name)
{
    const char *target = archive_entry_symlink(entry);
    errcode_t code = ext2fs_symlink(tree->fs, parent, 0, name, target);
    if (code == EXT2_ET_DIR_NO_SPACE) {
        code = ext2fs_expand_dir(tree->fs, parent);
        code = code ? code : ext2fs_symlink(tree->fs, parent, 0, name, target);
    }
    return code;
}

/* Device nodes, sockets and pipes are left out: /dev is the guest kernel's own. */
static errcode_t add_entry(struct tree *tree, struct tar *tar, struct archive_entry *entry, const char *path,
                           struct err *err)
{
    const struct owner owner = {archive_entry_perm(entry), (uint32_t)archive_entry_uid(entry),
                                (uint32_t)archive_entry_gid(entry), archive_entry_mtime(entry)};
    unsigned type = archive_entry_filetype(entry);
    char *unused = NULL;
    ext2_ino_t parent, number;
    const char *name;
    if (!*path) {
        return update_owner(tree, EXT2_ROOT_INO, &owner);
    }
    errcode_t code = find_parent(tree, path, &parent, &name);
    if (code) {
        return code;
    }
    if (archive_entry_hardlink(entry)) {
        return add_hard_link(tree, archive_entry_hardlink(entry), parent, name);
    }
    if (type == AE_IFREG) {
        return add_regular(tree, tar, entry, path, parent, name, &owner, err);
    }
    if (type == AE_IFDIR) {
        code = lookup(tree, parent, name, &number);
        if (code == EXT2_ET_FILE_NOT_FOUND) {
            code = make_folder(tree->fs, parent, name);
            code = code ? code : lookup(tree, parent, name, &number);
        }
        code = code ? code : update_owner(tree, number, &owner);
        return code ? code : add_xattrs(tree, number, entry);
    }
    if (type == AE_IFLNK && tar->edit(tar->opaque, path, NULL, &unused)) {
        return add_link(tree, entry, parent, name);
    }
    return 0;
}

int tree_add_tar(struct tree *tree, int fd,
                 bool (*edit)(void *opaque, const char *path, const char *text, char **ret_text),
                 void *opaque, struct err *err)
{
    struct tar tar = {archive_read_new(), edit, opaque};
    struct archive_entry *entry;
    if (!tar.archive) {
        return err_sys(err, -ENOMEM, "cannot read the system's files");
    }
    archive_read_support_format_tar(tar.archive);
    archive_read_support_format_empty(tar.archive);
    struct err own = {0};
    errcode_t code = 0;
    int rc = archive_read_open_fd(tar.archive, fd, COPY_BYTES), n = 0;
    while (rc >= ARCHIVE_WARN && !code &&
           (rc = archive_read_next_header(tar.archive, &entry)) >= ARCHIVE_WARN && rc != ARCHIVE_EOF) {
        const char *path = archive_entry_pathname(entry);
        path += strncmp(path, "./", 2) == 0 ? 2 : 0;
        auto_free char *trimmed = strdup(path);
        size_t len = trimmed ? strlen(trimmed) : 0;
        while (len > 0 && trimmed[len - 1] == '/') {
            trimmed[--len] = '\0';
        }
        code =
            trimmed ? add_entry(tree, &tar, entry, strcmp(trimmed, ".") == 0 ? "" : trimmed, &own) : ENOMEM;
        n++;
    }
    int result = 0;
    if (code) {
        result = own.code ? err_set(err, own.code, "%s", own.text)
                          : failed(err, code, archive_entry_pathname(entry));
    } else if (rc != ARCHIVE_EOF) {
        result = err_set(err, -EIO, "the stream of the system's files breaks off: %s",
                         archive_error_string(tar.archive) ? archive_error_string(tar.archive)
                                                           : "no reason known");
    } else if (n == 0) {
        result = err_set(err, -EINVAL, "the stream of the system's files is empty");
    }
    archive_read_free(tar.archive);
    return result;
}
