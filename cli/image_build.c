/*
 * fonda image build: a bootable disk from Debian's archive. The raw disk is made in a file without a name
 * beside the new image, then copied into the image's format; the image gets its name when it is whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"
#include "image/debian.h"

#define PASSWORD_CHARACTERS 12u

struct build_args {
    struct option_list packages;
    const char *format, *mirror, *apt_proxy, *kernel, *hostname, *password, *ssh_key;
    uint64_t size_bytes;
    bool force;
};

#define OPT(name, kind, member, min, max, metavar, help)                                                     \
    {                                                                                                        \
        name, kind, offsetof(struct build_args, member), min, max, metavar, help                             \
    }

static const struct option_spec build_specs[] = {
    OPT("size", OPTION_SIZE, size_bytes, DEBIAN_SIZE_MIN, 16ull << 40, "SIZE",
        "the disk's size (default: 8G)"),
    OPT("format", OPTION_STRING, format, 0, 0, "FORMAT", "raw or qcow2 (default: qcow2)"),
    OPT("package", OPTION_LIST, packages, 0, 0, "NAME",
        "a further package, or several with commas; may be given again"),
    OPT("kernel", OPTION_STRING, kernel, 0, 0, "NAME",
        "cloud: small, for virtual machines; generic; or a package\n(default: cloud)"),
    OPT("hostname", OPTION_STRING, hostname, 0, 0, "NAME", "the machine's name (default: debian)"),
    OPT("password", OPTION_STRING, password, 0, 0, "TEXT",
        "root's password on the console; '' for none\n(default: a random one, which is printed)"),
    OPT("ssh-key", OPTION_STRING, ssh_key, 0, 0, "FILE", "public keys that may log in as root by ssh"),
    OPT("mirror", OPTION_STRING, mirror, 0, 0, "URL",
        "the archive, for building and in the guest (default: what this\nhost's apt uses)"),
    OPT("apt-proxy", OPTION_STRING, apt_proxy, 0, 0, "URL", "a proxy for the guest's apt"),
    OPT("force", OPTION_FLAG, force, 0, 0, NULL, "overwrite an existing file"),
};

/* ---- arguments ---- */

struct packages {
    char *text;
    const char *names[DEBIAN_PACKAGES_MAX];
    unsigned count;
};

/* "--package a,b --package c" */
static int split_packages(const struct option_list *list, struct packages *ret, struct err *err)
{
    size_t bytes = 1;
    for (unsigned i = 0; i < list->count; i++) {
        bytes += strlen(list->values[i]) + 1;
    }
    *ret = (struct packages){.text = calloc(1, bytes)};
    if (!ret->text) {
        return err_sys(err, -ENOMEM, "--package");
    }
    for (unsigned i = 0; i < list->count; i++) {
        strcat(ret->text, list->values[i]);
        strcat(ret->text, ",");
    }
    for (char *save = NULL, *name = strtok_r(ret->text, ",", &save); name;
         name = strtok_r(NULL, ",", &save)) {
        if (ret->count == DEBIAN_PACKAGES_MAX) {
            return err_set(err, -EINVAL, "--package: more than %u packages", DEBIAN_PACKAGES_MAX);
        }
        ret->names[ret->count++] = name;
    }
    return 0;
}

/* Without letters and digits that look alike. */
static int make_password(char ret[PASSWORD_CHARACTERS + 1])
{
    static const char letters[32] = {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k',
                                     'm', 'n', 'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x',
                                     'y', 'z', '2', '3', '4', '5', '6', '7', '8', '9'};
    uint8_t bytes[PASSWORD_CHARACTERS];
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        return -EIO;
    }
    for (unsigned i = 0; i < PASSWORD_CHARACTERS; i++) {
        ret[i] = letters[bytes[i] % ARRAY_SIZE(letters)];
    }
    ret[PASSWORD_CHARACTERS] = '\0';
    return 0;
}

/* ---- building ---- */

static void say(void *opaque, const char *text)
{
    fprintf(stderr, "fonda image: %s\n", text);
}

/* A file without a name in the folder of path; programs that are started inherit it. */
static int open_scratch(const char *path, struct err *err)
{
    char name[BLK_PATH_MAX + 16];
    const char *slash = strrchr(path, '/');
    int len = slash ? (int)(slash - path + 1) : 0;
    snprintf(name, sizeof(name), "%.*s.", len, path);
    int fd = open(name, O_TMPFILE | O_RDWR, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        snprintf(name, sizeof(name), "%.*s.fonda-XXXXXX", len, path);
        fd = mkstemp(name);
        if (fd >= 0) {
            unlink(name);
        }
    }
    return fd < 0 ? err_sys(err, -errno, "cannot make a file beside '%s'", path) : fd;
}

static int copy_disk(struct blk_loop *loop, int fd, const char *path, const struct build_args *args,
                     struct err *err)
{
    char source_path[32];
    struct blk_node *source = NULL, *target = NULL;
    bool shown = false;
    snprintf(source_path, sizeof(source_path), "/proc/self/fd/%d", fd);
    const struct blk_open_options from = {.format = "raw"},
                                  to = {.format = args->format, .flags = BLK_OPEN_RDWR};
    const struct image_create_options create = {
        .format = args->format, .size_bytes = align_up(args->size_bytes, BLK_SECTOR_SIZE), .overwrite = true};
    int rc = blk_open(loop, source_path, &from, &source, err);
    rc = rc ? rc : image_create(loop, path, &create, err);
    rc = rc ? rc : blk_open(loop, path, &to, &target, err);
    rc = rc ? rc : image_copy(source, target, true, image_progress, &shown, err);
    image_progress_end(shown, target != NULL);
    int close_rc = blk_close(target);
    if (close_rc && !rc) {
        rc = err_sys(err, close_rc, "cannot finish writing '%s'", path);
    }
    blk_close(source);
    return rc;
}

static int build(const char *path, const struct build_args *args, const struct debian_config *config,
                 struct err *err)
{
    char partial[BLK_PATH_MAX + 16];
    struct blk_loop *loop;
    int fd = open_scratch(path, err);
    if (fd < 0) {
        return fd;
    }
    int rc = debian_build(config, fd, err);
    if (rc == 0) {
        say(NULL, strcmp(args->format, "raw") == 0 ? "writing the image" : "writing the image as qcow2");
        snprintf(partial, sizeof(partial), "%s.partial", path);
        rc = blk_loop_new(BLK_ENGINE_AUTO, &loop, err);
    }
    if (rc == 0) {
        rc = copy_disk(loop, fd, partial, args, err);
        blk_loop_free(loop);
        if (rc == 0 && rename(partial, path) < 0) {
            rc = err_sys(err, -errno, "cannot name the image '%s'", path);
        }
        if (rc < 0) {
            unlink(partial);
        }
    }
    close(fd);
    return rc;
}

static int check_args(const char *what, const char *path, const struct build_args *args, struct err *err)
{
    if (strncmp(what, "debian:", 7) != 0) {
        return err_set(err, -EINVAL, "'%s' can't be built: there is debian:SUITE, such as debian:bookworm",
                       what);
    }
    if (strcmp(args->format, "raw") != 0 && strcmp(args->format, "qcow2") != 0) {
        return err_set(err, -EINVAL, "--format: '%s' is not raw or qcow2", args->format);
    }
    if (strlen(path) >= BLK_PATH_MAX) {
        return err_set(err, -EINVAL, "the image's name is too long");
    }
    if (!args->force && access(path, F_OK) == 0) {
        return err_set(err, -EEXIST, "'%s' exists: --force overwrites it", path);
    }
    return 0;
}

int image_cmd_build(int argc, char **argv)
{
    struct build_args args = {
        .format = "qcow2", .kernel = "cloud", .hostname = "debian", .size_bytes = 8 * GiB};
    struct image_args rest;
    struct packages packages = {0};
    struct err err = {0};
    char random_password[PASSWORD_CHARACTERS + 1];
    int status;
    if (!image_args(argc, argv, build_specs, ARRAY_SIZE(build_specs), &args,
                    "debian:SUITE [OPTIONS] FILE\n\nMakes a bootable disk from Debian's archive: systemd, "
                    "ssh, network by "
                    "DHCP, a login on\nthe serial console. 'fonda run FILE' starts it. Needs mmdebstrap and "
                    "mke2fs; not "
                    "root, where\nthe host has user namespaces (package uidmap).\n\nExample:\n"
                    "  fonda image build debian:bookworm --ssh-key ~/.ssh/id_ed25519.pub --package git,make "
                    "debian.qcow2",
                    2, 2, &rest, &status)) {
        return status;
    }
    if (check_args(rest.args[0], rest.args[1], &args, &err) < 0 ||
        split_packages(&args.packages, &packages, &err) < 0) {
        free(packages.text);
        image_failed(&err);
        return IMAGE_EXIT_USAGE;
    }
    if (!args.password && make_password(random_password) < 0) {
        free(packages.text);
        log_error("cannot make a password");
        return IMAGE_EXIT_FAILED;
    }
    const struct debian_config config = {
        .suite = rest.args[0] + strlen("debian:"),
        .mirror = args.mirror,
        .apt_proxy = args.apt_proxy,
        .kernel = args.kernel,
        .hostname = args.hostname,
        .password = args.password ? args.password : random_password,
        .ssh_key = args.ssh_key,
        .packages = packages.names,
        .package_count = packages.count,
        .size_bytes = align_up(args.size_bytes, 4096),
        .progress = say,
    };
    status = IMAGE_EXIT_OK;
    if (debian_check(&config, &err) < 0) {
        image_failed(&err);
        status = IMAGE_EXIT_USAGE;
    } else if (build(rest.args[1], &args, &config, &err) < 0) {
        status = image_failed(&err);
    } else {
        printf("%s: 'fonda run %s' starts it; log in as root%s%s\n", rest.args[1], rest.args[1],
               args.password ? "" : " with the password ", args.password ? "" : random_password);
    }
    free(packages.text);
    return status;
}
