#include "container/self.h"

#include "base/util.h"
#include "container/fault.h"
#include "container/mnt.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static int sealed_copy(int exe, struct err *err)
{
    struct stat st;
    int fd = memfd_create("fonda-oci", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fstat(exe, &st) < 0) {
        return err_sys(err, -errno, "cannot copy the own binary");
    }
    for (off_t done = 0; done < st.st_size;) {
        ssize_t n = sendfile(fd, exe, &done, (size_t)(st.st_size - done));
        if (n <= 0) {
            close(fd);
            return err_sys(err, n < 0 ? -errno : -EIO, "cannot copy the own binary");
        }
    }
    if (fcntl(fd, F_ADD_SEALS, SEALS) < 0) {
        close(fd);
        return err_sys(err, -errno, "cannot seal the copy of the own binary");
    }
    return fd;
}

int self_protect(char **argv, struct err *err)
{
    struct statvfs fs;
    auto_close int exe = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (exe < 0 || fstatvfs(exe, &fs) < 0) {
        return err_sys(err, -errno, "cannot open the own binary");
    }
    int seals = fcntl(exe, F_GET_SEALS);
    if ((fs.f_flag & ST_RDONLY) || (seals >= 0 && (seals & SEALS) == SEALS)) {
        return 0;
    }
    if (geteuid() != 0 && faccessat(AT_FDCWD, "/proc/self/exe", W_OK, AT_EACCESS) < 0) {
        struct stat st;
        if (fstat(exe, &st) == 0 && st.st_uid != geteuid()) {
            return 0;
        }
    }
    struct mnt_attrs attrs = {.set = MOUNT_ATTR_RDONLY};
    int fd = fault_without("selfbind") ? -EPERM : mnt_clone(exe, "", false, false);
    if (fd >= 0 && mnt_change(fd, &attrs, NULL) < 0) {
        close(fd);
        fd = -EPERM;
    }
    if (fd < 0 && (fd = sealed_copy(exe, err)) < 0) {
        return fd;
    }
    syscall(SYS_execveat, fd, "", argv, environ, AT_EMPTY_PATH);
    return err_sys(err, -errno, "cannot execute the protected copy of the own binary");
}
