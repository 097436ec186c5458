/* dev/legacy/i8042.c, port92.c, exit_port.c, debugcon.c: what Linux's probe asks for, resets, and the small
 * ports. */
#include "dev/legacy/debugcon.h"
#include "dev/legacy/exit_port.h"
#include "dev/legacy/i8042.h"
#include "dev/legacy/port92.h"
#include "tests/unit/rig.h"

static struct rig rig;
static struct i8042 *kbc;
static struct port92 *port92;
static struct exit_port *exit_port;
static struct debugcon *con;
static unsigned resets, a20s;
static bool a20;
static uint32_t exit_status;
static char con_text[2000];
static size_t con_len;
static unsigned con_calls;

static void on_reset(void *opaque)
{
    resets++;
}

static void on_a20(void *opaque, bool on)
{
    a20s++;
    a20 = on;
}

static void on_exit_port(void *opaque, uint32_t status)
{
    exit_status = status;
}

static void on_text(void *opaque, const uint8_t *bytes, size_t len)
{
    con_calls++;
    con_len = con_len + len > sizeof(con_text) ? 0 : con_len;
    memcpy(con_text + con_len, bytes, len);
    con_len += len;
}

static int setup(void **state)
{
    rig_open(&rig);
    resets = 0;
    a20s = 0;
    con_len = 0;
    con_calls = 0;
    struct i8042_config config = {
        .mem = rig.mem, .irq = rig_line(&rig, 1), .reset = on_reset, .set_a20 = on_a20};
    kbc = i8042_new(&config, NULL);
    struct port92_config port92_config = {.mem = rig.mem, .reset = on_reset, .set_a20 = on_a20};
    port92 = port92_new(&port92_config, NULL);
    struct exit_port_config exit_config = {.mem = rig.mem, .exit = on_exit_port};
    exit_port = exit_port_new(&exit_config, NULL);
    struct debugcon_config con_config = {.mem = rig.mem, .sink = on_text};
    con = debugcon_new(&con_config, NULL);
    assert_true(kbc && port92 && exit_port && con);
    return 0;
}

static int teardown(void **state)
{
    struct device *devs[] = {port92_device(port92), exit_port_device(exit_port), debugcon_device(con)};
    for (unsigned i = 0; i < ARRAY_SIZE(devs); i++) {
        devs[i]->ops->reset(devs[i]);
        devs[i]->ops->free(devs[i]);
    }
    rig_close(&rig, i8042_device(kbc));
    return 0;
}

static int next_byte(void)
{
    return in8(&rig, 0x64) & 1 ? in8(&rig, 0x60) : -1;
}

static void test_controller(void **state)
{
    assert_int_equal(in8(&rig, 0x64), 0x14);
    out8(&rig, 0x64, 0xaa);
    assert_int_equal(in8(&rig, 0x64) & 0x0b, 0x09);
    assert_int_equal(next_byte(), 0x55);
    assert_int_equal(next_byte(), -1);
    out8(&rig, 0x64, 0xab);
    assert_int_equal(next_byte(), 0);
    out8(&rig, 0x64, 0x20);
    assert_int_equal(next_byte(), 0x65);
    out8(&rig, 0x64, 0x60);
    out8(&rig, 0x60, 0x44);
    assert_int_equal(in8(&rig, 0x64) & 0x08, 0);
    out8(&rig, 0x64, 0x20);
    assert_int_equal(next_byte(), 0x44);
    out8(&rig, 0x64, 0x65);
    out8(&rig, 0x60, 0x99);
    out8(&rig, 0x64, 0x25);
    assert_int_equal(next_byte(), 0x99);
    out8(&rig, 0x64, 0xd0);
    assert_int_equal(next_byte(), 0x03);
    out8(&rig, 0x64, 0xc0);
    assert_int_equal(next_byte(), 0x80);
    /* no mouse: the loop test comes back without the AUX flag, the port test fails, commands time out at once
     */
    out8(&rig, 0x64, 0xd3);
    out8(&rig, 0x60, 0x5a);
    assert_int_equal(in8(&rig, 0x64) & 0x21, 0x01);
    assert_int_equal(next_byte(), 0x5a);
    out8(&rig, 0x64, 0xa9);
    assert_int_equal(next_byte(), 0x01);
    out8(&rig, 0x64, 0xd4);
    out8(&rig, 0x60, 0xff);
    assert_int_equal(in8(&rig, 0x64) & 0x61, 0x61);
    assert_int_equal(next_byte(), 0xfe);
    out8(&rig, 0x64, 0x00); /* unknown */
    assert_int_equal(next_byte(), -1);
}

static void test_keyboard(void **state)
{
    out8(&rig, 0x60, 0xf2);
    assert_true(rig.level[1]);
    assert_int_equal(next_byte(), 0xfa);
    assert_int_equal(next_byte(), 0xab);
    assert_int_equal(next_byte(), 0x41); /* translated */
    assert_int_equal(next_byte(), -1);
    assert_false(rig.level[1]);
    assert_int_equal(rig.rises[1], 3);
    out8(&rig, 0x60, 0xff);
    assert_int_equal(next_byte(), 0xfa);
    assert_int_equal(next_byte(), 0xaa);
    out8(&rig, 0x60, 0xed);
    assert_int_equal(next_byte(), 0xfa);
    out8(&rig, 0x60, 0x07);
    assert_int_equal(next_byte(), 0xfa);
    out8(&rig, 0x60, 0xf0);
    out8(&rig, 0x60, 0x00);
    assert_int_equal(next_byte(), 0xfa);
    assert_int_equal(next_byte(), 0xfa);
    assert_int_equal(next_byte(), 2);
    out8(&rig, 0x60, 0xee);
    assert_int_equal(next_byte(), 0xee);
    out8(&rig, 0x60, 0x12);
    assert_int_equal(next_byte(), 0xfe);
    /* a disabled keyboard holds what it has to say */
    out8(&rig, 0x60, 0xf2);
    out8(&rig, 0x64, 0xad);
    assert_int_equal(next_byte(), 0xfa);
    assert_int_equal(next_byte(), -1);
    out8(&rig, 0x64, 0xae);
    assert_int_equal(next_byte(), 0xab);
    assert_int_equal(next_byte(), 0x41);
    /* interrupts off */
    out8(&rig, 0x64, 0x60);
    out8(&rig, 0x60, 0x44);
    unsigned rises = rig.rises[1];
    out8(&rig, 0x60, 0xf4);
    assert_int_equal(next_byte(), 0xfa);
    assert_int_equal(rig.rises[1], rises);
}

static void test_reset_a20(void **state)
{
    out8(&rig, 0x64, 0xff);
    assert_int_equal(resets, 0);
    out8(&rig, 0x64, 0xfe);
    assert_int_equal(resets, 1);
    out8(&rig, 0x64, 0xd1);
    out8(&rig, 0x60, 0x01);
    assert_int_equal(a20s, 1);
    assert_false(a20);
    out8(&rig, 0x64, 0xd1);
    out8(&rig, 0x60, 0xdf);
    assert_true(a20);
    assert_int_equal(resets, 1);
    out8(&rig, 0x64, 0xd1);
    out8(&rig, 0x60, 0x02);
    assert_int_equal(resets, 2);

    assert_int_equal(in8(&rig, 0x92), 0x02);
    out8(&rig, 0x92, 0x00);
    assert_false(a20);
    out8(&rig, 0x92, 0x02);
    assert_true(a20);
    assert_int_equal(resets, 2);
    out8(&rig, 0x92, 0x03);
    assert_int_equal(resets, 3);
    out8(&rig, 0x92, 0x03);
    assert_int_equal(resets, 3);
}

static void test_small_ports(void **state)
{
    out8(&rig, 0xf4, 0x10);
    assert_int_equal(exit_status, 0x21);
    mem_pio_write(rig.mem, 0xf4, 4, 0x1000);
    assert_int_equal(exit_status, 0x2001);
    assert_int_equal(in8(&rig, 0xf4), 0);
    assert_int_equal(in8(&rig, 0xe9), 0xe9);
    out8(&rig, 0xe9, 'h');
    out8(&rig, 0xe9, 'i');
    assert_int_equal(con_calls, 0);
    out8(&rig, 0xe9, '\n');
    assert_int_equal(con_calls, 1);
    assert_memory_equal(con_text, "hi\n", 3);
    for (unsigned i = 0; i < 300; i++) {
        out8(&rig, 0xe9, 'x');
    }
    assert_int_equal(con_len, 3 + 256);
    debugcon_flush(con);
    assert_int_equal(con_len, 3 + 300);
    debugcon_flush(con);
    assert_int_equal(con_calls, 3);
}

static void test_hammer(void **state)
{
    static const uint16_t ports[] = {0x60, 0x64, 0x92, 0xf4, 0xe9};
    static const uint16_t counts[] = {1, 1, 1, 4, 1};
    rig_hammer_ports(&rig, ports, counts, 5);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_controller), T(test_keyboard), T(test_reset_a20),
                                       T(test_small_ports), T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
