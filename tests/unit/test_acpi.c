/*
 * ACPI tables: checksums, pointers, sizes; and, where ACPICA's iasl is installed, its judgement of the AML.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "vm/acpi.h"
#include "vm/aml.h"

#define BASE 0xe0000u

static const struct acpi_config full = {
    .cpus = 32,
    .lapic_base = 0xfee00000,
    .ioapic_base = 0xfec00000,
    .hpet_base = 0xfed00000,
    .hpet_id = 0x8086a201,
    .pm1a_event_port = 0x600,
    .pm1a_control_port = 0x604,
    .pm_timer_port = 0x608,
    .pm_timer_32bit = true,
    .s5_sleep_type = 5,
    .sci_irq = 9,
    .reset_port = 0xcf9,
    .reset_value = 6,
    .serial_port = 0x3f8,
    .serial_irq = 4,
    .rtc_port = 0x70,
    .i8042 = true,
    .panic_port = 0x505,
    .watchdog_port = 0x620,
    .pci_ecam_base = 0xc0000000,
    .pci_window_base = 0xd0000000,
    .pci_window_bytes = 0x10000000,
    .pci_slots = 32,
    .pci_intx_base = 16,
    .gpe0_port = 0x640,
    .hotplug_port = 0x644,
};

static uint8_t area[0x8000];

static uint32_t at32(uint32_t gpa)
{
    uint32_t v;
    assert_in_range(gpa, BASE, BASE + sizeof(area) - 4);
    memcpy(&v, area + (gpa - BASE), 4);
    return v;
}

static uint8_t sum(uint32_t gpa, uint32_t bytes)
{
    uint8_t v = 0;
    assert_in_range(gpa, BASE, BASE + sizeof(area) - bytes);
    for (uint32_t i = 0; i < bytes; i++) {
        v = (uint8_t)(v + area[gpa - BASE + i]);
    }
    return v;
}

/* A table of the XSDT by its signature, its checksum verified; 0: not there. */
static uint32_t find(const char *signature)
{
    uint32_t xsdt = at32(BASE + 24), rsdt = at32(BASE + 16);
    assert_memory_equal(area + (xsdt - BASE), "XSDT", 4);
    assert_int_equal(sum(xsdt, at32(xsdt + 4)), 0);
    assert_int_equal(sum(rsdt, at32(rsdt + 4)), 0);
    for (uint32_t i = 0; i < (at32(xsdt + 4) - 36) / 8; i++) {
        uint32_t table = at32(xsdt + 36 + i * 8);
        assert_int_equal(table, at32(rsdt + 36 + i * 4));
        assert_int_equal(sum(table, at32(table + 4)), 0);
        if (memcmp(area + (table - BASE), signature, 4) == 0) {
            return table;
        }
    }
    return 0;
}

static void test_tables(void **state)
{
    size_t used = acpi_build(&full, BASE, area, sizeof(area));
    assert_in_range(used, 1000, sizeof(area));
    assert_memory_equal(area, "RSD PTR ", 8);
    assert_int_equal(sum(BASE, 20), 0);
    assert_int_equal(sum(BASE, 36), 0);
    uint32_t fadt = find("FACP");
    assert_int_not_equal(fadt, 0);
    uint32_t dsdt = at32(fadt + 40), facs = at32(fadt + 36);
    assert_int_equal(sum(dsdt, at32(dsdt + 4)), 0);
    assert_int_equal(at32(fadt + 140), dsdt); /* X_DSDT */
    assert_int_equal(facs % 64, 0);
    assert_memory_equal(area + (facs - BASE), "FACS", 4);
    assert_int_equal(at32(fadt + 56), 0x600);
    assert_int_equal(at32(fadt + 64), 0x604);
    assert_int_equal(at32(fadt + 76), 0x608);
    assert_int_equal(at32(fadt + 112) & BIT(10), BIT(10)); /* reset register */
    assert_int_equal(at32(fadt + 112) & BIT(20), 0);       /* not hardware-reduced */
    assert_int_equal(at32(fadt + 120), 0xcf9);
    assert_int_equal(area[fadt - BASE + 128], 6);
}

static void test_madt(void **state)
{
    assert_int_not_equal(acpi_build(&full, BASE, area, sizeof(area)), 0);
    uint32_t madt = find("APIC");
    assert_int_not_equal(madt, 0);
    assert_int_equal(at32(madt + 36), 0xfee00000);
    unsigned counts[8] = {0};
    for (uint32_t at = madt + 44; at < madt + at32(madt + 4);) {
        unsigned type = area[at - BASE];
        assert_in_range(type, 0, 7);
        counts[type]++;
        if (type == 1) {
            assert_int_equal(at32(at + 4), 0xfec00000);
        }
        at += area[at - BASE + 1];
    }
    assert_int_equal(counts[0], 32);
    assert_int_equal(counts[1], 1);
    assert_int_equal(counts[2], 2);
    assert_int_equal(counts[4], 1);
}

/* Every action is there once, within the watchdog's ports. */
static void test_wdat(void **state)
{
    assert_int_not_equal(acpi_build(&full, BASE, area, sizeof(area)), 0);
    uint32_t wdat = find("WDAT"), entries = wdat + 36 + 32;
    assert_int_not_equal(wdat, 0);
    assert_int_equal(at32(wdat + 36), 32);
    assert_int_equal(at32(wdat + 48), 100); /* milliseconds */
    assert_int_equal(area[wdat + 60 - BASE] & 1, 1);
    assert_int_equal(at32(wdat + 4), 36 + 32 + at32(wdat + 64) * 24);
    uint64_t seen = 0;
    for (uint32_t at = entries; at < wdat + at32(wdat + 4); at += 24) {
        unsigned action = area[at - BASE];
        assert_in_range(action, 1, 33);
        assert_false(seen & BIT64(action));
        seen |= BIT64(action);
        assert_int_equal(area[at + 4 - BASE], 1); /* an I/O port */
        assert_in_range(at32(at + 8), 0x620, 0x62c);
    }
    assert_int_equal(seen, BIT64(1) | BIT64(4) | BIT64(5) | BIT64(6) | BIT64(8) | BIT64(9) | BIT64(10) |
                               BIT64(11) | BIT64(32) | BIT64(33));
}

static void test_small(void **state)
{
    struct acpi_config config = full;
    config.hpet_base = 0;
    config.panic_port = 0;
    config.watchdog_port = 0;
    config.i8042 = false;
    config.cpus = 1;
    size_t used = acpi_build(&config, BASE, area, sizeof(area));
    assert_int_not_equal(used, 0);
    assert_int_equal(find("HPET"), 0);
    /* No room, at whatever table it runs out: an answer, and nothing behind the buffer is touched. */
    for (size_t size = 0; size < used; size++) {
        area[size] = 0xa5;
        assert_int_equal(acpi_build(&config, BASE, area, size), 0);
        assert_int_equal(area[size], 0xa5);
    }
    config.cpus = 33;
    assert_int_equal(acpi_build(&config, BASE, area, sizeof(area)), 0);
}

static void test_aml_mistakes(void **state)
{
    uint8_t buf[8192];
    struct aml aml;
    aml_init(&aml, buf, sizeof(buf));
    aml_scope(&aml, "_SB_"); /* never closed */
    assert_int_equal(aml_finish(&aml), 0);
    aml_close(&aml);
    assert_int_equal(aml_finish(&aml), 7);
    aml_close(&aml);
    assert_int_equal(aml_finish(&aml), 0);
    aml_init(&aml, buf, sizeof(buf));
    for (int i = 0; i <= AML_DEPTH_MAX; i++) {
        aml_scope(&aml, "_SB_");
    }
    assert_true(aml.failed);
    aml_init(&aml, buf, sizeof(buf));
    aml_name(&aml, "TOOLONG");
    assert_true(aml.failed);
    aml_init(&aml, buf, sizeof(buf));
    aml_scope(&aml, "_SB_");
    for (int i = 0; i < 1200; i++) {
        aml_int(&aml, 0x12345678);
    }
    aml_close(&aml); /* longer than a two-byte package length says */
    assert_true(aml.failed);
    aml_init(&aml, buf, sizeof(buf));
    aml_eisaid(&aml, "PNP0501");
    assert_memory_equal(buf, "\x0c\x41\xd0\x05\x01", 5);
}

/* iasl disassembles the DSDT and compiles what it got, without an error or warning. */
static void test_iasl(void **state)
{
    if (system("command -v iasl >/dev/null 2>&1") != 0) {
        skip();
    }
    assert_int_not_equal(acpi_build(&full, BASE, area, sizeof(area)), 0);
    uint32_t dsdt = at32(find("FACP") + 40);
    char dir[] = "/tmp/fonda-test-acpi-XXXXXX", path[64], command[400];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/dsdt.aml", dir);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(area + (dsdt - BASE), at32(dsdt + 4), 1, file), 1);
    fclose(file);
    snprintf(command, sizeof(command),
             "cd %s && iasl -d dsdt.aml >log 2>&1 && iasl -p again dsdt.dsl >>log 2>&1 && "
             "grep -q ' 0 Errors, 0 Warnings' log && grep -qi 'EISAID (\"PNP0501\")' dsdt.dsl",
             dir);
    int rc = system(command);
    snprintf(command, sizeof(command), "test %d = 0 || cat %s/log; rm -rf %s", rc, dir, dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(rc, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables), cmocka_unit_test(test_madt),         cmocka_unit_test(test_small),
        cmocka_unit_test(test_wdat),   cmocka_unit_test(test_aml_mistakes), cmocka_unit_test(test_iasl),
    };
    return cmocka_run_group_tests_name("acpi", tests, NULL, NULL);
}
