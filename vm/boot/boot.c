/*
 * Reads kernel and initrds, runs the three steps of boot.h, and sets the vCPU states that the protocols
 * share.
 */
#include "vm/boot/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"
#include "vm/boot/boot_int.h"

struct boot_file {
    uint8_t *data;
    size_t size;
    size_t room; /* of the mapping */
};

struct boot {
    struct boot_image image;
    struct boot_layout layout;
    struct boot_file kernel;
    unsigned module_count;
    struct boot_file modules[BOOT_MODULES_MAX];
    char *cmdline;
};

int boot_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, struct err *err)
{
    static int (*const parsers[])(const uint8_t *, size_t, struct boot_image *, bool *,
                                  struct err *) = {bzimage_parse, multiboot_parse, elf_pvh_parse};
    for (size_t i = 0; i < ARRAY_SIZE(parsers); i++) {
        bool mine = false;
        int rc = parsers[i](data, size, ret_image, &mine, err);
        if (mine) {
            return rc;
        }
    }
    if (size == 0) {
        return err_set(err, -ENOEXEC, "not a kernel: the file is empty");
    }
    if (size >= 2 && data[0] == 0x1f && data[1] == 0x8b) {
        return err_set(err, -ENOEXEC, "not a kernel: compressed by gzip (unpack it first)");
    }
    return err_set(err, -ENOEXEC, "not a kernel: neither a bzImage, nor ELF with a PVH entry, nor multiboot");
}

/* Kernels and initrds are large, and no business of the small process that guards the terminal: a fork leaves
 * them out.
 */
static int file_new(size_t size, struct boot_file *ret_file)
{
    size_t room = align_up(MAX(size, 1u), 4096);
    void *data = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return -ENOMEM;
    }
    madvise(data, room, MADV_DONTFORK);
    *ret_file = (struct boot_file){data, size, room};
    return 0;
}

static void file_done(struct boot_file *file)
{
    if (file->data) {
        munmap(file->data, file->room);
    }
    file->data = NULL;
}

/* A descriptor that is open already is named as /proc names it, which may not be there any more. */
static int open_file(const char *path)
{
    int fd, end = 0;
    if (sscanf(path, "/proc/self/fd/%d%n", &fd, &end) == 1 && path[end] == '\0') {
        fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        return fd < 0 || lseek(fd, 0, SEEK_SET) == 0 ? fd : -1;
    }
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/* Reads a regular file whole. */
static int read_file(const char *path, struct boot_file *ret_file, struct err *err)
{
    auto_close int fd = open_file(path);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "cannot open");
    }
    if (!S_ISREG(st.st_mode)) {
        return err_set(err, -EINVAL, "not a regular file");
    }
    if ((uint64_t)st.st_size > BOOT_FILE_MAX) {
        return err_set(err, -EFBIG, "larger than %llu MiB", BOOT_FILE_MAX / MiB);
    }
    size_t size = (size_t)st.st_size, got = 0;
    struct boot_file file;
    if (file_new(size, &file) < 0) {
        return err_sys(err, -ENOMEM, "cannot read");
    }
    while (got < size) {
        ssize_t n = read(fd, file.data + got, size - got);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            int error = errno;
            file_done(&file);
            return err_sys(err, -error, "cannot read");
        }
        if (n == 0) {
            break;
        }
        got += (size_t)n;
    }
    file.size = got;
    *ret_file = file;
    return 0;
}

static bool is_linux(const struct boot *boot)
{
    return boot->image.protocol == BOOT_LINUX64 || boot->image.protocol == BOOT_LINUX32;
}

/* Linux takes one initrd; cpio archives may follow one another there, each at a multiple of 4 bytes
 * (Documentation/driver-api/early-userspace/buffer-format.rst). */
static int join_modules(struct boot *boot, struct err *err)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < boot->module_count; i++) {
        total += align_up(boot->modules[i].size, 4);
    }
    if (boot->module_count < 2) {
        return 0;
    }
    if (total > BOOT_FILE_MAX) {
        return err_set(err, -EFBIG, "the initrds together are larger than %llu MiB", BOOT_FILE_MAX / MiB);
    }
    struct boot_file joined;
    if (file_new(total, &joined) < 0) {
        return err_sys(err, -ENOMEM, "cannot join the initrds");
    }
    size_t at = 0;
    for (unsigned i = 0; i < boot->module_count; i++) {
        memcpy(joined.data + at, boot->modules[i].data, boot->modules[i].size);
        at += align_up(boot->modules[i].size, 4);
        file_done(&boot->modules[i]);
        boot->modules[i] = (struct boot_file){0};
    }
    boot->modules[0] = joined;
    boot->module_count = 1;
    return 0;
}

static const char *kernel_name(const struct boot_config *config)
{
    return config->kernel_name ? config->kernel_name : config->kernel_path;
}

/* A multiboot kernel expects its own name first (specification 3.3, as every loader does it); the others
 * don't. */
static int make_cmdline(struct boot *boot, const struct boot_config *config, struct err *err)
{
    const char *path = kernel_name(config), *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    bool named = boot->image.protocol == BOOT_MULTIBOOT;
    const char *text = config->cmdline ? config->cmdline : "";
    int n = asprintf(&boot->cmdline, "%s%s%s", named ? name : "", named && *text ? " " : "", text);
    if (n < 0) {
        boot->cmdline = NULL;
        return err_sys(err, -ENOMEM, "cannot make the command line");
    }
    uint32_t max = MIN(boot->image.cmdline_max, BOOT_CMDLINE_MAX);
    if ((uint32_t)n > max) {
        return err_set(err, -E2BIG, "the kernel's command line has %d bytes, and the kernel takes %u", n,
                       max);
    }
    return 0;
}

int boot_open(const struct boot_config *config, uint64_t low_bytes, struct boot **ret_boot, struct err *err)
{
    if (config->initrd_count > BOOT_MODULES_MAX) {
        return err_set(err, -EINVAL, "more than %d initrds", BOOT_MODULES_MAX);
    }
    struct boot *boot = calloc(1, sizeof(*boot));
    if (!boot) {
        return err_sys(err, -ENOMEM, "cannot boot");
    }
    int rc = read_file(config->kernel_path, &boot->kernel, err);
    if (rc == 0) {
        rc = boot_parse(boot->kernel.data, boot->kernel.size, &boot->image, err);
    }
    if (rc < 0) {
        err_prefix(err, "kernel '%s'", kernel_name(config));
    }
    for (unsigned i = 0; i < config->initrd_count && rc == 0; i++) {
        rc = read_file(config->initrd_paths[i], &boot->modules[i], err);
        boot->module_count++;
        if (rc < 0) {
            err_prefix(err, "initrd '%s'", config->initrd_paths[i]);
        }
    }
    if (rc == 0 && is_linux(boot)) {
        rc = join_modules(boot, err);
    }
    if (rc == 0) {
        rc = make_cmdline(boot, config, err);
    }
    if (rc == 0) {
        uint64_t sizes[BOOT_MODULES_MAX];
        for (unsigned i = 0; i < boot->module_count; i++) {
            sizes[i] = boot->modules[i].size;
        }
        rc = boot_place(&boot->image, low_bytes, sizes, boot->module_count, &boot->layout, err);
    }
    if (rc < 0) {
        boot_free(boot);
        return rc;
    }
    *ret_boot = boot;
    return 0;
}

void boot_forget(struct boot *boot)
{
    for (unsigned i = 0; i < boot->module_count; i++) {
        file_done(&boot->modules[i]);
    }
    file_done(&boot->kernel);
}

void boot_free(struct boot *boot)
{
    if (!boot) {
        return;
    }
    boot_forget(boot);
    free(boot->cmdline);
    free(boot);
}

const char *boot_protocol_name(const struct boot *boot)
{
    static const char *const names[] = {[BOOT_LINUX64] = "Linux, 64-bit entry",
                                        [BOOT_LINUX32] = "Linux, 32-bit entry",
                                        [BOOT_PVH] = "ELF, PVH entry",
                                        [BOOT_MULTIBOOT] = "multiboot 1"};
    return names[boot->image.protocol];
}

/* Zeroes what the file does not fill. Fresh RAM is zero already, but a restarted machine's is not. */
static int write_zeroes(struct mem *mem, uint64_t gpa, uint64_t bytes)
{
    static const uint8_t zeroes[16 * 4096];
    int rc = 0;
    while (bytes > 0 && rc == 0) {
        uint64_t n = MIN(bytes, sizeof(zeroes));
        rc = mem_write(mem, GPA(gpa), zeroes, n);
        gpa += n;
        bytes -= n;
    }
    return rc;
}

static int write_image(const struct boot *boot, struct mem *mem)
{
    int rc = 0;
    for (unsigned i = 0; i < boot->image.segment_count && rc == 0; i++) {
        const struct boot_segment *seg = &boot->image.segments[i];
        /* A bzImage clears its own work area, and untouched pages of it cost no host memory. */
        if (!is_linux(boot)) {
            rc = write_zeroes(mem, seg->gpa + seg->file_bytes, seg->mem_bytes - seg->file_bytes);
        }
        if (rc == 0) {
            rc = mem_write(mem, GPA(seg->gpa), boot->kernel.data + seg->file_offset, seg->file_bytes);
        }
    }
    for (unsigned i = 0; i < boot->layout.module_count && rc == 0; i++) {
        rc = mem_write(mem, GPA(boot->layout.modules[i].gpa), boot->modules[i].data, boot->modules[i].size);
    }
    return rc;
}

int boot_start(const struct boot *boot, struct mem *mem, gpa_t rsdp, struct x86_state *state, struct err *err)
{
    static int (*const starters[])(const struct boot_handover *, struct mem *,
                                   struct x86_state *) = {[BOOT_LINUX64] = bzimage_start,
                                                          [BOOT_LINUX32] = bzimage_start,
                                                          [BOOT_PVH] = elf_pvh_start,
                                                          [BOOT_MULTIBOOT] = multiboot_start};
    struct boot_memmap memmap;
    boot_memmap_fill(mem, &memmap);
    struct boot_handover handover = {&boot->image, &boot->layout, &memmap, boot->cmdline, rsdp};
    int rc = write_image(boot, mem);
    if (rc == 0) {
        rc = mem_write(mem, GPA(BOOT_CMDLINE_BASE), boot->cmdline, strlen(boot->cmdline) + 1);
    }
    if (rc == 0) {
        rc = starters[boot->image.protocol](&handover, mem, state);
    }
    return rc < 0 ? err_sys(err, rc, "cannot write the kernel into the guest's memory") : 0;
}
