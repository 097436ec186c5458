/*
 * What somebody would try who runs code of his own inside the jail. By system call, so that no library's care
 * stands in between. Each returns 0 when it worked.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/if_packet.h>
#include <linux/landlock.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "block/aio_int.h"
#include "tests/jail/captive.h"

#define FDS_TRIED 64

static struct io_uring *ring;

static int number(void)
{
    return atoi(captive.argument);
}

static int done(long rc)
{
    return rc < 0 ? -errno : 0;
}

/* --- files --- */

static int open_read(void)
{
    return done(syscall(SYS_openat, AT_FDCWD, captive.argument, O_RDONLY | O_CLOEXEC, 0));
}

static int open_create(void)
{
    return done(syscall(SYS_openat, AT_FDCWD, captive.argument, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

static int open_inherited(void)
{
    return done(syscall(SYS_openat, captive.outside_fd, "etc/passwd", O_RDONLY | O_CLOEXEC, 0));
}

/* From every descriptor, whatever it is of, and through those that lie behind it by name (/proc's). */
static int open_from_all(void)
{
    static const char *const ways[] = {"etc/passwd",           "../../../../../../../../etc/passwd",
                                       "1/root/etc/passwd",    "self/root/etc/passwd",
                                       "../1/root/etc/passwd", "../../1/root/etc/passwd",
                                       "../root/etc/passwd"};
    long rc = -1;
    for (int fd = 3; fd < FDS_TRIED && rc < 0; fd++) {
        for (size_t i = 0; i < ARRAY_SIZE(ways) && rc < 0; i++) {
            rc = syscall(SYS_openat, fd, ways[i], O_RDONLY | O_CLOEXEC, 0);
        }
        for (int through = 3; through < FDS_TRIED && rc < 0; through++) {
            char path[64];
            snprintf(path, sizeof(path), "%d/../../../../../etc/passwd", through);
            rc = syscall(SYS_openat, fd, path, O_RDONLY | O_CLOEXEC, 0);
        }
    }
    return done(rc);
}

/* Far enough up for any directory. */
static int share_up(void)
{
    return done(syscall(SYS_openat, captive.share_fd, "../../../../../../../../etc/passwd", O_RDONLY, 0));
}

static int share_read(void)
{
    return done(syscall(SYS_openat, captive.share_fd, "inside", O_RDONLY, 0));
}

static int share_write(void)
{
    return done(syscall(SYS_openat, captive.share_fd, "made", O_WRONLY | O_CREAT, 0600));
}

/* A symlink that the host's user, or the guest, put there. */
static int share_link(void)
{
    return done(syscall(SYS_openat, captive.share_fd, "link", O_RDONLY, 0));
}

static int share_device(void)
{
    return done(syscall(SYS_mknodat, captive.share_fd, "device", S_IFBLK | 0600, makedev(8, 0)));
}

static int file_remove(void)
{
    return done(syscall(SYS_unlink, captive.argument));
}

static int file_rename(void)
{
    return done(syscall(SYS_rename, captive.argument, "/renamed"));
}

static int file_chmod(void)
{
    return done(syscall(SYS_chmod, captive.argument, 0777));
}

static int by_handle(void)
{
    struct {
        struct file_handle head;
        char bytes[64];
    } handle = {.head = {.handle_bytes = 8, .handle_type = 1}, .bytes = {2}};
    return done(syscall(SYS_open_by_handle_at, captive.share_fd, &handle, O_RDONLY));
}

static int chroot_out(void)
{
    return done(syscall(SYS_chroot, "."));
}

static int chdir_up(void)
{
    return done(syscall(SYS_chdir, ".."));
}

/* --- mounts --- */

static int do_mount(void)
{
    return done(syscall(SYS_mount, "x", "/", "tmpfs", 0, NULL));
}

static int do_umount(void)
{
    return done(syscall(SYS_umount2, "/", MNT_DETACH));
}

static int do_pivot(void)
{
    return done(syscall(SYS_pivot_root, ".", "."));
}

static int do_fsopen(void)
{
    return done(syscall(SYS_fsopen, "tmpfs", 0));
}

static int do_open_tree(void)
{
    return done(syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE));
}

/* --- networks --- */

static int connect_tcp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)number()),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = (int)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -errno : done(syscall(SYS_connect, fd, &address, sizeof(address)));
}

static int connect_unix_at(const char *path, bool abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strnlen(path, sizeof(address.sun_path) - 2);
    memcpy(address.sun_path + (abstract ? 1 : 0), path, len);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
    int fd = (int)syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -errno : done(syscall(SYS_connect, fd, &address, size));
}

static int connect_unix(void)
{
    return connect_unix_at(captive.argument, false);
}

static int connect_abstract(void)
{
    return connect_unix_at(captive.argument, true);
}

static int socket_packet(void)
{
    return done(syscall(SYS_socket, AF_PACKET, SOCK_RAW, 0));
}

static int socket_raw(void)
{
    return done(syscall(SYS_socket, AF_INET, SOCK_RAW, IPPROTO_ICMP));
}

static int socket_netlink(void)
{
    return done(syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0));
}

static int socket_vsock(void)
{
    return done(syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0));
}

static int socket_alg(void)
{
    return done(syscall(SYS_socket, AF_ALG, SOCK_SEQPACKET, 0));
}

static int bind_tcp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = (int)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -errno : done(syscall(SYS_bind, fd, &address, sizeof(address)));
}

/* --- other processes --- */

static int do_ptrace(void)
{
    return done(syscall(SYS_ptrace, PTRACE_SEIZE, number(), 0, 0));
}

static int vm_read(void)
{
    char byte;
    struct iovec local = {&byte, 1}, remote = {(void *)0x400000, 1};
    return done(syscall(SYS_process_vm_readv, number(), &local, 1, &remote, 1, 0));
}

static int do_pidfd(void)
{
    return done(syscall(SYS_pidfd_open, number(), 0));
}

static int kill_other(void)
{
    return done(syscall(SYS_kill, number(), SIGCONT));
}

static int kill_all(void)
{
    return done(syscall(SYS_kill, -1, SIGCONT));
}

static int tgkill_other(void)
{
    return done(syscall(SYS_tgkill, number(), number(), SIGCONT));
}

static int set_priority(void)
{
    return done(syscall(SYS_setpriority, PRIO_PROCESS, number(), 10));
}

/* --- new processes, namespaces, programs --- */

static int do_fork(void)
{
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        syscall(SYS_exit_group, 0);
    }
    return done(pid);
}

static int do_clone3(void)
{
    uint64_t args[11] = {[4] = SIGCHLD};
    long pid = syscall(SYS_clone3, args, sizeof(args));
    if (pid == 0) {
        syscall(SYS_exit_group, 0);
    }
    return done(pid);
}

static int unshare_user(void)
{
    return done(syscall(SYS_unshare, CLONE_NEWUSER));
}

static int unshare_net(void)
{
    return done(syscall(SYS_unshare, CLONE_NEWNET));
}

static int do_setns(void)
{
    return done(syscall(SYS_setns, captive.share_fd, 0));
}

static int do_exec(void)
{
    char *argv[] = {"true", NULL};
    return done(syscall(SYS_execve, captive.argument, argv, NULL));
}

static int exec_fd(void)
{
    char *argv[] = {"x", NULL};
    return done(syscall(SYS_execveat, STDIN_FILENO, "", argv, NULL, AT_EMPTY_PATH));
}

static int memory_exec(void)
{
    return done(syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, 0));
}

static int memory_protect(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return done(syscall(SYS_mprotect, page, 4096, PROT_READ | PROT_EXEC));
}

static int do_memfd(void)
{
    return done(syscall(SYS_memfd_create, "x", 0));
}

/* --- the kernel --- */

#define PLAIN(name, ...)                                                                                     \
    static int name(void)                                                                                    \
    {                                                                                                        \
        return done(syscall(__VA_ARGS__));                                                                   \
    }

static char buf[256];

PLAIN(do_bpf, SYS_bpf, 0, buf, sizeof(buf))
PLAIN(do_perf, SYS_perf_event_open, buf, 0, -1, -1, 0)
PLAIN(do_userfaultfd, SYS_userfaultfd, 1)
PLAIN(do_keyctl, SYS_keyctl, 0, -3, 0)
PLAIN(do_add_key, SYS_add_key, "user", "x", "y", 1, -3)
PLAIN(init_module, SYS_init_module, buf, 1, "")
PLAIN(finit_module, SYS_finit_module, 0, "", 0)
PLAIN(do_kexec, SYS_kexec_load, 0, 0, NULL, 0)
PLAIN(do_reboot, SYS_reboot, 0xfee1dead, 672274793, 0, NULL)
PLAIN(do_uring, SYS_io_uring_setup, 1, buf)
PLAIN(uring_register, SYS_io_uring_register, ring ? ring->ring_fd : -1, 9 /* PERSONALITY */, NULL, 0)
PLAIN(do_setuid, SYS_setuid, 0)
PLAIN(do_setgroups, SYS_setgroups, 0, NULL)
PLAIN(do_capset, SYS_capset, buf, buf)
PLAIN(do_personality, SYS_personality, 0)
PLAIN(do_sethostname, SYS_sethostname, "x", 1)
PLAIN(do_settime, SYS_clock_settime, 0, buf)
PLAIN(do_swapon, SYS_swapon, "/x", 0)
PLAIN(do_iopl, SYS_iopl, 3)
PLAIN(do_shmget, SYS_shmget, 1, 4096, 0666 | 01000)
PLAIN(do_syslog, SYS_syslog, 3, buf, sizeof(buf))
PLAIN(steal_tty, SYS_ioctl, 0, TIOCSTI, "x")
PLAIN(linux_tty, SYS_ioctl, 0, TIOCLINUX, buf)
PLAIN(new_dumpable, SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0)
PLAIN(filter_listener, SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, buf)
PLAIN(raise_limit, SYS_setrlimit, RLIMIT_CORE, &((struct rlimit){RLIM_INFINITY, RLIM_INFINITY}))
PLAIN(x32_open, SYS_openat | 0x40000000, AT_FDCWD, "/etc/passwd", O_RDONLY)

/* execve by the 32-bit interface, whose number 11 is. */
static int compat_exec(void)
{
    long rc;
    __asm__ volatile("int $0x80" : "=a"(rc) : "a"(11L), "b"(0L), "c"(0L), "d"(0L) : "memory");
    return rc < 0 ? (int)rc : 0;
}

/* The disks' ring does what the process may not: open, connect, make a socket. */
static int ring_do(void (*prepare)(struct io_uring_sqe *sqe))
{
    struct io_uring_cqe *cqe;
    if (!ring) {
        return -ENOSYS;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    prepare(sqe);
    if (io_uring_submit(ring) != 1 || io_uring_wait_cqe(ring, &cqe) < 0) {
        return -EIO;
    }
    return cqe->res < 0 ? cqe->res : 0;
}

static void prepare_open(struct io_uring_sqe *sqe)
{
    io_uring_prep_openat(sqe, AT_FDCWD, "/", O_RDONLY | O_DIRECTORY, 0);
}

static void prepare_socket(struct io_uring_sqe *sqe)
{
    io_uring_prep_rw(45 /* IORING_OP_SOCKET */, sqe, AF_INET, NULL, 0, SOCK_STREAM);
}

static int ring_open(void)
{
    return ring_do(prepare_open);
}

static int ring_socket(void)
{
    return ring_do(prepare_socket);
}

void captive_open_ring(void)
{
    struct aio_uring *uring;
    ring = aio_uring_new(&uring) == 0 ? (struct io_uring *)uring : NULL; /* its first member */
}

/* What has to work: the test's own test. */
static int nothing(void)
{
    return 0;
}

const struct deed deeds[] = {
    {"nothing", nothing},
    {"open_read", open_read},
    {"open_create", open_create},
    {"open_inherited", open_inherited},
    {"open_from_all", open_from_all},
    {"share_up", share_up},
    {"share_read", share_read},
    {"share_write", share_write},
    {"share_link", share_link},
    {"share_device", share_device},
    {"file_remove", file_remove},
    {"file_rename", file_rename},
    {"file_chmod", file_chmod},
    {"by_handle", by_handle},
    {"chroot", chroot_out},
    {"chdir_up", chdir_up},
    {"mount", do_mount},
    {"umount", do_umount},
    {"pivot_root", do_pivot},
    {"fsopen", do_fsopen},
    {"open_tree", do_open_tree},
    {"connect_tcp", connect_tcp},
    {"connect_unix", connect_unix},
    {"connect_abstract", connect_abstract},
    {"socket_packet", socket_packet},
    {"socket_raw", socket_raw},
    {"socket_netlink", socket_netlink},
    {"socket_vsock", socket_vsock},
    {"socket_alg", socket_alg},
    {"bind_tcp", bind_tcp},
    {"ptrace", do_ptrace},
    {"vm_read", vm_read},
    {"pidfd", do_pidfd},
    {"kill", kill_other},
    {"kill_all", kill_all},
    {"tgkill", tgkill_other},
    {"setpriority", set_priority},
    {"fork", do_fork},
    {"clone3", do_clone3},
    {"unshare_user", unshare_user},
    {"unshare_net", unshare_net},
    {"setns", do_setns},
    {"exec", do_exec},
    {"exec_fd", exec_fd},
    {"memory_exec", memory_exec},
    {"memory_protect", memory_protect},
    {"memfd", do_memfd},
    {"bpf", do_bpf},
    {"perf", do_perf},
    {"userfaultfd", do_userfaultfd},
    {"keyctl", do_keyctl},
    {"add_key", do_add_key},
    {"init_module", init_module},
    {"finit_module", finit_module},
    {"kexec", do_kexec},
    {"reboot", do_reboot},
    {"io_uring", do_uring},
    {"uring_register", uring_register},
    {"ring_open", ring_open},
    {"ring_socket", ring_socket},
    {"setuid", do_setuid},
    {"setgroups", do_setgroups},
    {"capset", do_capset},
    {"personality", do_personality},
    {"sethostname", do_sethostname},
    {"settime", do_settime},
    {"swapon", do_swapon},
    {"iopl", do_iopl},
    {"shmget", do_shmget},
    {"syslog", do_syslog},
    {"steal_tty", steal_tty},
    {"linux_tty", linux_tty},
    {"dumpable", new_dumpable},
    {"listener", filter_listener},
    {"raise_limit", raise_limit},
    {"x32", x32_open},
    {"compat", compat_exec},
};
const size_t deed_count = ARRAY_SIZE(deeds);
