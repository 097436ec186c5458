/*
 * fonda image info, check.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"

struct info_args {
    const char *format, *repair;
    bool json, shared;
};

#define OPT(name, kind, member, metavar, help)                                                               \
    {                                                                                                        \
        name, kind, offsetof(struct info_args, member), 0, 0, metavar, help                                  \
    }

static const struct option_spec info_specs[] = {
    OPT("format", OPTION_STRING, format, "FORMAT", "the image's format (default: found out)"),
    OPT("shared", OPTION_FLAG, shared, NULL, "look at it although another program writes to it"),
    OPT("json", OPTION_FLAG, json, NULL, "as JSON"),
};
static const struct option_spec check_specs[] = {
    OPT("format", OPTION_STRING, format, "FORMAT", "the image's format (default: found out)"),
    OPT("repair", OPTION_STRING, repair, "WHAT",
        "leaks: give lost clusters back; all: also set refcounts right"),
    OPT("json", OPTION_FLAG, json, NULL, "as JSON"),
};

static void row(const char *name, const char *value)
{
    printf("%-16s %s\n", name, value);
}

static void row_size(const char *name, uint64_t bytes)
{
    char text[64], size[32];
    format_size(bytes, size, sizeof(size));
    snprintf(text, sizeof(text), "%s (%" PRIu64 " bytes)", size, bytes);
    row(name, text);
}

static void print_table(const struct blk_info *info, const struct image_details *d,
                        const struct image_snapshot *snapshots, unsigned count)
{
    char text[64];
    row("image", info->filename);
    row("format", info->format);
    row_size("disk size", info->size_bytes);
    row_size("on the host", info->host_bytes);
    if (info->cluster_bytes) {
        row_size("cluster size", info->cluster_bytes);
        snprintf(text, sizeof(text), "%u, %u-bit refcounts, %s%s%s", d->version, d->refcount_bits,
                 d->compression, d->extended_l2 ? ", extended L2" : "",
                 d->lazy_refcounts ? ", lazy refcounts" : "");
        row("qcow2 version", text);
        row("state", d->corrupt ? "damaged" : d->dirty ? "not closed properly" : "clean");
    }
    if (d->backing) {
        row("backing image", d->backing);
        row("backing format", d->backing_format ? d->backing_format : "not recorded");
    }
    for (unsigned i = 0; i < count; i++) {
        snprintf(text, sizeof(text), "snapshot %s", snapshots[i].id);
        row(text, snapshots[i].name);
    }
}

static void print_json(const struct blk_info *info, const struct image_details *d,
                       const struct image_snapshot *snapshots, unsigned count)
{
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:I}", "image", info->filename, "format", info->format, "size_bytes",
                  (json_int_t)info->size_bytes, "host_bytes", (json_int_t)info->host_bytes);
    json_t *list = json_array();
    if (info->cluster_bytes) {
        json_object_update_new(o, json_pack("{s:i, s:i, s:i, s:s, s:b, s:b, s:b, s:b}", "cluster_bytes",
                                            (int)info->cluster_bytes, "qcow2_version", (int)d->version,
                                            "refcount_bits", (int)d->refcount_bits, "compression",
                                            d->compression, "extended_l2", d->extended_l2, "lazy_refcounts",
                                            d->lazy_refcounts, "dirty", d->dirty, "corrupt", d->corrupt));
    }
    if (d->backing) {
        json_object_update_new(
            o, json_pack("{s:s, s:s?}", "backing", d->backing, "backing_format", d->backing_format));
    }
    for (unsigned i = 0; i < count; i++) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I, s:I}", "id", snapshots[i].id, "name",
                                              snapshots[i].name, "date_s", (json_int_t)snapshots[i].date_s,
                                              "size_bytes", (json_int_t)snapshots[i].size_bytes,
                                              "vm_state_bytes", (json_int_t)snapshots[i].vm_state_bytes));
    }
    if (info->cluster_bytes) {
        json_object_set(o, "snapshots", list);
    }
    json_decref(list);
    json_dumpf(o, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(o);
}

int image_cmd_info(int argc, char **argv)
{
    struct info_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, info_specs, ARRAY_SIZE(info_specs), &args, "[OPTIONS] FILE", 1, 1, &rest,
                    &status)) {
        return status;
    }
    struct blk_loop *loop = image_loop();
    struct blk_open_options options = {.format = args.format,
                                       .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_CHECK |
                                                (args.shared ? BLK_OPEN_NO_LOCK : 0)};
    struct blk_node *node = loop ? image_open(loop, rest.args[0], &options) : NULL;
    if (!node) {
        return image_finish(loop, NULL, IMAGE_EXIT_FAILED);
    }
    struct blk_info info;
    struct image_details details;
    auto_free struct image_snapshot *snapshots = NULL;
    unsigned count = 0;
    blk_get_info(node, &info);
    image_get_details(node, &details);
    if (details.snapshot_count && image_snapshots(node, &snapshots, &count, &err) < 0) {
        return image_finish(loop, node, image_failed(&err));
    }
    (args.json ? print_json : print_table)(&info, &details, snapshots, count);
    return image_finish(loop, node, IMAGE_EXIT_OK);
}

static void report(void *arg, const char *text)
{
    fprintf(stderr, "%s\n", text);
}

static void print_check(const struct image_check *c, bool json)
{
    if (json) {
        json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "corruptions",
                              (json_int_t)c->corruptions, "leaks", (json_int_t)c->leaks, "corruptions_fixed",
                              (json_int_t)c->corruptions_fixed, "leaks_fixed", (json_int_t)c->leaks_fixed,
                              "clusters_used", (json_int_t)c->clusters_used, "clusters_total",
                              (json_int_t)c->clusters_total, "clusters_compressed",
                              (json_int_t)c->clusters_compressed, "end_offset", (json_int_t)c->end_offset,
                              "unclosed", (json_int_t)c->unclosed);
        json_dumpf(o, stdout, JSON_INDENT(2));
        printf("\n");
        json_decref(o);
        return;
    }
    if (c->unclosed) {
        printf("the image was not closed: %" PRIu64
               " refcounts are behind, which whoever writes to it next mends first\n",
               c->unclosed);
    }
    if (!c->corruptions && !c->leaks) {
        printf("no errors\n");
    } else {
        printf("%" PRIu64 " corruptions (%" PRIu64 " repaired), %" PRIu64 " leaked clusters (%" PRIu64
               " repaired)\n",
               c->corruptions, c->corruptions_fixed, c->leaks, c->leaks_fixed);
    }
    printf("%" PRIu64 " of %" PRIu64 " clusters in use, %" PRIu64 " compressed\n", c->clusters_used,
           c->clusters_total, c->clusters_compressed);
}

int image_cmd_check(int argc, char **argv)
{
    struct info_args args = {0};
    struct image_args rest;
    struct err err = {0};
    enum image_repair repair = IMAGE_REPAIR_NONE;
    int status;
    if (!image_args(argc, argv, check_specs, ARRAY_SIZE(check_specs), &args, "[OPTIONS] FILE", 1, 1, &rest,
                    &status)) {
        return status;
    }
    if (args.repair) {
        repair = strcmp(args.repair, "all") == 0 ? IMAGE_REPAIR_ALL : IMAGE_REPAIR_LEAKS;
        if (repair == IMAGE_REPAIR_LEAKS && strcmp(args.repair, "leaks") != 0) {
            log_error("--repair: '%s' is not leaks or all", args.repair);
            return IMAGE_EXIT_USAGE;
        }
    }
    struct blk_loop *loop = image_loop();
    struct blk_open_options options = {
        .format = args.format, .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_CHECK | (repair ? BLK_OPEN_RDWR : 0)};
    struct blk_node *node = loop ? image_open(loop, rest.args[0], &options) : NULL;
    if (!node) {
        return image_finish(loop, NULL, IMAGE_EXIT_FAILED);
    }
    struct image_check check;
    if (image_check(node, repair, report, NULL, &check, &err) < 0) {
        return image_finish(loop, node, image_failed(&err));
    }
    print_check(&check, args.json);
    status = check.corruptions > check.corruptions_fixed ? IMAGE_EXIT_CORRUPT
             : check.leaks > check.leaks_fixed           ? IMAGE_EXIT_LEAKS
                                                         : IMAGE_EXIT_OK;
    return image_finish(loop, node, status);
}
