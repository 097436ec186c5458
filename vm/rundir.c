#include "vm/rundir.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROOT_BASE "/run/fonda"

bool rundir_name_valid(const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < len; i++) {
        if (!isalnum((unsigned char)name[i]) && (i == 0 || !strchr("-_.", name[i]))) {
            return false;
        }
    }
    return len > 0 && len <= RUNDIR_NAME_MAX;
}

int rundir_base(char *buf, size_t size, struct err *err)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int n;
    if (runtime && runtime[0] == '/') {
        n = snprintf(buf, size, "%s/fonda", runtime);
    } else if (geteuid() == 0) {
        n = snprintf(buf, size, "%s", ROOT_BASE);
    } else {
        return err_set(err, -ENOENT, "XDG_RUNTIME_DIR is not set: set it to a directory of your own");
    }
    return n > 0 && (size_t)n < size ? 0 : err_set(err, -ENAMETOOLONG, "XDG_RUNTIME_DIR is too long");
}

static int path_of(const char *name, const char *file, char *buf, size_t size, struct err *err)
{
    char base[PATH_MAX];
    if (!rundir_name_valid(name)) {
        return err_set(err, -EINVAL,
                       "'%.64s' is no name for a machine: 1 to 40 letters, digits, '-', '_' and '.'", name);
    }
    int rc = rundir_base(base, sizeof(base), err);
    if (rc < 0) {
        return rc;
    }
    int n = snprintf(buf, size, "%s/%s%s", base, name, file);
    return n > 0 && (size_t)n < size
               ? 0
               : err_set(err, -ENAMETOOLONG, "'%s/%s' is too long for a socket's path", base, name);
}

int rundir_socket(const char *name, char *buf, size_t size, struct err *err)
{
    return path_of(name, "/control.sock", buf, size < RUNDIR_PATH_MAX ? size : RUNDIR_PATH_MAX, err);
}

static int make_one(const char *path, struct err *err)
{
    struct stat st;
    if (mkdir(path, 0700) < 0 && errno != EEXIST) {
        return err_sys(err, -errno, "cannot make '%s'", path);
    }
    if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022)) {
        return err_set(err, -EPERM, "'%s' is not a directory of your own that only you can write to", path);
    }
    return 0;
}

int rundir_make(const char *name, struct err *err)
{
    char base[PATH_MAX], path[PATH_MAX];
    int rc = path_of(name, "", path, sizeof(path), err);
    if (rc == 0) {
        rc = rundir_base(base, sizeof(base), err);
    }
    if (rc == 0) {
        rc = make_one(base, err);
    }
    return rc < 0 ? rc : make_one(path, err);
}

void rundir_remove(const char *name)
{
    char path[PATH_MAX];
    if (path_of(name, "", path, sizeof(path), NULL) == 0) {
        rmdir(path);
    }
}
