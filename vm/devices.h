/*
 * The virtio devices of a machine, as the options ask for them, with their back ends, on the main loop. Those
 * that come and go while it runs: hotplug.h.
 *
 * Threads: main loop. The devices belong to the machine once they are made.
 */
#ifndef FONDA_VM_DEVICES_H
#define FONDA_VM_DEVICES_H

#include <uv.h>

#include "base/err.h"
#include "dev/virtio/balloon.h"
#include "vm/config.h"
#include "vm/ports.h"

#define DEVICE_ID_MAX 40u

enum device_kind { DEVICE_OTHER, DEVICE_DISK, DEVICE_NIC };

/* A device by the name that its owner has for it: "disk0", "nic1", or one of the owner's choosing. */
struct machine_device {
    char id[DEVICE_ID_MAX + 1];
    enum device_kind kind;
    struct vdev *vdev;
    struct virtio_pci *vp;
    struct vblk_backend *disk; /* DEVICE_DISK */
    unsigned slot;             /* on the bus */
    char *text;                /* as --disk or --net has it; NULL for others */
    bool plugged;              /* it came later; else the machine was started with it */
};

struct blk_node;
struct devices;
struct machine;
struct mem;
struct vblk_backend;
struct vdev;
struct virtio_pci;

/* Makes the devices of config and puts them on the machine's bus. Call before vCPUs run, and pc_reset after
 * it. The loop has to outlive the machine. terminal is the console's, if it has the terminal. Errors: -EINVAL
 * and those of the back ends; what was made so far belongs to the machine. */
int devices_new(const struct vm_config *config, uv_loop_t *loop, struct mem *mem, struct machine *machine,
                const struct ports_terminal *terminal, struct devices **ret_devices, struct err *err);
/* The virtio console and its ports; NULL: none. */
struct ports *devices_ports(struct devices *devices);
/* Ends the threads that the back ends have, until they need them again. */
void devices_rest(struct devices *devices);
/* The vCPUs stand still: does what the guest asked for, and waits until nothing is in flight. */
void devices_settle(struct devices *devices);
/* The disks' images, in the order of the options. */
unsigned devices_disks(const struct devices *devices);
struct blk_node *devices_disk(struct devices *devices, unsigned index);
/* NULL: there is none. */
struct vdev *devices_balloon(struct devices *devices);
/* All virtio devices, in the order in which they came. */
unsigned devices_count(const struct devices *devices);
struct vdev *devices_get(struct devices *devices, unsigned index);
const struct machine_device *devices_at(const struct devices *devices, unsigned index);

/* Disks try again what the host refused, such as when it has room again. */
void devices_retry(struct devices *devices);

/* Main loop. How many bytes the guest is to give up; more than it has is cut. -ENODEV: no balloon. */
int devices_balloon_set(struct devices *devices, uint64_t bytes);
/* What the balloon did and what the guest told last; asks for newer statistics. -ENODEV: no balloon. */
int devices_balloon_get(struct devices *devices, struct vbal_info *ret);
/* Main loop. Plugs or unplugs the cable of a NIC, counted from 0 in the order of --net. -ENODEV: no such. */
int devices_nic_plug(struct devices *devices, unsigned nic, bool plugged);

/* Behind machine_free; NULL is accepted. The loop then has to run until it has no handles. */
void devices_free(struct devices *devices);

#endif
