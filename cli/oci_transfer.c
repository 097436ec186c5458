/*
 * fonda image pull, push, save, load, import: images come and go. Also what all OCI commands share.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"
#include "cli/oci.h"

struct image_store *oci_open(const struct oci_args *args)
{
    struct image_store *store = NULL;
    struct err err = {0};
    if (image_enter_namespace(&err) < 0 || image_store_open(args->store, &store, &err) < 0) {
        image_failed(&err);
        return NULL;
    }
    if (args->max_layer_bytes) {
        image_store_set_layer_max(store, args->max_layer_bytes);
    }
    return store;
}

/* On a terminal one line that is written over; elsewhere one line for each layer that is done. */
static void show_progress(void *opaque, const struct image_progress *p)
{
    bool terminal = isatty(STDERR_FILENO);
    if (p->total == 0) {
        fprintf(stderr, "%s%s\n", terminal ? "\r\033[K" : "", p->what);
    } else if (terminal) {
        char done[32], total[32];
        format_size(p->done, done, sizeof(done));
        format_size(p->total, total, sizeof(total));
        fprintf(stderr, "\r\033[K%s (%u of %u): %s of %s%s", p->what, p->index + 1, p->count, done, total,
                p->done == p->total ? "\n" : "");
    } else if (p->done == p->total) {
        fprintf(stderr, "%s (%u of %u): %" PRIu64 " bytes\n", p->what, p->index + 1, p->count, p->total);
    }
}

int oci_registry_options(const struct oci_args *args, struct image_options *ret_options)
{
    struct image_options options = {.platform = args->platform,
                                    .insecure = args->insecure,
                                    .auth_file = args->auth_file,
                                    .credentials = args->creds,
                                    .cert_dir = args->cert_dir,
                                    .parallel = (unsigned)args->parallel,
                                    .progress = args->quiet ? NULL : show_progress};
    if (args->tls_verify && strcmp(args->tls_verify, "false") == 0) {
        options.insecure = true;
    } else if (args->tls_verify && strcmp(args->tls_verify, "true") != 0) {
        log_error("--tls-verify: '%s' is neither true nor false", args->tls_verify);
        return IMAGE_EXIT_USAGE;
    }
    *ret_options = options;
    return 0;
}

static int finish(struct image_store *store, int rc, const struct err *err)
{
    image_store_close(store);
    return rc < 0 ? rc == -EINVAL ? image_failed(err), IMAGE_EXIT_USAGE : image_failed(err) : IMAGE_EXIT_OK;
}

int oci_cmd_pull(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("platform", OPTION_STRING, platform, "OS/ARCH",
                "which variant, such as linux/arm64 (default: this host's)"),
        OCI_OPTS_REGISTRY,
        OCI_OPT_MAX_LAYER,
    };
    struct oci_args args = {0};
    struct image_args rest;
    struct image_options options;
    char digest[DIGEST_SIZE];
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE [OPTIONS]\n\nGets an image from its registry and unpacks it.\n\nExamples:\n"
                    "  fonda image pull debian:12\n"
                    "  fonda image pull --insecure localhost:5000/app:1.2",
                    1, 1, &rest, &status) ||
        (status = oci_registry_options(&args, &options)) != 0) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    int rc = image_pull(store, rest.args[0], &options, digest, &err);
    if (rc == 0) {
        printf("%s\n", digest);
    }
    return finish(store, rc, &err);
}

int oci_cmd_push(int argc, char **argv)
{
    static const struct option_spec specs[] = {OCI_OPT_STORE, OCI_OPTS_REGISTRY};
    struct oci_args args = {0};
    struct image_args rest;
    struct image_options options;
    char digest[DIGEST_SIZE];
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE [TARGET] [OPTIONS]\n\nSends an image to a registry, under its own or another "
                    "name.\n\nExamples:\n"
                    "  fonda image push registry.example/app:1.2\n"
                    "  fonda image push app:1.2 --insecure localhost:5000/app:1.2",
                    1, 2, &rest, &status) ||
        (status = oci_registry_options(&args, &options)) != 0) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    int rc = image_push(store, rest.args[0], rest.count > 1 ? rest.args[1] : NULL, &options, digest, &err);
    if (rc == 0) {
        printf("%s\n", digest);
    }
    return finish(store, rc, &err);
}

int oci_cmd_save(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("output", OPTION_STRING, output, "FILE", "where to (default: standard output)"),
        OCI_OPT("format", OPTION_STRING, format, "FORMAT", "oci-archive (default) or docker-archive"),
    };
    struct oci_args args = {.format = "oci-archive"};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE... [OPTIONS]\n\nWrites images into one tar archive.\n\nExample:\n"
                    "  fonda image save app:1.2 --output app.tar --format docker-archive",
                    1, IMAGE_ARGS_MAX, &rest, &status)) {
        return status;
    }
    bool docker = strcmp(args.format, "docker-archive") == 0;
    if (!docker && strcmp(args.format, "oci-archive") != 0) {
        log_error("--format: '%s' is neither oci-archive nor docker-archive", args.format);
        return IMAGE_EXIT_USAGE;
    }
    if (!args.output && isatty(STDOUT_FILENO)) {
        log_error("an archive would go to the terminal: use --output FILE");
        return IMAGE_EXIT_USAGE;
    }
    int fd = args.output ? open(args.output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : STDOUT_FILENO;
    if (fd < 0) {
        log_error("cannot write '%s': %s", args.output, strerror(errno));
        return IMAGE_EXIT_FAILED;
    }
    struct image_store *store = oci_open(&args);
    int rc = store ? image_save(store, rest.args, rest.count,
                                docker ? IMAGE_ARCHIVE_DOCKER : IMAGE_ARCHIVE_OCI, fd, &err)
                   : -EIO;
    if (rc == 0 && args.output && close(fd) < 0) {
        rc = err_sys(&err, -errno, "cannot write '%s'", args.output);
    }
    if (rc < 0 && args.output) {
        unlink(args.output);
    }
    return store ? finish(store, rc, &err) : IMAGE_EXIT_FAILED;
}

static void print_name(void *opaque, const char *name)
{
    printf("%s\n", image_ref_short(name));
}

static int open_input(const char *path)
{
    int fd = !path || strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        log_error("cannot read '%s': %s", path, strerror(errno));
    }
    return fd;
}

int oci_cmd_load(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("name", OPTION_STRING, name, "NAME", "call the image so, whatever the archive says"),
        OCI_OPT("platform", OPTION_STRING, platform, "OS/ARCH",
                "which variant of an index (default: this host's)"),
        OCI_OPT_MAX_LAYER,
    };
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(
            argc, argv, specs, ARRAY_SIZE(specs), &args,
            "[FILE] [OPTIONS]\n\nReads images from an OCI or Docker archive (default: from standard input).",
            0, 1, &rest, &status)) {
        return status;
    }
    int fd = open_input(rest.count ? rest.args[0] : NULL);
    struct image_store *store = fd < 0 ? NULL : oci_open(&args);
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    struct image_options options = {.platform = args.platform};
    return finish(store, image_load(store, fd, args.name, &options, print_name, NULL, &err), &err);
}

int oci_cmd_import(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("platform", OPTION_STRING, platform, "OS/ARCH",
                "what the files are for (default: this host's)"),
        OCI_OPT_MAX_LAYER,
    };
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    char digest[DIGEST_SIZE];
    int status;
    if (!image_args(
            argc, argv, specs, ARRAY_SIZE(specs), &args,
            "TAR NAME [OPTIONS]\n\nMakes an image of one layer from a tar with a root file system ('-': "
            "standard input).\n\n"
            "Example:\n  debootstrap bookworm root && tar -C root -c . | fonda image import - debian:mine",
            2, 2, &rest, &status)) {
        return status;
    }
    int fd = open_input(rest.args[0]);
    struct image_store *store = fd < 0 ? NULL : oci_open(&args);
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    int rc = image_import(store, fd, rest.args[1], args.platform, digest, &err);
    if (rc == 0) {
        printf("%s\n", digest);
    }
    return finish(store, rc, &err);
}
