/*
 * See driver.h. One step of the driver is an opcode byte and its operands; at the end of the input they read
 * as zeros.
 *
 * The device lives through all inputs; each input starts with a reset and a negotiation. A device that does
 * not come to rest after RUNS_MAX rounds of the main loop, or does not come back from a reset, aborts: that
 * is a finding.
 */
#include "fuzz/virtio/driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "dev/pci/hotplug.h"
#include "dev/pci/pci.h"
#include "dev/virtio/virtio_pci.h"
#include "fuzz/fuzz.h"
#include "mem/mem.h"

#define RAM_BYTES (4 * MiB)
#define ECAM      0xc0000000u
#define WINDOW    0xd0000000u
#define RINGS     0x100000u /* ring q lies at RINGS + q * STEP: descriptors, +0x400 available, +0x800 used */
#define STEP      0x1000u
#define DATA      0x200000u
#define ENTRIES   16u
#define RUNS_MAX  1000u
#define STEPS_MAX 400u

/* Common configuration: virtio 1.2 section 4.1.4.3. */
#define C_DRIVER_SELECT  8u
#define C_DRIVER_FEATURE 12u
#define C_STATUS         20u
#define C_QUEUE          22u
#define C_SIZE           24u
#define C_ENABLE         28u
#define C_DESC           32u
#define C_DRIVER         40u
#define C_DEVICE         48u
#define C_NOTIFY         0x3000u

static struct {
    struct mem *mem;
    struct pci_host *host;
    struct pci_hotplug *hotplug;
    struct vdev *dev;
    struct virtio_pci *vp;
    bool ejected; /* its function has left the bus */
    uint64_t bar;
    uint16_t avail[VDEV_QUEUES_MAX];
    const uint8_t *at, *end;
} fuzz;

static uint64_t take(unsigned bytes)
{
    uint64_t value = 0;
    size_t n = MIN((size_t)(fuzz.end - fuzz.at), bytes);
    memcpy(&value, fuzz.at, n);
    fuzz.at += n;
    return value;
}

static void must(bool what, const char *text)
{
    if (!what) {
        fprintf(stderr, "%s\n", text);
        abort();
    }
}

static void on_msi(void *opaque, uint64_t address, uint32_t data)
{
}

static void on_sci(void *opaque, bool level)
{
}

static void on_ejected(void *opaque, unsigned slot)
{
    fuzz.ejected = true;
}

static void plug(void)
{
    fuzz.dev = fuzz_make_device(fuzz.mem);
    fuzz.vp = fuzz.dev ? virtio_pci_new(fuzz.host, fuzz.dev, NULL) : NULL;
    must(fuzz.vp, "no device");
    pci_host_device(fuzz.host)->ops->reset(pci_host_device(fuzz.host));
}

/* What the main loop does for a device that the guest has let go; and another one takes its place. */
static void take_down(void)
{
    fuzz.ejected = false;
    virtio_pci_device(fuzz.vp)->ops->free(virtio_pci_device(fuzz.vp));
    plug();
}

/* Disks and NICs are the devices that come and go. */
static bool can_go(void)
{
    return fuzz.dev->ops->id == VIRTIO_ID_NET || fuzz.dev->ops->id == VIRTIO_ID_BLOCK;
}

static void open_once(void)
{
    if (fuzz.mem) {
        return;
    }
    must(mem_new(RAM_BYTES, &fuzz.mem, NULL) == 0, "no memory");
    const struct pci_host_config config = {
        .mem = fuzz.mem, .ecam_base = ECAM, .window_base = WINDOW, .window_size = 1u << 20, .msi = on_msi};
    fuzz.host = pci_host_new(&config, NULL);
    must(fuzz.host, "no bus");
    const struct pci_hotplug_config chip = {fuzz.mem, fuzz.host, PCI_HOTPLUG_BASE, on_sci, NULL};
    fuzz.hotplug = pci_hotplug_new(&chip, NULL);
    must(fuzz.hotplug, "no hot-plug chip");
    pci_hotplug_set_owner(fuzz.hotplug, on_ejected, NULL);
    plug();
    fuzz.bar = WINDOW;
}

static void out(unsigned offset, unsigned size, uint64_t value)
{
    mem_mmio_write(fuzz.mem, GPA(fuzz.bar + offset), size, value);
}

static void run(void)
{
    unsigned n = 0;
    while (atomic_load(&fuzz.dev->run_wanted)) {
        vdev_run(fuzz.dev);
        must(++n < RUNS_MAX, "the device does not come to rest");
    }
}

static void start(uint64_t features)
{
    if (fuzz.ejected) {
        take_down();
    }
    out(C_STATUS, 1, 0);
    run();
    if (fuzz.dev->ops->drain) {
        fuzz.dev->ops->drain(fuzz.dev);
    }
    must(mem_mmio_read(fuzz.mem, GPA(fuzz.bar + C_STATUS), 1) == 0,
         "the device does not come back from a reset");
    features = (features & fuzz.dev->offered) | VIRTIO_F_VERSION_1;
    for (unsigned word = 0; word < 2; word++) {
        out(C_DRIVER_SELECT, 4, word);
        out(C_DRIVER_FEATURE, 4, (uint32_t)(features >> (32 * word)));
    }
    out(C_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    out(C_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    memset(mem_ram_ptr(fuzz.mem, GPA(RINGS), NULL), 0, (size_t)STEP * fuzz.dev->queue_count);
    memset(fuzz.avail, 0, sizeof(fuzz.avail));
    for (unsigned i = 0; i < fuzz.dev->queue_count; i++) {
        uint64_t ring = RINGS + i * STEP;
        out(C_QUEUE, 2, i);
        out(C_SIZE, 2, ENTRIES);
        out(C_DESC, 8, ring);
        out(C_DRIVER, 8, ring + 0x400);
        out(C_DEVICE, 8, ring + 0x800);
        out(C_ENABLE, 2, 1);
    }
    out(C_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK);
    run();
}

static void write_ram(uint64_t gpa, uint64_t value, unsigned bytes)
{
    mem_write(fuzz.mem, GPA(gpa), &value, bytes);
}

static void write_desc(uint64_t table)
{
    uint64_t at = table + 16 * (take(1) % ENTRIES);
    uint64_t page = take(1), len = take(2);
    write_ram(at, DATA + page * 256, 8);
    write_ram(at + 8, len & 0x1fff, 4);
    write_ram(at + 12, take(1) & 7, 2);
    write_ram(at + 14, take(1) % (ENTRIES + 1), 2);
}

static void step(void)
{
    unsigned queue = 0;
    uint8_t op = (uint8_t)take(1);
    if (op >= 250) { /* the hot-plug chip: the owner asks, or the guest writes */
        if (op == 250 && can_go()) {
            pci_hotplug_ask(fuzz.hotplug, virtio_pci_slot(fuzz.vp));
        } else {
            unsigned at = (unsigned)take(1);
            mem_pio_write(fuzz.mem, (uint16_t)(PCI_HOTPLUG_BASE + at % PCI_HOTPLUG_PORTS),
                          1u << (at >> 6) % 3, op == 255 ? BIT(virtio_pci_slot(fuzz.vp)) : (uint32_t)take(4));
        }
        return;
    }
    switch (op % 10) {
    case 0:
        queue = (unsigned)(take(1) % fuzz.dev->queue_count);
        write_desc(RINGS + queue * STEP);
        break;
    case 1: write_desc(DATA + 256 * take(1)); break; /* an indirect table */
    case 2: {                                        /* a head, and the index that shows it */
        queue = (unsigned)(take(1) % fuzz.dev->queue_count);
        uint64_t ring = RINGS + queue * STEP + 0x400;
        write_ram(ring + 4 + 2 * (fuzz.avail[queue] % ENTRIES), take(1) % (ENTRIES + 1), 2);
        write_ram(ring + 2, ++fuzz.avail[queue], 2);
        break;
    }
    case 3:
        queue = (unsigned)(take(1) % fuzz.dev->queue_count);
        out(C_NOTIFY + 4 * queue, 2, queue);
        run();
        break;
    case 4: {
        uint64_t at = take(1) * 16;
        for (unsigned i = 0, n = (unsigned)take(1) % 64; i < n; i += 8) {
            write_ram(DATA + at + i, take(8), 8);
        }
        break;
    }
    case 5: write_ram(DATA + take(2) * 4, take(4), 4); break;
    case 6: {
        unsigned at = (unsigned)take(2);
        out(at % 0x6000, 1u << (at >> 14), take(4));
        run();
        break;
    }
    case 7: write_ram(RINGS + take(2) % ((uint64_t)STEP * fuzz.dev->queue_count), take(2), 2); break;
    case 8: start(take(8)); break;
    default:
        fuzz_host_step(fuzz.dev, (uint8_t)take(1));
        run();
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    open_once();
    fuzz.at = data;
    fuzz.end = data + size;
    start(take(8));
    for (unsigned i = 0; i < STEPS_MAX && fuzz.at < fuzz.end; i++) {
        step();
    }
    return 0;
}
