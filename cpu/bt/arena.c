/*
 * Memory of one vCPU: everything that translated code touches lies in one mapping below 2 GiB, so that its
 * addresses fit a 32-bit displacement; the code is a memfd that is mapped there for execution and elsewhere
 * for writing, never both at once.
 */
#include <errno.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include <cpuid.h>

#include "cpu/bt/bt_int.h"

#define ARENA_FIRST  0x10000000ull
#define ARENA_LAST   0x7e000000ull
#define ARENA_STEP   0x01000000ull
#define RET_STACK    (256 * KiB)
#define CODE_DEFAULT (32 * MiB)
#define CODE_MIN     (256 * KiB)
#define CODE_MAX     (256 * MiB)

/* Guest instructions translate to about 25 bytes each, four or five make a block. */
#define BYTES_PER_BLOCK 96
#define BYTES_PER_MAP   12
#define BYTES_PER_CELL  192
#define BYTES_PER_SITE  96

struct layout {
    size_t vcpu, tlb, jc, cells, sites, site_infos, site_list, ops, stack, code; /* bytes */
    size_t total;
};

static void lay_out(struct layout *l, size_t code_bytes)
{
    l->vcpu = align_up(sizeof(struct bt_vcpu), MEM_PAGE_SIZE);
    l->tlb = align_up(sizeof(struct bt_tlb) * BT_MMU_COUNT, MEM_PAGE_SIZE);
    l->jc = align_up(sizeof(struct bt_jc_entry) << BT_JC_BITS, MEM_PAGE_SIZE);
    l->cells = align_up(sizeof(struct bt_cell) * (code_bytes / BYTES_PER_CELL), MEM_PAGE_SIZE);
    size_t sites = code_bytes / BYTES_PER_SITE;
    l->sites = align_up(sites * sizeof(struct bt_site), MEM_PAGE_SIZE);
    l->site_infos = align_up(sites * sizeof(struct bt_site_info), MEM_PAGE_SIZE);
    l->site_list = align_up(sites * sizeof(uint32_t), MEM_PAGE_SIZE);
    l->ops = align_up(code_bytes / 4, MEM_PAGE_SIZE);
    l->stack = RET_STACK;
    l->code = align_up(code_bytes, MEM_PAGE_SIZE);
    l->total = l->vcpu + l->tlb + l->jc + l->cells + l->sites + l->site_infos + l->site_list + l->ops +
               l->stack + l->code;
}

static uint8_t *map_low(size_t bytes)
{
    for (uint64_t at = ARENA_FIRST; at + bytes <= ARENA_LAST; at += ARENA_STEP) {
        void *p = mmap((void *)at, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        if (p == (void *)at) {
            return p;
        }
        if (p != MAP_FAILED) {
            munmap(p, bytes);
        }
    }
    return NULL;
}

static void *map_lazily(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void host_features(struct bt_vcpu *v)
{
    unsigned a, b, c, d;
    uint32_t xcr0 = 0, high;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        v->has_bmi2 = b >> 8 & 1;
        v->has_avx512bw = b >> 30 & 1;
    }
    if (__get_cpuid(1, &a, &b, &c, &d) && (c >> 27 & 1)) { /* OSXSAVE */
        __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    }
    v->xsave_mask = bt_fpu_mask(xcr0);
    for (unsigned i = 2; i < ARRAY_SIZE(v->xsave_size); i++) {
        if ((v->xsave_mask >> i & 1) && __get_cpuid_count(0xd, i, &a, &b, &c, &d)) {
            v->xsave_size[i] = a;
            v->xsave_offset[i] = b;
        }
    }
    _Alignas(16) uint8_t image[512];
    memset(image, 0, sizeof(image));
    __asm__ volatile("fxsave %0" : "=m"(image));
    memcpy(&v->mxcsr_mask, image + 28, 4); /* SDM vol. 1, 11.6.6 */
    if (!v->mxcsr_mask) {
        v->mxcsr_mask = 0xffbf;
    }
}

static int map_code(struct bt_vcpu *v, uint8_t *at, size_t bytes, struct err *err)
{
    auto_close int fd = memfd_create("fonda-code", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0) {
        return err_sys(err, -errno, "cannot make a code cache of %zu bytes", bytes);
    }
    if (mmap(at, bytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        return err_sys(err, -errno, "cannot map the code cache for execution (does the system forbid it?)");
    }
    void *rw = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (rw == MAP_FAILED) {
        return err_sys(err, -errno, "cannot map the code cache for writing");
    }
    v->code_rx = at;
    v->code_rw = rw;
    v->code_size = (uint32_t)bytes;
    return 0;
}

struct bt_vcpu *bt_arena_new(struct bt_engine *engine, unsigned index, struct err *err)
{
    size_t code_bytes = engine->config.code_cache_bytes ? engine->config.code_cache_bytes : CODE_DEFAULT;
    code_bytes = MIN(MAX(code_bytes, CODE_MIN), CODE_MAX);
    struct layout l;
    lay_out(&l, code_bytes);
    uint8_t *base = map_low(l.total);
    if (!base) {
        err_set(err, -ENOMEM,
                "no room for %zu MiB below 2 GiB of this process for vCPU %u; use a smaller code cache",
                (size_t)(l.total / MiB), index);
        return NULL;
    }
    struct bt_vcpu *v = (struct bt_vcpu *)(void *)base;
    v->engine = engine;
    v->index = index;
    v->arena_size = l.total;
    uint8_t *p = base + l.vcpu;
    v->tlb = (struct bt_tlb *)(void *)p;
    p += l.tlb;
    v->jc = (struct bt_jc_entry *)(void *)p;
    p += l.jc;
    v->cells = (struct bt_cell *)(void *)p;
    v->cells_max = (uint32_t)(l.cells / sizeof(struct bt_cell));
    p += l.cells;
    v->sites = (struct bt_site *)(void *)p;
    v->sites_max = (uint32_t)(code_bytes / BYTES_PER_SITE);
    p += l.sites;
    v->site_infos = (struct bt_site_info *)(void *)p;
    p += l.site_infos;
    v->site_list = (uint32_t *)(void *)p;
    p += l.site_list;
    v->ops = p;
    v->ops_size = (uint32_t)l.ops;
    p += l.ops;
    if (mprotect(p, MEM_PAGE_SIZE, PROT_NONE) < 0) { /* the return stack grows down to here: see signal.c */
        err_sys(err, -errno, "cannot guard the return stack");
        munmap(base, l.total);
        return NULL;
    }
    v->ret_guard = (uint64_t)p;
    v->ret_bottom = (uint64_t)(p + l.stack - 64);
    v->ret_rsp = v->ret_bottom;
    p += l.stack;
    if (map_code(v, p, l.code, err) < 0) {
        bt_arena_free(v);
        return NULL;
    }
    size_t ram_pages = mem_ram_bytes(engine->mem) / MEM_PAGE_SIZE;
    v->ram_pages = ram_pages;
    v->blocks_max = (uint32_t)(code_bytes / BYTES_PER_BLOCK);
    v->maps_max = (uint32_t)(code_bytes / BYTES_PER_MAP);
    v->exits_max = v->blocks_max * 3;
    v->exits = map_lazily((v->exits_max + 1) * sizeof(struct bt_exit)); /* one to spare: gen_add_exit */
    v->blocks = map_lazily(v->blocks_max * sizeof(struct bt_block));
    v->maps = map_lazily(v->maps_max * sizeof(struct bt_map));
    v->hash = map_lazily(bt_hash_bytes());
    v->write_slots = map_lazily(ram_pages * sizeof(*v->write_slots));
    v->page_blocks = map_lazily(ram_pages * sizeof(struct bt_block *));
    v->code_pages = map_lazily(2ull * v->blocks_max * sizeof(uint32_t)); /* a block has at most two */
    v->scratch = map_lazily(bt_translate_scratch_bytes());
    v->signal_stack_size = MAX((size_t)getauxval(AT_MINSIGSTKSZ) * 2, (size_t)(64 * KiB));
    v->signal_stack = map_lazily(v->signal_stack_size);
    if (!v->blocks || !v->exits || !v->maps || !v->hash || !v->write_slots || !v->page_blocks ||
        !v->code_pages || !v->scratch || !v->signal_stack) {
        err_set(err, -ENOMEM, "no memory for the block tables of vCPU %u", index);
        bt_arena_free(v);
        return NULL;
    }
    host_features(v);
    return v;
}

static void unmap(void *p, size_t bytes)
{
    if (p) {
        munmap(p, bytes);
    }
}

void bt_arena_free(struct bt_vcpu *v)
{
    if (!v) {
        return;
    }
    unmap(v->blocks, v->blocks_max * sizeof(struct bt_block));
    unmap(v->exits, (v->exits_max + 1) * sizeof(struct bt_exit));
    unmap(v->maps, v->maps_max * sizeof(struct bt_map));
    unmap(v->hash, bt_hash_bytes());
    unmap(v->write_slots, v->ram_pages * sizeof(*v->write_slots));
    unmap(v->page_blocks, v->ram_pages * sizeof(struct bt_block *));
    unmap(v->code_pages, 2ull * v->blocks_max * sizeof(uint32_t));
    unmap(v->scratch, bt_translate_scratch_bytes());
    unmap(v->signal_stack, v->signal_stack_size);
    unmap(v->code_rw, v->code_size);
    munmap(v, v->arena_size);
}
