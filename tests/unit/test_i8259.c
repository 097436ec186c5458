/* dev/irq/i8259.c, driven as PC guests do. */
#include "dev/irq/i8259.h"
#include "tests/unit/rig.h"

static struct rig rig;
static struct i8259 *pic;

static void program(unsigned icw4)
{
    out8(&rig, 0x20, 0x11);
    out8(&rig, 0x21, 0x30);
    out8(&rig, 0x21, 0x04);
    out8(&rig, 0x21, icw4);
    out8(&rig, 0xa0, 0x11);
    out8(&rig, 0xa1, 0x38);
    out8(&rig, 0xa1, 0x02);
    out8(&rig, 0xa1, icw4 & ~0x10u);
    out8(&rig, 0x21, 0);
    out8(&rig, 0xa1, 0);
}

static int setup(void **state)
{
    rig_open(&rig);
    struct i8259_config config = {.mem = rig.mem, .intr = rig_line(&rig, 0)};
    pic = i8259_new(&config, NULL);
    assert_non_null(pic);
    program(1);
    return 0;
}

static int teardown(void **state)
{
    rig_close(&rig, i8259_device(pic));
    return 0;
}

static void pulse(unsigned n)
{
    i8259_set_irq(pic, n, true);
    i8259_set_irq(pic, n, false);
}

static uint8_t isr(uint16_t port)
{
    out8(&rig, port, 0x0b);
    uint8_t value = in8(&rig, port);
    out8(&rig, port, 0x0a);
    return value;
}

static void test_edge(void **state)
{
    assert_false(rig.level[0]);
    pulse(3);
    assert_true(rig.level[0]);
    assert_int_equal(in8(&rig, 0x20), 0x08);
    assert_int_equal(i8259_ack(pic), 0x33);
    assert_false(rig.level[0]);
    assert_int_equal(in8(&rig, 0x20), 0);
    assert_int_equal(isr(0x20), 0x08);
    pulse(4); /* lower priority waits */
    assert_false(rig.level[0]);
    pulse(1); /* higher priority nests */
    assert_true(rig.level[0]);
    assert_int_equal(i8259_ack(pic), 0x31);
    out8(&rig, 0x20, 0x20);
    assert_int_equal(isr(0x20), 0x08);
    assert_false(rig.level[0]);
    out8(&rig, 0x20, 0x63); /* specific EOI */
    assert_true(rig.level[0]);
    assert_int_equal(i8259_ack(pic), 0x34);
}

static void test_mask(void **state)
{
    out8(&rig, 0x21, 0x08);
    assert_int_equal(in8(&rig, 0x21), 0x08);
    pulse(3);
    assert_false(rig.level[0]);
    out8(&rig, 0x21, 0);
    assert_true(rig.level[0]); /* the latched edge shows once unmasked */
    out8(&rig, 0x21, 0xff);
    assert_false(rig.level[0]);
}

static void test_cascade(void **state)
{
    pulse(8);
    assert_int_equal(in8(&rig, 0x20), 0x04);
    assert_int_equal(i8259_ack(pic), 0x38);
    assert_int_equal(isr(0x20), 0x04);
    assert_int_equal(isr(0xa0), 0x01);
    pulse(12);
    assert_false(rig.level[0]);
    out8(&rig, 0xa0, 0x20);
    out8(&rig, 0x20, 0x20);
    assert_true(rig.level[0]);
    assert_int_equal(i8259_ack(pic), 0x3c);
    i8259_set_irq(pic, 2, true); /* the cascade is not an input */
    i8259_set_irq(pic, 16, true);
    assert_false(rig.level[0]);
}

static void test_level(void **state)
{
    out8(&rig, 0x4d0, 0xff);
    out8(&rig, 0x4d1, 0xff);
    assert_int_equal(in8(&rig, 0x4d0), 0xf8);
    assert_int_equal(in8(&rig, 0x4d1), 0xde);
    i8259_set_irq(pic, 10, true);
    assert_int_equal(i8259_ack(pic), 0x3a);
    out8(&rig, 0xa0, 0x20);
    out8(&rig, 0x20, 0x20);
    assert_true(rig.level[0]); /* still asserted: again */
    assert_int_equal(i8259_ack(pic), 0x3a);
    i8259_set_irq(pic, 10, false);
    out8(&rig, 0xa0, 0x20);
    out8(&rig, 0x20, 0x20);
    assert_false(rig.level[0]);
}

static void test_spurious(void **state)
{
    out8(&rig, 0x4d0, 0x20);
    i8259_set_irq(pic, 5, true);
    i8259_set_irq(pic, 5, false);
    assert_int_equal(i8259_ack(pic), 0x37);
    assert_int_equal(isr(0x20), 0);
}

static void test_special_mask(void **state)
{
    pulse(1);
    assert_int_equal(i8259_ack(pic), 0x31);
    pulse(6);
    assert_false(rig.level[0]);
    out8(&rig, 0x21, 0x02);
    out8(&rig, 0x20, 0x68); /* special mask mode: what is masked does not block */
    assert_true(rig.level[0]);
    out8(&rig, 0x20, 0x48);
    assert_false(rig.level[0]);
}

static void test_rotate(void **state)
{
    pulse(3);
    assert_int_equal(i8259_ack(pic), 0x33);
    out8(&rig, 0x20, 0xa0); /* rotate on non-specific EOI: 3 is the lowest now */
    pulse(3);
    pulse(4);
    assert_int_equal(i8259_ack(pic), 0x34);
    out8(&rig, 0x20, 0x20);
    assert_int_equal(i8259_ack(pic), 0x33);
    out8(&rig, 0x20, 0x20);
    out8(&rig, 0x20, 0xc7); /* back to 7 as the lowest */
    pulse(3);
    pulse(4);
    assert_int_equal(i8259_ack(pic), 0x33);
}

static void test_auto_eoi(void **state)
{
    program(3);
    pulse(3);
    assert_int_equal(i8259_ack(pic), 0x33);
    assert_int_equal(isr(0x20), 0);
}

static void test_poll(void **state)
{
    out8(&rig, 0x20, 0x0c);
    assert_int_equal(in8(&rig, 0x20), 0);
    pulse(6);
    out8(&rig, 0x20, 0x0c);
    assert_int_equal(in8(&rig, 0x20), 0x86);
    assert_int_equal(isr(0x20), 0x40);
    assert_false(rig.level[0]);
}

static void test_special_nested(void **state)
{
    program(0x11);
    pulse(12);
    assert_int_equal(i8259_ack(pic), 0x3c);
    pulse(9); /* a higher one of the same slave */
    assert_true(rig.level[0]);
    assert_int_equal(i8259_ack(pic), 0x39);
}

static void test_hammer(void **state)
{
    static const uint16_t ports[] = {0x20, 0xa0, 0x4d0};
    static const uint16_t counts[] = {2, 2, 2};
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 200; i++) {
        i8259_set_irq(pic, (unsigned)(unit_random(&rng) % 18), unit_random(&rng) & 1);
        out8(&rig, ports[unit_random(&rng) % 3], (unsigned)unit_random(&rng) & 0xff);
        int vector = i8259_ack(pic);
        assert_in_range(vector, 0, 255);
    }
    rig_hammer_ports(&rig, ports, counts, 3);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_edge),     T(test_mask),           T(test_cascade), T(test_level),
        T(test_spurious), T(test_special_mask),   T(test_rotate),  T(test_auto_eoi),
        T(test_poll),     T(test_special_nested), T(test_hammer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
