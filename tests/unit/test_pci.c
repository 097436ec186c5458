/* dev/pci: configuration by ports and ECAM, BAR sizing and moving, capabilities, INTx, MSI-X with its masks.
 */
#include "tests/unit/vdrv.h"

static struct vdrv drv;
static struct pci_dev dev;
static uint64_t last_write, last_at;
static unsigned cf9_writes;

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0xa0 + offset;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    last_at = offset;
    last_write = value;
}

static const struct mem_io_ops bar_ops = {bar_read, bar_write};

static int setup(void **state)
{
    static const struct pci_id id = {0x1234, 0x5678, 0x9abc, 0xdef0, 7, 0x020001};
    vdrv_open_bus(&drv);
    pci_dev_init(&dev, "test", &id);
    pci_dev_add_bar(&dev, 1, 0x8000, &bar_ops, NULL);
    assert_int_equal(pci_dev_add_msix(&dev, 1, 0x4000, 0x5000, 3), 0);
    assert_int_equal(pci_dev_add_cap(&dev, PCI_CAP_VENDOR, 0x14), 0x4c);
    assert_int_equal(pci_host_attach(drv.host, &dev, NULL), 0);
    pci_host_device(drv.host)->ops->reset(pci_host_device(drv.host));
    return 0;
}

static int teardown(void **state)
{
    char text[4096];
    struct device *host = pci_host_device(drv.host);
    assert_true(host->ops->describe(host, text, sizeof(text)) < sizeof(text));
    pci_dev_detach(&dev);
    vdrv_close(&drv);
    return 0;
}

static uint32_t port_config(unsigned slot, unsigned offset, unsigned size)
{
    mem_pio_write(drv.mem, 0xcf8, 4, 0x80000000u | slot << 11 | (offset & 0xfc));
    return mem_pio_read(drv.mem, (uint16_t)(0xcfc + (offset & 3)), size);
}

static void test_identity(void **state)
{
    assert_int_equal(vdrv_config(&drv, 1, 0, 4), 0x56781234);
    assert_int_equal(port_config(1, 0, 4), 0x56781234);
    assert_int_equal(port_config(1, 2, 2), 0x5678);
    assert_int_equal(vdrv_config(&drv, 1, 8, 4), 0x02000107);
    assert_int_equal(vdrv_config(&drv, 1, 0x2c, 4), 0xdef09abc);
    assert_int_equal(vdrv_config(&drv, 1, 0x3c, 2), 0x0111); /* INTA, line 17 */
    assert_int_equal(vdrv_config(&drv, 0, 8, 4) >> 8, 0x060000);
    assert_true(vdrv_config(&drv, 2, 0, 4) == UINT32_MAX);
    assert_true(vdrv_config(&drv, 1, 0x1000, 4) == UINT32_MAX); /* function 1 */
    assert_int_equal(vdrv_config(&drv, 1, 0x100, 4), 0);        /* no extended capabilities */
    vdrv_set_config(&drv, 1, 0, 4, 0);
    assert_int_equal(vdrv_config(&drv, 1, 0, 4), 0x56781234);
    mem_pio_write(drv.mem, 0xcf8, 4, 0x00000800); /* not enabled */
    assert_true(mem_pio_read(drv.mem, 0xcfc, 4) == UINT32_MAX);
    mem_pio_write(drv.mem, 0xcf8, 4, 0x80010800); /* bus 1 */
    assert_true(mem_pio_read(drv.mem, 0xcfc, 4) == UINT32_MAX);
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_ECAM + (1 << 15)), 8) >> 32, vdrv_config(&drv, 1, 4, 4));
}

static void test_capabilities(void **state)
{
    assert_true(vdrv_config(&drv, 1, 6, 2) & 0x10);
    unsigned at = vdrv_config(&drv, 1, 0x34, 1);
    assert_int_equal(at, 0x40);
    assert_int_equal(vdrv_config(&drv, 1, at, 4), 0x00024c11);
    assert_int_equal(vdrv_config(&drv, 1, at + 4, 4), 0x4001);
    assert_int_equal(vdrv_config(&drv, 1, at + 8, 4), 0x5001);
    assert_int_equal(vdrv_config(&drv, 1, 0x4c, 2), 0x0009);
    struct pci_dev other = dev;
    while (pci_dev_add_cap(&other, PCI_CAP_VENDOR, 40)) {
    }
    assert_int_equal(pci_dev_add_cap(&other, PCI_CAP_VENDOR, 200), 0);
}

static void test_bar(void **state)
{
    uint32_t base = vdrv_config(&drv, 1, 0x14, 4);
    assert_int_equal(base, VDRV_WINDOW);
    assert_int_equal(mem_mmio_read(drv.mem, GPA(base + 0x10), 4), 0xb0);
    mem_mmio_write(drv.mem, GPA(base + 8), 2, 0x1234);
    assert_int_equal(last_write, 0x1234);
    assert_int_equal(last_at, 8);
    vdrv_set_config(&drv, 1, 0x14, 4, UINT32_MAX); /* sizing */
    assert_int_equal(vdrv_config(&drv, 1, 0x14, 4), 0xffff8000);
    assert_true(mem_mmio_read(drv.mem, GPA(base + 0x10), 4) == UINT32_MAX);
    vdrv_set_config(&drv, 1, 0x10, 4, UINT32_MAX); /* a BAR that is not there */
    assert_int_equal(vdrv_config(&drv, 1, 0x10, 4), 0);
    vdrv_set_config(&drv, 1, 0x14, 4, VDRV_WINDOW + 0x18000);
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW + 0x18010), 4), 0xb0);
    vdrv_set_config(&drv, 1, 0x14, 4, 0x1000000); /* over RAM: never decoded */
    assert_int_equal(mem_mmio_read(drv.mem, GPA(0x10), 4), 0);
    vdrv_set_config(&drv, 1, 0x14, 4, VDRV_WINDOW + (1 << 20) - 0x8000); /* the last place in the window */
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW + (1 << 20) - 0x8000), 1), 0xa0);
    vdrv_set_config(&drv, 1, 4, 2, 0); /* decoding off */
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW + (1 << 20) - 0x8000), 1), 0xff);
    pci_host_device(drv.host)->ops->reset(pci_host_device(drv.host));
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW), 4), 0xa0);
}

static void test_intx(void **state)
{
    pci_intx_set(&dev, true);
    assert_true(drv.intx[1]);
    assert_true(vdrv_config(&drv, 1, 6, 2) & 8);
    vdrv_set_config(&drv, 1, 4, 2, 0x402); /* INTx off */
    assert_false(drv.intx[1]);
    vdrv_set_config(&drv, 1, 4, 2, 2);
    assert_true(drv.intx[1]);
    pci_intx_set(&dev, false);
    assert_false(drv.intx[1]);
}

static void entry(unsigned i, uint32_t data, uint32_t control)
{
    uint64_t at = VDRV_WINDOW + 0x4000 + 16 * i;
    mem_mmio_write(drv.mem, GPA(at), 8, 0xfee01000);
    mem_mmio_write(drv.mem, GPA(at + 8), 4, data);
    mem_mmio_write(drv.mem, GPA(at + 12), 4, control);
}

static void test_msix(void **state)
{
    pci_msix_notify(&dev, 0);
    assert_int_equal(drv.msis, 0); /* off */
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW + 0x400c), 4), 1);
    entry(0, 5, 0);
    entry(1, 6, 1);
    vdrv_set_config(&drv, 1, 0x42, 2, 0x8000);
    assert_true(pci_msix_enabled(&dev));
    pci_msix_notify(&dev, 0);
    assert_int_equal(drv.msi_count[5], 1);
    pci_msix_notify(&dev, 1); /* masked: pending */
    pci_msix_notify(&dev, 1);
    assert_int_equal(drv.msis, 1);
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW + 0x5000), 8), 2);
    mem_mmio_write(drv.mem, GPA(VDRV_WINDOW + 0x5000), 8, 0); /* read-only */
    entry(1, 7, 0);
    assert_int_equal(drv.msi_count[7], 1); /* once, with the new data */
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW + 0x5000), 4), 0);
    vdrv_set_config(&drv, 1, 0x42, 2, 0xc000); /* function mask */
    pci_msix_notify(&dev, 0);
    assert_int_equal(drv.msi_count[5], 1);
    vdrv_set_config(&drv, 1, 0x42, 2, 0x8000);
    assert_int_equal(drv.msi_count[5], 2);
    pci_msix_notify(&dev, 3);
    pci_msix_notify(&dev, UINT32_MAX);
    assert_int_equal(drv.msis, 3);
    assert_int_equal(mem_mmio_read(drv.mem, GPA(VDRV_WINDOW + 0x4004), 2), 0); /* malformed */
}

static uint64_t cf9_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0x42;
}

static void cf9_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    cf9_writes++;
}

static void test_port_cf9(void **state)
{
    static const struct mem_io_ops cf9 = {cf9_read, cf9_write};
    struct mem *mem;
    assert_int_equal(mem_new(MiB, &mem, NULL), 0);
    struct pci_host_config config = {.mem = mem,
                                     .ecam_base = VDRV_ECAM,
                                     .window_base = VDRV_WINDOW,
                                     .window_size = 1u << 20,
                                     .msi = vdrv_msi,
                                     .port_cf9 = &cf9};
    struct pci_host *host = pci_host_new(&config, NULL);
    mem_pio_write(mem, 0xcf8, 4, 0x8000ff00);
    assert_int_equal(cf9_writes, 0); /* a dword is the address register's, never a reset */
    assert_int_equal(mem_pio_read(mem, 0xcf9, 1), 0x42);
    mem_pio_write(mem, 0xcf9, 1, 6);
    assert_int_equal(cf9_writes, 1);
    assert_true(mem_pio_read(mem, 0xcf8, 4) == 0x8000ff00);
    pci_host_device(host)->ops->free(pci_host_device(host));
    mem_free(mem);
}

static void test_full_bus(void **state)
{
    static struct pci_dev more[PCI_SLOTS];
    static const struct pci_id id = {0};
    struct err err = {0};
    unsigned i = 0;
    for (;; i++) {
        pci_dev_init(&more[i], "more", &id);
        if (pci_host_attach(drv.host, &more[i], &err) < 0) {
            break;
        }
    }
    assert_int_equal(i, PCI_SLOTS - 2);
    assert_int_equal(pci_host_devices(drv.host), PCI_SLOTS);
    assert_non_null(strstr(err.text, "31"));
}

static void test_hammer(void **state)
{
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t r = unit_random(&rng);
        uint64_t at = r & 1 ? VDRV_ECAM + (r >> 8) % 0x10000 : VDRV_WINDOW + (r >> 8) % 0x20000;
        unsigned size = 1u << (r >> 60 & 3);
        if (r & 2) {
            mem_mmio_write(drv.mem, GPA(at), size, unit_random(&rng));
        } else if (r & 4) {
            mem_mmio_read(drv.mem, GPA(at), size);
        } else {
            mem_pio_write(drv.mem, (uint16_t)(0xcf8 + (r >> 8) % 8), 1u << (r >> 60) % 3,
                          (uint32_t)(r >> 16));
        }
        pci_msix_notify(&dev, (unsigned)(r >> 40) % 4);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_identity), T(test_capabilities), T(test_bar),
                                       T(test_intx),     T(test_msix),         T(test_port_cf9),
                                       T(test_full_bus), T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
