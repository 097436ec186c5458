/*
 * Makes cases.
 */
#ifndef FONDA_TESTS_DIFF_GEN_H
#define FONDA_TESTS_DIFF_GEN_H

#include "tests/diff/diff.h"

struct generator;

struct generator *generator_new(void);
void generator_free(struct generator *generator);
/* Makes case number `index` of a seed. category: CAT_COUNT for one chosen by the index. */
void generator_make(struct generator *generator, uint64_t seed, uint64_t index, enum diff_cat category,
                    struct diff_case *ret_case);
/* Prints how many encodings each category has. */
void generator_list(const struct generator *generator, FILE *out);

#endif
