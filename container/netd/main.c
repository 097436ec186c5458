/*
 * fonda-netd: the network of one container, without privileges over the host. Makes a tap device `eth0` in
 * the container's network namespace and is the router behind it: user-mode NAT (net/user.h), whose
 * connections are this process's own.
 *
 *   --pid PID   the container's first process; this program ends with it
 *
 * It says "ok" or what is wrong, as one line, on descriptor 3 (stdout when that is closed), once all is set
 * up.
 *
 * Invariants
 *  1. Only a short-lived child enters the container's namespaces; it hands the tap device out and ends.
 *  2. Frames of the container are looked at only when root's rights are gone.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/route.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/log.h"
#include "base/options.h"
#include "base/util.h"
#include "net/tap.h"
#include "net/user.h"

#define INTERFACE "eth0"
#define NOBODY    65534

struct netd_options {
    uint64_t pid;
    struct option_list publish;
    bool namespaces, help;
};

static const struct option_spec specs[] = {
    {"pid", OPTION_UINT, offsetof(struct netd_options, pid), 1, INT32_MAX, "PID",
     "the container's first process"},
    {"namespaces", OPTION_FLAG, offsetof(struct netd_options, namespaces), 0, 0, NULL,
     "descriptors 4 and 5 are its user and network namespace\n(default: as /proc has them)"},
    {"publish", OPTION_LIST, offsetof(struct netd_options, publish), 0, 0, "PORTS",
     "[ADDRESS:]HOST:CONTAINER[/udp]; may be given again\n(default address: 127.0.0.1)"},
    {"help", OPTION_FLAG, offsetof(struct netd_options, help), 0, 0, NULL, "print this help"},
};

static int set_address(int fd, struct ifreq *request, unsigned long what, const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    inet_pton(AF_INET, text, &address.sin_addr);
    memcpy(&request->ifr_addr, &address, sizeof(address));
    return ioctl(fd, what, request);
}

/* The addresses of net/user.h, without DHCP. */
static int configure(struct err *err)
{
    auto_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = INTERFACE};
    if (fd < 0 || set_address(fd, &request, SIOCSIFADDR, "10.0.2.15") < 0 ||
        set_address(fd, &request, SIOCSIFNETMASK, "255.255.255.0") < 0) {
        return err_sys(err, -errno, "cannot give %s its address", INTERFACE);
    }
    request.ifr_mtu = NET_USER_MTU;
    if (ioctl(fd, SIOCSIFMTU, &request) < 0) {
        return err_sys(err, -errno, "cannot set the MTU of %s", INTERFACE);
    }
    request.ifr_flags = IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0) {
        return err_sys(err, -errno, "cannot bring %s up", INTERFACE);
    }
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in gateway = {.sin_family = AF_INET};
    struct sockaddr_in any = {.sin_family = AF_INET};
    inet_pton(AF_INET, "10.0.2.2", &gateway.sin_addr);
    memcpy(&route.rt_gateway, &gateway, sizeof(gateway));
    memcpy(&route.rt_dst, &any, sizeof(any));
    memcpy(&route.rt_genmask, &any, sizeof(any));
    return ioctl(fd, SIOCADDRT, &route) < 0 ? err_sys(err, -errno, "cannot set the container's default route")
                                            : 0;
}

struct namespaces {
    int user, net;
};

static bool is_own(int fd, const char *path)
{
    struct stat own;
    struct stat other;
    return stat(path, &own) == 0 && fstat(fd, &other) == 0 && own.st_ino == other.st_ino &&
           own.st_dev == other.st_dev;
}

/* In the child: a tap device of the container's, ready for use. */
static int make_tap(const struct namespaces *ns, struct err *err)
{
    struct ifreq request = {.ifr_name = INTERFACE, .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header_bytes = NET_HEADER_BYTES;
    if (is_own(ns->net, "/proc/self/ns/net")) {
        return err_set(err, -EINVAL,
                       "the container has the host's network: it needs a network namespace of its own");
    }
    int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (tun < 0) {
        return err_sys(err, -errno, "cannot open /dev/net/tun (is the kernel module 'tun' loaded?)");
    }
    if ((!is_own(ns->user, "/proc/self/ns/user") && setns(ns->user, CLONE_NEWUSER) < 0) ||
        setns(ns->net, CLONE_NEWNET) < 0) {
        return err_sys(err, -errno, "cannot enter the container's network namespace");
    }
    /* The device belongs to the namespace in which its file was opened: once more, from within. */
    close(tun);
    tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request) < 0 || ioctl(tun, TUNSETVNETHDRSZ, &header_bytes) < 0) {
        return err_sys(err, -errno, "cannot make a tap device in the container");
    }
    int rc = configure(err);
    return rc < 0 ? rc : tun;
}

static int send_fd(int socket_fd, int fd, const char *text)
{
    struct iovec iov = {(void *)(uintptr_t)text, strlen(text) + 1};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.room = {0}};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        msg.msg_control = control.room;
        msg.msg_controllen = sizeof(control.room);
        control.head = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
    }
    return sendmsg(socket_fd, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int receive_fd(int socket_fd, struct err *err)
{
    char text[ERR_TEXT_MAX] = "";
    struct iovec iov = {text, sizeof(text) - 1};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.room,
                         .msg_controllen = sizeof(control.room)};
    ssize_t n = recvmsg(socket_fd, &msg, MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS) {
        return err_set(err, -EIO, "%s", *text ? text : "the helper that makes the tap device died");
    }
    int fd;
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    return fd;
}

/* The container's tap device, or a negative errno. */
static int tap_of(const struct namespaces *ns, struct err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        return err_sys(err, -errno, "cannot make a socket pair");
    }
    pid_t child = fork();
    if (child == 0) {
        struct err why = {.code = 0};
        int tap = make_tap(ns, &why);
        (void)send_fd(pair[1], tap, tap < 0 ? why.text : "tap");
        _exit(0);
    }
    close(pair[1]);
    int fd = child < 0 ? err_sys(err, -errno, "cannot fork") : receive_fd(pair[0], err);
    close(pair[0]);
    while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR) {
    }
    return fd;
}

/* Root's rights are needed for the ports only, which are open by now. */
static int drop_rights(struct err *err)
{
    if (geteuid() == 0 && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
                           setresuid(NOBODY, NOBODY, NOBODY) < 0)) {
        return err_sys(err, -errno, "cannot become an unprivileged user");
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        return err_sys(err, -errno, "cannot set no_new_privs");
    }
    return 0;
}

static bool forward(void *opaque, const struct iovec *iov, unsigned count)
{
    struct net_port *to = opaque;
    return to->ops->send(to, iov, count);
}

static void writable(void *opaque)
{
    struct net_port *other = opaque;
    other->ops->readable(other);
}

/* Frames from one go to the other, both ways. */
static void join(struct net_port *a, struct net_port *b)
{
    a->peer = (struct net_peer){.receive = forward, .writable = writable, .opaque = b};
    b->peer = (struct net_peer){.receive = forward, .writable = writable, .opaque = a};
    a->ops->set_offloads(a, b->takes);
    b->ops->set_offloads(b, a->takes);
}

static void on_container_end(uv_poll_t *poll, int status, int events)
{
    uv_stop(poll->loop);
}

static int serve(const struct netd_options *o, int report_fd, struct err *err)
{
    static struct net_forward forwards[OPTION_LIST_MAX];
    static uv_loop_t loop;
    static uv_poll_t end;
    char path[32];
    int rc = 0;
    for (unsigned i = 0; i < o->publish.count; i++) {
        if ((rc = net_forward_parse(o->publish.values[i], &forwards[i], err)) < 0) {
            return rc;
        }
    }
    struct namespaces ns = {4, 5};
    if (!o->namespaces) {
        snprintf(path, sizeof(path), "/proc/%u/ns/user", (unsigned)o->pid);
        ns.user = open(path, O_RDONLY | O_CLOEXEC);
        snprintf(path, sizeof(path), "/proc/%u/ns/net", (unsigned)o->pid);
        ns.net = ns.user < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
        if (ns.net < 0) {
            return err_sys(err, -errno, "%s", path);
        }
    }
    int pidfd = (int)syscall(SYS_pidfd_open, (pid_t)o->pid, 0u);
    if (pidfd < 0) {
        return err_sys(err, -errno, "process %u", (unsigned)o->pid);
    }
    int tap_fd = tap_of(&ns, err);
    close(ns.user);
    close(ns.net);
    if (tap_fd < 0) {
        return tap_fd;
    }
    if ((rc = uv_loop_init(&loop)) < 0 || (rc = uv_poll_init(&loop, &end, pidfd)) < 0 ||
        (rc = uv_poll_start(&end, UV_READABLE, on_container_end)) < 0) {
        return err_sys(err, rc, "cannot start the loop");
    }
    struct net_port *tap = net_tap_adopt(&loop, tap_fd, NET_USER_MTU, err);
    struct net_port *user = tap ? net_user_new(&loop, forwards, o->publish.count, err) : NULL;
    if (!user) {
        return err->code < 0 ? err->code : -EIO;
    }
    if ((rc = drop_rights(err)) < 0) {
        return rc;
    }
    join(tap, user);
    if (write(report_fd, "ok\n", 3) < 0) {
        return err_sys(err, -errno, "nobody waits for the network");
    }
    close(report_fd);
    uv_run(&loop, UV_RUN_DEFAULT);
    return 0;
}

int main(int argc, char **argv)
{
    struct netd_options o = {.pid = 0};
    struct err err = {.code = 0};
    log_init("fonda-netd", LOG_LEVEL_WARNING);
    int rc = options_parse(specs, ARRAY_SIZE(specs), argc, argv, 1, &o, &err);
    if (o.help) {
        printf("usage: fonda-netd --pid PID [--publish PORTS]...\n\nGives a container a network: user-mode "
               "NAT behind %s in its network "
               "namespace.\n\nOptions:\n",
               INTERFACE);
        options_print(stdout, specs, ARRAY_SIZE(specs));
        printf("\nExample:\n  fonda-netd --pid 4711 --publish 8080:80\n");
        return 0;
    }
    rc = rc < 0 ? rc : rc < argc ? err_set(&err, -EINVAL, "'%s' is not an option", argv[rc]) : 0;
    rc = rc < 0 || o.pid ? rc : err_set(&err, -EINVAL, "--pid is needed");
    if (rc < 0) {
        log_error("%s", err.text);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int report_fd = fcntl(3, F_GETFD) >= 0 ? 3 : 1;
    rc = serve(&o, report_fd, &err);
    if (rc < 0) {
        dprintf(report_fd, "%s\n", err.text);
        log_error("%s", err.text);
    }
    return rc < 0 ? 1 : 0;
}
