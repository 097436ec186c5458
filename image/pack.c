/*
 * Writing a layer: libarchive makes the tar (pax where it must), this file hashes it, compresses it, hashes
 * that, and puts it into the store. The same changes give the same bytes.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <zlib.h>
#include <zstd.h>

#include "image/changes.h"
#include "image/fs.h"
#include "image/layer.h"
#include "image/limits.h"

#define GZIP_LEVEL 4
#define ZSTD_LEVEL 3
#define OUT_SIZE   (256u * 1024u)

struct layer_pack {
    struct image_store *store;
    struct archive *archive;
    struct digest_state plain, packed;
    z_stream gzip;
    ZSTD_CStream *zstd;
    char name[STORE_TEMP_MAX];
    int fd, error;
    uint64_t size;
    char written[PATH_MAX]; /* the folder whose header, with those of its parents, was written last */
    struct link {
        dev_t dev;
        ino_t ino;
        char *path;
    } *links;
    size_t link_count, link_room;
    uint8_t out[OUT_SIZE];
};

static int emit(struct layer_pack *p, size_t size)
{
    digest_update(&p->packed, p->out, size);
    p->size += size;
    return fs_write_all(p->fd, p->out, size);
}

static int compress_bytes(struct layer_pack *p, const void *data, size_t size, bool end)
{
    int rc = 0;
    if (p->zstd) {
        ZSTD_inBuffer in = {data, size, 0};
        size_t left;
        do {
            ZSTD_outBuffer out = {p->out, OUT_SIZE, 0};
            left = ZSTD_compressStream2(p->zstd, &out, &in, end ? ZSTD_e_end : ZSTD_e_continue);
            rc = ZSTD_isError(left) ? -EIO : emit(p, out.pos);
        } while (rc == 0 && (end ? left > 0 : in.pos < in.size));
        return rc;
    }
    p->gzip.next_in = (Bytef *)(uintptr_t)data;
    p->gzip.avail_in = (uInt)size;
    int status;
    do {
        p->gzip.next_out = p->out;
        p->gzip.avail_out = OUT_SIZE;
        status = deflate(&p->gzip, end ? Z_FINISH : Z_NO_FLUSH);
        rc = status == Z_STREAM_ERROR ? -EIO : emit(p, OUT_SIZE - p->gzip.avail_out);
    } while (rc == 0 && (end ? status != Z_STREAM_END : p->gzip.avail_in > 0 || p->gzip.avail_out == 0));
    return rc;
}

static la_ssize_t on_write(struct archive *archive, void *opaque, const void *data, size_t size)
{
    struct layer_pack *p = opaque;
    digest_update(&p->plain, data, size);
    p->error = compress_bytes(p, data, size, false);
    if (p->error < 0) {
        archive_set_error(archive, -p->error, "%s", strerror(-p->error));
        return -1;
    }
    return (la_ssize_t)size;
}

int layer_pack_new(struct image_store *store, bool zstd, struct layer_pack **ret_pack, struct err *err)
{
    struct layer_pack *p = calloc(1, sizeof(*p));
    if (!p) {
        return err_set(err, -ENOMEM, "no memory");
    }
    p->store = store;
    p->fd = store_temp(store, p->name, err);
    if (p->fd < 0) {
        int rc = p->fd;
        p->name[0] = '\0';
        layer_pack_free(p);
        return rc;
    }
    p->written[0] = '\1'; /* not even the root */
    p->archive = archive_write_new();
    bool good = p->archive && digest_init(&p->plain) == 0 && digest_init(&p->packed) == 0;
    if (zstd) {
        p->zstd = ZSTD_createCStream();
        good = good && p->zstd &&
               !ZSTD_isError(ZSTD_CCtx_setParameter(p->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL));
    } else {
        /* 15 bits of window, and 16 for a gzip header (zlib.h, deflateInit2); it has no time in it. */
        good = good && deflateInit2(&p->gzip, GZIP_LEVEL, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK;
    }
    if (!good || archive_write_set_format_pax_restricted(p->archive) != ARCHIVE_OK ||
        archive_write_set_bytes_per_block(p->archive, 0) != ARCHIVE_OK) {
        layer_pack_free(p);
        return err_set(err, -ENOMEM, "no memory");
    }
    (void)archive_write_set_options(p->archive, "hdrcharset=BINARY");
    if (archive_write_open(p->archive, p, NULL, on_write, NULL) != ARCHIVE_OK) {
        int rc = err_set(err, -EIO, "cannot begin a layer: %s", archive_error_string(p->archive));
        layer_pack_free(p);
        return rc;
    }
    *ret_pack = p;
    return 0;
}

void layer_pack_free(struct layer_pack *p)
{
    if (!p) {
        return;
    }
    p->error = -ECANCELED;
    archive_write_free(p->archive);
    digest_done(&p->plain);
    digest_done(&p->packed);
    if (p->zstd) {
        ZSTD_freeCStream(p->zstd);
    } else {
        deflateEnd(&p->gzip);
    }
    for (size_t i = 0; i < p->link_count; i++) {
        free(p->links[i].path);
    }
    free(p->links);
    if (p->fd >= 0) {
        close(p->fd);
    }
    if (p->name[0]) {
        unlinkat(p->store->fd, p->name, 0);
    }
    free(p);
}

static int archive_failed(struct layer_pack *p, const char *path, struct err *err)
{
    return err_set(err, p->error < 0 ? p->error : -EIO, "cannot write '%s' into the layer: %s", path,
                   archive_error_string(p->archive));
}

static int add_xattrs(struct archive_entry *entry, int node)
{
    char path[FS_PROC_MAX];
    fs_proc_path(node, path);
    ssize_t size = listxattr(path, NULL, 0);
    if (size <= 0) {
        return 0;
    }
    auto_free char *names = malloc((size_t)size), *value = malloc(IMAGE_XATTR_BYTES_MAX);
    if (!names || !value || (size = listxattr(path, names, (size_t)size)) < 0) {
        return -ENOMEM;
    }
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(names + at) + 1) {
        const char *name = names + at;
        if (strncmp(name, "user.overlay.", 13) == 0 || strncmp(name, "trusted.", 8) == 0 ||
            strcmp(name, LAYER_STAT) == 0 ||
            (strncmp(name, "user.", 5) != 0 && strcmp(name, "security.capability") != 0)) {
            continue;
        }
        ssize_t n = getxattr(path, name, value, IMAGE_XATTR_BYTES_MAX);
        if (n >= 0) {
            archive_entry_xattr_add_entry(entry, name, value, (size_t)n);
        }
    }
    return 0;
}

static int write_contents(struct layer_pack *p, int dir, const char *leaf, const char *path, uint64_t size,
                          struct err *err)
{
    auto_close int fd = openat(dir, leaf, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    auto_free char *buf = malloc(OUT_SIZE);
    if (fd < 0 || !buf) {
        return err_sys(err, fd < 0 ? -errno : -ENOMEM, "cannot read '%s'", path);
    }
    for (uint64_t left = size; left;) {
        ssize_t n = read(fd, buf, (size_t)MIN(left, (uint64_t)OUT_SIZE));
        if (n <= 0) {
            return err_sys(err, n < 0 ? -errno : -EBUSY, "cannot read '%s', or it became shorter", path);
        }
        if (archive_write_data(p->archive, buf, (size_t)n) != n) {
            return archive_failed(p, path, err);
        }
        left -= (uint64_t)n;
    }
    return 0;
}

static const char *known_link(struct layer_pack *p, const struct stat *st, const char *path)
{
    for (size_t i = 0; i < p->link_count; i++) {
        if (p->links[i].ino == st->st_ino && p->links[i].dev == st->st_dev) {
            return p->links[i].path;
        }
    }
    if (p->link_count == p->link_room) {
        size_t room = p->link_room ? p->link_room * 2 : 64;
        struct link *links = reallocarray(p->links, room, sizeof(*links));
        if (!links) {
            return NULL;
        }
        p->links = links;
        p->link_room = room;
    }
    char *copy = strdup(path);
    if (copy) {
        p->links[p->link_count++] = (struct link){st->st_dev, st->st_ino, copy};
    }
    return NULL;
}

static int write_node(struct layer_pack *p, int tree, const char *path, struct err *err)
{
    const char *leaf;
    auto_close int dir = fs_open_parent(tree, path, FS_NO_LINKS, &leaf);
    struct stat st;
    int rc = dir < 0 ? dir : layer_stat(dir, leaf, &st);
    if (rc < 0) {
        return err_sys(err, rc, "cannot read '%s'", path);
    }
    if (S_ISSOCK(st.st_mode)) {
        return 0;
    }
    struct archive_entry *entry = archive_entry_new();
    if (!entry) {
        return err_set(err, -ENOMEM, "no memory");
    }
    char name[PATH_MAX + 2], link[PATH_MAX];
    snprintf(name, sizeof(name), "%s%s", *path ? path : ".", S_ISDIR(st.st_mode) ? "/" : "");
    archive_entry_set_pathname(entry, name);
    archive_entry_set_mode(entry, st.st_mode);
    archive_entry_set_uid(entry, st.st_uid);
    archive_entry_set_gid(entry, st.st_gid);
    archive_entry_set_mtime(entry, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    const char *first = !S_ISDIR(st.st_mode) && st.st_nlink > 1 ? known_link(p, &st, path) : NULL;
    if (first) {
        archive_entry_set_hardlink(entry, first);
        archive_entry_unset_size(entry);
    } else if (S_ISREG(st.st_mode)) {
        archive_entry_set_size(entry, st.st_size);
    } else if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlinkat(dir, leaf, link, sizeof(link) - 1);
        link[MAX(n, 0)] = '\0';
        archive_entry_set_symlink(entry, link);
    } else if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) {
        archive_entry_set_rdevmajor(entry, major(st.st_rdev));
        archive_entry_set_rdevminor(entry, minor(st.st_rdev));
    }
    if (!S_ISLNK(st.st_mode) && !first) {
        auto_close int node = openat(dir, *leaf ? leaf : ".", O_PATH | O_NOFOLLOW | O_CLOEXEC);
        rc = node < 0 ? -errno : add_xattrs(entry, node);
    }
    int status = archive_write_header(p->archive, entry);
    archive_entry_free(entry);
    if (status != ARCHIVE_OK && status != ARCHIVE_WARN) {
        return archive_failed(p, path, err);
    }
    return rc < 0 ? err_sys(err, rc, "cannot read the attributes of '%s'", path)
           : S_ISREG(st.st_mode) && !first && st.st_size
               ? write_contents(p, dir, leaf, path, (uint64_t)st.st_size, err)
               : 0;
}

/* The headers of all folders down to path that the last entry doesn't share. */
static int write_parents(struct layer_pack *p, int tree, const char *path, struct err *err)
{
    if (p->written[0] == '\1') {
        p->written[0] = '\0';
        int rc = write_node(p, tree, "", err);
        if (rc < 0) {
            return rc;
        }
    }
    for (size_t i = 1; i <= strlen(path); i++) {
        if (path[i] && path[i] != '/') {
            continue;
        }
        bool shared = strncmp(p->written, path, i) == 0 && (!p->written[i] || p->written[i] == '/');
        if (!shared) {
            char part[PATH_MAX];
            snprintf(part, sizeof(part), "%.*s", (int)i, path);
            int rc = write_node(p, tree, part, err);
            if (rc < 0) {
                return rc;
            }
            strcpy(p->written, part);
        }
    }
    return 0;
}

int layer_pack_change(struct layer_pack *p, int tree, enum image_change change, const char *path,
                      struct err *err)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) : 0, path);
    int rc = write_parents(p, tree, folder, err);
    if (rc < 0) {
        return rc;
    }
    if (change != IMAGE_DELETED) {
        const char *leaf;
        auto_close int dir = fs_open_parent(tree, path, FS_NO_LINKS, &leaf);
        struct stat st;
        if (dir >= 0 && layer_stat(dir, leaf, &st) == 0 && S_ISDIR(st.st_mode)) {
            return write_parents(p, tree, path, err);
        }
        return write_node(p, tree, path, err);
    }
    char name[2 * PATH_MAX];
    snprintf(name, sizeof(name), "%s%s.wh.%s", folder, *folder ? "/" : "", slash ? slash + 1 : path);
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, name);
    archive_entry_set_mode(entry, S_IFREG);
    archive_entry_set_size(entry, 0);
    archive_entry_set_mtime(entry, 0, 0);
    int status = archive_write_header(p->archive, entry);
    archive_entry_free(entry);
    return status != ARCHIVE_OK && status != ARCHIVE_WARN ? archive_failed(p, path, err) : 0;
}

int layer_pack_finish(struct layer_pack *p, struct descriptor *ret_layer,
                      char ret_diff_id[static DIGEST_SIZE], struct err *err)
{
    struct descriptor d = {0};
    int rc = archive_write_close(p->archive) != ARCHIVE_OK ? archive_failed(p, "the end", err) : 0;
    if (rc == 0 && (p->error = compress_bytes(p, "", 0, true)) < 0) {
        rc = err_sys(err, p->error, "cannot write the layer");
    }
    if (rc == 0) {
        strcpy(d.media_type, p->zstd ? MEDIA_OCI_LAYER_ZSTD : MEDIA_OCI_LAYER_GZIP);
        digest_final(&p->plain, ret_diff_id);
        digest_final(&p->packed, d.digest);
        d.size_bytes = p->size;
        rc = store_adopt_blob(p->store, p->name, d.digest, err);
        p->name[0] = rc == 0 ? '\0' : p->name[0];
        *ret_layer = d;
    }
    layer_pack_free(p);
    return rc;
}
