/*
 * Two processes out of one: the jail's, and its supervisor outside, which is the one that whoever started us
 * knows.
 *
 *     supervisor                                       inside (pid 1 of its pid namespace)
 *     fork, fork (the step between is gone at once) ---> dies with the supervisor (PR_SET_PDEATHSIG)
 *     writes the user map <------------- 'M' ----------- unshares the user namespace
 *                         ---- 0 or an errno ---------->
 *     hands signals on from now on <---- 'R' ----------- the jail is closed
 *     SIGTERM, SIGINT, SIGHUP -------------------------> the same
 *     ends in the same way <---------------------------- ends
 *
 * The supervisor takes nothing from the inside but those three letters and one word, which its program
 * judges.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/util.h"
#include "sandbox/jail_int.h"

struct jail the_jail = {.supervisor_fd = -1};

struct supervisor {
    const struct jail *jail;
    pid_t inside;
    int fd;        /* to the inside; -1: closed */
    int signal_fd; /* SIGCHLD and what is handed on */
    bool ready;
    char word[JAIL_WORD_MAX]; /* jail_again's */
    sigset_t before;          /* the signal mask that the program was started with */
};

static const int handed_on[] = {SIGTERM, SIGINT, SIGHUP};

/* --- the supervisor --- */

static _Noreturn void die_by(const struct supervisor *sv, int sig)
{
    const struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none); /* the inside has left the one that counts */
    signal(sig, SIG_DFL);
    raise(sig);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, sig);
    sigprocmask(SIG_UNBLOCK, &one, NULL);
    _exit(128 + sig);
}

static _Noreturn void end_like(const struct supervisor *sv, int status)
{
    const struct jail_config *config = &sv->jail->config;
    if (config->ended) {
        config->ended(config->opaque);
    }
    if (WIFEXITED(status) && sv->word[0] && config->again) {
        sigprocmask(SIG_SETMASK, &sv->before, NULL);
        _exit(config->again(config->opaque, sv->word));
    }
    if (WIFEXITED(status)) {
        _exit(WEXITSTATUS(status));
    }
    if (WTERMSIG(status) == SIGSYS && config->violated) {
        _exit(config->violated());
    }
    die_by(sv, WTERMSIG(status));
}

/* Returns when no child of ours has ended (the inside, or one that the program had before). */
static void reap(const struct supervisor *sv)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == sv->inside) {
            end_like(sv, status);
        }
    }
}

/* Before the inside has its handlers, it is pid 1 and ignores what it is sent. */
static void hand_on(const struct supervisor *sv, int sig)
{
    if (sv->ready) {
        kill(sv->inside, sig);
    } else {
        kill(sv->inside, SIGKILL);
        waitpid(sv->inside, NULL, 0);
        die_by(sv, sig);
    }
}

static void take_signals(const struct supervisor *sv)
{
    struct signalfd_siginfo info;
    while (read(sv->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGCHLD) {
            reap(sv);
        } else {
            hand_on(sv, (int)info.ssi_signo);
        }
    }
}

static void take_letter(struct supervisor *sv)
{
    char letter = 0;
    ssize_t n = read(sv->fd, &letter, 1);
    if (n < 0 && errno == EINTR) {
        return;
    }
    if (n == 1 && letter == 'M') {
        int rc = ns_write_maps(sv->inside, true);
        if (write(sv->fd, &rc, sizeof(rc)) == sizeof(rc)) {
            return;
        }
    }
    if (n == 1 && letter == 'R') {
        sv->ready = true;
        return;
    }
    if (n == 1 && letter == 'A' &&
        recv(sv->fd, sv->word, sizeof(sv->word), MSG_WAITALL) == sizeof(sv->word)) {
        sv->word[sizeof(sv->word) - 1] = '\0';
        return;
    }
    close(sv->fd);
    sv->fd = -1;
}

static _Noreturn void supervise(struct supervisor *sv)
{
    for (;;) {
        struct pollfd fds[] = {{.fd = sv->signal_fd, .events = POLLIN}, {.fd = sv->fd, .events = POLLIN}};
        if (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR) {
            kill(sv->inside, SIGKILL);
            _exit(128 + SIGKILL);
        }
        if (fds[1].revents) {
            take_letter(sv);
        }
        if (fds[0].revents) {
            take_signals(sv);
        }
    }
}

/* --- the inside --- */

/* The supervisor may have died before PR_SET_PDEATHSIG counted. */
static void die_with_supervisor(int fd)
{
    struct pollfd alive = {.fd = fd, .events = 0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (poll(&alive, 1, 0) == 1 && (alive.revents & POLLHUP)) {
        _exit(128 + SIGKILL);
    }
}

int split_ask_map(struct jail *jail)
{
    int rc;
    if (write(jail->supervisor_fd, "M", 1) != 1 ||
        recv(jail->supervisor_fd, &rc, sizeof(rc), MSG_WAITALL) != sizeof(rc)) {
        return -EPIPE;
    }
    return rc;
}

void split_ready(struct jail *jail)
{
    die_with_supervisor(jail->supervisor_fd); /* a change of credentials may have taken it back */
    (void)!write(jail->supervisor_fd, "R", 1);
}

int jail_again(const char *word)
{
    char message[1 + JAIL_WORD_MAX] = "A";
    if (!the_jail.split) {
        return -ENOSYS;
    }
    if (strlen(word) >= JAIL_WORD_MAX) {
        return -ENAMETOOLONG;
    }
    strcpy(message + 1, word);
    return write(the_jail.supervisor_fd, message, sizeof(message)) == sizeof(message) ? 0 : -EPIPE;
}

pid_t jail_pid(void)
{
    return the_jail.split ? the_jail.outer_pid : getpid();
}

/* The supervisor keeps its own two descriptors of what it shares with the inside. */
static void close_others(const struct supervisor *sv)
{
    unsigned low = (unsigned)MIN(sv->fd, sv->signal_fd), high = (unsigned)MAX(sv->fd, sv->signal_fd);
    if (low > 3) {
        close_range(3, low - 1, 0);
    }
    if (high > low + 1) {
        close_range(low + 1, high - 1, 0);
    }
    close_range(high + 1, ~0u, 0);
}

struct ends {
    int fds[2]; /* of the socket pair: outside, inside */
    int report[2], gate[2];
};

static int open_ends(struct ends *ends)
{
    *ends = (struct ends){{-1, -1}, {-1, -1}, {-1, -1}};
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends->fds) < 0 ||
                   pipe2(ends->report, O_CLOEXEC) < 0 || pipe2(ends->gate, O_CLOEXEC) < 0
               ? -errno
               : 0;
}

/* The step between: takes the namespaces that a process can only give to its children, has the inside as its
 * child, and goes, so that the supervisor stays what it was and can start the program anew. Returns inside.
 */
static void step_between(struct jail *jail, struct ends *ends)
{
    char byte;
    ns_unshare_before_fork(jail);
    pid_t inside = fork();
    if (inside != 0) {
        (void)!write(ends->report[1], &inside, sizeof(inside));
        _exit(0);
    }
    close(ends->gate[1]);
    while (read(ends->gate[0], &byte, 1) < 0 &&
           errno == EINTR) { /* until the step between is gone: its end is not the one to die with */
    }
    close(ends->gate[0]);
    close(ends->report[0]);
    close(ends->report[1]);
    close(ends->fds[0]);
}

/* Outside. Returns the inside's process, which is this one's child by now (as its nearest subreaper), or -1.
 */
static pid_t await_inside(struct ends *ends, pid_t step)
{
    pid_t inside = -1;
    close(ends->fds[1]);
    close(ends->report[1]);
    close(ends->gate[0]);
    ssize_t n;
    do {
        n = read(ends->report[0], &inside, sizeof(inside));
    } while (n < 0 && errno == EINTR);
    close(ends->report[0]);
    while (waitpid(step, NULL, 0) < 0 && errno == EINTR) {
    }
    close(ends->gate[1]);
    return n == sizeof(inside) ? inside : -1;
}

static void become_inside(struct jail *jail, const struct supervisor *sv, int fd)
{
    close(sv->signal_fd);
    jail->supervisor_fd = fd;
    jail->split = true;
    die_with_supervisor(fd);
    sigprocmask(SIG_SETMASK, &sv->before, NULL);
    ns_unshare_early(jail);
}

static int watch_signals(struct supervisor *sv)
{
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    for (size_t i = 0; i < ARRAY_SIZE(handed_on); i++) {
        sigaddset(&watched, handed_on[i]);
    }
    sigprocmask(SIG_BLOCK, &watched, &sv->before);
    sv->signal_fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    return sv->signal_fd < 0 ? -errno : 0;
}

int jail_split(const struct jail_config *config, struct err *err)
{
    struct jail *jail = &the_jail;
    struct supervisor sv = {.jail = jail};
    struct ends ends;
    jail->config = *config;
    if (config->mode == JAIL_OFF) {
        return 0;
    }
    jail->outer_pid = getpid();
    jail->privileged = ns_is_privileged();
    jail->errors[JAIL_LAYER_USER] = jail->privileged ? -EAGAIN : 0; /* the inside takes it */
    int rc = open_ends(&ends);
    rc = rc < 0 ? rc : watch_signals(&sv);
    if (rc < 0) {
        return err_sys(err, rc, "cannot make the jail");
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t step = fork();
    if (step < 0) {
        return err_sys(err, -errno, "cannot make the jail");
    }
    if (step == 0) {
        step_between(jail, &ends);
        become_inside(jail, &sv, ends.fds[1]);
        return 0;
    }
    sv.inside = await_inside(&ends, step);
    if (sv.inside < 0) {
        sigprocmask(SIG_SETMASK, &sv.before, NULL);
        return err_set(err, -EAGAIN, "cannot make the jail: no process for it");
    }
    sv.fd = ends.fds[0];
    close_others(&sv);
    supervise(&sv);
}
