/* See export.h. */
#include "core/export.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>

#include "base/util.h"
#include "core/field.h"

#define MANIFEST_NAME "fonda.json"
#define SUMS_NAME     "SHA256SUMS"
#define ZSTD_LEVEL    3
#define ENTRY_NAME    48
#define HEX_SIZE      65
#define BLOCK_BYTES   (256u * 1024)

static void hex_of(const unsigned char *hash, char *hex)
{
    for (size_t i = 0; i < 32; i++) {
        snprintf(hex + 2 * i, 3, "%02x", hash[i]);
    }
}

static void sha256_of(const void *data, size_t len, char *hex)
{
    unsigned char hash[EVP_MAX_MD_SIZE];
    EVP_Digest(data, len, hash, NULL, EVP_sha256(), NULL);
    hex_of(hash, hex);
}

/* ---- SHA256SUMS ---- */

struct sums {
    char *text;
    size_t len, room;
};

static int sums_add(struct sums *sums, const char *hex, const char *name, struct fault *fault)
{
    size_t need = strlen(hex) + strlen(name) + 4;
    if (sums->len + need > EXPORT_SUMS_MAX) {
        return fault_set(fault, FAULT_TOO_LARGE, NULL, "the archive has too many pieces");
    }
    if (sums->len + need > sums->room) {
        size_t room = MAX(2 * sums->room, sums->len + need + 4096);
        char *more = realloc(sums->text, room);
        if (!more) {
            return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
        }
        sums->text = more;
        sums->room = room;
    }
    sums->len += (size_t)sprintf(sums->text + sums->len, "%s  %s\n", hex, name);
    return 0;
}

/* ---- writing ---- */

struct writer {
    struct archive *archive;
    int fd;
    EVP_MD_CTX *whole;
    struct sums sums;
    unsigned disk;
    void *packed;
    size_t packed_room;
    int error; /* errno of a failed write */
};

static la_ssize_t on_write(struct archive *a, void *opaque, const void *data, size_t len)
{
    struct writer *writer = opaque;
    ssize_t n = write(writer->fd, data, len);
    if (n < 0) {
        writer->error = errno;
        archive_set_error(a, errno, "%s", strerror(errno));
        return -1;
    }
    EVP_DigestUpdate(writer->whole, data, (size_t)n);
    return n;
}

static int write_failed(const struct writer *writer, struct fault *fault)
{
    struct err err = {0};
    err_sys(&err, writer->error ? -writer->error : -EIO, "cannot write the archive");
    return fault_from_err(fault, &err);
}

static int put_entry(struct writer *writer, const char *name, const void *data, size_t len, bool sum,
                     struct fault *fault)
{
    char hex[HEX_SIZE];
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, name);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0600);
    archive_entry_set_size(entry, (la_int64_t)len);
    archive_entry_set_mtime(entry, 0, 0);
    bool ok = archive_write_header(writer->archive, entry) == ARCHIVE_OK &&
              archive_write_data(writer->archive, data, len) == (la_ssize_t)len;
    archive_entry_free(entry);
    if (!ok) {
        return write_failed(writer, fault);
    }
    sha256_of(data, len, hex);
    return sum ? sums_add(&writer->sums, hex, name, fault) : 0;
}

static int on_chunk(void *opaque, uint64_t index, const void *data, size_t bytes, struct fault *fault)
{
    struct writer *writer = opaque;
    char name[ENTRY_NAME];
    size_t len = ZSTD_compress(writer->packed, writer->packed_room, data, bytes, ZSTD_LEVEL);
    if (ZSTD_isError(len)) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot compress: %s", ZSTD_getErrorName(len));
    }
    snprintf(name, sizeof(name), "disk-%u/%08llu.zst", writer->disk, (unsigned long long)index);
    return put_entry(writer, name, writer->packed, len, true, fault);
}

static int write_entries(struct writer *writer, const json_t *manifest, const struct disk_source *sources,
                         unsigned count, disk_progress_fn *progress, void *opaque, struct fault *fault)
{
    auto_free char *text = json_dumps(manifest, JSON_INDENT(1) | JSON_SORT_KEYS);
    if (!text || !writer->packed) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    int rc = put_entry(writer, MANIFEST_NAME, text, strlen(text), true, fault);
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        writer->disk = i;
        rc = disk_read(&sources[i], EXPORT_CHUNK_BYTES, on_chunk, writer, progress, opaque, fault);
    }
    return rc ? rc : put_entry(writer, SUMS_NAME, writer->sums.text, writer->sums.len, false, fault);
}

int export_write(int fd, const json_t *manifest, const struct disk_source *sources, unsigned count,
                 disk_progress_fn *progress, void *opaque, char *ret_sha256, struct fault *fault)
{
    unsigned char hash[EVP_MAX_MD_SIZE];
    struct writer writer = {.fd = fd, .whole = EVP_MD_CTX_new(), .archive = archive_write_new()};
    writer.packed_room = ZSTD_compressBound(EXPORT_CHUNK_BYTES);
    writer.packed = malloc(writer.packed_room);
    int rc = -1;
    if (!writer.whole || !writer.archive || !EVP_DigestInit_ex(writer.whole, EVP_sha256(), NULL)) {
        fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    } else {
        archive_write_set_format_pax_restricted(writer.archive);
        archive_write_set_bytes_per_block(writer.archive, BLOCK_BYTES);
        archive_write_set_bytes_in_last_block(writer.archive, 1);
        rc = archive_write_open(writer.archive, &writer, NULL, on_write, NULL) == ARCHIVE_OK
                 ? write_entries(&writer, manifest, sources, count, progress, opaque, fault)
                 : write_failed(&writer, fault);
    }
    if (rc < 0 && writer.archive) {
        archive_write_fail(writer.archive);
    }
    if (writer.archive && archive_write_close(writer.archive) != ARCHIVE_OK && rc == 0) {
        rc = write_failed(&writer, fault);
    }
    archive_write_free(writer.archive);
    if (rc == 0 && fsync(fd) < 0) {
        writer.error = errno;
        rc = write_failed(&writer, fault);
    }
    if (rc == 0) {
        EVP_DigestFinal_ex(writer.whole, hash, NULL);
        hex_of(hash, ret_sha256);
    }
    EVP_MD_CTX_free(writer.whole);
    free(writer.packed);
    free(writer.sums.text);
    return rc;
}

/* ---- reading ---- */

struct reader {
    struct archive *archive;
    const struct export_reader_ops *ops;
    struct sums sums;
    json_t *manifest;
    struct disk_writer *disk; /* the one that is being filled */
    int64_t sizes[EXPORT_DISKS_MAX];
    unsigned disks, next_disk; /* next_disk: those before it are complete */
    uint64_t next_chunk;
    uint8_t *data, *chunk;
    int64_t total;
};

static int damaged(struct fault *fault, const char *what)
{
    return fault_set(fault, FAULT_INVALID, "export it again; see docs/api.md for the format",
                     "the archive is refused: %s", what);
}

/* All of an entry, at most max bytes. */
static int take_entry(struct reader *reader, size_t max, uint8_t *buf, size_t *ret_len, struct fault *fault)
{
    size_t len = 0;
    for (;;) {
        la_ssize_t n = archive_read_data(reader->archive, buf + len, max - len);
        if (n < 0) {
            return damaged(fault, "it is cut off, or no tar");
        }
        if (n == 0) {
            break;
        }
        len += (size_t)n;
        if (len == max) {
            return damaged(fault, "an entry is too long");
        }
    }
    *ret_len = len;
    return 0;
}

static int check_manifest(struct reader *reader, struct fault *fault)
{
    const json_t *m = reader->manifest, *disks = json_object_get(m, "disks");
    size_t i;
    json_t *disk;
    if (obj_int(m, "format") != EXPORT_FORMAT) {
        return fault_set(fault, FAULT_INVALID, "import it with the Fonda that made it, or a newer one",
                         "the archive's format is %lld; this Fonda reads %d", (long long)obj_int(m, "format"),
                         EXPORT_FORMAT);
    }
    if (!json_is_object(json_object_get(m, "config")) || !json_is_array(disks) ||
        json_array_size(disks) > EXPORT_DISKS_MAX) {
        return damaged(fault, "its manifest has no config, or no list of at most 32 disks");
    }
    json_array_foreach(disks, i, disk)
    {
        reader->sizes[i] = obj_int(disk, "size");
        if (reader->sizes[i] < 512 || reader->sizes[i] > EXPORT_DISK_MAX || reader->sizes[i] % 512) {
            return damaged(fault, "a disk's size is none");
        }
        if (!field_name_ok(obj_text(disk, "label"))) {
            return damaged(fault, "a disk's label is no name");
        }
    }
    reader->disks = (unsigned)json_array_size(disks);
    return reader->ops->manifest ? reader->ops->manifest(reader->ops->opaque, reader->manifest, fault) : 0;
}

static int read_manifest(struct reader *reader, const char *name, struct fault *fault)
{
    char hex[HEX_SIZE];
    size_t len = 0;
    if (strcmp(name, MANIFEST_NAME) != 0) {
        return damaged(fault, "it does not begin with fonda.json: it is no export of Fonda's");
    }
    if (take_entry(reader, EXPORT_MANIFEST_MAX, reader->data, &len, fault) < 0) {
        return -1;
    }
    reader->manifest = json_loadb((const char *)reader->data, len, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(reader->manifest)) {
        return damaged(fault, "its manifest is no JSON object");
    }
    sha256_of(reader->data, len, hex);
    return sums_add(&reader->sums, hex, name, fault) < 0 ? -1 : check_manifest(reader, fault);
}

/* Disks in their order: those without a single piece are made too. */
static int go_to_disk(struct reader *reader, unsigned index, struct fault *fault)
{
    while (reader->next_disk <= index && reader->next_disk < reader->disks) {
        char path[2 * DRIVER_PATH_MAX];
        int rc = disk_writer_end(reader->disk, fault);
        reader->disk = NULL;
        if (rc == 0 && reader->ops->disk_path) {
            reader->ops->disk_path(reader->ops->opaque, reader->next_disk, path, sizeof(path));
            rc = disk_writer_new(path, (uint64_t)reader->sizes[reader->next_disk], &reader->disk, fault);
        }
        if (rc < 0) {
            return -1;
        }
        reader->next_disk++;
        reader->next_chunk = 0;
    }
    return 0;
}

static int read_chunk(struct reader *reader, const char *name, struct fault *fault)
{
    unsigned disk;
    unsigned long long index;
    char again[ENTRY_NAME], hex[HEX_SIZE];
    size_t len = 0;
    /* Only what is written exactly like this. */
    if (sscanf(name, "disk-%2u/%12llu.zst", &disk, &index) != 2 ||
        (size_t)snprintf(again, sizeof(again), "disk-%u/%08llu.zst", disk, index) >= sizeof(again) ||
        strcmp(again, name) != 0 || disk >= reader->disks) {
        return damaged(fault, "it has an entry that does not belong into an export");
    }
    if (disk + 1 < reader->next_disk || (disk + 1 == reader->next_disk && index < reader->next_chunk)) {
        return damaged(fault, "its pieces are not in order");
    }
    if (go_to_disk(reader, disk, fault) < 0 ||
        take_entry(reader, ZSTD_compressBound(EXPORT_CHUNK_BYTES) + 1, reader->data, &len, fault) < 0) {
        return -1;
    }
    uint64_t offset = index * (uint64_t)EXPORT_CHUNK_BYTES, size = (uint64_t)reader->sizes[disk];
    if (offset >= size) {
        return damaged(fault, "a piece lies behind its disk's end");
    }
    size_t want = (size_t)MIN(size - offset, (uint64_t)EXPORT_CHUNK_BYTES);
    if (ZSTD_decompress(reader->chunk, EXPORT_CHUNK_BYTES, reader->data, len) != want) {
        return damaged(fault, "a piece does not unpack to what it should");
    }
    reader->next_chunk = index + 1;
    sha256_of(reader->data, len, hex);
    if (sums_add(&reader->sums, hex, name, fault) < 0) {
        return -1;
    }
    return reader->disk ? disk_writer_put(reader->disk, offset, reader->chunk, want, fault) : 0;
}

/* What was read has to be what was written, entry by entry. */
static int compare_sums(struct reader *reader, struct fault *fault)
{
    size_t len = 0;
    uint8_t *text = malloc(reader->sums.len + 2);
    int rc = text ? take_entry(reader, reader->sums.len + 2, text, &len, fault)
                  : fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    if (rc == 0 && (len != reader->sums.len || memcmp(text, reader->sums.text, len) != 0)) {
        rc = damaged(fault, "its checksums are others: it was damaged or changed");
    }
    free(text);
    return rc;
}

static int read_entries(struct reader *reader, struct fault *fault)
{
    struct archive_entry *entry;
    for (;;) {
        int status = archive_read_next_header(reader->archive, &entry);
        if (status == ARCHIVE_EOF) {
            return damaged(fault, "it is cut off: SHA256SUMS is missing");
        }
        const char *name = status == ARCHIVE_OK ? archive_entry_pathname(entry) : NULL;
        if (!name) {
            return damaged(fault, "it is cut off, or no tar");
        }
        if (archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry) ||
            archive_entry_symlink(entry)) {
            return damaged(fault, "it has an entry that is no plain file");
        }
        int rc = 0;
        if (!reader->manifest) {
            rc = read_manifest(reader, name, fault);
        } else if (strcmp(name, SUMS_NAME) == 0) {
            return compare_sums(reader, fault);
        } else {
            rc = read_chunk(reader, name, fault);
        }
        if (rc == 0 && reader->ops->progress &&
            !reader->ops->progress(reader->ops->opaque,
                                   (uint64_t)MIN(archive_filter_bytes(reader->archive, -1), reader->total),
                                   (uint64_t)reader->total)) {
            rc = fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
        }
        if (rc < 0) {
            return -1;
        }
    }
}

int export_read(int fd, const struct export_reader_ops *ops, struct fault *fault)
{
    struct stat st;
    struct reader reader = {.ops = ops, .archive = archive_read_new()};
    reader.data = malloc(MAX((size_t)EXPORT_MANIFEST_MAX, ZSTD_compressBound(EXPORT_CHUNK_BYTES) + 1));
    reader.chunk = malloc(EXPORT_CHUNK_BYTES);
    int rc = -1;
    if (!reader.archive || !reader.data || !reader.chunk) {
        fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    } else if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        fault_set(fault, FAULT_INVALID, "give the path of a file", "the archive is no plain file");
    } else {
        reader.total = st.st_size;
        archive_read_support_format_tar(reader.archive);
        archive_read_support_filter_none(reader.archive);
        rc = archive_read_open_fd(reader.archive, fd, BLOCK_BYTES) == ARCHIVE_OK
                 ? read_entries(&reader, fault)
                 : damaged(fault, "it is no tar");
    }
    rc = rc ? rc : go_to_disk(&reader, UINT32_MAX, fault);
    struct fault ignored = {0};
    if (disk_writer_end(reader.disk, rc ? &ignored : fault) < 0) {
        rc = -1;
    }
    archive_read_free(reader.archive);
    json_decref(reader.manifest);
    free(reader.sums.text);
    free(reader.data);
    free(reader.chunk);
    return rc;
}
