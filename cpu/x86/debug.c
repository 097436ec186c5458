/*
 * Debug registers: MOV to and from them, and the matching of breakpoints (SDM vol. 3B, 18.2).
 *
 * Neighbours: the engine asks for matches (and honours RFLAGS.RF for instruction breakpoints); delivery of
 * #DB sets DR6 from cpu->exc.dr6 and clears DR7.GD.
 */
#include "cpu/x86/x86_int.h"

#define DR6_BD BIT(13)
/* B0-B3, BD, BS, BT can be written; the rest reads as the processors without RTM and bus-lock traps have it.
 */
#define DR6_WRITABLE 0x0000e00fu
#define DR6_ONES     0xffff0ff0u
#define DR7_WRITABLE 0xffff23ffu
#define DR7_ONES     0x00000400u
#define DR7_GD       BIT(13)

#define BREAKPOINTS 4
enum breakpoint_kind { BREAK_EXEC = 0, BREAK_WRITE = 1, BREAK_IO = 2, BREAK_ACCESS = 3 };

/* The checks that both directions share; maps DR4 and DR5 to DR6 and DR7. Returns the register or -1. */
static int check_dr(struct x86_cpu *cpu, unsigned dr)
{
    if (dr == 4 || dr == 5) {
        if (cpu->s.cr4 & X86_CR4_DE) {
            return x86_raise(cpu, X86_UD);
        }
        dr += 2;
    }
    if (dr > 7) {
        return x86_raise(cpu, X86_UD);
    }
    if (cpu->cpl != 0) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    if (cpu->s.dr7 & DR7_GD) {
        return x86_raise_db(cpu, DR6_BD);
    }
    return (int)dr;
}

int x86_mov_from_dr(struct x86_cpu *cpu, unsigned dr, uint64_t *ret)
{
    int which = check_dr(cpu, dr);
    if (which < 0) {
        return -1;
    }
    uint64_t value = which == 7 ? cpu->s.dr7 : which == 6 ? cpu->s.dr6 : cpu->s.dr[which];
    *ret = x86_code64(cpu) ? value : (uint32_t)value;
    return 0;
}

int x86_mov_to_dr(struct x86_cpu *cpu, unsigned dr, uint64_t value)
{
    int which = check_dr(cpu, dr);
    if (which < 0) {
        return -1;
    }
    if (!x86_code64(cpu)) {
        value = (uint32_t)value;
    }
    if (which >= 6 && value >> 32) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    switch (which) {
    case 6: cpu->s.dr6 = (value & DR6_WRITABLE) | DR6_ONES; break;
    case 7: cpu->s.dr7 = (value & DR7_WRITABLE) | DR7_ONES; break;
    default: cpu->s.dr[which] = value; break;
    }
    return 0;
}

static bool enabled(uint64_t dr7, unsigned i)
{
    return (dr7 >> (2 * i) & 3) != 0;
}

static enum breakpoint_kind kind_of(uint64_t dr7, unsigned i)
{
    return (enum breakpoint_kind)(dr7 >> (16 + 4 * i) & 3);
}

static uint64_t length_of(uint64_t dr7, unsigned i)
{
    static const uint8_t lengths[] = {1, 2, 8, 4};
    return lengths[dr7 >> (18 + 4 * i) & 3];
}

uint64_t x86_match_breakpoint_exec(const struct x86_cpu *cpu, uint64_t linear_rip)
{
    uint64_t matches = 0;
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        if (enabled(cpu->s.dr7, i) && kind_of(cpu->s.dr7, i) == BREAK_EXEC && cpu->s.dr[i] == linear_rip) {
            matches |= BIT(i);
        }
    }
    return matches;
}

uint64_t x86_match_breakpoint_data(const struct x86_cpu *cpu, uint64_t va, unsigned size, bool write)
{
    uint64_t matches = 0;
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        enum breakpoint_kind kind = kind_of(cpu->s.dr7, i);
        if (!enabled(cpu->s.dr7, i) || !(kind == BREAK_ACCESS || (kind == BREAK_WRITE && write))) {
            continue;
        }
        uint64_t length = length_of(cpu->s.dr7, i);
        uint64_t start = align_down(cpu->s.dr[i], length);
        if (va - start < length || start - va < size) {
            matches |= BIT(i);
        }
    }
    return matches;
}
