/* What the first program's options ask of the machine: shares, memory file systems, files, kernel parameters,
 * a host name, a root that can't be written. */
#include "guest/init/init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

/* "WORD REST": cuts the word off. NULL: there is no rest. */
static char *word(char **text)
{
    char *space = strchr(*text, ' '), *first = *text;
    if (!space) {
        return NULL;
    }
    *space = '\0';
    *text = space + 1;
    return first;
}

/* "TAG ro|rw TARGET": a folder of the host's (9p2000.L over virtio). */
static int add_share(const char *value, struct err *err)
{
    auto_free char *copy = strdup(value);
    char *rest = copy;
    const char *tag = copy ? word(&rest) : NULL, *mode = tag ? word(&rest) : NULL;
    if (!mode) {
        return err_set(err, -EINVAL, "a share is described wrongly");
    }
    int rc = boot_make_folders(rest);
    if (rc < 0 || mount(tag, rest, "9p", strcmp(mode, "ro") == 0 ? MS_RDONLY : 0,
                        "trans=virtio,version=9p2000.L,msize=131072,cache=mmap") < 0) {
        rc = rc < 0 ? rc : -errno;
        return rc == -ENODEV ? err_set(err, rc, "cannot mount a share on '%s': this kernel has no 9p", rest)
                             : err_sys(err, rc, "cannot mount a share on '%s'", rest);
    }
    return 0;
}

static unsigned long flag_of(const char *option)
{
    static const struct {
        const char *name;
        unsigned long flag;
    } flags[] = {{"ro", MS_RDONLY},     {"nosuid", MS_NOSUID},   {"nodev", MS_NODEV},
                 {"noexec", MS_NOEXEC}, {"noatime", MS_NOATIME}, {"relatime", MS_RELATIME}};
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        if (strcmp(option, flags[i].name) == 0) {
            return flags[i].flag;
        }
    }
    return 0;
}

/* "OPTION,... TARGET" */
static int add_tmpfs(const char *value, struct err *err)
{
    auto_free char *copy = strdup(value);
    char *target = copy, data[256] = "";
    char *options = copy ? word(&target) : NULL;
    unsigned long flags = 0;
    for (char *save = NULL, *one = options ? strtok_r(options, ",", &save) : NULL; one;
         one = strtok_r(NULL, ",", &save)) {
        unsigned long flag = flag_of(one);
        flags |= flag;
        if (!flag && (strncmp(one, "size=", 5) == 0 || strncmp(one, "mode=", 5) == 0 ||
                      strncmp(one, "uid=", 4) == 0 || strncmp(one, "gid=", 4) == 0)) {
            size_t len = strlen(data);
            snprintf(data + len, sizeof(data) - len, "%s%s", len ? "," : "", one);
        }
    }
    int rc = options ? boot_make_folders(target) : -EINVAL;
    return rc < 0 || mount("tmpfs", target, "tmpfs", flags, data) < 0
               ? err_sys(err, rc < 0 ? rc : -errno, "cannot mount a tmpfs on '%s'", target)
               : 0;
}

/* "PATH TEXT": in place of what is there, as a file of the machine's own. */
static int add_file(const char *value, struct err *err)
{
    auto_free char *copy = strdup(value);
    char *text = copy;
    char *path = copy ? word(&text) : NULL;
    struct stat st;
    if (!path) {
        return err_set(err, -EINVAL, "a file is described wrongly");
    }
    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        (void)unlink(path); /* a link to where no resolver writes */
    }
    char *slash = strrchr(path, '/');
    *slash = '\0';
    (void)boot_make_folders(*path ? path : "/");
    *slash = '/';
    auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    size_t size = strlen(text);
    return fd < 0 || write(fd, text, size) != (ssize_t)size ? err_sys(err, -errno, "cannot write '%s'", path)
                                                            : 0;
}

/* "NAME VALUE" */
static int add_sysctl(const char *value, struct err *err)
{
    auto_free char *copy = strdup(value);
    char *text = copy, path[256];
    const char *name = copy ? word(&text) : NULL;
    if (!name || strstr(name, "..")) {
        return err_set(err, -EINVAL, "a kernel parameter is described wrongly");
    }
    snprintf(path, sizeof(path), "/proc/sys/%s", name);
    for (char *c = path + strlen("/proc/sys/"); *c; c++) {
        *c = *c == '.' ? '/' : *c;
    }
    auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 || write(fd, text, strlen(text)) < 0 ? err_sys(err, -errno, "cannot set '%s'", name) : 0;
}

int setup_room(const struct wire_texts *request, struct err *err)
{
    static const struct {
        const char *name;
        int (*add)(const char *value, struct err *err);
    } kinds[] = {{"file", add_file}, {"sysctl", add_sysctl}, {"tmpfs", add_tmpfs}, {"share", add_share}};
    const char *hostname = wire_one(request, "hostname"), *value;
    if (hostname && sethostname(hostname, strlen(hostname)) < 0) {
        return err_sys(err, -errno, "cannot set the host name");
    }
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        size_t at = 0;
        while ((value = wire_get(request, kinds[i].name, &at))) {
            int rc = kinds[i].add(value, err);
            if (rc < 0) {
                return rc;
            }
        }
    }
    if (wire_one(request, "read_only") && mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0) {
        return err_sys(err, -errno, "cannot make the root read-only");
    }
    return 0;
}
