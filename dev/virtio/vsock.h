/*
 * virtio-vsock, sockets between guest and host: virtio 1.2 section 5.10, streams. The host's side is unix
 * sockets:
 *
 *   host to guest: connect to PATH, send "CONNECT <port>\n"; "OK <port>\n" comes back, and then the stream.
 * When nobody listens in the guest, the connection is closed. guest to host: a connection to CID 2, port P,
 * becomes one to the unix socket PATH_P.
 *
 * Limits: VSOCK_STREAMS_MAX streams, VSOCK_BUFFER_BYTES for each that the host's side has not taken.
 *
 * Threads: main loop.
 */
#ifndef FONDA_DEV_VIRTIO_VSOCK_H
#define FONDA_DEV_VIRTIO_VSOCK_H

#include <uv.h>

#include "dev/virtio/virtio.h"

#define VSOCK_STREAMS_MAX  256u
#define VSOCK_BUFFER_BYTES 65536u
#define VSOCK_GUEST_CID    3u

/* Listens on path. NULL: see err. */
struct vdev *vsock_new(struct mem *mem, uv_loop_t *loop, const char *path, struct err *err);

#endif
