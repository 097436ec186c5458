/*
 * What the generator's parts share: gen.c encodes and steers random forms, gen_special.c holds the
 * hand-written ones, gen_state.c makes the state that they start from.
 */
#ifndef FONDA_TESTS_DIFF_GEN_INT_H
#define FONDA_TESTS_DIFF_GEN_INT_H

#include "tests/diff/forms.h"
#include "tests/diff/gen.h"

/* What the generator knows of a general register where it appends code. */
enum gpr_state {
    GPR_FREE,  /* holds its initial value, which nothing depends on yet */
    GPR_KNOWN, /* holds a value that code depends on */
    GPR_LOST,  /* was written */
};

struct gen {
    struct rng r;
    struct diff_case *c;
    const struct forms *forms;
    const ZydisDecoder *decoder;
    uint8_t gpr_state[16];
    uint64_t gpr_value[16];
    uint32_t vector_lost;   /* bit per vector register: written or steered */
    uint32_t fault_percent; /* of memory operands that are steered to where they may fault */
    bool lock, odd_prefixes;
    bool want_memory; /* only forms with a memory operand */
    uint64_t target;  /* the address that the last memory operand was steered to, 0: none */
};

/* Appends an instruction. False when there is no room. */
bool gen_emit(struct gen *g, const uint8_t *bytes, uint32_t length);
/* Makes a register hold a value here: by its initial value where possible, else by a MOV. */
void gen_set_gpr(struct gen *g, unsigned reg, uint64_t value);
/* Puts bytes into initial memory. */
void gen_patch(struct gen *g, uint64_t va, const void *bytes, uint32_t length);
uint64_t gen_value(struct gen *g);
/* An address for an access of size bytes. */
uint64_t gen_target(struct gen *g, uint32_t size);
/* A random form of a category, encoded, steered and appended. False when none fitted. */
bool gen_form(struct gen *g, enum diff_cat category);
/* A random register other than RSP, of those that the mode has. */
unsigned gen_reg(struct gen *g);
/* Where the next instruction will be. */
uint64_t gen_here(const struct gen *g);

/* gen_state.c: fills the case's XSAVE area; stores the low bytes of a value. */
void gen_make_xsave(struct gen *g);
void gen_put(uint8_t *at, uint64_t value, unsigned bytes);

/* gen_special.c: appends a hand-written piece of a category; false when the category has none or it didn't
 * fit. */
bool gen_special(struct gen *g, enum diff_cat category);

#endif
