/*
 * Decoding by memory: programs use few forms of instructions, again and again.
 *
 * The bytes of an instruction up to its ModRM and SIB (its head) say all but the values of displacement and
 * immediate, which follow; so the answer of bt_decode is kept by head, and those two are filled in. Only for
 * 64-bit code, heads of at most eight bytes, and forms for which that holds (struct bt_insn.plain).
 */
#include <string.h>

#include "cpu/bt/bt_int.h"

#define INSN_BYTES_MAX 15u /* SDM vol. 2A, 2.3.11 */

/* One bit per opcode: it has a ModRM byte (SDM vol. 2D, tables ). Where these sets are wrong,
 * heads only disagree with the decoder and are not kept. */
static const uint32_t modrm_map0[8] = {
    0x0f0f0f0f, 0x0f0f0f0f, 0x00000000, 0x00000a08, 0x0000ffff, 0x00000000, 0xff0f00c3, 0xc0c00000,
};
static const uint32_t modrm_map1[8] = {
    0xffff200f, 0x0000ff0f, 0xffffffff, 0xff7fffff, 0xffff0000, 0xfffff838, 0xffff00ff, 0xffffffff,
};

static bool has(const uint32_t *set, uint8_t opcode)
{
    return set[opcode / 32] >> (opcode % 32) & 1;
}

static bool is_prefix(uint8_t b)
{
    switch (b) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3: return true;
    default: return false;
    }
}

/* Length of the head, or 0: none of ours. bytes[0..8) are there. */
static unsigned head_length(const uint8_t *bytes)
{
    unsigned i = 0;
    while (i < 4 && is_prefix(bytes[i])) {
        i++;
    }
    bool modrm;
    if (bytes[i] == 0xc5) {
        i += 2;
        modrm = bytes[i++] != 0x77;
    } else if (bytes[i] == 0xc4) {
        i += 3;
        modrm = bytes[i++] != 0x77;
    } else {
        if ((bytes[i] & 0xf0) == 0x40) {
            i++;
        }
        if (bytes[i] != 0x0f) {
            modrm = has(modrm_map0, bytes[i++]);
        } else if (bytes[i + 1] == 0x38 || bytes[i + 1] == 0x3a) {
            i += 3;
            modrm = true;
        } else {
            modrm = has(modrm_map1, bytes[i + 1]);
            i += 2;
        }
    }
    if (modrm) {
        if (i >= 8) {
            return 0;
        }
        uint8_t m = bytes[i++];
        i += m >> 6 != 3 && (m & 7) == 4;
    }
    return i <= 8 ? i : 0;
}

static int64_t signed_value(const uint8_t *bytes, unsigned n)
{
    int8_t b;
    int16_t w;
    int32_t d;
    int64_t q = 0;
    switch (n) {
    case 1: memcpy(&b, bytes, 1); return b;
    case 2: memcpy(&w, bytes, 2); return w;
    case 4: memcpy(&d, bytes, 4); return d;
    case 8: memcpy(&q, bytes, 8); return q;
    default: return 0;
    }
}

static uint64_t unsigned_value(const uint8_t *bytes, unsigned n)
{
    uint64_t v = 0;
    memcpy(&v, bytes, n);
    return v;
}

unsigned bt_decode_cached(struct bt_decode_cache *cache, const struct x86_cpu *cpu, uint32_t mode,
                          uint64_t rip, const uint8_t *bytes, unsigned avail, struct bt_insn *in)
{
    unsigned head = (mode & BT_MODE_CODE64) && avail >= INSN_BYTES_MAX ? head_length(bytes) : 0;
    if (head == 0) {
        return bt_decode(cpu, mode, rip, bytes, avail, in);
    }
    uint64_t key;
    memcpy(&key, bytes, 8);
    key = (head == 8 ? key : key & ((1ull << 8 * head) - 1)) + 1; /* no head continues another */
    struct bt_decoded *d = &cache->entry[key * 0x9e3779b97f4a7c15ull >> (64 - BT_DECODE_CACHE_BITS)];
    if (d->key != key) {
        unsigned len = bt_decode(cpu, mode, rip, bytes, avail, in);
        if (in->plain && head + in->disp_bytes + in->imm_bytes == len &&
            (!in->disp_bytes || in->disp_off == head)) {
            d->key = key;
            d->in = *in;
        }
        return len;
    }
    *in = d->in;
    in->bytes = bytes;
    in->op.rip = rip;
    if (in->disp_bytes) {
        in->op.disp = signed_value(bytes + head, in->disp_bytes);
    }
    if (in->imm_bytes) {
        const uint8_t *imm = bytes + head + in->disp_bytes;
        in->op.imm =
            in->imm_signed ? (uint64_t)signed_value(imm, in->imm_bytes) : unsigned_value(imm, in->imm_bytes);
        in->op.imm2 = 0;
    }
    return in->op.len;
}
