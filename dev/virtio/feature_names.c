/* See feature_names.h. Section numbers are those of virtio 1.2. */
#include "dev/virtio/feature_names.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct name {
    const char *text;
    unsigned bit;
};

struct kind {
    const char *text;
    uint16_t id;
    struct name names[24];
};

/* Those that Fonda's devices offer: chapter 6, 5.1.3, 5.2.3, 5.3.3, 5.5.3. VERSION_1 is not for the asking.
 */
static const struct kind kinds[] = {
    {"all", 0, {{"indirect_desc", 28}, {"event_idx", 29}}},
    {"net",
     VIRTIO_ID_NET,
     {{"csum", 0},
      {"guest_csum", 1},
      {"ctrl_guest_offloads", 2},
      {"mtu", 3},
      {"mac", 5},
      {"guest_tso4", 7},
      {"guest_tso6", 8},
      {"guest_ecn", 9},
      {"host_tso4", 11},
      {"host_tso6", 12},
      {"host_ecn", 13},
      {"mrg_rxbuf", 15},
      {"status", 16},
      {"ctrl_vq", 17},
      {"ctrl_rx", 18},
      {"mq", 22},
      {"ctrl_mac_addr", 23}}},
    {"blk",
     VIRTIO_ID_BLOCK,
     {{"seg_max", 2},
      {"ro", 5},
      {"blk_size", 6},
      {"flush", 9},
      {"mq", 12},
      {"discard", 13},
      {"write_zeroes", 14}}},
    {"console", VIRTIO_ID_CONSOLE, {{"size", 0}, {"multiport", 1}}},
    {"rng", VIRTIO_ID_RNG, {{NULL, 0}}},
    {"balloon",
     VIRTIO_ID_BALLOON,
     {{"stats_vq", 1}, {"deflate_on_oom", 2}, {"free_page_hint", 3}, {"reporting", 5}}},
    {"9p", VIRTIO_ID_9P, {{NULL, 0}}},
    {"vsock", VIRTIO_ID_VSOCK, {{NULL, 0}}},
};

const char *vfeat_kind(uint16_t id)
{
    for (size_t i = 1; i < ARRAY_SIZE(kinds); i++) {
        if (kinds[i].id == id) {
            return kinds[i].text;
        }
    }
    return NULL;
}

static const struct kind *find_kind(const char *text, size_t len)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strlen(kinds[i].text) == len && memcmp(kinds[i].text, text, len) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

static const struct name *find_name(const struct kind *kind, const char *text, size_t len)
{
    for (const struct name *name = kind->names; name < kind->names + ARRAY_SIZE(kind->names) && name->text;
         name++) {
        if (strlen(name->text) == len && memcmp(name->text, text, len) == 0) {
            return name;
        }
    }
    return NULL;
}

static int unknown_name(const struct kind *kind, const char *text, size_t len, struct err *err)
{
    char known[384] = "indirect_desc, event_idx";
    size_t used = strlen(known);
    for (size_t i = 0; kind != kinds && i < ARRAY_SIZE(kind->names) && kind->names[i].text; i++) {
        used += (size_t)snprintf(known + used, sizeof(known) - used, ", %s", kind->names[i].text);
    }
    return err_set(err, -EINVAL, "'%s' has no feature '%.*s': there is %s", kind->text, (int)len, text,
                   known);
}

struct wish {
    const struct kind *kind;
    bool any_index;
    unsigned index;
    uint64_t bits;
};

/* "net", "net12", "9p": up to two digits behind a kind are an index. */
static bool parse_kind(const char *text, size_t len, struct wish *ret)
{
    size_t digits = 0;
    ret->kind = find_kind(text, len);
    ret->any_index = ret->kind != NULL;
    ret->index = 0;
    while (!ret->kind && digits < 2 && len > digits + 1 && text[len - digits - 1] >= '0' &&
           text[len - digits - 1] <= '9') {
        digits++;
        ret->kind = find_kind(text, len - digits);
    }
    for (size_t i = len - digits; i < len; i++) {
        ret->index = ret->index * 10 + (unsigned)(text[i] - '0');
    }
    return ret->kind && (ret->any_index || ret->kind != kinds);
}

static int parse(const char *text, struct wish *ret, struct err *err)
{
    size_t len = strcspn(text, ":");
    if (text[len] != ':' || !parse_kind(text, len, ret)) {
        return err_set(err, -EINVAL,
                       "'%s' is not KIND[INDEX]:FEATURE[,FEATURE]...; a kind is all, net, blk, console, rng, "
                       "balloon, 9p or vsock",
                       text);
    }
    const struct kind *kind = ret->kind;
    ret->bits = 0;
    const char *at = text + len;
    while (*at) {
        at++;
        len = strcspn(at, ",");
        const struct name *name = find_name(kind, at, len);
        name = name ? name : find_name(kinds, at, len);
        if (!name) {
            return unknown_name(kind, at, len, err);
        }
        ret->bits |= BIT64(name->bit);
        at += len;
    }
    return 0;
}

int vfeat_check(const char *text, struct err *err)
{
    struct wish wish;
    return parse(text, &wish, err);
}

int vfeat_withhold(struct vdev *dev, unsigned index, const char *text, struct err *err)
{
    struct wish wish;
    int rc = parse(text, &wish, err);
    if (rc == 0 && (wish.kind == kinds || wish.kind->id == dev->ops->id) &&
        (wish.any_index || wish.index == index)) {
        vdev_forgo(dev, wish.bits);
    }
    return rc;
}
