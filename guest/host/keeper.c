/*
 * The keeper: between fonda-monitor, whose child it becomes, and the machine.
 *
 *     keeper_run: fonda-vmm starts --> its init connects to v_1 --> request --> READY: told to the creator
 *                 --> relay until the program has ended --> fonda-vmm is told to end --> exit with that
 * status
 *
 * Invariant: whichever of the two dies, the other does: fonda-vmm has this process's death as a signal, and
 * its end ends relay_run().
 */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"

#define BOOT_MS        55000 /* a little less than fonda-monitor waits for a create */
#define END_MS         5000
#define STATUS_OURS    125
#define VMM_ARGS_MAX   128
#define KERNEL_OPTIONS "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on"

struct keeper {
    const struct options *o;
    int dir, report;
    int listener, vmm_fd, signal_fd;
    pid_t vmm;
    int terminal;
    struct wire wire;
};

_Noreturn static void fail(struct keeper *k, int status, const char *text)
{
    char message[ERR_TEXT_MAX + 1];
    message[0] = (char)status;
    snprintf(message + 1, sizeof(message) - 1, "%s", text);
    if (k->report >= 0) {
        (void)!write(k->report, message, 1 + strlen(message + 1));
    }
    if (k->vmm > 0) {
        kill(k->vmm, SIGKILL);
    }
    _exit(status);
}

/* ---- fonda-vmm ---- */

struct args {
    char *argv[VMM_ARGS_MAX + 1];
    unsigned count;
    bool failed;
};

static void add(struct args *args, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct args *args, const char *fmt, ...)
{
    char *text = NULL;
    va_list list;
    va_start(list, fmt);
    if (args->count == VMM_ARGS_MAX || vasprintf(&text, fmt, list) < 0) {
        args->failed = true;
    } else {
        args->argv[args->count++] = text;
    }
    va_end(list);
}

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static long long number_of(const json_t *object, const char *name)
{
    return (long long)json_integer_value(json_object_get(object, name));
}

static void build_args(const json_t *machine, char **shares, struct args *args)
{
    size_t i;
    json_t *item;
    add(args, "%s", text_of(machine, "vmm"));
    add(args, "--kernel=%s", text_of(machine, "kernel"));
    add(args, "--initrd=%s", text_of(machine, "initrd"));
    add(args, "--append=%s", KERNEL_OPTIONS);
    add(args, "--memory=%lldK", number_of(machine, "memory") / 1024);
    add(args, "--cpus=%lld", number_of(machine, "cpus"));
    if (text_of(machine, "engine")[0]) {
        add(args, "--engine=%s", text_of(machine, "engine"));
    }
    add(args, "--serial=console.log");
    add(args, "--control=c");
    add(args, "--vsock=v");
    add(args, "--disk=%s,format=qcow2", text_of(machine, "disk"));
    add(args, "--net=%s", json_is_true(json_object_get(machine, "network")) ? "user" : "none");
    json_array_foreach(json_object_get(machine, "publish"), i, item)
    {
        add(args, "--publish=%s", json_string_value(item));
    }
    for (; shares && *shares; shares++) {
        add(args, "--share=%s", *shares);
    }
    add(args, "--no-reboot");
}

static void start_vmm(struct keeper *k, const json_t *machine, char **shares)
{
    struct args args = {0};
    build_args(machine, shares, &args);
    if (args.failed) {
        fail(k, STATUS_OURS, "too many ports and volumes for a machine");
    }
    pid_t parent = getpid();
    k->vmm = fork();
    if (k->vmm == 0) {
        sigset_t none;
        int null = open("/dev/null", O_RDONLY);
        int log = openat(k->dir, "vmm.log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || fchdir(k->dir) < 0) {
            _exit(127);
        }
        dup2(null, 0);
        dup2(log, 1);
        dup2(log, 2);
        close_range(3, ~0u, 0);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execv(args.argv[0], args.argv);
        dprintf(2, "cannot run '%s': %s\n", args.argv[0], strerror(errno));
        _exit(127);
    }
    k->vmm_fd = k->vmm < 0 ? -1 : (int)syscall(SYS_pidfd_open, k->vmm, 0);
    if (k->vmm_fd < 0) {
        fail(k, STATUS_OURS, "cannot start fonda-vmm");
    }
}

/* The last line of a file; what the machine's kernel wrote is not trusted. */
static void last_line(struct keeper *k, const char *name, char *buf, size_t size)
{
    char text[400];
    auto_close int fd = openat(k->dir, name, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    ssize_t n = end < 0 ? 0 : pread(fd, text, sizeof(text) - 1, MAX(end - (off_t)sizeof(text) + 1, (off_t)0));
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r')) {
        n--;
    }
    ssize_t from = MAX(n, (ssize_t)0);
    while (from > 0 && text[from - 1] != '\n') {
        from--;
    }
    link_clean((const uint8_t *)text + from, (size_t)(MAX(n, (ssize_t)0) - from), buf, size);
}

_Noreturn static void vmm_ended(struct keeper *k)
{
    char vmm[300], console[300], text[ERR_TEXT_MAX];
    last_line(k, "vmm.log", vmm, sizeof(vmm));
    last_line(k, "console.log", console, sizeof(console));
    const char *said = strncmp(vmm, "fonda-vmm: error: ", 18) == 0 ? vmm + 18 : console[0] ? console : vmm;
    snprintf(text, sizeof(text), "the machine did not start: %s", said[0] ? said : "fonda-vmm ended at once");
    fail(k, STATUS_OURS, text);
}

/* ---- the init inside ---- */

static void listen_for_init(struct keeper *k)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char name[16];
    snprintf(name, sizeof(name), "v_%u", WIRE_HOST_PORT);
    (void)unlinkat(k->dir, name, 0);
    link_path(k->dir, name, address.sun_path);
    k->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (k->listener < 0 || bind(k->listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(k->listener, 1) < 0) {
        fail(k, STATUS_OURS, "cannot listen for the machine's init");
    }
}

/* Its one connection: nobody else inside can make another. */
static void await_init(struct keeper *k)
{
    struct pollfd fds[] = {{.fd = k->listener, .events = POLLIN}, {.fd = k->vmm_fd, .events = POLLIN}};
    int rc;
    do {
        rc = poll(fds, ARRAY_SIZE(fds), BOOT_MS);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0) {
        fail(k, STATUS_OURS, "the machine's init did not answer in time (see console.log in its directory)");
    }
    int fd = fds[0].revents ? accept4(k->listener, NULL, NULL, SOCK_CLOEXEC) : -1;
    if (fd < 0) {
        vmm_ended(k);
    }
    close(k->listener);
    wire_init(&k->wire, fd);
}

static void prepare_program(struct keeper *k, json_t *config)
{
    struct wire_texts request = {0};
    struct wire_frame frame;
    struct err err = {.code = 0};
    if (request_first(config, &request, &err) < 0) {
        fail(k, STATUS_OURS, err.text);
    }
    int rc = wire_send_request(&k->wire, &request);
    wire_texts_done(&request);
    rc = rc < 0 ? rc : wire_wait(&k->wire, true, BOOT_MS, &frame);
    if (rc <= 0) {
        vmm_ended(k);
    }
    if (frame.kind == WIRE_FAILED && frame.size) {
        link_clean(frame.data + 1, frame.size - 1, err.text, sizeof(err.text));
        fail(k, frame.data[0], err.text);
    }
    if (frame.kind != WIRE_READY) {
        fail(k, STATUS_OURS, "the machine's init answers with what is no answer");
    }
    wire_take(&k->wire, &frame);
}

/* A connection of its own, made by a process of its own: an init that hangs holds nothing up. */
static void pass_signal(void *opaque, int signal)
{
    const struct keeper *k = opaque;
    if (signal == SIGCHLD) {
        while (waitpid(0, NULL, WNOHANG) > 0) { /* not fonda-vmm: it is in a group of its own */
        }
        return;
    }
    if (fork() == 0) {
        struct wire_texts request = {0};
        struct err err = {.code = 0};
        wire_add(&request, "verb", "kill");
        wire_add_number(&request, "signal", (uint64_t)signal);
        _exit(link_ask(k->dir, &request, NULL, &err) < 0);
    }
}

/* ---- the end ---- */

/* Its status when it ended by itself; disks are closed as they should be. */
static int end_vmm(struct keeper *k, bool ask)
{
    struct pollfd ended = {.fd = k->vmm_fd, .events = POLLIN};
    int status = 0;
    if (ask) {
        (void)link_vmm(k->dir, "quit", NULL, NULL);
    }
    if (poll(&ended, 1, END_MS) <= 0) {
        kill(k->vmm, SIGKILL);
    }
    while (waitpid(k->vmm, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int hold_lock(struct keeper *k)
{
    char text[16];
    int fd = openat(k->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* until this process ends */
    int len = snprintf(text, sizeof(text), "%d", (int)getpid());
    return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && pwrite(fd, text, (size_t)len, 0) == len ? 0 : -1;
}

static void take_signals(struct keeper *k)
{
    sigset_t all;
    sigfillset(&all);
    static const int left[] = {SIGSEGV, SIGBUS,  SIGILL,  SIGFPE,  SIGTRAP, SIGSYS,
                               SIGABRT, SIGPIPE, SIGTTIN, SIGTTOU, SIGTSTP};
    for (size_t i = 0; i < ARRAY_SIZE(left); i++) {
        sigdelset(&all, left[i]);
    }
    sigprocmask(SIG_BLOCK, &all, NULL);
    k->signal_fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTTIN, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
}

static void take_terminal(struct keeper *k)
{
    struct err err = {.code = 0};
    int fd = relay_terminal(k->o->console_socket, &err);
    if (fd < 0) {
        fail(k, STATUS_OURS, err.text);
    }
    ioctl(fd, TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) {
        dup2(fd, i);
    }
    close(fd);
    k->terminal = 0;
}

_Noreturn void keeper_run(const struct options *o, int dir, int report)
{
    static struct keeper keeper;
    struct keeper *k = &keeper;
    struct err err = {.code = 0};
    char **shares = NULL;
    *k = (struct keeper){.o = o, .dir = dir, .report = report, .listener = -1, .vmm_fd = -1, .terminal = -1};
    setsid();
    take_signals(k);
    json_t *config = link_load(dir, "config.json", &err),
           *machine = config ? link_load(dir, "machine.json", &err) : NULL;
    if (!machine || request_shares(config, &shares, &err) < 0) {
        fail(k, STATUS_OURS, err.text);
    }
    if (hold_lock(k) < 0) {
        fail(k, STATUS_OURS, "the machine has a keeper already");
    }
    if (o->console_socket) {
        take_terminal(k);
    }
    listen_for_init(k);
    start_vmm(k, machine, shares);
    setpgid(k->vmm, k->vmm);
    await_init(k);
    prepare_program(k, config);
    json_decref(config);
    json_decref(machine);
    close(k->report);
    k->report = -1;
    struct relay relay = {.wire = &k->wire,
                          .in = 0,
                          .out = 1,
                          .err = k->terminal >= 0 ? -1 : 2,
                          .signal_fd = k->signal_fd,
                          .watch_fd = k->vmm_fd,
                          .terminal = k->terminal,
                          .on_signal = pass_signal,
                          .opaque = k};
    int status = relay_run(&relay, &err);
    int vmm_status = end_vmm(k, status >= 0);
    _exit(status >= 0 ? status : vmm_status);
}
