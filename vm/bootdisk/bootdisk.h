/*
 * Finds the kernel of a disk that holds an installed Linux, so that it boots without a boot loader: the links
 * /vmlinuz and /initrd.img as Debian has them, else the newest /boot/vmlinuz-VERSION with its initrd.
 *
 * The disk is only read, and everything on it may be hostile: see ext4.h and partition.h.
 *
 * Threads: main loop, before vCPUs run or while they are stopped.
 */
#ifndef FONDA_VM_BOOTDISK_BOOTDISK_H
#define FONDA_VM_BOOTDISK_BOOTDISK_H

#include <stdbool.h>

#include "base/err.h"
#include "vm/bootdisk/source.h"

#define BOOTDISK_FILE_MAX (512ull << 20) /* of a kernel or an initrd */
#define BOOTDISK_TEXT_MAX 320u

struct blk_node;

struct bootdisk {
    int kernel_fd, initrd_fd;       /* in memory, the reader's; initrd_fd is -1 when there is none */
    char kernel[BOOTDISK_TEXT_MAX]; /* as it is called on the disk: "/boot/vmlinuz-6.1.0" */
    char initrd[BOOTDISK_TEXT_MAX];
    char root[64]; /* for the kernel's command line: "root=UUID=...", "root=/dev/vda1" without an initrd; "":
                      not found */
};

/* Errors: -ENOENT (no partition has a kernel; says what was seen), and those of ext4.h. */
int bootdisk_find(const struct disk_source *disk, struct bootdisk *ret_found, struct err *err);
/* The same for an image file of the block layer; format may be NULL. The image is closed again. */
int bootdisk_find_in_image(const char *path, const char *format, struct bootdisk *ret_found, struct err *err);
/* The same for one that is open; nothing is in flight there. path: its name, for errors. */
int bootdisk_find_in_node(struct blk_node *node, const char *path, struct bootdisk *ret_found,
                          struct err *err);
void bootdisk_done(struct bootdisk *found);

#endif
