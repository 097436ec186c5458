/* The console, versions, saved contexts, and what this host can do. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/context.h"
#include "daemon/paths.h"

#ifndef FONDA_VERSION
#define FONDA_VERSION "unknown"
#endif

/* ---- console ---- */

#define LEAVE_KEY 0x1d /* Ctrl-] */

static bool console_message(void *opaque, const char *bytes, size_t len)
{
    while (len) {
        ssize_t n = write(STDOUT_FILENO, bytes, len);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        bytes += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

static long console_keys(void *opaque, char *buf, size_t size)
{
    ssize_t n = read(STDIN_FILENO, buf, size);
    const char *leave = n > 0 && *(bool *)opaque ? memchr(buf, LEAVE_KEY, (size_t)n) : NULL;
    if (leave) {
        return leave == buf ? -1 : leave - buf;
    }
    return n;
}

int cmd_console(struct cli *cli)
{
    char path[600];
    auto_free char *name = url_escape(cli->argv[0]);
    bool terminal = isatty(STDIN_FILENO);
    struct termios old;
    struct client_ws ws = {
        .message = console_message, .input = console_keys, .fd = STDIN_FILENO, .opaque = &terminal};
    struct err err = {0};
    snprintf(path, sizeof(path), "/v1/instances/%.400s", name ? name : "");
    json_t *instance = NULL;
    int rc = call_api(cli, "GET", path, NULL, &instance);
    const char *state = json_string_value(json_object_get(instance, "state"));
    if (rc == CLI_OK && strcmp(state, "running") != 0 && strcmp(state, "paused") != 0) {
        log_error("instance '%s' is %s (fonda start %s)", cli->argv[0], state, cli->argv[0]);
        rc = CLI_CONFLICT;
    }
    json_decref(instance);
    if (rc != CLI_OK) {
        return rc;
    }
    terminal = terminal && tcgetattr(STDIN_FILENO, &old) == 0;
    if (terminal) {
        struct termios raw = old;
        fprintf(stderr, "connected to %s; Ctrl-] leaves\n", cli->argv[0]);
        cfmakeraw(&raw);
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    strcat(path, "/console");
    rc = client_websocket(cli->client, path, &ws, &err);
    if (terminal) {
        tcsetattr(STDIN_FILENO, TCSANOW, &old);
        fprintf(stderr, "\n");
    }
    if (rc < 0) {
        log_error("%s", err.text);
        return CLI_FAILED;
    }
    return CLI_OK;
}

/* ---- version ---- */

int cmd_version(struct cli *cli)
{
    json_t *host = NULL;
    int rc = call_api(cli, "GET", "/v1/host", NULL, &host);
    const char *version = json_string_value(json_object_get(host, "version"));
    if (cli->format == FORMAT_JSON) {
        printf("{\"client\": \"%s\", \"daemon\": \"%s\"}\n", FONDA_VERSION, version ? version : "");
    } else {
        printf("fonda %s\n%s%s\n", FONDA_VERSION, version ? "fondad " : "", version ? version : "");
    }
    json_decref(host);
    return rc;
}

/* ---- contexts ---- */

int cmd_context(struct cli *cli)
{
    const char *verb = cli->argv[0], *name = cli->argc > 1 ? cli->argv[1] : "";
    struct err err = {0};
    json_t *all = context_load();
    int rc = CLI_OK;
    if (strcmp(verb, "list") == 0 && cli->argc == 1) {
        json_t *items = json_array(), *item;
        const char *key;
        json_object_foreach(json_object_get(all, "contexts"), key, item)
        {
            const char *current = json_string_value(json_object_get(all, "current"));
            json_array_append_new(items, json_pack("{s:s, s:O, s:s}", "name", key, "host",
                                                   json_object_get(item, "host"), "current",
                                                   current && strcmp(current, key) == 0 ? "yes" : ""));
        }
        output_list(cli, items, "name host current");
        json_decref(items);
    } else if (cli->argc == 2 && context_change(all, verb, name, &cli->options, &err) == 0) {
        rc = context_save(all, &err) < 0 ? CLI_FAILED : CLI_OK;
    } else {
        rc = CLI_USAGE;
    }
    if (err.code) {
        log_error("%s", err.text);
    } else if (rc == CLI_USAGE) {
        log_error("usage: fonda context %s", cli->command->args);
    }
    json_decref(all);
    return rc;
}

/* ---- doctor ---- */

struct check {
    const char *what;
    bool ok;
    const char *means, *mend;
};

static bool readable(const char *path, int mode)
{
    return access(path, mode) == 0;
}

static bool number_at_least(const char *path, long least)
{
    long value = 0;
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%ld", &value) != 1) {
            value = 0;
        }
        fclose(file);
    }
    return value >= least;
}

static bool subordinate_ids(void)
{
    char line[256];
    const char *user = getenv("USER");
    FILE *file = fopen("/etc/subuid", "re");
    bool found = geteuid() == 0;
    while (file && user && !found && fgets(line, sizeof(line), file)) {
        found = strncmp(line, user, strlen(user)) == 0 && line[strlen(user)] == ':';
    }
    if (file) {
        fclose(file);
    }
    return found;
}

int cmd_doctor(struct cli *cli)
{
    char state[FONDA_PATH_MAX] = "", socket[FONDA_PATH_MAX] = "";
    struct err err = {0};
    int paths = fonda_paths(cli->options.state, NULL, state, socket, &err);
    const struct check checks[] = {
        {"engine bt", true, "machines run everywhere, by binary translation", ""},
        {"engine kvm", readable("/dev/kvm", R_OK | W_OK), "machines run by the host kernel's KVM",
         readable("/dev/kvm", F_OK) ? "sudo usermod -aG kvm $USER    (then sign in again)"
                                    : "this host offers none: turn on VT-x or AMD-V, or go without"},
        {"tap networks", readable("/dev/net/tun", R_OK | W_OK), "networks that are bridged by the host",
         "sudo modprobe tun; and root, or CAP_NET_ADMIN. 'user' networks need nothing"},
        {"user namespaces", number_at_least("/proc/sys/user/max_user_namespaces", 1),
         "containers without root", "sudo sysctl user.max_user_namespaces=15000"},
        {"subordinate ids", subordinate_ids(), "containers without root, with more than one user inside",
         "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"},
        {"cgroup v2", readable("/sys/fs/cgroup/cgroup.controllers", R_OK), "limits on memory and CPU time",
         "boot with systemd.unified_cgroup_hierarchy=1; v1 works too, as root"},
        {"state directory", paths == 0, state, err.text},
    };
    json_t *list = json_array();
    for (size_t i = 0; i < ARRAY_SIZE(checks); i++) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s}", "check", checks[i].what, "here",
                                              checks[i].ok ? "yes" : "no", "for", checks[i].means, "mend",
                                              checks[i].ok ? "" : checks[i].mend));
    }
    output_list(cli, list, "check here for mend");
    json_decref(list);
    return CLI_OK;
}
