/*
 * Sections of named fields: both ways, every mistake by name, and damaged bytes.
 */
#include "unit.h"

#include <errno.h>
#include <string.h>

#include "base/state.h"
#include "base/util.h"

struct part {
    bool flag;
    uint8_t a;
    uint16_t b;
    uint32_t c, list[3];
    uint64_t d;
    int64_t e;
};

static void part_state(struct state *s, const char *name, struct part *part)
{
    state_begin(s, name, 2);
    state_field(s, "flag", &part->flag);
    state_field(s, "a", &part->a);
    state_prefix(s, "inner%u.", 7);
    state_field(s, "b", &part->b);
    state_field(s, "c", &part->c);
    state_no_prefix(s);
    state_array(s, "list", part->list);
    state_field(s, "d", &part->d);
    state_field(s, "e", &part->e);
    state_require(s, part->a < 100, "a");
    state_end(s);
}

static const struct part sample = {true, 1, 2, 3, {4, 5, 6}, UINT64_MAX, -5};

static size_t encode(const struct part *part, uint8_t *buf, size_t size)
{
    struct part copy = *part;
    struct state *s = state_new_writer();
    size_t len;
    part_state(s, "part.0", &copy);
    part_state(s, "part.1", &copy);
    const void *bytes = state_encoded(s, &len);
    assert_non_null(bytes);
    assert_true(len <= size);
    memcpy(buf, bytes, len);
    state_free(s);
    return len;
}

static int load(const uint8_t *bytes, size_t len, struct part *ret, struct err *err)
{
    struct state *s = NULL;
    int rc = state_new_reader(bytes, len, &s, err);
    if (rc == 0) {
        part_state(s, "part.0", &ret[0]);
        part_state(s, "part.1", &ret[1]);
        rc = state_finish(s, err);
    }
    state_free(s);
    return rc;
}

static void test_crc(void **state)
{
    /* RFC 3720 appendix B.4 */
    uint8_t bytes[32] = {0};
    assert_int_equal(state_crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, sizeof(bytes));
    assert_int_equal(state_crc32c(0, bytes, 32), 0x62a8ab43);
    assert_int_equal(state_crc32c(state_crc32c(0, bytes, 5), bytes + 5, 27), 0x62a8ab43);
}

static void test_both_ways(void **state)
{
    uint8_t buf[2048];
    struct part got[2] = {0};
    struct err err = {0};
    size_t len = encode(&sample, buf, sizeof(buf));
    assert_int_equal(load(buf, len, got, &err), 0);
    assert_memory_equal(&got[0].list, &sample.list, sizeof(sample.list));
    assert_true(got[1].flag && got[1].a == 1 && got[1].b == 2 && got[1].c == 3 && got[1].d == UINT64_MAX &&
                got[1].e == -5);
}

static void test_mistakes_by_name(void **state)
{
    uint8_t buf[2048];
    struct part got[2] = {0}, bad = sample;
    struct err err = {0};
    bad.a = 100;
    size_t len = encode(&bad, buf, sizeof(buf));
    assert_int_equal(load(buf, len, got, &err), -EBADMSG);
    assert_string_equal(err.text, "section 'part.0': field 'a' has a value that can't be");

    struct state *s = NULL;
    len = encode(&sample, buf, sizeof(buf));
    assert_int_equal(state_new_reader(buf, len, &s, &err), 0);
    uint32_t wrong;
    state_begin(s, "part.0", 2);
    state_field(s, "d", &wrong);
    assert_int_equal(state_error(s, &err), -EBADMSG);
    assert_string_equal(err.text, "section 'part.0': field 'd' has another type or size");
    state_free(s);

    assert_int_equal(state_new_reader(buf, len, &s, &err), 0);
    state_begin(s, "part.0", 1);
    assert_int_equal(state_error(s, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "its version is 2"));
    state_free(s);

    assert_int_equal(state_new_reader(buf, len, &s, &err), 0);
    part_state(s, "part.0", &got[0]);
    assert_int_equal(state_finish(s, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "section 'part.1' is unknown"));
    state_free(s);

    assert_int_equal(state_new_reader(buf, len, &s, &err), 0);
    state_begin(s, "part.2", 2);
    assert_int_equal(state_error(s, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "section 'part.2' is missing"));
    state_free(s);
}

/* Any changed bit and any cut is found out. */
static void test_damage(void **state)
{
    uint8_t buf[2048];
    struct part got[2];
    struct err err = {0};
    size_t len = encode(&sample, buf, sizeof(buf));
    for (size_t bit = 0; bit < len * 8; bit++) {
        buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(load(buf, len, got, &err), -EBADMSG);
        buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t cut = 0; cut < len; cut++) {
        assert_int_equal(load(buf, cut, got, &err), -EBADMSG);
    }
    assert_int_equal(load(buf, len, got, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_crc), cmocka_unit_test(test_both_ways),
                                       cmocka_unit_test(test_mistakes_by_name),
                                       cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
