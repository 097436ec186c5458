/*
 * fonda-init: the first process of a container that was made with --init. Starts the command, passes signals
 * on to it, waits for orphans, and ends with the command's status.
 *
 *   fonda-init [--] COMMAND [ARGUMENT]...
 *
 * Static, and of nothing but system calls: it stays in memory beside every such container.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, const char *name, const char *why)
{
    const char *parts[] = {"fonda-init: ", what, " '", name, "': ", why, "\n"};
    for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        (void)!write(2, parts[i], strlen(parts[i]));
    }
}

/* The command, in a process group of its own that has the terminal. Doesn't return. */
static void become(char **argv, const sigset_t *mask)
{
    setpgid(0, 0);
    if (isatty(0)) {
        signal(SIGTTOU, SIG_IGN); /* taking the terminal from the background */
        tcsetpgrp(0, getpgrp());
        signal(SIGTTOU, SIG_DFL);
    }
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(argv[0], argv);
    int code = errno;
    say("cannot run", argv[0],
        code == ENOENT   ? "not found"
        : code == EACCES ? "not executable"
                         : "the kernel refuses it");
    _exit(code == ENOENT ? 127 : 126);
}

/* Waits for everybody who has ended; true when the command was among them. */
static int reap(pid_t command, int *ret_status)
{
    int ended = 0;
    pid_t pid;
    int status;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == command) {
            *ret_status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            ended = 1;
        }
    }
    return ended;
}

int main(int argc, char **argv)
{
    sigset_t all;
    sigset_t old;
    int status = 0;
    argv++;
    if (*argv && strcmp(*argv, "--") == 0) {
        argv++;
    }
    if (!*argv) {
        say("usage: fonda-init [--] COMMAND", "ARGUMENT", "no command");
        return 2;
    }
    if (getpid() != 1) { /* orphans come here all the same */
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    }
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    pid_t command = fork();
    if (command == 0) {
        become(argv, &old);
    }
    if (command < 0) {
        say("cannot start", argv[0], "fork failed");
        return 126;
    }
    while (!reap(command, &status)) {
        siginfo_t info;
        int sig = sigwaitinfo(&all, &info);
        /* SIGCHLD: reap() looks. Stop signals of the terminal's go to its foreground group anyhow. */
        if (sig > 0 && sig != SIGCHLD && sig != SIGTTIN && sig != SIGTTOU && sig != SIGTSTP) {
            kill(command, sig);
        }
    }
    return status;
}
