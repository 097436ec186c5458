/*
 * What may be copied into translated code: no instruction that enters the host's kernel, that only a kernel
 * may execute, or that shows or changes state of the host's process.
 *
 * The list of what must not be is written here by opcode, with a decoder of its own for prefixes and opcode
 * maps, so that a mistake of the library's tables shows. Everything is swept: all opcodes of all maps, with
 * prefixes, in all code sizes, under a CPUID that offers everything.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/bt/gen.h"

#define INSN_MAX 16

static const uint32_t code_modes[] = {
    BT_MODE_CODE64 | BT_MODE_FLAT,
    BT_MODE_CODE32 | BT_MODE_SS32 | BT_MODE_FLAT,
    BT_MODE_FLAT,
};

static struct x86_cpu *cpu_with_everything(void)
{
    struct x86_cpu *cpu = calloc(1, sizeof(*cpu));
    assert_non_null(cpu);
    struct x86_cpuid *c = &cpu->cpuid;
    c->f1_ecx = c->f1_edx = c->f7_ebx = c->f7_ecx = c->f7_edx = UINT32_MAX;
    c->fe1_ecx = c->fe1_edx = c->fd1_eax = c->f71_eax = UINT32_MAX;
    return cpu;
}

/* Prefixes, opcode map and opcode of legacy code. */
struct raw {
    bool p66, f2, f3;
    unsigned map, opcode, modrm;
};

/* 00-3F: PUSH and POP of segments, decimal arithmetic. */
static bool low_opcode_refused(unsigned op)
{
    switch (op) {
    case 0x06:
    case 0x07:
    case 0x0e:
    case 0x16:
    case 0x17:
    case 0x1e:
    case 0x1f:
    case 0x27:
    case 0x2f:
    case 0x37:
    case 0x3f: return true;
    default: return false;
    }
}

static bool one_byte_refused(const struct raw *r, bool code64)
{
    unsigned op = r->opcode, reg = r->modrm >> 3 & 7;
    if (op < 0x40) {
        return low_opcode_refused(op);
    }
    if (op < 0x50) {
        return code64;
    }
    switch (op) {
    case 0x63: return !code64; /* ARPL */
    case 0x8c:
    case 0x8e: /* MOV of segment registers */
    case 0x8f: /* POP to memory */
    case 0x9a: /* far CALL */
    case 0x9c:
    case 0x9d: /* PUSHF, POPF */
    case 0xc2:
    case 0xc3:
    case 0xc4:
    case 0xc5:
    case 0xc8:
    case 0xc9:
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xf1:
    case 0xf4: return true;
    case 0xff: return reg >= 2; /* CALL, JMP, PUSH */
    case 0xc6:
    case 0xc7: return reg == 7; /* XABORT, XBEGIN */
    default: break;
    }
    return (op >= 0x50 && op <= 0x62) || (op >= 0x6c && op <= 0x7f) || (op >= 0xa4 && op <= 0xa7) ||
           (op >= 0xaa && op <= 0xaf) || (op >= 0xca && op <= 0xcf) || (op >= 0xe0 && op <= 0xef) ||
           (op >= 0xfa && op <= 0xfb);
}

static bool group_refused(const struct raw *r)
{
    unsigned reg = r->modrm >> 3 & 7;
    bool memory = r->modrm < 0xc0;
    switch (r->opcode) {
    case 0x00: return true; /* SLDT, STR, LLDT, LTR, VERR, VERW */
    case 0x01: return !(r->modrm == 0xe8 && !r->f3 && !r->f2 && !r->p66); /* all but SERIALIZE */
    case 0xae:
        if (memory) {
            /* XSAVE, XRSTOR, XSAVEOPT; with F3 PTWRITE and CLRSSBSY. CLWB and CLFLUSHOPT have 66. */
            return (!r->p66 && (reg == 4 || reg == 5 || reg == 6)) || r->f3;
        }
        return r->f3 || r->f2 || (r->p66 && reg == 6); /* FS and GS bases, INCSSP, UMONITOR, UMWAIT, TPAUSE */
    case 0xc7:
        if (memory) {
            return reg != 1; /* XRSTORS, XSAVEC, XSAVES, VMPTRLD, VMCLEAR, VMXON, VMPTRST */
        }
        return r->f3; /* RDPID, SENDUIPI */
    default: return false;
    }
}

static bool two_byte_refused(const struct raw *r)
{
    switch (r->opcode) {
    case 0x02:
    case 0x03: /* LAR, LSL */
    case 0x05:
    case 0x06:
    case 0x07:
    case 0x08:
    case 0x09:
    case 0x0a:
    case 0x0b:
    case 0x0c:
    case 0x0e:
    case 0x0f: /* 3DNow! */
    case 0x78:
    case 0x79: /* VMREAD, VMWRITE, EXTRQ, INSERTQ */
    case 0xa0:
    case 0xa1:
    case 0xa2:
    case 0xa6: /* PadLock */
    case 0xa7:
    case 0xa8:
    case 0xa9:
    case 0xaa:
    case 0xb2:
    case 0xb4:
    case 0xb5:
    case 0xb9:
    case 0xff: return true;
    default: break;
    }
    return (r->opcode >= 0x20 && r->opcode <= 0x27) || (r->opcode >= 0x30 && r->opcode <= 0x3f) ||
           (r->opcode >= 0x80 && r->opcode <= 0x8f) || group_refused(r);
}

static bool refused(const struct raw *r, bool code64)
{
    switch (r->map) {
    case 0: return one_byte_refused(r, code64);
    case 1: return two_byte_refused(r);
    case 2: /* INVEPT and its like, Key Locker, WRSS, MOVDIR64B and ENQCMD, MOVDIRI, AADD and its like */
        return (r->opcode >= 0x80 && r->opcode <= 0x82) || (r->opcode >= 0xd8 && r->opcode <= 0xda) ||
               (r->f3 && r->opcode >= 0xdc && r->opcode <= 0xdf) ||
               (r->f3 && (r->opcode == 0xfa || r->opcode == 0xfb)) || r->opcode == 0xf5 ||
               (r->opcode == 0xf6 && !r->p66 && !r->f3) || r->opcode >= 0xf8;
    default: return r->opcode == 0xf0; /* HRESET */
    }
}

static bool copies(const struct x86_cpu *cpu, uint32_t mode, const uint8_t *bytes, struct gen_insn *gi)
{
    memset(gi, 0, sizeof(*gi));
    mode |= BT_MODE_AVX | BT_MODE_AVX512 | BT_MODE_CPL0;
    if (bt_decode(cpu, mode, 0x1000, bytes, INSN_MAX, &gi->in) == 0) {
        return false;
    }
    gen_classify(mode, gi);
    return gi->kind == GEN_COPY || gi->kind == GEN_BIT_STRING;
}

/* Register forms of every group member, memory forms, and some forms with a displacement. */
static unsigned modrms(uint8_t out[80])
{
    unsigned n = 0;
    for (unsigned reg = 0; reg < 8; reg++) {
        out[n++] = (uint8_t)(reg << 3 | 3);
    }
    for (unsigned m = 0xc0; m < 0x100; m++) {
        out[n++] = (uint8_t)m;
    }
    return n;
}

static void test_legacy(void **state)
{
    (void)state;
    static const struct {
        uint8_t bytes[3];
        unsigned n;
        bool only64;
    } prefixes[] = {
        {{0}, 0, false},          {{0x66}, 1, false},       {{0xf2}, 1, false},       {{0xf3}, 1, false},
        {{0xf0}, 1, false},       {{0x66, 0xf2}, 2, false}, {{0xf3, 0x66}, 2, false}, {{0x67}, 1, false},
        {{0x48}, 1, true},        {{0xf3, 0x48}, 2, true},  {{0x66, 0x4f}, 2, true},  {{0x64}, 1, false},
        {{0xf3, 0xf2}, 2, false}, {{0xf2, 0xf3}, 2, false},
    };
    static const uint8_t maps[4][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    static const unsigned map_bytes[4] = {0, 1, 2, 2};
    struct x86_cpu *cpu = cpu_with_everything();
    struct gen_insn gi;
    uint8_t modrm[80];
    unsigned nmodrm = modrms(modrm), copied = 0;
    for (unsigned m = 0; m < ARRAY_SIZE(code_modes); m++) {
        for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++) {
            bool code64 = (code_modes[m] & BT_MODE_CODE64) != 0;
            if (prefixes[p].only64 && !code64) {
                continue;
            }
            for (unsigned i = 0; i < 4u * 256 * nmodrm; i++) {
                struct raw r = {
                    .map = i / (256 * nmodrm), .opcode = i / nmodrm % 256, .modrm = modrm[i % nmodrm]};
                static const uint8_t others[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0,
                                                 0xf2, 0xf3, 0xc4, 0xc5, 0x62, 0x0f, 0x8f, 0xd5};
                if (r.map == 1 && (r.opcode == 0x38 || r.opcode == 0x3a)) {
                    continue;
                }
                if (r.map == 0 && (memchr(others, (int)r.opcode, sizeof(others)) ||
                                   (code64 && (r.opcode & 0xf0) == 0x40))) {
                    continue; /* prefixes and escapes have their turn elsewhere */
                }
                uint8_t bytes[INSN_MAX] = {0};
                unsigned n = prefixes[p].n;
                memcpy(bytes, prefixes[p].bytes, n);
                for (unsigned k = 0; k < n; k++) {
                    r.p66 |= bytes[k] == 0x66;
                    r.f2 = bytes[k] == 0xf2 || (r.f2 && bytes[k] != 0xf3);
                    r.f3 = bytes[k] == 0xf3 || (r.f3 && bytes[k] != 0xf2);
                }
                memcpy(bytes + n, maps[r.map], map_bytes[r.map]);
                n += map_bytes[r.map];
                bytes[n] = (uint8_t)r.opcode;
                bytes[n + 1] = (uint8_t)r.modrm;
                if (!copies(cpu, code_modes[m], bytes, &gi)) {
                    continue;
                }
                copied++;
                if (refused(&r, code64) || gi.in.privileged) {
                    fail_msg("copied: mode %u prefix %u map %u opcode %02x modrm %02x", m, p, r.map, r.opcode,
                             r.modrm);
                }
                assert_int_not_equal(gi.in.enc, BT_ENC_OTHER);
            }
        }
    }
    assert_true(copied > 100000); /* or the sweep has missed what it is about */
    free(cpu);
}

/* VEX and EVEX: AMX, CMPccXADD and what Knights processors had. */
static bool vector_refused(bool evex, unsigned map, unsigned opcode, unsigned pp)
{
    if (map == 1 && !evex) { /* LDMXCSR and STMXCSR are the only ones without a vector or mask operand */
        return opcode != 0xae &&
               (opcode < 0x10 || (opcode >= 0x18 && opcode < 0x28) || (opcode >= 0x30 && opcode < 0x41));
    }
    if (map == 2 && !evex) {
        return opcode == 0x49 || opcode == 0x4b || opcode == 0x5c || opcode == 0x5e || opcode == 0x6c ||
               (opcode >= 0xe0 && opcode <= 0xef);
    }
    if (map == 2) { /* VGATHERPF, VSCATTERPF, VEXP2, V4FMADD */
        return opcode == 0xc6 || opcode == 0xc7 || opcode == 0xc8 || opcode == 0xca || opcode == 0xcb ||
               (pp == 3 && (opcode == 0x9a || opcode == 0x9b || opcode == 0xaa || opcode == 0xab ||
                            opcode == 0x52 || opcode == 0x53));
    }
    return map == 0 || map > 6 || map == 4;
}

static void test_vector(void **state)
{
    (void)state;
    struct x86_cpu *cpu = cpu_with_everything();
    struct gen_insn gi;
    unsigned copied = 0;
    for (unsigned m = 0; m < 2; m++) {
        for (unsigned i = 0; i < 8u * 256 * 64; i++) {
            unsigned map = i / (256 * 64), opcode = i / 64 % 256, pp = i & 3, w = i >> 2 & 1, l = i >> 3 & 1,
                     form = i >> 4 & 3;
            uint8_t rm = (uint8_t)(form == 0 ? 0x03 : form == 1 ? 0x3b : form == 2 ? 0xc0 : 0xf9);
            uint8_t vex[INSN_MAX] = {0xc4, (uint8_t)(0xe0 | map), (uint8_t)(w << 7 | 0x78 | l << 2 | pp),
                                     (uint8_t)opcode, rm};
            uint8_t evex[INSN_MAX] = {0x62,
                                      (uint8_t)(0xf0 | map),
                                      (uint8_t)(w << 7 | 0x7c | pp),
                                      (uint8_t)(0x09 | l << 5),
                                      (uint8_t)opcode,
                                      rm};
            for (unsigned e = 0; e < 2; e++) {
                if (!copies(cpu, code_modes[m], e ? evex : vex, &gi)) {
                    continue;
                }
                copied++;
                if (vector_refused(e, map, opcode, pp) || gi.in.privileged ||
                    !(gi.in.avx || gi.in.enc == BT_ENC_VEX)) {
                    fail_msg("copied: mode %u %s map %u opcode %02x pp %u W%u modrm %02x", m,
                             e ? "EVEX" : "VEX", map, opcode, pp, w, rm);
                }
            }
        }
    }
    assert_true(copied > 10000);
    /* XOP and 3DNow!, which no guest is offered. */
    for (unsigned i = 0; i < 65536; i++) {
        uint8_t xop[INSN_MAX] = {0x8f, (uint8_t)(0xe8 | (i >> 8 & 3)), 0x78, (uint8_t)i, 0xc1};
        uint8_t now[INSN_MAX] = {0x0f, 0x0f, (uint8_t)(i >> 8), (uint8_t)i};
        assert_false(copies(cpu, code_modes[0], xop, &gi));
        now[(i >> 8) >= 0xc0 ? 3 : 7] = (uint8_t)i;
        assert_false(copies(cpu, code_modes[0], now, &gi));
    }
    free(cpu);
}

/* By name, whatever the sweep says. */
static void test_named(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint8_t bytes[5];
    } never[] = {
        {"syscall", {0x0f, 0x05}},
        {"sysenter", {0x0f, 0x34}},
        {"int 0x80", {0xcd, 0x80}},
        {"int3", {0xcc}},
        {"icebp", {0xf1}},
        {"into", {0xce}},
        {"in", {0xec}},
        {"out", {0xe6, 0x80}},
        {"insb", {0x6c}},
        {"rep outsd", {0xf3, 0x6f}},
        {"hlt", {0xf4}},
        {"cli", {0xfa}},
        {"sti", {0xfb}},
        {"wrpkru", {0x0f, 0x01, 0xef}},
        {"rdpkru", {0x0f, 0x01, 0xee}},
        {"xsetbv", {0x0f, 0x01, 0xd1}},
        {"xgetbv", {0x0f, 0x01, 0xd0}},
        {"vmcall", {0x0f, 0x01, 0xc1}},
        {"vmmcall", {0x0f, 0x01, 0xd9}},
        {"monitor", {0x0f, 0x01, 0xc8}},
        {"mwait", {0x0f, 0x01, 0xc9}},
        {"monitorx", {0x0f, 0x01, 0xfa}},
        {"mwaitx", {0x0f, 0x01, 0xfb}},
        {"rdtsc", {0x0f, 0x31}},
        {"rdtscp", {0x0f, 0x01, 0xf9}},
        {"cpuid", {0x0f, 0xa2}},
        {"rdpmc", {0x0f, 0x33}},
        {"wrfsbase", {0xf3, 0x48, 0x0f, 0xae, 0xd0}},
        {"rdgsbase", {0xf3, 0x48, 0x0f, 0xae, 0xc8}},
        {"rdpid", {0xf3, 0x0f, 0xc7, 0xf8}},
        {"sgdt", {0x0f, 0x01, 0x03}},
        {"sidt", {0x0f, 0x01, 0x0b}},
        {"smsw", {0x0f, 0x01, 0xe0}},
        {"str", {0x0f, 0x00, 0xc8}},
        {"sldt", {0x0f, 0x00, 0xc0}},
        {"popf", {0x9d}},
        {"iret", {0xcf}},
        {"mov ds, ax", {0x8e, 0xd8}},
        {"mov ax, ds", {0x8c, 0xd8}},
        {"xbegin", {0xc7, 0xf8}},
        {"xtest", {0x0f, 0x01, 0xd6}},
        {"umwait", {0xf2, 0x0f, 0xae, 0xf0}},
        {"tpause", {0x66, 0x0f, 0xae, 0xf0}},
        {"umonitor", {0xf3, 0x0f, 0xae, 0xf0}},
        {"clui", {0xf3, 0x0f, 0x01, 0xee}},
        {"stui", {0xf3, 0x0f, 0x01, 0xef}},
        {"senduipi", {0xf3, 0x0f, 0xc7, 0xf0}},
        {"enclu", {0x0f, 0x01, 0xd7}},
        {"ud2", {0x0f, 0x0b}},
        {"lgdt", {0x0f, 0x01, 0x13}},
        {"xrstor", {0x0f, 0xae, 0x2b}},
        {"xsave", {0x0f, 0xae, 0x23}},
        {"incsspq", {0xf3, 0x48, 0x0f, 0xae, 0xe8}},
    };
    static const struct {
        const char *name;
        uint8_t bytes[5];
    } always[] = {
        {"add", {0x01, 0xd8}},
        {"mov", {0x8b, 0x03}},
        {"lock cmpxchg", {0xf0, 0x0f, 0xb1, 0x0b}},
        {"paddd", {0x66, 0x0f, 0xfe, 0xc1}},
        {"fld", {0xd9, 0x03}},
        {"vaddps", {0xc5, 0xf8, 0x58, 0xc1}},
        {"fxsave", {0x0f, 0xae, 0x03}},
    };
    struct x86_cpu *cpu = cpu_with_everything();
    struct gen_insn gi;
    for (unsigned i = 0; i < ARRAY_SIZE(never); i++) {
        uint8_t bytes[INSN_MAX] = {0};
        memcpy(bytes, never[i].bytes, sizeof(never[i].bytes));
        for (unsigned m = 0; m < ARRAY_SIZE(code_modes); m++) {
            if (never[i].bytes[1] == 0x48 && m > 0) {
                continue;
            }
            if (copies(cpu, code_modes[m], bytes, &gi)) {
                fail_msg("%s is copied in mode %u", never[i].name, m);
            }
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(always); i++) {
        uint8_t bytes[INSN_MAX] = {0};
        memcpy(bytes, always[i].bytes, sizeof(always[i].bytes));
        if (!copies(cpu, code_modes[0], bytes, &gi)) {
            fail_msg("%s is not copied", always[i].name);
        }
    }
    free(cpu);
}

/* What CPUID hides must not run. */
static void test_hidden(void **state)
{
    (void)state;
    struct x86_cpu *cpu = cpu_with_everything();
    struct gen_insn gi;
    const uint8_t vaddps[INSN_MAX] = {0xc5, 0xf8, 0x58, 0xc1}, popcnt[INSN_MAX] = {0xf3, 0x0f, 0xb8, 0xc1},
                  zmm[INSN_MAX] = {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1};
    cpu->cpuid.f1_ecx &= ~BIT(28);
    assert_false(copies(cpu, code_modes[0], vaddps, &gi));
    assert_true(copies(cpu, code_modes[0], zmm, &gi));
    cpu->cpuid.f7_ebx &= ~BIT(16);
    assert_false(copies(cpu, code_modes[0], zmm, &gi));
    assert_true(copies(cpu, code_modes[0], popcnt, &gi));
    cpu->cpuid.f1_ecx = 0;
    assert_false(copies(cpu, code_modes[0], popcnt, &gi));
    free(cpu);
}

/* By memory or not, the answer is the same: heads with two tails each, and bytes at random. */
static void test_cached(void **state)
{
    (void)state;
    struct x86_cpu *cpu = cpu_with_everything();
    struct bt_decode_cache *cache = calloc(1, sizeof(*cache));
    assert_non_null(cache);
    uint64_t random = 88172645463325252ull;
    unsigned hits = 0;
    for (unsigned i = 0; i < 1000000; i++) {
        static const uint8_t heads[][4] = {{0},
                                           {1, 0x48},
                                           {1, 0x66},
                                           {1, 0xf3},
                                           {1, 0xf2},
                                           {1, 0x0f},
                                           {2, 0x4c, 0x0f},
                                           {2, 0x66, 0x0f},
                                           {1, 0xc5},
                                           {1, 0xc4},
                                           {1, 0x62},
                                           {2, 0x65, 0x48},
                                           {1, 0x41},
                                           {3, 0x66, 0x0f, 0x38},
                                           {2, 0x0f, 0x3a}};
        uint8_t bytes[16];
        const uint8_t *head = heads[i % ARRAY_SIZE(heads)];
        for (unsigned k = 0; k < sizeof(bytes); k++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            bytes[k] = (uint8_t)(random >> 32);
        }
        memcpy(bytes, head + 1, head[0]);
        for (unsigned tail = 0; tail < 2; tail++) {
            struct bt_insn one, two;
            uint64_t rip = 0x1000 + 16ull * i + tail;
            unsigned n = bt_decode(cpu, BT_MODE_CODE64, rip, bytes, 15, &one);
            hits += one.plain && tail;
            assert_int_equal(bt_decode_cached(cache, cpu, BT_MODE_CODE64, rip, bytes, 15, &two), n);
            if (memcmp(&one, &two, sizeof(one)) != 0) {
                fail_msg("case %u: %02x %02x %02x %02x %02x %02x", i, bytes[0], bytes[1], bytes[2], bytes[3],
                         bytes[4], bytes[5]);
            }
            unsigned keep = one.plain ? n - one.disp_bytes - one.imm_bytes : 15;
            for (unsigned k = keep; k < 15; k++) {
                bytes[k] ^= (uint8_t)(random >> (k % 8 * 8));
            }
        }
    }
    assert_true(hits > 400000);
    free(cache);
    free(cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_legacy), cmocka_unit_test(test_vector), cmocka_unit_test(test_named),
        cmocka_unit_test(test_hidden), cmocka_unit_test(test_cached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
