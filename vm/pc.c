#include "vm/pc.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "dev/irq/i8259.h"
#include "dev/irq/ioapic.h"
#include "dev/legacy/acpi_pm.h"
#include "dev/legacy/exit_port.h"
#include "dev/legacy/hpet.h"
#include "dev/legacy/i8042.h"
#include "dev/legacy/i8254.h"
#include "dev/legacy/mc146818.h"
#include "dev/legacy/ns16550.h"
#include "dev/legacy/port92.h"
#include "dev/legacy/pvpanic.h"
#include "dev/legacy/watchdog.h"
#include "dev/pci/hotplug.h"
#include "dev/pci/pci.h"
#include "vm/acpi.h"
#include "vm/boot/boot.h"

#define IRQ_PIT      0u
#define IRQ_KEYBOARD 1u
#define IRQ_SERIAL   4u
#define IRQ_RTC      8u
#define IRQ_SCI      9u
#define S5_TYPE      5u
#define IOAPIC_ID    0u
/* The pins that the HPET's comparators may use: those that neither ISA nor PCI lines have. */
#define HPET_PINS      0x00f00000u
#define PC_CPUS_MAX    ACPI_CPUS_MAX
#define PC_DEVICES_MAX (16 + PC_CPUS_MAX + PCI_SLOTS)
/* One bus of configuration space and the window for BARs, between the highest low RAM and the chips. */
#define PCI_ECAM_BASE   0xc0000000u
#define PCI_WINDOW_BASE 0xd0000000u
#define PCI_WINDOW_SIZE 0x10000000u
#define PCI_INTX_BASE   16u /* pins of the I/O APIC */
_Static_assert(MEM_LOW_RAM_MAX <= 0xc0000000u, "RAM would reach into the PCI windows");

struct pc {
    struct pc_config config;
    struct i8259 *pic;
    struct lapic_bus *lapic_bus;
    struct lapic *lapics[PC_CPUS_MAX];
    struct ioapic *ioapic;
    struct i8254 *pit;
    struct mc146818 *rtc;
    struct ns16550 *uart;
    struct acpi_pm *pm;
    struct pci_host *pci;
    struct pci_hotplug *hotplug;
    /* In the order of their creation, for reset and free. */
    unsigned device_count;
    struct device *devices[PC_DEVICES_MAX];
    size_t acpi_bytes;
    uint8_t acpi[BOOT_FIRMWARE_END - BOOT_FIRMWARE_BASE];
};

/* --- wiring --- */

static void isa_irq_set(void *opaque, unsigned n, bool level)
{
    struct pc *pc = opaque;
    i8259_set_irq(pc->pic, n, level);
    ioapic_set_irq(pc->ioapic, n == IRQ_PIT ? 2 : n, level);
}

static struct irq_line isa_irq(struct pc *pc, unsigned n)
{
    return (struct irq_line){isa_irq_set, pc, n};
}

static void pic_intr_set(void *opaque, unsigned n, bool level)
{
    struct pc *pc = opaque;
    if (pc->lapics[0]) {
        lapic_set_lint(pc->lapics[0], 0, level);
    }
}

static void lapic_eoi(void *opaque, uint8_t vector)
{
    struct pc *pc = opaque;
    ioapic_eoi(pc->ioapic, vector);
}

/* Intel SDM vol. 3A 10.11. Addresses that mean no local APIC are the guest's mistake, and go nowhere. */
static void send_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct pc *pc = opaque;
    if (address >> 20 != LAPIC_BASE >> 20) {
        return;
    }
    bool logical = address & BIT(2);
    const struct apic_msg msg = {
        .dest = apic_dest_from_8bit((uint8_t)(address >> 12), logical),
        .logical = logical,
        .level = data & BIT(15),
        .mode = data >> 8 & 7,
        .vector = (uint8_t)data,
    };
    lapic_bus_send(pc->lapic_bus, &msg);
}

static void hpet_replaces(void *opaque, bool replaced)
{
    struct pc *pc = opaque;
    i8254_set_replaced(pc->pit, replaced);
    mc146818_set_replaced(pc->rtc, replaced);
}

/* --- the parts --- */

static int add_device(struct pc *pc, struct device *device)
{
    pc->devices[pc->device_count++] = device;
    return 0;
}

static int make_pic(struct pc *pc, struct err *err)
{
    const struct i8259_config config = {pc->config.mem, {pic_intr_set, pc, 0}};
    pc->pic = i8259_new(&config, err);
    return pc->pic ? add_device(pc, i8259_device(pc->pic)) : -ENOMEM;
}

static int make_lapics(struct pc *pc, struct err *err)
{
    const struct lapic_bus_config bus = {pc->config.mem, pc->config.clock, lapic_eoi, pc};
    pc->lapic_bus = lapic_bus_new(&bus, err);
    if (!pc->lapic_bus) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < pc->config.cpus; i++) {
        struct lapic_config config = {
            .id = i,
            .bsp = i == 0,
            .virtual_wire = true,
            .x2apic = true,
            .phys_bits = pc->config.phys_bits,
            .tsc_hz = pc->config.tsc_hz,
            .cpu = pc->config.lapic_cpus[i],
        };
        pc->lapics[i] = lapic_new(pc->lapic_bus, &config, err);
        if (!pc->lapics[i]) {
            return -ENOMEM;
        }
        add_device(pc, lapic_device(pc->lapics[i]));
    }
    return 0;
}

static int make_ioapic(struct pc *pc, struct err *err)
{
    const struct ioapic_config config = {pc->config.mem, IOAPIC_DEFAULT_BASE, IOAPIC_ID, lapic_bus_send,
                                         pc->lapic_bus};
    pc->ioapic = ioapic_new(&config, err);
    return pc->ioapic ? add_device(pc, ioapic_device(pc->ioapic)) : -ENOMEM;
}

static int make_pit(struct pc *pc, struct err *err)
{
    const struct i8254_config config = {pc->config.mem, pc->config.clock, isa_irq(pc, IRQ_PIT)};
    pc->pit = i8254_new(&config, err);
    return pc->pit ? add_device(pc, i8254_device(pc->pit)) : -ENOMEM;
}

static int make_rtc(struct pc *pc, struct err *err)
{
    uint64_t low = mem_ram_low_bytes(pc->config.mem);
    const struct mc146818_config config = {
        .mem = pc->config.mem,
        .clock = pc->config.clock,
        .irq = isa_irq(pc, IRQ_RTC),
        .ram_low_bytes = low,
        .ram_high_bytes = mem_ram_bytes(pc->config.mem) - low,
    };
    pc->rtc = mc146818_new(&config, err);
    return pc->rtc ? add_device(pc, mc146818_device(pc->rtc)) : -ENOMEM;
}

static int make_hpet(struct pc *pc, struct err *err)
{
    const struct hpet_config config = {
        .mem = pc->config.mem,
        .clock = pc->config.clock,
        .base = HPET_DEFAULT_BASE,
        .route_mask = HPET_PINS,
        .pins = {ioapic_set_irq, pc->ioapic, 0},
        .legacy_irq0 = isa_irq(pc, IRQ_PIT),
        .legacy_irq8 = isa_irq(pc, IRQ_RTC),
        .legacy = hpet_replaces,
        .opaque = pc,
    };
    struct hpet *hpet = hpet_new(&config, err);
    return hpet ? add_device(pc, hpet_device(hpet)) : -ENOMEM;
}

static int make_acpi_pm(struct pc *pc, struct err *err)
{
    const struct acpi_pm_config config = {
        .mem = pc->config.mem,
        .clock = pc->config.clock,
        .sci = isa_irq(pc, IRQ_SCI),
        .base = ACPI_PM_DEFAULT,
        .reset_port_elsewhere = true,
        .s5_type = S5_TYPE,
        .power_off = pc->config.power_off,
        .reset = pc->config.reset,
        .opaque = pc->config.opaque,
    };
    pc->pm = acpi_pm_new(&config, err);
    return pc->pm ? add_device(pc, acpi_pm_device(pc->pm)) : -ENOMEM;
}

static int make_pci(struct pc *pc, struct err *err)
{
    static const struct mem_io_ops reset_port = {acpi_pm_reset_read, acpi_pm_reset_write};
    struct pci_host_config config = {
        .mem = pc->config.mem,
        .ecam_base = PCI_ECAM_BASE,
        .window_base = PCI_WINDOW_BASE,
        .window_size = PCI_WINDOW_SIZE,
        .msi = send_msi,
        .opaque = pc,
        .port_cf9 = &reset_port,
        .port_cf9_opaque = pc->pm,
    };
    for (unsigned i = 0; i < PCI_INTX_LINES; i++) {
        config.intx[i] = (struct irq_line){ioapic_set_irq, pc->ioapic, PCI_INTX_BASE + i};
        config.intx_number[i] = (uint8_t)(PCI_INTX_BASE + i);
    }
    pc->pci = pci_host_new(&config, err);
    return pc->pci ? add_device(pc, pci_host_device(pc->pci)) : -ENOMEM;
}

static void hotplug_sci(void *opaque, bool level)
{
    struct pc *pc = opaque;
    acpi_pm_set_events(pc->pm, level);
}

static int make_hotplug(struct pc *pc, struct err *err)
{
    const struct pci_hotplug_config config = {pc->config.mem, pc->pci, PCI_HOTPLUG_BASE, hotplug_sci, pc};
    pc->hotplug = pci_hotplug_new(&config, err);
    return pc->hotplug ? add_device(pc, pci_hotplug_device(pc->hotplug)) : -ENOMEM;
}

static int make_i8042(struct pc *pc, struct err *err)
{
    const struct i8042_config config = {
        .mem = pc->config.mem,
        .irq = isa_irq(pc, IRQ_KEYBOARD),
        .reset = pc->config.reset,
        .opaque = pc->config.opaque,
    };
    struct i8042 *kbc = i8042_new(&config, err);
    return kbc ? add_device(pc, i8042_device(kbc)) : -ENOMEM;
}

static int make_port92(struct pc *pc, struct err *err)
{
    const struct port92_config config = {
        .mem = pc->config.mem, .reset = pc->config.reset, .opaque = pc->config.opaque};
    struct port92 *port = port92_new(&config, err);
    return port ? add_device(pc, port92_device(port)) : -ENOMEM;
}

static int make_uart(struct pc *pc, struct err *err)
{
    const struct ns16550_config config = {
        .mem = pc->config.mem,
        .clock = pc->config.clock,
        .irq = isa_irq(pc, IRQ_SERIAL),
        .port = NS16550_COM1,
        .sink = pc->config.serial_sink,
        .room = pc->config.serial_room,
        .opaque = pc->config.opaque,
    };
    pc->uart = ns16550_new(&config, err);
    return pc->uart ? add_device(pc, ns16550_device(pc->uart)) : -ENOMEM;
}

static int make_exit_port(struct pc *pc, struct err *err)
{
    const struct exit_port_config config = {pc->config.mem, pc->config.exit, pc->config.opaque};
    struct exit_port *port = exit_port_new(&config, err);
    return port ? add_device(pc, exit_port_device(port)) : -ENOMEM;
}

static int make_pvpanic(struct pc *pc, struct err *err)
{
    const struct pvpanic_config config = {pc->config.mem, PC_PANIC_PORT, pc->config.panic, pc->config.opaque};
    struct pvpanic *panic = pvpanic_new(&config, err);
    return panic ? add_device(pc, pvpanic_device(panic)) : -ENOMEM;
}

static void on_watchdog(void *opaque)
{
    struct pc *pc = opaque;
    log_warning("the guest's watchdog ran out: the machine is reset");
    pc->config.watchdog(pc->config.opaque);
}

static int make_watchdog(struct pc *pc, struct err *err)
{
    const struct watchdog_config config = {pc->config.mem, pc->config.clock, on_watchdog, pc};
    struct watchdog *dog = watchdog_new(&config, err);
    return dog ? add_device(pc, watchdog_device(dog)) : -ENOMEM;
}

static int make_acpi_tables(struct pc *pc, struct err *err)
{
    const struct acpi_config config = {
        .cpus = pc->config.cpus,
        .lapic_base = LAPIC_BASE,
        .ioapic_base = IOAPIC_DEFAULT_BASE,
        .hpet_base = HPET_DEFAULT_BASE,
        .hpet_id = HPET_ID,
        .ioapic_id = IOAPIC_ID,
        .pm1a_event_port = ACPI_PM_DEFAULT,
        .pm1a_control_port = ACPI_PM_DEFAULT + 4,
        .pm_timer_port = ACPI_PM_DEFAULT + 8,
        .s5_sleep_type = S5_TYPE,
        .sci_irq = IRQ_SCI,
        .reset_port = ACPI_PM_RESET_PORT,
        .reset_value = ACPI_PM_RESET_VALUE,
        .serial_port = NS16550_COM1,
        .serial_irq = IRQ_SERIAL,
        .rtc_port = 0x70,
        .i8042 = true,
        .pci_ecam_base = PCI_ECAM_BASE,
        .pci_window_base = PCI_WINDOW_BASE,
        .pci_window_bytes = PCI_WINDOW_SIZE,
        .pci_slots = PCI_SLOTS,
        .pci_intx_base = PCI_INTX_BASE,
        .gpe0_port = PCI_HOTPLUG_BASE,
        .hotplug_port = PCI_HOTPLUG_BASE + PCI_HOTPLUG_REGS,
        .panic_port = PC_PANIC_PORT,
        .watchdog_port = WATCHDOG_BASE,
    };
    pc->acpi_bytes = acpi_build(&config, BOOT_FIRMWARE_BASE, pc->acpi, sizeof(pc->acpi));
    return pc->acpi_bytes ? 0 : err_set(err, -ENOSPC, "the ACPI tables don't fit");
}

/* Start-up order: a part may use those above it. Freed from the bottom up. */
static const struct {
    const char *name;
    int (*make)(struct pc *pc, struct err *err);
} parts[] = {
    {"interrupt controllers", make_pic},
    {"local APICs", make_lapics},
    {"I/O APIC", make_ioapic},
    {"interval timer", make_pit},
    {"real-time clock", make_rtc},
    {"event timer", make_hpet},
    {"power management", make_acpi_pm},
    {"PCI bus", make_pci},
    {"hot-plug chip", make_hotplug},
    {"keyboard controller", make_i8042},
    {"system control port", make_port92},
    {"serial port", make_uart},
    {"exit port", make_exit_port},
    {"panic port", make_pvpanic},
    {"watchdog", make_watchdog},
    {"ACPI tables", make_acpi_tables},
};

int pc_new(const struct pc_config *config, struct pc **ret_pc, struct err *err)
{
    if (config->cpus == 0 || config->cpus > PC_CPUS_MAX) {
        return err_set(err, -EINVAL, "a machine has 1 to %d vCPUs", PC_CPUS_MAX);
    }
    struct pc *pc = calloc(1, sizeof(*pc));
    if (!pc) {
        return err_sys(err, -ENOMEM, "cannot make the machine");
    }
    pc->config = *config;
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        int rc = parts[i].make(pc, err);
        if (rc < 0) {
            err_prefix(err, "cannot make the %s", parts[i].name);
            pc_free(pc);
            return rc;
        }
    }
    pc->config.lapic_cpus = NULL;
    pc_reset(pc);
    *ret_pc = pc;
    return 0;
}

void pc_free(struct pc *pc)
{
    if (!pc) {
        return;
    }
    while (pc->device_count > 0) {
        struct device *device = pc->devices[--pc->device_count];
        device->ops->free(device);
    }
    lapic_bus_free(pc->lapic_bus);
    free(pc);
}

void pc_reset(struct pc *pc)
{
    mem_lock(pc->config.mem);
    for (unsigned i = 0; i < pc->device_count; i++) {
        pc->devices[i]->ops->reset(pc->devices[i]);
    }
    mem_unlock(pc->config.mem);
    /* A machine with less than 1 MiB has no room for them, and no kernel that would look. */
    mem_write(pc->config.mem, GPA(BOOT_FIRMWARE_BASE), pc->acpi, pc->acpi_bytes);
}

struct pci_host *pc_pci(struct pc *pc)
{
    return pc->pci;
}

struct pci_hotplug *pc_hotplug(struct pc *pc)
{
    return pc->hotplug;
}

bool pc_add_device(struct pc *pc, struct device *device)
{
    return pc->device_count < PC_DEVICES_MAX && add_device(pc, device) == 0;
}

void pc_remove_device(struct pc *pc, struct device *device)
{
    for (unsigned i = 0; i < pc->device_count; i++) {
        if (pc->devices[i] == device) {
            memmove(pc->devices + i, pc->devices + i + 1, (--pc->device_count - i) * sizeof(pc->devices[0]));
            device->ops->free(device);
            return;
        }
    }
}

unsigned pc_devices(const struct pc *pc)
{
    return pc->device_count;
}

struct device *pc_device(struct pc *pc, unsigned index)
{
    return pc->devices[index];
}

struct lapic *pc_lapic(struct pc *pc, unsigned cpu)
{
    return pc->lapics[cpu];
}

int pc_extint_ack(struct pc *pc)
{
    return i8259_ack(pc->pic);
}

gpa_t pc_rsdp(const struct pc *pc)
{
    return GPA(BOOT_FIRMWARE_BASE);
}

size_t pc_serial_input(struct pc *pc, const uint8_t *bytes, size_t len)
{
    return ns16550_input(pc->uart, bytes, len);
}

void pc_serial_flush(struct pc *pc)
{
    ns16550_flush(pc->uart);
}

bool pc_power_button(struct pc *pc)
{
    return acpi_pm_power_button(pc->pm);
}

unsigned pc_describe(struct pc *pc, char *buf, unsigned size)
{
    unsigned used = 0;
    for (unsigned i = 0; i < pc->device_count && used < size; i++) {
        if (pc->devices[i]->ops->describe) {
            used += pc->devices[i]->ops->describe(pc->devices[i], buf + used, size - used);
        }
    }
    return MIN(used, size);
}
