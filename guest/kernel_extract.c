/*
 * The ELF file inside of a bzImage. Unpacking it here, once, spares every machine the decompressor, which is
 * most of the time that a boot takes in the software engine. What is lost is that the decompressor puts the
 * kernel at a random address (docs/containers.md).
 *
 * Boot protocol: Linux, Documentation/arch/x86/boot.rst (setup_sects, payload_offset, payload_length).
 */
#include <archive.h>
#include <archive_entry.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "guest/kernel_int.h"

#define BZIMAGE_MAX    (256u << 20)
#define ELF_MAX        (512u << 20)
#define STEP           (4u << 20)
#define AT_SETUP_SECTS 0x1f1
#define AT_MAGIC       0x202 /* "HdrS" */
#define AT_PAYLOAD     0x248
#define AT_LENGTH      0x24c
#define HEADER_END     0x250
#define NOTE_PVH       18u /* XEN_ELFNOTE_PHYS32_ENTRY: where fonda-vmm enters an ELF kernel */

static uint32_t le32(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Behind the compressed stream the kernel's build puts the size in 4 bytes (Linux, scripts/Makefile.lib,
 * size_append), unless it is gzip's, which ends with it. */
static uint8_t *decompress(const uint8_t *from, size_t size, size_t *ret_size)
{
    static const uint8_t gzip[] = {0x1f, 0x8b};
    size -= size > 4 && memcmp(from, gzip, sizeof(gzip)) != 0 ? 4 : 0;
    struct archive *in = archive_read_new();
    struct archive_entry *entry;
    uint8_t *data = NULL;
    size_t have = 0;
    archive_read_support_filter_all(in);
    archive_read_support_format_raw(in);
    bool good = archive_read_open_memory(in, from, size) == ARCHIVE_OK &&
                archive_read_next_header(in, &entry) == ARCHIVE_OK;
    while (good && have + STEP <= ELF_MAX) {
        uint8_t *more = realloc(data, have + STEP);
        la_ssize_t n = more ? archive_read_data(in, more + have, STEP) : -1;
        data = more ? more : data;
        if (n <= 0) {
            break;
        }
        have += (size_t)n;
    }
    archive_read_free(in);
    *ret_size = have;
    return data;
}

/* Whether every segment is there, and one has the note. */
static bool is_bootable(const uint8_t *data, size_t size)
{
    Elf64_Ehdr elf;
    bool noted = false;
    if (size < sizeof(elf) || memcmp(data, ELFMAG, SELFMAG) != 0 || data[EI_CLASS] != ELFCLASS64) {
        return false;
    }
    memcpy(&elf, data, sizeof(elf));
    if (elf.e_phentsize != sizeof(Elf64_Phdr) || elf.e_phoff > size ||
        (size - elf.e_phoff) / sizeof(Elf64_Phdr) < elf.e_phnum) {
        return false;
    }
    for (unsigned i = 0; i < elf.e_phnum; i++) {
        Elf64_Phdr ph;
        memcpy(&ph, data + elf.e_phoff + i * sizeof(ph), sizeof(ph));
        if (ph.p_offset > size || ph.p_filesz > size - ph.p_offset) {
            return false;
        }
        for (size_t at = 0; ph.p_type == PT_NOTE && at + sizeof(Elf64_Nhdr) <= ph.p_filesz;) {
            Elf64_Nhdr note;
            memcpy(&note, data + ph.p_offset + at, sizeof(note));
            noted |= note.n_type == NOTE_PVH;
            at += sizeof(note) + align_up(note.n_namesz, 4) + align_up(note.n_descsz, 4);
        }
    }
    return noted;
}

bool kernel_extract(const char *from, const char *to)
{
    uint8_t *data = NULL;
    size_t size = 0, elf_size = 0;
    if (kernel_read_file(from, BZIMAGE_MAX, &data, &size, NULL) < 0) {
        return false;
    }
    bool good = size > HEADER_END && memcmp(data + AT_MAGIC, "HdrS", 4) == 0;
    size_t setup = good ? ((size_t)(data[AT_SETUP_SECTS] ? data[AT_SETUP_SECTS] : 4) + 1) * 512 : 0;
    size_t offset = good ? setup + le32(data + AT_PAYLOAD) : 0, length = good ? le32(data + AT_LENGTH) : 0;
    good = good && offset < size && length <= size - offset;
    auto_free uint8_t *elf = good ? decompress(data + offset, length, &elf_size) : NULL;
    free(data);
    if (!elf || !is_bootable(elf, elf_size)) {
        return false;
    }
    auto_close int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (size_t done = 0; done < elf_size;) {
        ssize_t n = fd < 0 ? -1 : write(fd, elf + done, elf_size - done);
        if (n < 0) {
            (void)unlink(to);
            return false;
        }
        done += (size_t)n;
    }
    return true;
}
