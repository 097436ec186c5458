#include "vm/status.h"

#include "base/util.h"

static const struct {
    int status;
    const char *name, *meaning;
} statuses[] = {
    {VM_STATUS_OFF, "power off", "the guest powered off, or rebooted under --no-reboot"},
    {VM_STATUS_USAGE, "bad usage", "bad options or files; nothing ran"},
    {VM_STATUS_PANIC, "panic", "the guest's kernel reported a panic (pvpanic driver)"},
    {VM_STATUS_SHUTDOWN, "triple fault", "the guest triple-faulted"},
    {VM_STATUS_KILLED, "killed", "ended by Ctrl-A X, SIGTERM, SIGINT or SIGHUP"},
    {VM_STATUS_ENGINE, "engine error", "the engine can't run on this host, or could not go on"},
    {VM_STATUS_HALTED, "halted", "all vCPUs halted with interrupts off; nothing can wake them"},
    {VM_STATUS_HOST, "host error", "the host refused memory, a file or a thread"},
    {VM_STATUS_JAIL, "jail", "the machine's process tried what its jail forbids, and was ended"},
    {VM_STATUS_WATCHDOG, "watchdog", "the guest's watchdog ran out, under --no-reboot"},
    {VM_STATUS_TIMEOUT, "timeout", "--timeout passed"},
};

void vm_status_print(FILE *out)
{
    for (size_t i = 0; i < ARRAY_SIZE(statuses); i++) {
        fprintf(out, "  %-4d %-13s %s\n", statuses[i].status, statuses[i].name, statuses[i].meaning);
    }
    fprintf(out, "  %-4s %-13s %s\n", "odd", "exit port", "the guest wrote V to port 0xf4: V * 2 + 1");
}

const char *vm_status_name(int status)
{
    for (size_t i = 0; i < ARRAY_SIZE(statuses); i++) {
        if (statuses[i].status == status) {
            return statuses[i].name;
        }
    }
    return status & 1 ? "exit port" : "unknown";
}
