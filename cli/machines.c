/*
 * Commands for named machines, over their control sockets: ps, status, stop, pause, resume, reset, save,
 * snapshot, console, stats, balloon. A table of simple commands (one request, nothing to print), and those
 * with a function of their own.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>

#include "base/log.h"
#include "base/options.h"
#include "base/util.h"
#include "cli/cli.h"
#include "control/client.h"
#include "vm/rundir.h"
#include "vm/status.h"

#define FAILED     1
#define CALL_MS    30000
#define DETACH_KEY 0x1d /* Ctrl-] */

/* --- connecting -------------------------------------------------------------------------------------------
 */

/* NULL: said why. */
static struct control_client *open_machine(const char *name, int *ret_status)
{
    char path[RUNDIR_PATH_MAX];
    struct err err = {0};
    struct control_client *client = NULL;
    int rc = rundir_socket(name, path, sizeof(path), &err);
    *ret_status = rc < 0 ? VM_STATUS_USAGE : FAILED;
    rc = rc < 0 ? rc : control_connect(path, &client, &err);
    if (rc == -ENOENT || rc == -ECONNREFUSED) {
        log_error("no machine named '%s' runs (see 'fonda vm ps')", name);
    } else if (rc < 0) {
        log_error("%s", err.text);
    }
    return client;
}

/* A request, and the end of its job if it begins one. */
int cli_machine_request(const char *name, const char *method, json_t *params, json_t **ret_result)
{
    return cli_machine_request_fds(name, method, params, NULL, 0, ret_result);
}

int cli_machine_request_fds(const char *name, const char *method, json_t *params, const int *fds,
                            unsigned count, json_t **ret_result)
{
    int status;
    struct err err = {0};
    json_t *result = NULL, *end = NULL;
    struct control_client *client = open_machine(name, &status);
    if (!client) {
        json_decref(params);
        return status;
    }
    int rc = control_client_call_fds(client, method, params, fds, count, CALL_MS, &result, &err);
    if (rc == 0 && json_object_get(result, "job")) {
        rc = control_client_job(client, result, -1, &end, &err);
        json_decref(result);
        result = end;
    }
    control_client_free(client);
    if (rc < 0) {
        log_error("%s: %s", name, err.text);
        return FAILED;
    }
    if (ret_result) {
        *ret_result = result;
    } else {
        json_decref(result);
    }
    return 0;
}

/* --- simple commands --------------------------------------------------------------------------------------
 */

struct simple {
    const char *command, *method, *arguments, *about;
};

static const struct simple simples[] = {
    {"pause", "pause", "NAME", "Holds a machine and its clock."},
    {"resume", "resume", "NAME", "Lets a paused machine go on."},
    {"reset", "reset", "NAME", "Resets a machine, as its reset button would."},
};

static bool wants_help(int argc, char **argv)
{
    return argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
}

static int usage_error(const char *command, const char *text)
{
    log_error("%s (see 'fonda %s --help')", text, command);
    return VM_STATUS_USAGE;
}

static int vm_machine_simple(int argc, char **argv)
{
    for (size_t i = 0; i < ARRAY_SIZE(simples); i++) {
        const struct simple *simple = &simples[i];
        if (strcmp(simple->command, argv[0]) != 0) {
            continue;
        }
        if (wants_help(argc, argv)) {
            printf("usage: fonda vm %s %s\n\n%s\n\nExample:\n  fonda vm %s web\n", simple->command,
                   simple->arguments, simple->about, simple->command);
            return 0;
        }
        return argc == 2 ? cli_machine_request(argv[1], simple->method, NULL, NULL)
                         : usage_error("vm", argc < 2 ? "no machine named" : "too many arguments");
    }
    return VM_STATUS_USAGE;
}

static int vm_stop(int argc, char **argv)
{
    bool force = argc == 3 && strcmp(argv[1], "--force") == 0;
    if (wants_help(argc, argv)) {
        printf(
            "usage: fonda vm stop [--force] NAME\n\nPresses the machine's power button; its kernel shuts it "
            "down. "
            "--force ends it at once,\nas if its plug was pulled.\n\nExamples:\n  fonda vm stop web\n"
            "  fonda vm stop --force web\n");
        return 0;
    }
    if (argc != 2 && !force) {
        return usage_error("vm", argc < 2 ? "no machine named" : "unexpected arguments");
    }
    return cli_machine_request(argv[argc - 1], "stop", force ? json_pack("{s:b}", "force", 1) : NULL, NULL);
}

static char *absolute(const char *path)
{
    char cwd[PATH_MAX], out[2 * PATH_MAX];
    if (path[0] == '/' || !getcwd(cwd, sizeof(cwd))) {
        return strdup(path);
    }
    snprintf(out, sizeof(out), "%s/%s", cwd, path);
    return strdup(out);
}

static int vm_save(int argc, char **argv)
{
    if (wants_help(argc, argv)) {
        printf(
            "usage: fonda vm save NAME FILE\n\nSaves a machine, with its memory, and ends it. It goes on "
            "with\n"
            "  fonda run --restore FILE\n\nIts disks stay where they are: what is written to them meanwhile "
            "spoils them.\n\nExample:\n  fonda vm save web web.fonda\n");
        return 0;
    }
    if (argc != 3) {
        return usage_error("vm", "a machine's name and a file are needed");
    }
    auto_free char *path = absolute(argv[2]);
    json_t *result = NULL;
    int status = cli_machine_request(argv[1], "save", json_pack("{s:s}", "file", path), &result);
    if (status == 0) {
        char size[32];
        format_size((uint64_t)json_integer_value(json_object_get(result, "bytes")), size, sizeof(size));
        printf("saved as %s (%s)\n", argv[2], size);
        json_decref(result);
    }
    return status;
}

/* --- snapshots --------------------------------------------------------------------------------------------
 */

static int list_snapshots(const char *name)
{
    json_t *result = NULL, *one;
    size_t i;
    int status = cli_machine_request(name, "snapshot_list", NULL, &result);
    if (status != 0) {
        return status;
    }
    printf("%-24s %-20s %s\n", "NAME", "MADE", "MEMORY");
    json_array_foreach(json_object_get(result, "snapshots"), i, one)
    {
        char size[32], when[32];
        time_t seconds = (time_t)json_integer_value(json_object_get(one, "time_s"));
        struct tm tm;
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", localtime_r(&seconds, &tm));
        format_size((uint64_t)json_integer_value(json_object_get(one, "state_bytes")), size, sizeof(size));
        printf("%-24s %-20s %s\n", json_string_value(json_object_get(one, "name")), when, size);
    }
    json_decref(result);
    return 0;
}

static int vm_snapshot(int argc, char **argv)
{
    if (wants_help(argc, argv)) {
        printf(
            "usage: fonda vm snapshot save|load|delete NAME SNAPSHOT\n       fonda vm snapshot list NAME\n\n"
            "Snapshots of a running machine: memory and qcow2 disks together, at one moment. load goes "
            "back to "
            "one.\n\nExamples:\n  fonda vm snapshot save web before-upgrade\n  fonda vm snapshot load web "
            "before-upgrade\n");
        return 0;
    }
    static const char *const verbs[] = {"save", "load", "delete"};
    if (argc == 3 && strcmp(argv[1], "list") == 0) {
        return list_snapshots(argv[2]);
    }
    for (size_t i = 0; argc == 4 && i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(argv[1], verbs[i]) == 0) {
            char method[32];
            snprintf(method, sizeof(method), "snapshot_%s", verbs[i]);
            return cli_machine_request(argv[2], method, json_pack("{s:s}", "name", argv[3]), NULL);
        }
    }
    return usage_error("vm", "save, load, delete or list, and the names, are needed");
}

/* --- ps, stats --------------------------------------------------------------------------------------------
 */

static void print_machine(const char *name)
{
    char path[RUNDIR_PATH_MAX];
    struct control_client *client = NULL;
    json_t *status = NULL;
    if (rundir_socket(name, path, sizeof(path), NULL) < 0 || control_connect(path, &client, NULL) < 0) {
        return;
    }
    if (control_client_call(client, "status", NULL, CALL_MS, &status, NULL) == 0) {
        char memory[32];
        format_size((uint64_t)json_integer_value(json_object_get(status, "memory_bytes")), memory,
                    sizeof(memory));
        const char *state = json_string_value(json_object_get(status, "state"));
        const char *engine = json_string_value(json_object_get(status, "engine"));
        printf("%-24s %-9s %-7s %4" PRId64 " %-9s %" PRId64 "\n", name, state ? state : "?",
               engine ? engine : "-", (int64_t)json_integer_value(json_object_get(status, "cpus")), memory,
               (int64_t)json_integer_value(json_object_get(status, "pid")));
        json_decref(status);
    }
    control_client_free(client);
}

static int vm_ps(int argc, char **argv)
{
    char base[PATH_MAX];
    struct err err = {0};
    struct dirent **entries = NULL;
    if (wants_help(argc, argv)) {
        printf("usage: fonda vm ps\n\nThe machines that run under a name ('fonda run --name "
               "NAME').\n\nExample:\n"
               "  fonda vm ps\n");
        return 0;
    }
    if (argc > 1) {
        return usage_error("vm", "unexpected arguments");
    }
    if (rundir_base(base, sizeof(base), &err) < 0) {
        log_error("%s", err.text);
        return FAILED;
    }
    printf("%-24s %-9s %-7s %4s %-9s %s\n", "NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "PID");
    int count = scandir(base, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        if (rundir_name_valid(entries[i]->d_name)) {
            print_machine(entries[i]->d_name);
        }
        free(entries[i]);
    }
    free(entries);
    return 0;
}

static int vm_stats(int argc, char **argv)
{
    json_t *result = NULL;
    if (wants_help(argc, argv)) {
        printf(
            "usage: fonda vm stats NAME\n\nAll counters of a machine, as JSON.\n\nExample:\n  fonda vm stats "
            "web\n");
        return 0;
    }
    if (argc != 2) {
        return usage_error("vm", "one machine's name is needed");
    }
    int status = cli_machine_request(argv[1], "stats", NULL, &result);
    if (status == 0) {
        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(result);
    }
    return status;
}

/* --- console ----------------------------------------------------------------------------------------------
 */

/* Bytes both ways, until the machine ends or Ctrl-] is typed. */
static int carry(struct control_client *client)
{
    uint8_t buf[16384];
    int fd = control_client_fd(client);
    bool input = true;
    for (size_t n; (n = control_client_take(client, buf, sizeof(buf))) > 0;) {
        fwrite(buf, 1, n, stdout);
    }
    fflush(stdout);
    for (;;) {
        struct pollfd fds[2] = {{fd, POLLIN, 0}, {input ? STDIN_FILENO : -1, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR) {
            return FAILED;
        }
        if (fds[0].revents) {
            ssize_t n = read(fd, buf, sizeof(buf));
            if (n <= 0) {
                return 0;
            }
            fwrite(buf, 1, (size_t)n, stdout);
            fflush(stdout);
        }
        if (fds[1].revents) {
            ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));
            const uint8_t *key = n > 0 ? memchr(buf, DETACH_KEY, (size_t)n) : NULL;
            input = n > 0;
            if (n > 0 && send(fd, buf, key ? (size_t)(key - buf) : (size_t)n, MSG_NOSIGNAL) < 0) {
                return 0;
            }
            if (key) {
                return 0;
            }
        }
    }
}

static int vm_console(int argc, char **argv)
{
    struct termios old, raw;
    struct err err = {0};
    int status;
    if (wants_help(argc, argv)) {
        printf("usage: fonda vm console NAME [CHANNEL]\n\nConnects this terminal to a machine's serial "
               "console, or to its virtio console ('console') or a port\nof that ('fonda run --port "
               "CHANNEL=...'). Ctrl-] leaves it.\n\nExamples:\n  fonda vm console web\n"
               "  fonda vm console web org.qemu.guest_agent.0\n");
        return 0;
    }
    if (argc != 2 && argc != 3) {
        return usage_error("vm", "one machine's name is needed");
    }
    struct control_client *client = open_machine(argv[1], &status);
    if (!client) {
        return status;
    }
    if (control_client_call(client, "attach", json_pack("{s:s}", "channel", argc == 3 ? argv[2] : "serial"),
                            CALL_MS, NULL, &err) < 0) {
        log_error("%s: %s", argv[1], err.text);
        control_client_free(client);
        return FAILED;
    }
    bool terminal = tcgetattr(STDIN_FILENO, &old) == 0;
    if (terminal) {
        raw = old;
        cfmakeraw(&raw);
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    status = carry(client);
    if (terminal) {
        tcsetattr(STDIN_FILENO, TCSANOW, &old);
    }
    control_client_free(client);
    return status;
}

/* --- fonda vm
 * ----------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} vm_commands[] = {
    {"ps", vm_ps},
    {"console", vm_console},
    {"stop", vm_stop},
    {"pause", vm_machine_simple},
    {"resume", vm_machine_simple},
    {"reset", vm_machine_simple},
    {"stats", vm_stats},
    {"disk", cli_vm_disk},
    {"nic", cli_vm_nic},
    {"balloon", cli_vm_balloon},
    {"save", vm_save},
    {"snapshot", vm_snapshot},
};

int cli_vm(int argc, char **argv)
{
    if (argc < 2 || wants_help(argc, argv)) {
        fprintf(
            argc < 2 ? stderr : stdout,
            "usage: fonda vm ps | console NAME [CHANNEL] | stop [--force] NAME | pause NAME | resume NAME |\n"
            "                reset NAME | stats NAME | save NAME FILE | snapshot ... | disk ... | nic ... |\n"
            "                balloon NAME SIZE\n\nMachines that 'fonda run --name NAME' started, over their "
            "control sockets; 'fonda vm COMMAND --help'\nsays more.\n\n"
            "Examples:\n  fonda vm ps\n  fonda vm console web\n");
        return argc < 2 ? VM_STATUS_USAGE : 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(vm_commands); i++) {
        if (strcmp(vm_commands[i].name, argv[1]) == 0) {
            return vm_commands[i].run(argc - 1, argv + 1);
        }
    }
    log_error("unknown command '%s' (see 'fonda vm --help')", argv[1]);
    return VM_STATUS_USAGE;
}
