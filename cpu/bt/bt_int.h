/*
 * The inside of the binary translator: its data, and what its files offer each other.
 *
 * The path of an instruction:
 *
 *     run.c  bt_run -> bt_enter (stub) -> translated code -> stub -> bt_run ...
 *     on a miss:  block.c bt_block_get -> translate.c -> decode.c, gen_*.c -> emit.h
 *     slow memory: translated code -> stub -> tlb.c bt_tlb_miss
 *     anything that is not plain computation: translated code -> stub -> op_*.c
 *
 * One arena per vCPU, below 2 GiB so that translated code reaches all of it by 32-bit displacements:
 *
 *     struct bt_vcpu | TLB tables | op records | stubs and translated code (mapped twice: RX here, RW
 * elsewhere)
 *
 * Invariants
 *  1. Translated code is only ever written by its own vCPU's thread, through the RW alias.
 *  2. While translated code or a file compiled with -mgeneral-regs-only runs, the guest's x87 and vector
 *     registers are in the host's (fpu_live). Whoever calls anything else calls bt_fpu_save first.
 *  3. Outside of translated code all guest registers are in cpu.s; RFLAGS is split: arithmetic flags in
 *     aflags, IF in iflag, DF in dflag, the rest in cpu.s.rflags. bt_flags_merge and bt_flags_split convert.
 *  4. A block is entered only with `ctx` equal to the context it was looked up under; a context names one
 *     (address space, code-mapping generation, mode) and is never used again after any of these changed.
 *  5. Translated code holds no instruction that enters the host kernel, by construction: what is copied comes
 *     from the allow list in decode.c.
 */
#ifndef FONDA_CPU_BT_INT_H
#define FONDA_CPU_BT_INT_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"
#include "cpu/engine.h"
#include "cpu/x86/x86.h"

struct bt_vcpu;
struct bt_op;

/* --- modes: what a block's translation depends on, beside its address --- */

#define BT_MODE_USER   0x0001u /* CPL 3 */
#define BT_MODE_AC     0x0002u /* supervisor accesses may touch user pages: SMAP off, or RFLAGS.AC set */
#define BT_MODE_CODE64 0x0004u
#define BT_MODE_CODE32 0x0008u /* neither: 16-bit code */
#define BT_MODE_SS32   0x0010u /* SS.B, outside 64-bit mode */
#define BT_MODE_FLAT                                                                                         \
    0x0020u                    /* all segments: base 0, limit 4 GiB, present, writable data (or 64-bit mode) \
                                */
#define BT_MODE_CPL0   0x0040u /* CPL 0: privileged instructions may be inlined */
#define BT_MODE_NOFPU  0x0080u /* CR0.TS or CR0.EM set, or CR4.OSFXSR clear: x87/SSE go through a check */
#define BT_MODE_AVX    0x0100u /* XCR0 has AVX, and CR4.OSXSAVE is on */
#define BT_MODE_AVX512 0x0200u
#define BT_MODE_ONE    0x0400u /* one instruction per block (single step, breakpoints, shadows) */
#define BT_MODE_SLOW   0x0800u /* memory operands through the bounce buffer: MMIO, page crossing, segments */

#define BT_MODE_NOGROUP 0x2000u /* every access checked by itself */
/* Outside 64-bit mode: accesses through FS, GS need its base and no check; GS only at CPL 3, where
 * thread-local data is. (32-bit Linux reaches a processor's data by FS and leaves the user's GS alone: one
 * translation for both.) */
#define BT_MODE_FS_FLAT     0x4000u
#define BT_MODE_GS_FLAT     0x8000u
#define BT_MODE_FPU_CHECKED 0x1000u /* with ONE: the x87/SSE check was made */

/* MMU index: which pair of TLB tables an access uses. */
enum { BT_MMU_USER, BT_MMU_KERNEL, BT_MMU_KERNEL_AC, BT_MMU_COUNT };

/* --- TLB --- */

struct bt_tlb_entry {
    uint64_t tag;    /* page address | address-space number (12 bits, never 0); 0: empty */
    uint64_t addend; /* host address - guest address */
};

#define BT_TLB_BITS_MIN 12
#define BT_TLB_BITS_MAX 16
#define BT_TLB_MAX      (1u << BT_TLB_BITS_MAX)

struct bt_tlb {
    struct bt_tlb_entry read[BT_TLB_MAX];
    struct bt_tlb_entry write[BT_TLB_MAX];
};

/*
 * --- sites ---
 *
 * What one place in the code found last: a user-mode access compares with its site before it looks into the
 * TLB. A site holds what a TLB entry held when it was filled, and is emptied with all others whenever entries
 * of user pages are dropped (site.c). Where a place keeps changing its page, its block is translated again
 * without a site for it.
 */
struct bt_site {
    uint64_t page;   /* guest address */
    uint64_t addend; /* host address - guest address */
};

struct bt_site_info {
    uint32_t tsc;   /* low half, when the page changed last */
    uint32_t score; /* changes that came quickly one after the other */
};

#define BT_SITE_EMPTY     0x8000000000000000ull /* not canonical: a hit raises #GP, as it should */
#define BT_SITE_QUICK     4000u                 /* TSC ticks */
#define BT_SITE_SCORE_MAX 32u
#define BT_SITE_PAGES     1024u /* bytes of a filter: pages that some site may hold, by number */
#define BT_SITE_HASH_BITS 16
#define BT_SITE_HOT       2u /* samples of a block */

/* --- decoded instructions --- */

#define BT_NO_REG 0xff

/* What a runtime helper needs to know of its instruction; lives in the arena as long as the block. */
struct bt_op {
    int (*fn)(struct bt_vcpu *v, const struct bt_op *op);
    uint64_t rip;
    int64_t disp;
    uint64_t imm;
    uint16_t mnemonic; /* ZydisMnemonic */
    uint16_t mem_size; /* bytes; 0 where the helper decides */
    uint8_t len;
    uint8_t opsize;             /* operand size in bytes: 1, 2, 4, 8 */
    uint8_t addrsize;           /* 2, 4, 8 */
    uint8_t seg;                /* enum x86_sreg of the memory operand */
    uint8_t base, index, scale; /* guest register numbers or BT_NO_REG */
    bool has_mem, rip_relative, stack_based;
    uint8_t access; /* X86_ACCESS_READ (loads) or _WRITE (stores, and read-modify-write with mem_read) */
    bool mem_read;
    uint8_t reg,
        rm;      /* ModRM fields as guest register numbers, with REX bits; rm only when it names a register */
    uint8_t rep; /* 0, 1 REP/REPE, 2 REPNE */
    uint8_t modrm_reg; /* raw field, for groups */
    uint8_t map, opcode;
    uint8_t imm2;    /* ENTER's second immediate */
    uint8_t source;  /* PUSH, POP: enum below */
    uint8_t seg_reg; /* PUSH, POP of a segment register */
    bool far, rex_w;
    uint8_t mask_reg;            /* EVEX opmask, or 0 */
    uint8_t elem;                /* element size in bytes of a masked or gathered operand */
    uint8_t vlen;                /* vector length in bytes */
    uint8_t vreg, vindex, vmask; /* register numbers of gathers, scatters, masked moves */
    bool masked;                 /* inactive elements of the memory operand are not accessed */
    bool packed;                 /* the active elements lie one behind the other (VCOMPRESS, VEXPAND) */
    bool aligned;                /* the memory operand must be aligned to its size */
    uint8_t mask_lanes; /* lanes that share the operand's elements in turn (broadcasts); 0: one each */
    bool bit_string;    /* BT and its kin: reg selects the element */
    bool x87, sse, avx, avx512, evex;
    bool waits; /* a pending x87 error comes before a fault of the memory operand */
};

enum { BT_SOURCE_RM, BT_SOURCE_IMM, BT_SOURCE_SEG };

enum bt_enc { BT_ENC_LEGACY, BT_ENC_VEX, BT_ENC_EVEX, BT_ENC_OTHER };

/* A ModRM, VEX.vvvv or opcode field that names a general-purpose register. */
struct bt_field {
    bool gpr;
    uint8_t reg;  /* guest number */
    uint8_t size; /* 1, 2, 4, 8 */
    bool high;    /* AH, CH, DH, BH */
    bool rd, wr;
};

struct bt_insn {
    struct bt_op op;
    const uint8_t *bytes;
    enum bt_enc enc;
    bool valid;      /* decodes and is offered by CPUID; else #UD */
    bool too_long;   /* more than 15 bytes: #GP */
    bool fpu;        /* touches x87, MMX or vector state */
    bool legacy_sse; /* needs CR4.OSFXSR */
    bool avx, avx512;
    bool lock, opsz66, mand_f2, mand_f3;
    bool rex_w;
    uint8_t map, opcode; /* legacy: opcode map 0 (one byte), 1 (0F), 2 (0F38), 3 (0F3A) */
    bool has_modrm;
    uint8_t mod;
    uint8_t raw_reg, raw_rm; /* with REX/VEX/EVEX extension bits, as encoded */
    uint8_t raw_v;           /* vvvv (not inverted), with EVEX.V' */
    uint8_t vex_l, vex_pp;
    uint8_t evex_z, evex_b, evex_ll, evex_aaa;
    uint8_t imm_bytes, imm_off;
    uint8_t disp_bytes, disp_off;
    bool imm_signed;
    bool plain; /* all but disp and imm follows from the bytes in front of these (decode_cache.c) */
    struct bt_field reg, rm, v, opc; /* by encoding */
    uint16_t gpr_written;            /* general-purpose registers that may change, by bit */
    bool rcx_read, rcx_write;        /* implicit use of (E/R)CX or CL */
    bool vsib, masked_mem;
    bool privileged;
    bool is4;                            /* the immediate names a vector register */
    uint32_t fl_read, fl_kill, fl_write; /* arithmetic flags: read, certainly overwritten, possibly changed */
    uint32_t live_after;                 /* by the backward pass */
    bool agen;                           /* LEA-like: the memory operand is only an address */
};

/* Decodes the instruction at bytes[0..avail) for the mode; avail may be short at a page end. Returns the
 * length; 0 when more bytes are needed than avail has. in->valid says whether it may execute at all. */
unsigned bt_decode(const struct x86_cpu *cpu, uint32_t mode, uint64_t rip, const uint8_t *bytes,
                   unsigned avail, struct bt_insn *in);

/* The same, by way of what was decoded before (decode_cache.c). One per vCPU; starts as zeroes. */
#define BT_DECODE_CACHE_BITS 12
struct bt_decode_cache {
    struct bt_decoded {
        uint64_t key; /* 0: empty */
        struct bt_insn in;
    } entry[BIT(BT_DECODE_CACHE_BITS)];
};
unsigned bt_decode_cached(struct bt_decode_cache *cache, const struct x86_cpu *cpu, uint32_t mode,
                          uint64_t rip, const uint8_t *bytes, unsigned avail, struct bt_insn *in);

/* --- blocks --- */

#define BT_BLOCK_INSNS_MAX 64
#define BT_BLOCK_BYTES_MAX 1024 /* guest bytes; a block never spans more than two pages */

enum bt_exit_kind {
    BT_EXIT_NONE,    /* always through its stub */
    BT_EXIT_DIRECT,  /* patched jump: target on the same page */
    BT_EXIT_CHECKED, /* jump through a cell, checked against ctx: target on another page */
    BT_EXIT_RETURN,  /* where a call comes back: through a cell, checked against the popped address + ctx */
    BT_EXIT_GROUP,   /* patched jump from a failed group check to the same instruction in BT_MODE_NOGROUP */
};

struct bt_block;

struct bt_cell {
    uint64_t
        neg_ctx; /* -(context the link was made under [+ return address]), or a value that never matches */
    uint64_t target; /* host address */
};

struct bt_exit {
    uint64_t rip;            /* guest address it goes to */
    struct bt_block *block;  /* the block it leaves */
    struct bt_block *to;     /* while linked */
    struct bt_exit *next_in; /* list of links into `to` */
    uint32_t site, end;      /* code offsets of a checked exit's sequence */
    uint32_t jump; /* code offset of the rel32 that leads to the stub (checked), or to the target or stub
                      (direct) */
    uint32_t stub; /* code offset of the unlinked path */
    uint8_t kind;
    struct bt_cell *cell;
};

/* Host offset (from the block's code) at which a guest instruction's code starts. */
struct bt_map {
    uint16_t host, guest; /* guest: offset in the block, and BT_MAP_FLAGS_SAVED */
};
#define BT_MAP_FLAGS_SAVED 0x8000u /* while its operation executes, the guest's flags are in aflags */

struct bt_block {
    uint64_t rip;
    uint64_t ram;  /* RAM offset of the first byte */
    uint64_t ram2; /* RAM offset of the second page's first byte where it spans two, else UINT64_MAX */
    uint32_t mode;
    uint32_t code, code_len;                            /* offset in the code cache, and bytes */
    uint32_t indirect_from, indirect_to, indirect_stub; /* code offsets of an indirect jump's tail, 0: none */
    uint32_t indirect_back; /* where an indirect call's way through C comes back to */
    uint16_t guest_len;
    uint16_t insns, nmaps;
    int32_t rsp_moved; /* by the RET or CALL at its end */
    bool dead;
    struct bt_block *hash_next;
    struct bt_block *page_next, *page2_next;
    struct bt_exit *in;    /* links into this block */
    struct bt_exit *exits; /* nexits of them */
    uint8_t nexits;
    struct bt_cell *count; /* its target is how often the block ran; NULL: not counted */
    struct bt_map *map;    /* insns entries, in code order */
};

/* --- jump cache --- */

#define BT_JC_BITS 16 /* the index is made by RORX, LEA and MOVZX, which leave the flags alone */
struct bt_jc_entry {
    uint64_t neg_key; /* -(rip + ctx) */
    uint64_t target;  /* host address */
};

/* --- exits to C --- */

enum bt_leave {
    BT_LEAVE_LINK = 1, /* an exit without a link; v->leave_arg is its number */
    BT_LEAVE_INDIRECT, /* jump cache miss; target in v->ind_rip, v->leave_arg is the block's number */
    BT_LEAVE_RETURN,   /* the same after a RET; v->leave_arg is the exit's number, or BT_NO_EXIT */
    BT_LEAVE_OP,       /* an op returned something else than BT_NEXT; v->op_result says what */
    BT_LEAVE_MEM,      /* memory slow path refused; v->op_result, v->site say what and where */
    BT_LEAVE_FAULT,    /* a host fault in translated code; v->fault_* */
};

#define BT_NO_EXIT UINT32_MAX

/* What an op's function returns. */
enum {
    BT_NEXT = 0, /* go on behind the instruction */
    BT_JUMP,     /* cpu.s.rip was set; look the block up */
    BT_RAISE,    /* cpu.exc is a fault at this instruction */
    BT_AGAIN, /* cpu.s.rip and registers are consistent in mid-instruction: serve interrupts and come back */
    BT_HALT,
    BT_SLOW,    /* memory slow path only: run the instruction as a block of one in BT_MODE_SLOW */
    BT_NOGROUP, /* memory slow path only: go on from this instruction in BT_MODE_NOGROUP */
    BT_CHAIN,   /* from bt_op_dispatch only: go to v->chain at once */
    BT_STOP,    /* a debugger's point; v->stop says which */
    BT_DONE,    /* like BT_NEXT, but modes, mappings or shadows changed: end the block */
};

/* Fetch translations: page -> RAM, valid for one context. */
struct bt_itlb_entry {
    uint64_t page, ctx, ram;
};
#define BT_ITLB_SIZE 256

/*
 * What the vCPUs tell one another of a RAM page, so that none executes what another has overwritten (smc.c).
 * Both sides first say what they do, then look at what the other said:
 *
 *     who translates   sets its bit and its chunks in `code`, then has the `writers` drop their write entries
 *     who writes       sets its bit in `writers`, then enters a write entry only where `code` is 0
 */
struct bt_page {
    /* bit i: vCPU i has blocks of this page; bit 32+n: some lie in its n-th 128 bytes */
    _Atomic uint64_t code;
    _Atomic uint32_t writers; /* bit i: vCPU i may write to it without looking at `code` first */
};

#define BT_CHUNK_BYTES (MEM_PAGE_SIZE / 32)

/*
 * Where the write entries for a RAM page are (the kernel's and a user's address, say), for dropping them
 * without a search: this + mmu << 16 + index.
 */
#define BT_WRITE_SLOT      1u
#define BT_WRITE_SLOT_MANY UINT32_MAX

/* --- counters --- */

enum bt_counter {
    BT_C_BLOCKS,
    BT_C_INSNS,
    BT_C_GUEST_BYTES,
    BT_C_CODE_BYTES,
    BT_C_FLUSHES,
    BT_C_INVALIDATED,
    BT_C_EXIT_LINK,
    BT_C_EXIT_INDIRECT,
    BT_C_EXIT_OP,
    BT_C_EXIT_SLOW,
    BT_C_EXIT_NOGROUP,
    BT_C_EXIT_FAULT,
    BT_C_EXIT_KICK,
    BT_C_TLB_MISS,
    BT_C_TLB_FLUSH,
    BT_C_TLB_SWITCH,
    BT_C_TLB_PAGE,
    BT_C_TLB_GROW,
    BT_C_EXCEPTIONS,
    BT_C_PAGE_FAULTS,
    BT_C_IRQS,
    BT_C_SYSCALLS,
    BT_C_SMC,
    BT_C_BOUNCED,
    BT_C_PIO,
    BT_C_HALTS,
    BT_C_NS_TRANSLATE,
    BT_C_NS_FLUSH,
    BT_C_NS_FLUSH_MAX,
    BT_C_NS_RUN,
    BT_C_COUNT
};

#define BT_EVENT_EXCEPTION 0x100
#define BT_EVENT_INTERRUPT 0x101
#define BT_LAST_EXITS      16
struct bt_last_exit {
    uint64_t rip;
    uint16_t what, vector; /* enum bt_leave; or 0x100 + kind for events */
};

/* --- the vCPU --- */

struct bt_engine;

struct bt_range {
    uint64_t ram, len;
};

struct bt_vcpu {
    struct x86_cpu cpu; /* first: cpu.s.gpr are the slots of displaced registers */

    /* Read and written by translated code. */
    uint32_t aflags;             /* AH as LAHF leaves it << 8 | OF */
    uint8_t iflag, dflag;        /* 0 or 1 */
    uint64_t ctx;                /* current context */
    uint64_t ctx_poison;         /* what ctx is set to while something is pending: matches nothing */
    uint64_t asid[BT_MMU_COUNT]; /* OR-ed into the tag that an access looks for */
    uint64_t tlb_mask;           /* (entries - 1) << 4 */
    uint64_t ind_rip;            /* target of an indirect jump */
    uint64_t tmp[4];             /* within one instruction */
    uint64_t group[8];           /* within one block: host addresses of groups of accesses */
    uint64_t c_rsp;              /* C's stack while translated code runs */
    uint64_t ret_rsp;            /* the stack that translated code runs on: return addresses of host calls */
    uint64_t ret_guard;          /* the page below it, inaccessible */
    uint64_t ret_bottom;         /* where it starts, with the address of stub_return_bottom */
    uint32_t ret_block;          /* number of the block whose RET was executed last */
    uint64_t site_va, site_info; /* within a site's stub */
    uint64_t site_at;            /* address of the site */
    uint32_t sites_filled;
    uint8_t site_pages[BT_SITE_PAGES]; /* by page number: not 0 where a site may hold it */
    uint64_t leave_arg;
    uint64_t chain;   /* host address of the block that follows an op */
    uint8_t irq_wait; /* an interrupt is waiting for IF */
    uint64_t site;    /* host return address of the last slow path or op */
    int op_result;
    bool has_bmi2, has_avx512bw; /* of the host */
    uint64_t fn_op, fn_tlb_miss; /* addresses of C functions, for the stubs */

    /* The bounce buffer of BT_MODE_SLOW. */
    struct {
        uint64_t va;
        uint32_t size;
        bool masked;
        bool direct; /* ptr is in guest RAM: nothing to write back */
        uint8_t elem;
        uint64_t mask; /* active elements */
        uint64_t ptr;  /* host address of the operand's first byte */
        _Alignas(64) uint8_t buf[4096 + 128];
    } bounce;
    uint64_t kmask;                     /* opmask register of a masked memory operand */
    _Alignas(64) uint8_t crossing[128]; /* copy of a load's operand that lies on two pages */

    /* Ours. */
    struct bt_engine *engine;
    struct bt_tlb *tlb; /* BT_MMU_COUNT of them */
    uint8_t *code_rx, *code_rw;
    uint32_t code_size, code_used, code_start; /* code_start: behind the stubs */
    uint8_t *ops;
    uint32_t ops_size, ops_used;
    struct bt_block *blocks; /* in order of their code */
    uint32_t nblocks, blocks_max;
    struct bt_block **hash;
    struct bt_map *maps;
    uint32_t maps_used, maps_max;
    struct bt_exit *exits;
    uint32_t exits_used, exits_max;
    struct bt_cell *cells;
    uint32_t cells_used, cells_max;
    struct bt_jc_entry *jc;
    struct bt_site *sites;
    struct bt_site_info *site_infos;
    uint32_t *site_list; /* addresses of those filled */
    uint32_t sites_used, sites_max;
    /* By hash of an address: how often interrupts found the block there; instructions that do without a site.
     */
    uint8_t site_heat[BIT(BT_SITE_HASH_BITS)];
    bool site_poly[BIT(BT_SITE_HASH_BITS)];
    uint32_t (*write_slots)[2]; /* per RAM page: 0, BT_WRITE_SLOT + ..., or BT_WRITE_SLOT_MANY */
    uint64_t mode_ctx;          /* what ctx is, or was before it was poisoned */
    struct bt_itlb_entry itlb[BT_ITLB_SIZE];
    struct bt_block **page_blocks;     /* per RAM page */
    uint32_t *code_pages, ncode_pages; /* those that have or had blocks since the last flush; some twice */
    void *scratch;                     /* translate.c's */
    uint32_t mode;                     /* of the current state (without ONE, SLOW) */
    uint32_t mode_once;                /* OR-ed into the mode for the next block only */
    bool fpu_live;
    bool k_nonglobal;
    uint8_t tlb_bits;
    uint32_t misses_window;
    uint64_t tlb_since_tsc;
    uint16_t next_asid;
    uint64_t next_ctx;
    uint16_t pcid_asid[4096];
    uint64_t asid_ctx[4096];
    uint16_t cur_asid, kernel_asid;
    uint64_t kernel_ctx;
    bool k_code_nonglobal;
    uint64_t large_bloom[16],
        huge_bloom[16]; /* regions of 2 MiB and 1 GiB that were cached from large pages */
    uint64_t code_bloom[1024];

    /* The dispatcher's. */
    struct bt_exit *link_from; /* to be linked to the next block */
    uint64_t link_flushes;     /* how many flushes there were when link_from was noted */
    bool fill_jc;              /* enter the next block in the jump cache */
    bool raised;               /* cpu.exc is to be delivered */
    bool killed;               /* a block was invalidated: maybe the current one */
    bool no_step;       /* the instruction entered an interrupt handler: no single-step trap behind it */
    bool mid_string;    /* BT_AGAIN is between two elements of a string instruction */
    unsigned pauses;    /* PAUSE instructions executed */
    uint64_t data_hits; /* DR6 bits of data breakpoints hit by the current instruction */
    struct engine_debug debug; /* what a debugger asked for */
    bool debug_exec;           /* some points are EXEC: blocks end before them */
    bool debug_alone;          /* stepping or watching: one instruction at a time */
    bool debug_watch;
    bool count_blocks; /* new blocks count their runs */
    struct engine_stop stop;
    struct vcpu_platform vm; /* the machine's, behind functions that save the vector state first */
    uint32_t xsave_mask, mxcsr_mask;
    uint32_t xsave_offset[10], xsave_size[10]; /* of each component, in the standard format */
    _Alignas(64) uint8_t xbuf[X86_XSAVE_MAX];
    size_t ram_pages;
    struct bt_range code_queue[64]; /* under engine->lock, as are the next five */
    unsigned ncode_queue;
    bool code_queue_full;
    uint64_t drop_queue[64]; /* RAM pages whose write entries another vCPU wants dropped */
    unsigned ndrop_queue;
    uint64_t drops_asked;
    _Atomic uint64_t drops_done; /* of drops_asked; written by the vCPU's thread */
    void *signal_stack;
    size_t signal_stack_size, arena_size;
    unsigned index;

    /* Other threads and the signal handler. */
    _Atomic uint32_t pending;
    _Atomic bool in_run;
    pthread_t thread;
    struct bt_block *enter_target;
    int fault_vector;
    uint32_t fault_mode; /* of the block where it was */

    /* Stubs: addresses in the RX mapping. */
    uint64_t stub_enter, stub_leave_link, stub_leave_indirect, stub_leave_return, stub_leave_fault;
    uint64_t stub_lookup, stub_lookup_end, stub_lookup_miss, stub_return_bottom;
    uint64_t stub_op, stub_mem;
    uint64_t stub_site[2]; /* load, store */
    uint64_t stub_site_end;

    uint64_t counters[BT_C_COUNT];
    uint64_t tsc_flushing, tsc_longest_flush;
    uint64_t tsc_translating, tsc_running; /* in TSC ticks; BT_C_NS_RUN says what one is */
    struct bt_last_exit last[BT_LAST_EXITS];
    unsigned last_at;
};

#define BT_PENDING_KICK 1u
#define BT_PENDING_IRQ  2u
#define BT_PENDING_NMI  4u
#define BT_PENDING_CODE 8u  /* another thread wrote to a page with translated code */
#define BT_PENDING_DROP 16u /* another vCPU wants write entries dropped */

struct bt_engine {
    struct engine_config config;
    struct mem *mem;
    unsigned nvcpus;
    struct bt_vcpu *vcpus[32];
    struct bt_page *pages; /* per RAM page */
    size_t npages;
    pthread_mutex_t lock;
};

static inline struct bt_vcpu *bt_of(struct x86_cpu *cpu)
{
    return (struct bt_vcpu *)(void *)cpu;
}

/* Alignment checks are on (SDM vol. 3A, 6.15, #AC): at CPL 3 with CR0.AM and RFLAGS.AC. */
static inline bool bt_alignment_checked(const struct bt_vcpu *v)
{
    return v->cpu.cpl == 3 && (v->cpu.s.cr0 & X86_CR0_AM) && (v->cpu.s.rflags & X86_AC);
}

/* --- flags --- */

static inline void bt_flags_merge(struct bt_vcpu *v)
{
    uint64_t f = v->cpu.s.rflags & ~(uint64_t)(X86_FLAGS_ARITH | X86_IF | X86_DF);
    f |= (v->aflags >> 8) & 0xd5u;
    f |= (v->aflags & 1u) << 11;
    f |= (uint64_t)v->iflag << 9 | (uint64_t)v->dflag << 10 | 2;
    v->cpu.s.rflags = f;
}

static inline void bt_flags_split(struct bt_vcpu *v)
{
    uint64_t f = v->cpu.s.rflags;
    v->aflags = (uint32_t)((f & 0xd5u) << 8 | ((f >> 11) & 1u));
    v->iflag = (f >> 9) & 1u;
    v->dflag = (f >> 10) & 1u;
}

/* --- arena.c --- */

struct bt_vcpu *bt_arena_new(struct bt_engine *engine, unsigned index, struct err *err);
void bt_arena_free(struct bt_vcpu *v);

/* --- stubs.c --- */

void bt_stubs_make(struct bt_vcpu *v);

/* --- block.c: cache, look-up, links --- */

/* The block at the current RIP in `mode`, translated where it must be. NULL: a fetch fault, in cpu.exc. */
struct bt_block *bt_block_get(struct bt_vcpu *v, uint32_t mode);
/* The same if there is one. */
struct bt_block *bt_block_find(struct bt_vcpu *v, uint32_t mode);
void bt_code_flush(struct bt_vcpu *v);
void bt_link(struct bt_vcpu *v, struct bt_exit *exit, struct bt_block *to);
/* Makes every way out of the block lead to C. Signal handler and vCPU thread. */
void bt_unlink_out(struct bt_vcpu *v, struct bt_block *b);
/* Has the block translated again when it is needed next. */
void bt_block_drop(struct bt_vcpu *v, struct bt_block *b);
/* Invalidates what was translated from [ram, ram + len). */
void bt_code_written(struct bt_vcpu *v, uint64_t ram, uint64_t len);
/* Whether [ram, ram + len) overlaps translated bytes. */
bool bt_code_overlaps(struct bt_vcpu *v, uint64_t ram, uint64_t len);
struct bt_block *bt_block_at(struct bt_vcpu *v, uint64_t host_pc);
/* Guest RIP of a host address inside of a block. */
const struct bt_map *bt_map_at(const struct bt_vcpu *v, const struct bt_block *b, uint64_t host_pc);
size_t bt_hash_bytes(void);
uint64_t bt_rip_at(const struct bt_vcpu *v, const struct bt_block *b, uint64_t host_pc);
void bt_jc_clear(struct bt_vcpu *v);

static inline struct bt_jc_entry *bt_jc_slot(struct bt_vcpu *v, uint64_t rip)
{
    return &v->jc[(rip + (rip >> 16)) & (BIT(BT_JC_BITS) - 1)]; /* functions are aligned: spread them */
}

/* --- smc.c: code that is overwritten, by this vCPU, another, or a device */

/* This vCPU has blocks that cover [ram, ram + len), within a page. On return no other vCPU writes there
 * unnoticed. */
void bt_code_claim(struct bt_vcpu *v, uint64_t ram, uint64_t len);
/* This vCPU has no block of the page any more. */
void bt_code_release(struct bt_vcpu *v, uint64_t ram_page);
/* vCPU thread, before it writes to a page: whether some vCPU has code there. */
bool bt_write_claim(struct bt_vcpu *v, uint64_t ram_page);
/* Whether a vCPU other than v may have translated from [ram, ram + len), within a page. */
bool bt_code_overlaps_others(const struct bt_vcpu *v, uint64_t ram, uint64_t len);
/* Has the blocks of [ram, ram + len) of all vCPUs but `except` (or NULL) invalidated soon. Any thread. */
void bt_code_notify(struct bt_engine *e, const struct bt_vcpu *except, uint64_t ram, uint64_t len);
/* vCPU thread, in the dispatcher: what other threads asked for by BT_PENDING_CODE and BT_PENDING_DROP. */
void bt_code_queue_serve(struct bt_vcpu *v);
void bt_drop_queue_serve(struct bt_vcpu *v);

/* --- translate.c --- */

/* Fills in the block's code; b->rip, ram, ram2 and mode are set. code[0..avail) are the guest bytes at
 * b->rip, avail2 those of the second page. Returns 0, -ENOSPC when the cache is full, -EAGAIN when bytes of
 * the next page are needed first. */
int bt_translate(struct bt_vcpu *v, struct bt_block *b, const uint8_t *code, unsigned avail,
                 const uint8_t *code2);
/* Whether guest memory still holds what the last bt_translate read for the block. */
bool bt_translated_what_is_there(const struct bt_vcpu *v, const struct bt_block *b, const uint8_t *code,
                                 unsigned avail, const uint8_t *code2);
size_t bt_translate_scratch_bytes(void);

/* --- tlb.c (general registers only) --- */

/* From the stubs: returns BT_NEXT with *ret_host set in v->tmp[3], or BT_RAISE, BT_SLOW. info: size | write
 * << 15 | mmu << 16 | masked << 20 */
int bt_tlb_miss(struct bt_vcpu *v, uint64_t va, uint32_t info);
#define BT_INFO_SITE 0x800000u  /* in info: through a site */
#define BT_INFO_POLY 0x1000000u /* the site's page keeps changing */
void bt_tlb_init(struct bt_vcpu *v);
void bt_tlb_forget_page(struct bt_vcpu *v, uint64_t ram_page); /* write entries of a RAM page */
void bt_tlb_forget_writes(struct bt_vcpu *v);                  /* all write entries */
extern const struct x86_cpu_ops bt_cpu_ops;
void bt_mode_update(struct bt_vcpu *v); /* recomputes mode and ctx from cpu.s */
unsigned bt_mmu_index(const struct bt_vcpu *v);
/* Marks that code was fetched from this page (for INVLPG). */
void bt_note_code_page(struct bt_vcpu *v, uint64_t va, bool global);

/* --- site.c (general registers only) --- */

void bt_sites_empty(struct bt_vcpu *v); /* what they hold is not true any more */
void bt_sites_forget(struct bt_vcpu *v,
                     bool hints); /* the code that uses them goes; and what is known of it */
/* An access at host return address v->site was refused by its site's stub or by a group's check: notes it,
 * and has the block translated without the site where that happens often. */
void bt_site_refused(struct bt_vcpu *v, bool now);
/* An interrupt came in front of the block at the current RIP: those where that happens again have sites. */
void bt_site_sample(struct bt_vcpu *v);

static inline unsigned bt_site_hash(uint64_t rip)
{
    return (unsigned)(rip * 0x9e3779b97f4a7c15ull >> (64 - BT_SITE_HASH_BITS));
}

static inline unsigned bt_site_page_slot(uint64_t va)
{
    return (unsigned)(va >> MEM_PAGE_SHIFT) & (BT_SITE_PAGES - 1);
}

/* --- op_*.c (general registers only) --- */

/* The function that executes an instruction which is not translated inline, or NULL; *ret_ends: it ends its
 * block. */
typedef int bt_op_fn(struct bt_vcpu *v, const struct bt_op *op);
bt_op_fn *bt_op_lookup(const struct bt_insn *in, bool *ret_ends);
int bt_op_ud(struct bt_vcpu *v, const struct bt_op *op);
int bt_op_nm(struct bt_vcpu *v, const struct bt_op *op); /* checks CR0/CR4/XCR0, raises #NM or #UD */
int bt_op_gp(struct bt_vcpu *v, const struct bt_op *op);
int bt_op_bounce_begin(struct bt_vcpu *v, const struct bt_op *op);
int bt_op_bounce_commit(struct bt_vcpu *v, const struct bt_op *op);
uint64_t bt_op_ea(const struct bt_vcpu *v, const struct bt_op *op); /* offset within the segment */
int bt_op_dispatch(struct bt_vcpu *v, const struct bt_op *op);      /* what the op stub calls */

/* --- debug.c: a debugger's steps and points (general registers only) --- */

int bt_set_debug(struct vcpu *vcpu, const struct engine_debug *debug);
int bt_walk(struct vcpu *vcpu, uint64_t va, gpa_t *ret_gpa);
/* Whether a debugger wants to stop before the instruction at this linear address. */
bool bt_debug_exec_at(const struct bt_vcpu *v, uint64_t linear);
/* Executed in place of such an instruction. */
int bt_op_stop(struct bt_vcpu *v, const struct bt_op *op);
/* An access that the current instruction makes. */
void bt_debug_accessed(struct bt_vcpu *v, uint64_t va, unsigned size, bool write);
/* Behind an instruction, or the delivery of its fault: whether to stop here. */
bool bt_debug_stops(struct bt_vcpu *v, struct vcpu_exit *exit);

/* --- fpu.c --- */

void bt_fpu_save(struct bt_vcpu *v);
void bt_fpu_load(struct bt_vcpu *v);

void bt_fpu_sanitize(struct bt_vcpu *v); /* after the area was set from outside */
/* Raises #MF where an x87 error is pending, in place of a fault of the memory operand. */
bool bt_fpu_fault(struct bt_vcpu *v);
uint32_t bt_fpu_mask(uint64_t host_xcr0);

/* --- run.c, signal.c --- */

int bt_signals_install(struct err *err);
#define BT_SIGNAL_KICK SIGUSR2
int bt_signals_thread(struct bt_vcpu *v);
void bt_signals_thread_end(struct bt_vcpu *v);
int bt_run(struct vcpu *vcpu, struct vcpu_exit *ret_exit);
void bt_pend(struct bt_vcpu *v, uint32_t bit);
void bt_unlink_current(struct bt_vcpu *v, uint64_t host_pc);

#endif
