#include "vm/acpi.h"

#include <string.h>

#include "base/util.h"
#include "dev/legacy/watchdog.h"
#include "dev/pci/hotplug.h"
#include "vm/aml.h"

#define TABLE_ALIGN 64 /* what the FACS needs; the others need less */
#define TABLES_MAX  6  /* in the XSDT */
#define DSDT_MAX    8192

#define PCI_ECAM_BUS (1u << 20) /* bytes for each bus */

#define SPACE_MEMORY 0 /* 5.2.3.2 */
#define SPACE_IO     1
#define ACCESS_BYTE  1
#define ACCESS_WORD  2
#define ACCESS_DWORD 3

/* FADT flags: 5.2.9, table 5.10. The power button is the fixed one (bit 4 clear). */
#define FADT_WBINVD     BIT(0)
#define FADT_PROC_C1    BIT(2)
#define FADT_NO_SLPBTN  BIT(5)
#define FADT_NO_FIX_RTC BIT(6)
#define FADT_TMR_32BIT  BIT(8)
#define FADT_RESET_REG  BIT(10)
/* IA-PC boot architecture flags: table 5.11 */
#define IAPC_LEGACY BIT(0)
#define IAPC_8042   BIT(1)
#define IAPC_NO_VGA BIT(2)

struct acpi_gas { /* 5.2.3.2 */
    uint8_t space, bits, offset, access;
    uint64_t address;
} __attribute__((packed));

struct acpi_rsdp { /* 5.2.5.3 */
    char signature[8];
    uint8_t checksum;
    char oem[6];
    uint8_t revision;
    uint32_t rsdt, length;
    uint64_t xsdt;
    uint8_t checksum_all, reserved[3];
} __attribute__((packed));

struct acpi_header { /* 5.2.6 */
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem[6], table[8];
    uint32_t oem_revision;
    char creator[4];
    uint32_t creator_revision;
} __attribute__((packed));

struct acpi_fadt { /* 5.2.9 */
    struct acpi_header header;
    uint32_t facs, dsdt;
    uint8_t reserved0, profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base, cst_cnt;
    uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t iapc_boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    struct acpi_gas reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor_version;
    uint64_t x_facs, x_dsdt;
    struct acpi_gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0, x_gpe1;
    struct acpi_gas sleep_control, sleep_status;
    uint64_t hypervisor;
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_fadt) == 276, "ACPI 6.4, 5.2.9");

struct acpi_facs { /* 5.2.10 */
    char signature[4];
    uint32_t length;
    uint8_t rest[56];
} __attribute__((packed));

struct acpi_hpet { /* IA-PC HPET specification 3.2.4 */
    struct acpi_header header;
    uint32_t block_id;
    struct acpi_gas base;
    uint8_t number;
    uint16_t min_tick;
    uint8_t protection;
} __attribute__((packed));

/* One run of acpi_build: a bump allocator that latches `failed`. */
struct builder {
    const struct acpi_config *config;
    uint32_t base;
    uint8_t *buf;
    size_t size, used;
    bool failed;
};

static uint8_t checksum(const void *p, size_t n)
{
    const uint8_t *bytes = p;
    uint8_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum = (uint8_t)(sum + bytes[i]);
    }
    return (uint8_t)-sum;
}

/* Copies one table and returns its guest-physical address. */
static uint32_t place(struct builder *b, const void *table, size_t bytes)
{
    size_t at = align_up(b->used, TABLE_ALIGN);
    if (b->failed || at > b->size || bytes > b->size - at) {
        b->failed = true;
        return 0;
    }
    memset(b->buf + b->used, 0, at - b->used);
    memcpy(b->buf + at, table, bytes);
    b->used = at + bytes;
    return b->base + (uint32_t)at;
}

/* table starts with a struct acpi_header. */
static uint32_t finish_table(struct builder *b, void *table, size_t bytes, const char *signature,
                             uint8_t revision)
{
    struct acpi_header header = {
        .length = (uint32_t)bytes, .revision = revision, .oem_revision = 1, .creator_revision = 1};
    memcpy(header.signature, signature, 4);
    memcpy(header.oem, "FONDA ", 6);
    memcpy(header.table, "FONDAPC ", 8);
    memcpy(header.creator, "FOND", 4);
    memcpy(table, &header, sizeof(header));
    header.checksum = checksum(table, bytes);
    memcpy(table, &header, sizeof(header));
    return place(b, table, bytes);
}

/* --- DSDT --- */

static void dsdt_device(struct aml *aml, const char *name, const char *id, unsigned uid)
{
    aml_device(aml, name);
    aml_name(aml, "_HID");
    if (strncmp(id, "PNP", 3) == 0) {
        aml_eisaid(aml, id);
    } else {
        aml_string(aml, id);
    }
    aml_name(aml, "_UID");
    aml_int(aml, uid);
}

static void dsdt_io_device(struct aml *aml, const char *name, const char *id, uint16_t port, uint8_t bytes,
                           unsigned irq)
{
    dsdt_device(aml, name, id, 0);
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_resource_io(aml, port, bytes);
    if (irq) {
        aml_resource_irq(aml, irq);
    }
    aml_resources_end(aml);
    aml_close(aml);
}

static void dsdt_keyboard(struct aml *aml)
{
    dsdt_device(aml, "KBD_", "PNP0303", 0);
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_resource_io(aml, 0x60, 1);
    aml_resource_io(aml, 0x64, 1);
    aml_resource_irq(aml, 1);
    aml_resources_end(aml);
    aml_close(aml);
}

/* The device that Linux's pvpanic driver binds to; RDPT and WRPT are for guests that go through AML. */
static void dsdt_panic(struct aml *aml, uint16_t port)
{
    dsdt_device(aml, "PEVT", "QEMU0001", 0);
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_resource_io(aml, port, 1);
    aml_resources_end(aml);
    aml_io_region(aml, "PEOR", port, 1);
    aml_byte_field(aml, "PEOR", "PEPT");
    aml_method(aml, "RDPT", 0);
    aml_return_name(aml, "PEPT");
    aml_close(aml);
    aml_method(aml, "WRPT", 1);
    aml_store_arg0(aml, "PEPT");
    aml_close(aml);
    aml_close(aml);
}

static void dsdt_cpus(struct aml *aml, unsigned cpus)
{
    for (unsigned i = 0; i < cpus; i++) {
        const char digits[] = "0123456789ABCDEF";
        const char name[] = {'C', 'P', digits[i >> 4 & 15], digits[i & 15], '\0'};
        dsdt_device(aml, name, "ACPI0007", i);
        aml_close(aml);
    }
}

static void slot_name(unsigned slot, char name[5])
{
    const char digits[] = "0123456789ABCDEF";
    const char made[5] = {'S', '0', digits[slot >> 4 & 15], digits[slot & 15], '\0'};
    memcpy(name, made, sizeof(made));
}

/* Each slot as a device that can be ejected, and the methods that tell the guest what changed (5.6.6: 1 is a
 * device check, 3 an ejection request). */
static void dsdt_slots(struct aml *aml, const struct acpi_config *config)
{
    static const char *const registers[] = {"PCUP", "PCDN", "PCEJ"};
    char name[5];
    aml_io_region(aml, "HPOR", config->hotplug_port, 12);
    aml_dword_fields(aml, "HPOR", registers, ARRAY_SIZE(registers));
    for (unsigned slot = 1; slot < config->pci_slots; slot++) {
        slot_name(slot, name);
        aml_device(aml, name);
        aml_name(aml, "_ADR");
        aml_int(aml, (uint64_t)slot << 16);
        aml_name(aml, "_SUN");
        aml_int(aml, slot);
        aml_method(aml, "_EJ0", 1);
        aml_store(aml);
        aml_int(aml, BIT(slot));
        aml_ref(aml, "PCEJ");
        aml_close(aml);
        aml_close(aml);
    }
    aml_method(aml, "PCNT", 2);
    for (unsigned slot = 1; slot < config->pci_slots; slot++) {
        slot_name(slot, name);
        aml_if_arg0_bits(aml, BIT(slot));
        aml_notify(aml);
        aml_ref(aml, name);
        aml_arg(aml, 1);
        aml_close(aml);
    }
    aml_close(aml);
}

/* Reads a register, clears what it said, and tells the slots. */
static void dsdt_tell(struct aml *aml, const char *reg, unsigned value)
{
    aml_store(aml);
    aml_ref(aml, reg);
    aml_local(aml, 0);
    aml_store(aml);
    aml_local(aml, 0);
    aml_ref(aml, reg);
    aml_ref(aml, "\\_SB_.PCI0.PCNT");
    aml_local(aml, 0);
    aml_int(aml, value);
}

static void dsdt_events(struct aml *aml)
{
    const char name[] = {'_', 'E', '0', '0' + PCI_HOTPLUG_GPE, '\0'};
    aml_scope(aml, "\\_GPE");
    aml_method(aml, name, 0);
    dsdt_tell(aml, "\\_SB_.PCI0.PCUP", 1);
    dsdt_tell(aml, "\\_SB_.PCI0.PCDN", 3);
    aml_close(aml);
    aml_close(aml);
}

/* The configuration window as a motherboard resource, where guests look before they trust the MCFG; and the
 * bridge with what it decodes and where its slots' INTA lines go (6.2.13). */
static void dsdt_pci(struct aml *aml, const struct acpi_config *config)
{
    dsdt_device(aml, "MCFG", "PNP0C02", 0);
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_resource_mem32(aml, config->pci_ecam_base, PCI_ECAM_BUS);
    aml_resources_end(aml);
    aml_close(aml);
    dsdt_device(aml, "PCI0", "PNP0A08", 0);
    aml_name(aml, "_CID");
    aml_eisaid(aml, "PNP0A03");
    aml_name(aml, "_SEG");
    aml_int(aml, 0);
    aml_name(aml, "_BBN");
    aml_int(aml, 0);
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_resource_bus(aml, 0, 0);
    aml_resource_io(aml, 0xcf8, 8);
    aml_resource_window32(aml, config->pci_window_base, config->pci_window_bytes);
    aml_resources_end(aml);
    aml_name(aml, "_PRT");
    aml_package(aml, (uint8_t)(config->pci_slots - 1));
    for (unsigned slot = 1; slot < config->pci_slots; slot++) {
        aml_package(aml, 4);
        aml_int(aml, (uint64_t)slot << 16 | 0xffff);
        aml_int(aml, 0); /* INTA */
        aml_int(aml, 0); /* a global interrupt, not a link device */
        aml_int(aml, config->pci_intx_base + slot % 4);
        aml_close(aml);
    }
    aml_close(aml);
    if (config->hotplug_port) {
        dsdt_slots(aml, config);
    }
    aml_close(aml);
}

static uint32_t build_dsdt(struct builder *b)
{
    const struct acpi_config *config = b->config;
    uint8_t table[DSDT_MAX];
    struct aml aml;
    aml_init(&aml, table + sizeof(struct acpi_header), sizeof(table) - sizeof(struct acpi_header));
    aml_name(&aml, "\\_S5_");
    aml_package(&aml, 4);
    aml_int(&aml, config->s5_sleep_type);
    aml_int(&aml, config->s5_sleep_type);
    aml_int(&aml, 0);
    aml_int(&aml, 0);
    aml_close(&aml);
    aml_scope(&aml, "_SB_");
    dsdt_cpus(&aml, config->cpus);
    if (config->serial_port) {
        dsdt_io_device(&aml, "COM1", "PNP0501", config->serial_port, 8, config->serial_irq);
    }
    if (config->rtc_port) {
        dsdt_io_device(&aml, "RTC_", "PNP0B00", config->rtc_port, 2, 8);
    }
    if (config->i8042) {
        dsdt_keyboard(&aml);
    }
    if (config->panic_port) {
        dsdt_panic(&aml, config->panic_port);
    }
    if (config->hpet_base) {
        dsdt_device(&aml, "HPET", "PNP0103", 0);
        aml_name(&aml, "_CRS");
        aml_resources_begin(&aml);
        aml_resource_mem32(&aml, config->hpet_base, 1024);
        aml_resources_end(&aml);
        aml_close(&aml);
    }
    aml_close(&aml);
    if (config->pci_ecam_base) { /* a scope of its own, as a scope's length is limited */
        aml_scope(&aml, "_SB_");
        dsdt_pci(&aml, config);
        aml_close(&aml);
    }
    if (config->hotplug_port) {
        dsdt_events(&aml);
    }
    size_t bytes = aml_finish(&aml);
    if (bytes == 0) {
        b->failed = true;
        return 0;
    }
    return finish_table(b, table, sizeof(struct acpi_header) + bytes, "DSDT", 2);
}

/* --- the others --- */

static struct acpi_gas io_gas(uint16_t port, uint8_t bytes)
{
    const uint8_t access = bytes == 1 ? ACCESS_BYTE : bytes == 2 ? ACCESS_WORD : ACCESS_DWORD;
    return (struct acpi_gas){SPACE_IO, (uint8_t)(bytes * 8), 0, access, port};
}

static uint32_t build_fadt(struct builder *b)
{
    const struct acpi_config *config = b->config;
    struct acpi_facs facs = {.signature = {'F', 'A', 'C', 'S'}, .length = sizeof(facs)};
    facs.rest[24] = 2; /* version, at offset 32 */
    struct acpi_fadt fadt = {
        .facs = place(b, &facs, sizeof(facs)),
        .dsdt = build_dsdt(b),
        .sci_int = config->sci_irq,
        .pm1a_evt = config->pm1a_event_port,
        .pm1a_cnt = config->pm1a_control_port,
        .pm_tmr = config->pm_timer_port,
        .pm1_evt_len = 4,
        .pm1_cnt_len = 2,
        .pm_tmr_len = config->pm_timer_port ? 4 : 0,
        .p_lvl2_lat = 0xffff, /* beyond 100 us: no C2; beyond 1000 us: no C3 */
        .p_lvl3_lat = 0xffff,
        .century = 0x32,
        .iapc_boot_arch = (uint16_t)(IAPC_LEGACY | IAPC_NO_VGA | (config->i8042 ? IAPC_8042 : 0)),
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLPBTN | FADT_NO_FIX_RTC |
                 (config->pm_timer_32bit ? FADT_TMR_32BIT : 0) | (config->reset_port ? FADT_RESET_REG : 0),
        .reset_value = config->reset_value,
        .minor_version = 4,
        .x_pm1a_evt = io_gas(config->pm1a_event_port, 4),
        .x_pm1a_cnt = io_gas(config->pm1a_control_port, 2),
    };
    if (config->gpe0_port) { /* half of it status, half enable: 4.8.4.1 */
        fadt.gpe0 = config->gpe0_port;
        fadt.gpe0_len = 4;
        fadt.x_gpe0 = io_gas(config->gpe0_port, 4);
    }
    if (config->reset_port) {
        fadt.reset_reg = io_gas(config->reset_port, 1);
    }
    if (config->pm_timer_port) {
        fadt.x_pm_tmr = io_gas(config->pm_timer_port, 4);
    }
    fadt.x_dsdt = fadt.dsdt;
    return finish_table(b, &fadt, sizeof(fadt), "FACP", 6);
}

static uint32_t build_madt(struct builder *b)
{
    const struct acpi_config *config = b->config;
    uint8_t table[sizeof(struct acpi_header) + 8 + ACPI_CPUS_MAX * 8ul + 12 + 10 + 10 + 6];
    size_t at = sizeof(struct acpi_header);
    const uint32_t fixed[2] = {config->lapic_base, 1 /* PCAT_COMPAT: there are 8259s too */};
    memcpy(table + at, fixed, sizeof(fixed));
    at += sizeof(fixed);
    for (unsigned i = 0; i < config->cpus; i++) {
        const uint8_t lapic[8] = {0, 8, (uint8_t)i, (uint8_t)i, 1 /* enabled */, 0, 0, 0}; /* 5.2.12.2 */
        memcpy(table + at, lapic, sizeof(lapic));
        at += sizeof(lapic);
    }
    uint8_t ioapic[12] = {1, 12, config->ioapic_id}; /* 5.2.12.3; global interrupts start at 0 */
    memcpy(ioapic + 4, &config->ioapic_base, 4);
    memcpy(table + at, ioapic, sizeof(ioapic));
    at += sizeof(ioapic);
    /* 5.2.12.5: the PIT's IRQ 0 arrives at pin 2; the SCI is level-triggered, active high. */
    const uint8_t overrides[2][10] = {{2, 10, 0, 0, 2, 0, 0, 0, 0, 0},
                                      {2, 10, 0, config->sci_irq, config->sci_irq, 0, 0, 0, 0x0d, 0}};
    memcpy(table + at, overrides, sizeof(overrides));
    at += sizeof(overrides);
    const uint8_t nmi[6] = {4, 6, 0xff, 0, 0, 1}; /* 5.2.12.7: all processors, LINT1 */
    memcpy(table + at, nmi, sizeof(nmi));
    at += sizeof(nmi);
    return finish_table(b, table, at, "APIC", 5);
}

static uint32_t build_hpet(struct builder *b)
{
    struct acpi_hpet hpet = {.block_id = b->config->hpet_id,
                             .base = {SPACE_MEMORY, 64, 0, 0, b->config->hpet_base},
                             .min_tick = 100};
    return finish_table(b, &hpet, sizeof(hpet), "HPET", 1);
}

static uint32_t build_mcfg(struct builder *b)
{
    struct { /* PCI Firmware Specification 3.0, 4.1.2 */
        struct acpi_header header;
        uint64_t reserved0;
        uint64_t base;
        uint16_t segment;
        uint8_t first_bus, last_bus;
        uint32_t reserved1;
    } __attribute__((packed)) mcfg = {.base = b->config->pci_ecam_base};
    return finish_table(b, &mcfg, sizeof(mcfg), "MCFG", 1);
}

/* One instruction for each action of the guest's ("Hardware Watchdog Timers Design Specification" 1.01). */
#define WDAT_ENABLED BIT(0)
#define WDAT_NO_PCI  0xffu
#define WDAT_ACTIONS 10u
enum { WDAT_READ_VALUE, WDAT_READ_COUNT, WDAT_WRITE_VALUE, WDAT_WRITE_COUNT };

static uint32_t build_wdat(struct builder *b)
{
    static const struct {
        uint8_t action, instruction, reg;
        uint32_t value, mask;
    } actions[WDAT_ACTIONS] = {
        {1, WDAT_WRITE_VALUE, WATCHDOG_REMAINS, 1, 1},                 /* restart the countdown */
        {4, WDAT_READ_COUNT, WATCHDOG_REMAINS, 0, WATCHDOG_COUNT_MAX}, /* what remains */
        {5, WDAT_READ_COUNT, WATCHDOG_COUNT, 0, WATCHDOG_COUNT_MAX},   /* the countdown's length */
        {6, WDAT_WRITE_COUNT, WATCHDOG_COUNT, 0, WATCHDOG_COUNT_MAX},  /* set it */
        {8, WDAT_READ_VALUE, WATCHDOG_CONTROL, 1, 1},                  /* is it running? */
        {9, WDAT_WRITE_VALUE, WATCHDOG_CONTROL, 1, 1},                 /* start */
        {10, WDAT_READ_VALUE, WATCHDOG_CONTROL, 0, 1},                 /* is it stopped? */
        {11, WDAT_WRITE_VALUE, WATCHDOG_CONTROL, 0, 1},                /* stop */
        {32, WDAT_READ_VALUE, WATCHDOG_STATUS, 1, 1},                  /* has it fired? */
        {33, WDAT_WRITE_VALUE, WATCHDOG_STATUS, 0, 1},                 /* forget that */
    };
    struct {
        struct acpi_header header;
        uint32_t header_bytes;
        uint16_t pci_segment;
        uint8_t pci_bus, pci_device, pci_function, reserved0[3];
        uint32_t period_ms, count_max, count_min;
        uint8_t flags, reserved1[3];
        uint32_t entries;
        struct {
            uint8_t action, instruction;
            uint16_t reserved;
            struct acpi_gas reg;
            uint32_t value, mask;
        } __attribute__((packed)) entry[WDAT_ACTIONS];
    } __attribute__((packed)) wdat = {
        .header_bytes = 32,
        .pci_segment = WDAT_NO_PCI,
        .pci_bus = WDAT_NO_PCI,
        .pci_device = WDAT_NO_PCI,
        .pci_function = WDAT_NO_PCI,
        .period_ms = WATCHDOG_PERIOD_MS,
        .count_max = WATCHDOG_COUNT_MAX,
        .count_min = 1,
        .flags = WDAT_ENABLED,
        .entries = WDAT_ACTIONS,
    };
    for (unsigned i = 0; i < WDAT_ACTIONS; i++) {
        wdat.entry[i].action = actions[i].action;
        wdat.entry[i].instruction = actions[i].instruction;
        wdat.entry[i].reg = io_gas((uint16_t)(b->config->watchdog_port + actions[i].reg), 4);
        wdat.entry[i].value = actions[i].value;
        wdat.entry[i].mask = actions[i].mask;
    }
    return finish_table(b, &wdat, sizeof(wdat), "WDAT", 1);
}

size_t acpi_build(const struct acpi_config *config, uint32_t base, uint8_t *buf, size_t size)
{
    struct builder b = {.config = config, .base = base, .buf = buf, .size = size};
    struct acpi_rsdp rsdp = {.signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '},
                             .oem = {'F', 'O', 'N', 'D', 'A', ' '},
                             .revision = 2,
                             .length = sizeof(rsdp)};
    if (config->cpus > ACPI_CPUS_MAX || base % TABLE_ALIGN != 0 || size < sizeof(rsdp)) {
        return 0;
    }
    b.used = sizeof(rsdp);
    uint32_t tables[TABLES_MAX];
    unsigned count = 0;
    tables[count++] = build_fadt(&b);
    tables[count++] = build_madt(&b);
    if (config->hpet_base) {
        tables[count++] = build_hpet(&b);
    }
    if (config->pci_ecam_base) {
        tables[count++] = build_mcfg(&b);
    }
    if (config->watchdog_port) {
        tables[count++] = build_wdat(&b);
    }
    uint8_t rsdt[sizeof(struct acpi_header) + TABLES_MAX * 4],
        xsdt[sizeof(struct acpi_header) + TABLES_MAX * 8ul];
    for (unsigned i = 0; i < count; i++) {
        uint64_t wide = tables[i];
        memcpy(rsdt + sizeof(struct acpi_header) + i * 4ul, &tables[i], 4);
        memcpy(xsdt + sizeof(struct acpi_header) + i * 8ul, &wide, 8);
    }
    rsdp.rsdt = finish_table(&b, rsdt, sizeof(struct acpi_header) + count * 4ul, "RSDT", 1);
    rsdp.xsdt = finish_table(&b, xsdt, sizeof(struct acpi_header) + count * 8ul, "XSDT", 1);
    rsdp.checksum = checksum(&rsdp, 20); /* 5.2.5.3: the first 20 bytes */
    rsdp.checksum_all = checksum(&rsdp, sizeof(rsdp));
    if (b.failed) {
        return 0;
    }
    memcpy(buf, &rsdp, sizeof(rsdp));
    return b.used;
}
