/*
 * The file that is /proc/meminfo in a container with a memory limit (container/meminfo.h): written anew every
 * second from its memory cgroup while it runs. In place, as the file is mounted, and in one write of the same
 * length.
 */
#include "container/meminfo.h"
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define TEXT_MAX 8192u /* of a cgroup's file */

static ssize_t read_text(int dir, const char *name, char text[static TEXT_MAX])
{
    auto_close int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, TEXT_MAX - 1);
    text[n > 0 ? n : 0] = '\0';
    return n;
}

static uint64_t read_number(int dir, const char *name)
{
    char text[TEXT_MAX];
    return read_text(dir, name, text) > 0 ? strtoull(text, NULL, 10) : 0;
}

/* "NAME VALUE" in memory.stat. */
static uint64_t member(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = text; p && *p; p = strchr(p, '\n'), p += p != NULL) {
        if (strncmp(p, name, n) == 0 && p[n] == ' ') {
            return strtoull(p + n, NULL, 10);
        }
    }
    return 0;
}

/* The path of process pid in the hierarchy that has `controller`, NULL: v2; proc_pid_cgroup(5). */
static bool find_path(pid_t pid, const char *controller, char *path, size_t size)
{
    char name[64], line[PATH_MAX + 64];
    snprintf(name, sizeof(name), "/proc/%d/cgroup", (int)pid);
    FILE *f = fopen(name, "re");
    bool found = false;
    while (f && !found && fgets(line, sizeof(line), f)) {
        char *rest = line, *list;
        strsep(&rest, ":");
        list = strsep(&rest, ":");
        if (!rest) {
            continue;
        }
        rest[strcspn(rest, "\n")] = '\0';
        char *save = NULL;
        for (char *one = strtok_r(list, ",", &save); one && controller; one = strtok_r(NULL, ",", &save)) {
            found = found || strcmp(one, controller) == 0;
        }
        found = controller ? found : !*list;
        if (found) {
            snprintf(path, size, "%s", rest);
        }
    }
    if (f) {
        fclose(f);
    }
    return found;
}

/* Where that hierarchy is mounted; proc_pid_mountinfo(5). */
static bool find_mount(const char *controller, char *mount, size_t size)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    char line[2 * PATH_MAX], place[PATH_MAX], options[256];
    bool found = false;
    while (f && !found && fgets(line, sizeof(line), f)) {
        char *type = strstr(line, controller ? " - cgroup " : " - cgroup2 ");
        if (!type || sscanf(line, "%*s %*s %*s %*s %4095s", place) != 1) {
            continue;
        }
        found = !controller;
        if (controller && sscanf(type, " - cgroup %*s %255s", options) == 1) {
            char *save = NULL;
            for (char *one = strtok_r(options, ",", &save); one; one = strtok_r(NULL, ",", &save)) {
                found = found || strcmp(one, controller) == 0;
            }
        }
        if (found) {
            snprintf(mount, size, "%s", place);
        }
    }
    if (f) {
        fclose(f);
    }
    return found;
}

static int open_cgroup(struct monitor *m)
{
    char mount[PATH_MAX], path[PATH_MAX], full[2 * PATH_MAX];
    m->memory.v2 =
        !find_path(m->pid, "memory", path, sizeof(path)) || !find_mount("memory", mount, sizeof(mount));
    if (m->memory.v2 &&
        (!find_path(m->pid, NULL, path, sizeof(path)) || !find_mount(NULL, mount, sizeof(mount)))) {
        return -1;
    }
    /* systemd moves itself there; what it has below the container's cgroup counts too. */
    char *own = strstr(path, "/init.scope");
    if (own && own[strlen("/init.scope")] == '\0') {
        *own = '\0';
    }
    snprintf(full, sizeof(full), "%s%s", mount, path);
    return open(full, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static void refresh(struct monitor *m)
{
    struct memory *mem = &m->memory;
    char stat[TEXT_MAX], text[MEMINFO_MAX];
    struct sysinfo host = {0};
    struct meminfo info = {.limit = m->o.memory};
    if (read_text(mem->cgroup_fd, "memory.stat", stat) <= 0) {
        return;
    }
    bool v2 = mem->v2;
    info.used = read_number(mem->cgroup_fd, v2 ? "memory.current" : "memory.usage_in_bytes");
    info.cache = member(stat, v2 ? "file" : "total_cache");
    info.inactive = member(stat, v2 ? "inactive_file" : "total_inactive_file");
    info.shmem = member(stat, v2 ? "shmem" : "total_shmem");
    info.reclaimable = v2 ? member(stat, "slab_reclaimable") : 0;
    info.swap_limit = m->o.swap;
    if (!m->o.swap && sysinfo(&host) == 0) {
        info.swap_limit = (uint64_t)host.totalswap * host.mem_unit;
    }
    info.swap_used = v2 ? read_number(mem->cgroup_fd, "memory.swap.current") : member(stat, "total_swap");
    size_t n = meminfo_format(&info, text);
    if (pwrite(mem->file_fd, text, n, 0) != (ssize_t)n && !mem->told) {
        mem->told = true;
        log_warning("cannot write '%s': %s", m->o.meminfo, strerror(errno));
    }
}

static void on_timer(struct loop_timer *timer)
{
    struct monitor *m = CONTAINER_OF(timer, struct monitor, memory.timer);
    refresh(m);
    loop_timer_set(&m->loop, timer, SECOND_NS);
}

void memory_begin(struct monitor *m)
{
    struct memory *mem = &m->memory;
    memory_end(m);
    if (!m->o.meminfo || !m->o.memory) {
        return;
    }
    mem->cgroup_fd = open_cgroup(m);
    mem->file_fd = open(m->o.meminfo, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    mem->timer.fire = on_timer;
    mem->open = true;
    if (mem->cgroup_fd < 0 || mem->file_fd < 0) {
        log_warning("the container's /proc/meminfo stays as it is: %s", strerror(errno));
        memory_end(m);
        return;
    }
    on_timer(&mem->timer);
}

void memory_end(struct monitor *m)
{
    struct memory *mem = &m->memory;
    loop_timer_stop(&m->loop, &mem->timer);
    if (mem->open && mem->cgroup_fd >= 0) {
        close(mem->cgroup_fd);
    }
    if (mem->open && mem->file_fd >= 0) {
        close(mem->file_fd);
    }
    mem->open = false;
}
