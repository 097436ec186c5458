/*
 * See hotplug.h.
 *
 * Invariants
 *  1. A function that left the bus because the guest let it go has its slot's bit in `ejected` until its
 * device is freed; nothing of it is saved in between, as devices_settle comes first.
 *  2. Slots of the options' devices are fixed by the options alone, so that a restored machine has each
 * device where it was.
 */
#include "vm/hotplug.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "dev/pci/hotplug.h"
#include "dev/virtio/virtio_pci.h"
#include "net/tap.h"
#include "sandbox/jail.h"
#include "vm/devices_int.h"
#include "vm/disk.h"
#include "vm/machine.h"
#include "vm/pc.h"

#define NAMED_MAX 1000u

const char *device_kind_name(enum device_kind kind)
{
    static const char *const names[] = {
        [DEVICE_OTHER] = "device", [DEVICE_DISK] = "disk", [DEVICE_NIC] = "nic"};
    return names[kind];
}

static struct pci_hotplug *chip(const struct devices *devices)
{
    return pc_hotplug(machine_pc(devices->machine));
}

const struct machine_device *devices_find(const struct devices *devices, const char *id)
{
    for (unsigned i = 0; i < devices->count; i++) {
        if (devices->all[i].kind != DEVICE_OTHER && strcmp(devices->all[i].id, id) == 0) {
            return &devices->all[i];
        }
    }
    return NULL;
}

/* --- going ------------------------------------------------------------------------------------------------
 */

/* A vCPU's thread, or a reset's. */
static void on_ejected(void *opaque, unsigned slot)
{
    struct devices *devices = opaque;
    atomic_fetch_or(&devices->ejected, BIT(slot));
    uv_async_send(&devices->async);
}

void devices_hotplug_begin(struct devices *devices)
{
    mem_lock(devices->mem);
    pci_hotplug_set_owner(chip(devices), on_ejected, devices);
    mem_unlock(devices->mem);
}

/* The machine and its chips are freed already. */
void devices_hotplug_end(struct devices *devices)
{
    for (unsigned i = 0; i < devices->count; i++) {
        free(devices->all[i].text);
    }
    json_decref(devices->changes);
}

/* Its function has left the bus. */
static void take_down(struct devices *devices, unsigned index)
{
    struct machine_device gone = devices->all[index];
    if (devices->gone) {
        devices->gone(devices->gone_opaque, &gone);
    }
    devices->count--;
    memmove(&devices->all[index], &devices->all[index + 1],
            (devices->count - index) * sizeof(devices->all[0]));
    devices->unplugged |= gone.plugged ? 0 : BIT(gone.slot);
    mem_lock(devices->mem);
    pci_hotplug_forget(chip(devices), gone.slot);
    mem_unlock(devices->mem);
    pc_remove_device(machine_pc(devices->machine), virtio_pci_device(gone.vp));
    free(gone.text);
}

void devices_take_ejected(struct devices *devices)
{
    uint32_t slots = atomic_exchange(&devices->ejected, 0);
    for (unsigned i = devices->count; slots && i-- > 0;) {
        if (devices->all[i].kind != DEVICE_OTHER && (slots & BIT(devices->all[i].slot))) {
            take_down(devices, i);
        }
    }
}

static int may_go(const struct devices *devices, const struct machine_device *device, const char *id,
                  struct err *err)
{
    if (!device) {
        return err_set(err, -ENOENT, "the machine has no disk or NIC '%.64s'", id);
    }
    if (!devices->config->kernel && !device->plugged && strcmp(device->id, "disk0") == 0) {
        return err_set(err, -ENOTSUP, "the machine boots from '%s': it can't go", id);
    }
    return 0;
}

int devices_unplug(struct devices *devices, const char *id, struct err *err)
{
    const struct machine_device *device = devices_find(devices, id);
    int rc = may_go(devices, device, id, err);
    if (rc == 0) {
        mem_lock(devices->mem);
        pci_hotplug_ask(chip(devices), device->slot);
        mem_unlock(devices->mem);
    }
    return rc;
}

bool devices_leaving(struct devices *devices, const struct machine_device *device)
{
    mem_lock(devices->mem);
    bool asked = pci_hotplug_asked(chip(devices), device->slot);
    mem_unlock(devices->mem);
    return asked;
}

void devices_on_gone(struct devices *devices, void (*gone)(void *opaque, const struct machine_device *device),
                     void *opaque)
{
    devices->gone = gone;
    devices->gone_opaque = opaque;
}

/* --- coming -----------------------------------------------------------------------------------------------
 */

static bool is_id(const char *id)
{
    size_t len = strlen(id);
    return len > 0 && len <= DEVICE_ID_MAX &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == len;
}

/* A name for a new device, and a slot. */
static int choose(struct devices *devices, enum device_kind kind, const char *wanted, char *id,
                  unsigned *ret_slot, struct err *err)
{
    devices_take_ejected(devices);
    if (wanted && !is_id(wanted)) {
        return err_set(err, -EINVAL,
                       "'%.64s' is no name for a device: 1 to %u letters, digits, '-', '_' and '.'", wanted,
                       DEVICE_ID_MAX);
    }
    snprintf(id, DEVICE_ID_MAX + 1, "%s", wanted ? wanted : "");
    for (unsigned n = 0; !wanted && n < NAMED_MAX; n++) {
        snprintf(id, DEVICE_ID_MAX + 1, "%s%u", device_kind_name(kind), n);
        if (n >= devices->named[kind] && !devices_find(devices, id)) {
            break;
        }
    }
    if (devices_find(devices, id)) {
        return err_set(err, -EEXIST, "the machine has a device '%s' already", id);
    }
    mem_lock(devices->mem);
    *ret_slot = pci_host_free_slot(pc_pci(machine_pc(devices->machine)));
    mem_unlock(devices->mem);
    if (*ret_slot == PCI_SLOTS || devices->count == PCI_SLOTS) {
        return err_set(err, -ENOSPC, "no slot for another device: a machine has room for %u", PCI_SLOTS - 1);
    }
    return 0;
}

/* The newest device is one that the guest has to hear of, but for a machine that does not run yet. */
static int finish(struct devices *devices, const char *text, bool tell, struct err *err)
{
    struct machine_device *device = &devices->all[devices->count - 1];
    device->text = strdup(text);
    device->plugged = true;
    if (!device->text) {
        take_down(devices, devices->count - 1);
        return err_sys(err, -ENOMEM, "cannot plug a device");
    }
    if (tell) {
        mem_lock(devices->mem);
        pci_hotplug_forget(chip(devices), device->slot);
        pci_hotplug_changed(chip(devices), device->slot);
        mem_unlock(devices->mem);
    }
    return 0;
}

/* Of what was opened here by its name: nothing else exists inside a jail. */
static int explain(int rc, struct err *err)
{
    return (rc == -ENOENT || rc == -EACCES || rc == -EROFS) && jail_is_closed()
               ? err_prefix(err, "the machine's jail has no files but those of the directories that it was "
                                 "started with (docs/jail.md)")
               : rc;
}

static int make_disk(struct devices *devices, const char *text, const char *id, unsigned slot,
                     const struct blk_open_file *files, unsigned count, struct err *err)
{
    struct disk_options options;
    int rc = disk_options_parse(text, &options, err);
    if (rc < 0) {
        return rc;
    }
    if (options.path[0] != '/') {
        return err_set(err, -EINVAL, "'%.256s' is not an absolute path", options.path);
    }
    options.ephemeral = devices->config->ephemeral && !options.read_only;
    options.files = files;
    options.file_count = count;
    rc = devices_make_disk(devices, &options, id, slot, err);
    return files ? rc : explain(rc, err);
}

static int same_mac(const struct devices *devices, const struct nic_options *options, struct err *err)
{
    for (unsigned i = 0; options->has_mac && i < devices->count; i++) {
        const struct machine_device *one = &devices->all[i];
        uint8_t mac[6];
        if (one->kind == DEVICE_NIC) {
            mem_lock(devices->mem);
            vdev_config_read(one->vdev, 0, sizeof(mac), mac); /* virtio 1.2 section 5.1.4: it comes first */
            mem_unlock(devices->mem);
            if (memcmp(mac, options->mac, sizeof(mac)) == 0) {
                return err_set(err, -EEXIST, "'%s' has that MAC address", one->id);
            }
        }
    }
    return 0;
}

/* What the jail of a machine that runs leaves of the kinds of NICs. */
static int may_have(const struct nic_options *options, bool open, struct err *err)
{
    if (options->kind == NIC_NONE) {
        return err_set(err, -EINVAL, "'none' is no NIC");
    }
    if (open && options->kind != NIC_TAP) {
        return err_set(err, -EINVAL, "an open descriptor is for a tap device only");
    }
    if (options->kind == NIC_USER && !jail_has(JAIL_NEED_INTERNET)) {
        return err_set(err, -ENOTSUP,
                       "the machine's jail has no network for a NIC of kind user: start the machine with one "
                       "(--net user), or plug a wire or a tap device");
    }
    if (options->kind == NIC_TAP && !open && jail_is_closed()) {
        return err_set(err, -ENOTSUP,
                       "the machine can't open tap devices inside its jail: send '%.64s' as an open "
                       "descriptor (docs/control.md)",
                       options->where);
    }
    return 0;
}

static int make_nic(struct devices *devices, const char *text, const char *id, unsigned slot, int fd,
                    struct err *err)
{
    struct nic_options options;
    auto_close int tap = fd;
    int rc = nic_options_parse(text, &options, err);
    rc = rc ? rc : may_have(&options, tap >= 0, err);
    rc = rc ? rc : same_mac(devices, &options, err);
    if (rc < 0) {
        return rc;
    }
    struct net_port *port = tap >= 0 ? net_tap_adopt(devices->loop, take_fd(&tap), (uint16_t)options.mtu, err)
                                     : devices_make_port(devices, &options, err);
    if (!port) {
        return options.kind == NIC_WIRE ? explain(err->code, err) : err->code;
    }
    return devices_make_nic(devices, &options, port, id, slot, err);
}

int devices_plug_disk(struct devices *devices, const char *text, const char *id,
                      const struct blk_open_file *files, unsigned count,
                      const struct machine_device **ret_device, struct err *err)
{
    char name[DEVICE_ID_MAX + 1];
    unsigned slot;
    int rc = choose(devices, DEVICE_DISK, id, name, &slot, err);
    rc = rc ? rc : make_disk(devices, text, name, slot, files, count, err);
    rc = rc ? rc : finish(devices, text, true, err);
    if (rc == 0) {
        *ret_device = &devices->all[devices->count - 1];
    }
    return rc;
}

int devices_plug_nic(struct devices *devices, const char *text, const char *id, int fd,
                     const struct machine_device **ret_device, struct err *err)
{
    char name[DEVICE_ID_MAX + 1];
    unsigned slot;
    auto_close int tap = fd;
    int rc = choose(devices, DEVICE_NIC, id, name, &slot, err);
    rc = rc ? rc : make_nic(devices, text, name, slot, take_fd(&tap), err);
    rc = rc ? rc : finish(devices, text, true, err);
    if (rc == 0) {
        *ret_device = &devices->all[devices->count - 1];
    }
    return rc;
}

/* --- saved machines ---------------------------------------------------------------------------------------
 *
 *     {"unplugged": [2], "plugged": [{"kind": "disk", "id": "data", "slot": 5, "text": "/srv/data.qcow2"}]}
 */

static json_t *changes(const struct devices *devices)
{
    json_t *unplugged = json_array(), *plugged = json_array();
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (devices->unplugged & BIT(slot)) {
            json_array_append_new(unplugged, json_integer(slot));
        }
    }
    for (unsigned i = 0; i < devices->count; i++) {
        const struct machine_device *one = &devices->all[i];
        if (one->plugged) {
            json_array_append_new(plugged,
                                  json_pack("{s:s, s:s, s:i, s:s}", "kind", device_kind_name(one->kind), "id",
                                            one->id, "slot", (int)one->slot, "text", one->text));
        }
    }
    return json_pack("{s:o, s:o}", "unplugged", unplugged, "plugged", plugged);
}

char *devices_changes_json(const struct devices *devices)
{
    json_t *json = changes(devices);
    bool none = !json_array_size(json_object_get(json, "unplugged")) &&
                !json_array_size(json_object_get(json, "plugged"));
    char *text = none ? NULL : json_dumps(json, JSON_COMPACT);
    json_decref(json);
    return text;
}

bool devices_changes_equal(const struct devices *devices, const char *json)
{
    json_t *now = changes(devices), *then = json ? json_loads(json, 0, NULL) : NULL;
    if (!json) {
        then = json_pack("{s:[], s:[]}", "unplugged", "plugged");
    }
    bool equal = json_equal(now, then);
    json_decref(now);
    json_decref(then);
    return equal;
}

int devices_changes_load(struct devices *devices, const char *json, struct err *err)
{
    json_t *slot;
    size_t i;
    if (!json) {
        return 0;
    }
    devices->changes = json_loads(json, 0, NULL);
    json_array_foreach(json_object_get(devices->changes, "unplugged"), i, slot)
    {
        json_int_t number = json_integer_value(slot);
        if (number < 1 || number >= (json_int_t)PCI_SLOTS) {
            return err_set(err, -EBADMSG, "its configuration has a slot that can't be");
        }
        devices->unplugged |= BIT((unsigned)number);
    }
    return 0;
}

static int replay(struct devices *devices, const json_t *one, struct err *err)
{
    const char *kind = json_string_value(json_object_get(one, "kind"));
    const char *id = json_string_value(json_object_get(one, "id"));
    const char *text = json_string_value(json_object_get(one, "text"));
    json_int_t slot = json_integer_value(json_object_get(one, "slot"));
    bool disk = kind && strcmp(kind, "disk") == 0, nic = kind && strcmp(kind, "nic") == 0;
    if (!(disk || nic) || !id || !is_id(id) || !text || slot < 1 || slot >= (json_int_t)PCI_SLOTS ||
        devices->count == PCI_SLOTS || devices_find(devices, id)) {
        return err_set(err, -EBADMSG, "its configuration has a device that can't be");
    }
    int rc = disk ? make_disk(devices, text, id, (unsigned)slot, NULL, 0, err)
                  : make_nic(devices, text, id, (unsigned)slot, -1, err);
    rc = rc ? rc : finish(devices, text, false, err);
    return rc < 0 ? err_prefix(err, "device '%s', which was plugged", id) : 0;
}

int devices_changes_replay(struct devices *devices, struct err *err)
{
    json_t *one;
    size_t i;
    int rc = 0;
    json_array_foreach(json_object_get(devices->changes, "plugged"), i, one)
    {
        rc = rc ? rc : replay(devices, one, err);
    }
    json_decref(devices->changes);
    devices->changes = NULL;
    return rc;
}
