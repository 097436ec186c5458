/* Saved daemons. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "cli/context.h"

static int file_path(char *buf, size_t size, bool make)
{
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    char dir[512];
    if (config && config[0]) {
        snprintf(dir, sizeof(dir), "%s", config);
    } else if (home && home[0]) {
        snprintf(dir, sizeof(dir), "%s/.config", home);
    } else {
        return -ENOENT;
    }
    if (make) {
        mkdir(dir, 0700);
    }
    snprintf(buf, size, "%s/fonda", dir);
    if (make && mkdir(buf, 0700) < 0 && errno != EEXIST) {
        return -errno;
    }
    snprintf(buf, size, "%s/fonda/contexts.json", dir);
    return 0;
}

json_t *context_load(void)
{
    char path[600];
    json_t *all = file_path(path, sizeof(path), false) == 0 ? json_load_file(path, 0, NULL) : NULL;
    return json_is_object(all) ? all : json_object();
}

int context_save(const json_t *all, struct err *err)
{
    char path[600], temporary[620];
    int rc = file_path(path, sizeof(path), true);
    if (rc < 0) {
        return err_sys(err, rc, "cannot save contexts");
    }
    snprintf(temporary, sizeof(temporary), "%s.new", path);
    auto_close int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || json_dumpfd(all, fd, JSON_INDENT(2)) < 0 || rename(temporary, path) < 0) {
        return err_sys(err, -errno, "cannot write '%s'", path);
    }
    return 0;
}

static void add(json_t *context, const char *member, const char *text)
{
    if (text && text[0]) {
        json_object_set_new(context, member, json_string(text));
    }
}

int context_change(json_t *all, const char *verb, const char *name, const struct cli_options *options,
                   struct err *err)
{
    json_t *contexts = json_object_get(all, "contexts");
    if (!contexts) {
        contexts = json_object();
        json_object_set_new(all, "contexts", contexts);
    }
    if (strcmp(verb, "add") == 0) {
        if (!options->host) {
            return err_set(err, -EINVAL, "context add: say where it is, by --host HOST:PORT");
        }
        json_t *context = json_object();
        add(context, "host", options->host);
        add(context, "ca", options->ca);
        add(context, "cert", options->cert);
        add(context, "key", options->key);
        add(context, "token", getenv("FONDA_TOKEN"));
        json_object_set_new(contexts, name, context);
        return 0;
    }
    bool local = strcmp(name, "local") == 0;
    if (!local && !json_object_get(contexts, name)) {
        return err_set(err, -EINVAL, "there is no context '%s' (see 'fonda context list')", name);
    }
    if (strcmp(verb, "use") == 0) {
        json_object_set_new(all, "current", json_string(local ? "" : name));
        return 0;
    }
    if (strcmp(verb, "delete") == 0) {
        json_object_del(contexts, name);
        return 0;
    }
    return -EINVAL;
}

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text && text[0] ? text : NULL;
}

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value && value[0] ? value : NULL;
}

int context_resolve(const json_t *all, const struct cli_options *options, struct client_config *ret_config,
                    struct err *err)
{
    struct client_config config = {.state = options->state,
                                   .host = options->host ? options->host : env("FONDA_HOST"),
                                   .token = env("FONDA_TOKEN"),
                                   .ca = options->ca,
                                   .cert = options->cert,
                                   .key = options->key};
    const char *name = options->context ? options->context : text_of(all, "current");
    if (!config.host && !options->state && name && strcmp(name, "local") != 0) {
        const json_t *context = json_object_get(json_object_get(all, "contexts"), name);
        if (!context) {
            return err_set(err, -EINVAL, "there is no context '%s' (see 'fonda context list')", name);
        }
        config.host = text_of(context, "host");
        config.token = config.token ? config.token : text_of(context, "token");
        config.ca = config.ca ? config.ca : text_of(context, "ca");
        config.cert = config.cert ? config.cert : text_of(context, "cert");
        config.key = config.key ? config.key : text_of(context, "key");
    }
    *ret_config = config;
    return 0;
}
