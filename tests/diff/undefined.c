/*
 * Which arithmetic flags a case leaves undefined, by Zydis's tables, in the order of its code. Where control
 * flow or data depend on an undefined flag, nothing that follows can be compared.
 */
#include <Zydis/Zydis.h>

#include "base/util.h"
#include "tests/diff/diff.h"

uint32_t diff_undefined_flags(const struct diff_case *c, uint64_t end_rip, bool *ret_used)
{
    ZydisDecoder decoder;
    ZydisDecoderInit(&decoder, c->compat ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64,
                     c->compat ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_64);
    uint32_t undefined = 0;
    *ret_used = false;
    for (uint32_t i = 0; i < c->insns; i++) {
        uint64_t va = DIFF_CODE_VA + c->code_offset + c->insn[i].offset;
        if (c->insn[i].offset < c->entry || va == end_rip) {
            continue;
        }
        ZydisDecodedInstruction d;
        ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
        if (!ZYAN_SUCCESS(
                ZydisDecoderDecodeFull(&decoder, c->code + c->insn[i].offset, c->insn[i].length, &d, ops)) ||
            !d.cpu_flags) {
            continue;
        }
        const ZydisAccessedFlags *f = d.cpu_flags;
        if (f->tested & undefined) {
            *ret_used = true;
        }
        bool shift = d.meta.category == ZYDIS_CATEGORY_SHIFT || d.meta.category == ZYDIS_CATEGORY_ROTATE;
        if (!shift) {
            /* A shift by zero leaves the flags as they are. */
            undefined &= ~(f->modified | f->set_0 | f->set_1);
        }
        undefined |= f->undefined;
    }
    return undefined & X86_FLAGS_ARITH;
}
