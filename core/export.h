/*
 * Instances as one file, for export, import and backups: a tar (POSIX pax) of
 *
 *     fonda.json              manifest: {"format": 1, "fonda", "created_at", "config": members, "disks":
 * [{"label", "size", "volume" (may be absent)}]} disk-N/IIIIIIII.zst     piece I (of 4 MiB; decimal) of disk
 * N, a zstd frame; what is missing is zeros SHA256SUMS              a line for each entry before it, as
 * sha256sum(1) writes and checks them; last
 *
 * What is read is hostile: names in the archive never become paths, entries are bounded, nothing is believed
 * before the checksums of all of it have been compared.
 *
 * Threads: any, without the core's lock.
 */
#ifndef FONDA_CORE_EXPORT_H
#define FONDA_CORE_EXPORT_H

#include "core/disk.h"

#define EXPORT_FORMAT       1
#define EXPORT_CHUNK_BYTES  (4u * 1024 * 1024)
#define EXPORT_DISKS_MAX    32u
#define EXPORT_DISK_MAX     (INT64_C(1) << 46) /* bytes; as of volumes */
#define EXPORT_MANIFEST_MAX (1024u * 1024)
#define EXPORT_SUMS_MAX     (256u * 1024 * 1024)

/* Writes one. sources: in the order of the manifest's disks. ret_sha256 (65 bytes): of the whole file. */
int export_write(int fd, const json_t *manifest, const struct disk_source *sources, unsigned count,
                 disk_progress_fn *progress, void *opaque, char *ret_sha256, struct fault *fault);

/* Reads one. disk_path(opaque, i, buf, size) says where disk i goes, as a new qcow2 image; NULL: it is only
 * verified. manifest(opaque, m) is called before any disk, and may refuse. When 0 is returned, everything was
 * verified. */
struct export_reader_ops {
    int (*manifest)(void *opaque, json_t *manifest, struct fault *fault);
    void (*disk_path)(void *opaque, unsigned index, char *buf, size_t size);
    disk_progress_fn *progress; /* bytes of the archive */
    void *opaque;
};
int export_read(int fd, const struct export_reader_ops *ops, struct fault *fault);

#endif
