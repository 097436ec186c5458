/* Between the kernel*.c files. */
#ifndef FONDA_GUEST_KERNEL_INT_H
#define FONDA_GUEST_KERNEL_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/kernel.h"

#define KERNEL_MODULES_MAX 64u

struct kernel_modules {
    struct kernel_module {
        char name[60]; /* "ext4.ko": not compressed */
        uint8_t *data;
        size_t size;
    } all[KERNEL_MODULES_MAX]; /* in the order in which they can be loaded */
    unsigned count;
};

/* What the init needs of the kernel in that file, and what that needs. */
int kernel_modules_find(const char *kernel, struct kernel_modules *ret_modules, struct err *err);
void kernel_modules_done(struct kernel_modules *modules);

/* Puts kernel/vmlinuz and kernel/modules into the cache. */
int kernel_fetch(const struct guest_kernel_options *options, struct err *err);

/* Writes the ELF kernel inside of a bzImage. False: there is none that fonda-vmm could enter. */
bool kernel_extract(const char *from, const char *to);

/* A whole file, decompressed where its name ends in .xz, .zst or .gz. Caller frees. */
int kernel_read_file(const char *path, size_t max, uint8_t **ret_data, size_t *ret_size, struct err *err);

#endif
