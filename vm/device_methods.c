/*
 * The control socket's methods about disks and NICs: see docs/control.md. hotplug.h does the work.
 *
 *     disk_detach --> the guest is asked, a job begins --+--> gone: the job's end, event "device"
 *                                                        +--> time-out: the job fails; when the guest lets go
 *                                                        |    later on, there is the event alone
 *                                                        `--> cancelled: the same
 *
 * Threads: main loop.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "block/block.h"
#include "control/control.h"
#include "dev/pci/pci.h"
#include "dev/virtio/net.h"
#include "vm/device_options.h"
#include "vm/disk.h"
#include "vm/host_int.h"
#include "vm/hotplug.h"
#include "vm/pause.h"

#define DETACH_S_DEFAULT 30u
#define DETACH_S_MAX     3600u
#define LIMIT_MAX        (1ull << 50)

/* --- what there is ----------------------------------------------------------------------------------------
 */

static void mac_text(const uint8_t *mac, char text[18])
{
    snprintf(text, 18, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static json_t *describe(struct host *host, const struct machine_device *device)
{
    json_t *out = json_pack("{s:s, s:s, s:i, s:b, s:b}", "id", device->id, "kind",
                            device->kind == DEVICE_DISK ? "disk" : "nic", "slot", (int)device->slot,
                            "plugged", device->plugged, "leaving", devices_leaving(host->devices, device));
    json_t *option = device->text ? json_string(device->text) : NULL; /* NULL: no UTF-8 */
    if (option) {
        json_object_set_new(out, "option", option);
    }
    if (device->kind == DEVICE_DISK) {
        struct blk_info info;
        blk_get_info(disk_node(device->disk), &info);
        json_object_set_new(out, "size_bytes", json_integer((json_int_t)info.size_bytes));
        json_object_set_new(out, "format", json_string(info.format));
        json_object_set_new(out, "read_only", json_boolean(info.read_only));
        json_t *file = json_string(info.filename); /* NULL: no UTF-8 */
        if (file) {
            json_object_set_new(out, "file", file);
        }
    } else {
        struct vnet_counts counts;
        char mac[18];
        vnet_get_counts(device->vdev, &counts);
        mac_text(counts.mac, mac);
        json_object_set_new(out, "net", json_string(counts.kind));
        json_object_set_new(out, "mac", json_string(mac));
        json_object_set_new(out, "up", json_boolean(counts.link_up));
    }
    return out;
}

void host_method_devices(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    json_t *list = json_array();
    for (unsigned i = 0; i < devices_count(host->devices); i++) {
        const struct machine_device *device = devices_at(host->devices, i);
        if (device->kind != DEVICE_OTHER) {
            json_array_append_new(list, describe(host, device));
        }
    }
    control_reply(call, json_pack("{s:o}", "devices", list));
}

json_t *host_disk_stats(struct host *host)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < devices_count(host->devices); i++) {
        const struct machine_device *device = devices_at(host->devices, i);
        struct blk_info info;
        struct blk_stats stats;
        if (device->kind != DEVICE_DISK) {
            continue;
        }
        blk_get_info(disk_node(device->disk), &info);
        blk_get_stats(disk_node(device->disk), &stats);
        json_t *one = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "id", device->id, "reads",
                                (json_int_t)stats.ops[BLK_READ], "writes", (json_int_t)stats.ops[BLK_WRITE],
                                "flushes", (json_int_t)stats.ops[BLK_FLUSH], "read_bytes",
                                (json_int_t)stats.read_bytes, "write_bytes", (json_int_t)stats.write_bytes);
        json_t *file = json_string(info.filename);
        if (file) {
            json_object_set_new(one, "file", file);
        }
        json_array_append_new(list, one);
    }
    return list;
}

json_t *host_network_stats(struct host *host)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < devices_count(host->devices); i++) {
        const struct machine_device *device = devices_at(host->devices, i);
        struct vnet_counts c;
        char mac[18];
        if (device->kind != DEVICE_NIC) {
            continue;
        }
        vnet_get_counts(device->vdev, &c);
        mac_text(c.mac, mac);
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I}", "id", device->id, "net",
                            c.kind, "mac", mac, "up", c.link_up, "rx_bytes", (json_int_t)c.rx_bytes,
                            "rx_packets", (json_int_t)c.rx_frames, "rx_dropped", (json_int_t)c.rx_dropped,
                            "tx_bytes", (json_int_t)c.tx_bytes, "tx_packets", (json_int_t)c.tx_frames,
                            "tx_dropped", (json_int_t)c.tx_dropped));
    }
    return list;
}

/* A disk or NIC by its name, or the call is failed. */
static const struct machine_device *find(struct host *host, struct control_call *call, const char *id,
                                         enum device_kind kind)
{
    const struct machine_device *device = devices_find(host->devices, id);
    if (!device || device->kind != kind) {
        control_fail(call, "not_found", "the method \"devices\" lists them", "the machine has no %s '%.64s'",
                     kind == DEVICE_DISK ? "disk" : "NIC", id);
        return NULL;
    }
    return device;
}

static bool changes_allowed(struct host *host, struct control_call *call)
{
    if (host->saving) {
        control_fail(call, "busy", "wait for it, or cancel its job", "the machine is being saved");
        return false;
    }
    return true;
}

/* --- coming -----------------------------------------------------------------------------------------------
 */

static void device_event(struct host *host, const char *state, const struct machine_device *device)
{
    control_event(host->control, "device",
                  json_pack("{s:s, s:s, s:s, s:i}", "state", state, "id", device->id, "kind",
                            device->kind == DEVICE_DISK ? "disk" : "nic", "slot", (int)device->slot));
}

static void answer_attached(struct host *host, struct control_call *call, int rc,
                            const struct machine_device *device, const struct err *err)
{
    if (rc < 0) {
        control_fail_err(call, err);
        return;
    }
    device_event(host, "attached", device);
    control_reply(call, describe(host, device));
}

/* The descriptors that came with a request; their names are borrowed from its parameters. */
struct files {
    unsigned count;
    struct blk_open_file file[CONTROL_FDS_MAX];
};

static void close_files(struct files *files)
{
    while (files->count > 0) {
        close(files->file[--files->count].fd);
    }
}

static bool take_files(struct control_call *call, const json_t *names, struct files *ret)
{
    size_t i;
    json_t *name;
    ret->count = 0;
    json_array_foreach(names, i, name)
    {
        int fd = json_is_string(name) && i < CONTROL_FDS_MAX ? control_take_fd(call) : -1;
        if (fd < 0) {
            close_files(ret);
            control_fail(call, "bad_params", "send them with the request (SCM_RIGHTS), in the list's order",
                         "'files' names %zu files, and %zu open descriptors came: 1 to %u of each",
                         json_array_size(names), i, CONTROL_FDS_MAX);
            return false;
        }
        ret->file[ret->count++] = (struct blk_open_file){json_string_value(name), fd};
    }
    return true;
}

void host_method_disk_attach(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct attach {
        const char *disk, *id;
        json_t *files;
    } p = {0};
    static const struct control_param table[] = {
        {"disk", CONTROL_STRING, true, offsetof(struct attach, disk), 0, 0},
        {"id", CONTROL_STRING, false, offsetof(struct attach, id), 0, 0},
        {"files", CONTROL_ARRAY, false, offsetof(struct attach, files), 0, 0}};
    const struct machine_device *device = NULL;
    struct files files;
    struct err err = {0};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p) || !changes_allowed(host, call) ||
        !take_files(call, p.files, &files)) {
        return;
    }
    int rc = devices_plug_disk(host->devices, p.disk, p.id, files.file, files.count, &device, &err);
    close_files(&files);
    answer_attached(host, call, rc, device, &err);
}

void host_method_nic_attach(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct attach {
        const char *nic, *id;
        bool tap;
    } p = {0};
    static const struct control_param table[] = {
        {"nic", CONTROL_STRING, true, offsetof(struct attach, nic), 0, 0},
        {"id", CONTROL_STRING, false, offsetof(struct attach, id), 0, 0},
        {"tap", CONTROL_BOOL, false, offsetof(struct attach, tap), 0, 0}};
    const struct machine_device *device = NULL;
    struct err err = {0};
    int fd = -1;
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p) || !changes_allowed(host, call)) {
        return;
    }
    if (p.tap && (fd = control_take_fd(call)) < 0) {
        control_fail(call, "bad_params", "send it with the request (SCM_RIGHTS)",
                     "'tap' stands for an open descriptor, and none came");
        return;
    }
    int rc = devices_plug_nic(host->devices, p.nic, p.id, fd, &device, &err);
    answer_attached(host, call, rc, device, &err);
}

/* --- going ------------------------------------------------------------------------------------------------
 */

struct leaving {
    struct host *host;
    struct leaving *next;
    struct control_job *job;
    uv_timer_t timer;
    char id[DEVICE_ID_MAX + 1];
};

static void on_timer_closed(uv_handle_t *handle)
{
    free(handle->data);
}

/* Its job ends: as it should with err NULL. */
static void end_leaving(struct leaving *leaving, const struct err *err)
{
    struct leaving **p = &leaving->host->leaving;
    while (*p != leaving) {
        p = &(*p)->next;
    }
    *p = leaving->next;
    control_job_end(leaving->job, err ? NULL : json_pack("{s:s}", "id", leaving->id), err);
    uv_close((uv_handle_t *)&leaving->timer, on_timer_closed);
}

static void on_late(uv_timer_t *timer)
{
    struct leaving *leaving = timer->data;
    struct err err = {0};
    err_set(&err, -ETIMEDOUT,
            "the guest has not let go of '%s' in time; it may still do so: does its kernel have ACPI PCI "
            "hot-plug, and has it booted? A reset takes it out",
            leaving->id);
    end_leaving(leaving, &err);
}

static void on_cancel(void *opaque)
{
    struct leaving *leaving = opaque;
    struct err err = {0};
    err_set(&err, -ECANCELED, "nobody waits any more; the guest may still let go of '%s'", leaving->id);
    end_leaving(leaving, &err);
}

static void on_gone(void *opaque, const struct machine_device *device)
{
    struct host *host = opaque;
    if (!host->control) {
        return;
    }
    device_event(host, "detached", device);
    for (struct leaving *leaving = host->leaving; leaving; leaving = leaving->next) {
        if (strcmp(leaving->id, device->id) == 0) {
            end_leaving(leaving, NULL);
            return;
        }
    }
}

static bool is_leaving(const struct host *host, const char *id)
{
    for (const struct leaving *leaving = host->leaving; leaving; leaving = leaving->next) {
        if (strcmp(leaving->id, id) == 0) {
            return true;
        }
    }
    return false;
}

static void begin_leaving(struct host *host, const char *id, uint64_t timeout_s, struct control_call *call)
{
    struct err err = {0};
    struct leaving *leaving = calloc(1, sizeof(*leaving));
    struct control_job *job = leaving ? control_job_new(host->control, "detach", on_cancel, leaving) : NULL;
    if (!job) {
        free(leaving);
        control_fail(call, "busy", NULL, "too many jobs, or no memory");
        return;
    }
    leaving->host = host;
    leaving->job = job;
    leaving->next = host->leaving;
    host->leaving = leaving;
    snprintf(leaving->id, sizeof(leaving->id), "%s", id);
    uv_timer_init(&host->loop, &leaving->timer);
    leaving->timer.data = leaving;
    uv_timer_start(&leaving->timer, on_late, timeout_s * 1000, 0);
    control_reply_job(call, job); /* the request, and with it id, is gone */
    if (devices_unplug(host->devices, leaving->id, &err) < 0) {
        end_leaving(leaving, &err);
    }
}

static void detach(struct control_call *call, json_t *params, struct host *host, enum device_kind kind)
{
    struct detach {
        const char *id;
        uint64_t timeout_s;
    } p = {.timeout_s = DETACH_S_DEFAULT};
    static const struct control_param table[] = {
        {"id", CONTROL_STRING, true, offsetof(struct detach, id), 0, 0},
        {"timeout_s", CONTROL_UINT, false, offsetof(struct detach, timeout_s), 1, DETACH_S_MAX}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p) || !changes_allowed(host, call) ||
        !find(host, call, p.id, kind)) {
        return;
    }
    if (machine_pause_reasons(host->machine)) {
        control_fail(call, "busy", "resume it", "the machine is paused: it can't let '%s' go", p.id);
    } else if (is_leaving(host, p.id)) {
        control_fail(call, "busy", "wait for that job", "'%s' is being detached already", p.id);
    } else {
        begin_leaving(host, p.id, p.timeout_s, call);
    }
}

void host_method_disk_detach(struct control_call *call, json_t *params, void *opaque)
{
    detach(call, params, opaque, DEVICE_DISK);
}

void host_method_nic_detach(struct control_call *call, json_t *params, void *opaque)
{
    detach(call, params, opaque, DEVICE_NIC);
}

/* --- changing ---------------------------------------------------------------------------------------------
 */

void host_method_throttle(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct limits {
        const char *id;
        struct blk_throttle_limits limits;
    } p = {0};
    static const struct control_param table[] = {
        {"id", CONTROL_STRING, true, offsetof(struct limits, id), 0, 0},
        {"iops", CONTROL_UINT, false, offsetof(struct limits, limits.iops), 0, DISK_IOPS_MAX},
        {"iops_burst", CONTROL_UINT, false, offsetof(struct limits, limits.iops_burst), 0, DISK_IOPS_MAX},
        {"bps", CONTROL_UINT, false, offsetof(struct limits, limits.bytes_per_s), 0, LIMIT_MAX},
        {"bps_burst", CONTROL_UINT, false, offsetof(struct limits, limits.bytes_burst), 0, LIMIT_MAX}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return;
    }
    const struct machine_device *device = find(host, call, p.id, DEVICE_DISK);
    if (!device) {
        return;
    }
    if (disk_set_limits(device->disk, &p.limits) < 0) {
        control_fail(call, "no_memory", NULL, "out of memory");
    } else {
        control_reply(call, NULL);
    }
}

void host_method_nic_link(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct link {
        const char *id;
        bool up;
    } p = {0};
    static const struct control_param table[] = {
        {"id", CONTROL_STRING, true, offsetof(struct link, id), 0, 0},
        {"up", CONTROL_BOOL, true, offsetof(struct link, up), 0, 0}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return;
    }
    const struct machine_device *device = find(host, call, p.id, DEVICE_NIC);
    if (device) {
        vnet_set_cable(device->vdev, p.up);
        control_reply(call, NULL);
    }
}

void host_method_nic_plug(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct nic_plug {
        uint64_t nic;
        bool plugged;
    } p = {0};
    static const struct control_param table[] = {
        {"nic", CONTROL_UINT, true, offsetof(struct nic_plug, nic), 0, PCI_SLOTS - 1},
        {"plugged", CONTROL_BOOL, true, offsetof(struct nic_plug, plugged), 0, 0}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return;
    }
    if (devices_nic_plug(host->devices, (unsigned)p.nic, p.plugged) < 0) {
        control_fail(call, "not_found", "NICs count from 0, in the order of --net",
                     "the machine has no such NIC");
        return;
    }
    control_reply(call, NULL);
}

/* --- life -------------------------------------------------------------------------------------------------
 */

void host_device_methods_begin(struct host *host)
{
    devices_on_gone(host->devices, on_gone, host);
}

void host_device_methods_end(struct host *host)
{
    while (host->leaving) {
        struct err err = {0};
        err_set(&err, -ECANCELED, "the machine has ended");
        end_leaving(host->leaving, &err);
    }
    if (host->devices) {
        devices_on_gone(host->devices, NULL, NULL);
    }
}
