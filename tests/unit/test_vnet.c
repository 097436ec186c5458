/* dev/virtio/net and net/offload: frames both ways, mergeable buffers, back pressure, control, link;
 * checksums and segmentation against plain sums; port forward texts. */
#include "dev/virtio/net.h"
#include "net/user.h"
#include "tests/unit/vdrv.h"

#define BUFFER(i) (VDRV_DATA + 0x4000 * (i))

static struct vdrv drv;
static struct net_port port;
static unsigned sent, readables, frees, takes;
static size_t sent_len;
static uint8_t sent_bytes[NET_HEADER_BYTES + NET_FRAME_MAX];
static bool full;

static bool port_send(struct net_port *p, const struct iovec *iov, unsigned count)
{
    if (full) {
        return false;
    }
    sent++;
    sent_len = viov_read(iov, count, 0, sent_bytes, sizeof(sent_bytes));
    return true;
}

static void port_readable(struct net_port *p)
{
    readables++;
}

static void port_offloads(struct net_port *p, unsigned t)
{
    takes = t;
}

static void port_free(struct net_port *p)
{
    frees++;
}

static const struct net_port_ops port_ops = {"test", port_send, port_readable, port_offloads, port_free};

static int setup(void **state)
{
    sent = readables = 0;
    full = false;
    port = (struct net_port){.ops = &port_ops, .takes = NET_TAKES_ALL, .mtu = 9000, .link_up = true};
    vdrv_open_bus(&drv);
    const struct vnet_config config = {
        .mem = drv.mem, .port = &port, .mac = {2, 0xf0, 0xda, 1, 2, 3}, .pairs = 2};
    vdrv_open(&drv, vnet_new(&config, NULL));
    vdrv_start(&drv, UINT64_MAX);
    return 0;
}

static int teardown(void **state)
{
    unsigned before = frees;
    vdrv_close(&drv);
    assert_int_equal(frees, before + 1);
    return 0;
}

static bool receive(size_t len)
{
    static uint8_t frame[NET_HEADER_BYTES + NET_FRAME_MAX];
    for (size_t i = NET_HEADER_BYTES; i < len; i++) {
        frame[i] = (uint8_t)(i * 7);
    }
    const struct iovec iov[2] = {{frame, 100}, {frame + 100, len - 100}};
    return port.peer.receive(port.peer.opaque, iov, 2);
}

static void offer(uint32_t len)
{
    static unsigned n;
    const struct vdrv_buf buf = {BUFFER(n++ % 16), len, true};
    vdrv_add(&drv, 0, &buf, 1);
}

static void test_config(void **state)
{
    assert_true((vdrv_in(&drv, C_SPACE, 8) & 0xffffffffffff) == 0x030201daf002);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 6, 2), 1);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 8, 2), 2);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 10, 2), 9000);
    assert_int_equal(takes, NET_TAKES_ALL);
    port.link_up = false;
    port.peer.link_changed(port.peer.opaque);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 6, 2), 0);
    assert_int_equal(drv.msi_count[0], 1);
    port.link_up = true;
    port.peer.link_changed(port.peer.opaque);
    vnet_set_cable(drv.dev, false);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 6, 2), 0);
    vdrv_start(&drv, VIRTIO_F_COMMON);
    assert_int_equal(takes, 0);
}

static void test_transmit(void **state)
{
    uint32_t used = 0;
    const struct vdrv_buf bufs[2] = {{BUFFER(0), 12, false}, {BUFFER(1), 60, false}};
    vdrv_put(&drv, BUFFER(1), 0xabcdef, 8);
    vdrv_add(&drv, 1, bufs, 2);
    vdrv_kick(&drv, 1);
    assert_int_equal(sent, 1);
    assert_int_equal(sent_len, 72);
    assert_int_equal(sent_bytes[12], 0xef);
    assert_true(vdrv_used(&drv, 1, &used));
    full = true;
    vdrv_add(&drv, 1, bufs, 2);
    vdrv_kick(&drv, 1);
    assert_false(vdrv_used(&drv, 1, &used));
    full = false;
    port.peer.writable(port.peer.opaque);
    vdrv_run(&drv);
    assert_true(vdrv_used(&drv, 1, &used));
    assert_int_equal(sent, 2);
    const struct vdrv_buf odd[2] = {{BUFFER(0), 11, false}, {BUFFER(1), 100000, false}};
    vdrv_add(&drv, 1, &odd[0], 1);
    vdrv_add(&drv, 1, &odd[1], 1);
    vdrv_kick(&drv, 1);
    assert_int_equal(sent, 2); /* dropped, not fatal */
    assert_false(vdrv_needs_reset(&drv));
}

static void test_receive_mergeable(void **state)
{
    uint32_t used = 0;
    assert_false(receive(200)); /* no buffers */
    unsigned before = readables;
    offer(2048);
    vdrv_kick(&drv, 0);
    assert_int_equal(readables, before + 1);
    assert_true(receive(200));
    assert_true(vdrv_used(&drv, 0, &used));
    assert_int_equal(used, 200);
    for (unsigned i = 0; i < 3; i++) {
        offer(1500);
    }
    assert_false(receive(5000)); /* four would do */
    assert_false(vdrv_used(&drv, 0, &used));
    offer(1500);
    uint64_t first = vdrv_get(&drv, vdrv_ring(0) + 16 * ((drv.queues[0].next_desc + 12u) % VDRV_ENTRIES), 8);
    assert_true(receive(5000));
    assert_int_equal(vdrv_get(&drv, first + 10, 2), 4); /* num_buffers */
    uint32_t total = 0;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(vdrv_used(&drv, 0, &used));
        total += used;
    }
    assert_int_equal(total, 5000);
    assert_int_equal(vdrv_get(&drv, first + 1499, 1), (uint8_t)(1499 * 7));
    assert_int_equal(vdrv_get(&drv, first + 0x4000, 1), (uint8_t)(1500 * 7));
}

/* A frame that needs more buffers than there are waits for the next one: the driver, which notifies only at
 * avail_event, has to be told to notify behind those that are there already (virtio 1.2 section 2.7.10). */
static void test_receive_awaits_more(void **state)
{
    uint64_t avail_event = vdrv_ring(0) + 0x2000 + 4 + 8 * VDRV_ENTRIES;
    uint32_t used = 0;
    assert_false(receive(5000));
    assert_int_equal(vdrv_get(&drv, avail_event, 2), 0); /* notify with the first */
    for (unsigned i = 0; i < 3; i++) {
        offer(1500);
        assert_false(receive(5000));
        assert_int_equal(vdrv_get(&drv, avail_event, 2), i + 1);
        unsigned before = readables;
        vdrv_kick(&drv, 0);
        assert_int_equal(readables, before + 1);
    }
    offer(1500);
    assert_true(receive(5000));
    for (unsigned i = 0; i < 4; i++) {
        assert_true(vdrv_used(&drv, 0, &used));
    }
    /* A buffer that comes between the two looks is found by the second. */
    offer(1500);
    assert_true(receive(1400));
}

static void test_cable(void **state)
{
    uint32_t used = 0;
    offer(2048);
    unsigned before = drv.msi_count[0];
    vnet_set_cable(drv.dev, false);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 6, 2), 0);
    assert_int_equal(drv.msi_count[0], before + 1); /* a change of the configuration */
    assert_true(receive(200));                      /* lost */
    assert_false(vdrv_used(&drv, 0, &used));
    const struct vdrv_buf bufs[2] = {{BUFFER(0), 12, false}, {BUFFER(1), 60, false}};
    vdrv_add(&drv, 1, bufs, 2);
    vdrv_kick(&drv, 1);
    assert_true(vdrv_used(&drv, 1, &used)); /* the guest gets its buffers back */
    assert_int_equal(sent, 0);
    vnet_set_cable(drv.dev, true);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 6, 2), 1);
    assert_int_equal(drv.msi_count[0], before + 2);
    assert_true(receive(200));
    assert_true(vdrv_used(&drv, 0, &used));
    assert_int_equal(used, 200);
    port.link_up = false;
    port.peer.link_changed(port.peer.opaque);
    vnet_set_cable(drv.dev, false);
    vnet_set_cable(drv.dev, true);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 6, 2), 0); /* the other end is still down */
}

static void test_receive_plain(void **state)
{
    uint32_t used = 0;
    vdrv_start(&drv, VIRTIO_F_COMMON);
    offer(300);
    offer(3000);
    assert_true(receive(1000)); /* does not fit the buffer that is next: dropped */
    assert_false(vdrv_used(&drv, 0, &used));
    assert_true(receive(250));
    assert_true(vdrv_used(&drv, 0, &used));
    assert_int_equal(used, 250);
    offer(8);
    assert_true(receive(400));
    assert_true(receive(400));
    assert_true(vdrv_needs_reset(&drv)); /* a buffer smaller than a header */
}

static unsigned control(unsigned class, unsigned command, uint64_t data, unsigned len)
{
    uint32_t used = 0;
    vdrv_put(&drv, BUFFER(0), class | command << 8, 2);
    vdrv_put(&drv, BUFFER(0) + 2, data, 8);
    vdrv_put(&drv, BUFFER(1), 9, 1);
    const struct vdrv_buf bufs[2] = {{BUFFER(0), 2 + len, false}, {BUFFER(1), 1, true}};
    vdrv_add(&drv, 4, bufs, 2);
    vdrv_kick(&drv, 4);
    assert_true(vdrv_used(&drv, 4, &used));
    return (unsigned)vdrv_get(&drv, BUFFER(1), 1);
}

static void test_control(void **state)
{
    assert_int_equal(control(0, 0, 1, 1), 0);
    assert_int_equal(control(0, 9, 1, 1), 1);
    assert_int_equal(control(1, 1, 0x665544332202, 6), 0);
    assert_true((vdrv_in(&drv, C_SPACE, 8) & 0xffffffffffff) == 0x665544332202);
    assert_int_equal(control(1, 1, 0, 3), 1);
    assert_int_equal(control(4, 0, 2, 2), 0);
    assert_int_equal(control(4, 0, 3, 2), 1);
    assert_int_equal(control(4, 0, 0, 2), 1);
    assert_int_equal(control(5, 0, BIT64(1), 8), 0);
    assert_int_equal(takes, NET_TAKES_CSUM);
    assert_int_equal(control(77, 0, 0, 8), 1);
    const struct vdrv_buf no_ack = {BUFFER(0), 4, false};
    vdrv_add(&drv, 4, &no_ack, 1);
    vdrv_kick(&drv, 4);
    assert_true(vdrv_needs_reset(&drv));
    vdrv_start(&drv, UINT64_MAX); /* the MAC is the machine's again */
    assert_true((vdrv_in(&drv, C_SPACE, 8) & 0xffffffffffff) == 0x030201daf002);
}

static void test_features(void **state)
{
    static const uint64_t bad[] = {BIT64(7), BIT64(11), BIT64(22), BIT64(23)}; /* without what they need */
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        vdrv_reset(&drv);
        vdrv_out(&drv, C_DRIVER_SELECT, 4, 0);
        vdrv_out(&drv, C_DRIVER_FEATURE, 4, bad[i]);
        vdrv_out(&drv, C_DRIVER_SELECT, 4, 1);
        vdrv_out(&drv, C_DRIVER_FEATURE, 4, 1);
        vdrv_out(&drv, C_STATUS, 1, 11);
        assert_int_equal(vdrv_in(&drv, C_STATUS, 1), 3 & vdrv_in(&drv, C_STATUS, 1));
    }
}

static void test_hammer(void **state)
{
    vdrv_hammer(&drv, UINT64_MAX, 60);
}

/* --- offload.c --- */

struct emitted {
    unsigned count;
    size_t payload;
    bool good;
};

static uint32_t plain_sum(const uint8_t *p, size_t len, uint32_t sum)
{
    for (size_t i = 0; i < len; i++) {
        sum += i % 2 ? p[i] : (uint32_t)p[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static bool tcp4_good(const uint8_t *f, size_t len)
{
    size_t total = (size_t)(f[16] << 8 | f[17]);
    uint32_t sum = plain_sum(f + 26, 8, (uint32_t)(total - 20) + 6);
    return total == len - 14 && plain_sum(f + 14, 20, 0) == 0xffff &&
           plain_sum(f + 34, total - 20, sum) == 0xffff;
}

static void on_emit(void *opaque, const uint8_t *frame, size_t len)
{
    struct emitted *e = opaque;
    const uint8_t *f = frame + NET_HEADER_BYTES;
    uint32_t sequence = (uint32_t)f[38] << 24 | (uint32_t)f[39] << 16 | (uint32_t)f[40] << 8 | f[41];
    e->good &= tcp4_good(f, len - NET_HEADER_BYTES) && sequence == 1000 + e->payload &&
               f[54] == (uint8_t)(e->payload * 3);
    e->payload += len - NET_HEADER_BYTES - 54;
    e->count++;
}

static size_t make_tcp(uint8_t *buf, size_t payload, unsigned gso)
{
    uint8_t *f = buf + NET_HEADER_BYTES;
    struct net_header header = {.flags = NET_CSUM_PARTIAL, .csum_start = 34, .csum_offset = 16};
    header.gso_type = gso ? NET_GSO_TCPV4 : 0;
    header.gso_size = (uint16_t)gso;
    header.hdr_len = 54;
    memcpy(buf, &header, sizeof(header));
    memset(f, 0, 54);
    size_t total = 40 + payload;
    f[12] = 8;
    f[14] = 0x45;
    f[16] = (uint8_t)(total >> 8);
    f[17] = (uint8_t)total;
    f[22] = 64;
    f[23] = 6;
    f[26] = 10;
    f[30] = 11;
    uint32_t sum = ~plain_sum(f + 14, 20, 0) & 0xffff;
    f[24] = (uint8_t)(sum >> 8);
    f[25] = (uint8_t)sum;
    f[40] = 1000 >> 8;
    f[41] = (uint8_t)1000;
    f[46] = 0x50;
    f[47] = 0x19;
    uint32_t pseudo = plain_sum(f + 26, 8, (uint32_t)(20 + payload) + 6);
    f[50] = (uint8_t)(pseudo >> 8);
    f[51] = (uint8_t)pseudo;
    for (size_t i = 0; i < payload; i++) {
        f[54 + i] = (uint8_t)(i * 3);
    }
    return NET_HEADER_BYTES + 54 + payload;
}

static void test_offload(void **state)
{
    static uint8_t buf[NET_HEADER_BYTES + NET_FRAME_MAX];
    static const struct {
        size_t payload;
        unsigned gso, takes, count;
    } cases[] = {{100, 0, 0, 1},     {1, 0, 0, 1},         {1460, 1460, 0, 1},
                 {1461, 1460, 0, 2}, {60000, 1448, 0, 42}, {5000, 1000, NET_TAKES_CSUM, 5}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct emitted e = {.good = true};
        size_t len = make_tcp(buf, cases[i].payload, cases[i].gso);
        assert_true(net_frame_lower(buf, len, cases[i].takes, on_emit, &e));
        assert_true(e.good);
        assert_int_equal(e.count, cases[i].count);
        assert_int_equal(e.payload, cases[i].payload);
    }
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 20000; i++) {
        struct emitted e = {0};
        size_t len = make_tcp(buf, unit_random(&rng) % 3000, 500);
        for (unsigned j = 0; j < 4; j++) {
            buf[unit_random(&rng) % 70] = (uint8_t)unit_random(&rng);
        }
        net_frame_lower(buf, unit_random(&rng) % 2 ? len : unit_random(&rng) % len, (unsigned)i % 16, on_emit,
                        &e);
    }
}

static void test_forwards(void **state)
{
    struct net_forward f;
    struct err err = {0};
    assert_int_equal(net_forward_parse("2222:22", &f, NULL), 0);
    assert_int_equal(f.host_port, 2222);
    assert_int_equal(f.guest_port, 22);
    assert_string_equal(f.host_address, "127.0.0.1");
    assert_int_equal(net_forward_parse("0.0.0.0:53:5353/udp", &f, NULL), 0);
    assert_true(f.udp);
    assert_string_equal(f.host_address, "0.0.0.0");
    static const char *const bad[] = {"",         "22",    ":22",   "22:",      "0:22",
                                      "70000:22", "a:b:c", "x:1:2", "1:2/sctp", "-1:2"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_true(net_forward_parse(bad[i], &f, &err) < 0);
        assert_non_null(strchr(err.text, '\''));
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_config),
        T(test_transmit),
        T(test_receive_mergeable),
        T(test_receive_awaits_more),
        T(test_cable),
        T(test_receive_plain),
        T(test_control),
        T(test_features),
        T(test_hammer),
        cmocka_unit_test(test_offload),
        cmocka_unit_test(test_forwards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
