/* What a machine uses: fonda-vmm's own figures, as the host's kernel counts them, and what the machine says.
 */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/options.h"
#include "base/util.h"

#define PROCESSES_MAX 1024

json_t *numbers_guest(const struct wire_texts *reply)
{
    static const char *const names[] = {"memory_total", "memory_available", "processes", "uptime_s",
                                        "load_percent"};
    json_t *guest = json_object();
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        const char *text = wire_one(reply, names[i]);
        uint64_t value;
        if (text && parse_uint(text, &value, NULL) == 0 && value <= INT64_MAX) {
            json_object_set_new(guest, names[i], json_integer((json_int_t)value));
        }
    }
    return guest;
}

json_t *numbers_processes(const struct wire_texts *reply)
{
    json_t *list = json_array();
    const char *text;
    size_t at = 0;
    while ((text = wire_get(reply, "process", &at)) && json_array_size(list) < PROCESSES_MAX) {
        char *end, command[256];
        unsigned long pid = strtoul(text, &end, 10);
        if (end == text || *end != ' ' || pid == 0 || pid > INT32_MAX) {
            continue;
        }
        link_clean((const uint8_t *)end + 1, strlen(end + 1), command, sizeof(command));
        json_array_append_new(list, json_pack("{s:I, s:s}", "pid", (json_int_t)pid, "command", command));
    }
    return list;
}

static int ask(const struct options *o, const char *verb, int *ret_dir, struct wire_texts *ret_reply,
               struct err *err)
{
    struct wire_texts request = {0};
    *ret_dir = link_open(o, err);
    wire_add(&request, "verb", verb);
    int rc = *ret_dir < 0 ? *ret_dir : link_ask(*ret_dir, &request, ret_reply, err);
    wire_texts_done(&request);
    return rc;
}

static int print(json_t *json)
{
    int rc = json_dumpf(json, stdout, JSON_COMPACT);
    printf("\n");
    json_decref(json);
    return rc < 0 || fflush(stdout) != 0 ? 1 : 0;
}

int cmd_ps(const struct options *o, struct err *err)
{
    struct wire_texts reply = {0};
    auto_close int dir = -1;
    int rc = ask(o, "top", &dir, &reply, err);
    rc = rc < 0 ? rc : print(numbers_processes(&reply));
    wire_texts_done(&reply);
    return rc;
}

static ssize_t read_proc(json_int_t pid, const char *name, char *buf, size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%lld/%s", (long long)pid, name);
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);
    buf[MAX(n, (ssize_t)0)] = '\0';
    return n;
}

/* As fonda-oci says it of a cgroup, from /proc/PID/stat (fields 14 and 15: ticks) and statm. */
static json_t *usage_of(json_int_t pid, json_int_t memory, json_int_t processes)
{
    char stat[1024], statm[128];
    unsigned long long user = 0, system = 0, pages = 0;
    read_proc(pid, "stat", stat, sizeof(stat));
    read_proc(pid, "statm", statm, sizeof(statm));
    const char *rest = strrchr(stat, ')');
    if (!rest ||
        sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2 ||
        sscanf(statm, "%*u %llu", &pages) != 1) {
        return NULL;
    }
    json_int_t total =
        (json_int_t)((user + system) * (1000000000ull / (unsigned long long)sysconf(_SC_CLK_TCK)));
    return json_pack("{s:{s:{s:I}}, s:{s:{s:I, s:I}}, s:{s:I}}", "cpu", "usage", "total", total, "memory",
                     "usage", "usage", (json_int_t)pages * sysconf(_SC_PAGESIZE), "limit", memory, "pids",
                     "current", processes);
}

int cmd_events(const struct options *o, struct err *err)
{
    struct wire_texts reply = {0};
    struct err silent = {.code = 0};
    json_t *status = NULL, *stats = NULL;
    auto_close int dir = link_open(o, err);
    if (dir < 0 || link_vmm(dir, "status", &status, err) < 0) {
        return err->code;
    }
    auto_close int again = -1;
    /* A machine that says nothing of itself still has figures. */
    json_t *guest = ask(o, "stats", &again, &reply, &silent) < 0 ? json_object() : numbers_guest(&reply);
    wire_texts_done(&reply);
    json_t *data = usage_of(link_vmm_pid(dir), json_integer_value(json_object_get(status, "memory_bytes")),
                            json_integer_value(json_object_get(guest, "processes")));
    json_decref(status);
    if (!data || link_vmm(dir, "stats", &stats, err) < 0) {
        json_decref(data);
        json_decref(guest);
        return err->code ? err->code : err_set(err, -ESRCH, "the machine has ended");
    }
    json_object_set_new(stats, "type", json_string("stats"));
    json_object_set_new(stats, "id", json_string(o->id));
    json_object_set_new(stats, "data", data);
    json_object_set_new(stats, "guest", guest);
    return print(stats);
}
