/* core/container_spec.c: forms of containers' members, and the member that a refusal names. */
#include "tests/unit/unit.h"

#include <string.h>

#include "base/util.h"
#include "core/core_int.h"

static const struct {
    const char *spec, *refused; /* the member; NULL: fine */
} cases[] = {
    {"{}", NULL},
    {"{\"cpu_limit\": \"1\"}", NULL},
    {"{\"cpu_limit\": \"0.01\"}", NULL},
    {"{\"cpu_limit\": \"10000\"}", NULL},
    {"{\"cpu_limit\": \"lots\"}", "cpu_limit"},
    {"{\"cpu_limit\": \"0\"}", "cpu_limit"},
    {"{\"cpu_limit\": \"0.001\"}", "cpu_limit"},
    {"{\"cpu_limit\": \"-1\"}", "cpu_limit"},
    {"{\"cpu_limit\": \"1.5x\"}", "cpu_limit"},
    {"{\"cpu_limit\": \"nan\"}", "cpu_limit"},
    {"{\"cpu_limit\": \"1e99\"}", "cpu_limit"},
    {"{\"env\": [\"A=1\", \"B=\", \"C\"]}", NULL},
    {"{\"env\": [\"A=1\", \"=1\"]}", "env"},
    {"{\"env\": [\"\"]}", "env"},
    {"{\"publish\": [\"8080:80\", \"127.0.0.1:8080:80/udp\", \"1:65535/tcp\"]}", NULL},
    {"{\"publish\": [\"80\"]}", "publish"},
    {"{\"publish\": [\":80\"]}", "publish"},
    {"{\"publish\": [\"80:\"]}", "publish"},
    {"{\"publish\": [\"0:80\"]}", "publish"},
    {"{\"publish\": [\"80:65536\"]}", "publish"},
    {"{\"publish\": [\"80:1000000\"]}", "publish"},
    {"{\"publish\": [\"host:80:80\"]}", "publish"},
    {"{\"publish\": [\"1.2.3:80:80\"]}", "publish"},
    {"{\"publish\": [\"80:80/sctp\"]}", "publish"},
    {"{\"publish\": [\"1111.2222.3333.4444:80:80\"]}", "publish"},
    {"{\"publish\": [\"/udp\"]}", "publish"},
    {"{\"publish\": [\"\"]}", "publish"},
    {"{\"mounts\": [\"/a:/b\", \"data:/b:ro\", \"./x:/y\"]}", NULL},
    {"{\"mounts\": [\"/a\"]}", "mounts"},
    {"{\"mounts\": [\":/b\"]}", "mounts"},
    {"{\"mounts\": [\"a:b\"]}", "mounts"},
};

static void test_forms(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct fault fault = {0};
        json_t *spec = json_loads(cases[i].spec, 0, NULL);
        assert_non_null(spec);
        int rc = container_spec_check(spec, &fault);
        char named[64];
        snprintf(named, sizeof(named), "'%s': ", cases[i].refused ? cases[i].refused : "");
        if (rc != (cases[i].refused ? -1 : 0) ||
            (rc < 0 && strncmp(fault.detail, named, strlen(named)) != 0)) {
            fail_msg("%s: %d %s", cases[i].spec, rc, fault.detail);
        }
        assert_true(rc == 0 || (fault.code == FAULT_INVALID && fault.hint[0]));
        json_decref(spec);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
