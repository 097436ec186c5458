/*
 * fonda image tag, remove, prune, commit, layer: what changes in the store.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"
#include "cli/oci.h"

static int close_with(struct image_store *store, int rc, const struct err *err)
{
    image_store_close(store);
    return rc < 0 ? image_failed(err) : IMAGE_EXIT_OK;
}

int oci_cmd_tag(int argc, char **argv)
{
    static const struct option_spec specs[] = {OCI_OPT_STORE};
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE NAME [OPTIONS]\n\nGives an image one more name.", 2, 2, &rest, &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    return store ? close_with(store, image_tag(store, rest.args[0], rest.args[1], &err), &err)
                 : IMAGE_EXIT_FAILED;
}

int oci_cmd_remove(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("force", OPTION_FLAG, force, NULL, "although a container uses it (its layers stay)"),
    };
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status, rc = 0;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE... [OPTIONS]\n\nTakes names away, and what no other image or container needs.", 1,
                    IMAGE_ARGS_MAX, &rest, &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    for (unsigned i = 0; store && rc == 0 && i < rest.count; i++) {
        uint64_t freed = 0;
        rc = image_remove(store, rest.args[i], args.force, &freed, &err);
        if (rc == 0) {
            char size[32];
            format_size(freed, size, sizeof(size));
            printf("removed %s (%s)\n", rest.args[i], size);
        }
    }
    return store ? close_with(store, rc, &err) : IMAGE_EXIT_FAILED;
}

int oci_cmd_prune(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("all", OPTION_FLAG, all, NULL, "also the build cache, and images that no container uses"),
    };
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "[OPTIONS]\n\nRemoves what nothing needs: unnamed images, layers, and remains of "
                    "interrupted downloads.\n"
                    "Waits for other commands on the store.",
                    0, 0, &rest, &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    struct image_prune prune = {.all = args.all};
    int rc = image_prune(store, &prune, &err);
    if (rc == 0) {
        char size[32];
        format_size(prune.freed_bytes, size, sizeof(size));
        printf("%u images, %u layers, %u blobs: %s\n", prune.images, prune.layers, prune.blobs, size);
    }
    return close_with(store, rc, &err);
}

int oci_cmd_commit(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("message", OPTION_STRING, message, "TEXT", "what 'history' shows"),
        OCI_OPT("author", OPTION_STRING, author, "NAME", "who made it"),
        OCI_OPT("compression", OPTION_STRING, compression, "WHAT", "gzip (default) or zstd"),
    };
    struct oci_args args = {.compression = "gzip"};
    struct image_args rest;
    struct err err = {0};
    char digest[DIGEST_SIZE];
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "CONTAINER-LAYER IMAGE [OPTIONS]\n\n"
                    "Makes an image from the image below a container and what the container changed.\n"
                    "With one argument (a disk's file): see 'fonda image commit FILE --help'.",
                    2, 2, &rest, &status)) {
        return status;
    }
    if (strcmp(args.compression, "gzip") != 0 && strcmp(args.compression, "zstd") != 0) {
        log_error("--compression: '%s' is neither gzip nor zstd", args.compression);
        return IMAGE_EXIT_USAGE;
    }
    struct image_store *store = oci_open(&args);
    struct image_rootfs *rootfs = NULL;
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    struct image_commit commit = {
        .message = args.message, .author = args.author, .zstd = args.compression[0] == 'z'};
    int rc = image_rootfs_open(store, rest.args[0], &rootfs, &err);
    rc = rc < 0 ? rc : image_rootfs_commit(store, rootfs, rest.args[1], &commit, digest, &err);
    if (rc == 0) {
        printf("%s\n", digest);
    }
    image_rootfs_close(rootfs);
    return close_with(store, rc, &err);
}

/* Writable layers without a runner: what scripts and tests use. */
static int run_layer(struct image_store *store, const struct image_args *rest, struct err *err)
{
    const char *what = rest->args[0], *name = rest->count > 1 ? rest->args[1] : NULL;
    struct image_rootfs *rootfs = NULL;
    int rc = -EINVAL;
    if (strcmp(what, "list") == 0 && !name) {
        char **names = NULL;
        rc = image_rootfs_names(store, &names, err);
        for (size_t i = 0; names && names[i]; i++) {
            printf("%s\n", names[i]);
            free(names[i]);
        }
        free(names);
        return rc;
    }
    if (strcmp(what, "create") == 0 && rest->count == 3) {
        struct image *image = NULL;
        rc = image_lookup(store, rest->args[2], &image, err);
        rc = rc < 0 ? rc : image_unpack(store, image, err);
        rc = rc < 0 ? rc : image_rootfs_create(store, image, name, &rootfs, err);
        image_free(image);
    } else if (strcmp(what, "remove") == 0 && rest->count == 2) {
        return image_rootfs_remove(store, name, err);
    } else if (strcmp(what, "mount") == 0 && rest->count == 2) {
        rc = image_rootfs_open(store, name, &rootfs, err);
        rc = rc < 0 ? rc : image_rootfs_mount(rootfs, NULL, err);
        if (rc == 0) {
            printf("%s\n", rootfs->dir);
        }
    } else if (strcmp(what, "unmount") == 0 && rest->count == 2) {
        rc = image_rootfs_open(store, name, &rootfs, err);
        if (rc == 0) {
            rootfs->mounted = !rootfs->flattened;
            rc = image_rootfs_unmount(rootfs, err);
        }
    } else {
        return err_set(err, -EINVAL,
                       "expected create NAME IMAGE, mount NAME, unmount NAME, remove NAME or list");
    }
    image_rootfs_close(rootfs);
    return rc;
}

int oci_cmd_layer(int argc, char **argv)
{
    static const struct option_spec specs[] = {OCI_OPT_STORE};
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "create NAME IMAGE | mount NAME | unmount NAME | remove NAME | list\n\n"
                    "Writable layers over images. 'mount' prints the folder (as root; others see it in their "
                    "namespace only).",
                    1, 3, &rest, &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    return store ? close_with(store, run_layer(store, &rest, &err), &err) : IMAGE_EXIT_FAILED;
}
