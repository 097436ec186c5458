/* dev/virtio: the queue's rules, negotiation, the PCI transport, the entropy device. */
#include "dev/virtio/rng.h"
#include "tests/unit/vdrv.h"

static struct vdrv drv;

static int setup(void **state)
{
    vdrv_open_bus(&drv);
    vdrv_open(&drv, vrng_new(drv.mem, NULL));
    return 0;
}

static int teardown(void **state)
{
    vdrv_close(&drv);
    return 0;
}

static void ask(uint32_t len)
{
    const struct vdrv_buf buf = {VDRV_DATA, len, true};
    vdrv_add(&drv, 0, &buf, 1);
}

static void test_random_bytes(void **state)
{
    uint32_t len = 0;
    vdrv_start(&drv, VIRTIO_F_VERSION_1);
    ask(64);
    vdrv_kick(&drv, 0);
    assert_true(vdrv_used(&drv, 0, &len));
    assert_int_equal(len, 64);
    uint64_t words[8], together = 0;
    mem_read(drv.mem, GPA(VDRV_DATA), words, sizeof(words));
    for (unsigned i = 0; i < 8; i++) {
        together |= words[i];
    }
    assert_true(together != 0);
    assert_int_equal(vdrv_get(&drv, VDRV_DATA + 64, 8), 0);
    assert_int_equal(drv.msi_count[1], 1);
    assert_false(vdrv_used(&drv, 0, &len));
}

static void test_identity(void **state)
{
    assert_int_equal(vdrv_config(&drv, 1, 0, 4), 0x10441af4);
    assert_int_equal(vdrv_config(&drv, 1, 8, 1), 1);
    assert_int_equal(vdrv_in(&drv, C_NUM_QUEUES, 2), 1);
    assert_true(vdrv_offered(&drv) == VIRTIO_F_COMMON);
    unsigned seen = 0;
    for (unsigned at = vdrv_config(&drv, 1, 0x34, 1); at; at = vdrv_config(&drv, 1, at + 1, 1)) {
        if (vdrv_config(&drv, 1, at, 1) == PCI_CAP_VENDOR) {
            seen |= 1u << vdrv_config(&drv, 1, at + 3, 1);
        }
    }
    assert_int_equal(seen, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5); /* no device configuration */
}

static void test_negotiation(void **state)
{
    vdrv_out(&drv, C_STATUS, 1, 3);
    vdrv_out(&drv, C_STATUS, 1, 11); /* without VERSION_1 */
    assert_int_equal(vdrv_in(&drv, C_STATUS, 1), 3);
    vdrv_out(&drv, C_DRIVER_SELECT, 4, 1);
    vdrv_out(&drv, C_DRIVER_FEATURE, 4, 1 | 1u << 30); /* something that is not offered */
    vdrv_out(&drv, C_STATUS, 1, 11);
    assert_int_equal(vdrv_in(&drv, C_STATUS, 1), 3);
    vdrv_out(&drv, C_DRIVER_FEATURE, 4, 1);
    vdrv_out(&drv, C_STATUS, 1, 11);
    assert_int_equal(vdrv_in(&drv, C_STATUS, 1), 11);
    vdrv_out(&drv, C_DRIVER_FEATURE, 4, 0); /* too late */
    assert_int_equal(vdrv_in(&drv, C_DRIVER_FEATURE, 4), 1);
    vdrv_out(&drv, C_STATUS, 1, 0);
    assert_int_equal(vdrv_in(&drv, C_STATUS, 1), 0);
    vdrv_out(&drv, C_STATUS, 1, 7); /* DRIVER_OK without FEATURES_OK */
    assert_true(vdrv_needs_reset(&drv));
    vdrv_reset(&drv);
}

static void test_registers(void **state)
{
    vdrv_out(&drv, C_QUEUE, 2, 0);
    assert_int_equal(vdrv_in(&drv, C_SIZE, 2), VQ_SIZE_MAX);
    assert_int_equal(vdrv_in(&drv, C_VECTOR, 2), 0xffff);
    vdrv_out(&drv, C_VECTOR, 2, 1);
    assert_int_equal(vdrv_in(&drv, C_VECTOR, 2), 1);
    vdrv_out(&drv, C_VECTOR, 2, 2); /* there are two */
    assert_int_equal(vdrv_in(&drv, C_VECTOR, 2), 0xffff);
    vdrv_out(&drv, C_DESC, 8, 0x123456789000);
    assert_true(vdrv_in(&drv, C_DESC, 8) == 0x123456789000);
    vdrv_out(&drv, C_QUEUE, 2, 1);
    assert_int_equal(vdrv_in(&drv, C_SIZE, 2), 0);
    vdrv_out(&drv, C_ENABLE, 2, 1); /* nothing there */
    vdrv_out(&drv, C_QUEUE, 2, 0xffff);
    assert_int_equal(vdrv_in(&drv, C_ENABLE, 2), 0);
    vdrv_out(&drv, C_STATUS, 1, 0);
    vdrv_out(&drv, C_QUEUE, 2, 0);
    assert_int_equal(vdrv_in(&drv, C_DESC, 8), 0);
}

static void test_intx(void **state)
{
    uint32_t len;
    vdrv_start(&drv, VIRTIO_F_VERSION_1);
    vdrv_set_config(&drv, 1, 0x42, 2, 0);
    ask(8);
    vdrv_kick(&drv, 0);
    assert_true(vdrv_used(&drv, 0, &len));
    assert_int_equal(drv.msis, 0);
    assert_true(drv.intx[1]);
    assert_int_equal(vdrv_in(&drv, C_ISR, 1), 1);
    assert_false(drv.intx[1]);
    assert_int_equal(vdrv_in(&drv, C_ISR, 1), 0);
}

/* The BAR through configuration space: 4.1.4.9. */
static void test_window(void **state)
{
    unsigned at = vdrv_config(&drv, 1, 0x34, 1);
    while (vdrv_config(&drv, 1, at, 1) != PCI_CAP_VENDOR || vdrv_config(&drv, 1, at + 3, 1) != 5) {
        at = vdrv_config(&drv, 1, at + 1, 1);
        assert_true(at != 0);
    }
    vdrv_set_config(&drv, 1, at + 4, 1, 0);
    vdrv_set_config(&drv, 1, at + 8, 4, C_STATUS);
    vdrv_set_config(&drv, 1, at + 12, 4, 1);
    vdrv_set_config(&drv, 1, at + 16, 1, 3);
    assert_int_equal(vdrv_in(&drv, C_STATUS, 1), 3);
    assert_int_equal(vdrv_config(&drv, 1, at + 16, 1), 3);
    vdrv_set_config(&drv, 1, at + 12, 4, 1000);
    vdrv_config(&drv, 1, at + 16, 4);
    vdrv_set_config(&drv, 1, at + 12, 4, 4);
    vdrv_set_config(&drv, 1, at + 8, 4, 0xfffffffc);
    vdrv_config(&drv, 1, at + 16, 4);
}

static void test_indirect(void **state)
{
    uint32_t len;
    vdrv_start(&drv, VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC);
    uint64_t table = VDRV_DATA + 0x10000;
    vdrv_desc(&drv, table, 0, VDRV_DATA, 16, VDRV_NEXT | VDRV_WRITE, 2);
    vdrv_desc(&drv, table, 2, VDRV_DATA + 32, 16, VDRV_WRITE, 0);
    vdrv_desc(&drv, vdrv_ring(0), 0, table, 48, VDRV_INDIRECT, 0);
    vdrv_avail(&drv, 0, 0);
    vdrv_kick(&drv, 0);
    assert_true(vdrv_used(&drv, 0, &len));
    assert_int_equal(len, 32);
    assert_int_equal(vdrv_get(&drv, VDRV_DATA + 16, 8), 0);
}

static void test_event_index(void **state)
{
    uint32_t len;
    vdrv_start(&drv, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    uint64_t used_event = vdrv_ring(0) + 0x1000 + 4 + 2 * VDRV_ENTRIES;
    uint64_t avail_event = vdrv_ring(0) + 0x2000 + 4 + 8 * VDRV_ENTRIES;
    vdrv_put(&drv, used_event, 1, 2); /* tell when the second is done */
    ask(8);
    vdrv_kick(&drv, 0);
    assert_int_equal(drv.msis, 0);
    assert_int_equal(vdrv_get(&drv, avail_event, 2), 1);
    ask(8);
    vdrv_kick(&drv, 0);
    assert_int_equal(drv.msi_count[1], 1);
    assert_true(vdrv_used(&drv, 0, &len) && vdrv_used(&drv, 0, &len));
    for (unsigned i = 0; i < 70000; i++) { /* round the indices */
        if (i % 8 == 7) {
            vdrv_put(&drv, used_event, (uint16_t)(drv.queues[0].used_seen + 0), 2);
        }
        ask(4);
        vdrv_kick(&drv, 0);
        assert_true(vdrv_used(&drv, 0, &len));
    }
    assert_int_equal(drv.msi_count[1], 1 + 70000 / 8);
}

static void test_no_interrupt_flag(void **state)
{
    vdrv_start(&drv, VIRTIO_F_VERSION_1);
    vdrv_put(&drv, vdrv_ring(0) + 0x1000, 1, 2);
    ask(8);
    vdrv_kick(&drv, 0);
    assert_int_equal(drv.msis, 0);
}

/* What no driver may do: each ends in "needs reset", a counter and a configuration interrupt; a reset mends
 * it. */
enum mistake {
    LOOP,
    BAD_HEAD,
    BAD_NEXT,
    NOT_RAM,
    HUGE_LENGTH,
    NO_LENGTH,
    READ_AFTER_WRITE,
    AVAIL_AHEAD,
    INDIRECT_UNASKED,
    INDIRECT_NEXT,
    INDIRECT_ODD,
    INDIRECT_EMPTY,
    INDIRECT_NESTED,
    INDIRECT_LOOP,
    INDIRECT_NOT_RAM,
    MISTAKES
};

static void make_mistake(enum mistake mistake)
{
    uint64_t ring = vdrv_ring(0), table = VDRV_DATA + 0x10000;
    vdrv_desc(&drv, ring, 0, VDRV_DATA, 8, VDRV_WRITE, 0);
    switch (mistake) {
    case LOOP: vdrv_desc(&drv, ring, 0, VDRV_DATA, 8, VDRV_WRITE | VDRV_NEXT, 0); break;
    case BAD_NEXT: vdrv_desc(&drv, ring, 0, VDRV_DATA, 8, VDRV_WRITE | VDRV_NEXT, VDRV_ENTRIES); break;
    case NOT_RAM: vdrv_desc(&drv, ring, 0, VDRV_WINDOW, 8, VDRV_WRITE, 0); break;
    case HUGE_LENGTH: vdrv_desc(&drv, ring, 0, VDRV_DATA, UINT32_MAX, VDRV_WRITE, 0); break;
    case NO_LENGTH: vdrv_desc(&drv, ring, 0, VDRV_DATA, 0, VDRV_WRITE, 0); break;
    case READ_AFTER_WRITE:
        vdrv_desc(&drv, ring, 0, VDRV_DATA, 8, VDRV_WRITE | VDRV_NEXT, 1);
        vdrv_desc(&drv, ring, 1, VDRV_DATA, 8, 0, 0);
        break;
    case AVAIL_AHEAD: drv.queues[0].avail_idx = 0x8000; break;
    case INDIRECT_NEXT: vdrv_desc(&drv, ring, 0, table, 16, VDRV_INDIRECT | VDRV_NEXT, 1); break;
    case INDIRECT_ODD: vdrv_desc(&drv, ring, 0, table, 17, VDRV_INDIRECT, 0); break;
    case INDIRECT_EMPTY: vdrv_desc(&drv, ring, 0, table, 0, VDRV_INDIRECT, 0); break;
    case INDIRECT_UNASKED:
    case INDIRECT_NESTED:
        vdrv_desc(&drv, ring, 0, table, 16, VDRV_INDIRECT, 0);
        vdrv_desc(&drv, table, 0, table, 16, VDRV_INDIRECT, 0);
        break;
    case INDIRECT_LOOP:
        vdrv_desc(&drv, ring, 0, table, 16, VDRV_INDIRECT, 0);
        vdrv_desc(&drv, table, 0, VDRV_DATA, 16, VDRV_WRITE | VDRV_NEXT, 0);
        break;
    case INDIRECT_NOT_RAM: vdrv_desc(&drv, ring, 0, VDRV_RAM - 16, 32, VDRV_INDIRECT, 0); break;
    case BAD_HEAD:
    case MISTAKES: break;
    }
    vdrv_avail(&drv, 0, mistake == BAD_HEAD ? VDRV_ENTRIES : 0);
}

static void test_mistakes(void **state)
{
    uint32_t len;
    for (enum mistake mistake = 0; mistake < MISTAKES; mistake++) {
        uint64_t before = atomic_load(&drv.dev->counters.guest_errors);
        vdrv_start(&drv, VIRTIO_F_VERSION_1 | (mistake == INDIRECT_UNASKED ? 0 : VIRTIO_F_INDIRECT_DESC));
        unsigned config_interrupts = drv.msi_count[0];
        make_mistake(mistake);
        vdrv_kick(&drv, 0);
        assert_true(vdrv_needs_reset(&drv));
        assert_int_equal(drv.msi_count[0], config_interrupts + 1);
        assert_true(atomic_load(&drv.dev->counters.guest_errors) > before);
        assert_non_null(drv.dev->why);
        assert_false(vdrv_used(&drv, 0, &len));
        vdrv_kick(&drv, 0); /* it takes no more */
        assert_false(vdrv_used(&drv, 0, &len));
        vdrv_start(&drv, VIRTIO_F_VERSION_1);
        ask(8);
        vdrv_kick(&drv, 0);
        assert_true(vdrv_used(&drv, 0, &len));
    }
}

static void test_bad_rings(void **state)
{
    static const struct {
        unsigned reg, size;
        uint64_t value;
    } bad[] = {
        {C_DESC, 8, VDRV_RINGS + 8},
        {C_DRIVER, 8, VDRV_RINGS + 1},
        {C_DEVICE, 8, VDRV_RINGS + 2},
        {C_DESC, 8, VDRV_RAM - 16},
        {C_DRIVER, 8, VDRV_WINDOW},
        {C_DEVICE, 8, UINT64_MAX - 3},
        {C_SIZE, 2, 0},
        {C_SIZE, 2, 3},
        {C_SIZE, 2, 512},
        {C_SIZE, 2, 0xffff},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        vdrv_reset(&drv);
        vdrv_out(&drv, C_STATUS, 1, 3);
        vdrv_out(&drv, C_DRIVER_SELECT, 4, 1);
        vdrv_out(&drv, C_DRIVER_FEATURE, 4, 1);
        vdrv_out(&drv, C_STATUS, 1, 11);
        vdrv_out(&drv, C_QUEUE, 2, 0);
        vdrv_out(&drv, C_DESC, 8, VDRV_RINGS);
        vdrv_out(&drv, C_DRIVER, 8, VDRV_RINGS + 0x1000);
        vdrv_out(&drv, C_DEVICE, 8, VDRV_RINGS + 0x2000);
        vdrv_out(&drv, bad[i].reg, bad[i].size, bad[i].value);
        vdrv_out(&drv, C_ENABLE, 2, 1);
        vdrv_out(&drv, C_STATUS, 1, 15);
        vdrv_kick(&drv, 0);
        assert_true(vdrv_needs_reset(&drv));
    }
}

static void test_hammer(void **state)
{
    vdrv_hammer(&drv, 0, 100);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_random_bytes), T(test_identity),  T(test_negotiation),       T(test_registers),
        T(test_intx),         T(test_window),    T(test_indirect),          T(test_event_index),
        T(test_mistakes),     T(test_bad_rings), T(test_no_interrupt_flag), T(test_hammer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
