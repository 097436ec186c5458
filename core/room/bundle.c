/* From an instance's members to the options of container/bundle.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "container/bundle.h"
#include "core/room/room.h"

#define LISTS_MAX 16

const char *room_text(const json_t *object, const char *name)
{
    return json_string_value(json_object_get(object, name));
}

struct lists {
    const char **all[LISTS_MAX];
    unsigned count;
};

/* A list of texts as an array that ends with NULL; NULL: absent or empty. */
static const char *const *strings(struct lists *lists, const json_t *spec, const char *name)
{
    const json_t *array = json_object_get(spec, name);
    size_t i, count = json_array_size(array);
    json_t *item;
    const char **list = count && lists->count < LISTS_MAX ? calloc(count + 1, sizeof(*list)) : NULL;
    if (list) {
        json_array_foreach(array, i, item)
        {
            list[i] = json_string_value(item) ? json_string_value(item) : "";
        }
        lists->all[lists->count++] = list;
    }
    return list;
}

static const char *number_text(const json_t *spec, const char *name, char buf[static 24])
{
    json_int_t value = json_integer_value(json_object_get(spec, name));
    snprintf(buf, 24, "%lld", (long long)value);
    return value > 0 ? buf : NULL;
}

static bool flag(const json_t *spec, const char *name)
{
    return json_is_true(json_object_get(spec, name));
}

/* systemd's range for containers, systemd.io/UIDS-GIDS, above what useradd gives out (login.defs
 * SUB_UID_MAX). */
uint32_t room_map_first(const json_t *room)
{
    const char *id = room_text(room, "id");
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *p = id ? id : ""; *p; p++) {
        hash = (hash ^ (unsigned char)*p) * 16777619u;
    }
    return 0x30000000u + (hash % 16384u) * ROOM_MAP_COUNT;
}

void room_system_args(const json_t *room, const char *bundle, json_t *args)
{
    const json_t *spec = json_object_get(room, "spec");
    json_int_t memory = json_integer_value(json_object_get(spec, "memory"));
    json_int_t both = json_integer_value(json_object_get(spec, "memory_swap"));
    char *path = NULL;
    if (!flag(spec, "system")) {
        return;
    }
    if (!room_text(spec, "stop_signal")) { /* systemd(1): halt */
        json_array_append_new(args, json_string("--stop-signal=RTMIN+3"));
    }
    if (!json_object_get(spec, "stop_timeout")) {
        json_array_append_new(args, json_string("--stop-timeout=60"));
    }
    if (memory > 0 && asprintf(&path, "--meminfo=%s/" BUNDLE_MEMINFO, bundle) >= 0) {
        json_array_append_new(args, json_string(path));
        free(path);
        json_array_append_new(args, json_sprintf("--memory=%lld", (long long)memory));
        if (both > memory) {
            json_array_append_new(args, json_sprintf("--swap=%lld", (long long)(both - memory)));
        }
    }
}

int room_bundle(const json_t *room, const char *bundle, const char *rootfs, json_t *image, struct err *err)
{
    const json_t *spec = json_object_get(room, "spec");
    const char *network = room_text(spec, "network_mode");
    struct lists lists = {.count = 0};
    char memory[24], memory_swap[24], shm[24], cpus[1024];
    bool whole = flag(spec, "system");
    struct bundle_system system = {
        .map_first = image_host_root() ? room_map_first(room) : 0,
        .map_count = image_host_root() ? ROOM_MAP_COUNT : 0,
    };
    struct bundle_options o = {
        .dir = bundle,
        .rootfs = rootfs,
        .image = image,
        .id = room_text(room, "id"),
        .command = strings(&lists, spec, "command"),
        .entrypoint = room_text(spec, "entrypoint"),
        .env = strings(&lists, spec, "env"),
        .volumes = strings(&lists, spec, "mounts"),
        .volumes_dir = room_text(room, "folders"),
        .tmpfs = strings(&lists, spec, "tmpfs"),
        .devices = strings(&lists, spec, "devices"),
        .cap_add = strings(&lists, spec, "cap_add"),
        .cap_drop = strings(&lists, spec, "cap_drop"),
        .security = strings(&lists, spec, "security"),
        .ulimits = strings(&lists, spec, "ulimits"),
        .sysctls = strings(&lists, spec, "sysctls"),
        .user = room_text(spec, "user"),
        .workdir = room_text(spec, "workdir"),
        .hostname = room_text(spec, "hostname"),
        .memory = number_text(spec, "memory", memory),
        .memory_swap = number_text(spec, "memory_swap", memory_swap),
        .shm_size = number_text(spec, "shm_size", shm),
        .cpus = room_text(spec, "cpu_limit"),
        .cpuset = whole ? bundle_system_cpus(room_text(spec, "cpu_limit"), room_text(room, "id"), cpus,
                                             sizeof(cpus))
                        : NULL,
        .system = whole ? &system : NULL,
        .pids_limit = (uint64_t)json_integer_value(json_object_get(spec, "pids_limit")),
        .init = flag(spec, "init") ? room_text(room, "init") : NULL,
        .network = flag(spec, "host_network")                ? BUNDLE_NETWORK_HOST
                   : network && strcmp(network, "none") == 0 ? BUNDLE_NETWORK_NONE
                                                             : BUNDLE_NETWORK_USER,
        .terminal = whole || flag(spec, "terminal"),
        .read_only = flag(spec, "read_only"),
        .privileged = flag(spec, "privileged"),
        .bind_devices = !image_host_root(),
    };
    int rc = bundle_write(&o, err);
    for (unsigned i = 0; i < lists.count; i++) {
        free(lists.all[i]);
    }
    return rc;
}

static void push(json_t *args, const char *a, const char *b)
{
    json_array_append_new(args, json_string(a));
    if (b) {
        json_array_append_new(args, json_string(b));
    }
}

int room_exec_args(const json_t *room, const json_t *how, const char *root, const char *socket, json_t *args,
                   struct err *err)
{
    const char *user = room_text(how, "user"), *oci = room_text(room, "oci"),
               *oci_root = room_text(room, "oci_root");
    const char *id = room_text(room, "id");
    size_t i;
    json_t *item;
    if (!oci || !oci_root || !id) {
        return err_set(err, -EINVAL, "room.json lacks a member");
    }
    push(args, oci, "--root");
    push(args, oci_root, "exec");
    if (socket[0]) {
        push(args, "--tty", "--console-socket");
        push(args, socket, NULL);
        push(args, "--env", "TERM=xterm");
    }
    if (socket[0] && json_is_true(json_object_get(room, "machine"))) {
        char size[48]; /* at once, as the way into the machine is longer than the caller's next step */
        snprintf(size, sizeof(size), "%lldx%lld", (long long)json_integer_value(json_object_get(how, "rows")),
                 (long long)json_integer_value(json_object_get(how, "columns")));
        push(args, "--size", size);
    }
    if (user && user[0] && json_is_true(json_object_get(room, "machine"))) {
        push(args, "--user", user); /* its init looks it up */
    } else if (user && user[0]) {
        struct arena arena = {0};
        struct bundle_user found = {0};
        char text[64];
        int rc = bundle_find_user(root, user, &arena, &found, err);
        if (rc == 0) {
            snprintf(text, sizeof(text), "%u:%u", found.uid, found.gid);
            push(args, "--user", text);
            if (found.home) {
                push(args, "--env", arena_printf(&arena, "HOME=%s", found.home));
            }
        }
        arena_free(&arena);
        if (rc < 0) {
            return rc;
        }
    }
    if (room_text(how, "workdir")) {
        push(args, "--cwd", room_text(how, "workdir"));
    }
    json_array_foreach(json_object_get(how, "env"), i, item)
    {
        push(args, "--env", json_string_value(item) ? json_string_value(item) : "");
    }
    push(args, id, NULL);
    json_array_foreach(json_object_get(how, "command"), i, item)
    {
        push(args, json_string_value(item) ? json_string_value(item) : "", NULL);
    }
    return 0;
}

static void add(json_t *args, const char *name, const char *text)
{
    if (text) {
        char *value = NULL;
        if (asprintf(&value, "--%s=%s", name, text) >= 0) {
            json_array_append_new(args, json_string(value));
            free(value);
        }
    }
}

static void add_number(json_t *args, const char *name, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    add(args, name, value ? text : NULL);
}

int room_monitor_args(json_t *image, json_t *args, struct err *err)
{
    struct arena arena = {0};
    struct bundle_monitoring m = {0};
    int rc = image ? bundle_monitoring(image, &arena, &m, err) : 0;
    if (rc == 0) {
        add(args, "stop-signal", m.stop_signal);
        add(args, "health-cmd", m.health_cmd);
        add_number(args, "health-interval", m.health_interval_s);
        add_number(args, "health-timeout", m.health_timeout_s);
        add_number(args, "health-start-period", m.health_start_s);
        add_number(args, "health-retries", m.health_retries);
    }
    arena_free(&arena);
    return rc;
}
