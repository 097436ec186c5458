/* See kernel.h. */
#include "vm/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "vm/bootdisk/bootdisk.h"
#include "vm/device_options.h"

/* panic=-1: at once; console: the one on the terminal. */
static const char *linux_append(const struct vm_config *config)
{
    return vm_config_console_on_terminal(config) ? "console=hvc0 panic=-1" : "console=ttyS0 panic=-1";
}

#define FD_PATH_MAX 32u

static int open_found(const struct vm_config *config, const char *disk, const struct bootdisk *found,
                      struct boot **ret_boot, struct err *err)
{
    char kernel[FD_PATH_MAX], initrd[FD_PATH_MAX], name[2 * DEVICE_TEXT_MAX], append[BOOT_CMDLINE_MAX + 1];
    const char *const initrds[] = {initrd};
    bool own_root = config->append && strstr(config->append, "root=");
    if (!found->root[0] && !own_root) {
        return err_set(
            err, -ENOENT,
            "disk '%s' has the kernel '%s', but no ext4 partition with a root file system: say which it is "
            "with --append root=...",
            disk, found->kernel);
    }
    snprintf(kernel, sizeof(kernel), "/proc/self/fd/%d", found->kernel_fd);
    snprintf(initrd, sizeof(initrd), "/proc/self/fd/%d", found->initrd_fd);
    snprintf(name, sizeof(name), "%s:%s", disk, found->kernel);
    int n = snprintf(append, sizeof(append), "%s ro %s%s%s", own_root ? "" : found->root,
                     linux_append(config), config->append ? " " : "", config->append ? config->append : "");
    if ((size_t)n >= sizeof(append)) {
        return err_set(err, -E2BIG, "--append: the kernel's command line has %d bytes", n);
    }
    const struct boot_config boot = {.kernel_path = kernel,
                                     .initrd_paths = initrds,
                                     .initrd_count = found->initrd_fd >= 0 ? 1 : 0,
                                     .cmdline = append,
                                     .kernel_name = name};
    return boot_open(&boot, MIN(config->memory_bytes, MEM_LOW_RAM_MAX), ret_boot, err);
}

int kernel_open(const struct vm_config *config, struct blk_node *node, struct boot **ret_boot,
                struct err *err)
{
    struct disk_options disk;
    struct bootdisk found = {0};
    if (config->kernel) {
        const struct boot_config boot = {.kernel_path = config->kernel,
                                         .initrd_paths = config->initrds.values,
                                         .initrd_count = config->initrds.count,
                                         .cmdline = config->append ? config->append : linux_append(config)};
        return boot_open(&boot, MIN(config->memory_bytes, MEM_LOW_RAM_MAX), ret_boot, err);
    }
    int rc = disk_options_parse(config->disks.values[0], &disk, err);
    if (rc == 0) {
        rc = node ? bootdisk_find_in_node(node, disk.path, &found, err)
                  : bootdisk_find_in_image(disk.path, disk.format[0] ? disk.format : NULL, &found, err);
    }
    if (rc < 0) {
        return rc;
    }
    rc = open_found(config, disk.path, &found, ret_boot, err);
    bootdisk_done(&found);
    return rc;
}

static const char *keep(const char *path)
{
    char text[FD_PATH_MAX];
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return path;
    }
    snprintf(text, sizeof(text), "/proc/self/fd/%d", fd);
    char *name = strdup(text);
    if (name) {
        (void)take_fd(&fd);
    }
    return name ? name : path;
}

void kernel_keep(struct vm_config *config)
{
    config->kernel = config->kernel ? keep(config->kernel) : NULL;
    for (unsigned i = 0; i < config->initrds.count; i++) {
        config->initrds.values[i] = keep(config->initrds.values[i]);
    }
}
