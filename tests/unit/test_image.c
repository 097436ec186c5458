/*
 * Parsers of image/: references, platforms, auth files, words of Containerfiles, ways through hostile trees.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "image/auth.h"
#include "image/containerfile.h"
#include "image/fs.h"
#include "image/manifest.h"
#include "image/ref.h"

#define HEX64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void references(void **state)
{
    static const char *const good[][2] = {
        {"debian", "docker.io/library/debian:latest"},
        {"debian:12", "docker.io/library/debian:12"},
        {"a/b", "docker.io/a/b:latest"},
        {"docker.io/debian", "docker.io/library/debian:latest"},
        {"index.docker.io/a/b:c", "docker.io/a/b:c"},
        {"localhost/x", "localhost/x:latest"},
        {"localhost:5000/x/y:1", "localhost:5000/x/y:1"},
        {"[::1]:5000/x", "[::1]:5000/x:latest"},
        {"r.example/a__b-c.d--e:V_1", "r.example/a__b-c.d--e:V_1"},
        {"x@sha256:" HEX64, "docker.io/library/x@sha256:" HEX64},
        {"x:1@sha256:" HEX64, "docker.io/library/x:1@sha256:" HEX64},
    };
    static const char *const bad[] = {"",
                                      ":",
                                      "A",
                                      "a//b",
                                      "/a",
                                      "a/",
                                      "a:",
                                      "a:.x",
                                      "a___b",
                                      "a..b",
                                      "-a",
                                      "a-",
                                      "a@sha256:12",
                                      ("a@md5:" HEX64),
                                      "host.example:99999999/x",
                                      "host.example:/x",
                                      "a b",
                                      "../x",
                                      "a/../b",
                                      "x.y/",
                                      "a:b:c"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct image_ref ref;
        struct err err;
        char text[REF_TEXT_MAX];
        assert_int_equal(image_ref_parse(good[i][0], &ref, &err), 0);
        image_ref_format(&ref, text);
        assert_string_equal(text, good[i][1]);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct image_ref ref;
        struct err err;
        if (image_ref_parse(bad[i], &ref, &err) != -EINVAL) {
            fail_msg("'%s' was accepted", bad[i]);
        }
    }
    assert_string_equal(image_ref_short("docker.io/library/x:1"), "x:1");
    assert_string_equal(image_ref_short("docker.io/a/x:1"), "a/x:1");
    assert_string_equal(image_ref_short("r.example/a:1"), "r.example/a:1");
}

static void platforms(void **state)
{
    struct platform p;
    struct err err;
    assert_int_equal(platform_parse("linux/arm/v7", &p, &err), 0);
    assert_string_equal(p.arch, "arm");
    assert_string_equal(p.variant, "v7");
    assert_int_equal(platform_parse("arm64", &p, &err), 0);
    assert_string_equal(p.os, "linux");
    assert_int_equal(platform_parse("a/b/c/d", &p, &err), -EINVAL);
    assert_int_equal(platform_parse("/x", &p, &err), -EINVAL);
    assert_int_equal(platform_parse("", &p, &err), -EINVAL);
}

static void auth_files(void **state)
{
    static const char text[] =
        "{\"auths\": {\"https://index.docker.io/v1/\": {\"auth\": \"YW5uOnNlY3JldA==\"},"
        " \"r.example\": {\"auth\": \"Ym9iOng=\"}, \"r.example/team\": {\"auth\": \"ZXZlOnk=\"},"
        " \"t.example\": {\"identitytoken\": \"tok\"}, \"bad.example\": {\"auth\": \"%%%\"}},"
        " \"credHelpers\": {\"h.example\": \"box\", \"evil.example\": \"../x\"}}";
    static struct auth auth;
    char helper[64];
    struct err err;
    assert_int_equal(auth_parse(text, strlen(text), "docker.io", "library/x", &auth, helper, &err), 1);
    assert_string_equal(auth.user, "ann");
    assert_string_equal(auth.password, "secret");
    assert_int_equal(auth_parse(text, strlen(text), "r.example", "other/x", &auth, helper, &err), 1);
    assert_string_equal(auth.user, "bob");
    assert_int_equal(auth_parse(text, strlen(text), "r.example", "team/x", &auth, helper, &err), 1);
    assert_string_equal(auth.user, "eve");
    assert_int_equal(auth_parse(text, strlen(text), "r.example", "teamster/x", &auth, helper, &err), 1);
    assert_string_equal(auth.user, "bob");
    assert_int_equal(auth_parse(text, strlen(text), "t.example", "x", &auth, helper, &err), 1);
    assert_string_equal(auth.identity_token, "tok");
    assert_int_equal(auth_parse(text, strlen(text), "none.example", "x", &auth, helper, &err), 0);
    assert_int_equal(auth_parse(text, strlen(text), "bad.example", "x", &auth, helper, &err), -EINVAL);
    assert_int_equal(auth_parse(text, strlen(text), "h.example", "x", &auth, helper, &err), 0);
    assert_string_equal(helper, "box");
    assert_int_equal(auth_parse(text, strlen(text), "evil.example", "x", &auth, helper, &err), -EINVAL);
    assert_int_equal(auth_parse("[", 1, "r.example", "x", &auth, helper, &err), -EINVAL);
}

static const char *lookup(void *opaque, const char *name, size_t length)
{
    return length == 1 && *name == 'A' ? "value" : length == 1 && *name == 'E' ? "" : NULL;
}

static void words(void **state)
{
    static const char *const cases[][2] = {
        {"$A", "value"},      {"${A}x", "valuex"}, {"'$A'", "$A"},         {"\"$A b\"", "value b"},
        {"\\$A", "$A"},       {"${N:-d}", "d"},    {"${E:-d}", "d"},       {"${E-d}", ""},
        {"${A:-d}", "value"}, {"${A:+s}", "s"},    {"${N:+s}", ""},        {"${N:-${A}}", "value"},
        {"$N$", "$"},         {"a\\ b", "a b"},    {"\"a\\\"b\"", "a\"b"}, {"\"a\\nb\"", "a\\nb"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *text = NULL;
        struct err err;
        assert_int_equal(cf_expand(cases[i][0], '\\', lookup, NULL, &text, &err), 0);
        assert_string_equal(text, cases[i][1]);
        free(text);
    }
    char **list = NULL;
    struct err err;
    assert_int_equal(cf_split("a \"b c\" d\\ e", '\\', &list, &err), 0);
    assert_string_equal(list[1], "\"b c\"");
    assert_string_equal(list[2], "d\\ e");
    assert_null(list[3]);
    cf_free_words(list);
    char *text = NULL;
    assert_int_equal(cf_expand("${A%x}", '\\', lookup, NULL, &text, &err), -EINVAL);
}

/* The same answers with openat2() and without. */
static void ways(void **state)
{
    char top[] = "/tmp/fonda-test-image-XXXXXX";
    assert_non_null(mkdtemp(top));
    int root = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(mkdirat(root, "d", 0755), 0);
    assert_int_equal(symlinkat("/d", root, "absolute"), 0);
    assert_int_equal(symlinkat("../../../../d", root, "up"), 0);
    assert_int_equal(symlinkat("loop", root, "loop"), 0);
    close(openat(root, "d/f", O_CREAT | O_WRONLY, 0644));
    struct stat wanted, st;
    assert_int_equal(fstatat(root, "d/f", &wanted, 0), 0);
    for (int pass = 0; pass < 2; pass++) {
        setenv("FONDA_IMAGE_FORCE", pass ? "no-openat2" : "", 1);
        static const char *const inside[] = {"absolute/f", "up/f",        "/d/f",
                                             "../../d/f",  "d/./../d//f", "absolute/../d/f"};
        for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++) {
            int fd = fs_open(root, inside[i], O_RDONLY, 0, FS_IN_ROOT);
            assert_true(fd >= 0 && fstat(fd, &st) == 0 && st.st_ino == wanted.st_ino);
            close(fd);
            assert_true(i == 4 || fs_open(root, inside[i], O_RDONLY, 0, FS_NO_LINKS) < 0);
        }
        assert_int_equal(fs_open(root, "loop", O_RDONLY, 0, FS_IN_ROOT), -ELOOP);
        assert_int_equal(fs_open(root, "none/x", O_RDONLY, 0, FS_IN_ROOT), -ENOENT);
        int made = fs_mkdirs(root, pass ? "up/x/y" : "absolute/p/q", FS_IN_ROOT);
        assert_true(made >= 0);
        close(made);
    }
    unsetenv("FONDA_IMAGE_FORCE");
    assert_int_equal(faccessat(root, "d/x/y", F_OK, 0), 0);
    assert_int_equal(faccessat(root, "d/p/q", F_OK, 0), 0);
    close(root);
    assert_int_equal(fs_remove_tree(AT_FDCWD, top), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(references), cmocka_unit_test(platforms),
                                       cmocka_unit_test(auth_files), cmocka_unit_test(words),
                                       cmocka_unit_test(ways)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
