/* Paths in a hostile root: resolution by the kernel, and by the walk that path_make() takes when something is
 * missing. */
#include "base/util.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static int root = -1;
static char top[] = "/tmp/fonda-paths-XXXXXX";

static int setup(void **unused)
{
    assert_non_null(mkdtemp(top));
    root = open(top, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return root < 0;
}

static int teardown(void **unused)
{
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", top);
    close(root);
    return system(command) != 0;
}

/* The path of fd below the root; fails when it is outside. */
static const char *inside(int fd, char *buffer, size_t room)
{
    struct fd_path link;
    assert_true(fd >= 0);
    ssize_t n = readlink(fd_path(fd, &link), buffer, room - 1);
    assert_true(n > 0);
    buffer[n] = '\0';
    assert_int_equal(strncmp(buffer, top, strlen(top)), 0);
    close(fd);
    return buffer + strlen(top);
}

static void test_links_stay_inside(void **unused)
{
    static const struct {
        const char *link;
        const char *target;
        const char *path;
        const char *result;
    } cases[] = {
        {"abs", "/etc", "/abs/x", "/etc/x"},       {"up", "../../../../..", "/up/y", "/y"},
        {"deep", "a/b/../../c", "deep/z", "/c/z"}, {"chain", "abs/../abs", "/chain/w", "/etc/w"},
        {"dot", ".", "/dot/./dot//v", "/v"},
    };
    assert_int_equal(mkdirat(root, "a", 0755), 0);
    assert_int_equal(mkdirat(root, "a/b", 0755), 0);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char buffer[256];
        assert_int_equal(symlinkat(cases[i].target, root, cases[i].link), 0);
        assert_string_equal(inside(path_make(root, cases[i].path, false, 0), buffer, sizeof(buffer)),
                            cases[i].result);
        assert_string_equal(inside(path_open(root, cases[i].path, 0), buffer, sizeof(buffer)),
                            cases[i].result);
    }
}

static void test_refusals(void **unused)
{
    assert_int_equal(symlinkat("loop", root, "loop"), 0);
    assert_int_equal(path_open(root, "loop", 0), -ELOOP);
    assert_int_equal(path_make(root, "loop/x", false, 0), -ELOOP);
    assert_int_equal(symlinkat("a", root, "sym"), 0);
    assert_int_equal(path_open(root, "sym", PATH_NO_SYMLINKS), -ELOOP);
    assert_int_equal(path_make(root, "sym/new", false, PATH_NO_SYMLINKS), -ELOOP);
    assert_int_equal(path_open(root, "nothing", 0), -ENOENT);
    int fd = path_make(root, "dir/file", true, 0);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(path_make(root, "dir/file/below", false, 0), -ENOTDIR);
    char name[5000];
    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(path_make(root, name, false, 0), -ENAMETOOLONG);
    fd = path_open(root, "sym", PATH_NO_FOLLOW);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    close(fd);
}

static void test_magic_links(void **unused)
{
    int proc = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(path_open(proc, "/proc/self/root/etc", 0), -ELOOP);
    assert_int_equal(path_make(proc, "/proc/self/root/tmp/fonda-not-here/x", false, 0), -ELOOP);
    close(proc);
}

static void test_parent(void **unused)
{
    const char *leaf = NULL;
    char buffer[256];
    assert_string_equal(inside(path_parent(root, "/p/q/r", &leaf), buffer, sizeof(buffer)), "/p/q");
    assert_string_equal(leaf, "r");
    assert_int_equal(path_parent(root, "/p/..", &leaf), -EINVAL);
    assert_int_equal(path_parent(root, "/p/", &leaf), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_links_stay_inside),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_magic_links),
        cmocka_unit_test(test_parent),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
