/* See seed.h. */
#include "vm/seed.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/util.h"

struct text {
    char *data; /* ends with a NUL */
    size_t bytes;
};

static int read_text(const char *option, const char *path, struct text *ret, struct err *err)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "%s: cannot open '%s'", option, path);
    }
    if (!S_ISREG(st.st_mode)) {
        return err_set(err, -EINVAL, "%s: '%s' is not a regular file", option, path);
    }
    auto_free char *data = malloc(SEED_FILE_MAX + 1);
    if (!data) {
        return err_sys(err, -ENOMEM, "%s", option);
    }
    size_t got = 0;
    for (ssize_t n = 1; n > 0 && got <= SEED_FILE_MAX; got += (size_t)n) {
        n = read(fd, data + got, SEED_FILE_MAX + 1 - got);
        if (n < 0) {
            return err_sys(err, -errno, "%s: cannot read '%s'", option, path);
        }
    }
    if (got > SEED_FILE_MAX) {
        return err_set(err, -EFBIG, "%s: '%s' is larger than %u KiB", option, path, SEED_FILE_MAX / 1024);
    }
    data[got] = '\0';
    *ret = (struct text){data, got};
    data = NULL;
    return 0;
}

/* The kinds of user data that cloud-init knows by their first line ("User-Data Formats"); others it passes
 * over. */
static bool is_known(const struct text *text)
{
    static const char *const starts[] = {
        "#!",           "#cloud-", "#include", "#part-handler", "Content-Type:", "MIME-Version:",
        "## template:", "\x1f\x8b"};
    for (size_t i = 0; i < ARRAY_SIZE(starts); i++) {
        size_t n = strlen(starts[i]);
        if (text->bytes >= n && strncasecmp(text->data, starts[i], n) == 0) {
            return true;
        }
    }
    return text->bytes == 0;
}

/* FNV-1a: names the data; it protects nothing. */
static uint64_t hash(const struct text *text)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < text->bytes; i++) {
        h = (h ^ (uint8_t)text->data[i]) * 0x100000001b3ull;
    }
    return h;
}

static bool add_file(struct archive *archive, const char *name, const void *data, size_t bytes)
{
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, name);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0444);
    archive_entry_set_size(entry, (la_int64_t)bytes);
    bool ok = archive_write_header(archive, entry) == ARCHIVE_OK &&
              archive_write_data(archive, data, bytes) == (la_ssize_t)bytes;
    archive_entry_free(entry);
    return ok;
}

static int write_volume(int fd, const struct text *user, const struct text *meta, struct err *err)
{
    struct archive *archive = archive_write_new();
    bool ok = archive && archive_write_set_format_iso9660(archive) == ARCHIVE_OK &&
              archive_write_set_options(archive, "volume-id=CIDATA,rockridge=useful,joliet") == ARCHIVE_OK &&
              archive_write_open_fd(archive, fd) == ARCHIVE_OK &&
              add_file(archive, "user-data", user->data, user->bytes) &&
              add_file(archive, "meta-data", meta->data, meta->bytes) &&
              archive_write_close(archive) == ARCHIVE_OK;
    int rc = ok ? 0
                : err_set(err, -EIO, "cannot make the volume for cloud-init: %s",
                          archive && archive_error_string(archive) ? archive_error_string(archive)
                                                                   : "out of memory");
    archive_write_free(archive);
    return rc;
}

int seed_make(const char *user_data, const char *meta_data, struct err *err)
{
    struct text user = {0}, meta = {0};
    char made[64];
    int rc = read_text("--user-data", user_data, &user, err);
    if (rc == 0 && meta_data) {
        rc = read_text("--meta-data", meta_data, &meta, err);
    }
    if (rc == 0 && !is_known(&user)) {
        log_warning("--user-data: '%s' does not begin with #cloud-config or #!: cloud-init will pass over it",
                    user_data);
    }
    snprintf(made, sizeof(made), "instance-id: iid-%016" PRIx64 "\n", rc == 0 ? hash(&user) : 0);
    const struct text default_meta = {made, strlen(made)};
    auto_close int fd = rc == 0 ? memfd_create("seed", MFD_CLOEXEC) : -1;
    if (rc == 0 && fd < 0) {
        rc = err_sys(err, -errno, "cannot make the volume for cloud-init");
    }
    rc = rc ? rc : write_volume(fd, &user, meta_data ? &meta : &default_meta, err);
    free(user.data);
    free(meta.data);
    if (rc < 0) {
        return rc;
    }
    return take_fd(&fd);
}
