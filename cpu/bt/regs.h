/*
 * Where guest registers live while translated code runs.
 *
 * Twelve are in host registers, four in their slots in cpu.s.gpr (R11 and R13 to R15, which compilers use
 * last). Host RCX, R14 and R15 are scratch: RCX because JRCXZ branches without touching the flags, and
 * because shifts want their count there anyhow. Host RSP is the stack of the translated code.
 */
#ifndef FONDA_CPU_BT_REGS_H
#define FONDA_CPU_BT_REGS_H

#include "cpu/bt/emit.h"

#define H_S0 H_RCX
#define H_S1 H_R14
#define H_S2 H_R15

static const uint8_t bt_host[16] = {
    H_RAX, H_R13, H_RDX, H_RBX,  H_R12, H_RBP,  H_RSI,  H_RDI,
    H_R8,  H_R9,  H_R10, H_NONE, H_R11, H_NONE, H_NONE, H_NONE,
};

#endif
