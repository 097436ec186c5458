/*
 * A small builder of ACPI Machine Language: ACPI specification 6.4, chapter 20. Used by vm/acpi.c for the
 * DSDT.
 *
 * Objects that contain others are opened and closed; the builder fills in package lengths at the close,
 * always in the two-byte form (20.2.4: up to 4,095 bytes), so that nothing moves.
 *
 * Invariant: the builder never writes beyond its buffer. A mistake (no room, nesting too deep, an unclosed
 * object) latches `failed`, and aml_finish says so.
 */
#ifndef FONDA_VM_AML_H
#define FONDA_VM_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AML_DEPTH_MAX 8

struct aml {
    uint8_t *buf;
    size_t size, used;
    bool failed;
    unsigned depth;
    size_t open[AML_DEPTH_MAX]; /* where each open object's package length lies */
};

void aml_init(struct aml *aml, uint8_t *buf, size_t size);
/* The bytes used, or 0 when something went wrong. */
size_t aml_finish(const struct aml *aml);

/* Containers: everything until the matching aml_close is inside. */
void aml_scope(struct aml *aml, const char *name); /* "_SB_", or "\\" for the root */
void aml_device(struct aml *aml, const char *name);
void aml_method(struct aml *aml, const char *name, unsigned args);
void aml_package(struct aml *aml, uint8_t elements);
void aml_close(struct aml *aml);

/* Name (NAME, <the object that is added next>). name has four characters. */
void aml_name(struct aml *aml, const char *name);

void aml_int(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
void aml_eisaid(struct aml *aml, const char *id); /* "PNP0501" */
/* OperationRegion (NAME, SystemIO, port, bytes) and Field (NAME, ByteAcc, NoLock, Preserve) with one field of
 * it. */
void aml_io_region(struct aml *aml, const char *name, uint16_t port, uint8_t bytes);
void aml_byte_field(struct aml *aml, const char *region, const char *field);

/* A resource template (Buffer), made between begin and end. ACPI 6.4, 6.4.2. */
void aml_resources_begin(struct aml *aml);
void aml_resource_io(struct aml *aml, uint16_t port, uint8_t bytes);
void aml_resource_irq(struct aml *aml, unsigned irq);
void aml_resource_mem32(struct aml *aml, uint32_t base, uint32_t bytes);
/* Address spaces that a bridge passes on: 6.4.3.5. */
void aml_resource_bus(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_window32(struct aml *aml, uint32_t base, uint32_t bytes);
void aml_resources_end(struct aml *aml);

/* Field (NAME, DWordAcc, NoLock, WriteAsZeros) with fields of 32 bits, from the region's beginning on. */
void aml_dword_fields(struct aml *aml, const char *region, const char *const *fields, unsigned count);

/* Operands, and the operations that take those added next: Store (<from>, <to>), Notify (<object>, <value>).
 * A name that is a method is a call, with its arguments added next. Names of several segments begin at the
 * root:
 * "\\_SB_.PCI0.PCUP". */
void aml_ref(struct aml *aml, const char *name);
void aml_arg(struct aml *aml, unsigned n);
void aml_local(struct aml *aml, unsigned n);
void aml_store(struct aml *aml);
void aml_notify(struct aml *aml);
/* If (And (Arg0, bits)) { ... }; closed by aml_close. */
void aml_if_arg0_bits(struct aml *aml, uint32_t bits);

/* Return (<named object>); Store (Arg0, <named field>). */
void aml_return_name(struct aml *aml, const char *name);
void aml_store_arg0(struct aml *aml, const char *name);

#endif
