/*
 * See devices.h. A device that has something to do for its guest wakes the loop by one uv_async for all.
 */
#include "vm/devices.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/util.h"
#include "block/block.h"
#include "dev/virtio/balloon.h"
#include "dev/virtio/blk.h"
#include "dev/virtio/feature_names.h"
#include "dev/virtio/net.h"
#include "dev/virtio/rng.h"
#include "dev/virtio/v9p.h"
#include "dev/virtio/virtio_pci.h"
#include "dev/virtio/vsock.h"
#include "net/tap.h"
#include "net/user.h"
#include "net/wire.h"
#include "vm/device_options.h"
#include "vm/devices_int.h"
#include "vm/disk.h"
#include "vm/machine.h"
#include "vm/pc.h"
#include "vm/saved/snapshot.h"
#include "vm/seed.h"

#define DISK_QUEUES_MAX 4u

/* Any thread. */
static void on_wake(void *opaque)
{
    struct devices *devices = opaque;
    uv_async_send(&devices->async);
}

static void on_async(uv_async_t *async)
{
    struct devices *devices = async->data;
    if (devices->blk_loop) {
        blk_loop_plug(devices->blk_loop); /* requests of all queues go to the host together */
    }
    for (unsigned i = 0; i < devices->count; i++) {
        if (atomic_load(&devices->all[i].vdev->run_wanted)) {
            vdev_run(devices->all[i].vdev);
        }
    }
    if (devices->blk_loop) {
        blk_loop_unplug(devices->blk_loop);
    }
    devices_take_ejected(devices);
}

/* Takes dev over. */
int devices_add(struct devices *devices, struct vdev *dev, enum device_kind kind, const char *id,
                unsigned slot, struct err *err)
{
    struct pc *pc = machine_pc(devices->machine);
    if (!dev) {
        return err && err->code ? err->code : -ENOMEM;
    }
    unsigned index = 0; /* among its kind */
    for (unsigned i = 0; i < devices->count; i++) {
        index += devices->all[i].vdev->ops->id == dev->ops->id;
    }
    for (unsigned i = 0; i < devices->config->withheld.count; i++) {
        (void)vfeat_withhold(dev, index, devices->config->withheld.values[i],
                             NULL); /* checked in devices_new */
    }
    dev->wake = on_wake;
    dev->wake_opaque = devices;
    struct virtio_pci *vp = virtio_pci_new_at(pc_pci(pc), dev, slot, err);
    if (!vp) {
        return -ENOSPC;
    }
    if (devices->count == PCI_SLOTS || !pc_add_device(pc, virtio_pci_device(vp))) {
        virtio_pci_device(vp)->ops->free(virtio_pci_device(vp));
        return err_set(err, -ENOSPC, "the machine has too many devices");
    }
    struct machine_device *one = &devices->all[devices->count++];
    *one = (struct machine_device){.kind = kind, .vdev = dev, .vp = vp, .slot = slot};
    snprintf(one->id, sizeof(one->id), "%s", id);
    return 0;
}

/* At start-up every device has the next slot, in the order of the options. */
static int add(struct devices *devices, struct vdev *dev, struct err *err)
{
    return devices_add(devices, dev, DEVICE_OTHER, dev ? dev->ops->name : "", devices->next_slot++, err);
}

/* The next disk's or NIC's name. False: it was unplugged before the machine was saved, and its slot is empty.
 */
static bool take_place(struct devices *devices, enum device_kind kind, char *id)
{
    snprintf(id, DEVICE_ID_MAX + 1, "%s%u", device_kind_name(kind), devices->named[kind]++);
    if (devices->unplugged & BIT(devices->next_slot % PCI_SLOTS)) {
        devices->next_slot++;
        return false;
    }
    return true;
}

/* What the newest device was made of. */
static int keep_text(struct devices *devices, const char *text, struct err *err)
{
    char *copy = strdup(text);
    devices->all[devices->count - 1].text = copy;
    return copy ? 0 : err_sys(err, -ENOMEM, "cannot make the devices");
}

static int make_rng(struct devices *devices, struct err *err)
{
    return strcmp(devices->config->rng, "on") == 0 ? add(devices, vrng_new(devices->mem, err), err) : 0;
}

static void on_block(uv_poll_t *poll, int status, int events)
{
    struct devices *devices = poll->data;
    blk_loop_poll(devices->blk_loop, 0);
}

int devices_open_blocks(struct devices *devices, struct err *err)
{
    if (devices->blk_loop) {
        return 0;
    }
    int rc = blk_loop_new(BLK_ENGINE_AUTO, &devices->blk_loop, err);
    if (rc == 0) {
        uv_poll_init(devices->loop, &devices->blk_poll, blk_loop_fd(devices->blk_loop));
        devices->blk_poll.data = devices;
        uv_poll_start(&devices->blk_poll, UV_READABLE, on_block);
    }
    return rc;
}

int devices_make_disk(struct devices *devices, const struct disk_options *options, const char *id,
                      unsigned slot, struct err *err)
{
    int rc = devices_open_blocks(devices, err);
    if (rc < 0) {
        return rc;
    }
    struct vblk_backend *backend =
        disk_open(devices->loop, devices->blk_loop, devices->machine, options, err);
    if (!backend) {
        return err->code;
    }
    const struct vblk_config config = {
        .mem = devices->mem,
        .backend = backend,
        .queues = (unsigned)MIN(devices->config->cpus, DISK_QUEUES_MAX),
        .serial = options->serial[0] ? options->serial : NULL,
    };
    rc = devices_add(devices, vblk_new(&config, err), DEVICE_DISK, id, slot, err);
    if (rc == 0) {
        devices->all[devices->count - 1].disk = backend;
    }
    return rc;
}

static int make_disks(struct devices *devices, struct err *err)
{
    int rc = 0;
    for (unsigned i = 0; i < devices->config->disks.count && rc == 0; i++) {
        struct disk_options options;
        char id[DEVICE_ID_MAX + 1];
        if (!take_place(devices, DEVICE_DISK, id)) {
            continue;
        }
        rc = disk_options_parse(devices->config->disks.values[i], &options, err);
        options.ephemeral = devices->config->ephemeral && !options.read_only;
        rc = rc ? rc : devices_make_disk(devices, &options, id, devices->next_slot++, err);
        rc = rc ? rc : keep_text(devices, devices->config->disks.values[i], err);
    }
    return rc;
}

/* cloud-init knows its volume by the label. */
static int make_seed(struct devices *devices, struct err *err)
{
    struct disk_options options = {.format = "raw", .serial = "cidata", .read_only = true};
    const struct vm_config *config = devices->config;
    if (!config->user_data) {
        return 0;
    }
    auto_close int fd = seed_make(config->user_data, config->meta_data, err);
    snprintf(options.path, sizeof(options.path), "/proc/self/fd/%d", fd);
    return fd < 0 ? fd : devices_make_disk(devices, &options, "seed", devices->next_slot++, err);
}

/* Fonda's own locally administered prefix, and three random bytes. */
static int make_mac(uint8_t *mac)
{
    static const uint8_t prefix[3] = {0x02, 0xf0, 0xda};
    memcpy(mac, prefix, sizeof(prefix));
    return getrandom(mac + 3, 3, 0) == 3 ? 0 : -EIO;
}

static struct net_port *make_port(struct devices *devices, const struct nic_options *options,
                                  const struct net_forward *forwards, unsigned count, struct err *err)
{
    switch (options->kind) {
    case NIC_USER: return net_user_new(devices->loop, forwards, count, err);
    case NIC_TAP: return net_tap_new(devices->loop, options->where, err);
    case NIC_WIRE: return net_wire_new(devices->loop, options->where, err);
    case NIC_NONE: break;
    }
    return NULL;
}

int devices_make_nic(struct devices *devices, const struct nic_options *options, struct net_port *port,
                     const char *id, unsigned slot, struct err *err)
{
    struct vnet_config config = {.mem = devices->mem,
                                 .port = port,
                                 .mtu = (uint16_t)options->mtu,
                                 .pairs = options->pairs ? (unsigned)options->pairs : 1};
    memcpy(config.mac, options->mac, sizeof(config.mac));
    if (!port) {
        return err->code;
    }
    if (!options->has_mac && make_mac(config.mac) < 0) {
        port->ops->free(port);
        return err_set(err, -EIO, "cannot make a MAC address");
    }
    return devices_add(devices, vnet_new(&config, err), DEVICE_NIC, id, slot, err);
}

struct net_port *devices_make_port(struct devices *devices, const struct nic_options *options,
                                   struct err *err)
{
    return make_port(devices, options, NULL, 0, err);
}

/* Ports are published by the first NIC that can. */
static int make_nics(struct devices *devices, struct err *err)
{
    const struct vm_config *config = devices->config;
    struct net_forward forwards[OPTION_LIST_MAX];
    unsigned count = config->publish.count;
    for (unsigned i = 0; i < config->publish.count; i++) {
        int rc = net_forward_parse(config->publish.values[i], &forwards[i], err);
        if (rc < 0) {
            return err_prefix(err, "--publish");
        }
    }
    static const struct option_list defaults = {.count = 1, .values = {"user"}};
    const struct option_list *nics = config->nics.count ? &config->nics : &defaults;
    for (unsigned i = 0; i < nics->count; i++) {
        struct nic_options options;
        char id[DEVICE_ID_MAX + 1];
        int rc = nic_options_parse(nics->values[i], &options, err);
        bool user = options.kind == NIC_USER;
        if (rc == 0 && options.kind != NIC_NONE && take_place(devices, DEVICE_NIC, id)) {
            rc = devices_make_nic(devices, &options,
                                  make_port(devices, &options, forwards, user ? count : 0, err), id,
                                  devices->next_slot++, err);
            rc = rc ? rc : keep_text(devices, nics->values[i], err);
        }
        if (rc < 0) {
            return rc;
        }
        count = user ? 0 : count;
    }
    return count ? err_set(err, -EINVAL, "--publish needs a NIC of --net user") : 0;
}

#define STATS_MS   10000u     /* between two looks at the guest's memory statistics */
#define TRIM_BYTES (64 * MiB) /* free memory that is worth a round of hinting */

/* Guests that don't report free pages by themselves are asked for them when the host holds much more than
 * they use.
 */
static void trim(struct devices *devices)
{
    struct vbal_info info;
    struct stat ram;
    vbal_get_info(devices->balloon, &info);
    uint64_t free_bytes = info.stats[VBAL_STAT_FREE];
    if (vbal_reports(devices->balloon) || free_bytes == UINT64_MAX ||
        fstat(mem_ram_fd(devices->mem), &ram) < 0) {
        return;
    }
    uint64_t held = (uint64_t)ram.st_blocks * 512;
    if (held + free_bytes >= devices->config->memory_bytes + TRIM_BYTES) {
        (void)vbal_trim(devices->balloon);
    }
}

static void on_stats(uv_timer_t *timer)
{
    struct devices *devices = timer->data;
    trim(devices);
    vbal_ask_stats(devices->balloon);
}

static int make_balloon(struct devices *devices, struct err *err)
{
    if (!devices->config->balloon && !devices->config->balloon_bytes) {
        return 0;
    }
    struct vdev *dev = vbal_new(devices->mem, err);
    int rc = add(devices, dev, err);
    if (rc == 0) {
        uv_timer_init(devices->loop, &devices->stats);
        devices->stats.data = devices;
        devices->balloon = dev;
        devices_balloon_set(devices, devices->config->balloon_bytes);
        uv_timer_start(&devices->stats, on_stats, STATS_MS, STATS_MS);
    }
    return rc;
}

static int make_vsock(struct devices *devices, struct err *err)
{
    const char *path = devices->config->vsock;
    return path ? add(devices, vsock_new(devices->mem, devices->loop, path, err), err) : 0;
}

static int make_ports(struct devices *devices, struct err *err)
{
    struct vdev *dev;
    int rc = ports_new(devices->config, devices->loop, devices->mem, devices->terminal, &devices->ports, &dev,
                       err);
    return rc == 0 && dev ? add(devices, dev, err) : rc;
}

static int make_shares(struct devices *devices, struct err *err)
{
    int rc = 0;
    for (unsigned i = 0; i < devices->config->shares.count && rc == 0; i++) {
        struct share_options options;
        rc = share_options_parse(devices->config->shares.values[i], &options, err);
        if (rc == 0) {
            rc = add(devices, v9p_new(devices->mem, options.dir, options.tag, options.read_only, err), err);
        }
    }
    return rc;
}

/* In the order in which the guest finds them on the bus; cloud-init's volume last, so that nothing changes
 * its slot for it. */
static const struct {
    const char *option; /* for errors; NULL: they name it */
    int (*make)(struct devices *devices, struct err *err);
} makers[] = {
    {"--rng", make_rng},         {"--disk", make_disks},  {"--net", make_nics}, {"--share", make_shares},
    {"--balloon", make_balloon}, {"--vsock", make_vsock}, {NULL, make_ports},   {NULL, make_seed},
};

int devices_new(const struct vm_config *config, uv_loop_t *loop, struct mem *mem, struct machine *machine,
                const struct ports_terminal *terminal, struct devices **ret_devices, struct err *err)
{
    struct devices *devices = calloc(1, sizeof(*devices));
    if (!devices || uv_async_init(loop, &devices->async, on_async) < 0) {
        free(devices);
        return err_set(err, -ENOMEM, "out of memory");
    }
    devices->config = config;
    devices->loop = loop;
    devices->mem = mem;
    devices->machine = machine;
    devices->terminal = terminal;
    devices->async.data = devices;
    devices->next_slot = 1; /* 0 is the bridge */
    devices_hotplug_begin(devices);
    int rc = devices_changes_load(devices, config->device_changes, err);
    if (rc < 0) {
        return rc;
    }
    *ret_devices = devices; /* also when this fails: what was made wakes it */
    for (unsigned i = 0; i < config->withheld.count; i++) {
        rc = vfeat_check(config->withheld.values[i], err);
        if (rc < 0) {
            return err_prefix(err, "--virtio-without");
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(makers); i++) {
        rc = makers[i].make(devices, err);
        if (rc < 0) {
            /* an error may name another option by itself: --publish */
            return makers[i].option && strncmp(err->text, "--", 2) != 0
                       ? err_prefix(err, "%s", makers[i].option)
                       : rc;
        }
    }
    /* Inside a jail no ring can be made any more, and a disk may come later on. */
    rc = config->control || config->name ? devices_open_blocks(devices, err) : 0;
    rc = rc ? rc : devices_changes_replay(devices, err);
    return rc ? rc : snapshot_recover_disks(devices, err);
}

void devices_rest(struct devices *devices)
{
    if (devices->blk_loop) {
        blk_loop_rest(devices->blk_loop);
    }
}

struct ports *devices_ports(struct devices *devices)
{
    return devices->ports;
}

void devices_settle(struct devices *devices)
{
    for (unsigned i = 0; i < devices->count; i++) {
        vdev_settle(devices->all[i].vdev);
    }
    devices_take_ejected(devices);
}

unsigned devices_disks(const struct devices *devices)
{
    unsigned disks = 0;
    for (unsigned i = 0; i < devices->count; i++) {
        disks += devices->all[i].kind == DEVICE_DISK;
    }
    return disks;
}

struct blk_node *devices_disk(struct devices *devices, unsigned index)
{
    const struct machine_device *one = devices->all;
    while (one->kind != DEVICE_DISK || index-- > 0) {
        one++;
    }
    return disk_node(one->disk);
}

struct vdev *devices_balloon(struct devices *devices)
{
    return devices->balloon;
}

unsigned devices_count(const struct devices *devices)
{
    return devices->count;
}

struct vdev *devices_get(struct devices *devices, unsigned index)
{
    return devices->all[index].vdev;
}

const struct machine_device *devices_at(const struct devices *devices, unsigned index)
{
    return &devices->all[index];
}

void devices_retry(struct devices *devices)
{
    for (unsigned i = 0; i < devices->count; i++) {
        if (devices->all[i].kind == DEVICE_DISK) {
            disk_retry(devices->all[i].disk);
        }
    }
}

int devices_balloon_set(struct devices *devices, uint64_t bytes)
{
    if (!devices->balloon) {
        return -ENODEV;
    }
    vbal_set_target(devices->balloon, MIN(bytes, devices->config->memory_bytes));
    return 0;
}

int devices_balloon_get(struct devices *devices, struct vbal_info *ret)
{
    if (!devices->balloon) {
        return -ENODEV;
    }
    vbal_get_info(devices->balloon, ret);
    vbal_ask_stats(devices->balloon);
    return 0;
}

int devices_nic_plug(struct devices *devices, unsigned nic, bool plugged)
{
    for (unsigned i = 0; i < devices->count; i++) {
        if (devices->all[i].kind == DEVICE_NIC && nic-- == 0) {
            vnet_set_cable(devices->all[i].vdev, plugged);
            return 0;
        }
    }
    return -ENODEV;
}

static void release(struct devices *devices)
{
    if (--devices->handles == 0) {
        free(devices);
    }
}

static void on_async_closed(uv_handle_t *handle)
{
    release(CONTAINER_OF((uv_async_t *)handle, struct devices, async));
}

static void on_stats_closed(uv_handle_t *handle)
{
    release(CONTAINER_OF((uv_timer_t *)handle, struct devices, stats));
}

static void on_block_closed(uv_handle_t *handle)
{
    release(CONTAINER_OF((uv_poll_t *)handle, struct devices, blk_poll));
}

void devices_free(struct devices *devices)
{
    if (devices) {
        ports_free(devices->ports);
        devices_hotplug_end(devices);
        devices->handles = 1 + (devices->balloon ? 1 : 0) + (devices->blk_loop ? 1 : 0);
        if (devices->blk_loop) {
            uv_poll_stop(&devices->blk_poll);
            blk_loop_free(devices->blk_loop);
            uv_close((uv_handle_t *)&devices->blk_poll, on_block_closed);
        }
        uv_close((uv_handle_t *)&devices->async, on_async_closed);
        if (devices->balloon) {
            uv_close((uv_handle_t *)&devices->stats, on_stats_closed);
        }
    }
}
