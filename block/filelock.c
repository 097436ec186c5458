/*
 * Locks on image files, so that two machines never write one image.
 *
 * They follow the convention that QEMU (docs/system/images: "Disk image file locking") uses, so that either program sees
 * the other's: open file description locks (fcntl(2), F_OFD_SETLK) on single bytes, one for each permission. A shared
 * lock on byte 100 + p says "I use permission p", one on byte 200 + p says "nobody else may use p". Whoever comes takes
 * its locks first and then looks whether anyone's contradict them, so two that come at once both see it.
 */
#include "block/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/util.h"

#define LOCK_USED_BASE   100
#define LOCK_DENIED_BASE 200

enum permission { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3, PERM_COUNT = 4 };

static int set_lock(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* 1: another open file description holds a lock on the byte. */
static int is_locked(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) {
        return -errno;
    }
    return lock.l_type != F_UNLCK;
}

int blk_file_lock(int fd, const char *path, bool writes, struct err *err)
{
    unsigned used = BIT(PERM_READ) | (writes ? BIT(PERM_WRITE) | BIT(PERM_RESIZE) : 0);
    unsigned denied = BIT(PERM_WRITE) | BIT(PERM_RESIZE);
    int error = 0;
    for (int p = 0; !error && p < PERM_COUNT; p++) {
        error = used & BIT(p) ? set_lock(fd, LOCK_USED_BASE + p) : 0;
        if (!error && (denied & BIT(p))) {
            error = set_lock(fd, LOCK_DENIED_BASE + p);
        }
    }
    bool writer = false, user = false;
    for (int p = 0; error >= 0 && p < PERM_COUNT; p++) {
        if (denied & BIT(p)) {
            error = is_locked(fd, LOCK_USED_BASE + p);
            writer |= error > 0;
        }
        if (error >= 0 && (used & BIT(p))) {
            error = is_locked(fd, LOCK_DENIED_BASE + p);
            user |= error > 0;
        }
    }
    if (error < 0) {
        return err_sys(err, error, "cannot lock image '%s'", path);
    }
    if (writer) {
        return err_set(err, -EBUSY, "image '%s' is in use: another program has it open for writing", path);
    }
    if (user) {
        return err_set(err, -EBUSY, "image '%s' can't be opened for writing: another program has it open", path);
    }
    return 0;
}
