/*
 * fonda-room: what a container needs to live, one short-lived process per step. The daemon has threads and
 * must not become root of a user namespace; so these processes do, and the daemon stays small.
 *
 *     create DIR            pulls the image, makes the writable layer; progress as JSON lines on stdout
 *     run DIR               mounts the layer, writes the bundle, becomes fonda-monitor
 *     exec DIR PID SOCKET JSON   becomes fonda-oci exec, in the namespaces of the monitor PID
 *     logs DIR JSON         the log, and what comes
 *     clear DIR             ends a container whose monitor was killed
 *     remove DIR            takes container and layer away
 *     export DIR PATH       a tar of PATH inside the container on stdout
 *     import DIR PATH       unpacks the tar on stdin below the folder PATH
 *
 * DIR is the instance's own directory; DIR/room.json is what the driver (core/driver_container.c) wrote:
 *     {"id", "layer", "oci", "monitor", "oci_root", "folders", "store"?, "spec": {...}, "args": [...]}
 * and for a machine of an image, whose "oci" is fonda-guest, "machine": true, "vmm", "guest_init",
 * "image_tool".
 *
 * Files: main.c (the steps), bundle.c (from the spec to a bundle), copy.c (export and import), logs.c,
 * machine.c (what a machine needs instead of mounts).
 *
 * Invariants
 *  1. As root the mounts are made in a mount namespace of their own: they end with monitor and container.
 *  2. Files of the container are touched only from inside of it (chroot), by a process that can load no code.
 */
#ifndef FONDA_CORE_ROOM_ROOM_H
#define FONDA_CORE_ROOM_ROOM_H

#include <jansson.h>

#include "base/err.h"
#include "core/room/copy.h"
#include "image/image.h"

/* Writes the bundle of the spec into `bundle` for the mounted root. */
int room_bundle(const json_t *room, const char *bundle, const char *rootfs, json_t *image, struct err *err);

/* What the image says to the monitor, as its options ("--stop-signal=..."), appended to the array. */
int room_monitor_args(json_t *image, json_t *args, struct err *err);

/* What the monitor is to do for a container that is a system, appended to its options. */
void room_system_args(const json_t *room, const char *bundle, json_t *args);

/* The host's ids for a system container that root starts: a block of its own, as by its id. */
#define ROOM_MAP_COUNT 65536u
uint32_t room_map_first(const json_t *room);

/* fonda-oci's arguments for a program in the container whose root is at `root`; socket: where the terminal
 * goes, "": none. */
int room_exec_args(const json_t *room, const json_t *how, const char *root, const char *socket, json_t *args,
                   struct err *err);

/* The log on standard output and standard error; with {"follow": true} until the instance has ended. */
int room_logs(const char *dir, const char *how, struct err *err);

/* Machines (machine.c). Whether the image can be one. */
int room_machine_check(const struct image *image, struct err *err);
/* Kernel, disk of the image, and the machine's own above it in `dir`. say: hears of long steps; may be NULL.
 */
int room_machine_create(const json_t *room, const char *dir, struct image_store *store,
                        struct image_rootfs *rootfs, void (*say)(const char *what), struct err *err);
/* BUNDLE/machine.json, for fonda-guest. */
int room_machine_write(const json_t *room, const char *dir, const char *bundle, struct image_store *store,
                       struct err *err);
/* Disks of images that are gone go as well. */
void room_machine_removed(const json_t *room, struct image_store *store);

/* A member of an object, or NULL. */
const char *room_text(const json_t *object, const char *name);

#endif
