/*
 * For people: what a block was translated from, into what, and how often it ran. See
 * docs/walks/translation.md.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/bt/bt.h"
#include "cpu/bt/bt_int.h"
#include "cpu/bt/explain.h"

#define BLOCKS_SHOWN_MAX 8u
#define BYTES_RIP        0x1000u /* where the bytes of bt_translate_bytes are thought to lie */

struct text {
    char *buf;
    size_t size, used;
};

static void say(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(struct text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->buf + t->used, t->size - t->used, format, args);
    va_end(args);
    t->used = MIN(t->used + (size_t)MAX(n, 0), t->size - 1);
}

/* --- disassembly --- */

static ZydisMachineMode machine_mode(uint32_t mode)
{
    if (mode & BT_MODE_CODE64) {
        return ZYDIS_MACHINE_MODE_LONG_64;
    }
    return mode & BT_MODE_CODE32 ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16;
}

/* One line; returns the instruction's length, 1 where there is none. */
static unsigned say_instruction(struct text *t, const char *indent, ZydisMachineMode mode, uint64_t at,
                                const uint8_t *bytes, size_t avail)
{
    ZydisDisassembledInstruction in;
    bool good = ZYAN_SUCCESS(ZydisDisassembleIntel(mode, at, bytes, avail, &in));
    unsigned len = good ? in.info.length : 1;
    char hex[3 * ZYDIS_MAX_INSTRUCTION_LENGTH + 1] = "";
    for (unsigned i = 0; i < len; i++) {
        snprintf(hex + 3 * i, sizeof(hex) - 3 * i, "%02x ", bytes[i]);
    }
    say(t, "%s%016" PRIx64 "  %-31s%s\n", indent, at, hex, good ? in.text : "(bad)");
    return len;
}

/* --- a block --- */

static void say_modes(struct text *t, uint32_t mode)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } names[] = {
        {BT_MODE_USER, "user"},         {BT_MODE_CPL0, "CPL 0"},        {BT_MODE_AC, "AC"},
        {BT_MODE_FLAT, "flat"},         {BT_MODE_NOFPU, "no FPU"},      {BT_MODE_AVX, "AVX"},
        {BT_MODE_AVX512, "AVX512"},     {BT_MODE_ONE, "one at a time"}, {BT_MODE_SLOW, "slow operands"},
        {BT_MODE_NOGROUP, "no groups"}, {BT_MODE_FS_FLAT, "flat FS"},   {BT_MODE_GS_FLAT, "flat GS"}};
    say(t, "%s", mode & BT_MODE_CODE64 ? "64-bit" : mode & BT_MODE_CODE32 ? "32-bit" : "16-bit");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (mode & names[i].bit) {
            say(t, ", %s", names[i].name);
        }
    }
}

/* The host code in its own order; a line of the guest's wherever it goes over to another instruction. */
static void say_code(struct text *t, const struct bt_vcpu *v, const struct bt_block *b, const uint8_t *guest)
{
    unsigned at = 0, map = 0, shown = UINT32_MAX;
    while (at < b->code_len) {
        while (map + 1 < b->nmaps && b->map[map + 1].host <= at) {
            map++;
        }
        unsigned offset = b->map[map].guest & ~BT_MAP_FLAGS_SAVED;
        if (shown != offset && at >= b->map[map].host) {
            shown = offset;
            say_instruction(t, "  ", machine_mode(b->mode), b->rip + offset, guest + offset,
                            b->guest_len - offset);
        }
        at += say_instruction(t, "        ", ZYDIS_MACHINE_MODE_LONG_64, (uint64_t)v->code_rx + b->code + at,
                              v->code_rw + b->code + at, b->code_len - at);
    }
}

static void say_exits(struct text *t, const struct bt_block *b)
{
    static const char *const kinds[] = {[BT_EXIT_NONE] = "never linked",
                                        [BT_EXIT_DIRECT] = "same page",
                                        [BT_EXIT_CHECKED] = "another page",
                                        [BT_EXIT_RETURN] = "where its call comes back",
                                        [BT_EXIT_GROUP] = "the same, each access checked"};
    for (unsigned i = 0; i < b->nexits; i++) {
        say(t, "  exit to %#" PRIx64 " (%s)%s\n", b->exits[i].rip, kinds[b->exits[i].kind],
            b->exits[i].to ? ", linked" : "");
    }
}

static void say_block(struct text *t, const struct bt_vcpu *v, const struct bt_block *b, const uint8_t *guest)
{
    say(t, "block %#" PRIx64 ": %u bytes, %u instructions -> %u bytes (", b->rip, b->guest_len, b->insns,
        b->code_len);
    say_modes(t, b->mode);
    if (b->count) {
        say(t, "); ran %" PRIu64 " times\n", b->count->target);
    } else {
        say(t, "); runs are not counted\n");
    }
    say_code(t, v, b, guest);
    say_exits(t, b);
}

static void block_bytes(const struct bt_vcpu *v, const struct bt_block *b, uint8_t *bytes)
{
    const uint8_t *ram = mem_ram_base(v->cpu.mem);
    unsigned first = MIN(b->guest_len, (unsigned)(MEM_PAGE_SIZE - b->ram % MEM_PAGE_SIZE));
    memcpy(bytes, ram + b->ram, first);
    if (b->ram2 != UINT64_MAX) {
        memcpy(bytes + first, ram + b->ram2, b->guest_len - first);
    }
}

int bt_translation(struct vcpu *vcpu, uint64_t rip, char *buf, size_t size)
{
    const struct bt_vcpu *v = (const struct bt_vcpu *)vcpu;
    struct text t = {.buf = buf, .size = size};
    unsigned found = 0;
    for (uint32_t i = 0; i < v->nblocks; i++) {
        const struct bt_block *b = &v->blocks[i];
        if (b->dead || rip - b->rip >= b->guest_len) {
            continue;
        }
        if (found++ < BLOCKS_SHOWN_MAX) {
            uint8_t bytes[BT_BLOCK_BYTES_MAX + ZYDIS_MAX_INSTRUCTION_LENGTH];
            block_bytes(v, b, bytes);
            say_block(&t, v, b, bytes);
        }
    }
    if (found > BLOCKS_SHOWN_MAX) {
        say(&t, "%u more blocks hold this address\n", found - BLOCKS_SHOWN_MAX);
    }
    return found ? 0 : -ENOENT;
}

void bt_count_blocks(struct vcpu *vcpu, bool on)
{
    struct bt_vcpu *v = (struct bt_vcpu *)vcpu;
    v->count_blocks = on;
    bt_fpu_save(v);
    bt_code_flush(v);
    v->link_from = NULL;
    v->fill_jc = false;
}

/* --- bytes that are in no guest --- */

static void set_mode(struct bt_vcpu *v, unsigned bits)
{
    struct x86_state *s = &v->cpu.s;
    s->cr4 = X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE | (bits == 64 ? X86_CR4_PAE : 0);
    s->xcr0 = v->cpu.cpuid.xcr0_mask;
    s->cr0 = X86_CR0_ET | X86_CR0_NE | (bits == 16 ? 0 : X86_CR0_PE) | (bits == 64 ? X86_CR0_PG : 0);
    s->efer = bits == 64 ? X86_EFER_LME | X86_EFER_LMA : 0;
    for (unsigned i = 0; i < X86_SREGS; i++) {
        s->seg[i] =
            (struct x86_segment){.limit = bits == 16 ? 0xffff : UINT32_MAX, .selector = 0, .attr = 0xc093};
        if (bits == 16) {
            s->seg[i].attr = 0x93;
        }
    }
    s->seg[X86_CS].attr = bits == 64 ? 0xa09b : bits == 32 ? 0xc09b : 0x9b;
    bt_mode_update(v);
}

static int explain(struct bt_vcpu *v, const uint8_t *bytes, size_t len, struct text *t)
{
    for (size_t at = 0; at < len;) {
        struct bt_block *b = &v->blocks[v->nblocks];
        memset(b, 0, sizeof(*b));
        b->rip = BYTES_RIP + at;
        b->ram2 = UINT64_MAX;
        b->mode = v->mode;
        int r = bt_translate(v, b, bytes + at, (unsigned)(len - at), NULL);
        if (r == -EAGAIN) {
            say(t, "the last instruction is incomplete:\n");
            say_instruction(t, "  ", machine_mode(b->mode), b->rip, bytes + at, len - at);
            return -EINVAL;
        }
        if (r < 0) {
            return r;
        }
        b->dead = true;
        v->nblocks++;
        say_block(t, v, b, bytes + at);
        at += b->guest_len;
    }
    return 0;
}

int bt_translate_bytes(const uint8_t *bytes, size_t len, unsigned bits, char *buf, size_t size,
                       struct err *err)
{
    struct text t = {.buf = buf, .size = size};
    struct mem *mem = NULL;
    struct engine *engine = NULL;
    struct vcpu *vcpu = NULL;
    buf[0] = '\0';
    int r = mem_new(MiB, &mem, err);
    if (r == 0) {
        const struct engine_config config = {.mem = mem, .vcpus = 1, .cpu_model = "host"};
        r = bt_engine_ops.create(&config, &engine, err);
    }
    if (r == 0) {
        r = bt_engine_ops.vcpu_create(engine, 0, NULL, &vcpu, err);
    }
    if (r == 0) {
        struct bt_vcpu *v = (struct bt_vcpu *)vcpu;
        set_mode(v, bits);
        r = explain(v, bytes, len, &t);
        if (r < 0) {
            err_set(err, r, "the bytes end in the middle of an instruction");
        }
        bt_engine_ops.vcpu_free(vcpu);
    }
    if (engine) {
        bt_engine_ops.free(engine);
    }
    mem_free(mem);
    return r;
}
