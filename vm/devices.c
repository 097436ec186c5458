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
#include "vm/disk.h"
#include "vm/machine.h"
#include "vm/pc.h"
#include "vm/seed.h"

#define DISK_QUEUES_MAX 4u

struct devices {
    const struct vm_config *config;
    uv_loop_t *loop;
    struct mem *mem;
    struct machine *machine;
    uv_async_t async;
    uv_timer_t stats;
    struct blk_loop *blk_loop; /* NULL: no disks */
    uv_poll_t blk_poll;
    const struct ports_terminal *terminal; /* while devices are made */
    struct ports *ports;                   /* NULL: no virtio console */
    struct vdev *balloon;                  /* NULL: none; else stats is running */
    unsigned handles;
    unsigned count, disk_count;
    struct vdev *vdevs[PCI_SLOTS];
    struct vblk_backend *disks[PCI_SLOTS];
};

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
        if (atomic_load(&devices->vdevs[i]->run_wanted)) {
            vdev_run(devices->vdevs[i]);
        }
    }
    if (devices->blk_loop) {
        blk_loop_unplug(devices->blk_loop);
    }
}

/* Takes dev over. */
static int add(struct devices *devices, struct vdev *dev, struct err *err)
{
    if (!dev) {
        return err && err->code ? err->code : -ENOMEM;
    }
    unsigned index = 0; /* among its kind */
    for (unsigned i = 0; i < devices->count; i++) {
        index += devices->vdevs[i]->ops->id == dev->ops->id;
    }
    for (unsigned i = 0; i < devices->config->withheld.count; i++) {
        (void)vfeat_withhold(dev, index, devices->config->withheld.values[i],
                             NULL); /* checked in devices_new */
    }
    dev->wake = on_wake;
    dev->wake_opaque = devices;
    struct virtio_pci *vp = virtio_pci_new(pc_pci(machine_pc(devices->machine)), dev, err);
    if (!vp) {
        return -ENOSPC;
    }
    if (!pc_add_device(machine_pc(devices->machine), virtio_pci_device(vp))) {
        virtio_pci_device(vp)->ops->free(virtio_pci_device(vp));
        return err_set(err, -ENOSPC, "the machine has too many devices");
    }
    devices->vdevs[devices->count++] = dev;
    return 0;
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

static int open_block_loop(struct devices *devices, struct err *err)
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

static int make_disk(struct devices *devices, const struct disk_options *options, struct err *err)
{
    int rc = open_block_loop(devices, err);
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
    rc = add(devices, vblk_new(&config, err), err);
    if (rc == 0) {
        devices->disks[devices->disk_count++] = backend;
    }
    return rc;
}

static int make_disks(struct devices *devices, struct err *err)
{
    int rc = 0;
    for (unsigned i = 0; i < devices->config->disks.count && rc == 0; i++) {
        struct disk_options options;
        rc = disk_options_parse(devices->config->disks.values[i], &options, err);
        options.ephemeral = devices->config->ephemeral && !options.read_only;
        rc = rc ? rc : make_disk(devices, &options, err);
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
    return fd < 0 ? fd : make_disk(devices, &options, err);
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

static int make_nic(struct devices *devices, const struct nic_options *options,
                    const struct net_forward *forwards, unsigned count, struct err *err)
{
    struct vnet_config config = {.mem = devices->mem,
                                 .mtu = (uint16_t)options->mtu,
                                 .pairs = options->pairs ? (unsigned)options->pairs : 1};
    memcpy(config.mac, options->mac, sizeof(config.mac));
    if (!options->has_mac && make_mac(config.mac) < 0) {
        return err_set(err, -EIO, "cannot make a MAC address");
    }
    config.port = make_port(devices, options, forwards, count, err);
    return config.port ? add(devices, vnet_new(&config, err), err) : err->code;
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
        int rc = nic_options_parse(nics->values[i], &options, err);
        bool user = options.kind == NIC_USER;
        if (rc == 0 && options.kind != NIC_NONE) {
            rc = make_nic(devices, &options, forwards, user ? count : 0, err);
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
    *ret_devices = devices; /* also when this fails: what was made wakes it */
    for (unsigned i = 0; i < config->withheld.count; i++) {
        int rc = vfeat_check(config->withheld.values[i], err);
        if (rc < 0) {
            return err_prefix(err, "--virtio-without");
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(makers); i++) {
        int rc = makers[i].make(devices, err);
        if (rc < 0) {
            /* an error may name another option by itself: --publish */
            return makers[i].option && strncmp(err->text, "--", 2) != 0
                       ? err_prefix(err, "%s", makers[i].option)
                       : rc;
        }
    }
    return 0;
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
        vdev_settle(devices->vdevs[i]);
    }
}

unsigned devices_disks(const struct devices *devices)
{
    return devices->disk_count;
}

struct blk_node *devices_disk(struct devices *devices, unsigned index)
{
    return disk_node(devices->disks[index]);
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
    return devices->vdevs[index];
}

void devices_retry(struct devices *devices)
{
    for (unsigned i = 0; i < devices->disk_count; i++) {
        disk_retry(devices->disks[i]);
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
        if (devices->vdevs[i]->ops->id == VIRTIO_ID_NET && nic-- == 0) {
            vnet_set_cable(devices->vdevs[i], plugged);
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
