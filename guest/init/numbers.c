/* What the machine says about itself. The host takes it as hearsay: its own figures are those of fonda-vmm.
 */
#include "guest/init/init.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/util.h"

#define COMMAND_MAX   256
#define PROCESSES_MAX 1024

static ssize_t read_small(const char *path, char *buf, size_t size)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);
    buf[MAX(n, (ssize_t)0)] = '\0';
    return n;
}

static uint64_t meminfo(const char *text, const char *name)
{
    const char *at = strstr(text, name);
    return at ? strtoull(at + strlen(name), NULL, 10) * 1024 : 0;
}

/* Command lines of programs; kernel threads have none. Returns how many there are. */
static unsigned processes(struct wire_texts *reply)
{
    DIR *dir = opendir("/proc");
    unsigned count = 0;
    for (struct dirent *e; dir && (e = readdir(dir)) && count < PROCESSES_MAX;) {
        char path[300], text[COMMAND_MAX], line[COMMAND_MAX + 32];
        if (!isdigit((unsigned char)e->d_name[0])) {
            continue;
        }
        snprintf(path, sizeof(path), "/proc/%s/cmdline", e->d_name);
        ssize_t n = read_small(path, text, sizeof(text));
        if (n <= 0) {
            continue;
        }
        count++;
        for (ssize_t i = 0; i + 1 < n; i++) {
            text[i] = text[i] == '\0' ? ' ' : text[i];
        }
        if (reply) {
            snprintf(line, sizeof(line), "%.16s %s", e->d_name, text);
            wire_add(reply, "process", line);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return count;
}

void numbers_stats(struct wire_texts *reply)
{
    char text[4096];
    struct sysinfo info = {0};
    read_small("/proc/meminfo", text, sizeof(text));
    wire_add_number(reply, "memory_total", meminfo(text, "MemTotal:"));
    wire_add_number(reply, "memory_available", meminfo(text, "MemAvailable:"));
    wire_add_number(reply, "processes", processes(NULL));
    sysinfo(&info);
    wire_add_number(reply, "uptime_s", (uint64_t)info.uptime);
    wire_add_number(reply, "load_percent", (uint64_t)info.loads[0] * 100 >> SI_LOAD_SHIFT);
}

void numbers_top(struct wire_texts *reply)
{
    processes(reply);
}
