/*
 * vm/gdb without a socket and a machine: framing, registers, and a bounded share of random and mutated input
 * (the fuzzer fuzz/gdb.c runs more of it).
 */
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "fuzz/gdb_target.h"
#include "vm/gdb/registers.h"

#define CASES 3000u

static char out[65536];
static size_t out_len;

static void collect(const void *bytes, size_t len)
{
    size_t n = MIN(len, sizeof(out) - 1 - out_len);
    memcpy(out + out_len, bytes, n);
    out_len += n;
    out[out_len] = '\0';
}

static const char *say(struct gdb *gdb, const char *text)
{
    char packet[1024];
    uint8_t sum = 0;
    for (const char *c = text; *c; c++) {
        sum = (uint8_t)(sum + (uint8_t)*c);
    }
    int n = snprintf(packet, sizeof(packet), "$%s#%02x", text, sum);
    out_len = 0;
    gdb_input(gdb, (const uint8_t *)packet, (size_t)n);
    return out;
}

static void test_packets(void **state)
{
    struct gdb *gdb = fake_gdb_new(collect);
    gdb_attached(gdb);
    assert_string_equal(say(gdb, "qC"), "+$QC1#c5");
    assert_string_equal(say(gdb, "qAttached"), "+$1#31");
    assert_string_equal(say(gdb, "QStartNoAckMode"), "+$OK#9a");
    assert_string_equal(say(gdb, "H g0"), "$E16#ac");
    assert_string_equal(say(gdb, "M1000,4:01020304"), "$OK#9a");
    assert_string_equal(say(gdb, "m1000,4"), "$01020304#8a");
    assert_string_equal(say(gdb, "X1000,2:}\x03*"), "$OK#9a"); /* an escaped '#' */
    assert_string_equal(say(gdb, "m1000,4"), "$232a0304#bf");
    /* A range that leaves what is mapped is cut; one that begins outside of it is refused. */
    assert_string_equal(say(gdb, "mfffe,4"), "$0000#c0");
    assert_string_equal(say(gdb, "m10000,4"), "$E0e#da");
    assert_string_equal(say(gdb, "p10"), "$f0ff000000000000#a2");
    assert_string_equal(say(gdb, "P10=0010000000000000"), "$OK#9a");
    assert_string_equal(say(gdb, "p10"), "$0010000000000000#01");
    gdb_free(gdb);
}

static void test_registers_round_trip(void **state)
{
    static struct gdb_registers registers;
    static struct x86_state machine;
    gdb_registers_init(&registers);
    assert_true(registers.count >= 24 + 16 + 17 + 2);
    assert_true(registers.xml_len < GDB_XML_MAX - 1);
    for (unsigned i = 0; i < registers.count; i++) {
        uint8_t value[GDB_REGISTER_BYTES_MAX], got[GDB_REGISTER_BYTES_MAX];
        memset(&machine, 0, sizeof(machine));
        for (unsigned j = 0; j < registers.reg[i].bytes; j++) {
            value[j] = (uint8_t)(i + j + 1);
        }
        bool flags = strcmp(registers.reg[i].name, "eflags") == 0, narrow = registers.reg[i].bytes == 4;
        if (flags) {
            value[0] |= 2;
        } else if (narrow && strcmp(registers.reg[i].name, "mxcsr") != 0) {
            value[2] = value[3] = 0; /* x87's have 16 bits, or 32 */
        }
        if (!gdb_register_set(&registers, &machine, i, value) || strcmp(registers.reg[i].name, "ftag") == 0) {
            continue; /* selectors, CR8; and a tag word is made from the registers */
        }
        assert_int_equal(gdb_register_get(&registers, &machine, 0, i, got), registers.reg[i].bytes);
        assert_memory_equal(got, value, registers.reg[i].bytes);
    }
}

static void test_random(void **state)
{
    srand(1);
    for (unsigned i = 0; i < CASES; i++) {
        uint8_t input[600];
        size_t len = (size_t)rand() % sizeof(input);
        for (size_t j = 0; j < len; j++) {
            input[j] = (uint8_t)rand();
        }
        fake_gdb_fuzz(input, len);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packets),
        cmocka_unit_test(test_registers_round_trip),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
