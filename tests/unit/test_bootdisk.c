/*
 * Disks that hold a kernel: partition tables by sfdisk, file systems by mke2fs, compared with the tree that
 * they were made from; and damaged ones.
 */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "vm/bootdisk/bootdisk.h"
#include "vm/bootdisk/ext4.h"
#include "vm/bootdisk/partition.h"

#define IMAGE_BYTES (64 * MiB)
#define MANY_FILES  3000u
#define PATH        "PATH=$PATH:/usr/sbin:/sbin; "

static char folder[] = "/tmp/fonda-bootdisk-XXXXXX";

__attribute__((format(printf, 1, 2))) static int shell(const char *fmt, ...)
{
    char text[4096], line[sizeof(text) + 128];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    snprintf(line, sizeof(line), PATH "cd %s && { %s; } >log 2>&1", folder, text);
    return system(line);
}

/* ---- disks in memory ---- */

struct image {
    uint8_t *data;
    struct disk_source source;
};

static int read_image(void *opaque, uint64_t offset, void *buf, uint64_t bytes)
{
    const struct image *image = opaque;
    memcpy(buf, image->data + offset, bytes);
    return 0;
}

static void image_new(struct image *image, uint64_t bytes)
{
    image->data = calloc(1, bytes);
    assert_non_null(image->data);
    image->source = (struct disk_source){bytes, read_image, image};
}

/* A file of the folder, at an offset of the disk. */
static void image_put(struct image *image, uint64_t offset, const char *name)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    for (ssize_t n; (n = read(fd, image->data + offset, image->source.size_bytes - offset)) > 0;) {
        offset += (uint64_t)n;
    }
    close(fd);
}

static void image_done(struct image *image)
{
    free(image->data);
}

/* ---- the tree ---- */

static int setup(void **state)
{
    assert_non_null(mkdtemp(folder));

    return shell(
        "mkdir -p tree/boot tree/etc tree/usr/lib tree/many tree/loop && ln -s usr/lib tree/lib && "
        "ln -s boot/vmlinuz-6.1.0-9 tree/vmlinuz && ln -s /boot/initrd.img-6.1.0-9 tree/initrd.img && "
        "printf kernel9 >tree/boot/vmlinuz-6.1.0-9 && printf initrd9 >tree/boot/initrd.img-6.1.0-9 && "
        "printf kernel10 >tree/boot/vmlinuz-6.1.0-10 && printf initrd10 >tree/boot/initrd.img-6.1.0-10 && "
        "printf old >tree/boot/vmlinuz-6.2.0.old && printf x >tree/etc/fstab && : >tree/empty && "
        "printf deep >tree/usr/lib/file && ln -s b tree/loop/a && ln -s a tree/loop/b && "
        "ln -s ../boot/../boot/./vmlinuz-6.1.0-9 tree/etc/dotted && "
        "ln -s $(head -c 200 /dev/zero | tr '\\0' /)usr/lib/file tree/long && "
        "seq 1 100000 | head -c 524288 >tree/big && truncate -s 3M tree/big && "
        "for i in $(seq 0 2 200); do printf %%04d $i | dd of=tree/holes bs=4096 seek=$i conv=notrunc; done "
        "&& "
        "cd tree/many && seq -f 'a-rather-long-name-of-a-file-%%g' 1 %u | xargs touch",
        MANY_FILES);
}

static int teardown(void **state)
{
    char line[128];
    snprintf(line, sizeof(line), "rm -rf %s", folder);
    return system(line);
}

static void assert_contents(struct ext4 *fs, const char *path, const char *wanted)
{
    struct ext4_file file;
    struct err err = {0};
    char buf[64] = "";
    uint64_t got = 0;
    assert_int_equal(ext4_lookup(fs, path, &file, &err), 0);
    assert_int_equal(ext4_read(fs, &file, 0, buf, sizeof(buf) - 1, &got, &err), 0);
    assert_string_equal(buf, wanted);
}

/* Compared piece by piece, at odd offsets. */
static void assert_same(struct ext4 *fs, const char *path, const char *name)
{
    char host[256];
    struct ext4_file file;
    struct stat st;
    snprintf(host, sizeof(host), "%s/tree/%s", folder, name);
    int fd = open(host, O_RDONLY);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    assert_int_equal(ext4_lookup(fs, path, &file, NULL), 0);
    assert_int_equal(file.size_bytes, st.st_size);
    static uint8_t a[100001], b[100001];
    for (uint64_t at = 0; at < file.size_bytes; at += sizeof(a)) {
        uint64_t got = 0;
        assert_int_equal(ext4_read(fs, &file, at, a, sizeof(a), &got, NULL), 0);
        assert_int_equal(got, MIN(sizeof(a), file.size_bytes - at));
        assert_int_equal(pread(fd, b, sizeof(b), (off_t)at), (ssize_t)got);
        assert_memory_equal(a, b, got);
    }
    close(fd);
}

static bool count_name(void *opaque, const char *name, uint32_t inode)
{
    ++*(unsigned *)opaque;
    return true;
}

static void assert_lookup_fails(struct ext4 *fs, const char *path, int code)
{
    struct ext4_file file;
    struct err err = {0};
    assert_int_equal(ext4_lookup(fs, path, &file, &err), code);
    assert_string_not_equal(err.text, "");
}

static void check_tree(struct ext4 *fs)
{
    assert_contents(fs, "/vmlinuz", "kernel9");
    assert_contents(fs, "/initrd.img", "initrd9");
    assert_contents(fs, "/lib/file", "deep");
    assert_contents(fs, "/long", "deep");
    assert_contents(fs, "/etc/dotted", "kernel9");
    assert_contents(fs, "/empty", "");
    assert_same(fs, "/big", "big");
    assert_same(fs, "/holes", "holes");
    assert_lookup_fails(fs, "/nothing", -ENOENT);
    assert_lookup_fails(fs, "/loop/a", -ELOOP);
    assert_lookup_fails(fs, "/empty/x", -ENOTDIR);
    struct ext4_file many;
    unsigned count = 0;
    assert_int_equal(ext4_lookup(fs, "/many", &many, NULL), 0);
    assert_int_equal(ext4_list(fs, &many, count_name, &count, NULL), 0);
    assert_int_equal(count, MANY_FILES + 2);
    assert_contents(fs, "/many/a-rather-long-name-of-a-file-2999", "");
}

/* Every kind of ext that people have; -D makes large directories hash trees. */
static void test_file_systems(void **state)
{
    static const char *const kinds[] = {"-t ext4 -b 4096",
                                        "-t ext4 -b 1024",
                                        "-t ext4 -b 4096 -O ^64bit,^metadata_csum",
                                        "-t ext4 -b 2048 -I 128",
                                        "-t ext3 -b 1024",
                                        "-t ext2 -b 1024",
                                        "-t ext4 -b 4096 -O ^flex_bg,^has_journal"};
    if (shell("command -v mke2fs") != 0) {
        skip();
    }
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        struct image image;
        struct ext4 *fs;
        bool mine;
        struct err err = {0};
        assert_int_equal(shell("rm -f fs && truncate -s %llu fs && mke2fs -q -F %s -d tree fs && e2fsck -fyD "
                               "fs; [ $? -le 1 ]",
                               (unsigned long long)IMAGE_BYTES, kinds[i]),
                         0);
        image_new(&image, IMAGE_BYTES);
        image_put(&image, 0, "fs");
        assert_int_equal(ext4_open(&image.source, 0, IMAGE_BYTES, &fs, &mine, &err), 0);
        check_tree(fs);
        ext4_free(fs);
        image_done(&image);
    }
}

static void test_inline_data_is_refused(void **state)
{
    struct image image;
    struct ext4 *fs;
    bool mine;
    if (shell("rm -f fs && truncate -s 16M fs && mke2fs -q -F -t ext4 -b 4096 -I 256 -O inline_data fs && "
              "printf small >small && debugfs -w -R 'write small small' fs") != 0) {
        skip();
    }
    image_new(&image, 16 * MiB);
    image_put(&image, 0, "fs");
    assert_int_equal(ext4_open(&image.source, 0, 16 * MiB, &fs, &mine, NULL), 0);
    struct ext4_file file;
    struct err err = {0};
    assert_int_equal(ext4_lookup(fs, "/small", &file, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "inline_data"));
    ext4_free(fs);
    image_done(&image);
}

static void make_file_system(void)
{
    assert_int_equal(shell("rm -f fs && truncate -s 24M fs && mke2fs -q -F -t ext4 -d tree fs"), 0);
}

static void assert_found(const struct image *image, const char *kernel, const char *contents)
{
    struct bootdisk found;
    struct err err = {0};
    char buf[32] = "";
    int rc = bootdisk_find(&image->source, &found, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(rc, 0);
    assert_string_equal(found.kernel, kernel);
    assert_true(pread(found.kernel_fd, buf, sizeof(buf), 0) > 0);
    assert_string_equal(buf, contents);
    assert_true(found.initrd_fd >= 0);
    assert_int_equal(strncmp(found.root, "root=UUID=", 10), 0);
    bootdisk_done(&found);
}

static void test_partition_tables(void **state)
{
    static const struct {
        const char *script;
        unsigned number;
        uint64_t start;
    } tables[] = {
        {"label: gpt\\nstart=2048, size=4096\\nstart=8192, size=65536\\n", 2, 8192},
        {"label: dos\\nstart=2048, size=65536, type=83\\n", 1, 2048},
        {"label: dos\\nstart=2048, size=2048, type=83\\nstart=4096, size=100000, type=5\\n"
         "start=6144, size=2048, type=83\\nstart=10240, size=65536, type=83\\n",
         6, 10240},
    };
    if (shell("command -v mke2fs && command -v sfdisk") != 0) {
        skip();
    }
    make_file_system();
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        struct image image;
        struct partition parts[PARTITIONS_MAX];
        unsigned count = 0;
        assert_int_equal(shell("rm -f disk && truncate -s %llu disk && printf '%s' | sfdisk disk",
                               (unsigned long long)IMAGE_BYTES, tables[i].script),
                         0);
        image_new(&image, IMAGE_BYTES);
        image_put(&image, 0, "disk");
        assert_int_equal(partition_list(&image.source, parts, &count, NULL), 0);
        const struct partition *last = &parts[count - 1];
        assert_int_equal(last->number, tables[i].number);
        assert_int_equal(last->start_bytes, tables[i].start * 512);
        assert_int_equal(last->size_bytes, 65536 * 512);
        image_put(&image, last->start_bytes, "fs");
        assert_found(&image, "/vmlinuz", "kernel9");
        image_done(&image);
    }
}

static void test_newest_kernel(void **state)
{
    struct image image;
    if (shell("command -v mke2fs && rm -f fs && truncate -s 24M fs && mkdir -p t2 && cp -r tree/boot "
              "tree/etc t2 && "
              "mke2fs -q -F -t ext4 -d t2 fs") != 0) {
        skip();
    }
    image_new(&image, 24 * MiB);
    image_put(&image, 0, "fs");
    assert_found(&image, "/boot/vmlinuz-6.1.0-10", "kernel10");
    image_done(&image);
}

/* Random damage in the metadata: an answer or an error, within bounds. Sanitizers see the rest. */
static void test_damage(void **state)
{
    struct image image, copy;
    if (shell("command -v mke2fs") != 0) {
        skip();
    }
    make_file_system();
    uint64_t seed = unit_seed();
    image_new(&image, 24 * MiB);
    image_new(&copy, 24 * MiB);
    image_put(&image, 0, "fs");
    unsigned found_count = 0;
    for (unsigned round = 0; round < 300; round++) {
        struct bootdisk found;
        struct err err = {0};
        memcpy(copy.data, image.data, 24 * MiB);
        for (unsigned i = 0; i < 40; i++) {
            uint64_t where = unit_random(&seed);
            copy.data[where % (i < 8 ? 2 * KiB : 1 * MiB)] = (uint8_t)(where >> 40);
        }
        if (bootdisk_find(&copy.source, &found, &err) == 0) {
            bootdisk_done(&found);
            found_count++;
        } else {
            assert_string_not_equal(err.text, "");
        }
    }
    printf("found in %u of 300 damaged disks\n", found_count);
    image_done(&image);
    image_done(&copy);
}

static void test_nothing_there(void **state)
{
    struct image image;
    struct bootdisk found;
    struct err err = {0};
    static const uint64_t sizes[] = {0, 511, 512, 2048, 65536};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        image_new(&image, sizes[i] ? sizes[i] : 1);
        image.source.size_bytes = sizes[i];
        assert_int_equal(bootdisk_find(&image.source, &found, &err), -ENOENT);
        assert_string_equal(err.text, "there is no ext4 file system in it");
        image_done(&image);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_systems),     cmocka_unit_test(test_inline_data_is_refused),
        cmocka_unit_test(test_partition_tables), cmocka_unit_test(test_newest_kernel),
        cmocka_unit_test(test_damage),           cmocka_unit_test(test_nothing_there),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
