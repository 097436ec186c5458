/*
 * The methods of a machine's control socket, as docs/control.md lists them: one table at the end.
 *
 * Threads: main loop.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "block/block.h"
#include "control/control.h"
#include "cpu/engine.h"
#include "dev/pci/pci.h"
#include "dev/virtio/balloon.h"
#include "dev/virtio/virtio.h"
#include "sandbox/jail.h"
#include "vm/channel.h"
#include "vm/devices.h"
#include "vm/host_int.h"
#include "vm/machine.h"
#include "vm/pause.h"
#include "vm/pc.h"
#include "vm/rundir.h"
#include "vm/saved/machine.h"
#include "vm/saved/save.h"

#define PAUSE_WAIT_MS 5000u
#define COUNTERS_MAX  128u
#define NAME_PARAM                                                                                           \
    {                                                                                                        \
        "name", CONTROL_STRING, true, 0, 0, 0                                                                \
    }

/* --- standing still ---------------------------------------------------------------------------------------
 */

int host_pause(struct host *host, bool user, struct err *err)
{
    enum pause_reason reason = user ? PAUSE_USER : PAUSE_STATE;
    machine_pause(host->machine, reason);
    int rc = machine_pause_wait(host->machine, PAUSE_WAIT_MS);
    if (rc < 0) {
        machine_unpause(host->machine, reason);
        return err_sys(err, rc, "a vCPU does not stand still");
    }
    if (!host->frozen) {
        machine_freeze(host->machine);
        host->frozen = true;
    }
    return 0;
}

/* Time goes on before the vCPUs do. A disk that waits for room keeps the vCPUs, not the clock. */
void host_unpause(struct host *host, bool user)
{
    enum pause_reason reason = user ? PAUSE_USER : PAUSE_STATE;
    unsigned others =
        machine_pause_reasons(host->machine) & (BIT(PAUSE_USER) | BIT(PAUSE_STATE)) & ~BIT(reason);
    if (host->frozen && !others) {
        struct err err = {0};
        host->frozen = false;
        if (machine_thaw(host->machine, &err) < 0) {
            log_error("%s", err.text);
            machine_request_stop(host->machine, VM_STATUS_ENGINE);
        }
    }
    machine_unpause(host->machine, reason);
    host_arm_timer(host);
}

/* --- what there is to tell --------------------------------------------------------------------------------
 */

static const char *state_word(const struct host *host)
{
    if (host->saving) {
        return "saving";
    }
    return machine_pause_reasons(host->machine) ? "paused" : "running";
}

static json_t *pause_reasons(const struct host *host)
{
    unsigned reasons = machine_pause_reasons(host->machine);
    json_t *list = json_array();
    for (unsigned i = 0; i < PAUSE_REASONS; i++) {
        if (reasons & BIT(i)) {
            json_array_append_new(list, json_string(pause_reason_name(i)));
        }
    }
    return list;
}

void host_state_event(struct host *host)
{
    if (host->control) {
        control_event(host->control, "state",
                      json_pack("{s:s, s:o}", "state", state_word(host), "reasons", pause_reasons(host)));
    }
}

static void on_status(struct control_call *call, json_t *params, void *opaque)
{
    const struct host *host = opaque;
    const struct vm_config *config = host->config;
    json_t *out = json_pack(
        "{s:s, s:s, s:o, s:i, s:s, s:I, s:I, s:I, s:I}", "kind", "vm", "state", state_word(host), "reasons",
        pause_reasons(host), "pid", (int)jail_pid(), "engine", host->engine->name, "cpus",
        (json_int_t)config->cpus, "memory_bytes", (json_int_t)config->memory_bytes, "up_ns",
        (json_int_t)(uv_hrtime() - host->started_ns), "clock_ns", (json_int_t)clock_now_ns(host->clock));
    if (config->name) {
        json_object_set_new(out, "name", json_string(config->name));
    }
    json_object_set_new(out, "restoring_memory", json_boolean(host->restoring != NULL));
    control_reply(call, out);
}

static json_t *engine_stats(struct host *host)
{
    struct engine_counter counters[COUNTERS_MAX];
    unsigned count = machine_counters(host->machine, counters, COUNTERS_MAX);
    json_t *out = json_object();
    for (unsigned i = 0; i < count; i++) {
        json_t *group = json_object_get(out, counters[i].group);
        if (!group) {
            group = json_object();
            json_object_set_new(out, counters[i].group, group);
        }
        json_object_set_new(group, counters[i].name, json_integer((json_int_t)counters[i].value));
    }
    return out;
}

static json_t *balloon_stats(struct vdev *balloon)
{
    struct vbal_info info;
    vbal_get_info(balloon, &info);
    return json_pack("{s:I, s:I, s:I, s:I}", "target_bytes", (json_int_t)info.target_pages * 4096,
                     "actual_bytes", (json_int_t)info.actual_pages * 4096, "given_bytes",
                     (json_int_t)info.given_bytes, "reported_bytes", (json_int_t)info.reported_bytes);
}

static void on_stats(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    json_t *devices = json_array();
    for (unsigned i = 0; i < devices_count(host->devices); i++) {
        struct vdev *dev = devices_get(host->devices, i);
        const struct vdev_counters *c = &dev->counters;
        json_array_append_new(devices, json_pack("{s:s, s:I, s:I, s:I, s:I}", "device", dev->ops->name,
                                                 "kicks", (json_int_t)atomic_load(&c->kicks), "interrupts",
                                                 (json_int_t)atomic_load(&c->interrupts), "suppressed",
                                                 (json_int_t)atomic_load(&c->suppressed), "guest_errors",
                                                 (json_int_t)atomic_load(&c->guest_errors)));
    }
    json_t *out = json_pack("{s:o, s:o, s:o, s:o}", "counters", engine_stats(host), "devices", devices,
                            "disks", host_disk_stats(host), "networks", host_network_stats(host));
    if (devices_balloon(host->devices)) {
        json_object_set_new(out, "balloon", balloon_stats(devices_balloon(host->devices)));
    }
    control_reply(call, out);
}

/* --- orders -----------------------------------------------------------------------------------------------
 */

static void on_pause(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct err err = {0};
    if (!host->user_paused && host_pause(host, true, &err) < 0) {
        control_fail_err(call, &err);
        return;
    }
    bool news = !host->user_paused;
    host->user_paused = true;
    control_reply(call, NULL);
    if (news) {
        host_state_event(host);
    }
}

static void on_resume(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    if (host->user_paused) {
        host->user_paused = false;
        host_unpause(host, true);
        host_state_event(host);
    }
    control_reply(call, NULL);
}

static void on_stop(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct {
        bool force;
    } p = {0};
    static const struct control_param table[] = {{"force", CONTROL_BOOL, false, 0, 0, 0}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return;
    }
    if (!p.force && machine_pause_reasons(host->machine)) {
        control_fail(call, "busy", "resume it, or stop it by force",
                     "the machine is paused: it can't shut down");
        return;
    }
    if (p.force) {
        control_reply(call, NULL);
        machine_request_stop(host->machine, VM_STATUS_OFF);
        return;
    }
    mem_lock(host->mem);
    bool heard = pc_power_button(machine_pc(host->machine));
    mem_unlock(host->mem);
    if (heard) {
        control_reply(call, NULL);
    } else {
        control_fail(call, "not_supported", "stop it by force",
                     "the guest does not listen to its power button");
    }
}

static void on_quit(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    control_reply(call, NULL);
    machine_request_stop(host->machine, VM_STATUS_OFF);
}

static void on_reset(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    control_reply(call, NULL);
    machine_request_stop(host->machine, MACHINE_RESET);
}

static void on_attach(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct {
        const char *channel;
    } p = {0};
    static const struct control_param table[] = {{"channel", CONTROL_STRING, false, 0, 0, 0}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return;
    }
    struct channel *channel = host->channel;
    struct err err = {0};
    if (p.channel && strcmp(p.channel, "serial") != 0) {
        channel = devices_ports(host->devices) ? ports_channel(devices_ports(host->devices), p.channel, &err)
                                               : NULL;
    }
    if (channel) {
        channel_attach(channel, call);
    } else if (err.code == -EBUSY) {
        control_fail_err(call, &err);
    } else {
        char names[512] = "serial";
        for (unsigned i = 0; ports_name(devices_ports(host->devices), i); i++) {
            size_t used = strlen(names);
            snprintf(names + used, sizeof(names) - used, ", %s", ports_name(devices_ports(host->devices), i));
        }
        char hint[sizeof(names) + 16];
        snprintf(hint, sizeof(hint), "there is: %s", names);
        control_fail(call, "not_found", hint, "there is no channel '%.64s'", p.channel);
    }
}

static void on_resize(struct control_call *call, json_t *params, void *opaque)
{
    control_fail(call, "not_supported", "in the guest: stty rows R cols C",
                 "a serial port does not know the window's size");
}

static void on_balloon(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct {
        uint64_t bytes;
    } p = {0};
    const struct control_param table[] = {
        {"bytes", CONTROL_UINT, true, 0, 0, host->config->memory_bytes - host->config->memory_bytes / 8}};
    struct vdev *balloon = devices_balloon(host->devices);
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return;
    }
    if (!balloon) {
        control_fail(call, "not_supported", "run it with --balloon", "the machine has no balloon");
        return;
    }
    vbal_set_target(balloon, p.bytes);
    control_reply(call, NULL);
}

static void on_save(struct control_call *call, json_t *params, void *opaque)
{
    struct {
        const char *file;
    } p = {0};
    static const struct control_param table[] = {{"file", CONTROL_STRING, true, 0, 0, 0}};
    if (control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        host_save(opaque, p.file, call);
        host_state_event(opaque);
    }
}

struct named {
    const char *name;
};

static bool take_name(struct control_call *call, json_t *params, struct named *ret)
{
    static const struct control_param table[] = {NAME_PARAM};
    return control_params(call, params, table, ARRAY_SIZE(table), ret);
}

/* Where the memory goes is the caller's choice: then the caller keeps the list of snapshots. */
static bool take_kept(struct control_call *call, json_t *params, struct snapshot_request *ret)
{
    struct snapshot_request p = {.memory = true};
    static const struct control_param table[] = {
        {"name", CONTROL_STRING, true, offsetof(struct snapshot_request, name), 0, 0},
        {"file", CONTROL_STRING, false, offsetof(struct snapshot_request, file), 0, 0},
        {"memory", CONTROL_BOOL, false, offsetof(struct snapshot_request, memory), 0, 0}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return false;
    }
    if (p.file && (p.file[0] != '/' || strlen(p.file) >= RUNDIR_PATH_MAX)) {
        control_fail(call, "bad_params", NULL, "'file' is no absolute path, or too long");
        return false;
    }
    *ret = p;
    return true;
}

static void on_snapshot_save(struct control_call *call, json_t *params, void *opaque)
{
    struct snapshot_request p;
    if (take_kept(call, params, &p)) {
        host_snapshot_save(opaque, &p, call);
    }
}

static void on_snapshot_load(struct control_call *call, json_t *params, void *opaque)
{
    struct named p = {0};
    if (take_name(call, params, &p)) {
        host_snapshot_load(opaque, p.name, call);
    }
}

static void on_snapshot_delete(struct control_call *call, json_t *params, void *opaque)
{
    struct snapshot_request p;
    if (take_kept(call, params, &p)) {
        host_snapshot_delete(opaque, &p, call);
    }
}

static void on_snapshot_list(struct control_call *call, json_t *params, void *opaque)
{
    host_snapshot_list(opaque, call);
}

static const struct control_method methods[] = {
    {"translate", "what the translator made of a guest address: {address, cpu}", host_method_translate},
    {"count", "whether new blocks count their runs: {on}", host_method_count},
    {"status", "what the machine is and does", on_status},
    {"pause", "holds the vCPUs and the machine's clock", on_pause},
    {"resume", "takes pause back", on_resume},
    {"stop", "presses the power button; {force: true}: ends the machine at once", on_stop},
    {"kill", "ends the machine at once", on_quit},
    {"quit", "the same", on_quit},
    {"reset", "resets the machine", on_reset},
    {"stats", "every counter of engine, devices and disks", on_stats},
    {"attach",
     "the connection becomes the serial port or a port of the virtio console: {channel: \"serial\"}",
     on_attach},
    {"resize", "not for a serial port", on_resize},
    {"balloon", "how many bytes the guest is to give back: {bytes}", on_balloon},
    {"devices", "the disks and NICs, by name", host_method_devices},
    {"disk_attach", "plugs a disk: {disk, id, files}", host_method_disk_attach},
    {"disk_detach", "a job: the guest lets a disk go: {id, timeout_s}", host_method_disk_detach},
    {"throttle", "a disk's limits from now on, 0: none: {id, iops, iops_burst, bps, bps_burst}",
     host_method_throttle},
    {"nic_attach", "plugs a NIC: {nic, id}", host_method_nic_attach},
    {"nic_detach", "a job: the guest lets a NIC go: {id, timeout_s}", host_method_nic_detach},
    {"nic_link", "a NIC's cable, in or out: {id, up}", host_method_nic_link},
    {"nic_plug", "the same by number: {nic, plugged}", host_method_nic_plug},
    {"save", "a job: saves the machine and ends it: {file}", on_save},
    {"snapshot_save", "a job: memory and disks as they are now: {name, file, memory}", on_snapshot_save},
    {"snapshot_list", "the snapshots", on_snapshot_list},
    {"snapshot_load", "goes back to a snapshot: {name}", on_snapshot_load},
    {"snapshot_delete", "{name, file, memory}", on_snapshot_delete},
};

/* --- life -------------------------------------------------------------------------------------------------
 */

static size_t on_channel_input(void *opaque, const uint8_t *bytes, size_t len)
{
    struct host *host = opaque;
    mem_lock(host->mem);
    size_t taken = pc_serial_input(machine_pc(host->machine), bytes, len);
    mem_unlock(host->mem);
    return taken;
}

int host_control_open(struct host *host, struct err *err)
{
    const struct vm_config *config = host->config;
    char path[RUNDIR_PATH_MAX];
    int rc = 0;
    host->started_ns = uv_hrtime();
    if (!config->control && !config->name) {
        return 0;
    }
    if (config->control) {
        rc = (size_t)snprintf(path, sizeof(path), "%s", config->control) < sizeof(path)
                 ? 0
                 : err_set(err, -ENAMETOOLONG, "'%s' is too long for a socket's path", config->control);
    } else {
        rc = rundir_socket(config->name, path, sizeof(path), err);
        rc = rc < 0 ? rc : rundir_make(config->name, err);
    }
    if (rc == 0) {
        const struct control_config control = {&host->loop, path, methods, ARRAY_SIZE(methods), host};
        rc = control_new(&control, &host->control, err);
    }
    if (rc == -EADDRINUSE && config->name) {
        err_set(err, rc, "a machine named '%s' runs already", config->name);
    }
    if (rc < 0) {
        return rc == -EADDRINUSE ? rc : err_prefix(err, config->control ? "--control" : "--name");
    }
    const struct channel_config channel = {&host->loop, "serial", on_channel_input, NULL, host};
    host->channel = channel_new(&channel);
    host_device_methods_begin(host);
    return host->channel ? 0 : err_sys(err, -ENOMEM, "cannot open the control socket");
}

void host_control_close(struct host *host)
{
    if (host->control) {
        control_event(
            host->control, "exit",
            json_pack("{s:i, s:s}", "status", host->status, "reason", vm_status_name(host->status)));
    }
    host_device_methods_end(host);
    if (host->devices) {
        ports_close_channels(devices_ports(host->devices));
    }
    channel_free(host->channel);
    host->channel = NULL;
    control_free(host->control);
    host->control = NULL;
    if (host->config->name && !host->config->control) {
        rundir_remove(host->config->name);
    }
}
