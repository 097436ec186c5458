/*
 * ACPI tables of the machine `pc`: ACPI specification 6.4. Built once per machine into the firmware area
 * below 1 MiB, where guests scan for the root pointer even if their boot protocol does not hand it over.
 */
#ifndef FONDA_VM_ACPI_H
#define FONDA_VM_ACPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ACPI_CPUS_MAX 32

/* What the tables describe. Addresses and ports of 0: not there. */
struct acpi_config {
    unsigned cpus; /* APIC id and processor UID count from 0 */
    uint32_t lapic_base, ioapic_base, hpet_base;
    uint32_t hpet_id; /* low half of the capabilities register: IA-PC HPET specification 2.3.4 */
    uint8_t ioapic_id;
    uint16_t pm1a_event_port, pm1a_control_port, pm_timer_port;
    bool pm_timer_32bit;
    uint8_t s5_sleep_type;
    uint8_t sci_irq; /* level-triggered, active high */
    uint16_t reset_port;
    uint8_t reset_value;
    uint16_t serial_port;
    uint8_t serial_irq;
    uint16_t rtc_port;
    bool i8042;
    /* The PCI bridge, with one bus; slot s interrupts by pin pci_intx_base + s % 4. pci_ecam_base 0: none. */
    uint32_t pci_ecam_base, pci_window_base, pci_window_bytes;
    unsigned pci_slots, pci_intx_base;
    /* dev/pci/hotplug.h: its event block, and its registers behind that. 0: slots can't change. */
    uint16_t gpe0_port, hotplug_port;
    uint16_t panic_port;    /* QEMU0001, as Linux's pvpanic driver knows it */
    uint16_t watchdog_port; /* dev/legacy/watchdog.h */
};

/* Writes all tables for guest-physical address `base` (a multiple of 64) into buf, the root pointer first.
 * Returns the bytes used, or 0 when they don't fit or the configuration has too many CPUs. */
size_t acpi_build(const struct acpi_config *config, uint32_t base, uint8_t *buf, size_t size);

#endif
