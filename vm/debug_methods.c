/*
 * The control socket's methods for people who look at the engine: what it made of an address, and how often.
 * The vCPUs stand still while they are looked at; a machine that a debugger holds stays held.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "control/control.h"
#include "vm/debug.h"
#include "vm/host_int.h"
#include "vm/machine.h"
#include "vm/pause.h"

#define TRANSLATION_MAX (256u << 10)

/* False: the call was failed. *ret_held: a debugger held the machine already. */
static bool hold(struct control_call *call, struct machine *machine, bool *ret_held)
{
    *ret_held = (machine_pause_reasons(machine) & BIT(PAUSE_DEBUG)) != 0;
    if (machine_debug_halt(machine) < 0) {
        control_fail(call, "internal", NULL, "a vCPU does not stand still");
        return false;
    }
    return true;
}

static void let_go(struct machine *machine, bool held)
{
    if (!held) {
        machine_debug_run(machine);
    }
}

static void fail(struct control_call *call, int rc, uint64_t address)
{
    if (rc == -ENOTSUP) {
        control_fail(call, "not_supported", "start the machine with --engine bt",
                     "this engine does not translate");
    } else {
        control_fail(call, "not_found", "it may not have run yet, or its code was thrown away",
                     "nothing translated holds %#llx now", (unsigned long long)address);
    }
}

void host_method_translate(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct {
        const char *address;
        uint64_t cpu;
    } p = {0};
    static const struct control_param table[] = {
        {"address", CONTROL_STRING, true, 0, 0, 0},
        {"cpu", CONTROL_UINT, false, sizeof(char *), 0, VM_CPUS_MAX - 1}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return;
    }
    char *end;
    errno = 0;
    uint64_t address = strtoull(p.address, &end, 0);
    bool held;
    if (*p.address == '\0' || *end != '\0' || errno || p.cpu >= machine_cpus(host->machine)) {
        control_fail(call, "bad_params", "an address is a number such as 0xffffffff81000000",
                     "there is no address '%s' of vCPU %u", p.address, (unsigned)p.cpu);
        return;
    }
    auto_free char *text = malloc(TRANSLATION_MAX);
    if (!text || !hold(call, host->machine, &held)) {
        return;
    }
    int rc = machine_debug_translation(host->machine, (unsigned)p.cpu, address, text, TRANSLATION_MAX);
    let_go(host->machine, held);
    if (rc < 0) {
        fail(call, rc, address);
    } else {
        control_reply(call, json_pack("{s:s}", "text", text));
    }
}

void host_method_count(struct control_call *call, json_t *params, void *opaque)
{
    struct host *host = opaque;
    struct {
        bool on;
    } p = {0};
    static const struct control_param table[] = {{"on", CONTROL_BOOL, true, 0, 0, 0}};
    bool held;
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p) || !hold(call, host->machine, &held)) {
        return;
    }
    int rc = machine_debug_count_blocks(host->machine, p.on);
    let_go(host->machine, held);
    if (rc < 0) {
        fail(call, rc, 0);
    } else {
        control_reply(call, NULL);
    }
}
