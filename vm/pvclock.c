#include "vm/pvclock.h"

#include <time.h>
#include <x86intrin.h>

#include "base/clock.h"
#include "base/util.h"

#define MSR_WALL_OLD    0x11u
#define MSR_SYSTEM_OLD  0x12u
#define MSR_WALL        0x4b564d00u
#define MSR_SYSTEM      0x4b564d01u
#define SYSTEM_ENABLE   0x1u
#define FLAG_TSC_STABLE 0x1u
#define FLAG_STOPPED    0x2u /* the guest was stopped by the host; the guest clears it */
#define NS_PER_S        1000000000ull

/* hypercalls.rst and linux/kvm_para.h */
#define HC_CLOCK_PAIRING 9u
#define PAIRING_WALL     0u
#define PAIRING_TRIES    4u
#define KVM_EFAULT       14
#define KVM_EOPNOTSUPP   95
#define KVM_ENOSYS       1000

struct pvclock_vcpu_time { /* msr.rst, MSR_KVM_SYSTEM_TIME_NEW */
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
_Static_assert(sizeof(struct pvclock_vcpu_time) == 32, "msr.rst");

struct pvclock_wall { /* msr.rst, MSR_KVM_WALL_CLOCK_NEW */
    uint32_t version, sec, nsec;
};

struct pvclock_pairing { /* hypercalls.rst, KVM_HC_CLOCK_PAIRING */
    int64_t sec, nsec;
    uint64_t tsc;
    uint32_t flags, pad[9];
};
_Static_assert(sizeof(struct pvclock_pairing) == 64, "hypercalls.rst");

bool pvclock_msr(uint32_t msr)
{
    return msr == MSR_WALL_OLD || msr == MSR_SYSTEM_OLD || (msr >= 0x4b564d00u && msr <= 0x4b564dffu);
}

void pvclock_scale(uint64_t tsc_hz, uint32_t *ret_mul, int8_t *ret_shift)
{
    int shift = 0;
    uint64_t hz = MAX(tsc_hz, 1u);
    /* Brings the shifted frequency into (10^9, 2 * 10^9], so that mul is a fraction of 2^31 to 2^32. */
    while (hz > 2 * NS_PER_S) {
        hz >>= 1;
        shift--;
    }
    while (hz <= NS_PER_S) {
        hz <<= 1;
        shift++;
    }
    unsigned __int128 scaled = (unsigned __int128)NS_PER_S << 32;
    unsigned __int128 divisor = shift >= 0 ? (unsigned __int128)MAX(tsc_hz, 1u) << shift : 0;
    if (shift < 0) {
        /* Exact: the low bits that hz lost count. */
        scaled <<= -shift;
        divisor = tsc_hz;
    }
    *ret_mul = (uint32_t)(scaled / divisor);
    *ret_shift = (int8_t)shift;
}

static void write_system(struct pvclock *pv, uint64_t tsc)
{
    struct pvclock_vcpu_time time = {.version = 2, /* even: consistent */
                                     .tsc_timestamp = tsc,
                                     .system_time = clock_now_ns(pv->clock),
                                     .flags = FLAG_TSC_STABLE};
    pvclock_scale(pv->tsc_hz, &time.tsc_to_system_mul, &time.tsc_shift);
    /* An address outside of RAM is the guest's mistake: the write goes nowhere. */
    mem_write(pv->mem, GPA(pv->system_msr & ~3ull), &time, sizeof(time));
}

static void write_wall(struct pvclock *pv)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t boot_ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec - clock_now_ns(pv->clock);
    const struct pvclock_wall wall = {2, (uint32_t)(boot_ns / NS_PER_S), (uint32_t)(boot_ns % NS_PER_S)};
    mem_write(pv->mem, GPA(pv->wall_msr), &wall, sizeof(wall));
}

int pvclock_read(const struct pvclock *pv, uint32_t msr, uint64_t *ret_value)
{
    switch (msr) {
    case MSR_WALL_OLD:
    case MSR_WALL: *ret_value = pv->wall_msr; return 0;
    case MSR_SYSTEM_OLD:
    case MSR_SYSTEM: *ret_value = pv->system_msr; return 0;
    default: return -1;
    }
}

int pvclock_write(struct pvclock *pv, uint32_t msr, uint64_t value, uint64_t tsc)
{
    switch (msr) {
    case MSR_WALL_OLD:
    case MSR_WALL:
        pv->wall_msr = value;
        write_wall(pv);
        return 0;
    case MSR_SYSTEM_OLD:
    case MSR_SYSTEM:
        pv->system_msr = value;
        if (value & SYSTEM_ENABLE) {
            write_system(pv, tsc);
        }
        return 0;
    default: return -1;
    }
}

void pvclock_reset(struct pvclock *pv)
{
    pv->system_msr = 0;
    pv->wall_msr = 0;
}

void pvclock_stood_still(struct pvclock *pv)
{
    if (!(pv->system_msr & SYSTEM_ENABLE)) {
        return;
    }
    gpa_t at = GPA((pv->system_msr & ~3ull) + offsetof(struct pvclock_vcpu_time, flags));
    uint8_t flags = FLAG_TSC_STABLE | FLAG_STOPPED;
    mem_write(pv->mem, at, &flags, sizeof(flags));
}

/* The two readings belong together up to what lies between them: less than a microsecond, unless the host
 * takes the processor away; of a few tries the closest is taken. */
static struct pvclock_pairing pair(uint64_t tsc_offset)
{
    struct pvclock_pairing best = {0};
    uint64_t closest = UINT64_MAX;
    for (unsigned i = 0; i < PAIRING_TRIES; i++) {
        struct timespec now;
        uint64_t before = __rdtsc();
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t apart = __rdtsc() - before;
        if (apart < closest) {
            closest = apart;
            best = (struct pvclock_pairing){now.tv_sec, now.tv_nsec, before + apart / 2 + tsc_offset, 0, {0}};
        }
    }
    return best;
}

uint64_t pvclock_hypercall(const struct pvclock *pv, uint64_t nr, const uint64_t args[4], uint64_t tsc_offset)
{
    if (nr != HC_CLOCK_PAIRING) {
        return (uint64_t)-KVM_ENOSYS;
    }
    if (args[1] != PAIRING_WALL) {
        return (uint64_t)-KVM_EOPNOTSUPP;
    }
    const struct pvclock_pairing pairing = pair(tsc_offset);
    return mem_write(pv->mem, GPA(args[0]), &pairing, sizeof(pairing)) < 0 ? (uint64_t)-KVM_EFAULT : 0;
}
