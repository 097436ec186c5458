/* See roles.h. */
#include "sandbox/roles.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/util.h"
#include "sandbox/jail.h"

#define M    BIT(ROLE_MAIN)
#define V    BIT(ROLE_VCPU)
#define O    BIT(ROLE_OUTPUT)
#define B    BIT(ROLE_BLOCK)
#define S    BIT(ROLE_SAVE)
#define F    BIT(ROLE_FILL)
#define ALL  (M | V | O | B | S | F)
#define LOW  0xffffffffull /* the kernel takes these arguments as 32 bits */
#define INET JAIL_NEED_INTERNET
#define UNIX JAIL_NEED_UNIX
#define TREE JAIL_NEED_TREE
#define FILS JAIL_NEED_FILES
#define SOCK (INET | UNIX)

/* A new thread of this process, and nothing else that clone(2) can make. */
#define THREAD_FLAGS (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM)
#define SOCK_TYPE    0xffull

#define ROW(name, roles, needs, why)                                                                         \
    {                                                                                                        \
        name, roles, needs, 0, {{0}}, NULL, why                                                              \
    }
#define ONLY(name, roles, needs, a, m, v, with, why)                                                         \
    {                                                                                                        \
        name, roles, needs, 0, {{a, m, v}}, with, why                                                        \
    }
#define IOCTL(roles, needs, request, why)                                                                    \
    {                                                                                                        \
        "ioctl", roles, needs, 0, {{1, LOW, (uint32_t)(request)}}, #request, why                             \
    }
#define FCNTL(command, why)                                                                                  \
    {                                                                                                        \
        "fcntl", M, 0, 0, {{1, LOW, command}}, #command, why                                                 \
    }
#define QUIET(name, roles, error, why)                                                                       \
    {                                                                                                        \
        name, roles, 0, error, {{0}}, NULL, why                                                              \
    }
#define SOCKET(needs, family, type, why)                                                                     \
    {                                                                                                        \
        "socket", M, needs, 0, {{0, LOW, family}, {1, SOCK_TYPE, type}}, #family ", " #type, why             \
    }

const char *const role_names[ROLES] = {"main", "vcpu", "output", "block", "save", "fill"};

const struct role_row role_table[] = {
    /* --- every thread: memory, locks, signals, time, its end --- */
    ROW("futex", ALL, 0, "locks and condition variables"),
    ONLY("mmap", ALL, 0, 2, PROT_EXEC, 0, "not PROT_EXEC", "memory of malloc, thread stacks"),
    ONLY("mprotect", ALL, 0, 2, PROT_EXEC, 0, "not PROT_EXEC", "malloc's heaps; guard pages"),
    ROW("munmap", ALL, 0, "memory that is freed"),
    ROW("mremap", ALL, 0, "realloc of large blocks"),
    ROW("madvise", ALL, 0, "memory given back; thread stacks"),
    ROW("brk", ALL, 0, "malloc's first heap"),
    ROW("rt_sigreturn", ALL, 0, "the end of every signal handler"),
    ROW("rt_sigprocmask", ALL, 0, "signals kept out while a thread starts, ends or is about to sleep"),
    ROW("sigaltstack", ALL, 0, "translated code: signals run on a stack of their own"),
    ROW("rt_sigaction", M | V, 0, "translated code: a fault that is a defect gets the default action"),
    ONLY("tgkill", ALL, 0, 0, LOW, ROLE_OWN_PID, "own process", "kicks a vCPU; abort"),
    ROW("gettid", ALL, 0, "abort; which thread a kick is for"),
    ROW("getpid", ALL, 0, "the same"),
    ROW("clock_gettime", ALL, 0, "time, where the vDSO has none"),
    ROW("gettimeofday", ALL, 0, "the same"),
    ROW("clock_nanosleep", ALL, 0, "a pause before something is tried again"),
    ROW("sched_yield", ALL, 0, "a short wait for another thread"),
    ROW("restart_syscall", ALL, 0, "the kernel's, behind a stopped and continued sleep"),
    ROW("getrandom", ALL, 0, "the entropy device; malloc's and hash tables' seeds"),
    ROW("write", ALL, 0, "event descriptors, serial output, error messages"),
    ROW("exit", ALL, 0, "the end of a thread"),
    ROW("exit_group", ALL, 0, "the end of the process"),
    ROW("rseq", ALL, 0, "the C library's registration of a new thread"),
    ROW("set_robust_list", ALL, 0, "the same"),

    /* --- new threads --- */
    {"clone",
     M,
     0,
     0,
     {{0,
       THREAD_FLAGS |
           (uint64_t)(uint32_t)(CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC |
                                CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_VFORK | CLONE_PTRACE),
       THREAD_FLAGS}},
     "a thread",
     "vCPUs after a reset, disk I/O threads"},
    QUIET("clone3", M, ENOSYS, "its flags can't be looked at: the C library then takes clone"),
    ONLY("prctl", M, 0, 0, LOW, PR_SET_NAME, "PR_SET_NAME", "a new thread says its name"),
    {"seccomp",
     M,
     0,
     0,
     {{0, LOW, SECCOMP_SET_MODE_FILTER}, {1, LOW, 0}},
     "SECCOMP_SET_MODE_FILTER",
     "a new thread narrows itself to its role"},

    /* --- the event loop --- */
    ROW("epoll_wait", M, 0, "the event loop"),
    ROW("epoll_pwait", M, 0, "the event loop"),
    ROW("epoll_ctl", M, 0, "the event loop"),
    ROW("poll", M, 0, "is a descriptor ready; user-mode NAT"),
    ROW("read", M | V | B, 0, "timers, event descriptors, terminal; what a network card receives"),
    ROW("readv", M | V, 0, "frames and shared files"),
    ROW("writev", M | V, 0, "frames and shared files; messages"),
    ROW("timerfd_settime", ALL, 0, "the machine's next timer: whichever thread sets an earlier one"),
    ROW("close", ALL, 0, "what ends: connections, disks, the machine"),
    ROW("wait4", M, 0, "the process that guards the terminal's settings"),
    ROW("sched_getaffinity", M, 0, "how many processors there are: libraries"),
    ROW("sysinfo", M, 0, "the C library's qsort: how much memory to take"),
    ROW("uname", M, 0, "the kernel's version, for libuv and liburing"),
    QUIET("prlimit64", M, EPERM, "the C library asks for a new thread's stack size; the default does"),
    FCNTL(F_GETFL, "whether a descriptor blocks"),
    FCNTL(F_SETFL, "makes it not block"),
    FCNTL(F_GETFD, "closes on exec"),
    FCNTL(F_SETFD, "closes on exec"),
    FCNTL(F_DUPFD_CLOEXEC, "a directory is read through a second descriptor"),
    FCNTL(F_OFD_SETLK, "an image's lock is let go or changed"),
    FCNTL(F_OFD_GETLK, "who else has an image"),
    IOCTL(M, 0, FIONBIO, "makes a descriptor not block"),
    IOCTL(M, 0, FIONREAD, "user-mode NAT: how much there is to read"),
    IOCTL(M, 0, TIOCGWINSZ, "the window's size, for the guest's console"),
    IOCTL(M, 0, TCGETS, "is it a terminal"),
    IOCTL(M, 0, TCSETS, "the terminal as it was"),
    IOCTL(M, 0, TCSETSW, "the same, behind the output"),

    /* --- disks, guest memory --- */
    ROW("io_uring_enter", M, 0,
        "disk I/O; the ring itself is restricted to reads, writes, flushes and fallocate"),
    ROW("preadv", M | B, 0, "disk I/O by threads"),
    ROW("pwritev", M | B, 0, "disk I/O by threads"),
    ROW("pread64", M | V | B | F, 0,
        "disk I/O; shared files; memory of a restored machine when it is first touched"),
    ROW("pwrite64", M | V | B | F, 0, "the same"),
    ROW("fdatasync", M | B, 0, "a flush of the guest's"),
    ROW("fsync", M | B | S, 0, "a flush; shared files; a saved machine's file"),
    ROW("fallocate", M | V | B, 0,
        "discard and write zeroes; guest memory that the balloon or a reset gives back"),
    ROW("ftruncate", M, 0, "a growing qcow2 file; shared files"),
    ROW("lseek", M | S, 0, "where a file has holes; shared directories"),
    ROW("fstat", M | S, 0, "a file's size"),
    ROW("newfstatat", M | S, 0, "the same; shared files"),

    /* --- KVM --- */
    IOCTL(V | M, JAIL_NEED_KVM, KVM_RUN, "guest code"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_INTERRUPT, "an interrupt for the guest"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_NMI, "an NMI for the guest"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_REGS, "vCPU state: reset, start-up, report, saving"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_REGS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_SREGS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_SREGS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_XCRS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_XCRS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_XSAVE, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_XSAVE, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_DEBUGREGS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_DEBUGREGS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_VCPU_EVENTS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_VCPU_EVENTS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_MSRS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_MSRS, "the same"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_GET_DEVICE_ATTR, "the same: the TSC's offset"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_DEVICE_ATTR, "the same: the TSC's offset"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_TRANSLATE, "a debugger's addresses"),
    IOCTL(V | M, JAIL_NEED_KVM, KVM_SET_GUEST_DEBUG,
          "a single step, behind an instruction that blocks interrupts"),

    /* --- networks --- */
    IOCTL(M | V, JAIL_NEED_TAP | FILS, TUNSETOFFLOAD, "the guest's driver chooses its offloads"),
    SOCKET(INET, AF_INET, SOCK_STREAM, "user-mode NAT: the guest's TCP connections"),
    SOCKET(INET, AF_INET, SOCK_DGRAM, "user-mode NAT: UDP and ping"),
    SOCKET(INET, AF_INET6, SOCK_STREAM, "user-mode NAT: the guest's TCP connections"),
    SOCKET(INET, AF_INET6, SOCK_DGRAM, "user-mode NAT: UDP and ping"),
    SOCKET(UNIX, AF_UNIX, SOCK_STREAM, "vsock: a connection to a unix socket"),
    SOCKET(UNIX, AF_UNIX, SOCK_SEQPACKET, "a wire is connected again"),
    ROW("connect", M, SOCK, "the same"),
    ROW("bind", M, SOCK, "a wire listens again; UDP of user-mode NAT"),
    ROW("listen", M, SOCK, "a wire listens again"),
    ROW("accept4", M, SOCK, "connections from a wire, a vsock, a published port"),
    ROW("accept", M, SOCK, "the same: libslirp"),
    ROW("recvfrom", M, SOCK, "what arrives"),
    ROW("recvmsg", M, SOCK, "what arrives"),
    ROW("sendto", M, SOCK, "what leaves"),
    ROW("sendmsg", M, SOCK, "what leaves"),
    ROW("getsockopt", M, SOCK, "did a connection come about"),
    ROW("setsockopt", M, SOCK, "no delay, buffer sizes"),
    ROW("getsockname", M, SOCK, "which port a connection got"),
    ROW("getpeername", M, SOCK, "who connected"),
    ROW("shutdown", M, SOCK, "half of a connection ends"),
    {"socket",
     M,
     INET,
     EACCES,
     {{0, LOW, AF_UNIX}, {1, SOCK_TYPE, SOCK_DGRAM}},
     "AF_UNIX, SOCK_DGRAM",
     "the C library's if_nametoindex, for a resolver with a link-local address"},
    IOCTL(M, INET, SIOCATMARK, "user-mode NAT: urgent data"),
    ROW("getppid", M, INET, "a NIC that is plugged: a seed of its library, without a /dev/urandom"),
    ROW("epoll_create1", M, INET, "a NIC that is plugged: its sockets"),
    ROW("unlink", M | S, UNIX | FILS,
        "the sockets that the machine made, at its end; a saved machine that is not complete"),

    /* --- files by name: a shared directory, the resolver's configuration, granted directories --- */
    ROW("openat", M | S, TREE | INET | FILS, "files of a shared directory; /etc/resolv.conf; saved machines"),
    {"openat",
     M,
     ROLE_NEED_NO_FILES,
     ENOENT,
     {{0}},
     NULL,
     "what the C library looks for on its own: there is nothing"},
    ROW("openat2", M, TREE, "a name that must not leave its directory"),
    ROW("getdents64", M, TREE | FILS, "a directory's names"),
    ROW("readlinkat", M, TREE, "shared directory"),
    ROW("fstatfs", M, TREE, "shared directory"),
    ROW("mkdirat", M, TREE, "shared directory"),
    ROW("mknodat", M, TREE, "shared directory: pipes and sockets; devices need a capability that is gone"),
    ROW("symlinkat", M, TREE, "shared directory"),
    ROW("linkat", M, TREE, "shared directory"),
    ROW("renameat", M, TREE, "shared directory"),
    ROW("renameat2", M, TREE, "shared directory"),
    ROW("rename", M | S, FILS, "a file that is complete takes its name"),
    ROW("unlinkat", M, TREE | FILS, "shared directory"),
    ROW("fchmodat", M, TREE, "shared directory"),
    ROW("fchownat", M, TREE, "shared directory"),
    ROW("utimensat", M, TREE, "shared directory"),
    ROW("fadvise64", M, FILS, "a saved machine is read from its beginning to its end"),
    ROW("geteuid", M, FILS, "who may use the control socket"),
    ROW("access", M, FILS, "is there a file of that name: saved machines"),
    ROW("readlink", M, FILS, "the C library's realpath"),
    ROW("getcwd", M, FILS, "a saved machine says where it ran"),
    ROW("umask", M, FILS, "a socket that only its owner may use"),
    {"rmdir", M, FILS, EPERM, {{0}}, NULL, "a named machine's directory: its supervisor removes it"},
    ROW("memfd_create", M, 0, "a reboot: the kernel that lies on the disk"),
};
const size_t role_table_len = ARRAY_SIZE(role_table);
