/*
 * The KVM engine with tiny guests: ports, MMIO, interrupts, MSRs, kicks, shutdown, state in and out.
 *
 * Skipped, with the reason, where the host's /dev/kvm can't be used. Guest code is given as bytes with its
 * assembly beside it; it runs in real mode at CODE_AT, or in long mode after state was set so.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "cpu/kvm/kvm.h"
#include "cpu/x86/state.h"

#define RAM_BYTES (16 * MiB)
#define CODE_AT   0x1000u
#define STACK_AT  0x3000u
#define HANDLER   0x2000u
#define PORT      0x70
#define MMIO_AT   0xd0000000ull

struct machine {
    struct mem *mem;
    struct engine *engine;
    struct vcpu *vcpu;
    /* What the guest did. */
    uint64_t last_value, last_offset;
    unsigned last_size, reads;
    _Atomic unsigned writes;
    uint64_t read_value;
    bool kick_on_write, kick_on_ack;
    /* The platform. */
    int pending_vector; /* -1: none */
    unsigned acks;
    uint64_t cr8;
    uint64_t msr_number, msr_value;
};

static const char *skip_reason;

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
    struct machine *m = opaque;
    m->reads++;
    m->last_offset = offset;
    m->last_size = size;
    return m->read_value;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct machine *m = opaque;
    m->writes++;
    m->last_offset = offset;
    m->last_size = size;
    m->last_value = value;
    if (m->kick_on_write) {
        kvm_engine.kick(m->vcpu);
    }
}

static const struct mem_io_ops io_ops = {io_read, io_write};

static int irq_ack(void *opaque)
{
    struct machine *m = opaque;
    int vector = m->pending_vector;
    m->pending_vector = -1;
    m->acks++;
    if (m->kick_on_ack) {
        kvm_engine.kick(m->vcpu);
    }
    return vector;
}

static bool irq_pending(void *opaque)
{
    struct machine *m = opaque;
    return m->pending_vector >= 0;
}

static uint64_t cr8_read(void *opaque)
{
    struct machine *m = opaque;
    return m->cr8;
}

static void cr8_write(void *opaque, uint64_t value)
{
    struct machine *m = opaque;
    m->cr8 = value;
}

static int msr_read(void *opaque, uint32_t msr, uint64_t *ret_value)
{
    struct machine *m = opaque;
    if (msr == 0x1b) {
        *ret_value = 0xfee00900;
        return 0;
    }
    m->msr_number = msr;
    *ret_value = m->msr_value;
    return 0;
}

static int msr_write(void *opaque, uint32_t msr, uint64_t value)
{
    struct machine *m = opaque;
    m->msr_number = msr;
    m->msr_value = value;
    return 0;
}

static uint64_t hypercall(void *opaque, uint64_t nr, const uint64_t args[4])
{
    return UINT64_MAX;
}

static int setup(void **state)
{
    struct err err = {0};
    int rc = kvm_engine.probe(&err);
    if (rc < 0) {
        static char text[ERR_TEXT_MAX + 32];
        snprintf(text, sizeof(text), "no usable KVM: %s", err.text);
        skip_reason = text;
        *state = NULL;
        return 0;
    }
    struct machine *m = calloc(1, sizeof(*m));
    m->pending_vector = -1;
    if (mem_new(RAM_BYTES, &m->mem, &err) < 0 ||
        mem_add_pio(m->mem, PORT, 8, &io_ops, m, "test ports", &err) < 0 ||
        mem_add_mmio(m->mem, GPA(MMIO_AT), MEM_PAGE_SIZE, &io_ops, m, "test mmio", &err) < 0) {
        print_error("%s\n", err.text);
        return -1;
    }
    struct engine_config config = {.mem = m->mem, .vcpus = 1, .cpu_model = "host", .apic_x2apic = true};
    struct vcpu_platform platform = {m,         irq_ack,  irq_pending, cr8_read,
                                     cr8_write, msr_read, msr_write,   hypercall};
    if (kvm_engine.create(&config, &m->engine, &err) < 0 ||
        kvm_engine.vcpu_create(m->engine, 0, &platform, &m->vcpu, &err) < 0) {
        print_error("%s\n", err.text);
        return -1;
    }
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    struct machine *m = *state;
    if (m) {
        kvm_engine.vcpu_free(m->vcpu);
        kvm_engine.free(m->engine);
        mem_free(m->mem);
        free(m);
    }
    return 0;
}

static struct machine *machine_of(void **state)
{
    if (!*state) {
        print_message("skipped: %s\n", skip_reason);
        skip();
    }
    return *state;
}

static void put(struct machine *m, uint64_t at, const void *bytes, size_t size)
{
    assert_int_equal(mem_write(m->mem, GPA(at), bytes, size), 0);
}

/* Real mode at CODE_AT with flat zero segments, interrupt vector 0x20, NMI and #GP at HANDLER. */
static void start_real(struct machine *m, const void *code, size_t size, uint64_t flags)
{
    struct x86_state s;
    assert_int_equal(kvm_engine.get_state(m->vcpu, &s), 0);
    s.seg[X86_CS].base = 0;
    s.seg[X86_CS].selector = 0;
    s.rip = CODE_AT;
    s.rflags = 2 | flags;
    s.gpr[X86_RSP] = STACK_AT;
    put(m, CODE_AT, code, size);
    static const uint16_t vectors[] = {0x02, 0x0d, 0x20};
    static const uint16_t far_pointer[2] = {HANDLER, 0};
    for (size_t i = 0; i < ARRAY_SIZE(vectors); i++) {
        put(m, vectors[i] * 4u, far_pointer, sizeof(far_pointer));
    }
    assert_int_equal(kvm_engine.set_state(m->vcpu, &s), 0);
}
#define START_REAL(m, flags, ...)                                                                            \
    do {                                                                                                     \
        static const uint8_t code_[] = {__VA_ARGS__};                                                        \
        start_real(m, code_, sizeof(code_), flags);                                                          \
    } while (0)

static struct vcpu_exit run_to(struct machine *m, enum exit_reason reason)
{
    struct vcpu_exit exit;
    assert_int_equal(kvm_engine.run(m->vcpu, &exit), 0);
    if (exit.reason != reason) {
        print_error("exit %d instead of %d: %s\n", (int)exit.reason, (int)reason, exit.text);
    }
    assert_int_equal(exit.reason, reason);
    return exit;
}

static struct x86_state state_of(struct machine *m)
{
    struct x86_state s;
    assert_int_equal(kvm_engine.get_state(m->vcpu, &s), 0);
    return s;
}

static void test_ports(void **state)
{
    struct machine *m = machine_of(state);
    m->read_value = 0x1234;
    START_REAL(m, 0, 0xb0, 0x5a, /* mov al, 0x5a */
               0xe6, PORT,       /* out PORT, al */
               0xe5, PORT + 2,   /* in ax, PORT+2 */
               0xf4);            /* hlt */
    struct vcpu_exit exit = run_to(m, EXIT_HLT);
    assert_false(exit.hlt_if);
    assert_int_equal(m->writes, 1);
    assert_int_equal(m->last_value, 0x5a);
    assert_int_equal(m->last_offset, 2);
    assert_int_equal(m->last_size, 2);
    struct x86_state s = state_of(m);
    assert_int_equal(s.gpr[X86_RAX] & 0xffff, 0x1234);
    assert_int_equal(s.rip, CODE_AT + 7);
    assert_true(s.halted);
    run_to(m, EXIT_HLT); /* still halted */
}

static void test_string_port(void **state)
{
    struct machine *m = machine_of(state);
    put(m, 0x4000, "\x01\x02\x03\x04", 4);
    START_REAL(m, 0, 0xbe, 0x00, 0x40, /* mov si, 0x4000 */
               0xb9, 0x04, 0x00,       /* mov cx, 4 */
               0xba, PORT, 0x00,       /* mov dx, PORT */
               0xf3, 0x6e,             /* rep outsb */
               0xf4);
    run_to(m, EXIT_HLT);
    assert_int_equal(m->writes, 4);
    assert_int_equal(m->last_value, 4);
}

static void test_kick_inside_io(void **state)
{
    struct machine *m = machine_of(state);
    m->kick_on_write = true;
    START_REAL(m, 0, 0xe6, PORT, 0xf4);
    run_to(m, EXIT_KICK);
    /* The OUT whose exit was answered counts as executed. */
    assert_int_equal(state_of(m).rip, CODE_AT + 2);
    run_to(m, EXIT_HLT);
    assert_int_equal(m->writes, 1);
}

static void test_interrupt(void **state)
{
    struct machine *m = machine_of(state);
    put(m, HANDLER, "\xe6\x70\xcf", 3); /* out PORT, al; iret */
    START_REAL(m, 0, 0xb0, 0x33,        /* mov al, 0x33 */
               0xfb,                    /* sti */
               0xf4,                    /* hlt */
               0xfa, 0xf4);             /* cli; hlt */
    m->pending_vector = 0x20;
    struct vcpu_exit exit = run_to(m, EXIT_HLT);
    assert_false(exit.hlt_if);
    assert_int_equal(m->acks, 1);
    assert_int_equal(m->last_value, 0x33);
    /* A halt with interrupts off is not left for an interrupt. */
    m->pending_vector = 0x20;
    run_to(m, EXIT_HLT);
    assert_int_equal(m->acks, 1);
}

static void test_halt_then_interrupt(void **state)
{
    struct machine *m = machine_of(state);
    put(m, HANDLER, "\xe6\x70\xcf", 3);
    START_REAL(m, X86_IF, 0xf4, /* hlt */
               0xfa, 0xf4);     /* cli; hlt */
    struct vcpu_exit exit = run_to(m, EXIT_HLT);
    assert_true(exit.hlt_if);
    assert_int_equal(m->acks, 0);
    m->pending_vector = 0x20;
    exit = run_to(m, EXIT_HLT);
    assert_false(exit.hlt_if);
    assert_int_equal(m->acks, 1);
    assert_int_equal(m->writes, 1);
}

static void test_nmi(void **state)
{
    struct machine *m = machine_of(state);
    put(m, HANDLER, "\xe6\x70\xf4", 3); /* out PORT, al; hlt, without IRET */
    START_REAL(m, 0, 0xf4);
    run_to(m, EXIT_HLT);
    kvm_engine.nmi(m->vcpu);
    run_to(m, EXIT_HLT);
    assert_int_equal(m->writes, 1);
    assert_true(state_of(m).nmi_blocked);
}

static void test_state_keeps_acknowledged_interrupt(void **state)
{
    struct machine *m = machine_of(state);
    put(m, HANDLER, "\x90\xf4", 2);                /* nop; hlt */
    START_REAL(m, X86_IF, 0xe6, PORT, 0xeb, 0xfc); /* 1: out PORT, al; jmp 1b */
    /* The kick arrives when the kernel holds the interrupt and has not delivered it. */
    m->kick_on_ack = true;
    m->pending_vector = 0x20;
    run_to(m, EXIT_KICK);
    assert_int_equal(m->acks, 1);
    struct x86_state s = state_of(m);
    assert_in_range(s.rip, HANDLER, HANDLER + 1);
    assert_int_equal(kvm_engine.set_state(m->vcpu, &s), 0);
    run_to(m, EXIT_HLT);
    assert_int_equal(state_of(m).rip, HANDLER + 2);
}

static void test_msr(void **state)
{
    struct machine *m = machine_of(state);
    put(m, HANDLER, "\xe6\x70\xf4", 3);
    START_REAL(m, 0, 0x66, 0xb9, 0x01, 0x4d, 0x56, 0x4b, /* mov ecx, 0x4b564d01 */
               0x66, 0xb8, 0x78, 0x56, 0x34, 0x12,       /* mov eax, 0x12345678 */
               0x66, 0x31, 0xd2,                         /* xor edx, edx */
               0x0f, 0x30,                               /* wrmsr */
               0x66, 0x31, 0xc0,                         /* xor eax, eax */
               0x0f, 0x32,                               /* rdmsr */
               0xe7, PORT,                               /* out PORT, ax */
               0x66, 0xb9, 0x0d, 0x0d, 0x0d, 0x0d,       /* mov ecx, 0x0d0d0d0d */
               0x0f, 0x32,                               /* rdmsr: #GP */
               0xf4);
    run_to(m, EXIT_HLT);
    assert_int_equal(m->msr_number, 0x4b564d01);
    assert_int_equal(m->msr_value, 0x12345678);
    assert_int_equal(m->writes, 2);
    assert_int_equal(state_of(m).rip, HANDLER + 3);
}

static void *kicker(void *arg)
{
    struct machine *m = arg;
    while (!atomic_load(&m->writes)) {
        usleep(100);
    }
    kvm_engine.kick(m->vcpu);
    return NULL;
}

static void test_kick_endless_loop(void **state)
{
    struct machine *m = machine_of(state);
    START_REAL(m, 0, 0xe6, PORT, /* out PORT, al */
               0xeb, 0xfe);      /* jmp . */
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, kicker, m), 0);
    run_to(m, EXIT_KICK);
    pthread_join(thread, NULL);
    assert_int_equal(state_of(m).rip, CODE_AT + 2);
}

static void test_kick_before_run(void **state)
{
    struct machine *m = machine_of(state);
    START_REAL(m, 0, 0xe6, PORT, 0xf4);
    kvm_engine.kick(m->vcpu);
    run_to(m, EXIT_KICK);
    assert_int_equal(m->writes, 0);
    run_to(m, EXIT_HLT);
}

/* The first 2 MiB and the MMIO page identity-mapped: long mode at ring 0, set from outside. */
static void start_long(struct machine *m, const void *code, size_t size)
{
    struct x86_state s;
    assert_int_equal(kvm_engine.get_state(m->vcpu, &s), 0);
    static const uint64_t pml4[] = {0x11003}, pdpt[] = {0x12003, 0, 0, 0x13003}, low[] = {0x83};
    static const uint64_t io[] = {MMIO_AT | 0x83};
    put(m, 0x10000, pml4, sizeof(pml4));
    put(m, 0x11000, pdpt, sizeof(pdpt));
    put(m, 0x12000, low, sizeof(low));
    put(m, 0x13000 + ((MMIO_AT >> 21) & 511) * 8, io, sizeof(io));
    s.cr3 = 0x10000;
    s.cr4 |= X86_CR4_PAE;
    s.cr0 |= X86_CR0_PE | X86_CR0_PG;
    s.efer |= X86_EFER_LME | X86_EFER_LMA;
    s.seg[X86_CS] = (struct x86_segment){0, 0xffffffff, 8, 0xa09b};
    s.seg[X86_SS] = s.seg[X86_DS] = s.seg[X86_ES] = (struct x86_segment){0, 0xffffffff, 16, 0xc093};
    s.tr = (struct x86_segment){0x5000, 0x67, 24, 0x008b};
    s.rip = CODE_AT;
    s.gpr[X86_RSP] = STACK_AT;
    s.rflags = 2;
    put(m, CODE_AT, code, size);
    assert_int_equal(kvm_engine.set_state(m->vcpu, &s), 0);
}

static void test_shutdown(void **state)
{
    struct machine *m = machine_of(state);
    static const uint8_t ud2[] = {0x0f, 0x0b}; /* with an empty IDT: #GP, #DF, shutdown */
    start_long(m, ud2, sizeof(ud2));
    struct x86_state s = state_of(m);
    s.idtr.limit = 0;
    assert_int_equal(kvm_engine.set_state(m->vcpu, &s), 0);
    run_to(m, EXIT_SHUTDOWN);
}

static void test_long_mode(void **state)
{
    struct machine *m = machine_of(state);
    m->read_value = 0x1122334455667788;
    static const uint8_t code[] = {
        0xb8, 0x07, 0x00, 0x00, 0x00, /* mov eax, 7 */
        0x44, 0x0f, 0x22, 0xc0,       /* mov cr8, rax */
        0xbb, 0x00, 0x00, 0x00, 0xd0, /* mov ebx, MMIO_AT */
        0x48, 0x8b, 0x43, 0x08,       /* mov rax, [rbx+8] */
        0x48, 0x89, 0x43, 0x10,       /* mov [rbx+16], rax */
        0xf4,                         /* hlt */
    };
    start_long(m, code, sizeof(code));
    run_to(m, EXIT_HLT);
    assert_int_equal(m->cr8, 7);
    assert_int_equal(m->reads, 1);
    assert_int_equal(m->last_offset, 16);
    assert_int_equal(m->last_size, 8);
    assert_int_equal(m->last_value, 0x1122334455667788);
    assert_int_equal(state_of(m).gpr[X86_RAX], 0x1122334455667788);
}

static void test_state_round_trip(void **state)
{
    struct machine *m = machine_of(state);
    static const uint8_t hlt = 0xf4;
    start_long(m, &hlt, 1);
    struct x86_state a = state_of(m), b;
    for (unsigned i = 0; i < 16; i++) {
        a.gpr[i] = 0x0101010101010101u * (i + 1);
    }
    a.dr[0] = 0x1234;
    a.dr7 |= 1;
    a.lstar = 0xffffffff81000000;
    a.star = 0x0023001000000000;
    a.sfmask = 0x700;
    a.kernel_gs_base = 0xffff888000000000;
    a.sysenter_eip = 0xffffffff81000100;
    a.seg[X86_FS].base = 0x7fff12345678;
    a.seg[X86_GS].base = 0xffff888000000000;
    a.cr2 = 0xdeadb000;
    a.tsc_aux = 5;
    a.nmi_blocked = true;
    a.halted = true;
    a.rflags |= X86_IF | X86_CF;
    a.xsave[0] = 0x7f; /* x87 control word 0x027f */
    a.xsave[1] = 0x02;
    a.xsave[512] |= 3;
    memset(a.xsave + 160, 0xa5, 16);
    assert_int_equal(kvm_engine.set_state(m->vcpu, &a), 0);
    b = state_of(m);
    assert_memory_equal(a.gpr, b.gpr, sizeof(a.gpr));
    assert_memory_equal(a.seg, b.seg, sizeof(a.seg));
    assert_memory_equal(&a.cr0, &b.cr0, offsetof(struct x86_state, efer) - offsetof(struct x86_state, cr0));
    assert_memory_equal(&a.efer, &b.efer,
                        offsetof(struct x86_state, tsc_offset) - offsetof(struct x86_state, efer));
    assert_memory_equal(a.xsave, b.xsave, 512 + 64);
    assert_int_equal(a.rip, b.rip);
    assert_int_equal(a.rflags, b.rflags);
    assert_true(b.halted);
    assert_true(b.nmi_blocked);
}

static void test_counters(void **state)
{
    struct machine *m = machine_of(state);
    START_REAL(m, 0, 0xe6, PORT, 0xf4);
    run_to(m, EXIT_HLT);
    struct engine_counter counters[ENGINE_COUNTERS_MAX];
    unsigned n = kvm_engine.counters(m->vcpu, counters);
    unsigned seen = 0;
    for (unsigned i = 0; i < n; i++) {
        if (strcmp(counters[i].name, "port-io") == 0 || strcmp(counters[i].name, "hlt") == 0) {
            assert_int_equal(counters[i].value, 1);
            seen++;
        }
    }
    assert_int_equal(seen, 2);
    char text[400];
    assert_int_not_equal(kvm_engine.last_exits(m->vcpu, text, sizeof(text)), 0);
    assert_non_null(strstr(text, "port write 1 @0x70"));
    assert_non_null(strstr(text, "hlt"));
}

static void test_models(void **state)
{
    struct machine *m = machine_of(state);
    struct engine_config config = {.mem = m->mem, .vcpus = 1, .cpu_model = "no-such-model"};
    struct vcpu_platform platform = {m,         irq_ack,  irq_pending, cr8_read,
                                     cr8_write, msr_read, msr_write,   hypercall};
    struct engine *engine;
    struct vcpu *vcpu;
    struct err err = {0};
    assert_int_equal(kvm_engine.create(&config, &engine, &err), 0);
    assert_int_equal(kvm_engine.vcpu_create(engine, 0, &platform, &vcpu, &err), -EINVAL);
    assert_non_null(strstr(err.text, "no-such-model"));
    kvm_engine.free(engine);
    config.cpu_model = "x86-64-v2";
    assert_int_equal(kvm_engine.create(&config, &engine, &err), 0);
    int rc = kvm_engine.vcpu_create(engine, 0, &platform, &vcpu, &err);
    if (rc == 0) {
        kvm_engine.vcpu_free(vcpu);
    } else { /* a host may lack the model; it then says which bits */
        assert_int_equal(rc, -ENOTSUP);
        assert_non_null(strstr(err.text, "lacks features of the CPU model 'x86-64-v2'"));
    }
    kvm_engine.free(engine);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_ports),
        TEST(test_string_port),
        TEST(test_kick_inside_io),
        TEST(test_interrupt),
        TEST(test_halt_then_interrupt),
        TEST(test_nmi),
        TEST(test_state_keeps_acknowledged_interrupt),
        TEST(test_msr),
        TEST(test_shutdown),
        TEST(test_kick_endless_loop),
        TEST(test_kick_before_run),
        TEST(test_long_mode),
        TEST(test_state_round_trip),
        TEST(test_counters),
        TEST(test_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
