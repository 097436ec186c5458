/*
 * Shortens a failing case, prints it, and keeps it in a file.
 */
#ifndef FONDA_TESTS_DIFF_REDUCE_H
#define FONDA_TESTS_DIFF_REDUCE_H

#include "tests/diff/diff.h"

/* Runs a case under both runners; the set of differing items (diff_compare), or 0. */
typedef uint32_t reduce_run_fn(void *opaque, const struct diff_case *c);

/* Replaces c by a simpler case that still differs: fewest instructions, then simplest state. */
void reduce_case(struct diff_case *c, reduce_run_fn *run, void *opaque);

/* The mnemonic of the instruction that a reduced case is about. */
void reduce_name(const struct diff_case *c, char *buf, uint32_t size);

void report_case(const struct diff_case *c, FILE *out);

/* Text files. 0, or -1 with the reason printed. */
int case_save(const struct diff_case *c, const char *path);
int case_load(struct diff_case *c, const char *path);

#endif
