/*
 * Cases as text: one "name value..." line per member, numbers in hexadecimal, so that a case can be edited by
 * hand.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"
#include "tests/diff/reduce.h"

#define MAGIC     "fonda-diff-case-1"
#define LINE_MAX_ (DIFF_XSAVE_BYTES * 2 + 64)

static void save_bytes(FILE *f, const char *name, const uint8_t *bytes, uint32_t n)
{
    fprintf(f, "%s ", name);
    for (uint32_t i = 0; i < n; i++) {
        fprintf(f, "%02x", bytes[i]);
    }
    fputc('\n', f);
}

int case_save(const struct diff_case *c, const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f) {
        fprintf(stderr, "diff: cannot write '%s': %s\n", path, strerror(errno));
        return -1;
    }
    fprintf(f, MAGIC "\ncategory %x\ncompat %x\nopen-end %x\ncode-offset %x\nentry %x\nmemory %" PRIx64 "\n",
            c->category, c->compat, c->open_end, c->code_offset, c->entry, c->mem_seed);
    fprintf(f, "rflags %" PRIx64 "\nfs-base %" PRIx64 "\ngs-base %" PRIx64 "\n", c->rflags, c->fs_base,
            c->gs_base);
    for (unsigned i = 0; i < 16; i++) {
        fprintf(f, "gpr %x %" PRIx64 "\n", i, c->gpr[i]);
    }
    for (uint32_t i = 0; i < c->insns; i++) {
        save_bytes(f, "insn", c->code + c->insn[i].offset, c->insn[i].length);
    }
    for (uint32_t i = 0; i < c->patches; i++) {
        char name[32];
        snprintf(name, sizeof(name), "patch %x", c->patch[i].va);
        save_bytes(f, name, c->patch[i].bytes, c->patch[i].length);
    }
    save_bytes(f, "xsave", c->xsave, DIFF_XSAVE_BYTES);
    int failed = ferror(f);
    if (fclose(f) != 0 || failed) {
        fprintf(stderr, "diff: cannot write '%s'\n", path);
        return -1;
    }
    return 0;
}

/* Returns the number of bytes, or -1. */
static int parse_bytes(const char *hex, uint8_t *bytes, uint32_t room)
{
    uint32_t n = 0;
    for (; hex[0] && hex[0] != '\n'; hex += 2) {
        unsigned byte;
        if (n == room || !hex[1] || sscanf(hex, "%2x", &byte) != 1) {
            return -1;
        }
        bytes[n++] = (uint8_t)byte;
    }
    return (int)n;
}

static bool parse_line(struct diff_case *c, const char *line)
{
    char name[32];
    int at = 0;
    if (sscanf(line, "%31s %n", name, &at) != 1 || at == 0) {
        return false;
    }
    const char *rest = line + at;
    uint64_t a, b;
    int used = 0;
    if (strcmp(name, "insn") == 0) {
        int n = parse_bytes(rest, c->code + c->code_length, DIFF_CODE_MAX - c->code_length);
        if (n <= 0 || c->insns == DIFF_INSNS_MAX) {
            return false;
        }
        c->insn[c->insns++] = (struct diff_insn){(uint16_t)c->code_length, (uint16_t)n};
        c->code_length += (uint32_t)n;
        return true;
    }
    if (strcmp(name, "xsave") == 0) {
        return parse_bytes(rest, c->xsave, DIFF_XSAVE_BYTES) == (int)DIFF_XSAVE_BYTES;
    }
    if (sscanf(rest, "%" SCNx64 " %n", &a, &used) != 1) {
        return false;
    }
    if (strcmp(name, "patch") == 0) {
        struct diff_patch *p = &c->patch[c->patches];
        int n = c->patches < DIFF_PATCHES_MAX ? parse_bytes(rest + used, p->bytes, sizeof(p->bytes)) : -1;
        if (n < 0) {
            return false;
        }
        p->va = (uint32_t)a;
        p->length = (uint8_t)n;
        c->patches++;
        return true;
    }
    if (strcmp(name, "gpr") == 0) {
        if (a > 15 || sscanf(rest + used, "%" SCNx64, &b) != 1) {
            return false;
        }
        c->gpr[a] = b;
        return true;
    }
    if (strcmp(name, "category") == 0) {
        c->category = (uint32_t)MIN(a, CAT_COUNT - 1u);
    } else if (strcmp(name, "compat") == 0) {
        c->compat = a != 0;
    } else if (strcmp(name, "open-end") == 0) {
        c->open_end = a != 0;
    } else if (strcmp(name, "code-offset") == 0) {
        c->code_offset = (uint32_t)a;
    } else if (strcmp(name, "entry") == 0) {
        c->entry = (uint32_t)a;
    } else if (strcmp(name, "memory") == 0) {
        c->mem_seed = a;
    } else if (strcmp(name, "rflags") == 0) {
        c->rflags = a;
    } else if (strcmp(name, "fs-base") == 0) {
        c->fs_base = a;
    } else if (strcmp(name, "gs-base") == 0) {
        c->gs_base = a;
    } else {
        return false;
    }
    return true;
}

int case_load(struct diff_case *c, const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) {
        fprintf(stderr, "diff: cannot open '%s': %s\n", path, strerror(errno));
        return -1;
    }
    static char line[LINE_MAX_];
    memset(c, 0, sizeof(*c));
    unsigned number = 1;
    bool good = fgets(line, sizeof(line), f) && strcmp(line, MAGIC "\n") == 0;
    while (good && fgets(line, sizeof(line), f)) {
        number++;
        good = parse_line(c, line);
    }
    fclose(f);
    if (!good || c->insns == 0 || c->code_offset > DIFF_CODE_BYTES ||
        c->code_offset + c->code_length > DIFF_CODE_BYTES || c->entry >= c->code_length) {
        fprintf(stderr, "diff: '%s' is not a case (line %u)\n", path, number);
        return -1;
    }
    return 0;
}
