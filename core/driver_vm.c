/*
 * Virtual machines: fonda-vmm, with the options that an instance's members stand for.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "core/core_int.h"

#define ARGS_MAX 136

struct args {
    char *argv[ARGS_MAX + 1];
    unsigned count;
    bool failed;
};

static void add_fmt(struct args *args, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add_fmt(struct args *args, const char *fmt, ...)
{
    char *text = NULL;
    va_list list;
    va_start(list, fmt);
    if (args->count == ARGS_MAX || vasprintf(&text, fmt, list) < 0) {
        args->failed = true;
    } else {
        args->argv[args->count++] = text;
    }
    va_end(list);
}

/* "--name=value", so that no value is ever taken for an option. */
static void add_text(struct args *args, const char *option, const json_t *spec, const char *member)
{
    const char *text = obj_text(spec, member);
    if (text[0]) {
        add_fmt(args, "--%s=%s", option, text);
    }
}

static void add_list(struct args *args, const char *option, const json_t *spec, const char *member)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(spec, member), i, item)
    {
        add_fmt(args, "--%s=%s", option, json_string_value(item));
    }
}

/* Where fonda-vmm may lie, from the daemon's own directory: installed, or in a build tree. FONDA_VMM names
 * another one. */
static int find_vmm(char *buf, size_t size, struct fault *fault)
{
    static const char *const places[] = {"fonda-vmm", "../libexec/fonda/fonda-vmm", "../libexec/fonda-vmm",
                                         "../vm/fonda-vmm"};
    const char *named = getenv("FONDA_VMM");
    if (named && named[0]) {
        snprintf(buf, size, "%s", named);
        return 0;
    }
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        slash[1] = '\0';
    }
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        snprintf(buf, size, "%s%s", self, places[i]);
        if (access(buf, X_OK) == 0) {
            return 0;
        }
    }
    return fault_set(fault, FAULT_UNSUPPORTED, "is the installation complete?",
                     "cannot find fonda-vmm beside %s", self);
}

static int check_path(const char *member, const char *path, struct fault *fault)
{
    if (path[0] != '/') {
        return fault_set(fault, FAULT_INVALID, "the daemon's directory is not yours",
                         "'%s' must be an absolute path: '%.256s'", member, path);
    }
    if (access(path, R_OK) < 0) {
        return fault_set(fault, FAULT_INVALID, "give the path of a file on the daemon's host",
                         "'%s': cannot read '%.256s': %s", member, path, strerror(errno));
    }
    return 0;
}

static int vm_check(const json_t *spec, struct fault *fault)
{
    const char *kernel = obj_text(spec, "kernel");
    if (!kernel[0] && !json_array_size(json_object_get(spec, "disks")) &&
        !json_array_size(json_object_get(spec, "volumes"))) {
        return fault_set(
            fault, FAULT_INVALID, "say which kernel to boot: --kernel FILE",
            "a machine needs 'kernel', or a disk that has one: there is nothing else to boot from");
    }
    if (!kernel[0] && json_array_size(json_object_get(spec, "initrds"))) {
        return fault_set(fault, FAULT_INVALID, "say which kernel to boot: --kernel FILE",
                         "'initrds' need 'kernel': a kernel from a disk brings its own");
    }
    if (kernel[0] && check_path("kernel", kernel, fault) < 0) {
        return -1;
    }
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(spec, "initrds"), i, item)
    {
        if (check_path("initrds", json_string_value(item), fault) < 0) {
            return -1;
        }
    }
    return limit_check(spec, fault);
}

/* Each NIC has an address of its own that stays: locally administered (IEEE 802-2014 8.4), from the id. */
static void nic_mac(const char *id, unsigned index, char *buf, size_t size)
{
    unsigned part[4] = {0};
    sscanf(id, "%2x%2x%2x%2x", &part[0], &part[1], &part[2], &part[3]);
    snprintf(buf, size, "52:54:%02x:%02x:%02x:%02x", part[0], part[1], part[2], (part[3] + index) & 0xff);
}

/* A copy tells its guest which machine it is: machine-id(5), systemd.machine_id= of kernel-command-line(7).
 * Without a text of its own the kernel gets fonda-vmm's, which giving one would replace. */
static void add_append(struct args *args, const json_t *spec)
{
    const char *append = obj_text(spec, "append"), *id = obj_text(spec, "machine_id");
    if (!id[0]) {
        add_text(args, "append", spec, "append");
    } else {
        const char *before = append[0] ? append : obj_text(spec, "kernel")[0] ? "console=ttyS0 panic=-1" : "";
        add_fmt(args, "--append=%s%ssystemd.machine_id=%s", before, before[0] ? " " : "", id);
    }
}

/* What --net and --disk are given, as lists of texts: one wording at the start and for changes of what runs.
 */
static json_t *nic_texts(const struct driver_instance *instance)
{
    size_t i;
    json_t *network, *list = json_array();
    char mac[24];
    json_array_foreach((json_t *)instance->networks, i, network)
    {
        const char *options = obj_text(network, "options");
        bool own = strstr(options, "mac=") != NULL;
        nic_mac(instance->id, (unsigned)i, mac, sizeof(mac));
        json_array_append_new(list,
                              json_sprintf("%s%s%s%s%s", obj_text(network, "mode"), options[0] ? "," : "",
                                           options, own ? "" : ",mac=", own ? "" : mac));
    }
    if (!json_array_size(list)) { /* what fonda-vmm does by itself, with that address */
        nic_mac(instance->id, 0, mac, sizeof(mac));
        json_array_append_new(list, json_sprintf("user,mac=%s", mac));
    }
    return list;
}

static json_t *disk_texts(const struct driver_instance *instance, bool volumes_first)
{
    size_t i;
    json_t *volume, *list = json_array();
    if (!volumes_first) {
        json_array_extend(list, json_object_get(instance->spec, "disks"));
    }
    json_array_foreach((json_t *)instance->volumes, i, volume)
    {
        json_array_append_new(
            list, json_sprintf("%s,format=%s", obj_text(volume, "path"), obj_text(volume, "format")));
    }
    if (volumes_first) {
        json_array_extend(list, json_object_get(instance->spec, "disks"));
    }
    return list;
}

static void add_texts(struct args *args, const char *option, json_t *texts)
{
    size_t i;
    json_t *text;
    json_array_foreach(texts, i, text)
    {
        add_fmt(args, "--%s=%s", option, json_string_value(text));
    }
    json_decref(texts);
}

static int vm_apply(const struct driver_instance *instance, struct fault *fault)
{
    json_t *disks = disk_texts(instance, false), *nics = nic_texts(instance);
    struct fault other = {0};
    int rc = live_apply_machine(instance, disks, nics, fault);
    json_decref(disks);
    json_decref(nics);
    /* Whatever became of the devices, limits are not left behind. */
    return limit_apply_live(instance, rc < 0 ? &other : fault) < 0 ? -1 : rc;
}

/* The program that makes its control group and then becomes what follows. */
static int limit_args(const struct driver_instance *instance, struct args *args, struct fault *fault)
{
    char program[PATH_MAX];
    json_t *limits = limit_wanted(instance->spec);
    int rc = 0;
    if (json_object_size(limits) && (rc = driver_program("fonda-cg", program, sizeof(program), fault)) == 0) {
        auto_free char *text = json_dumps(limits, JSON_COMPACT);
        add_fmt(args, "%s", program);
        add_fmt(args, "run");
        add_fmt(args, "%s", instance->dir);
        add_fmt(args, "%s", instance->id);
        add_fmt(args, "%s", text ? text : "");
    }
    json_decref(limits);
    return rc;
}

/* What belongs to this run; the rest a saved machine brings along. */
static void run_args(const struct driver_instance *instance, const char *vmm, struct args *args)
{
    add_fmt(args, "%s", vmm);
    add_fmt(args, "--control=%s", instance->control);
    add_fmt(args, "--serial=%s", instance->log);
    add_text(args, "engine", instance->spec, "engine");
    if (!obj_bool(instance->spec, "reboot")) {
        add_fmt(args, "--no-reboot");
    }
}

static void machine_args(const struct driver_instance *instance, struct args *args)
{
    const json_t *spec = instance->spec;
    bool volumes_first = obj_bool(spec, "volumes_first");
    add_fmt(args, "--cpus=%lld", (long long)obj_int(spec, "cpus"));
    add_fmt(args, "--memory=%lldK", (long long)(obj_int(spec, "memory") / 1024));
    add_text(args, "cpu-model", spec, "cpu_model");
    add_text(args, "kernel", spec, "kernel");
    add_list(args, "initrd", spec, "initrds");
    add_append(args, spec);
    add_texts(args, "disk", disk_texts(instance, volumes_first));
    add_texts(args, "net", nic_texts(instance));
    add_fmt(args, "--balloon");
    add_list(args, "publish", spec, "publish");
    add_list(args, "share", spec, "shares");
    add_text(args, "rng", spec, "rng");
}

static int spawn(const struct driver_instance *instance, struct args *args, pid_t *ret_pid,
                 struct fault *fault)
{
    int rc = args->failed ? fault_set(fault, FAULT_INVALID, NULL, "too many disks, networks and shares")
                          : driver_spawn(instance, args->argv, ret_pid, fault);
    for (unsigned i = 0; i < args->count; i++) {
        free(args->argv[i]);
    }
    return rc;
}

/* rc: how it went. What did not start leaves no control group behind. */
static int started(const struct driver_instance *instance, int rc)
{
    struct fault ignored = {0};
    if (rc < 0) {
        limit_clear(instance, &ignored);
    }
    return rc;
}

static int vm_start(const struct driver_instance *instance, pid_t *ret_pid, struct fault *fault)
{
    char vmm[PATH_MAX + 64];
    struct args args = {0};
    if (vm_check(instance->spec, fault) < 0 || find_vmm(vmm, sizeof(vmm), fault) < 0) {
        return -1;
    }
    if (limit_args(instance, &args, fault) < 0) {
        return -1;
    }
    run_args(instance, vmm, &args);
    machine_args(instance, &args);
    int rc = spawn(instance, &args, ret_pid, fault);
    return rc < 0 ? rc : started(instance, driver_await(instance, *ret_pid, fault));
}

static int vm_restore(const struct driver_instance *instance, const char *file, pid_t *ret_pid,
                      struct fault *fault)
{
    char vmm[PATH_MAX + 64];
    struct args args = {0};
    if (find_vmm(vmm, sizeof(vmm), fault) < 0) {
        return -1;
    }
    if (limit_args(instance, &args, fault) < 0) {
        return -1;
    }
    run_args(instance, vmm, &args);
    add_fmt(&args, "--restore=%s", file);
    int rc = spawn(instance, &args, ret_pid, fault);
    return rc < 0 ? rc : started(instance, driver_await_answer(instance, *ret_pid, fault));
}

const struct driver_ops driver_vm = {
    .kind = "vm",
    .check = vm_check,
    .start = vm_start,
    .restore = vm_restore,
    .adopt = driver_control_adopt,
    .status = driver_control_status,
    .stop = driver_control_stop,
    .kill = driver_control_kill,
    .pause = driver_control_pause,
    .resume = driver_control_resume,
    .stats = driver_control_stats,
    .attach = driver_control_attach,
    .apply = vm_apply,
    .remove = limit_clear,
};
