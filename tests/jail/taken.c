/*
 * What makes fonda-vmm-taken of fonda-vmm: whole as it is shipped, but with a build of the jail that hands
 * one thread to us once that is locked in. FONDA_TAKEN="ROLE DEED ARGUMENT" in the environment says which
 * thread, and what it does; without it nothing happens. Not shipped, and the shipped program has neither
 * variable nor hook.
 *
 * Prints "taken: refused ERRNO" or "taken: done" to the standard error, and ends the machine with status 77.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/jail_int.h"
#include "tests/jail/captive.h"

#define STATUS_TAKEN 77
#define FDS_MAX      256

struct captive captive = {.share_fd = -1, .outside_fd = -1};
static char role[32], deed[32], argument[4096];

/* The main thread's, whose list lets it look: the share's, which has a file "inside", and any other. */
static void find_directories(void)
{
    for (int fd = 3; fd < FDS_MAX; fd++) {
        struct stat st;
        if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
            int inside = openat(fd, "inside", O_RDONLY | O_CLOEXEC);
            *(inside < 0 ? &captive.outside_fd : &captive.share_fd) = fd;
            if (inside >= 0) {
                close(inside);
            }
        }
    }
}

static void taken(const char *by)
{
    char text[64];
    if (strcmp(by, "main") == 0) {
        find_directories();
    }
    for (size_t i = 0; strcmp(by, role) == 0 && i < deed_count; i++) {
        if (strcmp(deeds[i].name, deed) == 0) {
            int rc = deeds[i].run();
            int len = rc < 0 ? snprintf(text, sizeof(text), "taken: refused %s\n", strerrorname_np(-rc))
                             : snprintf(text, sizeof(text), "taken: done\n");
            (void)!write(STDERR_FILENO, text, (size_t)len);
            syscall(SYS_exit_group, STATUS_TAKEN);
        }
    }
}

__attribute__((constructor)) static void set_up(void)
{
    const char *text = getenv("FONDA_TAKEN");
    if (text && sscanf(text, "%31s %31s %4095s", role, deed, argument) >= 2) {
        captive.argument = argument;
        jail_test_taken = taken;
    }
}
