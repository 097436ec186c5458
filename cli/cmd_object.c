/* Volumes, networks, users, jobs, events, the audit log: list, show, create, delete. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"

static const struct {
    const char *command, *plural, *columns;
} kinds[] = {
    {"volume", "volumes", "name format size backing template owner"},
    {"network", "networks", "name mode description"},
    {"user", "users", "name role has_token description"},
    {"job", "jobs", "name type target state step created_at"},
};

static int list(struct cli *cli, const char *plural, const char *columns)
{
    char url[8192];
    auto_free char *filter = url_escape(cli->options.filter ? cli->options.filter : "");
    auto_free char *sort = url_escape(cli->options.sort ? cli->options.sort : "");
    json_t *reply = NULL;
    snprintf(url, sizeof(url), "/v1/%s?limit=%llu&filter=%.3000s&sort=%.1000s", plural,
             (unsigned long long)(cli->options.limit ? cli->options.limit : 1000), filter ? filter : "",
             sort ? sort : "");
    int rc = call_api(cli, "GET", url, NULL, &reply);
    if (rc == CLI_OK) {
        output_list(cli, json_object_get(reply, "items"), columns);
        json_decref(reply);
    }
    return rc;
}

static int show(struct cli *cli, const char *path, const char *member)
{
    json_t *object = NULL;
    int rc = call_api(cli, "GET", path, NULL, &object);
    if (rc == CLI_OK && member) {
        size_t i;
        json_t *line;
        json_array_foreach(json_object_get(object, member), i, line)
        {
            puts(json_string_value(line));
        }
    } else if (rc == CLI_OK) {
        output_object(cli, object);
    }
    json_decref(object);
    return rc;
}

static json_t *new_body(struct cli *cli)
{
    const struct cli_options *o = &cli->options;
    const char *const members[][2] = {{"size", o->size},
                                      {"mode", o->mode},
                                      {"options", o->net_options},
                                      {"role", o->role},
                                      {"description", o->description}};
    json_t *body = json_pack("{s:s}", "name", cli->argv[1]);
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        if (members[i][1]) {
            json_object_set_new(body, members[i][0], json_string(members[i][1]));
        }
    }
    if (o->raw) {
        json_object_set_new(body, "format", json_string("raw"));
    }
    return body;
}

static int usage(const struct cli *cli)
{
    log_error("usage: fonda %s %s", cli->command->name, cli->command->args);
    return CLI_USAGE;
}

static int new_token(struct cli *cli, const char *path)
{
    char url[700];
    json_t *reply = NULL;
    snprintf(url, sizeof(url), "%s/token", path);
    int rc = call_api(cli, "POST", url, NULL, &reply);
    if (rc == CLI_OK) {
        puts(json_string_value(json_object_get(reply, "token")));
    }
    json_decref(reply);
    return rc;
}

int cmd_object(struct cli *cli)
{
    unsigned kind = 0;
    while (strcmp(kinds[kind].command, cli->command->name) != 0) {
        kind++;
    }
    const char *verb = cli->argv[0];
    if (strcmp(verb, "list") == 0 && cli->argc == 1) {
        return list(cli, kinds[kind].plural, kinds[kind].columns);
    }
    if (cli->argc != 2) {
        return usage(cli);
    }
    char path[600];
    auto_free char *name = url_escape(cli->argv[1]);
    snprintf(path, sizeof(path), "/v1/%s/%.400s", kinds[kind].plural, name ? name : "");
    if (strcmp(verb, "show") == 0) {
        return show(cli, path, NULL);
    }
    if (strcmp(verb, "create") == 0) {
        char plural[64];
        snprintf(plural, sizeof(plural), "/v1/%s", kinds[kind].plural);
        return call_api(cli, "POST", plural, new_body(cli), NULL);
    }
    if (strcmp(verb, "delete") == 0) {
        return call_api(cli, "DELETE", path, NULL, NULL);
    }
    if (strcmp(verb, "token") == 0 && strcmp(cli->command->name, "user") == 0) {
        return new_token(cli, path);
    }
    return usage(cli);
}

int cmd_job(struct cli *cli)
{
    const char *verb = cli->argv[0];
    if (strcmp(verb, "list") == 0 && cli->argc == 1) {
        if (!cli->options.sort) {
            cli->options.sort = "-number";
        }
        return list(cli, "jobs", "name type target state step created_at");
    }
    if (cli->argc != 2) {
        return usage(cli);
    }
    char path[600];
    auto_free char *name = url_escape(cli->argv[1]);
    snprintf(path, sizeof(path), "/v1/jobs/%.400s", name ? name : "");
    if (strcmp(verb, "show") == 0) {
        return show(cli, path, NULL);
    }
    if (strcmp(verb, "log") == 0) {
        return show(cli, path, "log");
    }
    if (strcmp(verb, "wait") == 0) {
        return call_job(cli, "GET", path, NULL);
    }
    if (strcmp(verb, "cancel") == 0) {
        strcat(path, "/cancel");
        return call_api(cli, "POST", path, NULL, NULL);
    }
    return usage(cli);
}

static bool print_event(void *opaque, const char *bytes, size_t len)
{
    const struct cli *cli = opaque;
    json_t *event = json_loadb(bytes, len, 0, NULL);
    const char *type = json_string_value(json_object_get(event, "type"));
    bool overflow = type && strcmp(type, "overflow") == 0;
    if (overflow) {
        log_error("events come faster than they are read here: the daemon ended the stream");
    } else if (cli->format == FORMAT_JSON) {
        printf("%.*s\n", (int)len, bytes);
    } else if (event) {
        const char *parts[] = {"time", "type", "subject", "who"};
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
            const char *text = json_string_value(json_object_get(event, parts[i]));
            printf("%s%s", text ? text : "", i + 1 < ARRAY_SIZE(parts) ? "  " : "\n");
        }
    }
    fflush(stdout);
    json_decref(event);
    return !overflow;
}

static int show_log(struct cli *cli, const char *log, const char *columns)
{
    char url[128];
    json_t *reply = NULL;
    snprintf(url, sizeof(url), "/v1/%s?after=%llu&limit=%llu", log, (unsigned long long)cli->options.after,
             (unsigned long long)(cli->options.limit ? cli->options.limit : 1000));
    int rc = call_api(cli, "GET", url, NULL, &reply);
    if (rc == CLI_OK) {
        output_list(cli, json_object_get(reply, "items"), columns);
        json_decref(reply);
    }
    return rc;
}

int cmd_events(struct cli *cli)
{
    if (!cli->options.follow) {
        return show_log(cli, "events", "seq time type subject who");
    }
    struct client_ws ws = {.message = print_event, .fd = -1, .opaque = cli};
    struct err err = {0};
    char path[128];
    if (cli->options.after) {
        snprintf(path, sizeof(path), "/v1/events/stream?after=%llu", (unsigned long long)cli->options.after);
    } else {
        snprintf(path, sizeof(path), "/v1/events/stream");
    }
    if (client_websocket(cli->client, path, &ws, &err) < 0) {
        log_error("%s", err.text);
        return CLI_NO_DAEMON;
    }
    return CLI_OK;
}

int cmd_audit(struct cli *cli)
{
    return show_log(cli, "audit", "seq time who from method path status");
}
