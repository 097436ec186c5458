/*
 * See pause.h. pause_lock guards the counts; pause_reasons is their summary, which vCPU threads read.
 *
 * A vCPU stands still while it is `asleep` (vcpu.c) and there is a reason: under its own lock it looks for
 * reasons before it wakes up, so whoever sees both under that lock knows that it stays there.
 */
#include "vm/pause.h"

#include <errno.h>
#include <time.h>

#include "base/util.h"
#include "vm/machine_int.h"

#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

void machine_pause(struct machine *machine, enum pause_reason reason)
{
    pthread_mutex_lock(&machine->pause_lock);
    bool first = machine->pause_counts[reason]++ == 0;
    if (first) {
        atomic_fetch_or(&machine->pause_reasons, BIT(reason));
    }
    pthread_mutex_unlock(&machine->pause_lock);
    for (unsigned i = 0; first && i < machine->cpus; i++) {
        machine_vcpu_kick(&machine->vcpus[i]);
    }
}

void machine_unpause(struct machine *machine, enum pause_reason reason)
{
    pthread_mutex_lock(&machine->pause_lock);
    bool last = machine->pause_counts[reason] && --machine->pause_counts[reason] == 0;
    bool run = last && machine_pause_reasons(machine) == BIT(reason);
    for (unsigned i = 0; run && i < machine->cpus; i++) {
        pvclock_stood_still(&machine->vcpus[i].pvclock);
    }
    if (last) {
        atomic_fetch_and(&machine->pause_reasons, ~BIT(reason));
    }
    pthread_mutex_unlock(&machine->pause_lock);
    for (unsigned i = 0; run && i < machine->cpus; i++) {
        machine_vcpu_kick(&machine->vcpus[i]);
    }
}

static int wait_for(struct machine_vcpu *mv, const struct timespec *until)
{
    int rc = 0;
    pthread_mutex_lock(&mv->lock);
    while (rc == 0 && mv->thread_runs && !atomic_load(&mv->asleep) && !machine_stopping(mv->machine)) {
        rc = pthread_cond_clockwait(&mv->fell_asleep, &mv->lock, CLOCK_MONOTONIC, until);
    }
    pthread_mutex_unlock(&mv->lock);
    return -rc;
}

int machine_pause_wait(struct machine *machine, unsigned timeout_ms)
{
    if (!machine_pause_reasons(machine)) {
        return -EINVAL;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + timeout_ms * NS_PER_MS;
    until.tv_sec += (time_t)(ns / NS_PER_S);
    until.tv_nsec = (long)(ns % NS_PER_S);
    int rc = 0;
    for (unsigned i = 0; i < machine->cpus && rc == 0; i++) {
        rc = wait_for(&machine->vcpus[i], &until);
    }
    return rc;
}

unsigned machine_pause_reasons(const struct machine *machine)
{
    return atomic_load(&machine->pause_reasons);
}

const char *pause_reason_name(enum pause_reason reason)
{
    static const char *const names[PAUSE_REASONS] = {
        [PAUSE_USER] = "user", [PAUSE_DISK] = "disk", [PAUSE_STATE] = "state", [PAUSE_DEBUG] = "debug"};
    return names[reason];
}
