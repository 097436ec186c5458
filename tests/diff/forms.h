/*
 * What can be encoded: every combination of encoding, opcode map, opcode, prefix, W, L, EVEX.b and ModRM
 * digit that Zydis decodes to a user-mode instruction which the guest's CPUID offers.
 */
#ifndef FONDA_TESTS_DIFF_FORMS_H
#define FONDA_TESTS_DIFF_FORMS_H

#include <Zydis/Zydis.h>

#include "tests/diff/diff.h"

enum form_encoding { FORM_LEGACY, FORM_VEX, FORM_EVEX };
/* The ModRM byte: none, with a memory operand, with a register operand. */
enum form_modrm { FORM_NO_MODRM, FORM_MEM, FORM_REG };

#define FORM_ANY 0xff /* of reg and rm: the field selects a register */

struct form {
    uint16_t mnemonic; /* ZydisMnemonic */
    uint8_t category;  /* enum diff_cat */
    uint8_t encoding;
    uint8_t map;    /* legacy: 0 one byte, 1 0F, 2 0F38, 3 0F3A; VEX and EVEX: the mmm field */
    uint8_t prefix; /* legacy: bits of FORM_PREFIX_*; VEX and EVEX: the pp field */
    uint8_t opcode;
    uint8_t w, l, b;
    uint8_t modrm; /* enum form_modrm */
    uint8_t reg, rm;
};
#define FORM_PREFIX_66 1u
#define FORM_PREFIX_F3 2u
#define FORM_PREFIX_F2 4u

struct forms;

/* Never fails but for lack of memory (then exits: there is nothing to test). compat: 32-bit code. */
struct forms *forms_new(bool compat);
void forms_free(struct forms *forms);
/* A random form of a category; every mnemonic is equally likely. NULL when there is none. */
const struct form *forms_pick(const struct forms *forms, struct rng *r, enum diff_cat category);
/* Number of forms, and of mnemonics, of a category. */
uint32_t forms_count(const struct forms *forms, enum diff_cat category, uint32_t *ret_mnemonics);
/* The category of an instruction, or CAT_COUNT when it must not be generated. */
enum diff_cat forms_classify(const ZydisDecodedInstruction *d);

#endif
