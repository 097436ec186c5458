/*
 * See disk.h. A child process writes the tree as tar (libarchive) into a pipe, from which debian_tree.c fills
 * the file system: it never looks at the tree itself, and the tree is only read.
 */
#include "image/disk.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/util.h"
#include "image/debian_tree.h"
#include "image/fs.h"
#include "image/layer.h"

#define BLOCK      (256u << 10)
#define DEPTH_MAX  1024u
#define XATTRS_MAX 65536

struct writer {
    struct archive *out;
    struct archive_entry_linkresolver *links;
    struct err *err;
    unsigned depth;
    char path[PATH_MAX];
    uint8_t *block;
};

static int failed(struct writer *w, int code)
{
    return err_sys(w->err, code, "cannot read '/%s' of the image", w->path);
}

static void add_xattrs(int fd, struct archive_entry *entry)
{
    static char names[XATTRS_MAX], value[XATTRS_MAX];
    char path[FS_PROC_MAX];
    fs_proc_path(fd, path);
    ssize_t size = listxattr(path, names, sizeof(names));
    for (const char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
        bool own = strcmp(name, LAYER_STAT) == 0 || strncmp(name, "user.overlay.", 13) == 0 ||
                   strncmp(name, "trusted.", 8) == 0;
        ssize_t n = own ? -1 : getxattr(path, name, value, sizeof(value));
        if (n >= 0) {
            archive_entry_xattr_add_entry(entry, name, value, (size_t)n);
        }
    }
}

static int put_contents(struct writer *w, int dir, const char *name, int64_t left)
{
    auto_close int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    while (left > 0) {
        ssize_t n = fd < 0 ? -1 : read(fd, w->block, MIN((size_t)left, (size_t)BLOCK));
        if (n <= 0) {
            return failed(w, n < 0 ? -errno : -EIO);
        }
        if (archive_write_data(w->out, w->block, (size_t)n) != n) {
            return err_set(w->err, -EIO, "%s", archive_error_string(w->out));
        }
        left -= n;
    }
    return 0;
}

static int put_tree(struct writer *w, int dir);

static int put_node(struct writer *w, int dir, const char *name)
{
    struct stat st;
    char target[PATH_MAX];
    int rc = layer_stat(dir, name, &st);
    if (rc < 0) {
        return failed(w, rc);
    }
    auto_close int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct archive_entry *entry = archive_entry_new(), *spare = NULL;
    archive_entry_set_pathname(entry, w->path);
    archive_entry_copy_stat(entry, &st);
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlinkat(dir, name, target, sizeof(target) - 1);
        target[MAX(n, (ssize_t)0)] = '\0';
        archive_entry_set_symlink(entry, target);
    } else if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) {
        add_xattrs(fd, entry);
    }
    archive_entry_linkify(w->links, &entry, &spare);
    bool data = S_ISREG(st.st_mode) && !archive_entry_hardlink(entry);
    if (archive_write_header(w->out, entry) < ARCHIVE_WARN) {
        rc = err_set(w->err, -EIO, "%s", archive_error_string(w->out));
    }
    archive_entry_free(entry);
    rc = rc < 0 || !data ? rc : put_contents(w, dir, name, st.st_size);
    if (rc == 0 && S_ISDIR(st.st_mode)) {
        int below = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        rc = below < 0 ? failed(w, -errno) : put_tree(w, below);
    }
    return rc;
}

/* Takes dir over. */
static int put_tree(struct writer *w, int dir)
{
    DIR *list = fdopendir(dir);
    size_t len = strlen(w->path);
    int rc = list ? 0 : failed(w, -errno);
    if (w->depth++ == DEPTH_MAX) {
        rc = failed(w, -ELOOP);
    }
    for (struct dirent *e; rc == 0 && (e = readdir(list));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
            continue;
        }
        if (len + strlen(e->d_name) + 2 > sizeof(w->path)) {
            rc = failed(w, -ENAMETOOLONG);
            break;
        }
        snprintf(w->path + len, sizeof(w->path) - len, "%s%s", len ? "/" : "", e->d_name);
        rc = put_node(w, dirfd(list), e->d_name);
        w->path[len] = '\0';
    }
    w->depth--;
    if (list) {
        closedir(list);
    }
    return rc;
}

/* The root's own owner and mode come first, as the entry ".". */
static int put_root(struct writer *w, int root)
{
    struct stat st;
    int rc = layer_stat(root, "", &st);
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, "./");
    archive_entry_copy_stat(entry, &st);
    if (rc == 0 && archive_write_header(w->out, entry) < ARCHIVE_WARN) {
        rc = err_set(w->err, -EIO, "%s", archive_error_string(w->out));
    }
    archive_entry_free(entry);
    int below = rc < 0 ? -1 : openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return rc < 0 ? failed(w, rc) : below < 0 ? failed(w, -errno) : put_tree(w, below);
}

static int write_tar(int root, int to, struct err *err)
{
    static struct writer writer;
    struct writer *w = &writer;
    *w = (struct writer){.out = archive_write_new(),
                         .links = archive_entry_linkresolver_new(),
                         .err = err,
                         .block = malloc(BLOCK)};
    archive_entry_linkresolver_set_strategy(w->links, ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE);
    archive_write_set_format_pax_restricted(w->out);
    (void)archive_write_set_options(w->out, "hdrcharset=BINARY");
    int rc = !w->block || archive_write_open_fd(w->out, to) < ARCHIVE_WARN
                 ? err_set(err, -EIO, "cannot read the image's files")
                 : put_root(w, root);
    if (rc == 0 && archive_write_close(w->out) < ARCHIVE_WARN) {
        rc = err_set(err, -EIO, "%s", archive_error_string(w->out));
    }
    archive_entry_linkresolver_free(w->links);
    archive_write_free(w->out);
    free(w->block);
    return rc;
}

static bool keep_all(void *opaque, const char *path, const char *text, char **ret_text)
{
    return true;
}

int image_disk_fill(int root, int fd, uint64_t size_bytes, struct err *err)
{
    struct tree *tree = NULL;
    char text[ERR_TEXT_MAX] = "";
    int data[2], errors[2], status = 0;
    if (ftruncate(fd, (off_t)size_bytes) < 0 || pipe2(data, O_CLOEXEC) < 0 || pipe2(errors, O_CLOEXEC) < 0) {
        return err_sys(err, -errno, "cannot make a disk");
    }
    int rc = tree_new(fd, size_bytes, &tree, err);
    pid_t pid = rc < 0 ? -1 : fork();
    if (pid == 0) {
        struct err why = {.code = 0};
        close(data[0]);
        if (write_tar(root, data[1], &why) < 0) {
            (void)!write(errors[1], why.text, strlen(why.text));
            _exit(1);
        }
        _exit(0);
    }
    close(data[1]);
    close(errors[1]);
    rc = rc < 0 || pid > 0 ? rc : err_sys(err, -errno, "cannot start a process");
    rc = rc < 0 ? rc : tree_add_tar(tree, data[0], keep_all, NULL, err);
    close(data[0]); /* before waiting: a child that still writes ends by that */
    ssize_t n = read(errors[0], text, sizeof(text) - 1);
    close(errors[0]);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (n > 0 && status && !WIFSIGNALED(status)) {
        rc = err_set(err, -EIO, "%s", text);
    } else if (rc == 0 && status) {
        rc = err_set(err, -EIO, "reading the image's files ended early");
    }
    int closed = tree_close(tree, rc < 0 ? NULL : err);
    return rc < 0 ? rc : closed;
}
