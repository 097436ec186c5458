/*
 * The registers as gdb numbers them: our own numbering, told to gdb by target.xml (the GDB manual, appendix
 * G, "i386 Features"). x87, SSE, AVX and AVX-512 come from the XSAVE image in struct x86_state.
 */
#ifndef FONDA_VM_GDB_REGISTERS_H
#define FONDA_VM_GDB_REGISTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/x86/state.h"

#define GDB_REGISTERS_MAX      192u
#define GDB_REGISTER_BYTES_MAX 32u
#define GDB_XML_MAX            24576u

/* In the order of org.gnu.gdb.i386.core. */
enum { GDB_REG_RBP = 6, GDB_REG_RSP = 7, GDB_REG_RIP = 16 };

struct gdb_register {
    char name[12];
    uint8_t bytes, kind, index;
};

struct gdb_registers {
    unsigned count;
    struct gdb_register reg[GDB_REGISTERS_MAX];
    uint32_t ymm_at, opmask_at, zmm_high_at, high16_at; /* in the XSAVE image; 0: the host has none */
    size_t xml_len;
    char xml[GDB_XML_MAX];
};

void gdb_registers_init(struct gdb_registers *registers);

/* Little-endian bytes of a register: returns how many, 0 when there is no such register. */
size_t gdb_register_get(const struct gdb_registers *registers, const struct x86_state *state, uint64_t cr8,
                        unsigned number, uint8_t value[GDB_REGISTER_BYTES_MAX]);
/* False: there is none, or it can't be written; state is unchanged. value has the register's length. */
bool gdb_register_set(const struct gdb_registers *registers, struct x86_state *state, unsigned number,
                      const uint8_t *value);

#endif
