/*
 * Recording of exceptions: what a helper calls when the instruction can't complete.
 *
 * Neighbours: every file of this folder raises through here; exception delivery reads cpu->exc afterwards.
 *
 * Invariant: nothing but cpu->exc changes here. CR2 and DR6 are written when the exception is delivered, so
 * that a caller may drop an exception that it only probed for.
 */
#include "cpu/x86/x86.h"

/* The vectors that push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC (SDM vol. 3A, table 6-1). */
#define VECTORS_WITH_ERROR                                                                                   \
    ((1u << X86_DF_EXC) | (1u << X86_TS) | (1u << X86_NP) | (1u << X86_SS_EXC) | (1u << X86_GP) |            \
     (1u << X86_PF_EXC) | (1u << X86_AC_EXC))

void x86_note_exception(struct x86_cpu *cpu, enum x86_vector vector, uint32_t error)
{
    cpu->exc.vector = (uint8_t)vector;
    cpu->exc.has_error = (VECTORS_WITH_ERROR >> vector) & 1;
    cpu->exc.error = error;
    cpu->exc.cr2 = 0;
    cpu->exc.dr6 = 0;
}
