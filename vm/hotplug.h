/*
 * Disks and NICs that come and go while the machine runs, and what can be changed about those that are there.
 *
 *     plug:    back end, device, a free slot, and the guest is told (dev/pci/hotplug.h)
 *     unplug:  devices_unplug asks the guest; when it lets go, the function leaves the bus, and the main loop
 *              takes the device down (devices_take_ejected, then the callback of devices_on_gone)
 *
 * A machine's devices are those of its options, without those that were unplugged since, and with those that
 * were plugged: devices_changes_json says that of a machine that is being saved, and devices_new makes them
 * again, each in its slot.
 *
 * Threads: main loop.
 */
#ifndef FONDA_VM_HOTPLUG_H
#define FONDA_VM_HOTPLUG_H

#include "block/block.h"
#include "vm/devices.h"

/* Plugs a disk or NIC under a name (NULL: the lowest free "diskN", "nicN"); text is what --disk or --net
 * takes, with an absolute path. files (count of them) are what the client has opened, and stay its own; NULL:
 * opened here. fd of a NIC: an open tap device, taken; -1: none. Errors: -EINVAL, -EEXIST (the name), -ENOSPC
 * (no slot), those of the back ends. */
int devices_plug_disk(struct devices *devices, const char *text, const char *id,
                      const struct blk_open_file *files, unsigned count,
                      const struct machine_device **ret_device, struct err *err);
int devices_plug_nic(struct devices *devices, const char *text, const char *id, int fd,
                     const struct machine_device **ret_device, struct err *err);

/* NULL: there is none of that name. Valid until it goes. */
const struct machine_device *devices_find(const struct devices *devices, const char *id);

/* Asks the guest to let a disk or NIC go; again, when it was asked before. A reset takes out what was asked
 * for. There is no way without the guest: drivers wait for ever for hardware that does not answer any more.
 * Errors: -ENOENT, -ENOTSUP (it can't go). */
int devices_unplug(struct devices *devices, const char *id, struct err *err);
/* Whether the guest was asked and has not answered. */
bool devices_leaving(struct devices *devices, const struct machine_device *device);
/* gone runs when a device is about to be freed because it was unplugged. */
void devices_on_gone(struct devices *devices, void (*gone)(void *opaque, const struct machine_device *device),
                     void *opaque);

/* How the devices differ from the options: JSON from malloc; NULL: they don't (or no memory). */
char *devices_changes_json(const struct devices *devices);
/* Whether a machine that said so (NULL: nothing) has the same devices as this one. */
bool devices_changes_equal(const struct devices *devices, const char *json);

#endif
