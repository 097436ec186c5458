/* config.json: what is decoded, and what is refused with which words. */
#include "base/util.h"
#include "container/config.h"
#include "container/json.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include <cmocka.h>

#define HEAD    "{\"ociVersion\":\"1.3.0\",\"root\":{\"path\":\"r\"},"
#define MOUNTNS "\"linux\":{\"namespaces\":[{\"type\":\"mount\"}]}"

static int parse(struct oci_config *config, const char *text, struct err *err)
{
    err->text[0] = '\0';
    return config_parse(config, text, strlen(text), "config.json", err);
}

static void test_minimal(void **unused)
{
    struct oci_config c;
    struct err err;
    assert_int_equal(parse(&c, HEAD MOUNTNS "}", &err), 0);
    assert_string_equal(c.root_path, "r");
    assert_false(c.has_process);
    config_free(&c);
}

static void test_refusals(void **unused)
{
    static const struct {
        const char *text;
        const char *why;
    } bad[] = {
        {"", "config.json"},
        {"[]", "object"},
        {"{}", "ociVersion"},
        {"{\"ociVersion\":\"2.0.0\",\"root\":{\"path\":\"r\"}}", "not supported"},
        {"{\"ociVersion\":\"x\",\"root\":{\"path\":\"r\"}}", "not a version"},
        {"{\"ociVersion\":\"1.0.0\"}", "root.path"},
        {HEAD "\"process\":{\"cwd\":\"x\"}," MOUNTNS "}", "absolute"},
        {HEAD "\"process\":{\"cwd\":\"/\",\"args\":[1]}," MOUNTNS "}", "array of strings"},
        {HEAD "\"process\":{\"cwd\":\"/\",\"user\":{\"uid\":-1}}," MOUNTNS "}", "process.user.uid"},
        {HEAD "\"process\":{\"cwd\":\"/\",\"oomScoreAdj\":1001}," MOUNTNS "}", "oomScoreAdj"},
        {HEAD "\"linux\":{}}", "mount namespace"},
        {HEAD "\"linux\":{\"namespaces\":[{\"type\":\"x\"}]}}", "unknown type 'x'"},
        {HEAD "\"hostname\":\"h\"," MOUNTNS "}", "uts"},
        {HEAD "\"mounts\":[{}]," MOUNTNS "}", "destination"},
        {HEAD "\"mounts\":[{\"destination\":\"/x\",\"options\":[\"rbind\"]}]," MOUNTNS "}", "source"},
        {HEAD "\"hooks\":{\"prestart\":[{\"path\":\"x\"}]}," MOUNTNS "}", "absolute"},
        {HEAD "\"hooks\":{\"prestart\":[{\"path\":\"/x\",\"timeout\":0}]}," MOUNTNS "}", "timeout"},
        {HEAD "\"annotations\":{\"a\":1}," MOUNTNS "}", "annotations"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct oci_config c;
        struct err err;
        assert_true(parse(&c, bad[i].text, &err) < 0);
        if (!strstr(err.text, bad[i].why)) {
            fail_msg("'%s' is not in '%s'", bad[i].why, err.text);
        }
    }
}

static void test_unsigned_integers(void **unused)
{
    struct oci_config c;
    struct err err;
    const char *text = HEAD
        "\"process\":{\"cwd\":\"/\",\"args\":[\"18446744073709551615\"],\"rlimits\":["
        "{\"type\":\"RLIMIT_CORE\",\"soft\":9223372036854775808,\"hard\":18446744073709551615}]}," MOUNTNS
        "}";
    assert_int_equal(parse(&c, text, &err), 0);
    assert_true(c.process.rlimits[0].soft == 1ull << 63);
    assert_true(c.process.rlimits[0].hard == UINT64_MAX);
    assert_string_equal(c.process.args[0], "18446744073709551615");
    config_free(&c);
}

static void test_mount_options(void **unused)
{
    struct oci_config c;
    struct err err;
    size_t count;
    const char *const *names = config_mount_option_names(&count);
    for (size_t i = 1; i < count; i++) { /* the table is searched by halving */
        assert_true(strcmp(names[i - 1], names[i]) < 0);
    }
    assert_int_equal(
        parse(&c,
              HEAD
              "\"mounts\":[{\"destination\":\"/a\",\"source\":\"/b\",\"options\":[\"rbind\",\"ro\",\"rw\","
              "\"noexec\",\"noatime\",\"rro\",\"rslave\",\"x=1\",\"y\"]}]," MOUNTNS "}",
              &err),
        0);
    const struct oci_mount *m = &c.mounts[0];
    assert_true(m->bind && m->recursive);
    assert_true(m->attr_set == (MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME));
    assert_true(m->attr_clear == (MOUNT_ATTR_RDONLY | MOUNT_ATTR__ATIME));
    assert_true(m->rec_set == MOUNT_ATTR_RDONLY);
    assert_true(m->propagation == (MS_SLAVE | MS_REC));
    assert_string_equal(m->data, "x=1,y");
    config_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_minimal),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_unsigned_integers),
        cmocka_unit_test(test_mount_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
