/*
 * What devices.c (the devices that a machine starts with) and hotplug.c (those that come and go) share.
 */
#ifndef FONDA_VM_DEVICES_INT_H
#define FONDA_VM_DEVICES_INT_H

#include <jansson.h>
#include <stdatomic.h>
#include <uv.h>

#include "dev/pci/pci.h"
#include "net/port.h"
#include "vm/device_options.h"
#include "vm/devices.h"

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
    unsigned count;
    struct machine_device all[PCI_SLOTS];

    unsigned next_slot;             /* while devices are made */
    unsigned named[DEVICE_NIC + 1]; /* how many of a kind the machine was to start with */
    uint32_t unplugged;             /* slots of those that were unplugged since */
    json_t *changes;                /* of a saved machine, until they are made; NULL: none */
    _Atomic uint32_t ejected;       /* slots whose function the guest has let go, and that are still here */
    void (*gone)(void *opaque, const struct machine_device *device);
    void *gone_opaque;
};

/* devices.c */
const char *device_kind_name(enum device_kind kind);
/* Puts a device into a slot; takes dev over, NULL too (err says why). */
int devices_add(struct devices *devices, struct vdev *dev, enum device_kind kind, const char *id,
                unsigned slot, struct err *err);
int devices_open_blocks(struct devices *devices, struct err *err);
int devices_make_disk(struct devices *devices, const struct disk_options *options, const char *id,
                      unsigned slot, struct err *err);
/* NULL: see err. */
struct net_port *devices_make_port(struct devices *devices, const struct nic_options *options,
                                   struct err *err);
/* Takes port over, NULL too (err says why). */
int devices_make_nic(struct devices *devices, const struct nic_options *options, struct net_port *port,
                     const char *id, unsigned slot, struct err *err);

/* hotplug.c: around the making of the others, and its end. */
void devices_hotplug_begin(struct devices *devices);
void devices_hotplug_end(struct devices *devices);
/* Reads what devices_changes_json has written; NULL: nothing. Errors: -EBADMSG. */
int devices_changes_load(struct devices *devices, const char *json, struct err *err);
/* Plugs what was plugged then. */
int devices_changes_replay(struct devices *devices, struct err *err);
/* Takes the devices down that the guest has let go. */
void devices_take_ejected(struct devices *devices);

#endif
