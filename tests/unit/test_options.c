/*
 * Option tables, sizes and numbers; and the options of `fonda run`.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/options.h"
#include "base/util.h"
#include "vm/config.h"
#include "vm/status.h"

static void test_sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"512M", 512 * MiB}, {"1G", GiB},        {"1.5G", GiB + GiB / 2}, {"64k", 64 * KiB},
        {"64KiB", 65536},    {"1T", 1024 * GiB}, {"0.25M", 256 * KiB},    {"2MB", 2 * MiB},
        {"0G", 0},           {"1.G", GiB},       {"1.0000000001K", 1024},
    };
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        uint64_t bytes = 77;
        assert_int_equal(parse_size(good[i].text, &bytes, NULL), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
    static const char *const bad[] = {"",      "M",   "512", "1.5", "12x", "1MM",
                                      "1MiBs", "-1M", " 1M", "1 M", ".5M", "1e3M"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t bytes = 77;
        struct err err = {0};
        assert_int_equal(parse_size(bad[i], &bytes, &err), -EINVAL);
        assert_int_equal(bytes, 77);
        assert_int_not_equal(err.text[0], 0);
    }
    uint64_t bytes;
    assert_int_equal(parse_size("8388607T", &bytes, NULL), 0);
    assert_int_equal(parse_size("8388608T", &bytes, NULL), -ERANGE);
    assert_int_equal(parse_size("99999999999999999999999T", &bytes, NULL), -ERANGE);
}

static void test_numbers(void **state)
{
    uint64_t v = 7;
    assert_int_equal(parse_uint("18446744073709551615", &v, NULL), 0);
    assert_true(v == UINT64_MAX);
    assert_int_equal(parse_uint("18446744073709551616", &v, NULL), -ERANGE);
    assert_int_equal(parse_uint("", &v, NULL), -EINVAL);
    assert_int_equal(parse_uint("+1", &v, NULL), -EINVAL);
    assert_int_equal(parse_uint("1 ", &v, NULL), -EINVAL);
}

static void test_format_size(void **state)
{
    char text[32];
    format_size(512 * MiB, text, sizeof(text));
    assert_string_equal(text, "512 MiB");
    format_size(GiB + GiB / 2, text, sizeof(text));
    assert_string_equal(text, "1.5 GiB");
    format_size(UINT64_MAX, text, sizeof(text));
    assert_string_equal(text, "16777215.9 TiB");
}

static int parse(struct vm_config *config, struct err *err, const char *a, const char *b, const char *c,
                 const char *d)
{
    char *argv[] = {"run", (char *)a, (char *)b, (char *)c, (char *)d, NULL};
    int argc = 1;
    while (argv[argc]) {
        argc++;
    }
    return vm_config_parse(argc, argv, 1, config, err);
}

static void test_config(void **state)
{
    struct vm_config config;
    struct err err = {0};
    assert_int_equal(parse(&config, &err, "--kernel", "k", NULL, NULL), 0);
    assert_string_equal(config.kernel, "k");
    assert_string_equal(config.engine, "bt");
    assert_string_equal(config.serial, "stdio");
    assert_int_equal(config.memory_bytes, 512 * MiB);
    assert_int_equal(config.cpus, 1);
    assert_int_equal(config.timeout_s, 0);
    assert_false(config.stats);
    assert_int_equal(parse(&config, &err, "--kernel=k=1", "--stats", "--initrd=a", "--initrd=b"), 0);
    assert_string_equal(config.kernel, "k=1");
    assert_true(config.stats);
    assert_int_equal(config.initrds.count, 2);
    assert_string_equal(config.initrds.values[1], "b");
    assert_int_equal(parse(&config, &err, "--kernel=k", "--memory=1234567.1K", NULL, NULL), 0);
    assert_int_equal(config.memory_bytes % 4096, 0);
    assert_int_equal(parse(&config, &err, "--help", NULL, NULL, NULL), 0);
    assert_true(config.help);
    assert_int_equal(parse(&config, &err, "--stats", "--", "x", "y"), -EINVAL);
    assert_string_equal(err.text, "unexpected argument 'y': further disks go by --disk");
    /* A disk by its name alone is the first, wherever it stands. */
    assert_int_equal(parse(&config, &err, "--disk=b", "a,readonly", "--disk", "c"), 0);
    assert_null(config.kernel);
    assert_int_equal(config.disks.count, 3);
    assert_string_equal(config.disks.values[0], "a,readonly");
    assert_string_equal(config.disks.values[1], "b");
    assert_string_equal(config.disks.values[2], "c");
    assert_int_equal(parse(&config, &err, "--memory=1G", NULL, NULL, NULL), -EINVAL);
    assert_string_equal(err.text, "nothing to boot: name a disk image, or --kernel FILE");
    assert_int_equal(parse(&config, &err, "a", "--initrd=i", NULL, NULL), -EINVAL);
    assert_string_equal(err.text, "--initrd needs --kernel");
    assert_int_equal(parse(&config, &err, "--kerne", "k", NULL, NULL), -EINVAL);
    assert_string_equal(err.text, "unknown option '--kerne'");
}

static void test_too_many(void **state)
{
    char *argv[1 + 2 * (OPTION_LIST_MAX + 1) + 1] = {"run"};
    int argc = 1;
    for (int i = 0; i <= OPTION_LIST_MAX; i++) {
        argv[argc++] = "--initrd";
        argv[argc++] = "f";
    }
    struct vm_config config;
    struct err err = {0};
    assert_int_equal(vm_config_parse(argc, argv, 1, &config, &err), -EINVAL);
    assert_string_equal(err.text, "--initrd: given more than 16 times");
}

/* No named status may look like an exit-port value. */
static void test_statuses(void **state)
{
    static const int named[] = {VM_STATUS_OFF,      VM_STATUS_USAGE,  VM_STATUS_PANIC,
                                VM_STATUS_SHUTDOWN, VM_STATUS_KILLED, VM_STATUS_ENGINE,
                                VM_STATUS_HALTED,   VM_STATUS_HOST,   VM_STATUS_TIMEOUT};
    for (size_t i = 0; i < ARRAY_SIZE(named); i++) {
        assert_int_equal(named[i] % 2, 0);
        assert_string_not_equal(vm_status_name(named[i]), "unknown");
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(named[i], named[j]);
        }
    }
    assert_string_equal(vm_status_name(11), "exit port");
    assert_string_equal(vm_status_name(12), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),  cmocka_unit_test(test_numbers),  cmocka_unit_test(test_format_size),
        cmocka_unit_test(test_config), cmocka_unit_test(test_too_many), cmocka_unit_test(test_statuses),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
