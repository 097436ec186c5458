#include "base/options.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

#define DIGITS_MAX 18 /* of a number's fraction or whole part: fits into 64 bits */

int parse_uint(const char *text, uint64_t *ret_value, struct err *err)
{
    uint64_t value = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value)) {
            return err_set(err, -ERANGE, "'%s' is too large", text);
        }
    }
    if (p == text || *p) {
        return err_set(err, -EINVAL, "'%s' is not a number", text);
    }
    *ret_value = value;
    return 0;
}

/* The shift of a unit such as "M", "MiB" or "MB", or -1. */
static int unit_shift(const char *unit)
{
    static const char letters[] = "KMGT";
    const char *letter = *unit ? strchr(letters, *unit >= 'a' ? *unit - 'a' + 'A' : *unit) : NULL;
    if (!letter || (unit[1] && strcmp(unit + 1, "iB") != 0 && strcmp(unit + 1, "B") != 0)) {
        return -1;
    }
    return (int)(letter - letters + 1) * 10;
}

int parse_size(const char *text, uint64_t *ret_bytes, struct err *err)
{
    uint64_t whole = 0, fraction = 0, scale = 1;
    const char *p = text;
    unsigned digits = 0;
    for (; *p >= '0' && *p <= '9'; p++, digits++) {
        if (digits == DIGITS_MAX) {
            return err_set(err, -ERANGE, "'%s' is too large", text);
        }
        whole = whole * 10 + (uint64_t)(*p - '0');
    }
    if (digits > 0 && *p == '.') {
        for (p++; *p >= '0' && *p <= '9'; p++) {
            if (scale < 1000000) { /* finer than any sensible size */
                fraction = fraction * 10 + (uint64_t)(*p - '0');
                scale *= 10;
            }
        }
    }
    if (digits == 0) {
        return err_set(err, -EINVAL, "'%s' is not a size: write a number and a unit, such as 512M or 1.5G",
                       text);
    }
    int shift = unit_shift(p);
    if (shift < 0) {
        return err_set(err, -EINVAL, "'%s' has %s: use K, M, G or T, as in 512M or 1.5G", text,
                       *p ? "an unknown unit" : "no unit");
    }
    if (whole >> (63 - shift)) {
        return err_set(err, -ERANGE, "'%s' is too large", text);
    }
    /* fraction < 10^6 < 2^20, shift <= 40: no overflow. */
    *ret_bytes = (whole << shift) + (fraction << shift) / scale;
    return 0;
}

void format_size(uint64_t bytes, char *buf, size_t size)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    unsigned unit = 0;
    uint64_t tenths = 0;
    while (bytes >= 1024 && unit + 1 < ARRAY_SIZE(units)) {
        tenths = (bytes % 1024) * 10 / 1024;
        bytes /= 1024;
        unit++;
    }
    if (tenths) {
        snprintf(buf, size, "%llu.%llu %s", (unsigned long long)bytes, (unsigned long long)tenths,
                 units[unit]);
    } else {
        snprintf(buf, size, "%llu %s", (unsigned long long)bytes, units[unit]);
    }
}

static int range_error(const struct option_spec *spec, const char *text, struct err *err)
{
    char min[32], max[32];
    if (spec->kind == OPTION_SIZE) {
        format_size(spec->min, min, sizeof(min));
        format_size(spec->max, max, sizeof(max));
    } else {
        snprintf(min, sizeof(min), "%llu", (unsigned long long)spec->min);
        snprintf(max, sizeof(max), "%llu", (unsigned long long)spec->max);
    }
    return err_set(err, -EINVAL, "'%s' is not between %s and %s", text, min, max);
}

static int set_value(const struct option_spec *spec, const char *text, void *target, struct err *err)
{
    void *member = (char *)target + spec->offset;
    uint64_t number = 0;
    int rc = 0;
    switch (spec->kind) {
    case OPTION_FLAG: *(bool *)member = true; return 0;
    case OPTION_STRING: *(const char **)member = text; return 0;
    case OPTION_LIST: {
        struct option_list *list = member;
        if (list->count == OPTION_LIST_MAX) {
            return err_set(err, -EINVAL, "given more than %d times", OPTION_LIST_MAX);
        }
        list->values[list->count++] = text;
        return 0;
    }
    case OPTION_UINT: rc = parse_uint(text, &number, err); break;
    case OPTION_SIZE: rc = parse_size(text, &number, err); break;
    }
    if (rc == -ERANGE || (rc == 0 && (number < spec->min || number > spec->max))) {
        return range_error(spec, text, err);
    }
    if (rc == 0) {
        *(uint64_t *)member = number;
    }
    return rc;
}

static const struct option_spec *find_spec(const struct option_spec *specs, unsigned count, const char *name,
                                           size_t length)
{
    for (unsigned i = 0; i < count; i++) {
        if (strlen(specs[i].name) == length && strncmp(specs[i].name, name, length) == 0) {
            return &specs[i];
        }
    }
    return NULL;
}

int options_parse(const struct option_spec *specs, unsigned count, int argc, char **argv, int first,
                  void *target, struct err *err)
{
    for (int i = first; i < argc; i++) {
        const char *arg = argv[i];
        if (strcmp(arg, "--") == 0) {
            return i + 1;
        }
        if (arg[0] != '-' || !arg[1]) {
            return i;
        }
        size_t length = strcspn(arg, "=");
        const struct option_spec *spec = arg[1] == '-' ? find_spec(specs, count, arg + 2, length - 2) : NULL;
        if (!spec) {
            return err_set(err, -EINVAL, "unknown option '%.*s'", (int)length, arg);
        }
        const char *value = arg[length] == '=' ? arg + length + 1 : NULL;
        if (spec->kind == OPTION_FLAG && value) {
            return err_set(err, -EINVAL, "option '--%s' takes no value", spec->name);
        }
        if (spec->kind != OPTION_FLAG && !value) {
            if (i + 1 == argc) {
                return err_set(err, -EINVAL, "option '--%s' needs a value (%s)", spec->name, spec->metavar);
            }
            value = argv[++i];
        }
        int rc = set_value(spec, value, target, err);
        if (rc < 0) {
            err_prefix(err, "--%s", spec->name);
            return -EINVAL;
        }
    }
    return argc;
}

void options_print(FILE *out, const struct option_spec *specs, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char left[40];
        snprintf(left, sizeof(left), "--%s%s%s", specs[i].name, specs[i].metavar ? " " : "",
                 specs[i].metavar ? specs[i].metavar : "");
        const char *line = specs[i].help;
        while (line) {
            const char *end = strchr(line, '\n');
            int length = end ? (int)(end - line) : (int)strlen(line);
            fprintf(out, "  %-18s %.*s\n", left, length, line);
            left[0] = '\0';
            line = end ? end + 1 : NULL;
        }
    }
}
