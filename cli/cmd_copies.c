/* Commands about what is made from instances: snapshots, clones, templates, exports, backups, schedules. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"

#define URL_MAX 1400

static int usage(const struct cli *cli)
{
    log_error("usage: fonda %s %s", cli->command->name, cli->command->args);
    return CLI_USAGE;
}

static void add_text(json_t *body, const char *member, const char *text)
{
    if (text) {
        json_object_set_new(body, member, json_string(text));
    }
}

/* "instances", "web", "snapshots", "one", "restore"; NULL: nothing more. */
static void make_url(char *url, const char *plural, const char *name, const char *part, const char *item,
                     const char *verb)
{
    auto_free char *one = url_escape(name);
    auto_free char *two = url_escape(item ? item : "");
    snprintf(url, URL_MAX, "/v1/%s/%.400s%s%s%s%.400s%s%s", plural, one ? one : "", part ? "/" : "",
             part ? part : "", item ? "/" : "", two ? two : "", verb ? "/" : "", verb ? verb : "");
}

static int get_items(struct cli *cli, const char *url, json_t **ret_items)
{
    char whole[2 * URL_MAX + 4096];
    auto_free char *filter = url_escape(cli->options.filter ? cli->options.filter : "");
    auto_free char *sort = url_escape(cli->options.sort ? cli->options.sort : "");
    json_t *reply = NULL;
    snprintf(whole, sizeof(whole), "%s?limit=%llu&filter=%.3000s&sort=%.1000s", url,
             (unsigned long long)(cli->options.limit ? cli->options.limit : 1000), filter ? filter : "",
             sort ? sort : "");
    int rc = call_api(cli, "GET", whole, NULL, &reply);
    if (rc == CLI_OK) {
        *ret_items = json_incref(json_object_get(reply, "items"));
        json_decref(reply);
    }
    return rc;
}

static int list(struct cli *cli, const char *url, const char *columns)
{
    json_t *items = NULL;
    int rc = get_items(cli, url, &items);
    if (rc == CLI_OK) {
        output_list(cli, items, columns);
        json_decref(items);
    }
    return rc;
}

static int show(struct cli *cli, const char *url)
{
    json_t *object = NULL;
    int rc = call_api(cli, "GET", url, NULL, &object);
    if (rc == CLI_OK) {
        output_object(cli, object);
        json_decref(object);
    }
    return rc;
}

static const char *text_of(const json_t *object, const char *member)
{
    const char *text = json_string_value(json_object_get(object, member));
    return text ? text : "";
}

/* ---- snapshots ---- */

/* Names are the daemon's, which has checked them. depth bounds what a confused daemon could answer. */
static void print_below(const json_t *items, const char *parent, const char *current, unsigned depth)
{
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)items, i, item)
    {
        const char *name = text_of(item, "name");
        if (strcmp(text_of(item, "parent"), parent) == 0 && depth <= json_array_size(items)) {
            printf("%*s%s%s%s  %s\n", (int)(2 * depth), "", name,
                   json_is_true(json_object_get(item, "memory")) ? " (with memory)" : "",
                   strcmp(name, current) == 0 ? "  <- here" : "", text_of(item, "created_at"));
            print_below(items, name, current, depth + 1);
        }
    }
}

static int print_tree(struct cli *cli, const char *name, const char *url)
{
    char instance_url[URL_MAX];
    json_t *items = NULL, *instance = NULL;
    make_url(instance_url, "instances", name, NULL, NULL, NULL);
    cli->options.sort = "created_at";
    int rc = get_items(cli, url, &items);
    rc = rc == CLI_OK ? call_api(cli, "GET", instance_url, NULL, &instance) : rc;
    if (rc == CLI_OK && cli->format != FORMAT_TABLE) {
        output_list(cli, items, "name parent memory created_at");
    } else if (rc == CLI_OK) {
        print_below(items, "", text_of(instance, "snapshot"), 0);
    }
    json_decref(items);
    json_decref(instance);
    return rc;
}

static int create_snapshot(struct cli *cli, const char *url)
{
    json_t *body = json_object();
    if (cli->argc == 3) {
        json_object_set_new(body, "name", json_string(cli->argv[2]));
    }
    add_text(body, "description", cli->options.description);
    if (cli->options.no_memory) {
        json_object_set_new(body, "memory", json_false());
    }
    return call_job(cli, "POST", url, body);
}

int cmd_snapshot(struct cli *cli)
{
    char url[URL_MAX];
    const char *verb = cli->argv[0];
    if (cli->argc < 2) {
        return usage(cli);
    }
    make_url(url, "instances", cli->argv[1], "snapshots", NULL, NULL);
    if (strcmp(verb, "create") == 0) {
        return create_snapshot(cli, url);
    }
    if (cli->argc == 2 && strcmp(verb, "list") == 0) {
        return list(cli, url, "name parent memory size created_at expires_at");
    }
    if (cli->argc == 2 && strcmp(verb, "tree") == 0) {
        return print_tree(cli, cli->argv[1], url);
    }
    if (cli->argc != 3) {
        return usage(cli);
    }
    make_url(url, "instances", cli->argv[1], "snapshots", cli->argv[2], NULL);
    if (strcmp(verb, "show") == 0) {
        return show(cli, url);
    }
    if (strcmp(verb, "delete") == 0) {
        return call_job(cli, "DELETE", url, NULL);
    }
    if (strcmp(verb, "restore") == 0) {
        make_url(url, "instances", cli->argv[1], "snapshots", cli->argv[2], "restore");
        json_t *body = json_object();
        if (cli->options.start) {
            json_object_set_new(body, "start", json_true());
        }
        return call_job(cli, "POST", url, body);
    }
    return usage(cli);
}

/* ---- clones and templates ---- */

int cmd_clone(struct cli *cli)
{
    char url[URL_MAX];
    make_url(url, "instances", cli->argv[0], NULL, NULL, "clone");
    json_t *body = json_pack("{s:s}", "name", cli->argv[1]);
    if (body && cli->options.linked) {
        json_object_set_new(body, "mode", json_string("linked"));
    }
    if (body) {
        add_text(body, "snapshot", cli->options.snapshot);
    }
    return call_job(cli, "POST", url, body);
}

static int create_template(struct cli *cli)
{
    json_t *body = json_pack("{s:s, s:s}", "name", cli->argv[1], "instance", cli->argv[2]);
    if (body) {
        add_text(body, "description", cli->options.description);
    }
    return call_job(cli, "POST", "/v1/templates", body);
}

static int use_template(struct cli *cli)
{
    char url[URL_MAX];
    make_url(url, "templates", cli->argv[1], NULL, NULL, "use");
    json_t *body = json_pack("{s:s}", "name", cli->argv[2]);
    if (body && cli->options.full) {
        json_object_set_new(body, "mode", json_string("full"));
    }
    bool no_wait = cli->options.no_wait, start = cli->options.start;
    cli->options.no_wait = no_wait && !start;
    int rc = call_job(cli, "POST", url, body);
    cli->options.no_wait = no_wait;
    make_url(url, "instances", cli->argv[2], NULL, NULL, "start");
    return rc == CLI_OK && start ? call_job(cli, "POST", url, NULL) : rc;
}

int cmd_template(struct cli *cli)
{
    char url[URL_MAX];
    const char *verb = cli->argv[0];
    if (cli->argc == 1 && strcmp(verb, "list") == 0) {
        return list(cli, "/v1/templates", "name instance state volumes owner created_at");
    }
    if (cli->argc == 3 && strcmp(verb, "create") == 0) {
        return create_template(cli);
    }
    if (cli->argc == 3 && strcmp(verb, "use") == 0) {
        return use_template(cli);
    }
    if (cli->argc != 2) {
        return usage(cli);
    }
    make_url(url, "templates", cli->argv[1], NULL, NULL, NULL);
    if (strcmp(verb, "show") == 0) {
        return show(cli, url);
    }
    return strcmp(verb, "delete") == 0 ? call_api(cli, "DELETE", url, NULL, NULL) : usage(cli);
}

/* ---- exports and backups ---- */

/* Paths are the caller's; the daemon has another working directory. */
static json_t *absolute(const char *path)
{
    char cwd[PATH_MAX], buf[2 * PATH_MAX];
    if (path[0] == '/' || !getcwd(cwd, sizeof(cwd))) {
        return json_string(path);
    }
    snprintf(buf, sizeof(buf), "%s/%s", cwd, path);
    return json_string(buf);
}

int cmd_export(struct cli *cli)
{
    char url[URL_MAX];
    make_url(url, "instances", cli->argv[0], NULL, NULL, "export");
    json_t *body = json_object();
    json_object_set_new(body, "path", absolute(cli->argv[1]));
    return call_job(cli, "POST", url, body);
}

int cmd_import(struct cli *cli)
{
    json_t *body = json_object();
    json_object_set_new(body, "path", absolute(cli->argv[0]));
    json_object_set_new(body, "name", json_string(cli->argv[1]));
    if (cli->options.trust) {
        json_object_set_new(body, "trust", json_true());
    }
    return call_job(cli, "POST", "/v1/import", body);
}

static int create_backup(struct cli *cli)
{
    char url[URL_MAX];
    make_url(url, "instances", cli->argv[1], "backups", NULL, NULL);
    json_t *body = json_object();
    if (cli->argc == 3) {
        json_object_set_new(body, "name", json_string(cli->argv[2]));
    }
    add_text(body, "description", cli->options.description);
    return call_job(cli, "POST", url, body);
}

int cmd_backup(struct cli *cli)
{
    char url[URL_MAX];
    const char *verb = cli->argv[0];
    if (cli->argc == 1 && strcmp(verb, "list") == 0) {
        return list(cli, "/v1/backups", "name instance state size created_at verified_at expires_at");
    }
    if (cli->argc >= 2 && strcmp(verb, "create") == 0) {
        return create_backup(cli);
    }
    if (cli->argc >= 2 && strcmp(verb, "restore") == 0) {
        json_t *body = json_object();
        make_url(url, "backups", cli->argv[1], NULL, NULL, "restore");
        if (cli->argc == 3) {
            json_object_set_new(body, "name", json_string(cli->argv[2]));
        }
        return call_job(cli, "POST", url, body);
    }
    if (cli->argc != 2) {
        return usage(cli);
    }
    if (strcmp(verb, "verify") == 0) {
        make_url(url, "backups", cli->argv[1], NULL, NULL, "verify");
        return call_job(cli, "POST", url, NULL);
    }
    make_url(url, "backups", cli->argv[1], NULL, NULL, NULL);
    if (strcmp(verb, "show") == 0) {
        return show(cli, url);
    }
    return strcmp(verb, "delete") == 0 ? call_api(cli, "DELETE", url, NULL, NULL) : usage(cli);
}

/* ---- schedules ---- */

/* "30m", "12h", "7d", "90": seconds; 0: it is none. */
static uint64_t duration(const char *text)
{
    static const struct {
        char unit;
        unsigned seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 7 * 86400}};
    char digits[24];
    uint64_t value = 0;
    size_t len = strspn(text, "0123456789");
    if (len == 0 || len > 10) {
        return 0;
    }
    snprintf(digits, sizeof(digits), "%.*s", (int)len, text);
    if (parse_uint(digits, &value, NULL) < 0) {
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
        if (text[len] == units[i].unit && text[len + 1] == '\0') {
            return value * units[i].seconds;
        }
    }
    return text[len] == '\0' ? value : 0;
}

static bool add_duration(json_t *body, const char *member, const char *option, const char *text)
{
    uint64_t seconds = text ? duration(text) : 0;
    if (text && !seconds) {
        log_error("--%s: '%s' is no time such as 30m, 12h or 7d", option, text);
        return false;
    }
    if (text) {
        json_object_set_new(body, member, json_integer((json_int_t)seconds));
    }
    return true;
}

static int create_schedule(struct cli *cli)
{
    const struct cli_options *o = &cli->options;
    json_t *body = json_object();
    json_object_set_new(body, "name", json_string(cli->argv[1]));
    json_object_set_new(body, "instance", json_string(cli->argv[2]));
    if (o->backup) {
        json_object_set_new(body, "action", json_string("backup"));
    }
    add_text(body, "cron", o->cron);
    add_text(body, "description", o->description);
    if (o->keep_last) {
        json_object_set_new(body, "keep_last", json_integer((json_int_t)o->keep_last));
    }
    if (o->with_memory) {
        json_object_set_new(body, "memory", json_true());
    }
    if (!add_duration(body, "every", "every", o->every) ||
        !add_duration(body, "keep_for", "keep-for", o->keep_for)) {
        json_decref(body);
        return CLI_USAGE;
    }
    return call_api(cli, "POST", "/v1/schedules", body, NULL);
}

int cmd_schedule(struct cli *cli)
{
    char url[URL_MAX];
    const char *verb = cli->argv[0];
    if (cli->argc == 1 && strcmp(verb, "list") == 0) {
        return list(cli, "/v1/schedules",
                    "name instance action every cron keep_last enabled next_at last_error");
    }
    if (cli->argc == 3 && strcmp(verb, "create") == 0) {
        return create_schedule(cli);
    }
    if (cli->argc != 2) {
        return usage(cli);
    }
    make_url(url, "schedules", cli->argv[1], NULL, NULL, NULL);
    if (strcmp(verb, "show") == 0) {
        return show(cli, url);
    }
    bool enable = strcmp(verb, "enable") == 0;
    if (enable || strcmp(verb, "disable") == 0) {
        return call_api(cli, "PATCH", url, json_pack("{s:b}", "enabled", enable), NULL);
    }
    return strcmp(verb, "delete") == 0 ? call_api(cli, "DELETE", url, NULL, NULL) : usage(cli);
}
