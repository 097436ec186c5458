/* See container_options.h. */
#include "cli/container_options.h"

#include <errno.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"

static const struct container_option *find(const struct container_option *options, unsigned count,
                                           const char *name, size_t len, char letter)
{
    for (unsigned i = 0; i < count; i++) {
        if (letter ? options[i].letter == letter
                   : strlen(options[i].name) == len && memcmp(options[i].name, name, len) == 0) {
            return &options[i];
        }
    }
    return NULL;
}

/* "30", "30s", "5m", "1h". */
static int parse_seconds(const char *text, uint64_t *ret_value)
{
    char number[24];
    size_t len = strlen(text);
    uint64_t scale = 1;
    if (len > 1 && strchr("smh", text[len - 1])) {
        scale = text[len - 1] == 'h' ? 3600 : text[len - 1] == 'm' ? 60 : 1;
        len--;
    }
    if (len == 0 || len >= 8) {
        return -EINVAL;
    }
    memcpy(number, text, len);
    number[len] = '\0';
    int rc = parse_uint(number, ret_value, NULL);
    *ret_value *= scale;
    return rc;
}

static int set(const struct container_option *option, const char *value, json_t *into, struct err *err)
{
    uint64_t number = 0;
    json_t *text = option->kind == CO_FLAG ? json_true() : json_string(value);
    if (!text) {
        return err_set(err, -EINVAL, "--%s: the value is not UTF-8", option->name);
    }
    switch (option->kind) {
    case CO_LIST: {
        json_t *list = json_object_get(into, option->member);
        if (!list) {
            list = json_array();
            json_object_set_new(into, option->member, list);
        }
        json_array_append_new(list, text);
        return 0;
    }
    case CO_NUMBER:
    case CO_SECONDS:
        json_decref(text);
        if ((option->kind == CO_NUMBER ? parse_uint(value, &number, NULL) : parse_seconds(value, &number)) <
                0 ||
            number > INT64_MAX) {
            return err_set(err, -EINVAL, "--%s: '%s' is not %s", option->name, value,
                           option->kind == CO_NUMBER ? "a number" : "a time such as 30s");
        }
        json_object_set_new(into, option->member, json_integer((json_int_t)number));
        return 0;
    case CO_SIZE:
        if (parse_uint(value, &number, NULL) == 0 &&
            number <= INT64_MAX) { /* plain bytes, as docker has it */
            json_decref(text);
            text = json_integer((json_int_t)number);
        } else if (parse_size(value, &number, err) < 0) {
            json_decref(text);
            return err->code;
        }
        break;
    default: break;
    }
    json_object_set_new(into, option->member, text);
    return 0;
}

/* One argument of letters: flags, and at most one option with a value, last. */
static int parse_letters(const struct container_option *options, unsigned count, int argc, char **argv,
                         int *i, json_t *into, struct err *err)
{
    for (const char *p = argv[*i] + 1; *p; p++) {
        const struct container_option *option = find(options, count, NULL, 0, *p);
        if (!option) {
            return err_set(err, -EINVAL, "unknown option '-%c'", *p);
        }
        if (option->kind == CO_FLAG) {
            set(option, NULL, into, err);
            continue;
        }
        const char *value = p[1] ? p + 1 + (p[1] == '=') : *i + 1 < argc ? argv[++*i] : NULL;
        return value ? set(option, value, into, err)
                     : err_set(err, -EINVAL, "-%c needs %s", *p, option->metavar);
    }
    return 0;
}

int container_options_parse(const struct container_option *options, unsigned count, int argc, char **argv,
                            int first, json_t *into, struct err *err)
{
    int i = first;
    for (int rc = 0; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        if (strcmp(argv[i], "--") == 0) {
            return i + 1;
        }
        if (argv[i][1] != '-') {
            rc = parse_letters(options, count, argc, argv, &i, into, err);
        } else {
            const char *name = argv[i] + 2, *equals = strchr(name, '=');
            size_t len = equals ? (size_t)(equals - name) : strlen(name);
            const struct container_option *option = find(options, count, name, len, 0);
            if (!option) {
                return err_set(err, -EINVAL, "unknown option '--%.*s'", (int)len, name);
            }
            bool flag = option->kind == CO_FLAG;
            if (flag && equals && strcmp(equals, "=true") != 0 && strcmp(equals, "=false") != 0) {
                return err_set(err, -EINVAL, "--%s takes no value", option->name);
            }
            if (flag && equals && strcmp(equals, "=false") == 0) {
                continue;
            }
            const char *value = equals ? equals + 1 : !flag && i + 1 < argc ? argv[++i] : NULL;
            rc = flag || value ? set(option, value, into, err)
                               : err_set(err, -EINVAL, "--%s needs %s", option->name, option->metavar);
        }
        if (rc < 0) {
            return rc;
        }
    }
    return i;
}

void container_options_print(FILE *out, const struct container_option *options, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct container_option *o = &options[i];
        char left[64];
        snprintf(left, sizeof(left), "%c%c%s --%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
                 o->letter ? "," : " ", o->name, o->metavar ? " " : "", o->metavar ? o->metavar : "");
        fprintf(out, "  %-32s %s\n", left, o->help);
    }
}
