/*
 * Opening a tap device of the host's: by a machine's process itself (tap.c), or for one in its jail, which
 * gets the descriptor over its control socket. Stands alone above base/.
 *
 * Threads: any.
 */
#ifndef FONDA_NET_TAP_OPEN_H
#define FONDA_NET_TAP_OPEN_H

#include "base/err.h"

/* Returns a descriptor as net_tap_adopt takes it. Errors: -EINVAL (no name of an interface), -EPERM, those of
 * open and ioctl. */
int net_tap_open(const char *name, struct err *err);

#endif
