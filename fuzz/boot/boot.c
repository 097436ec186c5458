/*
 * Boot files: whatever the bytes are, the parsers answer, and what they accept keeps the invariants of
 * vm/boot/boot.h.
 */
#include <stdlib.h>

#include "base/util.h"
#include "fuzz/fuzz.h"
#include "vm/boot/boot.h"

#define LOW_BYTES (64 * MiB)

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void check_image(const struct boot_image *image, size_t size)
{
    require(image->segment_count > 0 && image->segment_count <= BOOT_SEGMENTS_MAX);
    require(image->setup_header_bytes <= BOOT_SETUP_HEADER_MAX);
    for (unsigned i = 0; i < image->segment_count; i++) {
        const struct boot_segment *seg = &image->segments[i];
        require(seg->file_offset <= size && seg->file_bytes <= size - seg->file_offset);
        require(seg->file_bytes <= seg->mem_bytes);
        require(seg->gpa <= MEM_HIGH_RAM && seg->mem_bytes <= MEM_HIGH_RAM - seg->gpa);
    }
}

static void check_layout(const struct boot_image *image, const struct boot_layout *layout)
{
    for (unsigned i = 0; i < image->segment_count; i++) {
        const struct boot_segment *seg = &image->segments[i];
        require(seg->gpa >= BOOT_DATA_END && seg->gpa + seg->mem_bytes <= LOW_BYTES);
    }
    for (unsigned i = 0; i < layout->module_count; i++) {
        require(layout->modules[i].gpa >= layout->kernel_end);
        require(layout->modules[i].gpa + layout->modules[i].bytes <= LOW_BYTES);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct boot_image image;
    struct boot_layout layout;
    struct err err = {0};
    if (boot_parse(data, size, &image, &err) < 0) {
        require(err.text[0] != '\0');
        return 0;
    }
    check_image(&image, size);
    uint64_t module = size * 1000;
    if (boot_place(&image, LOW_BYTES, &module, 1, &layout, &err) == 0) {
        check_layout(&image, &layout);
    }
    return 0;
}
