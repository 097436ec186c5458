#include "vm/report.h"

#include <inttypes.h>
#include <string.h>

#include "base/util.h"
#include "cpu/x86/state.h"
#include "vm/machine.h"
#include "vm/pc.h"
#include "vm/status.h"

#define COUNTERS_MAX (ENGINE_COUNTERS_MAX + 16)
#define TEXT_MAX     8192
#define CHIPS_MAX    32768u /* 31 devices and the fixed chips */

static void print_segment(FILE *out, const char *name, const struct x86_segment *seg)
{
    fprintf(out, "  %-4s %04x  base %016" PRIx64 "  limit %08x  attr %04x\n", name, seg->selector, seg->base,
            seg->limit, seg->attr);
}

static void print_state(FILE *out, const struct x86_state *s)
{
    static const char *const gprs[16] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                         "R8",  "R9",  "R10", "R11", "R12", "R13", "R14", "R15"};
    static const char *const segs[X86_SREGS] = {"ES", "CS", "SS", "DS", "FS", "GS"};
    fprintf(out, "  RIP %016" PRIx64 "  RFLAGS %08" PRIx64 "%s%s%s\n", s->rip, s->rflags,
            s->halted ? "  halted" : "", s->wait_for_sipi ? "  waiting for SIPI" : "",
            s->nmi_blocked ? "  in an NMI handler" : "");
    for (unsigned i = 0; i < 16; i++) {
        fprintf(out, "%s%-3s %016" PRIx64 "%s", i % 4 ? "  " : "  ", gprs[i], s->gpr[i],
                i % 4 == 3 ? "\n" : "");
    }
    fprintf(out,
            "  CR0 %08" PRIx64 "  CR2 %016" PRIx64 "  CR3 %016" PRIx64 "  CR4 %08" PRIx64 "  EFER %04" PRIx64
            "\n",
            s->cr0, s->cr2, s->cr3, s->cr4, s->efer);
    for (unsigned i = 0; i < X86_SREGS; i++) {
        print_segment(out, segs[i], &s->seg[i]);
    }
    print_segment(out, "TR", &s->tr);
    print_segment(out, "LDTR", &s->ldtr);
    fprintf(out, "  GDTR      base %016" PRIx64 "  limit %04x\n  IDTR      base %016" PRIx64 "  limit %04x\n",
            s->gdtr.base, s->gdtr.limit, s->idtr.base, s->idtr.limit);
}

/* Text that the parts wrote, indented, its non-printing bytes replaced. */
static void print_indented(FILE *out, const char *text, unsigned length)
{
    bool start = true;
    for (unsigned i = 0; i < length && text[i]; i++) {
        if (start) {
            fputs("  ", out);
        }
        start = text[i] == '\n';
        fputc(start || (text[i] >= 0x20 && text[i] < 0x7f) ? text[i] : '.', out);
    }
    if (!start) {
        fputc('\n', out);
    }
}

static void print_chips(FILE *out, struct machine *machine)
{
    static char text[CHIPS_MAX];
    unsigned length = pc_describe(machine_pc(machine), text, sizeof(text));
    if (length > 0) {
        fprintf(out, "chips:\n");
        print_indented(out, text, MIN(length, (unsigned)sizeof(text)));
    }
}

void report_guest(FILE *out, struct machine *machine, int status)
{
    char text[TEXT_MAX];
    const char *error = machine_error_text(machine);
    fprintf(out, "\nfonda: the guest ended: %s%s%s\n", vm_status_name(status), *error ? ": " : "", error);
    for (unsigned i = 0; i < machine_cpus(machine); i++) {
        struct x86_state state;
        int rc = machine_get_state(machine, i, &state);
        fprintf(out, "vCPU %u:\n", i);
        if (rc < 0) {
            fprintf(out, "  its state can't be read: %s\n", strerror(-rc));
        } else {
            print_state(out, &state);
        }
        unsigned length = machine_last_exits(machine, i, text, sizeof(text));
        if (length > 0) {
            fprintf(out, " last exits, the latest at the end:\n");
            print_indented(out, text, MIN(length, (unsigned)sizeof(text)));
        }
    }
    print_chips(out, machine);
}

/* One group with everything of its name, wherever it comes in the list. */
static void print_group(FILE *out, const char *group, const struct engine_counter *counters, unsigned count)
{
    fprintf(out, "%s\n", group);
    for (unsigned i = 0; i < count; i++) {
        const struct engine_counter *c = &counters[i];
        if (strcmp(group, c->group) != 0) {
            continue;
        }
        if (strcmp(group, "time") == 0) {
            fprintf(out, "  %-32s %16.6f s\n", c->name, (double)c->value / 1e9);
        } else {
            fprintf(out, "  %-32s %16" PRIu64 "\n", c->name, c->value);
        }
    }
}

void report_stats(FILE *out, struct machine *machine)
{
    struct engine_counter counters[COUNTERS_MAX];
    unsigned count = machine_counters(machine, counters, COUNTERS_MAX);
    fprintf(out, "\nfonda: counters\n");
    for (unsigned i = 0; i < count; i++) {
        bool first = true;
        for (unsigned j = 0; j < i; j++) {
            first = first && strcmp(counters[i].group, counters[j].group) != 0;
        }
        if (first) {
            print_group(out, counters[i].group, counters, count);
        }
    }
    print_chips(out, machine);
}
