/*
 * Running a vCPU: the loop around KVM_RUN, what each exit means, kicks and interrupts.
 *
 * Neighbours: mem/ answers port and MMIO exits, struct vcpu_platform interrupts and the machine's MSRs.
 *
 * How another thread interrupts KVM_RUN: it sets its request (kicked, nmi_wanted, or nothing for irq_raise),
 * then kvm_run->immediate_exit, then sends a signal if the vCPU's thread is inside run(). The loop clears
 * immediate_exit *before* it looks at the requests, so a request made at any moment is either seen, or makes
 * KVM_RUN return at once.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "cpu/kvm/kvm_int.h"

#define KVM_SETTLE_STEPS_MAX 64

enum step {
    STEP_CONTINUE,
    STEP_REPORT, /* ret_exit is filled */
};

static int kick_signal(void)
{
    return SIGRTMIN + 1;
}

static void on_kick_signal(int sig)
{
}

int kvm_signal_setup(void)
{
    struct sigaction action = {.sa_handler = on_kick_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    return sigaction(kick_signal(), &action, NULL) < 0 ? -errno : 0;
}

static void count(struct vcpu *vcpu, enum kvm_count which, uint64_t n)
{
    atomic_fetch_add_explicit(&vcpu->counts[which], n, memory_order_relaxed);
}

static void set_immediate_exit(struct vcpu *vcpu, uint8_t value)
{
    /* Pairs with the kernel's read at the start of KVM_RUN, and orders the requests (see the top). */
    __atomic_store_n(&vcpu->run->immediate_exit, value, __ATOMIC_SEQ_CST);
    atomic_thread_fence(memory_order_seq_cst);
}

static void interrupt_run(struct vcpu *vcpu)
{
    set_immediate_exit(vcpu, 1);
    int tid = atomic_load(&vcpu->tid);
    if (tid && tid != (int)syscall(SYS_gettid)) {
        syscall(SYS_tgkill, getpid(), tid, kick_signal());
    }
}

void kvm_vcpu_kick(struct vcpu *vcpu)
{
    atomic_store(&vcpu->kicked, true);
    interrupt_run(vcpu);
}

void kvm_vcpu_irq_raise(struct vcpu *vcpu)
{
    interrupt_run(vcpu);
}

void kvm_vcpu_nmi(struct vcpu *vcpu)
{
    atomic_store(&vcpu->nmi_wanted, true);
    interrupt_run(vcpu);
}

static enum step report(struct vcpu_exit *ret_exit, enum exit_reason reason)
{
    ret_exit->reason = reason;
    return STEP_REPORT;
}

/* --- exits --- */

static struct kvm_exit_note *make_note(struct vcpu *vcpu)
{
    struct kvm_exit_note *note = &vcpu->notes[vcpu->notes_made++ % KVM_LAST_EXITS];
    *note = (struct kvm_exit_note){.reason = vcpu->run->exit_reason};
    return note;
}

static void exit_io(struct vcpu *vcpu, struct kvm_exit_note *note)
{
    struct kvm_run *run = vcpu->run;
    struct mem *mem = vcpu->engine->config.mem;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    note->write = run->io.direction == KVM_EXIT_IO_OUT;
    note->size = run->io.size;
    note->address = run->io.port;
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        uint32_t value = 0;
        if (note->write) {
            memcpy(&value, data, run->io.size);
            mem_pio_write(mem, run->io.port, run->io.size, value);
        } else {
            value = mem_pio_read(mem, run->io.port, run->io.size);
            memcpy(data, &value, run->io.size);
        }
        note->value = value;
    }
}

static void exit_mmio(struct vcpu *vcpu, struct kvm_exit_note *note)
{
    struct kvm_run *run = vcpu->run;
    struct mem *mem = vcpu->engine->config.mem;
    uint64_t value = 0;
    note->write = run->mmio.is_write;
    note->size = run->mmio.len;
    note->address = run->mmio.phys_addr;
    if (note->write) {
        memcpy(&value, run->mmio.data, MIN(run->mmio.len, sizeof(value)));
        mem_mmio_write(mem, GPA(run->mmio.phys_addr), run->mmio.len, value);
    } else {
        value = mem_mmio_read(mem, GPA(run->mmio.phys_addr), run->mmio.len);
        memcpy(run->mmio.data, &value, MIN(run->mmio.len, sizeof(value)));
    }
    note->value = value;
}

static bool platform_msr(uint32_t msr)
{
    return msr == 0x11 || msr == 0x12 || msr == 0x1b || msr == 0x6e0 || (msr >= 0x800 && msr <= 0x8ff) ||
           (msr >= 0x4b564d00 && msr <= 0x4b564dff);
}

static void exit_msr(struct vcpu *vcpu, struct kvm_exit_note *note)
{
    struct kvm_run *run = vcpu->run;
    const struct vcpu_platform *platform = &vcpu->platform;
    note->write = run->exit_reason == KVM_EXIT_X86_WRMSR;
    note->size = 8;
    note->address = run->msr.index;
    run->msr.error = 1; /* #GP(0) */
    if (!platform_msr(run->msr.index)) {
        note->value = note->write ? run->msr.data : 0;
        return;
    }
    uint64_t value = run->msr.data;
    int rc = note->write ? platform->msr_write(platform->opaque, run->msr.index, value)
                         : platform->msr_read(platform->opaque, run->msr.index, &value);
    note->value = value;
    if (rc < 0) {
        return;
    }
    run->msr.error = 0;
    if (!note->write) {
        run->msr.data = value;
    } else if (run->msr.index == 0x1b) {
        kvm_sync_apic_base(vcpu);
    }
}

static enum step exit_internal_error(struct vcpu *vcpu, struct vcpu_exit *ret_exit)
{
    static const char *const names[] = {
        [0] = "unknown",
        [KVM_INTERNAL_ERROR_EMULATION] = "an instruction could not be emulated",
        [KVM_INTERNAL_ERROR_SIMUL_EX] = "simultaneous exceptions",
        [KVM_INTERNAL_ERROR_DELIVERY_EV] = "event delivery failed",
        [KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON] = "unexpected exit of the hardware",
    };
    struct kvm_run *run = vcpu->run;
    uint32_t sub = run->internal.suberror;
    int n = snprintf(ret_exit->text, sizeof(ret_exit->text), "KVM internal error %u: %s", sub,
                     sub < ARRAY_SIZE(names) ? names[sub] : names[0]);
    if (sub == KVM_INTERNAL_ERROR_EMULATION &&
        (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
        n += snprintf(ret_exit->text + n, sizeof(ret_exit->text) - (size_t)n, ", bytes");
        unsigned size = MIN(run->emulation_failure.insn_size, 15u);
        for (unsigned i = 0; i < size; i++) {
            n += snprintf(ret_exit->text + n, sizeof(ret_exit->text) - (size_t)n, " %02x",
                          run->emulation_failure.insn_bytes[i]);
        }
    }
    return report(ret_exit, EXIT_ERROR);
}

static enum step handle_exit(struct vcpu *vcpu, struct vcpu_exit *ret_exit)
{
    struct kvm_run *run = vcpu->run;
    if (run->exit_reason == KVM_EXIT_IRQ_WINDOW_OPEN) {
        count(vcpu, KVM_COUNT_WINDOW, 1);
        return STEP_CONTINUE;
    }
    struct kvm_exit_note *note = make_note(vcpu);
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        count(vcpu, KVM_COUNT_IO, 1);
        exit_io(vcpu, note);
        return STEP_CONTINUE;
    case KVM_EXIT_MMIO:
        count(vcpu, KVM_COUNT_MMIO, 1);
        exit_mmio(vcpu, note);
        return STEP_CONTINUE;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        count(vcpu, KVM_COUNT_MSR, 1);
        exit_msr(vcpu, note);
        return STEP_CONTINUE;
    case KVM_EXIT_SET_TPR: count(vcpu, KVM_COUNT_TPR, 1); return STEP_CONTINUE;
    case KVM_EXIT_DEBUG:
        count(vcpu, KVM_COUNT_DEBUG, 1);
        return kvm_debug_exit(vcpu, &ret_exit->debug) ? report(ret_exit, EXIT_DEBUG) : STEP_CONTINUE;
    case KVM_EXIT_HLT:
        count(vcpu, KVM_COUNT_HLT, 1);
        vcpu->halted = true;
        return STEP_CONTINUE; /* the loop knows whether something wakes it */
    case KVM_EXIT_SHUTDOWN: count(vcpu, KVM_COUNT_SHUTDOWN, 1); return report(ret_exit, EXIT_SHUTDOWN);
    case KVM_EXIT_INTERNAL_ERROR: count(vcpu, KVM_COUNT_OTHER, 1); return exit_internal_error(vcpu, ret_exit);
    case KVM_EXIT_FAIL_ENTRY:
        count(vcpu, KVM_COUNT_OTHER, 1);
        snprintf(ret_exit->text, sizeof(ret_exit->text),
                 "the CPU refuses the guest's state (KVM_EXIT_FAIL_ENTRY %#llx)",
                 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        return report(ret_exit, EXIT_ERROR);
    default:
        count(vcpu, KVM_COUNT_OTHER, 1);
        snprintf(ret_exit->text, sizeof(ret_exit->text), "unexpected exit %u of KVM", run->exit_reason);
        return report(ret_exit, EXIT_ERROR);
    }
}

/* --- the loop --- */

/* One KVM_RUN and what follows from it. */
static enum step enter(struct vcpu *vcpu, struct vcpu_exit *ret_exit)
{
    struct kvm_run *run = vcpu->run;
    const struct vcpu_platform *platform = &vcpu->platform;
    uint64_t cr8 = platform->cr8_read(platform->opaque) & 0xf;
    run->cr8 = cr8;
    uint64_t start = clock_host_ns();
    int rc = ioctl(vcpu->fd, KVM_RUN, 0);
    int code = errno;
    uint64_t end = clock_host_ns();
    count(vcpu, KVM_COUNT_GUEST_NS, end - start);
    if ((run->cr8 & 0xf) != cr8) {
        platform->cr8_write(platform->opaque, run->cr8 & 0xf);
    }
    if (rc < 0) {
        if (code == EINTR || code == EAGAIN) {
            count(vcpu, KVM_COUNT_SIGNAL, 1);
            return STEP_CONTINUE;
        }
        count(vcpu, KVM_COUNT_OTHER, 1);
        snprintf(ret_exit->text, sizeof(ret_exit->text), "KVM_RUN: %s", strerror(code));
        return report(ret_exit, EXIT_ERROR);
    }
    enum step step = handle_exit(vcpu, ret_exit);
    count(vcpu, KVM_COUNT_EXIT_NS, clock_host_ns() - end);
    return step;
}

static void inject_pending(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    const struct vcpu_platform *platform = &vcpu->platform;
    if (run->ready_for_interrupt_injection && platform->irq_pending(platform->opaque)) {
        int vector = platform->irq_ack(platform->opaque);
        if (vector >= 0) {
            struct kvm_interrupt irq = {.irq = (uint32_t)vector};
            if (ioctl(vcpu->fd, KVM_INTERRUPT, &irq) == 0) {
                count(vcpu, KVM_COUNT_IRQ, 1);
            }
            run->ready_for_interrupt_injection =
                0; /* the kernel holds one; it says when it can take another */
        }
    }
    run->request_interrupt_window = platform->irq_pending(platform->opaque);
}

int kvm_vcpu_run(struct vcpu *vcpu, struct vcpu_exit *ret_exit)
{
    struct kvm_run *run = vcpu->run;
    const struct vcpu_platform *platform = &vcpu->platform;
    *ret_exit = (struct vcpu_exit){.reason = EXIT_ERROR};
    atomic_store(&vcpu->tid, (int)syscall(SYS_gettid));
    enum step step = STEP_CONTINUE;
    while (step == STEP_CONTINUE) {
        set_immediate_exit(vcpu, 0);
        if (atomic_exchange(&vcpu->kicked, false)) {
            report(ret_exit, EXIT_KICK);
            break;
        }
        if (atomic_exchange(&vcpu->nmi_wanted, false)) {
            if (ioctl(vcpu->fd, KVM_NMI) == 0) {
                count(vcpu, KVM_COUNT_NMI, 1);
            }
            vcpu->halted = false;
        }
        if (vcpu->wait_for_sipi || vcpu->halted) {
            bool wakes = !vcpu->wait_for_sipi && run->if_flag && platform->irq_pending(platform->opaque);
            if (!wakes) {
                ret_exit->hlt_if = run->if_flag && !vcpu->wait_for_sipi;
                report(ret_exit, EXIT_HLT);
                break;
            }
            vcpu->halted = false;
        }
        inject_pending(vcpu);
        step = enter(vcpu, ret_exit);
    }
    atomic_store(&vcpu->tid, 0);
    return 0;
}

static bool holds_event(const struct kvm_vcpu_events *events)
{
    return events->exception.injected || events->exception.pending || events->interrupt.injected ||
           events->nmi.injected;
}

int kvm_settle(struct vcpu *vcpu)
{
    struct kvm_guest_debug step_on = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
    struct vcpu_exit exit = {.reason = EXIT_KICK};
    vcpu->run->request_interrupt_window = 0;
    for (unsigned i = 0; i < KVM_SETTLE_STEPS_MAX; i++) {
        /* Finishes an I/O instruction whose exit was answered, and executes nothing. */
        set_immediate_exit(vcpu, 1);
        if (enter(vcpu, &exit) == STEP_REPORT) {
            return -EIO;
        }
        struct kvm_vcpu_events events;
        if (ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0) {
            return -errno;
        }
        if (!holds_event(&events)) {
            return 0;
        }
        /* Delivers the event and executes the handler's first instruction. */
        if (ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &step_on) < 0) {
            return -errno;
        }
        set_immediate_exit(vcpu, 0);
        enum step step = enter(vcpu, &exit);
        if (ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &vcpu->debug) < 0) {
            return -errno;
        }
        if (step == STEP_REPORT && exit.reason != EXIT_DEBUG) {
            return -EIO;
        }
    }
    return -EBUSY;
}

/* --- the report on a dead guest --- */

unsigned kvm_vcpu_last_exits(struct vcpu *vcpu, char *buf, unsigned size)
{
    unsigned used = 0;
    uint64_t first = vcpu->notes_made > KVM_LAST_EXITS ? vcpu->notes_made - KVM_LAST_EXITS : 0;
    for (uint64_t i = first; i < vcpu->notes_made && used + 1 < size; i++) {
        const struct kvm_exit_note *note = &vcpu->notes[i % KVM_LAST_EXITS];
        const char *what = note->write ? "write" : "read";
        int n;
        switch (note->reason) {
        case KVM_EXIT_IO:
        case KVM_EXIT_MMIO:
            n = snprintf(buf + used, size - used, "%s %s %u @%#" PRIx64 " = %#" PRIx64 "\n",
                         note->reason == KVM_EXIT_IO ? "port" : "mmio", what, note->size, note->address,
                         note->value);
            break;
        case KVM_EXIT_X86_RDMSR:
        case KVM_EXIT_X86_WRMSR:
            n = snprintf(buf + used, size - used, "msr %s %#" PRIx64 " = %#" PRIx64 "\n", what, note->address,
                         note->value);
            break;
        case KVM_EXIT_HLT: n = snprintf(buf + used, size - used, "hlt\n"); break;
        case KVM_EXIT_SHUTDOWN: n = snprintf(buf + used, size - used, "shutdown\n"); break;
        default: n = snprintf(buf + used, size - used, "exit %u\n", note->reason); break;
        }
        used = n < 0 ? used : MIN(used + (unsigned)n, size - 1);
    }
    return used;
}
