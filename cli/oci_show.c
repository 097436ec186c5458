/*
 * fonda image list, inspect, history, diff: what is there.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
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

static uint64_t image_bytes(const struct image *image)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < image->doc.layer_count; i++) {
        total += image->doc.layers[i].size_bytes;
    }
    return total;
}

int oci_cmd_list(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("json", OPTION_FLAG, json, NULL, "as JSON"),
        OCI_OPT("quiet", OPTION_FLAG, quiet, NULL, "ids only"),
    };
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "[OPTIONS]\n\nLists the images in the store.", 0, 0, &rest, &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    char(*names)[REF_TEXT_MAX] = NULL;
    size_t count = 0;
    int rc = image_names(store, &names, &count, &err);
    json_t *list = json_array();
    if (rc == 0 && !args.json && !args.quiet) {
        printf("%-40s %-14s %-16s %-21s %s\n", "NAME", "ID", "PLATFORM", "CREATED", "SIZE");
    }
    for (size_t i = 0; rc == 0 && i < count; i++) {
        struct image *image = NULL;
        struct err own = {0};
        if (image_lookup(store, names[i], &image, &own) < 0) {
            log_warning("%s", own.text);
            continue;
        }
        const char *created = json_string_value(json_object_get(image->config.json, "created"));
        char size[32], platform[100];
        format_size(image_bytes(image), size, sizeof(size));
        platform_format(&image->config.platform, platform);
        if (args.json) {
            json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s*, s:I}", "name", names[i], "id",
                                                  image->doc.config.digest, "digest", image->manifest.digest,
                                                  "platform", platform, "created", created, "size_bytes",
                                                  (json_int_t)image_bytes(image)));
        } else if (args.quiet) {
            printf("%.12s\n", digest_hex(image->doc.config.digest));
        } else {
            printf("%-40s %-14.12s %-16s %-21.19s %s\n", image_ref_short(names[i]),
                   digest_hex(image->doc.config.digest), platform, created ? created : "", size);
        }
        image_free(image);
    }
    if (rc == 0 && args.json) {
        json_dumpf(list, stdout, JSON_INDENT(2));
        printf("\n");
    }
    json_decref(list);
    free(names);
    return close_with(store, rc, &err);
}

int oci_cmd_inspect(int argc, char **argv)
{
    static const struct option_spec specs[] = {OCI_OPT_STORE};
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE [OPTIONS]\n\nAn image's manifest and configuration as JSON.", 1, 1, &rest,
                    &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    struct image *image = NULL;
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    int rc = image_lookup(store, rest.args[0], &image, &err);
    if (rc == 0) {
        json_t *chain = json_array();
        for (unsigned i = 0; i < image->config.diff_count; i++) {
            json_array_append_new(chain, json_string(image->chain_ids[i]));
        }
        json_t *root = json_pack("{s:s, s:s, s:s, s:I, s:o, s:O, s:O}", "name", image->name, "id",
                                 image->doc.config.digest, "digest", image->manifest.digest, "size_bytes",
                                 (json_int_t)image_bytes(image), "chain_ids", chain, "manifest",
                                 image->doc.json, "config", image->config.json);
        json_dumpf(root, stdout, JSON_INDENT(2));
        printf("\n");
        json_decref(root);
    }
    image_free(image);
    return close_with(store, rc, &err);
}

int oci_cmd_history(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("no-trunc", OPTION_FLAG, no_trunc, NULL, "whole commands"),
    };
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE [OPTIONS]\n\nThe steps that made an image, the newest first.", 1, 1, &rest,
                    &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    struct image *image = NULL;
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    int rc = image_lookup(store, rest.args[0], &image, &err);
    if (rc == 0) {
        const json_t *history = json_object_get(image->config.json, "history");
        printf("%-14s %-21s %-10s %s\n", "LAYER", "CREATED", "SIZE", "CREATED BY");
        unsigned layer = image->doc.layer_count;
        for (size_t i = json_array_size(history); i-- > 0;) {
            const json_t *item = json_array_get(history, i);
            const char *created = json_string_value(json_object_get(item, "created"));
            const char *by = json_string_value(json_object_get(item, "created_by"));
            const char *comment = json_string_value(json_object_get(item, "comment"));
            bool has = !json_is_true(json_object_get(item, "empty_layer")) && layer > 0;
            char size[32] = "";
            layer -= has;
            if (has) {
                format_size(image->doc.layers[layer].size_bytes, size, sizeof(size));
            }
            printf("%-14.12s %-21.19s %-10s %.*s%s%s\n",
                   has ? digest_hex(image->config.diff_ids[layer]) : "-", created ? created : "", size,
                   args.no_trunc ? 1000000 : 80, by ? by : "", comment ? "  # " : "", comment ? comment : "");
        }
    }
    image_free(image);
    return close_with(store, rc, &err);
}

static int print_change(void *opaque, enum image_change change, const char *path)
{
    printf("%c /%s\n", "ACD"[change], path);
    return 0;
}

int oci_cmd_diff(int argc, char **argv)
{
    static const struct option_spec specs[] = {OCI_OPT_STORE};
    struct oci_args args = {0};
    struct image_args rest;
    struct err err = {0}, ignored = {0};
    int status;
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "IMAGE|CONTAINER-LAYER [IMAGE] [OPTIONS]\n\n"
                    "What the topmost layer of an image or the writable layer of a container changed (A "
                    "added, C changed,\n"
                    "D deleted), or what the second image has other than the first.",
                    1, 2, &rest, &status)) {
        return status;
    }
    struct image_store *store = oci_open(&args);
    struct image *a = NULL, *b = NULL;
    struct image_rootfs *rootfs = NULL;
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    int rc;
    if (rest.count == 1 && image_rootfs_open(store, rest.args[0], &rootfs, &ignored) == 0) {
        rc = image_rootfs_diff(rootfs, print_change, NULL, &err);
        image_rootfs_close(rootfs);
        return close_with(store, rc, &err);
    }
    rc = rest.count == 2 ? image_lookup(store, rest.args[0], &a, &err) : 0;
    rc = rc < 0 ? rc : image_lookup(store, rest.args[rest.count - 1], &b, &err);
    rc = rc < 0 || !a ? rc : image_unpack(store, a, &err);
    rc = rc < 0 ? rc : image_unpack(store, b, &err);
    rc = rc < 0 ? rc : image_diff(store, a, b, print_change, NULL, &err);
    image_free(a);
    image_free(b);
    return close_with(store, rc, &err);
}
