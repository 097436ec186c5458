/* Calls of the API as commands use them: errors reported, jobs waited for. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

char *url_escape(const char *text)
{
    char *out = malloc(3 * strlen(text) + 1), *at = out;
    for (; out && *text; text++) {
        unsigned char c = (unsigned char)*text;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-_.", c)) {
            *at++ = (char)c;
        } else {
            at += sprintf(at, "%%%02X", c);
        }
    }
    if (out) {
        *at = '\0';
    }
    return out;
}

static int exit_of(int status)
{
    switch (status) {
    case 400:
    case 415: return CLI_USAGE;
    case 401:
    case 403: return CLI_FORBIDDEN;
    case 404: return CLI_NOT_FOUND;
    case 409:
    case 412: return CLI_CONFLICT;
    case 413:
    case 429:
    case 507: return CLI_LIMIT;
    default: return CLI_FAILED;
    }
}

static void report(const json_t *problem, int status)
{
    const char *detail = text_of(problem, "detail"), *hint = text_of(problem, "hint");
    if (!detail[0]) {
        log_error("the daemon answered with status %d", status);
    } else {
        log_error("%s%s%s%s", detail, hint[0] ? " (" : "", hint, hint[0] ? ")" : "");
    }
}

int call_api(struct cli *cli, const char *method, const char *path, json_t *body, json_t **ret_reply)
{
    struct client_reply reply = {0};
    struct err err = {0};
    auto_free char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    if (client_request(cli->client, method, path, text, &reply, &err) < 0) {
        log_error("%s", err.text);
        return CLI_NO_DAEMON;
    }
    json_t *object = json_loadb(reply.text, reply.len, 0, NULL);
    free(reply.text);
    if (reply.status >= 400) {
        report(object, reply.status);
        const char *code = text_of(object, "code");
        int status = strcmp(code, "quota_reached") == 0 ? CLI_LIMIT : exit_of(reply.status);
        json_decref(object);
        return status;
    }
    if (ret_reply) {
        *ret_reply = object;
    } else {
        json_decref(object);
    }
    return CLI_OK;
}

/* One line that is written over on a terminal, lines elsewhere. */
static void show_progress(const struct cli *cli, const json_t *job, char *last, size_t size)
{
    const char *step = text_of(job, "step");
    json_int_t done = json_integer_value(json_object_get(job, "bytes_done"));
    json_int_t bytes = json_integer_value(json_object_get(job, "bytes"));
    char line[300];
    if (cli->options.quiet || !step[0]) {
        return;
    }
    bool terminal = isatty(STDERR_FILENO);
    if (bytes && terminal) {
        int filled = (int)(24 * done / bytes);
        snprintf(line, sizeof(line), "%s [%.*s%.*s] %d%%", step, filled, "########################",
                 24 - filled, "                        ", (int)(100 * done / bytes));
    } else {
        snprintf(line, sizeof(line), "%s", step);
    }
    if (strcmp(line, last) != 0) {
        fprintf(stderr, terminal ? "\r\033[K%s" : "%s\n", line);
        snprintf(last, size, "%s", line);
    }
}

static int job_end(struct cli *cli, const json_t *job)
{
    cli->job_detail[0] = '\0';
    const json_t *error = json_object_get(job, "error");
    if (strcmp(text_of(job, "state"), "done") == 0) {
        return CLI_OK;
    }
    snprintf(cli->job_detail, sizeof(cli->job_detail), "%s", text_of(error, "detail"));
    log_error("%s: %s%s%s%s", text_of(job, "target"), text_of(error, "detail"),
              text_of(error, "hint")[0] ? " (" : "", text_of(error, "hint"),
              text_of(error, "hint")[0] ? ")" : "");
    return CLI_FAILED;
}

static bool is_open(const json_t *job)
{
    return strcmp(text_of(job, "state"), "queued") == 0 || strcmp(text_of(job, "state"), "running") == 0;
}

int call_job(struct cli *cli, const char *method, const char *path, json_t *body)
{
    char url[700], last[300] = "";
    json_t *job = NULL;
    snprintf(url, sizeof(url), "%s?wait=%d%s", path, cli->options.no_wait ? 0 : 1,
             cli->query ? cli->query : "");
    int rc = call_api(cli, method, url, body, &job);
    if (rc == CLI_OK && cli->options.no_wait) {
        printf("%s\n", text_of(job, "name"));
        json_decref(job);
        return CLI_OK;
    }
    while (rc == CLI_OK && is_open(job)) {
        show_progress(cli, job, last, sizeof(last));
        snprintf(url, sizeof(url), "/v1/jobs/%s?wait=1", text_of(job, "name"));
        json_decref(job);
        job = NULL;
        rc = call_api(cli, "GET", url, NULL, &job);
    }
    if (last[0] && isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r\033[K");
    }
    rc = rc == CLI_OK ? job_end(cli, job) : rc;
    json_decref(job);
    return rc;
}
