/* Modules of a kernel, with what they need, as the kernel's own build names it: "depends=" in the section
 * .modinfo (Linux, scripts/mod/modpost.c). */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "guest/kernel_int.h"

#define MODULE_MAX (64u << 20)
#define BLOCK      65536u

/* virtio_blk and ext4: the root. crc32c: ext4 asks for it by a name that only modprobe would know. 9p: shared
 * folders, which some kernels for clouds can't. */
static const struct {
    const char *name;
    bool optional;
} wanted[] = {{"virtio_pci", false},
              {"virtio_blk", false},
              {"crc32c_generic", false},
              {"ext4", false},
              {"vmw_vsock_virtio_transport", false},
              {"virtio_net", false},
              {"9pnet_virtio", true},
              {"9p", true}};

struct search {
    const char *tree;
    char *builtin; /* text of modules.builtin; NULL: a folder that has none */
    struct kernel_modules *modules;
};

int kernel_read_file(const char *path, size_t max, uint8_t **ret_data, size_t *ret_size, struct err *err)
{
    struct archive *in = archive_read_new();
    struct archive_entry *entry;
    uint8_t *data = NULL;
    size_t size = 0;
    archive_read_support_filter_xz(in);
    archive_read_support_filter_zstd(in);
    archive_read_support_filter_gzip(in);
    archive_read_support_format_raw(in);
    int rc = archive_read_open_filename(in, path, BLOCK) < ARCHIVE_WARN ||
                     archive_read_next_header(in, &entry) < ARCHIVE_WARN
                 ? err_set(err, -EIO, "cannot read '%s': %s", path, archive_error_string(in))
                 : 0;
    while (rc == 0) {
        uint8_t *more = size + BLOCK > max ? NULL : realloc(data, size + BLOCK);
        la_ssize_t n = more ? archive_read_data(in, more + size, BLOCK) : -1;
        data = more ? more : data;
        if (n <= 0) {
            rc = n < 0 ? err_set(err, -EIO, "cannot read '%s': %s", path,
                                 more ? archive_error_string(in) : "too large")
                       : 0;
            break;
        }
        size += (size_t)n;
    }
    archive_read_free(in);
    if (rc < 0) {
        free(data);
        return rc;
    }
    *ret_data = data;
    *ret_size = size;
    return 0;
}

void kernel_modules_done(struct kernel_modules *modules)
{
    for (unsigned i = 0; i < modules->count; i++) {
        free(modules->all[i].data);
    }
    modules->count = 0;
}

/* A name without suffix, '-' and '_' being the same. */
static bool same_name(const char *file, const char *name)
{
    size_t i = 0;
    for (; name[i]; i++) {
        char a = file[i] == '-' ? '_' : file[i], b = name[i] == '-' ? '_' : name[i];
        if (a != b) {
            return false;
        }
    }
    return strncmp(file + i, ".ko", 3) == 0 && (file[i + 3] == '\0' || file[i + 3] == '.');
}

/* nftw(3) knows no opaque pointer. One search at a time: fonda-room has one thread. */
static const char *sought;
static char found[PATH_MAX];

static int visit(const char *path, const struct stat *st, int type, struct FTW *where)
{
    if (type == FTW_F && same_name(path + where->base, sought)) {
        snprintf(found, sizeof(found), "%s", path);
        return 1;
    }
    return 0;
}

static int add(struct search *s, const char *name, unsigned depth, struct err *err);

static int add_needs(struct search *s, const uint8_t *data, size_t size, unsigned depth, struct err *err)
{
    static const char key[] = "\0depends=";
    const uint8_t *at = memmem(data, size, key, sizeof(key) - 1);
    const char *text = at ? (const char *)at + sizeof(key) - 1 : "";
    if (at && !memchr(text, '\0', size - (size_t)((const uint8_t *)text - data))) {
        return err_set(err, -EINVAL, "a kernel module is damaged");
    }
    auto_free char *list = strdup(text);
    for (char *save = NULL, *one = list ? strtok_r(list, ",", &save) : NULL; one;
         one = strtok_r(NULL, ",", &save)) {
        int rc = add(s, one, depth + 1, err);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static bool is_builtin(const struct search *s, const char *name)
{
    for (const char *line = s->builtin; line && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        char path[512];
        snprintf(path, sizeof(path), "%.*s", (int)strcspn(line, "\n"), line);
        const char *base = strrchr(path, '/');
        if (same_name(base ? base + 1 : path, name)) {
            return true;
        }
    }
    return false;
}

static int add(struct search *s, const char *name, unsigned depth, struct err *err)
{
    struct kernel_modules *m = s->modules;
    uint8_t *data = NULL;
    size_t size = 0;
    for (unsigned i = 0; i < m->count; i++) {
        if (same_name(m->all[i].name, name)) {
            return 0;
        }
    }
    if (is_builtin(s, name)) {
        return 0;
    }
    sought = name;
    if (depth > KERNEL_MODULES_MAX || nftw(s->tree, visit, 16, FTW_PHYS) != 1) {
        return err_set(err, -ENOENT, "the kernel in '%s' has no module '%s', which machines of images need",
                       s->tree, name);
    }
    int rc = kernel_read_file(found, MODULE_MAX, &data, &size, err);
    rc = rc < 0 ? rc : add_needs(s, data, size, depth, err);
    if (rc == 0 && m->count == KERNEL_MODULES_MAX) {
        rc = err_set(err, -E2BIG, "the kernel's modules need too many others");
    }
    if (rc < 0) {
        free(data);
        return rc;
    }
    struct kernel_module *module = &m->all[m->count++];
    snprintf(module->name, sizeof(module->name), "%.50s.ko", name);
    module->data = data;
    module->size = size;
    return 0;
}

/* Where the modules of a kernel's file are. */
static int find_tree(const char *kernel, char *tree, size_t size, struct err *err)
{
    const char *slash = strrchr(kernel, '/'), *base = slash ? slash + 1 : kernel;
    int dir = slash ? (int)(slash - kernel) : 1;
    const char *folder = slash ? kernel : ".";
    snprintf(tree, size, "%.*s/modules", dir, folder);
    if (access(tree, R_OK) == 0) {
        return 0;
    }
    const char *release = strncmp(base, "vmlinuz-", 8) == 0 ? base + 8 : NULL;
    if (release) {
        snprintf(tree, size, "%.*s/../lib/modules/%s", dir, folder, release);
        if (access(tree, R_OK) == 0) {
            return 0;
        }
        snprintf(tree, size, "/lib/modules/%s", release);
        if (access(tree, R_OK) == 0) {
            return 0;
        }
    }
    return err_set(err, -ENOENT,
                   "cannot find the modules of the kernel '%s': expected a folder 'modules' beside it%s%s",
                   kernel, release ? ", or /lib/modules/" : "", release ? release : "");
}

int kernel_modules_find(const char *kernel, struct kernel_modules *ret_modules, struct err *err)
{
    char tree[PATH_MAX], path[PATH_MAX + 32];
    struct search s = {.tree = tree, .modules = ret_modules};
    uint8_t *text = NULL;
    size_t size = 0;
    int rc = find_tree(kernel, path, sizeof(path), err);
    if (rc < 0) {
        return rc;
    }
    if (!realpath(path, tree)) { /* the search follows no links */
        return err_sys(err, -errno, "cannot open '%s'", path);
    }
    snprintf(path, sizeof(path), "%s/modules.builtin", tree);
    if (access(path, R_OK) == 0 && kernel_read_file(path, 1u << 20, &text, &size, NULL) == 0 && size) {
        s.builtin = strndup((char *)text, size);
    }
    free(text);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(wanted); i++) {
        rc = add(&s, wanted[i].name, 0, err);
        rc = rc == -ENOENT && wanted[i].optional ? 0 : rc;
    }
    free(s.builtin);
    return rc;
}
