/* Commands about instances. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"

/* Names in paths are checked by the daemon; what could change the path's shape is escaped here. */
static void instance_path(const char *name, const char *verb, char *buf, size_t size)
{
    auto_free char *escaped = url_escape(name);
    snprintf(buf, size, "/v1/instances/%.400s%s%s", escaped ? escaped : "", verb[0] ? "/" : "", verb);
}

static void add_text(json_t *body, const char *member, const char *text)
{
    if (text) {
        json_object_set_new(body, member, json_string(text));
    }
}

/* A number stays one; what is none goes as text, and the daemon says what is wrong with it. */
static json_t *number_or_text(const char *text)
{
    uint64_t number;
    return parse_uint(text, &number, NULL) == 0 && number <= INT64_MAX ? json_integer((json_int_t)number)
                                                                       : json_string(text);
}

/* Paths are the caller's; the daemon has another working directory. "FILE,options" keeps its options. */
static json_t *absolute(const char *path)
{
    char cwd[PATH_MAX], buf[2 * PATH_MAX];
    if (path[0] == '/' || !getcwd(cwd, sizeof(cwd))) {
        return json_string(path);
    }
    snprintf(buf, sizeof(buf), "%s/%s", cwd, path);
    return json_string(buf);
}

static void add_list(json_t *body, const char *member, const struct option_list *list, bool paths)
{
    if (!list->count) {
        return;
    }
    json_t *items = json_array();
    for (unsigned i = 0; i < list->count; i++) {
        json_array_append_new(items, paths ? absolute(list->values[i]) : json_string(list->values[i]));
    }
    json_object_set_new(body, member, items);
}

static int add_labels(json_t *body, const struct option_list *list)
{
    json_t *labels = list->count ? json_object() : NULL;
    for (unsigned i = 0; i < list->count; i++) {
        char name[64];
        const char *equals = strchr(list->values[i], '=');
        if (!equals || equals == list->values[i] || (size_t)(equals - list->values[i]) >= sizeof(name)) {
            log_error("--label: '%s' is not NAME=TEXT", list->values[i]);
            json_decref(labels);
            return CLI_USAGE;
        }
        snprintf(name, sizeof(name), "%.*s", (int)(equals - list->values[i]), list->values[i]);
        json_object_set_new(labels, name, json_string(equals + 1));
    }
    if (labels) {
        json_object_set_new(body, "labels", labels);
    }
    return CLI_OK;
}

static int verb(struct cli *cli, const char *name, const char *what)
{
    char path[600];
    instance_path(name, what, path, sizeof(path));
    return call_job(cli, "POST", path, NULL);
}

static int create(struct cli *cli, bool start)
{
    const struct cli_options *o = &cli->options;
    json_t *body = json_pack("{s:s}", "name", cli->argv[0]);
    if (!body) {
        log_error("'%s' is no name", cli->argv[0]);
        return CLI_USAGE;
    }
    if (add_labels(body, &o->labels) != CLI_OK) {
        json_decref(body);
        return CLI_USAGE;
    }
    if (o->kernel) {
        json_object_set_new(body, "kernel", absolute(o->kernel));
    }
    if (o->cpus) {
        json_object_set_new(body, "cpus", number_or_text(o->cpus));
    }
    if (o->cpu_weight) {
        json_object_set_new(body, "cpu_weight", number_or_text(o->cpu_weight));
    }
    if (o->pids_limit) {
        json_object_set_new(body, "pids_limit", number_or_text(o->pids_limit));
    }
    add_text(body, "cpu_limit", o->cpu_limit);
    add_text(body, "memory_limit", o->memory_limit);
    add_text(body, "memory", o->memory);
    add_text(body, "append", o->append);
    add_text(body, "engine", o->engine);
    add_text(body, "restart_policy", o->restart);
    add_text(body, "description", o->description);
    add_list(body, "initrds", &o->initrds, true);
    add_list(body, "disks", &o->disks, true);
    add_list(body, "shares", &o->shares, true);
    add_list(body, "volumes", &o->volumes, false);
    add_list(body, "networks", &o->networks, false);
    add_list(body, "publish", &o->publish, false);
    if (o->autostart) {
        json_object_set_new(body, "autostart", json_true());
    }
    if (o->no_reboot) {
        json_object_set_new(body, "reboot", json_false());
    }
    bool no_wait = o->no_wait;
    cli->options.no_wait = no_wait && !start;
    int rc = call_job(cli, "POST", "/v1/instances", body);
    cli->options.no_wait = no_wait;
    return rc == CLI_OK && start ? verb(cli, cli->argv[0], "start") : rc;
}

int cmd_create(struct cli *cli)
{
    return create(cli, cli->options.start);
}

int cmd_launch(struct cli *cli)
{
    return create(cli, true);
}

static int get_list(struct cli *cli, const char *path, const char *more, json_t **ret_items)
{
    char url[8192];
    auto_free char *filter = url_escape(cli->options.filter ? cli->options.filter : "");
    auto_free char *sort = url_escape(cli->options.sort ? cli->options.sort : "");
    json_t *reply = NULL;
    snprintf(url, sizeof(url), "%s?limit=%llu&filter=%.3000s&sort=%.1000s%s", path,
             (unsigned long long)(cli->options.limit ? cli->options.limit : 10000), filter ? filter : "",
             sort ? sort : "", more);
    int rc = call_api(cli, "GET", url, NULL, &reply);
    if (rc == CLI_OK) {
        *ret_items = json_incref(json_object_get(reply, "items"));
        json_decref(reply);
    }
    return rc;
}

int cmd_ps(struct cli *cli)
{
    json_t *items = NULL;
    bool all = cli->format == FORMAT_JSON || cli->format == FORMAT_YAML;
    int rc = get_list(cli, "/v1/instances",
                      all ? "" : "&fields=name,kind,state,cpus,memory,engine,image,owner", &items);
    if (rc == CLI_OK) {
        output_list(cli, items, "name kind state cpus memory engine image owner");
        json_decref(items);
    }
    return rc;
}

static int show(struct cli *cli, const char *what)
{
    char path[600];
    json_t *object = NULL;
    instance_path(cli->argv[0], what, path, sizeof(path));
    int rc = call_api(cli, "GET", path, NULL, &object);
    if (rc == CLI_OK) {
        output_object(cli, object);
        json_decref(object);
    }
    return rc;
}

int cmd_show(struct cli *cli)
{
    return show(cli, "");
}

int cmd_stats(struct cli *cli)
{
    return show(cli, "stats");
}

/* Each instance in turn; the first failure is the status, the others go on. */
static int each(struct cli *cli, int (*fn)(struct cli *cli, const char *name))
{
    int status = CLI_OK;
    for (int i = 0; i < cli->argc; i++) {
        int rc = fn(cli, cli->argv[i]);
        status = status == CLI_OK ? rc : status;
    }
    return status;
}

static int verb_one(struct cli *cli, const char *name)
{
    return verb(cli, name, cli->command->name);
}

int cmd_verb(struct cli *cli)
{
    return each(cli, verb_one);
}

static int stop_one(struct cli *cli, const char *name)
{
    char path[600];
    json_t *body = json_object();
    if (cli->options.force) {
        json_object_set_new(body, "force", json_true());
    }
    if (cli->options.timeout != UINT64_MAX) {
        json_object_set_new(body, "timeout", json_integer((json_int_t)cli->options.timeout));
    }
    instance_path(name, strcmp(cli->command->name, "restart") == 0 ? "restart" : "stop", path, sizeof(path));
    return call_job(cli, "POST", path, body);
}

int cmd_stop(struct cli *cli)
{
    return each(cli, stop_one);
}

static int delete_one(struct cli *cli, const char *name)
{
    char path[600];
    json_t *instance = NULL;
    instance_path(name, "", path, sizeof(path));
    int rc = cli->options.force ? call_api(cli, "GET", path, NULL, &instance) : CLI_OK;
    const char *state = json_string_value(json_object_get(instance, "state"));
    if (rc == CLI_OK && state && (strcmp(state, "running") == 0 || strcmp(state, "paused") == 0)) {
        rc = stop_one(cli, name);
    }
    json_decref(instance);
    cli->query = cli->options.with_volumes ? "&volumes=1" : NULL;
    rc = rc == CLI_OK ? call_job(cli, "DELETE", path, NULL) : rc;
    cli->query = NULL;
    return rc;
}

int cmd_delete(struct cli *cli)
{
    return each(cli, delete_one);
}

int cmd_rename(struct cli *cli)
{
    char path[600];
    instance_path(cli->argv[0], "rename", path, sizeof(path));
    return call_api(cli, "POST", path, json_pack("{s:s}", "name", cli->argv[1]), NULL);
}

/* "2" is a number, "true" a boolean, "[...]" a list, "" goes back to absence; everything else a text, as is
 * what counts CPUs, whole or not. */
static json_t *value_of(const char *member, const char *text)
{
    if (!text[0]) {
        return json_null();
    }
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    if (json_is_real(value) || (json_is_integer(value) && strcmp(member, "cpu_limit") == 0)) {
        json_decref(value);
        value = NULL;
    }
    return value ? value : json_string(text);
}

/* Until the job that changes what runs has ended; what it could not do waits for a restart. */
static int wait_applied(struct cli *cli, const char *path, json_t **changed)
{
    for (;;) {
        char url[700];
        json_t *job = NULL;
        const char *name = json_string_value(json_object_get(*changed, "applying"));
        if (!name || cli->options.no_wait) {
            return CLI_OK;
        }
        snprintf(url, sizeof(url), "/v1/jobs/%s?wait=5", name);
        int rc = call_api(cli, "GET", url, NULL, &job);
        const char *detail = json_string_value(json_object_get(json_object_get(job, "error"), "detail"));
        if (rc == CLI_OK && detail && !cli->options.quiet) {
            fprintf(stderr, "%s\n", detail);
        }
        bool failed = detail != NULL;
        json_decref(job);
        json_decref(*changed);
        *changed = NULL;
        rc = rc == CLI_OK ? call_api(cli, "GET", path, NULL, changed) : rc;
        if (rc != CLI_OK || failed) {
            return rc;
        }
    }
}

int cmd_patch_instance(struct cli *cli, const char *name, const char *path, json_t *patch)
{
    json_t *changed = NULL;
    int rc = call_api(cli, "PATCH", path, patch, &changed);
    if (rc == CLI_OK && json_object_get(changed, "applying")) {
        rc = wait_applied(cli, path, &changed);
    }
    if (rc == CLI_OK && json_is_true(json_object_get(changed, "after_restart")) && !cli->options.quiet) {
        fprintf(stderr, "takes effect after: fonda restart %s\n", name);
    }
    json_decref(changed);
    return rc;
}

int cmd_set(struct cli *cli)
{
    json_t *patch = json_object();
    for (int i = 1; i < cli->argc; i++) {
        char *equals = strchr(cli->argv[i], '=');
        if (!equals) {
            log_error("'%s' is not MEMBER=VALUE (see 'fonda set --help')", cli->argv[i]);
            json_decref(patch);
            return CLI_USAGE;
        }
        *equals = '\0';
        json_object_set_new(patch, cli->argv[i], value_of(cli->argv[i], equals + 1));
    }
    char path[600];
    instance_path(cli->argv[0], "", path, sizeof(path));
    return cmd_patch_instance(cli, cli->argv[0], path, patch);
}

int cmd_shell(struct cli *cli)
{
    char path[600];
    json_t *instance = NULL;
    instance_path(cli->argv[0], "", path, sizeof(path));
    int rc = call_api(cli, "GET", path, NULL, &instance);
    const char *kind = json_string_value(json_object_get(instance, "kind"));
    bool container = kind && strcmp(kind, "container") == 0;
    json_decref(instance);
    return rc != CLI_OK ? rc : container ? container_shell(cli) : cmd_console(cli);
}

int cmd_logs(struct cli *cli)
{
    char path[600];
    json_t *instance = NULL;
    instance_path(cli->argv[0], "", path, sizeof(path));
    int rc = call_api(cli, "GET", path, NULL, &instance);
    bool container = cli_has_room(instance);
    json_decref(instance);
    if (rc != CLI_OK || container) {
        return rc != CLI_OK ? rc : container_logs(cli);
    }
    struct client_reply reply = {0};
    struct err err = {0};
    instance_path(cli->argv[0], "log", path, sizeof(path));
    if (client_request(cli->client, "GET", path, NULL, &reply, &err) < 0) {
        log_error("%s", err.text);
        return CLI_NO_DAEMON;
    }
    if (reply.status != 200) {
        free(reply.text);
        return call_api(cli, "GET", path, NULL, NULL); /* says why */
    }
    fwrite(reply.text, 1, reply.len, stdout);
    free(reply.text);
    return CLI_OK;
}

int cmd_top(struct cli *cli)
{
    if (cli->argc) {
        return container_top(cli);
    }
    json_t *items = NULL, *item;
    size_t i;
    cli->options.filter = "state=running or state=paused";
    int rc = get_list(cli, "/v1/instances", "&fields=name,state,cpus,memory", &items);
    json_array_foreach(items, i, item)
    {
        char path[600];
        json_t *stats = NULL;
        instance_path(json_string_value(json_object_get(item, "name")), "stats", path, sizeof(path));
        if (call_api(cli, "GET", path, NULL, &stats) == CLI_OK) {
            json_int_t cpu = json_integer_value(json_object_get(stats, "cpu_ns"));
            json_int_t up = json_integer_value(json_object_get(stats, "uptime_ms"));
            char share[32];
            snprintf(share, sizeof(share), "%.1f%%", up ? (double)cpu / 1e4 / (double)up : 0.0);
            json_object_set_new(item, "cpu", json_string(share));
            json_object_set(item, "rss", json_object_get(stats, "rss"));
            json_decref(stats);
        }
    }
    if (rc == CLI_OK) {
        output_list(cli, items, "name state cpu rss memory cpus");
    }
    json_decref(items);
    return rc;
}
