/*
 * Tells two results apart, item by item.
 *
 * The extended state is compared by value: a part that XSTATE_BV calls initial equals one that holds the
 * initial values (SDM vol. 1, 13.6).
 */
#include <inttypes.h>
#include <string.h>

#include "base/util.h"
#include "tests/diff/diff.h"

/* Linux tells user space that a fault above its own half hit a present page, whether or not it did. */
#define LINUX_TASK_MAX 0x7ffffffff000ull

#define FLAGS_OTHER                                                                                          \
    (X86_TF | X86_IF | X86_DF | X86_IOPL | X86_NT | X86_VM | X86_AC | X86_VIF | X86_VIP | X86_ID)

const char *const diff_item_names[ITEM_COUNT] = {
    "rip",      "gpr", "arith", "flags", "rf",      "error",  "cr2",
    "segments", "x87", "fip",   "mxcsr", "vectors", "opmask", "memory",
};

struct vectors {
    uint64_t zmm[32][8];
    uint64_t k[8];
    uint16_t fcw, fsw;
    uint8_t ftw;
    uint8_t st[8][10];
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr;
};

static void unpack(const uint8_t *xsave, struct vectors *v)
{
    const struct diff_xlayout *l = diff_xlayout();
    uint64_t bv;
    memcpy(&bv, xsave + DIFF_XS_BV, sizeof(bv));
    memset(v, 0, sizeof(*v));
    v->fcw = 0x37f;
    if (bv & 1) {
        memcpy(&v->fcw, xsave + DIFF_XS_FCW, 2);
        memcpy(&v->fsw, xsave + DIFF_XS_FSW, 2);
        v->ftw = xsave[DIFF_XS_FTW];
        memcpy(&v->fop, xsave + DIFF_XS_FOP, 2);
        memcpy(&v->fip, xsave + DIFF_XS_FIP, 8);
        memcpy(&v->fdp, xsave + DIFF_XS_FDP, 8);
        v->fop &= 0x7ff;
        for (unsigned i = 0; i < 8; i++) {
            memcpy(v->st[i], xsave + DIFF_XS_ST + i * 16, 10);
        }
    }
    memcpy(&v->mxcsr, xsave + DIFF_XS_MXCSR, 4);
    for (unsigned i = 0; i < 16; i++) {
        if (bv & 2) {
            memcpy(&v->zmm[i][0], xsave + DIFF_XS_XMM + i * 16, 16);
        }
        if ((bv & 4) && l->ymm) {
            memcpy(&v->zmm[i][2], xsave + l->ymm + i * 16, 16);
        }
        if ((bv & 0x40) && l->zmm_hi256) {
            memcpy(&v->zmm[i][4], xsave + l->zmm_hi256 + i * 32, 32);
        }
        if ((bv & 0x80) && l->hi16_zmm) {
            memcpy(v->zmm[16 + i], xsave + l->hi16_zmm + i * 64, 64);
        }
    }
    if ((bv & 0x20) && l->opmask) {
        memcpy(v->k, xsave + l->opmask, 64);
    }
}

struct differ {
    uint32_t found, ignored;
    const struct diff_names *names;
    FILE *out;
};

static void differ(struct differ *d, enum diff_item item, const char *what, uint64_t a, uint64_t b)
{
    if (a == b || (d->ignored & BIT(item))) {
        return;
    }
    d->found |= BIT(item);
    if (d->out) {
        fprintf(d->out, "  %-10s %-8s %016" PRIx64 "   %-8s %016" PRIx64 "   xor %016" PRIx64 "\n", what,
                d->names->a, a, d->names->b, b, a ^ b);
    }
}

static void differ_at(struct differ *d, enum diff_item item, const char *prefix, unsigned i, uint64_t a,
                      uint64_t b)
{
    char name[32];
    snprintf(name, sizeof(name), "%s%u", prefix, i);
    differ(d, item, name, a, b);
}

static void compare_vectors(struct differ *d, const uint8_t *xa, const uint8_t *xb)
{
    struct vectors a, b;
    unpack(xa, &a);
    unpack(xb, &b);
    if (memcmp(&a, &b, sizeof(a)) == 0) {
        return;
    }
    differ(d, ITEM_X87, "fcw", a.fcw, b.fcw);
    differ(d, ITEM_X87, "fsw", a.fsw, b.fsw);
    differ(d, ITEM_X87, "ftw", a.ftw, b.ftw);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t ma, mb;
        uint16_t ea, eb;
        memcpy(&ma, a.st[i], 8);
        memcpy(&mb, b.st[i], 8);
        memcpy(&ea, a.st[i] + 8, 2);
        memcpy(&eb, b.st[i] + 8, 2);
        differ_at(d, ITEM_X87, "st-mant", i, ma, mb);
        differ_at(d, ITEM_X87, "st-exp", i, ea, eb);
    }
    differ(d, ITEM_FIP, "fop", a.fop, b.fop);
    differ(d, ITEM_FIP, "fip", a.fip, b.fip);
    differ(d, ITEM_FIP, "fdp", a.fdp, b.fdp);
    differ(d, ITEM_MXCSR, "mxcsr", a.mxcsr, b.mxcsr);
    for (unsigned i = 0; i < 32; i++) {
        for (unsigned k = 0; k < 8; k++) {
            char name[32];
            snprintf(name, sizeof(name), "zmm%u[%u]", i, k);
            differ(d, ITEM_VECTORS, name, a.zmm[i][k], b.zmm[i][k]);
        }
    }
    for (unsigned i = 0; i < 8; i++) {
        differ_at(d, ITEM_OPMASK, "k", i, a.k[i], b.k[i]);
    }
}

/* Saved x87 pointers: every byte that differs is zero on the engine's side. */
static bool differs_by_zeros(const uint8_t *a, const uint8_t *b)
{
    for (unsigned i = 0; i < 8; i++) {
        if (a[i] != b[i] && b[i] != 0) {
            return false;
        }
    }
    return true;
}

static void compare_memory(struct differ *d, const uint8_t *a, const uint8_t *b, bool zeros_allowed)
{
    if (memcmp(a, b, DIFF_MEM_BYTES) == 0) {
        return;
    }
    const uint32_t stack = (DIFF_DATA_PAGES + DIFF_RO_PAGES) * DIFF_PAGE;
    unsigned shown = 0;
    for (uint32_t i = 0; i < DIFF_MEM_BYTES; i += 8) {
        if (memcmp(a + i, b + i, 8) == 0 || (zeros_allowed && differs_by_zeros(a + i, b + i))) {
            continue;
        }
        uint64_t va, vb;
        char name[32];
        memcpy(&va, a + i, 8);
        memcpy(&vb, b + i, 8);
        snprintf(name, sizeof(name), "@%08x", i < stack ? DIFF_DATA_VA + i : DIFF_STACK_VA + i - stack);
        differ(d, ITEM_MEMORY, name, va, vb);
        if (++shown == 16) {
            break;
        }
    }
}

static const char *const outcome_names[] = {"not run",       "exception",          "endless",
                                            "hung (killed)", "crashed the runner", "failed"};

static void print_end(FILE *out, const char *name, const struct diff_result *r)
{
    if (r->outcome == DIFF_EXCEPTION) {
        fprintf(out, "  %s ends with vector %u, error 0x%" PRIx64 ", CR2 0x%" PRIx64 ", RIP 0x%" PRIx64 "\n",
                name, r->vector, r->error, r->cr2, r->rip);
    } else {
        fprintf(out, "  %s: %s%s%s\n", name, outcome_names[MIN(r->outcome, ARRAY_SIZE(outcome_names) - 1)],
                r->text[0] ? ": " : "", r->text);
    }
}

/* The kernel's IRET into the signal handler clears the RPL of null selectors (SDM vol. 2A, IRET), so Linux
 * does not tell it. */
static uint16_t selector(unsigned sreg, uint16_t value)
{
    return sreg != X86_CS && sreg != X86_SS && value < 4 ? 0 : value;
}

/* The case ended before its end marker, by an instruction that may have had a memory operand. */
static bool memory_fault(const struct diff_result *r)
{
    return r->vector != X86_BP && r->vector != X86_DB && r->vector != X86_UD;
}

/* Categories that draw instructions which store the x87 pointers. */
static bool saves_x87(const struct diff_case *c)
{
    return c->category == CAT_X87 || c->category == CAT_XSAVE || c->category == CAT_FAULT || c->category == CAT_MIXED ||
           c->category == CAT_COMPAT || c->category == CAT_PREFIX;
}

uint32_t diff_compare(const struct diff_case *c, const struct diff_result *a, const struct diff_result *b,
                      uint32_t ignored, const struct diff_names *names, FILE *out)
{
    static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                              "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const sreg_names[X86_SREGS] = {"es", "cs", "ss", "ds", "fs", "gs"};
    struct differ d = {.ignored = ignored, .names = names, .out = out};
    /* What the host CPU itself can't finish tells nothing about the engine. */
    if (a->outcome == DIFF_TIMEOUT && b->outcome == DIFF_TIMEOUT) {
        return 0;
    }
    if ((ignored & DIFF_IGNORE_BT) && c->category == CAT_UNDEFINED && a->vector == X86_GP && b->vector == X86_UD) {
        return 0; /* undefined and too long: the decoder sees the one, the processor the other */
    }
    if (a->outcome != b->outcome || a->outcome != DIFF_EXCEPTION || a->vector != b->vector) {
        d.found |= DIFF_BIT_VECTOR;
        if (out) {
            print_end(out, names->a, a);
            print_end(out, names->b, b);
        }
        if (a->outcome != DIFF_EXCEPTION || b->outcome != DIFF_EXCEPTION) {
            return d.found;
        }
    }
    uint64_t error_mask = ~0ull;
    if (a->vector == X86_PF_EXC && b->vector == X86_PF_EXC && a->cr2 >= LINUX_TASK_MAX) {
        error_mask = ~(uint64_t)X86_PF_P;
    }
    uint32_t flags = X86_FLAGS_ARITH;
    if (ignored & DIFF_IGNORE_UNDEFINED) {
        bool used;
        flags &= ~diff_undefined_flags(c, a->rip, &used);
        if (used) {
            return 0;
        }
    }
    if ((ignored & DIFF_IGNORE_BT) && (memory_fault(b) || (b->vector == X86_DB && (b->rflags & X86_RF)))) {
        flags = 0; /* the latter: between two elements of a string instruction */
    }
    uint64_t width = c->compat ? 0xffffffffull : ~0ull;
    differ(&d, ITEM_ERROR, "error", a->error & error_mask, b->error & error_mask);
    differ(&d, ITEM_CR2, "cr2", a->cr2, b->cr2);
    differ(&d, ITEM_RIP, "rip", a->rip, b->rip);
    differ(&d, ITEM_ARITH, "arith", a->rflags & flags, b->rflags & flags);
    differ(&d, ITEM_FLAGS, "rflags", a->rflags & FLAGS_OTHER, b->rflags & FLAGS_OTHER);
    differ(&d, ITEM_RF, "rf", a->rflags & X86_RF, b->rflags & X86_RF);
    for (unsigned i = 0; i < (c->compat ? 8u : 16u); i++) {
        differ(&d, ITEM_GPR, gpr_names[i], a->gpr[i] & width, b->gpr[i] & width);
    }
    for (unsigned i = 0; i < X86_SREGS; i++) {
        differ(&d, ITEM_SEGMENTS, sreg_names[i], selector(i, a->sel[i]), selector(i, b->sel[i]));
    }
    differ(&d, ITEM_SEGMENTS, "fs base", a->fs_base, b->fs_base);
    differ(&d, ITEM_SEGMENTS, "gs base", a->gs_base, b->gs_base);
    compare_vectors(&d, a->xsave, b->xsave);
    compare_memory(&d, a->mem, b->mem, (ignored & DIFF_IGNORE_BT) && saves_x87(c));
    return d.found;
}
