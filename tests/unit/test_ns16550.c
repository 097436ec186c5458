/* dev/legacy/ns16550.c: detection as guests do it, interrupts by priority, FIFOs, buffering of output,
 * back-pressure. */
#include "dev/legacy/ns16550.h"
#include "tests/unit/rig.h"

#define COM NS16550_COM1

static struct rig rig;
static struct ns16550 *uart;
static uint8_t out[20000];
static size_t out_len, out_accept;
static unsigned sinks, rooms;

static size_t sink(void *opaque, const uint8_t *bytes, size_t len)
{
    size_t n = MIN(len, out_accept);
    assert_true(out_len + n <= sizeof(out));
    memcpy(out + out_len, bytes, n);
    out_len += n;
    sinks++;
    return n;
}

static void room(void *opaque)
{
    rooms++;
}

static int setup(void **state)
{
    rig_open(&rig);
    out_len = 0;
    out_accept = SIZE_MAX;
    sinks = 0;
    rooms = 0;
    struct ns16550_config config = {.mem = rig.mem,
                                    .clock = rig.clock,
                                    .irq = rig_line(&rig, 4),
                                    .port = COM,
                                    .sink = sink,
                                    .room = room};
    uart = ns16550_new(&config, NULL);
    assert_non_null(uart);
    return 0;
}

static int teardown(void **state)
{
    out_accept = SIZE_MAX;
    ns16550_flush(uart);
    rig_close(&rig, ns16550_device(uart));
    return 0;
}

static uint8_t rd(unsigned reg)
{
    return in8(&rig, (uint16_t)(COM + reg));
}

static void wr(unsigned reg, unsigned value)
{
    out8(&rig, (uint16_t)(COM + reg), value);
}

static void test_detect(void **state)
{
    /* Linux autoconfig(): IER, scratch, loopback, FIFO bits */
    wr(1, 0);
    assert_int_equal(rd(1) & 0x0f, 0);
    wr(1, 0x0f);
    assert_int_equal(rd(1), 0x0f);
    wr(1, 0xff);
    assert_int_equal(rd(1), 0x0f);
    wr(1, 0);
    wr(4, 0x1a);
    assert_int_equal(rd(6) & 0xf0, 0x90);
    wr(4, 0);
    assert_int_equal(rd(6) & 0xf0, 0xb0);
    wr(3, 0xbf);
    assert_int_equal(rd(2) & 0xc0, 0);
    wr(3, 0);
    wr(2, 1);
    assert_int_equal(rd(2) >> 6, 3);
    wr(2, 0);
    assert_int_equal(rd(2), 0x01);
    wr(7, 0xa5);
    assert_int_equal(rd(7), 0xa5);
    wr(3, 0x83);
    wr(0, 1);
    wr(1, 2);
    assert_int_equal(rd(0), 1);
    assert_int_equal(rd(1), 2);
    wr(3, 3);
    assert_int_equal(rd(1), 0);
    assert_int_equal(rd(3), 3);
    wr(5, 0xff); /* read-only */
    assert_int_equal(rd(5), 0x60);
    wr(4, 0xff);
    assert_int_equal(rd(4), 0x1f);
}

static void test_thre(void **state)
{
    wr(1, 2);
    assert_false(rig.level[4]); /* OUT2 gates */
    wr(4, 8);
    assert_true(rig.level[4]);
    assert_int_equal(rd(2), 0x02);
    assert_false(rig.level[4]); /* reading IIR cleared it */
    assert_int_equal(rd(2), 0x01);
    wr(1, 0);
    wr(1, 2); /* Linux's check for UART_BUG_THRE: enabling again interrupts again */
    assert_int_equal(rd(2), 0x02);
    wr(0, 'x');
    assert_true(rig.level[4]);
    assert_int_equal(rd(5), 0x60);
}

static void test_output(void **state)
{
    wr(0, 'a');
    wr(0, 'b');
    assert_int_equal(sinks, 0);
    clock_advance(rig.clock, NS16550_FLUSH_NS);
    assert_int_equal(sinks, 1);
    assert_memory_equal(out, "ab", 2);
    wr(0, 'c');
    ns16550_flush(uart);
    assert_int_equal(out_len, 3);
    clock_advance(rig.clock, 10 * NS16550_FLUSH_NS);
    assert_int_equal(sinks, 2);
    for (unsigned i = 0; i < 10 * NS16550_FLUSH_BYTES; i++) {
        wr(0, i & 0xff);
    }
    assert_int_equal(sinks, 12);
    assert_int_equal(out_len, 3 + 10 * NS16550_FLUSH_BYTES);
}

static void test_back_pressure(void **state)
{
    wr(2, 1);
    wr(4, 8);
    out_accept = 0;
    unsigned sent = 0;
    while (sent < 100000 && (rd(5) & 0x20)) {
        for (unsigned i = 0; i < 16; i++) {
            wr(0, sent++ % 251);
        }
    }
    assert_in_range(sent, 1000, 10000); /* it stopped being empty */
    wr(1, 2);
    assert_int_equal(rd(2), 0xc1);
    clock_advance(rig.clock, 5 * NS16550_FLUSH_NS);
    assert_int_equal(out_len, 0);
    out_accept = 100;
    clock_advance(rig.clock, NS16550_FLUSH_NS);
    assert_true(rig.level[4]); /* room: THRE interrupts */
    assert_int_equal(rd(2), 0xc2);
    out_accept = SIZE_MAX;
    clock_advance(rig.clock, NS16550_FLUSH_NS);
    assert_int_equal(out_len, sent);
    for (unsigned i = 0; i < sent; i++) {
        assert_int_equal(out[i], i % 251);
    }
}

static void test_input(void **state)
{
    const uint8_t text[] = "0123456789abcdefghij";
    wr(4, 8);
    wr(1, 1);
    assert_int_equal(ns16550_input(uart, text, 3), 1); /* no FIFO: one byte */
    assert_true(rig.level[4]);
    assert_int_equal(rd(2), 0x04);
    assert_int_equal(rd(5), 0x61);
    assert_int_equal(rd(0), '0');
    assert_int_equal(rooms, 1);
    assert_false(rig.level[4]);
    assert_int_equal(rd(5), 0x60);
    wr(2, 0x81); /* FIFO, trigger at 8 */
    assert_int_equal(ns16550_input(uart, text, 7), 7);
    assert_false(rig.level[4]);
    clock_advance(rig.clock, 100000000); /* four characters pass */
    assert_true(rig.level[4]);
    assert_int_equal(rd(2), 0xcc);
    assert_int_equal(rd(0), '0');
    assert_false(rig.level[4]);
    assert_int_equal(ns16550_input(uart, text + 7, 2), 2);
    assert_int_equal(rd(2), 0xc4);
    assert_int_equal(ns16550_input(uart, text + 9, 12), 8);
    for (unsigned i = 1; i <= 16; i++) {
        assert_int_equal(rooms, 1);
        assert_int_equal(rd(0), text[i]);
    }
    assert_int_equal(rooms, 2);
    assert_int_equal(ns16550_input(uart, text, 5), 5);
    wr(2, 0x83); /* receiver reset */
    assert_int_equal(rd(5), 0x60);
}

static void test_loopback(void **state)
{
    wr(2, 0x01);
    wr(4, 0x18);
    wr(1, 0x05);
    for (unsigned i = 0; i < 16; i++) {
        wr(0, i);
    }
    assert_int_equal(rd(5), 0x61);
    wr(0, 0x55);                /* overrun */
    assert_false(rig.level[4]); /* the line is off in loopback */
    assert_int_equal(rd(2), 0xc6);
    assert_int_equal(rd(5), 0x63);
    assert_int_equal(rd(5), 0x61); /* cleared by reading */
    assert_int_equal(rd(2), 0xc4);
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(rd(0), i);
    }
    const uint8_t byte = 'x';
    assert_int_equal(ns16550_input(uart, &byte, 1), 0);
    wr(4, 0x08);
    assert_int_equal(rooms, 1);
    ns16550_flush(uart);
    assert_int_equal(out_len, 0);
}

static void test_modem(void **state)
{
    rd(6);
    wr(4, 8);
    wr(1, 8);
    wr(4, 0x18); /* CTS and DSR fall, DCD stays by OUT2 */
    assert_int_equal(rd(2), 0x00);
    assert_int_equal(rd(6), 0x83);
    assert_int_equal(rd(2), 0x01);
    wr(4, 0x1c); /* RI on: no delta */
    assert_int_equal(rd(6), 0xc0);
    wr(4, 0x18);
    assert_int_equal(rd(6), 0x84); /* its trailing edge */
}

static void test_hammer(void **state)
{
    static const uint16_t ports[] = {COM};
    static const uint16_t counts[] = {8};
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 50; i++) {
        uint8_t bytes[40] = {0};
        out_accept = unit_random(&rng) % 50;
        assert_true(ns16550_input(uart, bytes, unit_random(&rng) % 40) <= 16);
        for (unsigned k = 0; k < 100; k++) {
            wr((unsigned)unit_random(&rng) & 7, (unsigned)unit_random(&rng) & 0xff);
            rd((unsigned)unit_random(&rng) & 7);
        }
        out_len = 0;
    }
    out_accept = 0;
    rig_hammer_ports(&rig, ports, counts, 1);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_detect),        T(test_thre),  T(test_output),
                                       T(test_back_pressure), T(test_input), T(test_loopback),
                                       T(test_modem),         T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
