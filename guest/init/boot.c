/* From the kernel's first process to a root file system and a network. Paths are those of the initramfs that
 * guest/kernel.c packs, until boot_root(). */
#include "guest/init/init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

#define ORDER_MAX    8192
#define DISK         "/dev/vda"
#define DISK_WAIT_MS 10000
#define NEW_ROOT     "/root"

/* What fonda-vmm's user network gives to its one guest (docs: caveats-devices). */
#define OWN_ADDRESS "10.0.2.15"
#define OWN_MASK    "255.255.255.0"
#define GATEWAY     "10.0.2.2"

int boot_make_folders(const char *path)
{
    char part[4096];
    if ((size_t)snprintf(part, sizeof(part), "%s", path) >= sizeof(part)) {
        return -ENAMETOOLONG;
    }
    for (char *c = part + 1;; c++) {
        if (*c == '/' || *c == '\0') {
            char kept = *c;
            *c = '\0';
            if (mkdir(part, 0755) < 0 && errno != EEXIST) {
                return -errno;
            }
            *c = kept;
            if (!kept) {
                return 0;
            }
        }
    }
}

struct mount_row {
    const char *type, *target, *options;
    unsigned long flags;
    bool needed;
};

static int mount_all(const struct mount_row *rows, unsigned count, struct err *err)
{
    for (unsigned i = 0; i < count; i++) {
        (void)mkdir(rows[i].target, 0755);
        if (mount(rows[i].type, rows[i].target, rows[i].type, rows[i].flags, rows[i].options) < 0 &&
            rows[i].needed && errno != EBUSY) {
            return err_sys(err, -errno, "cannot mount %s on %s", rows[i].type, rows[i].target);
        }
    }
    return 0;
}

int boot_begin(struct err *err)
{
    static const struct mount_row rows[] = {
        {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, true},
        {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, true},
        {"devtmpfs", "/dev", "mode=0755", MS_NOSUID, true},
    };
    return mount_all(rows, ARRAY_SIZE(rows), err);
}

/* /modules/order has their names in the order in which they need each other. */
int boot_modules(struct err *err)
{
    char order[ORDER_MAX], path[256];
    auto_close int list = open("/modules/order", O_RDONLY | O_CLOEXEC);
    ssize_t n = list < 0 ? 0 : read(list, order, sizeof(order) - 1);
    order[MAX(n, (ssize_t)0)] = '\0';
    for (char *save = NULL, *name = strtok_r(order, "\n", &save); name; name = strtok_r(NULL, "\n", &save)) {
        snprintf(path, sizeof(path), "/modules/%s", name);
        auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)) {
            return err_sys(err, -errno, "cannot load the kernel module %s", name);
        }
        (void)unlink(path); /* its memory comes back */
    }
    return 0;
}

static int await_disk(struct err *err)
{
    struct timespec ms = {0, 1000000};
    for (unsigned waited = 0; access(DISK, F_OK) < 0; waited++) {
        if (waited == DISK_WAIT_MS) {
            return err_set(err, -ENODEV, "there is no disk " DISK);
        }
        nanosleep(&ms, NULL);
    }
    return 0;
}

int boot_root(struct err *err)
{
    static const char *const moved[] = {"/proc", "/sys", "/dev"};
    static const struct mount_row rows[] = {
        {"devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC, true},
        {"mqueue", "/dev/mqueue", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, false},
        {"cgroup2", "/sys/fs/cgroup", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, false},
    };
    int rc = await_disk(err);
    (void)mkdir(NEW_ROOT, 0755);
    if (rc == 0 && mount(DISK, NEW_ROOT, "ext4", 0, "noinit_itable") < 0) {
        rc = err_sys(err, -errno, "cannot mount the root disk");
    }
    for (unsigned i = 0; rc == 0 && i < ARRAY_SIZE(moved); i++) {
        char target[64];
        snprintf(target, sizeof(target), NEW_ROOT "%s", moved[i]);
        (void)mkdir(target, 0755);
        if (mount(moved[i], target, NULL, MS_MOVE, NULL) < 0) {
            rc = err_sys(err, -errno, "cannot move %s: the image has something else there", moved[i]);
        }
    }
    if (rc == 0 && (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
                    chdir("/") < 0)) {
        rc = err_sys(err, -errno, "cannot make the disk the root");
    }
    rc = rc < 0 ? rc : mount_all(rows, ARRAY_SIZE(rows), err);
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                           {"/proc/self/fd/0", "/dev/stdin"},
                                           {"/proc/self/fd/1", "/dev/stdout"},
                                           {"/proc/self/fd/2", "/dev/stderr"}};
    for (unsigned i = 0; i < ARRAY_SIZE(links); i++) {
        (void)symlink(links[i][0], links[i][1]);
    }
    return rc;
}

/* ---- network ---- */

static int up(int fd, const char *name, struct err *err)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0) {
        return -errno;
    }
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    return ioctl(fd, SIOCSIFFLAGS, &request) < 0 ? err_sys(err, -errno, "cannot bring up %s", name) : 0;
}

static struct sockaddr address(const char *text)
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr any;
    inet_pton(AF_INET, text, &in.sin_addr);
    memcpy(&any, &in, sizeof(any));
    return any;
}

/* The addresses that fonda-vmm's own router would give out by DHCP, without asking. */
int boot_network(struct err *err)
{
    auto_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "eth0"};
    (void)up(fd, "lo", NULL);
    if (fd < 0 || ioctl(fd, SIOCGIFINDEX, &request) < 0) {
        return 0; /* a machine without a card */
    }
    request.ifr_addr = address(OWN_ADDRESS);
    int rc = ioctl(fd, SIOCSIFADDR, &request);
    request.ifr_netmask = address(OWN_MASK);
    rc = rc < 0 ? rc : ioctl(fd, SIOCSIFNETMASK, &request);
    if (rc < 0) {
        return err_sys(err, -errno, "cannot set the address of eth0");
    }
    rc = up(fd, "eth0", err);
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    route.rt_dst = address("0.0.0.0");
    route.rt_genmask = address("0.0.0.0");
    route.rt_gateway = address(GATEWAY);
    return rc < 0 || ioctl(fd, SIOCADDRT, &route) == 0 ? rc : err_sys(err, -errno, "cannot set the route");
}
