/*
 * The machine `pc`: interrupt controllers, timers, serial port and the other chips of a PC, wired together,
 * with the ACPI tables that describe them. vm/machine.c adds vCPUs and an engine.
 *
 * Interrupt wiring
 *
 *     PCI slot s, INTA --> I/O APIC, pin 16 + s % 4; MSI-X --> messages to the local APICs
 *
 *     ISA line n ---+--> 8259 pair, input n --> INTR --> LINT0 of the boot processor
 *                   `--> I/O APIC, pin n (line 0: pin 2) --> messages to the local APICs
 *
 * Threads: pc_new, pc_reset and pc_free while no vCPU runs; the others under mem_lock().
 */
#ifndef FONDA_VM_PC_H
#define FONDA_VM_PC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/irq/lapic.h"
#include "mem/mem.h"

#define PC_PANIC_PORT 0x505u

struct clock;
struct pc;
struct pci_host;
struct pci_hotplug;

struct pc_config {
    struct mem *mem;
    struct clock *clock;
    unsigned cpus;
    unsigned phys_bits;
    uint64_t tsc_hz;
    const struct lapic_cpu *lapic_cpus; /* one per vCPU; not needed behind pc_new */
    /* The guest's requests; run under mem_lock() on a vCPU thread. */
    void (*power_off)(void *opaque);
    void (*reset)(void *opaque);
    void (*watchdog)(void *opaque); /* a reset, too: the watchdog ran out */
    void (*panic)(void *opaque);
    void (*exit)(void *opaque, uint32_t status);
    /* The serial port; see dev/legacy/ns16550.h. */
    size_t (*serial_sink)(void *opaque, const uint8_t *bytes, size_t len);
    void (*serial_room)(void *opaque);
    void *opaque;
};

/* Builds the machine in the order of the table in pc.c. config is copied. Errors: those of the parts. */
int pc_new(const struct pc_config *config, struct pc **ret_pc, struct err *err);
void pc_free(struct pc *pc);

/* Every chip to its state at power-on, and the ACPI tables written anew. */
void pc_reset(struct pc *pc);

struct pci_host *pc_pci(struct pc *pc);
struct pci_hotplug *pc_hotplug(struct pc *pc);
/* A device that the machine resets and frees with its own, the newest first, from then on. False: there are
 * too many.
 */
bool pc_add_device(struct pc *pc, struct device *device);
/* Takes one out again, and frees it. Main loop; vCPUs may run. */
void pc_remove_device(struct pc *pc, struct device *device);

/* All of them, chips too, in the order in which they were made. */
unsigned pc_devices(const struct pc *pc);
struct device *pc_device(struct pc *pc, unsigned index);

/* The 8259s' interrupt acknowledge cycle, for struct lapic_cpu. */
int pc_extint_ack(struct pc *pc);
struct lapic *pc_lapic(struct pc *pc, unsigned cpu);
/* Where the ACPI root pointer lies. */
gpa_t pc_rsdp(const struct pc *pc);
/* To the guest's serial port; returns how many bytes it took. */
size_t pc_serial_input(struct pc *pc, const uint8_t *bytes, size_t len);
void pc_serial_flush(struct pc *pc);
/* The power button; whether the guest listens to it. */
bool pc_power_button(struct pc *pc);
/* The registers of every chip, for a dead guest's report. Returns the bytes written. */
unsigned pc_describe(struct pc *pc, char *buf, unsigned size);

#endif
