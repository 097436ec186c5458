/* See partition.h. Sectors have 512 bytes, as the machine's disks do. */
#include "vm/bootdisk/partition.h"

#include <stdbool.h>
#include <string.h>

#include "base/util.h"

#define SECTOR 512u

/* MBR: UEFI 2.10 section 5.2.1, tables 5.1 and 5.2. */
#define MBR_TABLE           446u
#define MBR_ENTRY_BYTES     16u
#define MBR_ENTRIES         4u
#define MBR_TYPE            4u
#define MBR_START           8u
#define MBR_SECTORS         12u
#define MBR_SIGNATURE       0xaa55u
#define TYPE_EMPTY          0x00u
#define TYPE_EXTENDED       0x05u
#define TYPE_EXTENDED_LBA   0x0fu
#define TYPE_EXTENDED_LINUX 0x85u
#define TYPE_PROTECTIVE     0xeeu
#define LOGICAL_FIRST       5u

/* GPT: UEFI 2.10 sections 5.3.2 and 5.3.3. */
#define GPT_ENTRIES_LBA 72u
#define GPT_ENTRY_COUNT 80u
#define GPT_ENTRY_SIZE  84u
#define GPT_ENTRY_MIN   128u
#define GPT_ENTRY_MAX   4096u
#define GPT_ENTRY_START 32u
#define GPT_ENTRY_END   40u

struct list {
    const struct disk_source *disk;
    struct partition *parts;
    unsigned count;
};

/* What doesn't lie inside of the disk is left out. */
static void add(struct list *list, unsigned number, uint64_t start, uint64_t sectors)
{
    uint64_t total = list->disk->size_bytes / SECTOR;
    if (list->count < PARTITIONS_MAX && sectors > 0 && start > 0 && start < total &&
        sectors <= total - start) {
        list->parts[list->count++] = (struct partition){number, start * SECTOR, sectors * SECTOR};
    }
}

static bool is_extended(uint8_t type)
{
    return type == TYPE_EXTENDED || type == TYPE_EXTENDED_LBA || type == TYPE_EXTENDED_LINUX;
}

/* Each record of the chain has one logical partition and the next record's place, which counts from the
 * extended partition's start. The chain's length is bounded, so that a loop ends. */
static int list_logical(struct list *list, uint64_t extended)
{
    uint8_t sector[SECTOR];
    uint64_t at = extended;
    for (unsigned i = 0; i < PARTITIONS_MAX; i++) {
        int rc = disk_source_read(list->disk, at * SECTOR, sector, SECTOR);
        if (rc == -EUCLEAN || (rc == 0 && get_le16(sector + SECTOR - 2) != MBR_SIGNATURE)) {
            return 0;
        }
        if (rc < 0) {
            return rc;
        }
        const uint8_t *entry = sector + MBR_TABLE, *next = entry + MBR_ENTRY_BYTES;
        if (entry[MBR_TYPE] != TYPE_EMPTY) {
            add(list, LOGICAL_FIRST + i, at + get_le32(entry + MBR_START), get_le32(entry + MBR_SECTORS));
        }
        if (!is_extended(next[MBR_TYPE])) {
            return 0;
        }
        at = extended + get_le32(next + MBR_START);
    }
    return 0;
}

static int list_mbr(struct list *list, const uint8_t *mbr)
{
    int rc = 0;
    for (unsigned i = 0; i < MBR_ENTRIES && rc == 0; i++) {
        const uint8_t *entry = mbr + MBR_TABLE + i * MBR_ENTRY_BYTES;
        if (is_extended(entry[MBR_TYPE])) {
            rc = list_logical(list, get_le32(entry + MBR_START));
        } else if (entry[MBR_TYPE] != TYPE_EMPTY) {
            add(list, i + 1, get_le32(entry + MBR_START), get_le32(entry + MBR_SECTORS));
        }
    }
    return rc;
}

static int list_gpt(struct list *list, const uint8_t *header)
{
    static const uint8_t unused[16];
    uint64_t lba = get_le64(header + GPT_ENTRIES_LBA);
    uint32_t count = get_le32(header + GPT_ENTRY_COUNT), size = get_le32(header + GPT_ENTRY_SIZE);
    uint8_t entry[GPT_ENTRY_MIN];
    if (size < GPT_ENTRY_MIN || size > GPT_ENTRY_MAX || lba > list->disk->size_bytes / SECTOR) {
        return 0;
    }
    for (uint32_t i = 0; i < MIN(count, PARTITIONS_MAX); i++) {
        int rc = disk_source_read(list->disk, lba * SECTOR + (uint64_t)i * size, entry, sizeof(entry));
        if (rc < 0) {
            return rc == -EUCLEAN ? 0 : rc;
        }
        uint64_t start = get_le64(entry + GPT_ENTRY_START), end = get_le64(entry + GPT_ENTRY_END);
        if (memcmp(entry, unused, sizeof(unused)) != 0 && end >= start && end < UINT64_MAX) {
            add(list, i + 1, start, end - start + 1);
        }
    }
    return 0;
}

/* The boot sector of a file system in the whole disk may look like a table; then no entry fits, or all are
 * empty. */
int partition_list(const struct disk_source *disk, struct partition ret_parts[PARTITIONS_MAX],
                   unsigned *ret_count, struct err *err)
{
    struct list list = {.disk = disk, .parts = ret_parts};
    uint8_t mbr[SECTOR], header[SECTOR];
    int rc = disk_source_read(disk, 0, mbr, SECTOR);
    if (rc == 0 && get_le16(mbr + SECTOR - 2) == MBR_SIGNATURE) {
        bool protective = mbr[MBR_TABLE + MBR_TYPE] == TYPE_PROTECTIVE;
        rc = protective ? disk_source_read(disk, SECTOR, header, SECTOR) : 0;
        if (rc == 0) {
            bool gpt = protective && memcmp(header, "EFI PART", 8) == 0;
            rc = gpt ? list_gpt(&list, header) : list_mbr(&list, mbr);
        }
    }
    if (rc < 0 && rc != -EUCLEAN) {
        return err_sys(err, rc, "cannot read the partition table");
    }
    if (list.count == 0) {
        ret_parts[list.count++] = (struct partition){0, 0, disk->size_bytes};
    }
    *ret_count = list.count;
    return 0;
}
