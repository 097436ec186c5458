/*
 * Containers: fonda-room prepares, fonda-monitor is the instance's process. What was asked for goes into
 * room.json in the instance's directory; see core/room/room.h.
 *
 *     prepare --> fonda-room create    image and writable layer
 *     start   --> fonda-room run       becomes fonda-monitor, which holds the lock
 *     remove  --> fonda-room remove    what a monitor that was killed left, and the layer
 *
 * A machine that is made from an image goes the same way, with fonda-guest for fonda-oci (guest/host/host.h).
 *
 * Invariant: no process that starts here inherits the lock but the monitor (it marks it close-on-exec).
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/options.h"
#include "base/util.h"
#include "control/client.h"
#include "core/core_int.h"

#define READY_TIMEOUT_MS   60000
#define LINE_MAX_BYTES     4096
#define MEMBER_ARGS_MAX    64
#define STATUS_FILE_MAX_MS 20
#define CANCEL_LOOK_MS     200
#define MACHINE_MEMORY_MIN (96ll << 20)

/* ---- programs ---- */

int driver_program(const char *name, char *buf, size_t size, struct fault *fault)
{
    static const char *const places[] = {"",
                                         "../libexec/fonda/",
                                         "../bin/",
                                         "room/",
                                         "../core/room/",
                                         "../container/",
                                         "../../bin/",
                                         "../container/monitor/",
                                         "../container/netd/",
                                         "../container/limit/",
                                         "../guest/",
                                         "../vm/",
                                         "../cli/"};
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        slash[1] = '\0';
    }
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        char path[2 * PATH_MAX];
        snprintf(path, sizeof(path), "%s%s%s", self, places[i], name);
        struct stat st;
        if (access(path, X_OK) == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
            snprintf(buf, size, "%s", path);
            return 0;
        }
    }
    return fault_set(fault, FAULT_UNSUPPORTED, "is the installation complete?", "cannot find %s beside %s",
                     name, self);
}

/* ---- room.json ---- */

static void add_arg(json_t *args, const char *option, const char *text)
{
    char *value = NULL;
    if (text && text[0] && asprintf(&value, "--%s=%s", option, text) >= 0) {
        json_array_append_new(args, json_string(value));
        free(value);
    }
}

static void add_number(json_t *args, const char *option, const json_t *spec, const char *member)
{
    char text[24];
    snprintf(text, sizeof(text), "%lld", (long long)obj_int(spec, member));
    add_arg(args, option, json_object_get(spec, member) ? text : NULL);
}

/* Whether the image is to run in a machine of its own: the other room. */
static bool is_machine(const json_t *spec)
{
    return strcmp(obj_text(spec, "kind"), "vm") == 0;
}

static bool has_user_network(const json_t *spec)
{
    return !obj_bool(spec, "host_network") && strcmp(obj_text(spec, "network_mode"), "none") != 0;
}

static json_t *monitor_args(const json_t *spec, bool hold)
{
    json_t *args = json_array(), *item;
    const char *policy = obj_text(spec, "restart_policy");
    char text[64];
    size_t i;
    snprintf(text, sizeof(text), "%s", strcmp(policy, "never") == 0 ? "no" : policy);
    if (strcmp(policy, "on-failure") == 0 && obj_int(spec, "restart_limit")) {
        snprintf(text, sizeof(text), "on-failure:%lld", (long long)obj_int(spec, "restart_limit"));
    }
    add_arg(args, "restart", text);
    add_arg(args, "stop-signal", obj_text(spec, "stop_signal"));
    add_number(args, "stop-timeout", spec, "stop_timeout");
    add_arg(args, "health-cmd", obj_text(spec, "health_cmd"));
    add_number(args, "health-interval", spec, "health_interval");
    add_number(args, "health-timeout", spec, "health_timeout");
    add_number(args, "health-retries", spec, "health_retries");
    add_number(args, "health-start-period", spec, "health_start_period");
    if (has_user_network(spec) && !is_machine(spec)) { /* a machine has its own */
        add_arg(args, "network", "user");
        json_array_foreach(json_object_get(spec, "publish"), i, item)
        {
            add_arg(args, "publish", json_string_value(item));
        }
    }
    if (obj_bool(spec, "interactive")) {
        json_array_append_new(args, json_string("--stdin"));
    }
    if (hold) {
        json_array_append_new(args, json_string("--hold"));
    }
    return args;
}

/* The directory that all of the daemon's containers share: state/NAME. */
static void beside_instances(const struct driver_instance *instance, const char *name, char *buf, size_t size)
{
    snprintf(buf, size, "%s/../../%s", instance->dir, name);
    char *real = realpath(buf, NULL);
    if (real) {
        snprintf(buf, size, "%s", real);
        free(real);
    }
}

static int write_room(const struct driver_instance *instance, bool hold, struct fault *fault)
{
    static const char *const all[][2] = {
        {"oci", "fonda-oci"}, {"monitor", "fonda-monitor"}, {"init", "fonda-init"}, {"netd", "fonda-netd"}};
    static const char *const machine[][2] = {{"oci", "fonda-guest"},
                                             {"vmm", "fonda-vmm"},
                                             {"guest_init", "fonda-guest-init"},
                                             {"image_tool", "fonda-image"}};
    char path[2 * PATH_MAX], layer[64];
    json_t *room = json_object();
    size_t count = ARRAY_SIZE(all) + (is_machine(instance->spec) ? ARRAY_SIZE(machine) : 0);
    for (size_t i = 0; i < count; i++) {
        const char *const *program = i < ARRAY_SIZE(all) ? all[i] : machine[i - ARRAY_SIZE(all)];
        if (driver_program(program[1], path, sizeof(path), fault) < 0) {
            json_decref(room);
            return -1;
        }
        obj_set_text(room, program[0], path);
    }
    if (is_machine(instance->spec)) {
        json_object_set_new(room, "machine", json_true());
    }
    snprintf(layer, sizeof(layer), "fonda-%s", instance->id);
    obj_set_text(room, "id", layer);
    obj_set_text(room, "layer", layer);
    const char *const folders[][2] = {{"oci_root", is_machine(instance->spec) ? "rooms" : "oci"},
                                      {"folders", "folders"}};
    for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
        snprintf(path, sizeof(path), "%s/../../%s", instance->dir, folders[i][1]);
        (void)mkdir(path, 0700); /* whoever needs it says what is wrong */
        beside_instances(instance, folders[i][1], path, sizeof(path));
        obj_set_text(room, folders[i][0], path);
    }
    if (getenv("FONDA_IMAGE_STORE")) {
        obj_set_text(room, "store", getenv("FONDA_IMAGE_STORE"));
    }
    json_object_set_new(room, "spec", json_deep_copy(instance->spec));
    json_object_set_new(room, "args", monitor_args(instance->spec, hold));
    snprintf(path, sizeof(path), "%s/room.json", instance->dir);
    int rc = json_dump_file(room, path, JSON_COMPACT);
    json_decref(room);
    return rc < 0 ? fault_set(fault, FAULT_INTERNAL, NULL, "cannot write '%.256s'", path) : 0;
}

/* ---- steps ---- */

/* What a step says on its way: {"what", "done", "total"} per line. */
static void take_line(char *line, const struct driver_progress *progress, unsigned *last)
{
    json_t *report = json_loads(line, 0, NULL);
    int64_t done = obj_int(report, "done"), total = obj_int(report, "total");
    unsigned index = (unsigned)obj_int(report, "index") + 1;
    if (report && progress) {
        if (index != *last) {
            progress->step(progress->opaque, obj_text(report, "what"));
            *last = index;
        }
        progress->bytes(progress->opaque, done, total);
    }
    json_decref(report);
}

/* Whether there is something to read; false after a while, so that a cancel is seen by a step that waits. */
static bool readable(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    return poll(&poller, 1, CANCEL_LOOK_MS) > 0;
}

static void read_lines(int fd, pid_t pid, const struct driver_progress *progress)
{
    char buf[LINE_MAX_BYTES];
    size_t len = 0;
    unsigned last = 0;
    ssize_t n = 1;
    while (n > 0 || (n < 0 && errno == EINTR)) {
        if (progress && progress->canceled(progress->opaque)) {
            kill(pid, SIGTERM);
        }
        if (!readable(fd)) {
            n = 1;
            continue;
        }
        n = read(fd, buf + len, sizeof(buf) - 1 - len);
        len += n > 0 ? (size_t)n : 0;
        char *from = buf, *end;
        while ((end = memchr(from, '\n', (size_t)(buf + len - from)))) {
            *end = '\0';
            take_line(from, progress, &last);
            from = end + 1;
        }
        len = (size_t)(buf + len - from);
        memmove(buf, from, len);
        len = len == sizeof(buf) - 1 ? 0 : len;
    }
}

/* "fonda-room: error: text" without what stands before the text. */
static const char *message_of(char *text)
{
    text[strcspn(text, "\n")] = '\0';
    const char *at = strstr(text, "error: ");
    return at ? at + strlen("error: ") : text;
}

/* Runs one step of fonda-room to its end. */
static int step(const struct driver_instance *instance, const char *verb, enum fault_code code,
                const struct driver_progress *progress, struct fault *fault)
{
    char room[2 * PATH_MAX], text[1024];
    int out[2], err[2], status = 0;
    if (driver_program("fonda-room", room, sizeof(room), fault) < 0) {
        return -1;
    }
    if (pipe2(out, O_CLOEXEC) < 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot make a pipe: %s", strerror(errno));
    }
    if (pipe2(err, O_CLOEXEC) < 0) {
        close(out[0]);
        close(out[1]);
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot make a pipe: %s", strerror(errno));
    }
    char *argv[] = {room, (char *)(uintptr_t)verb, (char *)(uintptr_t)instance->dir, NULL};
    int stdio[3] = {-1, out[1], err[1]};
    pid_t pid = driver_fork(argv, stdio);
    close(out[1]);
    close(err[1]);
    if (pid > 0) {
        read_lines(out[0], pid, progress);
    }
    ssize_t n = pid > 0 ? read(err[0], text, sizeof(text) - 1) : 0;
    text[MAX(n, (ssize_t)0)] = '\0';
    close(out[0]);
    close(err[0]);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (pid < 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot start a process");
    }
    if (progress && status && progress->canceled(progress->opaque)) {
        return fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
    }
    return status == 0 ? 0
                       : fault_set(fault, code, NULL, "%s",
                                   text[0] ? message_of(text) : "a step of fonda-room ended early");
}

static int container_check(const json_t *spec, struct fault *fault)
{
    char path[2 * PATH_MAX];
    if (!obj_text(spec, "image")[0]) {
        return fault_set(fault, FAULT_INVALID, "say which: \"image\": \"debian:12\"",
                         "a container needs 'image'");
    }
    if (json_array_size(json_object_get(spec, "publish")) && !has_user_network(spec)) {
        return fault_set(fault, FAULT_INVALID, "leave the network at 'user', or the ports out",
                         "'publish' needs the network 'user'");
    }
    static const char *const others[][2] = {{"memory_limit", "a container's 'memory' is its limit"},
                                            {"cpu_weight", "'cpu_limit' limits a container's CPU time"}};
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        if (obj_int(spec, others[i][0])) {
            return fault_set(fault, FAULT_INVALID, others[i][1], "'%s' is for machines", others[i][0]);
        }
    }
    if (container_spec_check(spec, fault) < 0) {
        return -1;
    }
    return driver_program("fonda-room", path, sizeof(path), fault);
}

static int container_prepare(const struct driver_instance *instance, const struct driver_progress *progress,
                             struct fault *fault)
{
    int rc = write_room(instance, false, fault);
    return rc < 0 ? rc : step(instance, "create", FAULT_INVALID, progress, fault);
}

static int container_remove(const struct driver_instance *instance, struct fault *fault)
{
    char path[2 * DRIVER_PATH_MAX];
    snprintf(path, sizeof(path), "%s/room.json", instance->dir);
    return access(path, F_OK) < 0 ? 0 : step(instance, "remove", FAULT_INTERNAL, NULL, fault);
}

/* ---- start ---- */

static json_t *status_file(const struct driver_instance *instance)
{
    char path[2 * DRIVER_PATH_MAX];
    snprintf(path, sizeof(path), "%s/monitor/status.json", instance->dir);
    return json_load_file(path, 0, NULL);
}

/* The monitor listens before the container is there: waits until it is, or is known not to come. */
static int await_container(const struct driver_instance *instance, pid_t pid, bool hold, struct fault *fault)
{
    uint64_t until = monotonic_ms() + READY_TIMEOUT_MS;
    for (long pause = 1;; pause = MIN(2 * pause, (long)STATUS_FILE_MAX_MS)) {
        json_t *status = status_file(instance);
        const char *state = obj_text(status, "state");
        bool ours = obj_int(status, "monitor_pid") == pid;
        bool has_run = json_is_integer(json_object_get(status, "started_ns"));
        bool dead = ours && strcmp(state, "stopped") == 0;
        bool ready = ours && (has_run || (hold && strcmp(state, "created") == 0));
        char why[400];
        snprintf(why, sizeof(why), "%s", obj_text(status, "error"));
        json_decref(status);
        siginfo_t info = {0};
        bool ended = waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
        if (ready && (has_run || !ended)) {
            return 0;
        }
        if ((dead || ended) && (why[0] || ended)) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            return fault_set(fault, FAULT_INVALID, NULL, "%s", why[0] ? why : "its monitor ended at once");
        }
        if (monotonic_ms() > until) {
            return fault_set(fault, FAULT_TIMEOUT, "see monitor/monitor.log in its directory",
                             "container '%s' did not get ready in %d s", instance->name,
                             READY_TIMEOUT_MS / 1000);
        }
        struct timespec ts = {0, pause * 1000000};
        nanosleep(&ts, NULL);
    }
}

static int start(const struct driver_instance *instance, bool hold, pid_t *ret_pid, struct fault *fault)
{
    char room[2 * PATH_MAX], path[2 * DRIVER_PATH_MAX];
    snprintf(path, sizeof(path), "%s/monitor/status.json", instance->dir);
    (void)unlink(path);
    if (container_check(instance->spec, fault) < 0 || write_room(instance, hold, fault) < 0 ||
        driver_program("fonda-room", room, sizeof(room), fault) < 0) {
        return -1;
    }
    /* The control socket where every instance has it. */
    (void)unlink(instance->control);
    if (symlink("monitor/control.sock", instance->control) < 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot make '%s': %s", instance->control,
                         strerror(errno));
    }
    char *argv[] = {room, (char *)(uintptr_t) "run", (char *)(uintptr_t)instance->dir, NULL};
    pid_t pid = 0;
    int rc = driver_spawn(instance, argv, &pid, fault);
    rc = rc < 0 ? rc : driver_await(instance, pid, fault);
    if (rc < 0) { /* a container that is over that quickly did run */
        json_t *status = status_file(instance);
        bool ran = json_is_integer(json_object_get(status, "started_ns"));
        const char *why = obj_text(status, "error");
        if (why[0]) {
            fault_set(fault, FAULT_INVALID, NULL, "%s", why);
        }
        json_decref(status);
        return ran ? fault_set(fault, FAULT_STATE, "fonda logs NAME", "it ended at once") : -1;
    }
    *ret_pid = pid;
    return await_container(instance, pid, hold, fault);
}

static int container_start(const struct driver_instance *instance, pid_t *ret_pid, struct fault *fault)
{
    return start(instance, false, ret_pid, fault);
}

static int container_hold(const struct driver_instance *instance, pid_t *ret_pid, struct fault *fault)
{
    return start(instance, true, ret_pid, fault);
}

/* The monitor ends its container before itself; one that does not answer is ended, and then cleared after. */
static int container_kill(const struct driver_instance *instance, struct fault *fault)
{
    struct fault ignored = {0};
    if (driver_control_call(instance, "quit", NULL, NULL, &ignored) == 0) {
        return 0;
    }
    int rc = driver_control_kill(instance, fault);
    step(instance, "clear", FAULT_INTERNAL, NULL, &ignored);
    return rc;
}

static int container_signal(const struct driver_instance *instance, const char *signal, struct fault *fault)
{
    uint64_t number;
    json_t *value = parse_uint(signal, &number, NULL) == 0 ? json_integer((json_int_t)MIN(number, 65ull))
                                                           : json_string(signal);
    return driver_control_call(instance, "kill", json_pack("{s:o}", "signal", value), NULL, fault);
}

static int container_top(const struct driver_instance *instance, json_t **ret_list, struct fault *fault)
{
    json_t *pids = NULL, *list = json_array(), *item;
    size_t i;
    if (driver_control_call(instance, "top", NULL, &pids, fault) < 0) {
        json_decref(list);
        return -1;
    }
    json_array_foreach(pids, i, item)
    {
        char path[64], text[1024];
        if (json_is_object(item)) { /* a machine's has its command with it */
            json_array_append(list, item);
            continue;
        }
        long long pid = (long long)json_integer_value(item);
        snprintf(path, sizeof(path), "/proc/%lld/cmdline", pid);
        auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
        for (ssize_t k = 0; k < n; k++) { /* what the container chose may be no UTF-8 */
            text[k] = text[k] >= ' ' && text[k] < 127 ? text[k] : text[k] == '\0' ? ' ' : '?';
        }
        text[MAX(n - 1, (ssize_t)0)] = '\0';
        json_array_append_new(list, json_pack("{s:I, s:s}", "pid", (json_int_t)pid, "command", text));
    }
    json_decref(pids);
    *ret_list = list;
    return 0;
}

static int container_exit_status(const struct driver_instance *instance)
{
    json_t *status = status_file(instance);
    const json_t *end = json_object_get(status, "exit");
    const json_t *value = json_object_get(end, "status");
    int rc = json_is_integer(value) && strcmp(obj_text(status, "state"), "stopped") == 0
                 ? (int)json_integer_value(value)
                 : -1;
    json_decref(status);
    return rc;
}

const struct driver_ops driver_container = {
    .kind = "container",
    .check = container_check,
    .prepare = container_prepare,
    .start = container_start,
    .hold = container_hold,
    .adopt = driver_control_adopt,
    .status = driver_control_status,
    .stop = driver_control_stop,
    .kill = container_kill,
    .pause = driver_control_pause,
    .resume = driver_control_resume,
    .stats = driver_control_stats,
    .attach = driver_control_attach,
    .stream = driver_container_stream,
    .resize = driver_container_resize,
    .signal = container_signal,
    .top = container_top,
    .exit_status = container_exit_status,
    .remove = container_remove,
};

/* ---- machines from images ---- */

/* What is a container's alone: a machine has a kernel of its own. */
static int machine_check(const json_t *spec, struct fault *fault)
{
    static const char *const members[][2] = {
        {"cap_add", "its root has all capabilities"},
        {"cap_drop", "its root has all capabilities"},
        {"security", "it has a kernel of its own"},
        {"privileged", "it has a kernel of its own"},
        {"devices", "the host's devices are not in it"},
        {"host_network", "it has a network card of its own"},
        {"cpu_limit", "it has whole CPUs: 'cpus'"},
        {"memory_swap", "'memory' is all that it has"},
        {"memory_limit", "'memory' is all that its guest has"},
        {"cpu_weight", "it has whole CPUs: 'cpus'"},
        {"pids_limit", "'memory' is what limits it"},
        {"system", "a system in a machine has its own kernel: fonda image build"},
        {"disks", "its disk is the image"},
        {"volumes", "its disk is the image: share folders with 'mounts'"},
        {"networks", "its network is 'network_mode'"},
        {"shares", "share folders with 'mounts'"},
        {"initrds", "Fonda makes its initramfs"},
        {"append", "Fonda makes its kernel's command line"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        const json_t *value = json_object_get(spec, members[i][0]);
        if (json_is_true(value) || json_array_size(value) ||
            (json_is_string(value) && json_string_length(value)) ||
            (json_is_integer(value) && json_integer_value(value))) {
            return fault_set(fault, FAULT_INVALID, members[i][1], "a machine of an image has no '%s'",
                             members[i][0]);
        }
    }
    if (obj_int(spec, "memory") < MACHINE_MEMORY_MIN) {
        return fault_set(fault, FAULT_INVALID, "its kernel alone needs most of that",
                         "a machine of an image needs at least %lldM of memory", MACHINE_MEMORY_MIN >> 20);
    }
    const char *kernel = obj_text(spec, "kernel");
    if (kernel[0] && (kernel[0] != '/' || access(kernel, R_OK) < 0)) {
        return fault_set(fault, FAULT_INVALID,
                         "give the absolute path of a bzImage with its modules, or none",
                         "cannot read the kernel '%.256s'", kernel);
    }
    return container_check(spec, fault);
}

const struct driver_ops driver_image_machine = {
    .kind = "vm",
    .check = machine_check,
    .prepare = container_prepare,
    .start = container_start,
    .hold = container_hold,
    .adopt = driver_control_adopt,
    .status = driver_control_status,
    .stop = driver_control_stop,
    .kill = container_kill,
    .pause = driver_control_pause,
    .resume = driver_control_resume,
    .stats = driver_control_stats,
    .attach = driver_control_attach,
    .stream = driver_container_stream,
    .resize = driver_container_resize,
    .signal = container_signal,
    .top = container_top,
    .exit_status = container_exit_status,
    .remove = container_remove,
};
