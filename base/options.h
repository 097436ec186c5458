/*
 * Command-line options by table: `--name value`, `--name=value`, `--flag`. Every program of the project uses
 * this, so that all of them complain in the same words.
 */
#ifndef FONDA_BASE_OPTIONS_H
#define FONDA_BASE_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

#define OPTION_LIST_MAX 16

enum option_kind {
    OPTION_FLAG,   /* bool, set to true */
    OPTION_STRING, /* const char *, points into argv */
    OPTION_LIST,   /* struct option_list: may be given more than once */
    OPTION_UINT,   /* uint64_t, decimal, min to max */
    OPTION_SIZE,   /* uint64_t, bytes: "512M", "1.5G"; min to max */
};

struct option_list {
    unsigned count;
    const char *values[OPTION_LIST_MAX];
};

struct option_spec {
    const char *name; /* without the dashes */
    enum option_kind kind;
    size_t offset;       /* of the member in the target */
    uint64_t min, max;   /* OPTION_UINT, OPTION_SIZE */
    const char *metavar; /* "FILE"; NULL for flags */
    const char *help;    /* may have several lines */
};

/* Reads argv[first..argc) into target, whose members hold their defaults. Stops at the first argument that is
 * not an option, or behind "--". Returns its index (argc: there is none), or -EINVAL with one sentence. */
int options_parse(const struct option_spec *specs, unsigned count, int argc, char **argv, int first,
                  void *target, struct err *err);

/* The table as it appears in --help. */
void options_print(FILE *out, const struct option_spec *specs, unsigned count);

/* "512M", "1.5G", "64KiB": K, M, G, T are powers of 1024. A unit is required, and the result is a whole
 * number of bytes. Errors: -EINVAL, -ERANGE (beyond 2^63). */
int parse_size(const char *text, uint64_t *ret_bytes, struct err *err);
/* A decimal number and nothing else. Errors: -EINVAL, -ERANGE. */
int parse_uint(const char *text, uint64_t *ret_value, struct err *err);
/* "512 MiB", "1.5 GiB": rounded to one digit, for people. */
void format_size(uint64_t bytes, char *buf, size_t size);

#endif
