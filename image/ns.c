/*
 * Becoming root of a user namespace: unshare() here, the maps by newuidmap and newgidmap (which a child runs,
 * because it has to stay outside), or by the process itself where no ranges are configured.
 */
#include "image/ns.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "base/util.h"
#include "image/fs.h"
#include "image/image.h"
#include "image/layer.h"

/* The first line and the sum of all lengths of this process's uid map. */
static bool read_map(uint64_t *ret_outside, uint64_t *ret_length)
{
    FILE *f = fopen("/proc/self/uid_map", "re");
    uint64_t inside, outside, length, total = 0, first = 0;
    while (f && fscanf(f, "%" SCNu64 " %" SCNu64 " %" SCNu64, &inside, &outside, &length) == 3) {
        first = total ? first : outside;
        total += length;
    }
    if (f) {
        fclose(f);
    }
    *ret_outside = first;
    *ret_length = total;
    return f != NULL;
}

bool image_host_root(void)
{
    uint64_t outside, length;
    return geteuid() == 0 && read_map(&outside, &length) && outside == 0 && length == UINT32_MAX;
}

bool ns_single_id(void)
{
    uint64_t outside, length;
    return geteuid() != 0 || (read_map(&outside, &length) && length <= 1);
}

bool layer_owners_in_xattr(void)
{
    static int known; /* 0: not asked yet, 1: no, 2: yes */
    int value = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!value) {
        value = ns_single_id() ? 2 : 1;
        __atomic_store_n(&known, value, __ATOMIC_RELAXED);
    }
    return value == 2;
}

/* The first range of the user in /etc/subuid or /etc/subgid: "NAME-OR-UID:START:COUNT". */
static bool find_range(const char *file, const char *user, uid_t uid, uint64_t *ret_start,
                       uint64_t *ret_count)
{
    FILE *f = fopen(file, "re");
    char line[512], number[16];
    bool found = false;
    snprintf(number, sizeof(number), "%u", uid);
    while (f && !found && fgets(line, sizeof(line), f)) {
        char *rest = line, *name = strsep(&rest, ":");
        found = rest && ((user && strcmp(name, user) == 0) || strcmp(name, number) == 0) &&
                sscanf(rest, "%" SCNu64 ":%" SCNu64, ret_start, ret_count) == 2 && *ret_count > 0 &&
                *ret_start + *ret_count <= UINT32_MAX;
    }
    if (f) {
        fclose(f);
    }
    return found;
}

static int write_text(const char *path, const char *text)
{
    auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fs_write_all(fd, text, strlen(text));
}

static int run_idmap(const char *program, pid_t pid, unsigned id, uint64_t start, uint64_t count)
{
    char texts[4][24];
    snprintf(texts[0], sizeof(texts[0]), "%d", pid);
    snprintf(texts[1], sizeof(texts[1]), "%u", id);
    snprintf(texts[2], sizeof(texts[2]), "%" PRIu64, start);
    snprintf(texts[3], sizeof(texts[3]), "%" PRIu64, count);
    pid_t child = fork();
    if (child == 0) {
        execlp(program, program, texts[0], "0", texts[1], "1", "1", texts[2], texts[3], (char *)NULL);
        _exit(127);
    }
    int status = -1;
    return child < 0 || waitpid(child, &status, 0) < 0 || status != 0 ? -EPERM : 0;
}

/* In the child that stays outside: waits for the unshare, then maps. */
static int map_from_outside(pid_t pid, uid_t uid, gid_t gid)
{
    const struct passwd *pw = getpwuid(uid);
    uint64_t start[2], count[2];
    if (fs_forced("no-subuid") ||
        !find_range("/etc/subuid", pw ? pw->pw_name : NULL, uid, &start[0], &count[0]) ||
        !find_range("/etc/subgid", pw ? pw->pw_name : NULL, uid, &start[1], &count[1])) {
        return -ENOENT;
    }
    int rc = run_idmap("newuidmap", pid, uid, start[0], count[0]);
    return rc < 0 ? rc : run_idmap("newgidmap", pid, gid, start[1], count[1]);
}

int image_enter_namespace(struct err *err)
{
    if (geteuid() == 0) {
        return 0;
    }
    uid_t uid = geteuid();
    gid_t gid = getegid();
    int go[2], back[2];
    if (pipe2(go, O_CLOEXEC) < 0 || pipe2(back, O_CLOEXEC) < 0) {
        return err_sys(err, -errno, "cannot make a pipe");
    }
    pid_t self = getpid(), helper = fork();
    if (helper < 0) {
        return err_sys(err, -errno, "cannot start a process");
    }
    if (helper == 0) {
        char c;
        close(go[1]);
        int rc = read(go[0], &c, 1) == 1 ? map_from_outside(self, uid, gid) : -EIO;
        _exit(rc == 0 ? 0 : rc == -ENOENT ? 1 : 2);
    }
    int rc = unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 ? -errno : 0, status = 0;
    if (rc == 0 && write(go[1], "x", 1) != 1) {
        rc = -EIO;
    }
    close(go[0]);
    close(go[1]);
    close(back[0]);
    close(back[1]);
    waitpid(helper, &status, 0);
    if (rc < 0) {
        /* No namespaces for this user: owners go into attributes, and layers are copied instead of mounted.
         */
        return rc == -EPERM || rc == -ENOSPC || rc == -EINVAL
                   ? 0
                   : err_sys(err, rc, "cannot make a user namespace");
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 1) {
        char map[64];
        (void)write_text("/proc/self/setgroups", "deny");
        snprintf(map, sizeof(map), "0 %u 1", uid);
        rc = write_text("/proc/self/uid_map", map);
        snprintf(map, sizeof(map), "0 %u 1", gid);
        rc = rc < 0 ? rc : write_text("/proc/self/gid_map", map);
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        rc = err_set(
            err, -EPERM,
            "newuidmap or newgidmap failed: check /etc/subuid and /etc/subgid (Debian: package uidmap)");
        return rc;
    }
    if (rc == 0 && (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)) {
        rc = -errno;
    }
    if (rc == 0 && mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0) {
        rc = -errno;
    }
    return rc < 0 ? err_sys(err, rc, "cannot become root of a user namespace") : 0;
}
