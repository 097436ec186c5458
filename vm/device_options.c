/* See device_options.h. */
#include "vm/device_options.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"

/* Takes the part up to the next comma into buf. Returns what follows the comma, or NULL at the end. */
static const char *take_part(const char *text, char *buf, size_t size, bool *ret_fits)
{
    size_t len = strcspn(text, ",");
    *ret_fits = len < size;
    snprintf(buf, size, "%.*s", (int)MIN(len, size - 1), text);
    return text[len] ? text + len + 1 : NULL;
}

static const char *value_of(const char *part, const char *key)
{
    size_t len = strlen(key);
    return strncmp(part, key, len) == 0 && part[len] == '=' ? part + len + 1 : NULL;
}

static int copy_value(const char *key, const char *value, char *buf, size_t size, struct err *err)
{
    if (strlen(value) == 0 || strlen(value) >= size) {
        return err_set(err, -EINVAL, "%s='%s' has to have 1 to %zu characters", key, value, size - 1);
    }
    strcpy(buf, value);
    return 0;
}

static int parse_number(const char *key, const char *text, uint64_t min, uint64_t max, uint64_t *ret,
                        struct err *err)
{
    if (parse_uint(text, ret, NULL) < 0 || *ret < min || *ret > max) {
        return err_set(err, -EINVAL, "%s='%s' is not between %llu and %llu", key, text,
                       (unsigned long long)min, (unsigned long long)max);
    }
    return 0;
}

static int parse_size_part(const char *key, const char *text, uint64_t *ret, struct err *err)
{
    if (parse_size(text, ret, NULL) < 0 || *ret == 0) {
        return err_set(err, -EINVAL, "%s='%s' is not a size such as 64M", key, text);
    }
    return 0;
}

/* One of several words, by its place in `words`. */
static int parse_word(const char *key, const char *text, const char *const *words, unsigned count,
                      unsigned *ret, struct err *err)
{
    char known[256] = "";
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(text, words[i]) == 0) {
            *ret = i;
            return 0;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", words[i]);
    }
    return err_set(err, -EINVAL, "%s='%s' is not one of %s", key, text, known);
}

static int throttle_part(struct blk_throttle_limits *limits, const char *part, bool *ret_taken,
                         struct err *err)
{
    const char *value;
    *ret_taken = true;
    if ((value = value_of(part, "iops"))) {
        return parse_number("iops", value, 1, DISK_IOPS_MAX, &limits->iops, err);
    }
    if ((value = value_of(part, "iops-burst"))) {
        return parse_number("iops-burst", value, 1, DISK_IOPS_MAX, &limits->iops_burst, err);
    }
    if ((value = value_of(part, "bps"))) {
        return parse_size_part("bps", value, &limits->bytes_per_s, err);
    }
    if ((value = value_of(part, "bps-burst"))) {
        return parse_size_part("bps-burst", value, &limits->bytes_burst, err);
    }
    *ret_taken = false;
    return 0;
}

static int disk_part(struct disk_options *disk, const char *part, struct err *err)
{
    const char *value;
    if ((value = value_of(part, "format"))) {
        return copy_value("format", value, disk->format, sizeof(disk->format), err);
    }
    if ((value = value_of(part, "serial"))) {
        return copy_value("serial", value, disk->serial, sizeof(disk->serial), err);
    }
    if (strcmp(part, "readonly") == 0) {
        disk->read_only = true;
        return 0;
    }
    if (strcmp(part, "direct") == 0) {
        disk->cache = BLK_CACHE_NONE;
        return 0;
    }
    if ((value = value_of(part, "cache"))) {
        static const char *const words[] = {[BLK_CACHE_WRITEBACK] = "writeback",
                                            [BLK_CACHE_NONE] = "none",
                                            [BLK_CACHE_WRITETHROUGH] = "writethrough",
                                            [BLK_CACHE_UNSAFE] = "unsafe"};
        unsigned i = 0;
        int rc = parse_word("cache", value, words, ARRAY_SIZE(words), &i, err);
        disk->cache = (enum blk_cache)i;
        return rc;
    }
    if ((value = value_of(part, "on-error"))) {
        static const char *const words[] = {
            [BLK_ON_ERROR_ENOSPC] = "enospc", [BLK_ON_ERROR_REPORT] = "report", [BLK_ON_ERROR_STOP] = "stop"};
        unsigned i = 0;
        int rc = parse_word("on-error", value, words, ARRAY_SIZE(words), &i, err);
        disk->on_error = (enum blk_error_policy)i;
        return rc;
    }
    bool taken;
    int rc = throttle_part(&disk->throttle, part, &taken, err);
    if (rc < 0 || taken) {
        return rc;
    }
    return err_set(
        err, -EINVAL,
        "'%s' is not known: there is format=, serial=, readonly, cache=, direct, on-error=, iops=, "
        "iops-burst=, bps=, bps-burst=",
        part);
}

int disk_options_parse(const char *text, struct disk_options *ret, struct err *err)
{
    bool fits;
    char part[DEVICE_TEXT_MAX];
    memset(ret, 0, sizeof(*ret));
    const char *rest = take_part(text, ret->path, sizeof(ret->path), &fits);
    if (!fits || !ret->path[0]) {
        return err_set(err, -EINVAL, "'%s' names no file", text);
    }
    while (rest) {
        rest = take_part(rest, part, sizeof(part), &fits);
        int rc = disk_part(ret, part, err);
        if (rc < 0) {
            return rc;
        }
    }
    const struct blk_throttle_limits *limits = &ret->throttle;
    if ((limits->iops_burst && !limits->iops) || (limits->bytes_burst && !limits->bytes_per_s)) {
        return err_set(err, -EINVAL, "a burst goes with its limit: add iops= or bps=");
    }
    return 0;
}

static int parse_mac(const char *text, uint8_t *mac, struct err *err)
{
    unsigned b[6];
    int end = 0;
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &end) != 6 ||
        text[end] || strlen(text) != 17) {
        return err_set(err, -EINVAL, "'%s' is not a MAC address such as 02:f0:da:12:34:56", text);
    }
    if (b[0] & 1) {
        return err_set(err, -EINVAL, "'%s' is a group address: the first byte of a NIC's is even", text);
    }
    if (!(b[0] | b[1] | b[2] | b[3] | b[4] | b[5])) {
        return err_set(err, -EINVAL, "'%s' is nobody's address", text);
    }
    for (unsigned i = 0; i < 6; i++) {
        mac[i] = (uint8_t)b[i];
    }
    return 0;
}

static int nic_part(struct nic_options *nic, const char *part, struct err *err)
{
    const char *value;
    if ((value = value_of(part, "mac"))) {
        nic->has_mac = true;
        return parse_mac(value, nic->mac, err);
    }
    if ((value = value_of(part, "mtu"))) {
        return parse_number("mtu", value, 68, 65535, &nic->mtu, err);
    }
    if ((value = value_of(part, "queues"))) {
        return parse_number("queues", value, 1, 16, &nic->pairs, err);
    }
    return err_set(err, -EINVAL, "'%s' is not known: there is mac=, mtu=, queues=", part);
}

int nic_options_parse(const char *text, struct nic_options *ret, struct err *err)
{
    static const struct {
        const char *name;
        enum nic_kind kind;
        bool where;
    } kinds[] = {{"none", NIC_NONE, false},
                 {"user", NIC_USER, false},
                 {"tap", NIC_TAP, true},
                 {"wire", NIC_WIRE, true}};
    bool fits, found = false;
    char part[DEVICE_TEXT_MAX];
    memset(ret, 0, sizeof(*ret));
    const char *rest = take_part(text, part, sizeof(part), &fits);
    for (size_t i = 0; i < ARRAY_SIZE(kinds) && !found; i++) {
        const char *value = kinds[i].where ? value_of(part, kinds[i].name) : NULL;
        found = value ? value[0] != '\0' : !kinds[i].where && strcmp(part, kinds[i].name) == 0;
        if (found) {
            ret->kind = kinds[i].kind;
            snprintf(ret->where, sizeof(ret->where), "%s", value ? value : "");
        }
    }
    if (!found || !fits) {
        return err_set(err, -EINVAL, "'%s' is not user, tap=NAME, wire=PATH or none", part);
    }
    while (rest) {
        rest = take_part(rest, part, sizeof(part), &fits);
        int rc = nic_part(ret, part, err);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

int share_options_parse(const char *text, struct share_options *ret, struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    size_t len = strlen(text);
    if (len > 3 && strcmp(text + len - 3, ":ro") == 0) {
        ret->read_only = true;
        len -= 3;
    }
    const char *colon = memrchr(text, ':', len);
    size_t dir_len = colon ? (size_t)(colon - text) : 0, tag_len = colon ? len - dir_len - 1 : 0;
    if (dir_len == 0 || dir_len >= sizeof(ret->dir) || tag_len == 0 || tag_len >= sizeof(ret->tag)) {
        return err_set(err, -EINVAL, "'%s' is not DIRECTORY:TAG[:ro], with a tag of up to 36 characters",
                       text);
    }
    memcpy(ret->dir, text, dir_len);
    memcpy(ret->tag, colon + 1, tag_len);
    return 0;
}

int console_options_parse(const char *text, struct port_options *ret, struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    if (strcmp(text, "stdio") == 0) {
        ret->kind = PORT_TERMINAL;
        return 0;
    }
    if (strcmp(text, "control") == 0) {
        ret->kind = PORT_CONTROL;
        return 0;
    }
    bool is_unix = strncmp(text, "unix:", 5) == 0;
    const char *path = is_unix ? text + 5 : text;
    if (!path[0] || strlen(path) >= sizeof(ret->path)) {
        return err_set(err, -EINVAL, "'%s' is not stdio, control, a file, or unix:PATH", text);
    }
    ret->kind = is_unix ? PORT_UNIX : PORT_FILE;
    strcpy(ret->path, path);
    return 0;
}

int port_options_parse(const char *text, struct port_options *ret, struct err *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    memset(ret, 0, sizeof(*ret));
    size_t len = strspn(text, allowed);
    if (len > 0 && len < sizeof(ret->name) && strcmp(text + len, "=control") == 0) {
        memcpy(ret->name, text, len);
        ret->kind = PORT_CONTROL;
        return 0;
    }
    if (len == 0 || len >= sizeof(ret->name) || strncmp(text + len, "=unix:", 6) != 0 || !text[len + 6] ||
        strlen(text + len + 6) >= sizeof(ret->path)) {
        return err_set(err, -EINVAL,
                       "'%s' is not NAME=unix:PATH or NAME=control, with a name of up to %u letters, digits, "
                       "'.', '_' and '-'",
                       text, PORT_NAME_BYTES - 1);
    }
    memcpy(ret->name, text, len);
    ret->kind = PORT_UNIX;
    strcpy(ret->path, text + len + 6);
    return 0;
}
