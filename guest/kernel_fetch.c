/* A kernel from the archive that this host's apt uses. Nothing is installed. */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "guest/kernel_int.h"

/* Depends on the newest one of the release. Not the smaller one for clouds: that has no 9p. */
#define PACKAGE "linux-image-amd64"

/* Runs argv in the folder; its output into buf. Its status, or a negative errno. */
static int run(const char *folder, const char *const *argv, char *buf, size_t size)
{
    int out[2], status = 0;
    size_t have = 0;
    ssize_t n;
    if (pipe2(out, O_CLOEXEC) < 0) {
        return -errno;
    }
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(out[1], 1);
        dup2(out[1], 2);
        if (chdir(folder) == 0) {
            execvp(argv[0], (char *const *)(uintptr_t)argv);
        }
        _exit(127);
    }
    close(out[1]);
    while (pid > 0 && ((n = read(out[0], buf + have, size - 1 - have)) > 0 || (n < 0 && errno == EINTR))) {
        have += n > 0 ? (size_t)n : 0;
        have = have == size - 1 ? size / 2 : have; /* the end counts */
    }
    buf[have] = '\0';
    close(out[0]);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid < 0 ? -EAGAIN : WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int no_kernel(struct err *err, const char *why)
{
    return err_set(
        err, -ENOENT,
        "there is no kernel for machines of images, and none can be fetched (%s): give one "
        "with --kernel FILE, such as /boot/vmlinuz-RELEASE, or name it for fondad in FONDA_GUEST_KERNEL",
        why);
}

static void last_line(char *text)
{
    size_t len = strlen(text);
    while (len && text[len - 1] == '\n') {
        text[--len] = '\0';
    }
    char *line = strrchr(text, '\n');
    memmove(text, line ? line + 1 : text, strlen(line ? line + 1 : text) + 1);
    text[MIN(strlen(text), (size_t)200)] = '\0';
}

/* " Depends: linux-image-6.1.0-1-cloud-amd64" */
static bool package_of(char *text, char *name, size_t size)
{
    for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *at = strstr(line, "Depends: linux-image-");
        if (at) {
            snprintf(name, size, "%s", at + strlen("Depends: "));
            return true;
        }
    }
    return false;
}

static int take_one(const char *pattern, const char *to)
{
    glob_t found;
    int rc = glob(pattern, 0, NULL, &found) == 0 ? rename(found.gl_pathv[0], to) : -1;
    globfree(&found);
    return rc;
}

/* Without the drivers of hardware that no machine has: they are most of the 400 MB. */
static const char unpack_command[] =
    "mkdir tree && dpkg-deb --fsys-tarfile ./*.deb | tar -x -C tree --exclude='*/kernel/sound' "
    "--exclude='*/drivers/gpu' "
    "--exclude='*/drivers/media' --exclude='*/drivers/net/ethernet' --exclude='*/drivers/net/wireless' "
    "--exclude='*/drivers/infiniband' --exclude='*/drivers/scsi' --exclude='*/drivers/staging' "
    "--exclude='*/drivers/usb' "
    "--exclude='*/drivers/iio' --exclude='*/drivers/hwmon' --exclude='*/drivers/input' "
    "--exclude='*/drivers/platform' && "
    "rm -f ./*.deb";

/* Unpacks the package in `work`; keeps the kernel and its modules. */
static int unpack(const char *work, const char *kept, struct err *err)
{
    char text[4096], pattern[PATH_MAX + 64], to[PATH_MAX + 64];
    const char *const argv[] = {"sh", "-c", unpack_command, NULL};
    if (run(work, argv, text, sizeof(text)) != 0) {
        last_line(text);
        return no_kernel(err, text[0] ? text : "dpkg-deb is missing");
    }
    (void)mkdir(kept, 0755);
    snprintf(pattern, sizeof(pattern), "%s/tree/lib/modules/*", work);
    snprintf(to, sizeof(to), "%s/modules", kept);
    int rc = take_one(pattern, to);
    if (rc < 0) {
        snprintf(pattern, sizeof(pattern), "%s/tree/usr/lib/modules/*", work);
        rc = take_one(pattern, to);
    }
    snprintf(pattern, sizeof(pattern), "%s/tree/boot/vmlinuz-*", work);
    snprintf(to, sizeof(to), "%s/vmlinuz", kept);
    return rc < 0 || take_one(pattern, to) < 0
               ? no_kernel(err, "the package is not what it was expected to be")
               : 0;
}

static void remove_tree(const char *path)
{
    char text[64];
    const char *const argv[] = {"rm", "-rf", path, NULL};
    (void)run("/", argv, text, sizeof(text));
}

int kernel_fetch(const struct guest_kernel_options *o, struct err *err)
{
    char work[PATH_MAX + 16], kept[PATH_MAX + 16], text[8192], package[200];
    const char *const depends[] = {"apt-cache", "depends", PACKAGE, NULL};
    const char *const download[] = {"apt-get", "-qq", "download", package, NULL};
    snprintf(work, sizeof(work), "%s/fetching", o->cache);
    snprintf(kept, sizeof(kept), "%s/kernel", o->cache);
    remove_tree(work);
    remove_tree(kept); /* half a kernel, as there is no whole one */
    if (mkdir(work, 0755) < 0) {
        return err_sys(err, -errno, "cannot make '%s'", work);
    }
    if (run(work, depends, text, sizeof(text)) != 0 || !package_of(text, package, sizeof(package))) {
        remove_tree(work);
        return no_kernel(err, "apt knows no package " PACKAGE);
    }
    if (o->say) {
        snprintf(text, sizeof(text), "fetching %s", package);
        o->say(o->opaque, text);
    }
    int rc = run(work, download, text, sizeof(text));
    if (rc != 0) {
        last_line(text);
        rc = no_kernel(err, text[0] ? text : "apt-get failed");
    }
    rc = rc < 0 ? rc : unpack(work, kept, err);
    remove_tree(work);
    return rc;
}
