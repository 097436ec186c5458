/* dev/pci/hotplug: events, asking and ejecting, and a guest that writes what it likes. */
#include "base/state.h"
#include "dev/pci/hotplug.h"
#include "tests/unit/vdrv.h"
#include <errno.h>

#define BASE PCI_HOTPLUG_BASE

static struct vdrv drv;
static struct pci_hotplug *chip;
static struct pci_dev devs[3];
static bool sci;
static uint32_t gone;

static void on_sci(void *opaque, bool level)
{
    sci = level;
}

static void on_ejected(void *opaque, unsigned slot)
{
    assert_false(gone & BIT(slot));
    gone |= BIT(slot);
}

static void attach(unsigned i, unsigned slot)
{
    static const struct pci_id id = {0x1af4, 0x1042, 0x1af4, 2, 1, 0x018000};
    static const struct mem_io_ops no_ops = {0};
    pci_dev_init(&devs[i], "test", &id);
    pci_dev_add_bar(&devs[i], 0, 0x8000, &no_ops, NULL);
    assert_int_equal(pci_dev_add_msix(&devs[i], 0, 0x4000, 0x5000, 3), 0);
    assert_int_equal(pci_host_attach_at(drv.host, &devs[i], slot, NULL), 0);
}

static int setup(void **state)
{
    vdrv_open_bus(&drv);
    const struct pci_hotplug_config config = {drv.mem, drv.host, BASE, on_sci, NULL};
    chip = pci_hotplug_new(&config, NULL);
    assert_non_null(chip);
    pci_hotplug_set_owner(chip, on_ejected, NULL);
    gone = 0;
    sci = false;
    for (unsigned i = 0; i < ARRAY_SIZE(devs); i++) {
        attach(i, i + 1);
    }
    return 0;
}

static int teardown(void **state)
{
    char text[512];
    struct device *device = pci_hotplug_device(chip);
    assert_true(device->ops->describe(device, text, sizeof(text)) < sizeof(text));
    device->ops->free(device);
    for (unsigned i = 0; i < ARRAY_SIZE(devs); i++) {
        pci_dev_detach(&devs[i]);
    }
    vdrv_close(&drv);
    return 0;
}

static uint32_t in(unsigned offset, unsigned size)
{
    return mem_pio_read(drv.mem, (uint16_t)(BASE + offset), size);
}

static void out(unsigned offset, unsigned size, uint32_t value)
{
    mem_pio_write(drv.mem, (uint16_t)(BASE + offset), size, value);
}

static void test_plug(void **state)
{
    pci_hotplug_changed(chip, 2);
    assert_int_equal(in(0, 2), BIT(PCI_HOTPLUG_GPE));
    assert_false(sci); /* not enabled */
    out(2, 1, 0xff);
    assert_true(sci);
    assert_int_equal(in(2, 2), BIT(PCI_HOTPLUG_GPE)); /* the only event there is */
    out(0, 1, BIT(PCI_HOTPLUG_GPE));
    assert_false(sci);
    assert_int_equal(in(4, 4), BIT(2));
    pci_hotplug_changed(chip, 5);
    out(4, 4, BIT(2));
    assert_int_equal(in(4, 4), BIT(5));
    assert_true(sci);
}

static void test_eject(void **state)
{
    out(12, 4, UINT32_MAX); /* nobody asked */
    assert_int_equal(gone, 0);
    assert_int_equal(vdrv_config(&drv, 1, 0, 4), 0x10421af4);
    pci_hotplug_ask(chip, 1);
    assert_true(pci_hotplug_asked(chip, 1));
    assert_int_equal(in(8, 4), BIT(1));
    out(12, 1, 0xff); /* not whole */
    out(12, 2, 0xffff);
    assert_int_equal(gone, 0);
    out(12, 4, BIT(1) | BIT(2) | BIT(31));
    assert_int_equal(gone, BIT(1));
    assert_false(pci_hotplug_asked(chip, 1));
    assert_int_equal(in(8, 4), 0);
    assert_int_equal(in(12, 4), 0);
    assert_true(vdrv_config(&drv, 1, 0, 4) == UINT32_MAX); /* at once */
    assert_int_equal(vdrv_config(&drv, 2, 0, 4), 0x10421af4);
    assert_int_equal(pci_host_free_slot(drv.host), 1);
    gone = 0;
    out(12, 4, BIT(1)); /* twice */
    assert_int_equal(gone, 0);
    attach(0, 1);
    assert_int_equal(pci_host_attach_at(drv.host, &devs[0], 1, NULL), -EEXIST);
    assert_int_equal(pci_host_attach_at(drv.host, &devs[0], 32, NULL), -ENOSPC);
    out(12, 4, BIT(1)); /* the new one was not asked for */
    assert_int_equal(gone, 0);
    pci_hotplug_ask(chip, 0);
    out(12, 4, 1); /* the bridge stays whatever anybody says */
    assert_int_equal(vdrv_config(&drv, 0, 0, 2), 0x1b36);
}

/* What a device does when it has left the bus goes nowhere. */
static void test_gone_device(void **state)
{
    pci_hotplug_ask(chip, 3);
    out(12, 4, BIT(3));
    pci_intx_set(&devs[2], true);
    pci_put16(&devs[2], devs[2].msix_cap + 2u, 0x8002);
    devs[2].msix[0].word[3] = 0;
    pci_msix_notify(&devs[2], 0);
    pci_intx_set(&devs[2], false);
}

static void test_reset(void **state)
{
    struct device *device = pci_hotplug_device(chip);
    out(2, 2, 0xffff);
    pci_hotplug_ask(chip, 2);
    pci_hotplug_changed(chip, 3);
    device->ops->reset(device);
    assert_int_equal(gone, BIT(2)); /* what was asked for goes with a reset */
    assert_false(sci);
    assert_int_equal(in(0, 4), 0);
    assert_int_equal(in(4, 4), 0);
    assert_true(vdrv_config(&drv, 2, 0, 4) == UINT32_MAX);
}

static void save(struct state *s)
{
    struct device *device = pci_hotplug_device(chip);
    state_begin(s, "pci-hotplug.0", 1);
    device->ops->state(device, s);
    state_end(s);
}

static void test_state(void **state)
{
    size_t len;
    struct device *device = pci_hotplug_device(chip);
    struct state *writer = state_new_writer(), *reader;
    out(2, 2, 0xffff);
    pci_hotplug_ask(chip, 2);
    save(writer);
    const void *bytes = state_encoded(writer, &len);
    assert_int_equal(state_new_reader(bytes, len, &reader, NULL), 0);
    pci_hotplug_forget(chip, 2);
    device->ops->reset(device);
    assert_false(sci);
    save(reader);
    assert_int_equal(state_finish(reader, NULL), 0);
    assert_true(sci);
    assert_true(pci_hotplug_asked(chip, 2));
    out(12, 4, BIT(2));
    assert_int_equal(gone, BIT(2));
    state_free(reader);
    state_free(writer);
}

/* Whatever a guest does: what was not asked for stays. */
static void test_hammer(void **state)
{
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 200000; i++) {
        uint64_t r = unit_random(&rng);
        unsigned slot = 1 + (unsigned)(r >> 32) % 3;
        if ((r & 255) == 1) {
            pci_hotplug_ask(chip, slot);
        } else if ((r & 255) == 2) {
            pci_hotplug_changed(chip, slot);
        } else if (r & 1) {
            bool asked = pci_hotplug_asked(chip, slot);
            uint32_t before = gone;
            out((unsigned)(r >> 8) % 16, 1u << (r >> 60) % 3, (uint32_t)unit_random(&rng));
            assert_true(asked || !(gone & ~before & BIT(slot)));
        } else {
            (void)in((unsigned)(r >> 8) % 16, 1u << (r >> 60) % 3);
        }
        for (unsigned s = 1; s <= 3; s++) {
            if (gone & BIT(s)) {
                gone &= ~BIT(s);
                attach(s - 1, s);
            }
        }
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_plug),  T(test_eject), T(test_gone_device),
                                       T(test_reset), T(test_state), T(test_hammer)};
    return cmocka_run_group_tests_name("hotplug", tests, NULL, NULL);
}
