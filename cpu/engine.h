/*
 * The contract of an execution engine: something that runs guest code of one architecture.
 *
 * vm/ owns the vCPU threads and the machine; an engine owns how instructions execute. An engine knows no
 * device: it reaches RAM, MMIO and ports through mem/, and the interrupt controller, the timer MSRs and the
 * paravirtual interfaces through `struct vcpu_platform`, which vm/ fills in.
 *
 * Life of a vCPU thread:
 *
 *     vcpu_create -> set_state -> [ run -> exit -> ... ] -> vcpu_free
 *
 * Threads: run, get_state, set_state, vcpu_free on the vCPU's own thread (or before it starts, after it
 * ends); kick and irq_raise on any thread and in signal handlers.
 */
#ifndef FONDA_CPU_ENGINE_H
#define FONDA_CPU_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/mem.h"

struct engine;
struct vcpu;
struct x86_state;

/* What vm/ gives each x86 vCPU. All run on the vCPU thread. Returns of -1 from the MSR calls raise #GP(0). */
struct vcpu_platform {
    void *opaque;
    /* The interrupt to deliver now: vector 0-255 (and acknowledges it), or -1 when there is none. Called when
     * the guest can take one. */
    int (*irq_ack)(void *opaque);
    /* Whether irq_ack would return a vector (does not acknowledge). */
    bool (*irq_pending)(void *opaque);
    /* CR8, the task-priority class (0-15). */
    uint64_t (*cr8_read)(void *opaque);
    void (*cr8_write)(void *opaque, uint64_t value);
    /* MSRs that belong to the machine: IA32_APIC_BASE (0x1b), IA32_TSC_DEADLINE (0x6e0), x2APIC
     * (0x800-0x8ff), KVM's paravirtual ones (0x11, 0x12, 0x4b564d00-0x4b564dff). */
    int (*msr_read)(void *opaque, uint32_t msr, uint64_t *ret_value);
    int (*msr_write)(void *opaque, uint32_t msr, uint64_t value);
    /* VMCALL/VMMCALL: KVM's hypercall ABI. Returns what the guest finds in RAX. */
    uint64_t (*hypercall)(void *opaque, uint64_t nr, const uint64_t args[4]);
};

enum exit_reason {
    EXIT_KICK,     /* vcpu_kick was called */
    EXIT_HLT,      /* the guest halted, with interrupts on or off (exit.hlt_if says) */
    EXIT_SHUTDOWN, /* triple fault */
    EXIT_ERROR,    /* the engine cannot go on; exit.text says why */
    EXIT_DEBUG,    /* what set_debug asked for has happened; exit.debug says what */
};

/* --- debugging from outside: the guest sees none of it --- */

enum engine_point_kind { ENGINE_POINT_EXEC, ENGINE_POINT_WRITE, ENGINE_POINT_READ, ENGINE_POINT_ACCESS };

/* A place to stop at, by linear address, in every address space. EXEC stops before the instruction that
 * starts at va, the others behind one that accesses any of the bytes [va, va + size). */
struct engine_point {
    uint64_t va;
    uint32_t size;
    enum engine_point_kind kind;
};

#define ENGINE_POINTS_MAX 128
struct engine_debug {
    /* Stop behind one instruction, or at the first instruction of the handler that it, or its fault, led to.
     * External interrupts and NMIs wait meanwhile, but for those that end a HLT. */
    bool step;
    unsigned count;
    struct engine_point points[ENGINE_POINTS_MAX];
};

struct engine_stop {
    bool step;
    bool point; /* one of the points was hit: its kind, and the address that was executed or accessed */
    enum engine_point_kind kind;
    uint64_t va;
};

struct vcpu_exit {
    enum exit_reason reason;
    bool hlt_if; /* EXIT_HLT: RFLAGS.IF at the halt */
    char text[200];
    struct engine_stop debug; /* EXIT_DEBUG */
};

#define ENGINE_COUNTERS_MAX 64
struct engine_counter {
    const char *name;  /* static, e.g. "blocks-translated" */
    const char *group; /* "code", "exits", "tlb", "interrupts", "time" */
    uint64_t value;    /* nanoseconds when the group is "time" */
};

struct engine_config {
    struct mem *mem;
    unsigned vcpus;
    const char *cpu_model;     /* "host", "x86-64-v2", "x86-64-v3" */
    uint64_t code_cache_bytes; /* of translated code for each vCPU; 0: the engine's default */
    bool eager;                /* translate all code as what runs often: for tests */
    uint64_t tsc_hz;           /* frequency of the guest's TSC, as the platform announces it */
    bool apic_x2apic;          /* offer x2APIC in CPUID */
};

struct engine_ops {
    const char *name;  /* "bt", "kvm" */
    const char *arch;  /* "x86-64" */
    const char *about; /* one line for `fonda engines` */
    /* The guest's accesses to RAM are the process's own, through mem_ram_base(): page protection and SIGSEGV
     * work on them (mem/guard.h). */
    bool user_mode_access;

    /* 0 when this host can run the engine, else a negative errno and exactly why in err. With 0, err may hold
     * a remark for the user (code 0, text not empty): that the engine works but slowly here, for instance. */
    int (*probe)(struct err *err);
    int (*create)(const struct engine_config *config, struct engine **ret_engine, struct err *err);
    void (*free)(struct engine *engine);

    /* platform is copied. The vCPU starts in the architectural reset state. */
    int (*vcpu_create)(struct engine *engine, unsigned index, const struct vcpu_platform *platform,
                       struct vcpu **ret_vcpu, struct err *err);
    void (*vcpu_free)(struct vcpu *vcpu);

    /* Runs until an exit. Returns 0, or a negative errno when the vCPU is unusable. */
    int (*run)(struct vcpu *vcpu, struct vcpu_exit *ret_exit);

    /* Makes run() return EXIT_KICK soon (within a bound, whatever the guest does), or at once when called
     * next. */
    void (*kick)(struct vcpu *vcpu);
    /* Tells the vCPU to look at platform.irq_pending soon. Does not end run(). */
    void (*irq_raise)(struct vcpu *vcpu);
    /* A non-maskable interrupt, delivered when NMIs are not blocked. */
    void (*nmi)(struct vcpu *vcpu);

    /* Debugging; called while the vCPU stands still, by the thread that holds it there (so is get_state
     * then).
     *
     * set_debug replaces what was asked for before; nothing (step false, no points) turns debugging off.
     * Errors: -ENOSPC when the engine has not that many points, -ENOTSUP when not this kind.
     * walk: the guest-physical address of a linear one, under the current page tables, whatever their access
     * rights are; nothing is changed. -EFAULT: not mapped. */
    int (*set_debug)(struct vcpu *vcpu, const struct engine_debug *debug);
    int (*walk)(struct vcpu *vcpu, uint64_t va, gpa_t *ret_gpa);
    /* Engines that translate, else NULL. translation: text on the blocks that hold the instruction at a guest
     * address: its bytes, the host code, and how often they ran; cut to size. -ENOENT: there is none now.
     * count_blocks: what is translated from now on counts its runs (all is translated anew), or not. */
    int (*translation)(struct vcpu *vcpu, uint64_t rip, char *buf, size_t size);
    void (*count_blocks)(struct vcpu *vcpu, bool on);
    /* The same for bytes that are in no guest; bits is 16, 32 or 64. Errors: -EINVAL: they end in the middle
     * of an instruction (the text then has what came before). */
    int (*translate_bytes)(const uint8_t *bytes, size_t len, unsigned bits, char *buf, size_t size,
                           struct err *err);

    int (*get_state)(struct vcpu *vcpu, struct x86_state *ret_state);
    int (*set_state)(struct vcpu *vcpu, const struct x86_state *state);

    /* Fills up to ENGINE_COUNTERS_MAX, returns how many. Any thread; values may be slightly old. */
    unsigned (*counters)(struct vcpu *vcpu, struct engine_counter *ret_counters);
    /* A few lines on the last exits, for a dead guest's report. Returns the bytes written. */
    unsigned (*last_exits)(struct vcpu *vcpu, char *buf, unsigned size);
};

/* The engines of this build, in order of preference; ends with NULL. */
extern const struct engine_ops *const engines[];

#endif
