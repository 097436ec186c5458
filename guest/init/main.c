/*
 * fonda-guest-init: process 1 of a machine that was made from an image. See init.h.
 *
 *     boot --> connects to the host (WIRE_HOST_PORT): the first program's connection, in a child
 *          --> listens on WIRE_GUEST_PORT: a child for each connection of the host's
 *          --> the first program's child ended: sync, power off
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "guest/init/init.h"

#define BACKLOG 64

static void power_off(void)
{
    sync();
    (void)mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}

/* The last line of the console is what the host shows when a boot fails. */
static void give_up(const struct err *err)
{
    struct timespec moment = {0, 100000000};
    dprintf(1, "fonda-guest-init: %s\n", err->text);
    nanosleep(&moment, NULL); /* for the serial port to send it */
    power_off();
}

static int listen_for_host(struct err *err)
{
    struct sockaddr_vm any = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = WIRE_GUEST_PORT};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(fd, BACKLOG) < 0) {
        return err_sys(err, -errno, "cannot listen on vsock port %u", WIRE_GUEST_PORT);
    }
    return fd;
}

static int connect_host(struct err *err)
{
    struct sockaddr_vm host = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = WIRE_HOST_PORT};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&host, sizeof(host)) < 0) {
        return err_sys(err, -errno, "cannot reach the host over vsock");
    }
    return fd;
}

static pid_t serve_apart(int fd, bool first, const int orders[2], int listener)
{
    pid_t pid = fork();
    if (pid != 0) {
        close(fd);
        return pid;
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_IGN);
    close(listener);
    close(orders[first ? 1 : 0]);
    _exit(serve(fd, first, orders[first ? 0 : 1]));
}

static void accept_one(int listener, const int orders[2])
{
    struct sockaddr_vm from = {0};
    socklen_t size = sizeof(from);
    int fd = accept4(listener, (struct sockaddr *)&from, &size, SOCK_CLOEXEC);
    if (fd >= 0 && from.svm_cid != VMADDR_CID_HOST) {
        close(fd);
    } else if (fd >= 0) {
        serve_apart(fd, false, orders, listener);
    }
}

static void boot(struct err *err, int *ret_listener, int *ret_host)
{
    int rc = boot_begin(err);
    rc = rc < 0 ? rc : boot_modules(err);
    rc = rc < 0 ? rc : boot_root(err);
    rc = rc < 0 ? rc : boot_network(err);
    rc = rc < 0 ? rc : (*ret_listener = listen_for_host(err));
    rc = rc < 0 ? rc : (*ret_host = connect_host(err));
    if (rc < 0) {
        give_up(err);
    }
}

int main(int argc, char **argv)
{
    struct err err = {.code = 0};
    int listener = -1, host = -1, orders[2];
    sigset_t children;
    if (getpid() != 1) {
        printf("usage: fonda-guest-init is the first process of machines that 'fonda run --vm' makes of "
               "images;\n"
               "it does nothing elsewhere.\n\nExample:\n  fonda run --vm debian:12 uname -a\n");
        return argc > 1 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
    }
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    reboot(RB_DISABLE_CAD);
    boot(&err, &listener, &host);
    int signals = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, orders) < 0) {
        err_sys(&err, -errno, "cannot make descriptors");
        give_up(&err);
    }
    pid_t first = serve_apart(host, true, orders, listener);
    for (;;) {
        struct pollfd fds[] = {{.fd = listener, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
        struct signalfd_siginfo info;
        (void)poll(fds, ARRAY_SIZE(fds), -1);
        (void)!read(signals, &info, sizeof(info));
        for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;) {
            if (pid == first) {
                power_off();
            }
        }
        if (fds[0].revents) {
            accept_one(listener, orders);
        }
    }
}
