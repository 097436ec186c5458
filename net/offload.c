/*
 * Checksums and TCP segmentation in software: see port.h.
 *
 * Facts: RFC 1071 (the checksum), RFC 791, RFC 8200, RFC 9293; virtio 1.2 section 5.1.6.2 (what the header
 * promises).
 */
#include <string.h>

#include "base/util.h"
#include "net/port.h"

#define ETH_BYTES   14u
#define VLAN_BYTES  4u
#define TYPE_VLAN   0x8100u
#define TYPE_IPV4   0x0800u
#define TYPE_IPV6   0x86ddu
#define IPV6_BYTES  40u
#define PROTO_TCP   6u
#define TCP_MIN     20u
#define TCP_FIN     0x01u
#define TCP_PSH     0x08u
#define TCP_CWR     0x80u
#define SEGMENT_MIN 8u /* a smaller gso_size is an attack: thousands of frames from one */

static uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static void put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) << 16 | get16(p + 2);
}

static void put32(uint8_t *p, uint32_t value)
{
    put16(p, value >> 16);
    put16(p + 2, value & 0xffff);
}

static uint32_t sum_bytes(const uint8_t *p, size_t len, uint32_t sum)
{
    uint64_t wide = sum;
    for (; len >= 8; p += 8, len -= 8) { /* byte order does not matter while adding, so host words will do */
        uint64_t word;
        memcpy(&word, p, 8);
        word = __builtin_bswap64(word);
        wide += (word >> 48) + (word >> 32 & 0xffff) + (word >> 16 & 0xffff) + (word & 0xffff);
    }
    for (; len >= 2; p += 2, len -= 2) {
        wide += get16(p);
    }
    if (len) {
        wide += (uint32_t)p[0] << 8;
    }
    while (wide >> 16) {
        wide = (wide & 0xffff) + (wide >> 16);
    }
    return (uint32_t)wide;
}

bool net_header_valid(const struct net_header *header, size_t len)
{
    if (len < ETH_BYTES || len > NET_FRAME_MAX) {
        return false;
    }
    if ((header->flags & NET_CSUM_PARTIAL) && (size_t)header->csum_start + header->csum_offset + 2 > len) {
        return false;
    }
    unsigned type = header->gso_type & ~NET_GSO_ECN;
    if (type == NET_GSO_NONE) {
        return true;
    }
    return (type == NET_GSO_TCPV4 || type == NET_GSO_TCPV6) && (header->flags & NET_CSUM_PARTIAL) &&
           header->gso_size >= SEGMENT_MIN;
}

/* The field holds the pseudo header's sum already. */
static void make_checksum(const struct net_header *header, uint8_t *frame, size_t len)
{
    uint8_t *field = frame + header->csum_start + header->csum_offset;
    uint32_t sum = ~sum_bytes(frame + header->csum_start, len - header->csum_start, 0) & 0xffff;
    put16(field, sum ? sum : 0xffff); /* RFC 768: 0 would mean none */
}

/* Where things lie in a TCP frame. */
struct layout {
    size_t ip, tcp, payload;
    bool ipv6;
};

static bool find_tcp(const uint8_t *frame, size_t len, struct layout *ret)
{
    size_t at = ETH_BYTES;
    uint32_t type = get16(frame + 12);
    if (type == TYPE_VLAN && len >= ETH_BYTES + VLAN_BYTES) {
        type = get16(frame + 16);
        at += VLAN_BYTES;
    }
    ret->ip = at;
    ret->ipv6 = type == TYPE_IPV6;
    if (type == TYPE_IPV4 && len >= at + 20) {
        ret->tcp = at + (frame[at] & 0xfu) * 4;
        if ((frame[at] & 0xf) < 5 || frame[at + 9] != PROTO_TCP) {
            return false;
        }
    } else if (type == TYPE_IPV6 && len >= at + IPV6_BYTES) {
        ret->tcp = at + IPV6_BYTES;
        if (frame[at + 6] != PROTO_TCP) {
            return false; /* extension headers: no guest makes such segments */
        }
    } else {
        return false;
    }
    if (len < ret->tcp + TCP_MIN) {
        return false;
    }
    ret->payload = ret->tcp + (size_t)(frame[ret->tcp + 12] >> 4) * 4;
    return ret->payload >= ret->tcp + TCP_MIN && ret->payload < len;
}

static void finish_segment(uint8_t *frame, size_t len, const struct layout *at)
{
    size_t tcp_len = len - at->tcp;
    uint32_t sum;
    if (at->ipv6) {
        put16(frame + at->ip + 4, (uint32_t)tcp_len);
        sum = sum_bytes(frame + at->ip + 8, 32, (uint32_t)tcp_len + PROTO_TCP);
    } else {
        put16(frame + at->ip + 2, (uint32_t)(len - at->ip));
        put16(frame + at->ip + 10, 0);
        put16(frame + at->ip + 10, ~sum_bytes(frame + at->ip, at->tcp - at->ip, 0) & 0xffff);
        sum = sum_bytes(frame + at->ip + 12, 8, (uint32_t)tcp_len + PROTO_TCP);
    }
    put16(frame + at->tcp + 16, 0);
    put16(frame + at->tcp + 16, ~sum_bytes(frame + at->tcp, tcp_len, sum) & 0xffff);
}

static bool cut_segments(const struct net_header *header, const uint8_t *frame, size_t len,
                         void (*emit)(void *opaque, const uint8_t *frame, size_t len), void *opaque)
{
    struct layout at;
    if (!find_tcp(frame, len, &at)) {
        return false;
    }
    uint8_t out[NET_HEADER_BYTES + NET_FRAME_MAX];
    uint8_t *segment = out + NET_HEADER_BYTES;
    memset(out, 0, NET_HEADER_BYTES);
    size_t payload = len - at.payload;
    uint32_t sequence = get32(frame + at.tcp + 4);
    uint32_t ip_id = at.ipv6 ? 0 : get16(frame + at.ip + 4);
    for (size_t done = 0; done < payload; done += header->gso_size) {
        size_t bytes = MIN(payload - done, header->gso_size);
        bool first = done == 0, last = done + bytes == payload;
        memcpy(segment, frame, at.payload);
        memcpy(segment + at.payload, frame + at.payload + done, bytes);
        put32(segment + at.tcp + 4, sequence + (uint32_t)done);
        uint8_t *flags = &segment[at.tcp + 13];
        *flags &= (uint8_t) ~((last ? 0 : TCP_FIN | TCP_PSH) | (first ? 0 : TCP_CWR));
        if (!at.ipv6) {
            put16(segment + at.ip + 4, ip_id++ & 0xffff);
        }
        finish_segment(segment, at.payload + bytes, &at);
        emit(opaque, out, NET_HEADER_BYTES + at.payload + bytes);
    }
    return true;
}

bool net_frame_lower(uint8_t *frame, size_t len, unsigned takes,
                     void (*emit)(void *opaque, const uint8_t *frame, size_t len), void *opaque)
{
    struct net_header header;
    if (len < NET_HEADER_BYTES) {
        return false;
    }
    memcpy(&header, frame, sizeof(header));
    if (!net_header_valid(&header, len - NET_HEADER_BYTES)) {
        return false;
    }
    unsigned type = header.gso_type & ~NET_GSO_ECN;
    unsigned needs = type == NET_GSO_TCPV4 ? NET_TAKES_TSO4 : type == NET_GSO_TCPV6 ? NET_TAKES_TSO6 : 0;
    if (needs && !(takes & needs)) {
        return cut_segments(&header, frame + NET_HEADER_BYTES, len - NET_HEADER_BYTES, emit, opaque);
    }
    if ((header.flags & NET_CSUM_PARTIAL) && !(takes & NET_TAKES_CSUM)) {
        make_checksum(&header, frame + NET_HEADER_BYTES, len - NET_HEADER_BYTES);
        header = (struct net_header){0};
    }
    header.num_buffers = 0;
    memcpy(frame, &header, sizeof(header));
    emit(opaque, frame, len);
    return true;
}
