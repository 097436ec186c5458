/*
 * A message on the APIC bus: what an I/O APIC, an MSI or a local APIC's ICR sends to local APICs.
 */
#ifndef FONDA_DEV_IRQ_APIC_MSG_H
#define FONDA_DEV_IRQ_APIC_MSG_H

#include <stdbool.h>
#include <stdint.h>

/* Delivery modes, Intel SDM vol. 3A 10.6.1 (ICR) and 82093AA 3.2.4. */
enum apic_mode {
    APIC_MODE_FIXED = 0,
    APIC_MODE_LOWEST = 1,
    APIC_MODE_SMI = 2,
    APIC_MODE_NMI = 4,
    APIC_MODE_INIT = 5,
    APIC_MODE_STARTUP = 6,
    APIC_MODE_EXTINT = 7,
};

#define APIC_BROADCAST UINT32_MAX

struct apic_msg {
    uint32_t dest; /* APIC ID, or a logical destination; APIC_BROADCAST: everybody */
    bool logical;
    bool level; /* level-triggered: the EOI is broadcast to the I/O APICs */
    uint8_t mode;
    uint8_t vector;
};

/* Delivers a message under mem_lock(). Returns whether some local APIC took it. */
typedef bool apic_send_fn(void *opaque, const struct apic_msg *msg);

/* An 8-bit physical destination, as I/O APICs, MSIs and xAPICs have it, as a message's destination. */
static inline uint32_t apic_dest_from_8bit(uint8_t dest, bool logical)
{
    return dest == 0xff && !logical ? APIC_BROADCAST : dest;
}

#endif
