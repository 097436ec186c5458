/*
 * Of the builder: variables, and the steps that change the configuration only.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "image/build_int.h"
#include "image/limits.h"

json_t *build_config(struct builder *b)
{
    json_t *config = json_object_get(b->doc, "config");
    if (!json_is_object(config)) {
        config = json_object();
        json_object_set_new(b->doc, "config", config);
    }
    return config;
}

/* ---- variables ---- */

const char *build_from_env(json_t *env, const char *name, size_t length)
{
    for (size_t i = 0; i < json_array_size(env); i++) {
        const char *item = json_string_value(json_array_get(env, i));
        if (item && strncmp(item, name, length) == 0 && item[length] == '=') {
            return item + length + 1;
        }
    }
    return NULL;
}

const char *build_lookup(void *opaque, const char *name, size_t length)
{
    struct builder *b = opaque;
    const char *value =
        b->doc ? build_from_env(json_object_get(json_object_get(b->doc, "config"), "Env"), name, length)
               : NULL;
    char key[256];
    if (value || length >= sizeof(key)) {
        return value;
    }
    snprintf(key, sizeof(key), "%.*s", (int)length, name);
    return json_string_value(json_object_get(b->doc ? b->args : b->global_args, key));
}

/* A value from --build-arg, or NULL. */
static const char *build_arg(const struct image_build *build, const char *name)
{
    size_t length = strlen(name);
    for (unsigned i = build->arg_count; i-- > 0;) {
        const char *arg = build->args[i];
        if (strncmp(arg, name, length) == 0 && (arg[length] == '=' || !arg[length])) {
            return arg[length] ? arg + length + 1 : getenv(name);
        }
    }
    return NULL;
}

int build_arg_step(struct builder *b, const struct cf_step *step)
{
    char **words = NULL;
    int rc = cf_split(step->text, b->file.escape, &words, b->err);
    for (char **w = words; rc == 0 && *w; w++) {
        char *equals = strchr(*w, '='), *value = NULL;
        if (equals) {
            *equals = '\0';
            rc = cf_expand(equals + 1, b->file.escape, build_lookup, b, &value, b->err);
        }
        struct platform host;
        const char *given = build_arg(b->build, *w),
                   *global = json_string_value(json_object_get(b->global_args, *w));
        const char *use = given ? given : value ? value : b->doc ? global : NULL;
        if (!use && rc == 0 && platform_parse(b->build->options->platform, &host, NULL) == 0) {
            use = strcmp(*w, "TARGETARCH") == 0 ? host.arch : strcmp(*w, "TARGETOS") == 0 ? host.os : NULL;
        }
        if (use && rc == 0) {
            json_object_set_new(b->doc ? b->args : b->global_args, *w, json_string(use));
        }
        free(value);
    }
    cf_free_words(words);
    return rc;
}

/* ---- the simple steps ---- */

static int set_env(struct builder *b, const char *name, const char *value)
{
    json_t *env = json_object_get(build_config(b), "Env");
    char *text = NULL;
    if (!json_is_array(env)) {
        env = json_array();
        json_object_set_new(build_config(b), "Env", env);
    }
    if (asprintf(&text, "%s=%s", name, value) < 0) {
        return -ENOMEM;
    }
    json_t *item = json_string(text);
    free(text);
    if (!item) {
        return err_set(b->err, -EINVAL, "'%s' has a value that is no UTF-8", name);
    }
    for (size_t i = 0; i < json_array_size(env); i++) {
        const char *old = json_string_value(json_array_get(env, i));
        if (old && strncmp(old, name, strlen(name)) == 0 && old[strlen(name)] == '=') {
            return json_array_set_new(env, i, item);
        }
    }
    return json_array_append_new(env, item);
}

/* ENV and LABEL: "K=V K=V", or the old "K rest of the line". */
int build_pairs(struct builder *b, const struct cf_step *step)
{
    char **words = NULL;
    int rc = cf_split(step->text, b->file.escape, &words, b->err);
    bool old = rc == 0 && words[0] && !strchr(words[0], '=');
    for (char **w = words; rc == 0 && w && *w; w++) {
        char *value = strchr(*w, '='), *name = NULL, *text = NULL;
        if (!value && !old) {
            rc = err_set(b->err, -EINVAL, "'%s' has no '='", *w);
            break;
        }
        if (value) {
            *value++ = '\0';
        }
        const char *raw = old ? step->text + strlen(*w) + strspn(step->text + strlen(*w), " \t") : value;
        rc = cf_expand(*w, b->file.escape, build_lookup, b, &name, b->err);
        rc = rc < 0 ? rc : cf_expand(raw, b->file.escape, build_lookup, b, &text, b->err);
        if (rc == 0 && (!*name || (old && !*raw))) {
            rc = err_set(b->err, -EINVAL, "a name or its value is missing");
        } else if (rc == 0 && step->kind == CF_ENV) {
            rc = set_env(b, name, text);
        } else if (rc == 0) {
            json_t *labels = json_object_get(build_config(b), "Labels");
            if (!json_is_object(labels)) {
                labels = json_object();
                json_object_set_new(build_config(b), "Labels", labels);
            }
            rc = json_object_set_new(labels, name, json_string(text)) < 0
                     ? err_set(b->err, -EINVAL, "a label is no UTF-8")
                     : 0;
        }
        free(name);
        free(text);
        if (old) {
            break;
        }
    }
    cf_free_words(words);
    return rc;
}

json_t *build_strings(char *const *words)
{
    json_t *list = json_array();
    for (; words && *words; words++) {
        json_array_append_new(list, json_string(*words));
    }
    return list;
}

/* ["/bin/sh", "-c", text], with the stage's SHELL. */
json_t *build_shell_command(struct builder *b, const char *text)
{
    json_t *shell = json_object_get(build_config(b), "Shell");
    json_t *list = json_array_size(shell) ? json_copy(shell) : json_pack("[s, s]", "/bin/sh", "-c");
    json_array_append_new(list, json_string(text));
    return list;
}

int build_command(struct builder *b, const struct cf_step *step)
{
    json_t *config = build_config(b),
           *command = step->json ? build_strings(step->json) : build_shell_command(b, step->text);
    if (step->kind == CF_ENTRYPOINT) {
        json_object_del(config, "Cmd"); /* the base's CMD makes no sense with another ENTRYPOINT */
    }
    return json_object_set_new(config, step->kind == CF_CMD ? "Cmd" : "Entrypoint", command);
}

/* "30s", "1m30s", "500ms" */
static int parse_duration(const char *text, json_int_t *ret_ns, struct err *err)
{
    static const struct {
        const char *unit;
        double ns;
    } units[] = {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}};
    double total = 0;
    for (const char *p = text; *p;) {
        char *end;
        double number = strtod(p, &end);
        size_t n = strspn(end, "nusmh"), i = 0;
        while (i < ARRAY_SIZE(units) && (strlen(units[i].unit) != n || strncmp(units[i].unit, end, n) != 0)) {
            i++;
        }
        if (end == p || i == ARRAY_SIZE(units) || !(number >= 0 && number < 1e9)) {
            return err_set(err, -EINVAL, "'%s' is not a duration such as 30s or 1m30s", text);
        }
        total += number * units[i].ns;
        p = end + n;
    }
    *ret_ns = total < 9e18 ? (json_int_t)total : 0;
    return 0;
}

int build_healthcheck(struct builder *b, const struct cf_step *step)
{
    static const char *const keys[][2] = {{"interval", "Interval"},
                                          {"timeout", "Timeout"},
                                          {"start-period", "StartPeriod"},
                                          {"start-interval", "StartInterval"}};
    json_t *health = json_object();
    size_t n = strcspn(step->text, " \t");
    const char *rest = step->text + n + strspn(step->text + n, " \t");
    int rc = 0;
    if (n == 4 && strncasecmp(step->text, "NONE", 4) == 0) {
        json_object_set_new(health, "Test", json_pack("[s]", "NONE"));
    } else if (n == 3 && strncasecmp(step->text, "CMD", 3) == 0 && *rest) {
        json_t *list = *rest == '[' ? json_loads(rest, 0, NULL) : NULL;
        if (json_is_array(list)) {
            json_array_insert_new(list, 0, json_string("CMD"));
        } else {
            json_decref(list);
            list = json_pack("[s, s]", "CMD-SHELL", rest);
        }
        json_object_set_new(health, "Test", list);
    } else {
        rc = err_set(b->err, -EINVAL, "HEALTHCHECK is followed by CMD or NONE");
    }
    for (unsigned i = 0; rc == 0 && i < ARRAY_SIZE(keys); i++) {
        const char *value = cf_flag(step, keys[i][0]);
        json_int_t ns = 0;
        if (value && (rc = parse_duration(value, &ns, b->err)) == 0) {
            json_object_set_new(health, keys[i][1], json_integer(ns));
        }
    }
    const char *retries = cf_flag(step, "retries");
    if (rc == 0 && retries) {
        uint64_t number;
        rc = parse_uint(retries, &number, b->err);
        json_object_set_new(health, "Retries", json_integer(rc < 0 ? 0 : (json_int_t)MIN(number, 1000000u)));
    }
    if (rc < 0) {
        json_decref(health);
        return rc;
    }
    return json_object_set_new(build_config(b), "Healthcheck", health);
}

/* EXPOSE, VOLUME: words that become keys. */
int build_keys(struct builder *b, const struct cf_step *step)
{
    const char *member = step->kind == CF_EXPOSE ? "ExposedPorts" : "Volumes";
    json_t *set = json_object_get(build_config(b), member);
    char **words = NULL;
    if (!json_is_object(set)) {
        set = json_object();
        json_object_set_new(build_config(b), member, set);
    }
    int rc = step->json ? 0 : cf_split(step->text, b->file.escape, &words, b->err);
    for (char **w = step->json ? step->json : words; rc == 0 && *w; w++) {
        char *text = NULL, *key = NULL;
        rc = cf_expand(*w, b->file.escape, build_lookup, b, &text, b->err);
        if (rc == 0 &&
            asprintf(&key, "%s%s", text, step->kind == CF_EXPOSE && !strchr(text, '/') ? "/tcp" : "") >= 0) {
            json_object_set_new(set, key, json_object());
        }
        free(key);
        free(text);
    }
    cf_free_words(words);
    return rc;
}

int build_word(struct builder *b, const struct cf_step *step, const char *member)
{
    char *text = NULL;
    int rc = cf_expand(step->text, b->file.escape, build_lookup, b, &text, b->err);
    rc = rc < 0 ? rc : json_object_set_new(build_config(b), member, json_string(text));
    free(text);
    return rc;
}
