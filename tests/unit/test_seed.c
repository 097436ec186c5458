/* vm/seed.c: the volume for cloud-init, read back as a reader of ISO 9660 sees it. */
#include "tests/unit/unit.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "vm/seed.h"

#define DESCRIPTOR (16 * 2048) /* ECMA-119 section 8.4: the primary volume descriptor */

static char path[] = "/tmp/fonda-seed-XXXXXX";

static void write_input(const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), (ssize_t)bytes);
    close(fd);
}

static int setup(void **state)
{
    log_init("test", LOG_LEVEL_ERROR);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    return 0;
}

static int teardown(void **state)
{
    return unlink(path);
}

static void assert_file(int fd, const char *name, const char *wanted)
{
    char text[256] = "";
    struct archive_entry *entry;
    struct archive *archive = archive_read_new();
    bool found = false;
    archive_read_support_format_iso9660(archive);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(archive_read_open_fd(archive, fd, 2048), ARCHIVE_OK);
    while (archive_read_next_header(archive, &entry) == ARCHIVE_OK) {
        if (strcmp(archive_entry_pathname(entry), name) == 0) {
            archive_read_data(archive, text, sizeof(text) - 1);
            found = true;
        }
    }
    archive_read_free(archive);
    assert_true(found);
    assert_string_equal(text, wanted);
}

static void test_volume(void **state)
{
    char label[33] = "";
    write_input("#cloud-config\nhostname: x\n", 26);
    int fd = seed_make(path, NULL, NULL);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, label, 32, DESCRIPTOR + 40), 32);
    assert_int_equal(strncmp(label, "CIDATA  ", 8), 0);
    assert_file(fd, "user-data", "#cloud-config\nhostname: x\n");
    char meta[64];
    /* FNV-1a of the data, as anybody can compute it. */
    uint64_t h = 0xcbf29ce484222325ull;
    for (const char *p = "#cloud-config\nhostname: x\n"; *p; p++) {
        h = (h ^ (uint8_t)*p) * 0x100000001b3ull;
    }
    snprintf(meta, sizeof(meta), "instance-id: iid-%016llx\n", (unsigned long long)h);
    assert_file(fd, "meta-data", meta);
    close(fd);
    fd = seed_make(path, path, NULL);
    assert_true(fd >= 0);
    assert_file(fd, "meta-data", "#cloud-config\nhostname: x\n");
    close(fd);
}

static void test_mistakes(void **state)
{
    struct err err = {0};
    assert_int_equal(seed_make("/nowhere", NULL, &err), -ENOENT);
    assert_string_equal(err.text, "--user-data: cannot open '/nowhere': No such file or directory");
    assert_int_equal(seed_make("/tmp", NULL, &err), -EINVAL);
    assert_int_equal(seed_make(path, "/nowhere", &err), -ENOENT);
    assert_string_equal(err.text, "--meta-data: cannot open '/nowhere': No such file or directory");
    char *big = calloc(1, SEED_FILE_MAX + 1);
    assert_non_null(big);
    write_input(big, SEED_FILE_MAX + 1);
    free(big);
    assert_int_equal(seed_make(path, NULL, &err), -EFBIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_volume), cmocka_unit_test(test_mistakes)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
