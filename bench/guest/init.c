/*
 * /init of the benchmark guest. Its first act is to print the marker line by which the driver stops the
 * boot's clock.
 *
 * Kernel command line:
 *   bench.run=a,b,c   rows to run, in this order; without it, stay up (the driver is measuring the boot) and
 * power off later bench.reps=N      times to run each row (default 1) bench.scale=F     handed to each row
 *   bench.jobs=N      copies of each row to run at the same time (default 1)
 *   bench.limit=S     seconds after which a row is killed (default 300)
 * Lines on the console: "@start ROW", then what the row prints, then "@end ROW"; after the last, "@done".
 * Before the first and after the last, "@clock NANOSECONDS" lets the driver check this machine's clock
 * against the host's.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MARKER "FONDA-BENCH-INIT\n"

static char cmdline[4096];

/* The value of key=value on the kernel command line, copied into buf, or NULL. */
static const char *argument(const char *key, char *buf, size_t size)
{
    size_t len = strlen(key);
    for (const char *p = cmdline; (p = strstr(p, key)); p += len) {
        if (p[len] != '=' || (p != cmdline && p[-1] != ' ')) {
            continue;
        }
        size_t n = strcspn(p + len + 1, " \n");
        if (n >= size) {
            n = size - 1;
        }
        memcpy(buf, p + len + 1, n);
        buf[n] = 0;
        return buf;
    }
    return NULL;
}

static void power_off(void)
{
    sync();
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}

static void print_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("@clock %lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
}

static void run_row(const char *row, const char *scale, int jobs, unsigned limit)
{
    printf("@start %s\n", row);
    for (int i = 0; i < jobs; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            /* SIGALRM survives exec and ends a row that hangs. */
            alarm(limit);
            execl("/bin/guest", "guest", row, scale, (char *)NULL);
            _exit(127);
        }
    }
    int status;
    while (wait(&status) > 0) {
        if (WIFSIGNALED(status)) {
            printf("%s FAIL signal %d\n", row, WTERMSIG(status));
        }
    }
    printf("@end %s\n", row);
}

int main(void)
{
    /* The kernel has opened /dev/console as 0, 1 and 2. */
    if (write(1, MARKER, sizeof(MARKER) - 1) < 0) {
        power_off();
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/tmp", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL) != 0 || mount("sysfs", "/sys", "sysfs", 0, NULL) != 0 ||
        mount("dev", "/dev", "devtmpfs", 0, NULL) != 0 || mount("tmp", "/tmp", "tmpfs", 0, NULL) != 0) {
        printf("init FAIL mount\n");
    }
    int fd = open("/proc/cmdline", O_RDONLY);
    if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) <= 0) {
        printf("init FAIL cmdline\n");
    }
    setenv("BENCH_ROOT", "", 1);
    setenv("BENCH_TMP", "/tmp", 1);

    char rows[2048], reps[16], scale[32], jobs[16], limit[16];
    if (!argument("bench.run", rows, sizeof(rows))) {
        sleep(5);
        power_off();
    }
    int count = argument("bench.reps", reps, sizeof(reps)) ? atoi(reps) : 1;
    int copies = argument("bench.jobs", jobs, sizeof(jobs)) ? atoi(jobs) : 1;
    int seconds = argument("bench.limit", limit, sizeof(limit)) ? atoi(limit) : 300;
    if (!argument("bench.scale", scale, sizeof(scale))) {
        strcpy(scale, "1");
    }
    print_clock();
    for (char *row = strtok(rows, ","); row; row = strtok(NULL, ",")) {
        for (int i = 0; i < count; i++) {
            run_row(row, scale, copies, (unsigned)seconds);
        }
    }
    print_clock();
    printf("@done\n");
    fflush(stdout);
    usleep(100000);
    power_off();
    return 0;
}
