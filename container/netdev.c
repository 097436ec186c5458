#include "container/netdev.h"

#include "base/util.h"
#include "container/fault.h"

#include <errno.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>

struct request {
    struct nlmsghdr head;
    struct ifinfomsg link;
    char attributes[128];
};

static void add_attribute(struct request *r, unsigned short type, const void *data, unsigned short size)
{
    struct rtattr *a = (struct rtattr *)(void *)((char *)r + NLMSG_ALIGN(r->head.nlmsg_len));
    a->rta_type = type;
    a->rta_len = (unsigned short)RTA_LENGTH(size);
    memcpy(RTA_DATA(a), data, size);
    r->head.nlmsg_len = (unsigned)(NLMSG_ALIGN(r->head.nlmsg_len) + RTA_ALIGN(a->rta_len));
}

/* One request, answered by its acknowledgement. */
static int transact(int fd, const struct request *r)
{
    char buffer[4096];
    if (send(fd, r, r->head.nlmsg_len, 0) < 0) {
        return -errno;
    }
    ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
    const struct nlmsghdr *answer = (const struct nlmsghdr *)(void *)buffer;
    if (n < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || answer->nlmsg_type != NLMSG_ERROR) {
        return n < 0 ? -errno : -EPROTO;
    }
    return ((const struct nlmsgerr *)NLMSG_DATA(answer))->error;
}

int netdev_move(const struct oci_linux *lnx, pid_t pid, struct err *err)
{
    int rc = lnx->netdev_count ? fault_step("network devices", err) : 0;
    if (rc < 0 || !lnx->netdev_count) {
        return rc;
    }
    auto_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot open a netlink socket");
    }
    for (size_t i = 0; i < lnx->netdev_count; i++) {
        const struct oci_netdev *dev = &lnx->netdevs[i];
        uint32_t target = (uint32_t)pid;
        struct request r = {
            .head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifinfomsg)),
                     .nlmsg_type = RTM_NEWLINK,
                     .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
            .link = {.ifi_family = AF_UNSPEC, .ifi_index = (int)if_nametoindex(dev->host_name)},
        };
        if (r.link.ifi_index == 0) {
            return err_sys(err, -ENODEV, "linux.netDevices: '%s'", dev->host_name);
        }
        add_attribute(&r, IFLA_NET_NS_PID, &target, sizeof(target));
        if (strcmp(dev->name, dev->host_name) != 0) {
            add_attribute(&r, IFLA_IFNAME, dev->name, (unsigned short)(strlen(dev->name) + 1));
        }
        rc = transact(fd, &r);
        if (rc < 0) {
            return err_sys(err, rc, "linux.netDevices: cannot move '%s' into the container as '%s'",
                           dev->host_name, dev->name);
        }
    }
    return 0;
}
