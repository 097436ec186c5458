/*
 * Files in and out of a container, as tar. The process goes into the container's root first, so that no link
 * leads anywhere else; before that it gives up the right to map code, since a library looks for further ones
 * (character sets, users) by paths that would then be the container's.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/audit.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "core/room/copy.h"

#define BLOCK (64u << 10)

static int forbid_code(struct err *err)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    int rc = ctx ? 0 : -ENOMEM;
    static const int calls[] = {SCMP_SYS(mmap), SCMP_SYS(mprotect), SCMP_SYS(pkey_mprotect)};
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(calls); i++) {
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EACCES), calls[i], 1,
                              SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, PROT_EXEC));
    }
    rc = rc < 0 ? rc : seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EACCES), SCMP_SYS(execve), 0);
    rc = rc < 0 ? rc : seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EACCES), SCMP_SYS(execveat), 0);
    rc = rc < 0 ? rc : seccomp_load(ctx);
    seccomp_release(ctx);
    return rc < 0 ? err_sys(err, rc, "cannot forbid the loading of code") : 0;
}

static int go_inside(int root, struct err *err)
{
    int rc = forbid_code(err);
    if (rc == 0 && (fchdir(root) < 0 || chroot(".") < 0 || chdir("/") < 0)) {
        rc = err_sys(err, -errno, "cannot enter the container's root");
    }
    close(root);
    return rc;
}

static int archive_failed(struct archive *a, struct err *err)
{
    const char *why = archive_error_string(a);
    return err_set(err, -EIO, "%s", why ? why : "cannot copy");
}

/* One file's contents. */
static int put_data(struct archive *out, const char *path, struct archive_entry *entry, struct err *err)
{
    static char buf[BLOCK];
    int64_t left = archive_entry_size(entry);
    if (archive_entry_filetype(entry) != AE_IFREG || left <= 0 || archive_entry_hardlink(entry)) {
        return 0;
    }
    /* O_NONBLOCK: what was a file may be a FIFO by now. */
    auto_close int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    while (left > 0) {
        ssize_t n = fd < 0 ? -1 : read(fd, buf, MIN((size_t)left, sizeof(buf)));
        if (n < 0) {
            return err_sys(err, -errno, "cannot read '%s'", path);
        }
        if (n == 0) { /* it got shorter meanwhile: the rest is zeros */
            memset(buf, 0, sizeof(buf));
            n = (ssize_t)MIN((size_t)left, sizeof(buf));
        }
        if (archive_write_data(out, buf, (size_t)n) < 0) {
            return archive_failed(out, err);
        }
        left -= n;
    }
    return 0;
}

/* Names in the tar begin with the last component of the path, as `cp` would name the copy. */
static int put_tree(struct archive *in, struct archive *out, const char *path, struct err *err)
{
    struct archive_entry_linkresolver *links = archive_entry_linkresolver_new();
    size_t strip = strlen(path);
    while (strip > 0 && path[strip - 1] == '/') {
        strip--;
    }
    while (strip > 0 && path[strip - 1] != '/') {
        strip--;
    }
    int rc = links ? 0 : err_set(err, -ENOMEM, "no memory");
    if (links) {
        archive_entry_linkresolver_set_strategy(links, ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE);
    }
    for (;;) {
        struct archive_entry *entry = archive_entry_new(), *spare = NULL;
        int got = rc == 0 ? archive_read_next_header2(in, entry) : ARCHIVE_EOF;
        if (got == ARCHIVE_EOF || got < ARCHIVE_WARN) {
            archive_entry_free(entry);
            rc = rc == 0 && got != ARCHIVE_EOF ? archive_failed(in, err) : rc;
            break;
        }
        archive_read_disk_descend(in);
        auto_free char *full = strdup(archive_entry_pathname(entry) ? archive_entry_pathname(entry) : "");
        const char *name = full && strlen(full) > strip ? full + strip : ".";
        archive_entry_set_pathname(entry, name[0] ? name : ".");
        archive_entry_linkify(links, &entry, &spare);
        mode_t kind = archive_entry_filetype(entry);
        if (full && kind != AE_IFSOCK) {
            rc = archive_write_header(out, entry) < ARCHIVE_WARN ? archive_failed(out, err)
                                                                 : put_data(out, full, entry, err);
        }
        archive_entry_free(entry);
    }
    archive_entry_linkresolver_free(links);
    return rc;
}

int room_export(int root, const char *path, struct err *err)
{
    struct archive *in = archive_read_disk_new(), *out = archive_write_new();
    int rc = in && out ? go_inside(root, err) : err_set(err, -ENOMEM, "no memory");
    if (rc == 0) {
        archive_read_disk_set_symlink_hybrid(in);
        archive_read_disk_set_behavior(in, ARCHIVE_READDISK_NO_ACL | ARCHIVE_READDISK_NO_XATTR |
                                               ARCHIVE_READDISK_NO_FFLAGS |
                                               ARCHIVE_READDISK_NO_TRAVERSE_MOUNTS);
        archive_write_set_format_pax_restricted(out);
        archive_write_set_bytes_in_last_block(out, 512);
        if (archive_read_disk_open(in, path) < ARCHIVE_WARN || access(path, F_OK) < 0) {
            rc = err_sys(err, -errno, "cannot read '%s' in the container", path);
        } else if (archive_write_open_fd(out, STDOUT_FILENO) < ARCHIVE_WARN) {
            rc = archive_failed(out, err);
        }
    }
    rc = rc == 0 ? put_tree(in, out, path, err) : rc;
    if (rc == 0 && archive_write_close(out) < ARCHIVE_WARN) {
        rc = archive_failed(out, err);
    }
    archive_read_free(in);
    archive_write_free(out);
    return rc;
}

static int take_data(struct archive *in, struct archive *out, struct err *err)
{
    const void *block;
    size_t size;
    la_int64_t offset;
    int got;
    while ((got = archive_read_data_block(in, &block, &size, &offset)) == ARCHIVE_OK) {
        if (archive_write_data_block(out, block, size, offset) < ARCHIVE_OK) {
            return archive_failed(out, err);
        }
    }
    return got == ARCHIVE_EOF ? 0 : archive_failed(in, err);
}

int room_import(int root, const char *path, struct err *err)
{
    struct archive *in = archive_read_new(), *out = archive_write_disk_new();
    struct archive_entry *entry;
    int rc = in && out ? go_inside(root, err) : err_set(err, -ENOMEM, "no memory");
    if (rc == 0 && chdir(path) < 0) {
        rc = err_sys(err, -errno, "cannot enter the folder '%s' in the container", path);
    }
    if (rc == 0) {
        archive_read_support_format_tar(in);
        archive_write_disk_set_options(
            out, ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_OWNER |
                     ARCHIVE_EXTRACT_UNLINK | ARCHIVE_EXTRACT_SECURE_NODOTDOT |
                     ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS | ARCHIVE_EXTRACT_SECURE_SYMLINKS);
        rc = archive_read_open_fd(in, STDIN_FILENO, BLOCK) < ARCHIVE_WARN ? archive_failed(in, err) : 0;
    }
    while (rc == 0) {
        int got = archive_read_next_header(in, &entry);
        if (got == ARCHIVE_EOF) {
            break;
        }
        if (got < ARCHIVE_WARN) {
            rc = archive_failed(in, err);
        } else if (archive_write_header(out, entry) < ARCHIVE_WARN) {
            rc = archive_failed(out, err);
        } else {
            rc = archive_entry_size(entry) > 0 ? take_data(in, out, err) : 0;
        }
    }
    if (rc == 0 && archive_write_close(out) < ARCHIVE_WARN) {
        rc = archive_failed(out, err);
    }
    archive_read_free(in);
    archive_write_free(out);
    return rc;
}
