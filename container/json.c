#include "container/json.h"

#include "base/util.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Copies text, with integers of 2^63 to 2^64 - 1 folded; out has room for 2 * size + 1. Returns the length.
 */
static size_t json_fold(const char *text, size_t size, char *out)
{
    size_t n = 0;
    bool in_string = false;
    for (size_t i = 0; i < size;) {
        char c = text[i];
        if (in_string) {
            out[n++] = c;
            i++;
            if (c == '\\' && i < size) {
                out[n++] = text[i++];
            } else if (c == '"') {
                in_string = false;
            }
            continue;
        }
        if (!isdigit((unsigned char)c)) {
            in_string = c == '"';
            out[n++] = c;
            i++;
            continue;
        }
        size_t end = i;
        while (end < size && isdigit((unsigned char)text[end])) {
            end++;
        }
        size_t digits = end - i;
        bool plain =
            (end == size || !strchr(".eE+-", text[end])) && (i == 0 || !strchr(".eE+-", text[i - 1]));
        uint64_t value = 0;
        bool fits = digits >= 19 && digits <= 20 && plain;
        for (size_t k = i; fits && k < end; k++) {
            fits = !__builtin_mul_overflow(value, 10u, &value) &&
                   !__builtin_add_overflow(value, (uint64_t)(text[k] - '0'), &value);
        }
        if (fits && value > INT64_MAX) {
            n += (size_t)sprintf(out + n, "%" PRId64, (int64_t)value);
        } else {
            memcpy(out + n, text + i, digits);
            n += digits;
        }
        i = end;
    }
    return n;
}

static bool json_needs_fold(const char *text, size_t size)
{
    size_t run = 0;
    for (size_t i = 0; i < size; i++) {
        run = text[i] >= '0' && text[i] <= '9' ? run + 1 : 0;
        if (run >= 19) {
            return true;
        }
    }
    return false;
}

json_t *json_parse(const char *text, size_t size, const char *name, struct err *err)
{
    auto_free char *folded = NULL;
    if (json_needs_fold(text, size)) {
        folded = malloc(2 * size + 1);
        if (!folded) {
            err_sys(err, -ENOMEM, "cannot read '%s'", name);
            return NULL;
        }
        size = json_fold(text, size, folded);
        text = folded;
    }
    json_object_seed((size_t)getpid() * 2654435761u | 1); /* saves jansson a look at /dev/urandom */
    json_error_t jerr;
    json_t *root = json_loadb(text, size, 0, &jerr);
    if (!root) {
        err_set(err, -EINVAL, "'%s' line %d column %d: %s", name, jerr.line, jerr.column, jerr.text);
    }
    return root;
}

int file_read_all(int dirfd, const char *path, char **ret_text, size_t *ret_size, struct err *err)
{
    auto_close int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "cannot open '%s'", path);
    }
    if (st.st_size > (off_t)JSON_TEXT_MAX) {
        return err_set(err, -EFBIG, "'%s' is larger than %u bytes", path, JSON_TEXT_MAX);
    }
    size_t room = (size_t)st.st_size + 4096;
    size_t used = 0;
    char *text = malloc(room);
    while (text) {
        ssize_t n = read(fd, text + used, room - used - 1);
        if (n < 0) {
            free(text);
            return err_sys(err, -errno, "cannot read '%s'", path);
        }
        if (n == 0) {
            text[used] = '\0';
            *ret_text = text;
            *ret_size = used;
            return 0;
        }
        used += (size_t)n;
        if (used + 1 < room) {
            continue;
        }
        if (room > JSON_TEXT_MAX) {
            free(text);
            return err_set(err, -EFBIG, "'%s' is larger than %u bytes", path, JSON_TEXT_MAX);
        }
        char *more = realloc(text, room * 2);
        if (!more) {
            free(text);
        }
        text = more;
        room *= 2;
    }
    return err_sys(err, -ENOMEM, "cannot read '%s'", path);
}

static json_t *json_member(json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static int json_type_error(struct err *err, const char *where, const char *key, const char *wanted)
{
    return err_set(err, -EINVAL, "%s%s%s must be %s", where, *where ? "." : "", key, wanted);
}

int json_str(json_t *object, const char *where, const char *key, const char **ret, struct err *err)
{
    json_t *value = json_member(object, key);
    if (value && !json_is_string(value)) {
        return json_type_error(err, where, key, "a string");
    }
    if (value) {
        *ret = json_string_value(value);
    }
    return 0;
}

int json_flag(json_t *object, const char *where, const char *key, bool *ret, struct err *err)
{
    json_t *value = json_member(object, key);
    if (value && !json_is_boolean(value)) {
        return json_type_error(err, where, key, "true or false");
    }
    if (value) {
        *ret = json_is_true(value);
    }
    return 0;
}

int json_i64(json_t *object, const char *where, const char *key, int64_t *ret, struct err *err)
{
    json_t *value = json_member(object, key);
    if (value && !json_is_integer(value)) {
        return json_type_error(err, where, key, "an integer");
    }
    if (value) {
        *ret = json_integer_value(value);
    }
    return 0;
}

int json_u64(json_t *object, const char *where, const char *key, uint64_t *ret, struct err *err)
{
    int64_t value = 0;
    if (!json_member(object, key)) {
        return 0;
    }
    int rc = json_i64(object, where, key, &value, err);
    if (rc == 0) {
        *ret = (uint64_t)value;
    }
    return rc;
}

int json_u32(json_t *object, const char *where, const char *key, uint32_t *ret, struct err *err)
{
    int64_t value = 0;
    if (!json_member(object, key)) {
        return 0;
    }
    int rc = json_i64(object, where, key, &value, err);
    if (rc == 0 && (value < 0 || value > UINT32_MAX)) {
        return json_type_error(err, where, key, "between 0 and 4294967295");
    }
    if (rc == 0) {
        *ret = (uint32_t)value;
    }
    return rc;
}

int json_obj(json_t *object, const char *where, const char *key, json_t **ret, struct err *err)
{
    json_t *value = json_member(object, key);
    if (value && !json_is_object(value)) {
        return json_type_error(err, where, key, "an object");
    }
    if (value) {
        *ret = value;
    }
    return 0;
}

int json_arr(json_t *object, const char *where, const char *key, json_t **ret, struct err *err)
{
    json_t *value = json_member(object, key);
    if (value && !json_is_array(value)) {
        return json_type_error(err, where, key, "an array");
    }
    if (value) {
        *ret = value;
    }
    return 0;
}

int json_strv(json_t *object, const char *where, const char *key, struct arena *arena, const char ***ret,
              size_t *ret_count, struct err *err)
{
    json_t *list = NULL;
    int rc = json_arr(object, where, key, &list, err);
    if (rc < 0 || !list) {
        return rc;
    }
    size_t count = json_array_size(list);
    const char **v = arena_array(arena, count + 1, sizeof(*v));
    for (size_t i = 0; i < count; i++) {
        v[i] = json_string_value(json_array_get(list, i));
        if (!v[i]) {
            return json_type_error(err, where, key, "an array of strings");
        }
    }
    *ret = v;
    if (ret_count) {
        *ret_count = count;
    }
    return 0;
}
