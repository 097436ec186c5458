/* linux.netDevices: network devices of the host moved into the container. */
#ifndef FONDA_CONTAINER_NETDEV_H
#define FONDA_CONTAINER_NETDEV_H

#include "base/err.h"
#include "container/config.h"

#include <sys/types.h>

/* From the runtime: moves the devices to pid's network namespace under their names there. A device whose move
 * fails stays where it was; those that were moved go back (or away, if virtual) with the namespace. Addresses
 * and the up state don't travel: the kernel takes them off a device that changes its namespace. */
int netdev_move(const struct oci_linux *lnx, pid_t pid, struct err *err);

#endif
