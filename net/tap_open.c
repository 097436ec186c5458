/* See tap_open.h. */
#include "net/tap_open.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/util.h"
#include "net/port.h"

int net_tap_open(const char *name, struct err *err)
{
    struct ifreq request = {0};
    int header_bytes = NET_HEADER_BYTES;
    if (strlen(name) == 0 || strlen(name) >= IFNAMSIZ) {
        return err_set(err, -EINVAL, "'%s' is not a name of a network interface", name);
    }
    auto_close int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot open /dev/net/tun");
    }
    strcpy(request.ifr_name, name);
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        return errno == EPERM ? err_set(err, -EPERM,
                                        "cannot use tap device '%s': not permitted; let its owner be you "
                                        "('ip tuntap add %s mode tap user NAME'), or use --net user",
                                        name, name)
                              : err_sys(err, -errno, "cannot use tap device '%s'", name);
    }
    if (ioctl(fd, TUNSETVNETHDRSZ, &header_bytes) < 0) {
        return err_sys(err, -errno, "tap device '%s' does not carry offload headers", name);
    }
    return take_fd(&fd);
}
