/*
 * String instructions with a 16-bit address size in 32-bit code: SI, DI and CX wrap at 64 KiB and keep the
 * upper halves of their registers (SDM vol. 1, 3.7.5; vol. 2, REP, MOVS, CMPS, SCAS, LODS, STOS, INS, OUTS);
 * the segment's base counts.
 */
#include "rt32/rt32.h"

#define FROM    SEL_FREE /* data segments of 64 KiB */
#define TO      (SEL_FREE + 8)
#define SCRATCH 0x3ff /* of the serial port: holds what was written */
#define BYTES   0x10000u

static uint8_t from[BYTES + 16], to[BYTES + 16];

SNIPPET(w_movsb, "addr16 rep movsb");
SNIPPET(w_movsw, "addr16 rep movsw");
SNIPPET(w_movsl, "addr16 rep movsl");
SNIPPET(w_movs1, "addr16 movsb");
SNIPPET(w_cmpsb, "addr16 repe cmpsb\n sete %al");
SNIPPET(w_scasb, "addr16 repne scasb\n sete %ah");
SNIPPET(w_lodsb, "addr16 lodsb\n mov %al, %ah\n addr16 lodsb");
SNIPPET(w_replods, "addr16 rep lodsb");
SNIPPET(w_stosb, "addr16 rep stosb");
SNIPPET(w_stosl, "addr16 rep stosl");
SNIPPET(w_insb, "addr16 rep insb");
SNIPPET(w_outsb, "addr16 rep outsb");

static void fill(void)
{
    for (uint32_t i = 0; i < BYTES + 16; i++) {
        from[i] = (uint8_t)(i * 7 + (i >> 8));
        to[i] = 0;
    }
}

static struct regs go(const void *code, uint32_t esi, uint32_t edi, uint32_t ecx, uint32_t flags)
{
    struct regs r = rt_kernel(code);
    r.ds = FROM;
    r.es = TO;
    r.esi = esi;
    r.edi = edi;
    r.ecx = ecx;
    r.edx = SCRATCH;
    r.eax = 0xaaaaaa00;
    r.eflags |= flags;
    rt_run(&r);
    return r;
}

static void ends(const struct regs *r, const char *end, uint32_t esi, uint32_t edi, uint32_t ecx,
                 const char *text)
{
    if (!ok(r->vector == UD && r->eip == ADDRESS(end) && r->esi == esi && r->edi == edi && r->ecx == ecx,
            text)) {
        rt_printf("#   vector %u error 0x%x eip 0x%x esi 0x%x edi 0x%x ecx 0x%x\n", r->vector, r->error,
                  r->eip, r->esi, r->edi, r->ecx);
    }
}

static void moves(void)
{
    about("MOVS");
    fill();
    struct regs r = go(w_movsb, 0x1234fffe, 0x56788000, 0xabcd0005, 0);
    ends(&r, w_movsb_end, 0x12340003, 0x56788005, 0xabcd0000, "SI wraps, the upper halves stay, CX counts");
    ok(to[0x8000] == from[0xfffe] && to[0x8001] == from[0xffff] && to[0x8002] == from[0] &&
           to[0x8004] == from[2],
       "bytes come from both ends of the segment");
    fill();
    r = go(w_movsb, 0x0000ff00, 0xffff, 3, 0);
    ends(&r, w_movsb_end, 0xff03, 2, 0, "DI wraps");
    ok(to[0xffff] == from[0xff00] && to[0] == from[0xff01] && to[1] == from[0xff02], "bytes go to both ends");
    ok(to[0x10000] == 0, "and not beyond");
    fill();
    r = go(w_movsb, 2, 0x77770001, 4, FL_DF);
    ends(&r, w_movsb_end, 0xfffe, 0x7777fffd, 0, "backwards SI and DI wrap below 0");
    ok(to[1] == from[2] && to[0] == from[1] && to[0xffff] == from[0] && to[0xfffe] == from[0xffff],
       "the same bytes");
    fill();
    r = go(w_movsw, 0xfffc, 0x100, 4, 0);
    ends(&r, w_movsw_end, 4, 0x108, 0, "words");
    ok(to[0x100] == from[0xfffc] && to[0x104] == from[0] && to[0x107] == from[3], "from both ends");
    fill();
    r = go(w_movsl, 0xfffffff8, 0x200, 0x10004, 0);
    ends(&r, w_movsl_end, 0xffff0008, 0x210, 0x10000, "doublewords");
    ok(to[0x200] == from[0xfff8] && to[0x208] == from[0] && to[0x20f] == from[7], "from both ends");
    fill();
    r = go(w_movsw, 0xffff, 0x100, 2, 0);
    trapped(&r, GP, 0, ADDRESS(w_movsw), "an element across the limit faults: #GP(0)");
    ok(r.esi == 0xffff && r.edi == 0x100 && r.ecx == 2, "with nothing done");
    r = go(w_movsw, 0xfffd, 0x100, 3, 0);
    trapped(&r, GP, 0, ADDRESS(w_movsw), "and in the middle");
    ok(r.esi == 0xffff && r.edi == 0x102 && r.ecx == 2, "with what came before done");
    r = go(w_movs1, 0x4444ffff, 0x5555ffff, 0x66660000, 0);
    ends(&r, w_movs1_end, 0x44440000, 0x55550000, 0x66660000, "without REP CX is left");
    r = go(w_movsb, 5, 6, 0x10000, 0);
    ends(&r, w_movsb_end, 5, 6, 0x10000, "CX of 0 does nothing, whatever ECX is");
    fill();
    r = go(w_movsb, 0x10, 0x8010, 0xffff, 0);
    ends(&r, w_movsb_end, 0x000f, 0x800f, 0, "64 KiB less one byte");
    ok(to[0x8010] == from[0x10] && to[0] == from[0x8000] && to[0x800e] == from[0xe] && to[0x800f] == 0,
       "all of them");
}

static void scans(void)
{
    about("CMPS");
    fill();
    for (uint32_t i = 0; i < 8; i++) {
        to[(0xfffd + i) & 0xffff] = from[(0xfffa + i) & 0xffff];
    }
    to[2] ^= 1; /* the sixth */
    struct regs r = go(w_cmpsb, 0x1111fffa, 0x2222fffd, 0x33330008, 0);
    ends(&r, w_cmpsb_end, 0x11110000, 0x22220003, 0x33330002,
         "REPE stops at the difference, both wrapped or not");
    is(r.eax & 0xff, 0, "ZF is clear");
    r = go(w_cmpsb, 0xfffa, 0xfffd, 5, 0);
    ends(&r, w_cmpsb_end, 0xffff, 2, 0, "or at the end");
    is(r.eax & 0xff, 1, "ZF is set");
    about("SCAS");
    fill();
    memset(to, 1, sizeof(to));
    to[3] = 0;
    r = go(w_scasb, 0x9999, 0x8888fff0, 0x77777777, 0);
    ends(&r, w_scasb_end, 0x9999, 0x88880004, 0x77777777 - 0x14, "REPNE finds AL behind the wrap");
    is(r.eax >> 8 & 0xff, 1, "ZF is set");
    r = go(w_scasb, 0, 0x10005, 0x1000a, FL_DF);
    ends(&r, w_scasb_end, 0, 0x10002, 0x10007, "backwards");
}

static void loads(void)
{
    about("LODS");
    fill();
    struct regs r = go(w_lodsb, 0x1234ffff, 0, 0, 0);
    ends(&r, w_lodsb_end, 0x12340001, 0, 0, "SI wraps");
    ok((r.eax >> 8 & 0xff) == from[0xffff] && (r.eax & 0xff) == from[0], "AL has the bytes");
    r = go(w_replods, 0xfff0, 0, 0x50020, 0);
    ends(&r, w_replods_end, 0x10, 0, 0x50000, "REP LODS");
    is(r.eax & 0xff, from[0xf], "leaves the last one");
    about("STOS");
    fill();
    r = go(w_stosb, 0, 0x1234fffe, 0x10004, 0);
    ends(&r, w_stosb_end, 0, 0x12340002, 0x10000, "DI wraps");
    to[0xffff] = 1;
    fill();
    memset(to, 0xff, sizeof(to));
    r = go(w_stosl, 0, 0xfffc, 2, 0);
    ends(&r, w_stosl_end, 0, 4, 0, "doublewords");
    ok(to[0xfffc] == 0 && to[0xffff] == 0xaa && to[0] == 0 && to[3] == 0xaa && to[4] == 0xff &&
           to[0x10000] == 0xff,
       "at both ends, not beyond");
}

static void ports(void)
{
    about("OUTS");
    fill();
    struct regs r = go(w_outsb, 0x4321fffe, 0, 0x10004, 0);
    ends(&r, w_outsb_end, 0x43210002, 0, 0x10000, "SI wraps");
    uint8_t last;
    asm volatile("inb %1, %0" : "=a"(last) : "d"((uint16_t)SCRATCH));
    is(last, from[1], "the last byte came from behind the wrap");
    about("INS");
    memset(to, 0, sizeof(to));
    r = go(w_insb, 0, 0x4321fffe, 0x10004, 0);
    ends(&r, w_insb_end, 0, 0x43210002, 0x10000, "DI wraps");
    ok(to[0xfffe] == last && to[0xffff] == last && to[0] == last && to[1] == last && to[2] == 0 &&
           to[0x10000] == 0,
       "bytes at both ends, not beyond");
    r = go(w_insb, 0, 0x10001, 3, FL_DF);
    ends(&r, w_insb_end, 0, 0x1fffe, 0, "backwards");
}

void test_main(void)
{
    rt_gdt[FROM / 8] = rt_desc(ADDRESS(from), BYTES - 1, 0x93, 0);
    rt_gdt[TO / 8] = rt_desc(ADDRESS(to), BYTES - 1, 0x93, 0);
    moves();
    scans();
    loads();
    ports();
}
