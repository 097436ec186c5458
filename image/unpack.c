/*
 * A layer's tar into a folder. The tar is hostile: every path is checked, every parent is opened without
 * following a link, and sizes and numbers have limits.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "image/fs.h"
#include "image/layer.h"
#include "image/limits.h"

#define HOLE_BYTES (32u * 1024u) /* aligned runs of zeros of this size become holes */

/* Folders whose times are set when everything is inside; those without an entry of their own; links to lower
 * layers. */
struct layer_fixups {
    struct fixup {
        enum { FIX_TIMES, FIX_IMPLIED, FIX_LINK, FIX_NONE } kind;
        struct timespec mtime;
        char *path, *target;
    } *items;
    size_t count, room;
};

struct unpack {
    int diff;
    struct layer_stream *stream;
    struct layer_fixups *fixups;
    char parent_path[PATH_MAX]; /* of parent, which is open while >= 0 */
    int parent;
    uint64_t entries;
    struct err *err;
};

/* ---- notes for later ---- */

static int note(struct layer_fixups *f, int kind, const char *path, const char *target, struct timespec mtime)
{
    if (f->count == f->room) {
        size_t room = f->room ? f->room * 2 : 256;
        struct fixup *items = reallocarray(f->items, room, sizeof(*items));
        if (!items) {
            return -ENOMEM;
        }
        f->items = items;
        f->room = room;
    }
    struct fixup item = {
        .kind = kind, .mtime = mtime, .path = strdup(path), .target = target ? strdup(target) : NULL};
    if (!item.path || (target && !item.target)) {
        free(item.path);
        free(item.target);
        return -ENOMEM;
    }
    f->items[f->count++] = item;
    return 0;
}

static void forget_implied(struct layer_fixups *f, const char *path)
{
    /* The entry of a folder comes right behind its first content in the odd tar that has this order: look
     * back a little. */
    for (size_t i = f->count; i-- > 0 && f->count - i < 4096;) {
        if (f->items[i].kind == FIX_IMPLIED && strcmp(f->items[i].path, path) == 0) {
            f->items[i].kind = FIX_NONE;
        }
    }
}

void layer_fixups_free(struct layer_fixups *fixups)
{
    for (size_t i = 0; fixups && i < fixups->count; i++) {
        free(fixups->items[i].path);
        free(fixups->items[i].target);
    }
    free(fixups ? fixups->items : NULL);
    free(fixups);
}

/* ---- paths ---- */

/* "./a//b/" to "a/b". Absolute paths and '..' are refused. */
static int clean_path(const char *raw, char ret_path[static PATH_MAX], struct err *err)
{
    size_t used = 0;
    if (!raw || strlen(raw) > IMAGE_PATH_BYTES_MAX) {
        return err_set(err, -ENAMETOOLONG,
                       "the layer has a path of more than %u bytes, or one that is not text",
                       IMAGE_PATH_BYTES_MAX);
    }
    if (raw[0] == '/' && raw[strspn(raw, "/")]) { /* "/" alone, the root, is what umoci writes for it */
        return err_set(err, -EBADMSG, "the layer has the absolute path '%.200s', which is refused", raw);
    }
    for (const char *p = raw; *p;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.') {
            return err_set(err, -EBADMSG, "the layer has the path '%.200s' with '..', which is refused", raw);
        }
        if (n > NAME_MAX) {
            return err_set(err, -ENAMETOOLONG, "the layer has a name of more than %d bytes", NAME_MAX);
        }
        if (n > 0 && !(n == 1 && p[0] == '.')) {
            if (used) {
                ret_path[used++] = '/';
            }
            memcpy(ret_path + used, p, n);
            used += n;
        }
        p += n + (p[n] == '/');
    }
    ret_path[used] = '\0';
    return 0;
}

static void drop_parent(struct unpack *u)
{
    if (u->parent >= 0) {
        close(u->parent);
        u->parent = -1;
    }
}

/* Opens the folder (no links on the way), making what is missing. */
static int open_folder(struct unpack *u, const char *path)
{
    if (u->parent >= 0 && strcmp(u->parent_path, path) == 0) {
        return 0;
    }
    drop_parent(u);
    int fd = fs_open(u->diff, path, O_RDONLY | O_DIRECTORY, 0, FS_NO_LINKS);
    for (size_t i = 0; fd == -ENOENT; i++) {
        if (path[i] && path[i] != '/') {
            continue;
        }
        char part[PATH_MAX];
        memcpy(part, path, i);
        part[i] = '\0';
        const char *name;
        auto_close int above = fs_open_parent(u->diff, part, FS_NO_LINKS, &name);
        struct stat st;
        if (above < 0) {
            fd = above;
            break;
        }
        if (fstatat(above, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && layer_is_whiteout(&st)) {
            unlinkat(above, name, 0);
        }
        if (mkdirat(above, name, 0755) == 0) {
            int rc = note(u->fixups, FIX_IMPLIED, part, NULL, (struct timespec){0});
            if (rc < 0) {
                return err_set(u->err, rc, "no memory");
            }
        } else if (errno != EEXIST) {
            return err_sys(u->err, -errno, "cannot make the folder '%s'", part);
        }
        if (!path[i]) {
            fd = fs_open(u->diff, path, O_RDONLY | O_DIRECTORY, 0, FS_NO_LINKS);
            break;
        }
    }
    if (fd == -ELOOP || fd == -EXDEV || fd == -ENOTDIR) {
        return err_set(u->err, -EBADMSG,
                       "the layer has files below '%.200s', which is a symbolic link or no folder: refused",
                       path);
    }
    if (fd < 0) {
        return err_sys(u->err, fd, "cannot open the folder '%s'", path);
    }
    u->parent = fd;
    snprintf(u->parent_path, sizeof(u->parent_path), "%s", path);
    return 0;
}

/* ---- one entry ---- */

static int make_whiteout(struct unpack *u, const char *name)
{
    struct stat st;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return err_set(u->err, -EBADMSG, "the layer has a whiteout without a name");
    }
    if (fstatat(u->parent, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        /* The layer's own file stays; of a folder, what the lower layers have in it is hidden. */
        int fd = S_ISDIR(st.st_mode)
                     ? openat(u->parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                     : -1;
        int rc = fd >= 0 && fsetxattr(fd, LAYER_OPAQUE, "y", 1, 0) < 0 ? -errno : 0;
        if (fd >= 0) {
            close(fd);
        }
        return rc < 0 ? err_sys(u->err, rc, "cannot make '%s' opaque", name) : 0;
    }
    if (mknodat(u->parent, name, S_IFCHR, 0) < 0) {
        return err_sys(u->err, -errno,
                       "cannot make the whiteout '%s' (Linux 5.8 or newer is needed without root)", name);
    }
    return 0;
}

static bool is_zero(const char *p, size_t n)
{
    return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

static int write_at(int fd, const char *p, size_t n, off_t at)
{
    while (n) {
        ssize_t w = pwrite(fd, p, n, at);
        if (w < 0) {
            return -errno;
        }
        p += w;
        at += w;
        n -= (size_t)w;
    }
    return 0;
}

static int copy_contents(struct unpack *u, struct archive *archive, int fd, uint64_t size)
{
    const void *data;
    size_t n;
    la_int64_t at;
    int rc;
    while ((rc = archive_read_data_block(archive, &data, &n, &at)) == ARCHIVE_OK) {
        const char *p = data;
        if (at < 0 || (uint64_t)at + n > size) {
            return err_set(u->err, -EBADMSG, "a file of the layer is longer than its header says");
        }
        size_t from = 0;
        for (size_t i = 0; i < n;) {
            size_t piece = MIN(n - i, (size_t)HOLE_BYTES);
            if (piece == HOLE_BYTES && is_zero(p + i, piece)) {
                int error = write_at(fd, p + from, i - from, at + (off_t)from);
                if (error < 0) {
                    return err_sys(u->err, error, "cannot write");
                }
                from = i + piece;
            }
            i += piece;
        }
        int error = write_at(fd, p + from, n - from, at + (off_t)from);
        if (error < 0) {
            return err_sys(u->err, error, "cannot write");
        }
    }
    if (rc != ARCHIVE_EOF) {
        return err_set(u->err, -EBADMSG, "the layer's tar is damaged: %s", archive_error_string(archive));
    }
    return ftruncate(fd, (off_t)size) < 0 ? err_sys(u->err, -errno, "cannot write") : 0;
}

/* What is in the way of a new name; *ret_hidden: a whiteout was there. */
static int clear_name(struct unpack *u, const char *name, bool folder, bool *ret_hidden)
{
    struct stat st;
    *ret_hidden = false;
    if (fstatat(u->parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || (folder && S_ISDIR(st.st_mode))) {
        return 0;
    }
    *ret_hidden = layer_is_whiteout(&st);
    int rc = fs_remove_tree(u->parent, name);
    return rc < 0 ? err_sys(u->err, rc, "cannot replace '%s'", name) : 0;
}

static int set_xattrs(struct unpack *u, struct archive_entry *entry, int dir, const char *name)
{
    if (archive_entry_xattr_reset(entry) == 0) {
        return 0;
    }
    auto_close int fd = openat(dir, *name ? name : ".", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    char path[FS_PROC_MAX];
    fs_proc_path(fd, path);
    const char *key;
    const void *value;
    size_t size;
    while (archive_entry_xattr_next(entry, &key, &value, &size) == ARCHIVE_OK) {
        /* The names that mean something to overlayfs or to Fonda are not the image's to set. */
        if (!key || strncmp(key, "user.overlay.", 13) == 0 || strncmp(key, "trusted.", 8) == 0 ||
            strcmp(key, LAYER_STAT) == 0 || size > IMAGE_XATTR_BYTES_MAX) {
            continue;
        }
        if (setxattr(path, key, value, size, 0) < 0 && errno != ENOTSUP && errno != EPERM &&
            errno != EINVAL) {
            return err_sys(u->err, -errno, "cannot set the attribute '%.60s' of '%s'", key, name);
        }
    }
    return 0;
}

static int set_metadata(struct unpack *u, struct archive_entry *entry, int dir, const char *name,
                        const char *path)
{
    bool folder = archive_entry_filetype(entry) == AE_IFDIR, link = archive_entry_filetype(entry) == AE_IFLNK;
    la_int64_t uid = archive_entry_uid(entry), gid = archive_entry_gid(entry);
    if (uid < 0 || uid >= UINT32_MAX || gid < 0 || gid >= UINT32_MAX) {
        return err_set(u->err, -EBADMSG, "'%s' in the layer has an impossible owner", path);
    }
    mode_t mode = archive_entry_mode(entry);
    int rc = layer_set_owner(dir, name, (uid_t)uid, (gid_t)gid, mode, u->err);
    if (rc < 0) {
        return err_prefix(u->err, "'%s' in the layer", path);
    }
    if (!link) {
        rc = set_xattrs(u, entry, dir, name);
    }
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                {archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)}};
    if (rc == 0 && folder) {
        rc = note(u->fixups, FIX_TIMES, path, NULL, times[1]);
    } else if (rc == 0) {
        (void)utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW);
    }
    return rc;
}

static int make_hard_link(struct unpack *u, const char *raw_target, const char *name, const char *path)
{
    char target[PATH_MAX];
    int rc = clean_path(raw_target, target, u->err);
    if (rc < 0) {
        return rc;
    }
    const char *leaf;
    auto_close int dir = fs_open_parent(u->diff, target, FS_NO_LINKS, &leaf);
    struct stat st;
    if (dir < 0 || fstatat(dir, leaf, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        if (dir == -ELOOP || dir == -EXDEV) {
            return err_set(u->err, -EBADMSG,
                           "'%s' in the layer is a hard link through a symbolic link: refused", path);
        }
        rc = note(u->fixups, FIX_LINK, path, target, (struct timespec){0});
        return rc < 0 ? err_set(u->err, rc, "no memory") : 0;
    }
    if (S_ISDIR(st.st_mode) || layer_is_whiteout(&st)) {
        return err_set(u->err, -EBADMSG, "'%s' in the layer is a hard link to '%s', which is no file", path,
                       target);
    }
    return linkat(dir, leaf, u->parent, name, 0) < 0 ? err_sys(u->err, -errno, "cannot link '%s'", path) : 0;
}

static int make_entry(struct unpack *u, struct archive *archive, struct archive_entry *entry,
                      const char *name, const char *path)
{
    bool hidden, folder = archive_entry_filetype(entry) == AE_IFDIR;
    const char *hard = archive_entry_hardlink(entry);
    folder = folder && !hard;
    int rc = clear_name(u, name, folder, &hidden);
    if (rc < 0) {
        return rc;
    }
    if (hard) {
        return make_hard_link(u, hard, name, path);
    }
    switch (archive_entry_filetype(entry)) {
    case AE_IFDIR: {
        if (mkdirat(u->parent, name, 0700) < 0 && errno != EEXIST) {
            return err_sys(u->err, -errno, "cannot make the folder '%s'", path);
        }
        if (hidden) {
            auto_close int fd = openat(u->parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (fd < 0 || fsetxattr(fd, LAYER_OPAQUE, "y", 1, 0) < 0) {
                return err_sys(u->err, -errno, "cannot make '%s' opaque", path);
            }
        }
        forget_implied(u->fixups, path);
        break;
    }
    case AE_IFREG: {
        la_int64_t size = archive_entry_size(entry);
        if (size < 0 || (uint64_t)size > IMAGE_BLOB_MAX * 16) {
            return err_set(u->err, -EBADMSG, "'%s' in the layer has an impossible size", path);
        }
        auto_close int fd =
            openat(u->parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0) {
            return err_sys(u->err, -errno, "cannot make '%s'", path);
        }
        rc = copy_contents(u, archive, fd, (uint64_t)size);
        if (rc < 0) {
            return err_prefix(u->err, "'%.200s'", path);
        }
        break;
    }
    case AE_IFLNK: {
        const char *target = archive_entry_symlink(entry);
        if (!target || symlinkat(target, u->parent, name) < 0) {
            return err_sys(u->err, target ? -errno : -EINVAL, "cannot make the link '%s'", path);
        }
        break;
    }
    case AE_IFCHR:
    case AE_IFBLK:
    case AE_IFIFO: {
        mode_t type = archive_entry_filetype(entry);
        dev_t device = type == AE_IFIFO ? 0
                                        : makedev((unsigned)archive_entry_rdevmajor(entry),
                                                  (unsigned)archive_entry_rdevminor(entry));
        if (type == AE_IFCHR && device == 0) {
            return 0; /* would be a whiteout; the tar has another word for that */
        }
        if (mknodat(u->parent, name, type | 0600, device) < 0) {
            return errno == EPERM ? 0 : err_sys(u->err, -errno, "cannot make the device '%s'", path);
        }
        break;
    }
    default: return 0; /* sockets can't be in a tar */
    }
    return set_metadata(u, entry, u->parent, name, path);
}

static int one_entry(struct unpack *u, struct archive *archive, struct archive_entry *entry)
{
    char path[PATH_MAX], folder[PATH_MAX];
    if (++u->entries > IMAGE_LAYER_ENTRIES_MAX) {
        return err_set(u->err, -E2BIG, "the layer has more than IMAGE_LAYER_ENTRIES_MAX (%u) entries",
                       IMAGE_LAYER_ENTRIES_MAX);
    }
    int rc = clean_path(archive_entry_pathname(entry), path, u->err);
    if (rc < 0) {
        return rc;
    }
    if (!*path) {
        if (archive_entry_filetype(entry) != AE_IFDIR) {
            return err_set(u->err, -EBADMSG, "the layer's root is no folder");
        }
        forget_implied(u->fixups, path);
        return set_metadata(u, entry, u->diff, "", path);
    }
    char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) : 0, path);
    rc = open_folder(u, folder);
    if (rc < 0) {
        return rc;
    }
    if (strcmp(name, ".wh..wh..opq") == 0) { /* image specification, layer.md, "Opaque Whiteout" */
        return fsetxattr(u->parent, LAYER_OPAQUE, "y", 1, 0) < 0
                   ? err_sys(u->err, -errno, "cannot make '%s' opaque", folder)
                   : 0;
    }
    if (strncmp(name, ".wh..wh.", 8) == 0) {
        return 0; /* aufs's own notes */
    }
    if (strncmp(name, ".wh.", 4) == 0) {
        return make_whiteout(u, name + 4);
    }
    return make_entry(u, archive, entry, name, path);
}

static la_ssize_t on_read(struct archive *archive, void *opaque, const void **ret_data)
{
    struct unpack *u = opaque;
    ssize_t n = layer_stream_read(u->stream, ret_data);
    if (n < 0) {
        archive_set_error(archive, EIO, "%s", layer_stream_error(u->stream)->text);
        return -1;
    }
    return n;
}

int layer_unpack(struct layer_stream *stream, int diff, struct layer_fixups **ret_fixups, struct err *err)
{
    struct layer_fixups *fixups = calloc(1, sizeof(*fixups));
    struct unpack u = {.diff = diff, .stream = stream, .fixups = fixups, .parent = -1, .err = err};
    struct archive *archive = archive_read_new();
    /* Names are bytes; libarchive would convert them by the locale. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0),
             old = utf8 ? uselocale(utf8) : (locale_t)0;
    int rc = 0;
    if (!fixups || !archive || archive_read_support_format_tar(archive) != ARCHIVE_OK ||
        archive_read_support_format_empty(archive) != ARCHIVE_OK) {
        rc = err_set(err, -ENOMEM, "no memory");
    }
    if (rc == 0) {
        (void)archive_read_set_options(archive, "tar:hdrcharset=BINARY");
        rc = note(fixups, FIX_IMPLIED, "", NULL, (struct timespec){0});
    }
    if (rc == 0 && archive_read_open(archive, &u, NULL, on_read, NULL) != ARCHIVE_OK) {
        rc = err_set(err, -EBADMSG, "the layer is not a tar archive: %s", archive_error_string(archive));
    }
    struct archive_entry *entry;
    while (rc == 0) {
        int status = archive_read_next_header(archive, &entry);
        if (status == ARCHIVE_EOF) {
            break;
        }
        if (status != ARCHIVE_OK && status != ARCHIVE_WARN) {
            rc = err_set(err, -EBADMSG, "the layer's tar is damaged: %s", archive_error_string(archive));
            break;
        }
        rc = one_entry(&u, archive, entry);
    }
    if (layer_stream_error(stream)->code) {
        rc = err_set(err, layer_stream_error(stream)->code, "%s", layer_stream_error(stream)->text);
    }
    drop_parent(&u);
    archive_read_free(archive);
    if (utf8) {
        uselocale(old);
        freelocale(utf8);
    }
    if (rc < 0) {
        layer_fixups_free(fixups);
        return rc;
    }
    *ret_fixups = fixups;
    return 0;
}

/* ---- what needs the layers below ---- */

static int fix_implied(const char *path, int diff, const int *lower, unsigned count, struct err *err)
{
    struct stat st;
    int from = layer_lookup(lower, count, path, &st);
    if (from < 0 || !S_ISDIR(st.st_mode)) {
        return 0;
    }
    const char *name = *path ? path : ".";
    auto_close int source = openat(lower[from], name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    auto_close int target = fs_open(diff, path, O_RDONLY | O_DIRECTORY, 0, FS_NO_LINKS);
    if (source < 0 || target < 0) {
        return 0; /* the layer replaced it later */
    }
    int rc = layer_set_owner(target, "", st.st_uid, st.st_gid, st.st_mode, err);
    if (rc == 0) {
        (void)fs_copy_xattrs(source, target);
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, st.st_mtim};
        (void)futimens(target, times);
    }
    return rc;
}

static int fix_link(const struct fixup *item, int diff, const int *lower, unsigned count, struct err *err)
{
    struct stat st;
    const char *leaf, *name;
    auto_close int to = fs_open_parent(diff, item->path, FS_NO_LINKS, &name);
    /* The target may have come later in the same layer. */
    auto_close int own = fs_open_parent(diff, item->target, FS_NO_LINKS, &leaf);
    if (to >= 0 && own >= 0 && fstatat(own, leaf, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode) &&
        !layer_is_whiteout(&st)) {
        return linkat(own, leaf, to, name, 0) < 0 && errno != EEXIST
                   ? err_sys(err, -errno, "cannot link '%s'", item->path)
                   : 0;
    }
    int from = layer_lookup(lower, count, item->target, &st);
    if (from < 0 || S_ISDIR(st.st_mode)) {
        return err_set(err, -EBADMSG, "'%s' in the layer is a hard link to '%s', which isn't there",
                       item->path, item->target);
    }
    const char *lower_leaf;
    auto_close int source = fs_open_parent(lower[from], item->target, FS_NO_LINKS, &lower_leaf);
    return source < 0 || to < 0 ? err_sys(err, source < 0 ? source : to, "cannot link '%s'", item->path)
                                : fs_copy_node(source, lower_leaf, to, name, err);
}

int layer_finish(struct layer_fixups *fixups, int diff, const int *lower, unsigned count, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; fixups && rc == 0 && i < fixups->count; i++) {
        const struct fixup *item = &fixups->items[i];
        if (item->kind == FIX_IMPLIED) {
            rc = fix_implied(item->path, diff, lower, count, err);
        } else if (item->kind == FIX_LINK) {
            rc = fix_link(item, diff, lower, count, err);
        }
    }
    /* Inner folders come behind outer ones in most tars: their times are set first. */
    for (size_t i = fixups ? fixups->count : 0; rc == 0 && i-- > 0;) {
        const struct fixup *item = &fixups->items[i];
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, item->mtime};
        if (item->kind == FIX_TIMES) {
            auto_close int fd = fs_open(diff, item->path, O_RDONLY | O_DIRECTORY, 0, FS_NO_LINKS);
            if (fd >= 0) {
                (void)futimens(fd, times);
            }
        }
    }
    layer_fixups_free(fixups);
    return rc;
}
