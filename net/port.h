/*
 * A network port: where a NIC's frames go and come from. Provider contract; dev/virtio/net.c is the user.
 *
 * A frame travels with a struct net_header in front of it from end to end, so that a large TCP segment
 * without a checksum passes whole between those who can take it.
 *
 * Threads: everything on the main loop.
 *
 * Invariants
 *  1. A provider hands over only what net_port_set_offloads allowed last; net_frame_lower() makes any frame
 *     so.
 *  2. Frames from the guest lie in guest memory and may change while they are read: a provider that looks
 *     into them copies them first.
 *  3. A side that returns false keeps nothing of the frame, and calls the other side when it has room again.
 */
#ifndef FONDA_NET_PORT_H
#define FONDA_NET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* virtio 1.2 section 5.1.6; little-endian, as Linux's tap device takes it too. */
struct net_header {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};
#define NET_HEADER_BYTES 12u
_Static_assert(sizeof(struct net_header) == NET_HEADER_BYTES, "virtio 1.2 section 5.1.6");

#define NET_CSUM_PARTIAL 1u /* flags: the checksum at csum_start + csum_offset is still to be made */
#define NET_CSUM_VALID   2u /* flags: it was looked at */
#define NET_GSO_NONE     0u
#define NET_GSO_TCPV4    1u
#define NET_GSO_TCPV6    4u
#define NET_GSO_ECN      0x80u

#define NET_FRAME_MAX (65535u + 18u) /* an IP packet of any length, Ethernet header, VLAN tag */

/* What a side takes, beyond complete frames. */
#define NET_TAKES_CSUM 1u
#define NET_TAKES_TSO4 2u
#define NET_TAKES_TSO6 4u
#define NET_TAKES_ECN  8u
#define NET_TAKES_ALL  15u

struct net_port;

struct net_peer {
    /* A frame for the guest, header first. False: no room. */
    bool (*receive)(void *opaque, const struct iovec *iov, unsigned count);
    void (*writable)(void *opaque); /* the port takes frames again */
    void (*link_changed)(void *opaque);
    void *opaque;
};

struct net_port_ops {
    const char *kind; /* "user", "tap", "wire" */
    /* A frame from the guest, header first. False: no room. */
    bool (*send)(struct net_port *port, const struct iovec *iov, unsigned count);
    void (*readable)(struct net_port *port); /* the guest takes frames again */
    void (*set_offloads)(struct net_port *port, unsigned takes);
    void (*free)(struct net_port *port);
};

struct net_port {
    const struct net_port_ops *ops;
    struct net_peer peer; /* set by the NIC; callbacks are NULL before */
    unsigned takes;       /* of frames from the guest: NET_TAKES_* */
    uint16_t mtu;         /* 0: nothing said */
    bool link_up;
    uint64_t dropped;
};

/* --- offload.c: what hardware would do, for those who can't take it --- */

/* Checks a header against the frame behind it (len bytes). */
bool net_header_valid(const struct net_header *header, size_t len);

/* Turns a frame (header first, len bytes in all, writable) into frames that a side with `takes` accepts, and
 * gives each to emit: checksums are made, TCP segments cut. Returns false when the frame makes no sense;
 * emit's frames that went before stay sent. */
bool net_frame_lower(uint8_t *frame, size_t len, unsigned takes,
                     void (*emit)(void *opaque, const uint8_t *frame, size_t len), void *opaque);

#endif
