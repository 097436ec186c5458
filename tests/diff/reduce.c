/*
 * The reducer tries one simplification after the other and keeps those under which the two runs still differ.
 * Instructions are replaced by NOPs of the same length, so that displacements stay right.
 */
#include "tests/diff/reduce.h"

#include <Zydis/Zydis.h>
#include <string.h>

#include "base/util.h"

#define NOP 0x90u

static bool keep(struct diff_case *c, const struct diff_case *simpler, reduce_run_fn *run, void *opaque)
{
    if (run(opaque, simpler) == 0) {
        return false;
    }
    *c = *simpler;
    return true;
}

static bool is_nop(const struct diff_case *c, uint32_t i)
{
    for (uint32_t k = 0; k < c->insn[i].length; k++) {
        if (c->code[c->insn[i].offset + k] != NOP) {
            return false;
        }
    }
    return true;
}

static void blank_instructions(struct diff_case *c, reduce_run_fn *run, void *opaque)
{
    for (uint32_t i = c->insns; i-- > 0;) {
        if (!is_nop(c, i)) {
            struct diff_case t = *c;
            memset(t.code + t.insn[i].offset, NOP, t.insn[i].length);
            (void)keep(c, &t, run, opaque);
        }
    }
}

static void cut_ends(struct diff_case *c, reduce_run_fn *run, void *opaque)
{
    uint32_t first = 0, last = c->insns;
    while (last > 1 && is_nop(c, last - 1)) {
        last--;
    }
    while (first + 1 < last && is_nop(c, first)) {
        first++;
    }
    struct diff_case t = *c;
    t.entry = t.insn[first].offset;
    (void)keep(c, &t, run, opaque);
    t = *c;
    t.open_end = false;
    t.insns = last;
    t.code_length = (uint32_t)t.insn[last - 1].offset + t.insn[last - 1].length;
    (void)keep(c, &t, run, opaque);
}

static void zero_state(struct diff_case *c, reduce_run_fn *run, void *opaque)
{
    struct diff_case t;
    for (uint32_t i = c->patches; i-- > 0;) {
        t = *c;
        memmove(&t.patch[i], &t.patch[i + 1], (t.patches - i - 1) * sizeof(t.patch[0]));
        t.patches--;
        (void)keep(c, &t, run, opaque);
    }
    t = *c;
    t.mem_seed = 0;
    (void)keep(c, &t, run, opaque);
    for (unsigned i = 0; i < 16; i++) {
        static const uint64_t simple[] = {0, 1, 0xff};
        for (unsigned k = 0; k < ARRAY_SIZE(simple) && c->gpr[i] != 0; k++) {
            t = *c;
            t.gpr[i] = simple[k];
            if (i != X86_RSP && keep(c, &t, run, opaque)) {
                break;
            }
        }
    }
    static const uint64_t flags[] = {X86_CF, X86_PF, X86_AF, X86_ZF, X86_SF, X86_DF, X86_OF, X86_AC};
    for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
        if (c->rflags & flags[i]) {
            t = *c;
            t.rflags &= ~flags[i];
            (void)keep(c, &t, run, opaque);
        }
    }
    t = *c;
    t.fs_base = 0;
    (void)keep(c, &t, run, opaque);
    t = *c;
    t.gs_base = 0;
    (void)keep(c, &t, run, opaque);
}

static void zero_vectors(struct diff_case *c, reduce_run_fn *run, void *opaque)
{
    /* The legacy part's registers, then everything behind the header, in halves down to single registers. */
    static const uint32_t initial_mxcsr = 0x1f80;
    static const uint16_t initial_fcw = 0x37f;
    struct diff_case t = *c;
    memcpy(t.xsave + DIFF_XS_MXCSR, &initial_mxcsr, 4);
    (void)keep(c, &t, run, opaque);
    t = *c;
    memset(t.xsave, 0, DIFF_XS_MXCSR);
    memcpy(t.xsave + DIFF_XS_FCW, &initial_fcw, 2);
    (void)keep(c, &t, run, opaque);
    for (uint32_t bytes = 1024; bytes >= 16; bytes /= 4) {
        for (uint32_t at = DIFF_XS_ST; at < DIFF_XSAVE_BYTES; at += bytes) {
            uint32_t end = MIN(at + bytes, DIFF_XSAVE_BYTES);
            t = *c;
            for (uint32_t i = at; i < end; i++) {
                if (i < 416 || i >= 576) { /* not the header and what is reserved before it */
                    t.xsave[i] = 0;
                }
            }
            if (memcmp(t.xsave, c->xsave, DIFF_XSAVE_BYTES) != 0) {
                (void)keep(c, &t, run, opaque);
            }
        }
    }
}

void reduce_case(struct diff_case *c, reduce_run_fn *run, void *opaque)
{
    if (run(opaque, c) == 0) {
        return; /* does not fail again */
    }
    blank_instructions(c, run, opaque);
    blank_instructions(c, run, opaque);
    cut_ends(c, run, opaque);
    zero_state(c, run, opaque);
    zero_vectors(c, run, opaque);
}

static ZydisMachineMode machine_mode(const struct diff_case *c)
{
    return c->compat ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64;
}

void reduce_name(const struct diff_case *c, char *buf, uint32_t size)
{
    ZydisDecoder decoder;
    ZydisDecoderInit(&decoder, machine_mode(c), c->compat ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_64);
    snprintf(buf, size, "nothing");
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->insns && n + 1 < size; i++) {
        if (c->insn[i].offset < c->entry || is_nop(c, i)) {
            continue;
        }
        ZydisDecodedInstruction d;
        const char *name = "undecodable";
        if (ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, NULL, c->code + c->insn[i].offset,
                                                       c->insn[i].length, &d))) {
            name = ZydisMnemonicGetString(d.mnemonic);
        }
        n += (uint32_t)snprintf(buf + n, size - n, "%s%s", n ? "+" : "", name);
    }
}

void report_case(const struct diff_case *c, FILE *out)
{
    static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    fprintf(out, "  code at 0x%x, %s:\n", DIFF_CODE_VA + c->code_offset + c->entry,
            c->compat ? "32-bit" : "64-bit");
    for (uint32_t i = 0; i < c->insns; i++) {
        if (c->insn[i].offset < c->entry || is_nop(c, i)) {
            continue;
        }
        const uint8_t *bytes = c->code + c->insn[i].offset;
        char hex[2 * 64 + 1] = "";
        for (uint32_t k = 0; k < c->insn[i].length && k < 64; k++) {
            snprintf(hex + 2 * k, 3, "%02x", bytes[k]);
        }
        uint64_t va = DIFF_CODE_VA + c->code_offset + c->insn[i].offset;
        ZydisDisassembledInstruction text;
        bool known =
            ZYAN_SUCCESS(ZydisDisassembleIntel(machine_mode(c), va, bytes, c->insn[i].length, &text));
        fprintf(out, "    %08llx  %-30s  %s\n", (unsigned long long)va, hex,
                known ? text.text : "(not decodable)");
    }
    fprintf(out, "  state:");
    for (unsigned i = 0; i < 16; i++) {
        if (c->gpr[i]) {
            fprintf(out, " %s=%llx", names[i], (unsigned long long)c->gpr[i]);
        }
    }
    uint32_t mxcsr;
    uint16_t fcw;
    memcpy(&mxcsr, c->xsave + DIFF_XS_MXCSR, 4);
    memcpy(&fcw, c->xsave + DIFF_XS_FCW, 2);
    fprintf(out, " rflags=%llx fs=%llx gs=%llx mxcsr=%x fcw=%x memory=%llx\n", (unsigned long long)c->rflags,
            (unsigned long long)c->fs_base, (unsigned long long)c->gs_base, mxcsr, fcw,
            (unsigned long long)c->mem_seed);
}
