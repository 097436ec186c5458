/* `monitor COMMAND` in gdb: what the protocol has no packet for. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "vm/gdb/session_int.h"

#define DUMP_MAX        4096u
#define TRANSLATION_MAX 65536u

static const char usage[] =
    "registers              segments, tables and system registers of the thread\n"
    "phys ADDR [LENGTH]     guest-physical memory, without touching a device\n"
    "physical on|off        whether gdb's own memory commands take physical addresses\n"
    "walk ADDR              the physical address of a virtual one\n"
    "translate ADDR         guest code, the host code made of it, how often it ran\n"
    "count on|off           count how often blocks run (translates anew; slows the guest)\n";

static void show_segment(struct gdb *gdb, const char *name, const struct x86_segment *s)
{
    char line[128];
    snprintf(line, sizeof(line), "%-4s %04x  base %016" PRIx64 "  limit %08x  attributes %04x\n", name,
             s->selector, s->base, s->limit, s->attr);
    gdb_console(gdb, line);
}

static void show_registers(struct gdb *gdb)
{
    static const char *const names[] = {"es", "cs", "ss", "ds", "fs", "gs"};
    struct x86_state state;
    uint64_t cr8;
    char text[512];
    int rc = gdb->target.get_state(gdb->target.opaque, gdb->cpu, &state, &cr8);
    if (rc < 0) {
        gdb_reply_error(gdb, rc);
        return;
    }
    for (unsigned i = 0; i < X86_SREGS; i++) {
        show_segment(gdb, names[i], &state.seg[i]);
    }
    show_segment(gdb, "ldtr", &state.ldtr);
    show_segment(gdb, "tr", &state.tr);
    snprintf(text, sizeof(text),
             "gdtr base %016" PRIx64 "  limit %04x\nidtr base %016" PRIx64 "  limit %04x\n"
             "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "  cr8 %" PRIx64 "\n"
             "efer %" PRIx64 "  xcr0 %" PRIx64 "  star %016" PRIx64 "  lstar %016" PRIx64 "  sfmask %" PRIx64
             "\n"
             "kernel_gs_base %016" PRIx64 "  tsc_aux %" PRIx64 "  pat %016" PRIx64 "\n",
             state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit, state.cr0, state.cr2,
             state.cr3, state.cr4, cr8, state.efer, state.xcr0, state.star, state.lstar, state.sfmask,
             state.kernel_gs_base, state.tsc_aux, state.pat);
    gdb_console(gdb, text);
    gdb_reply(gdb, "OK");
}

static void dump(struct gdb *gdb, uint64_t address, uint64_t len)
{
    uint8_t bytes[16];
    size_t done;
    for (uint64_t at = 0; at < MIN(len, (uint64_t)DUMP_MAX); at += sizeof(bytes)) {
        size_t n = MIN(sizeof(bytes), len - at);
        char line[128];
        size_t used = (size_t)snprintf(line, sizeof(line), "%012" PRIx64 ":", address + at);
        if (gdb_memory(gdb, address + at, bytes, n, false, true, &done) < 0) {
            snprintf(line + used, sizeof(line) - used, " not RAM\n");
            gdb_console(gdb, line);
            break;
        }
        for (size_t i = 0; i < n; i++) {
            used += (size_t)snprintf(line + used, sizeof(line) - used, " %02x", bytes[i]);
        }
        snprintf(line + used, sizeof(line) - used, "\n");
        gdb_console(gdb, line);
    }
    gdb_reply(gdb, "OK");
}

static void show_walk(struct gdb *gdb, uint64_t va)
{
    uint64_t gpa;
    char line[96];
    if (gdb->target.walk(gdb->target.opaque, gdb->cpu, va, &gpa) < 0) {
        snprintf(line, sizeof(line), "%#" PRIx64 " is not mapped\n", va);
    } else {
        snprintf(line, sizeof(line), "%#" PRIx64 " -> %#" PRIx64 "\n", va, gpa);
    }
    gdb_console(gdb, line);
    gdb_reply(gdb, "OK");
}

static void show_translation(struct gdb *gdb, uint64_t va)
{
    char *text = gdb->target.translation ? malloc(TRANSLATION_MAX) : NULL;
    int rc =
        text ? gdb->target.translation(gdb->target.opaque, gdb->cpu, va, text, TRANSLATION_MAX) : -ENOTSUP;
    if (rc == -ENOTSUP) {
        gdb_console(gdb, "this engine does not translate\n");
    } else if (rc < 0) {
        gdb_console(gdb, "nothing translated covers this address now\n");
    } else {
        gdb_console(gdb, text);
    }
    free(text);
    gdb_reply(gdb, "OK");
}

static void switch_counting(struct gdb *gdb, bool on)
{
    if (!gdb->target.count_blocks || gdb->target.count_blocks(gdb->target.opaque, on) < 0) {
        gdb_console(gdb, "this engine does not translate\n");
    }
    gdb_reply(gdb, "OK");
}

/* A number as C writes it. */
static bool number(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    *ret = strtoull(text, &end, 0);
    return *text && *end == '\0' && errno == 0;
}

static bool run(struct gdb *gdb, unsigned count, char *const word[])
{
    uint64_t a, b = 64;
    bool on = count == 2 && strcmp(word[1], "on") == 0, off = count == 2 && strcmp(word[1], "off") == 0;
    if (count == 1 && strcmp(word[0], "registers") == 0) {
        show_registers(gdb);
    } else if (count >= 2 && strcmp(word[0], "phys") == 0 && number(word[1], &a) &&
               (count == 2 || number(word[2], &b))) {
        dump(gdb, a, b);
    } else if (strcmp(word[0], "physical") == 0 && (on || off)) {
        gdb->physical = on;
        gdb_reply(gdb, "OK");
    } else if (count == 2 && strcmp(word[0], "walk") == 0 && number(word[1], &a)) {
        show_walk(gdb, a);
    } else if (count == 2 && strcmp(word[0], "translate") == 0 && number(word[1], &a)) {
        show_translation(gdb, a);
    } else if (strcmp(word[0], "count") == 0 && (on || off)) {
        switch_counting(gdb, on);
    } else {
        return false;
    }
    return true;
}

void gdb_monitor(struct gdb *gdb, const char *command)
{
    char copy[256], *word[4], *rest = copy;
    unsigned count = 0;
    snprintf(copy, sizeof(copy), "%s", command);
    while (count < ARRAY_SIZE(word) && (word[count] = strtok_r(NULL, " \t\n", &rest))) {
        count++;
    }
    if (count == 0 || count == ARRAY_SIZE(word) || !run(gdb, count, word)) {
        gdb_console(gdb, usage);
        gdb_reply(gdb, "OK");
    }
}
