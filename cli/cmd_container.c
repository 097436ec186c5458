/* What is special about containers: run, exec, attach, logs, cp, kill, wait. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/options.h"
#include "base/util.h"
#include "cli/client.h"
#include "cli/container_options.h"
#include "cli/stream.h"

#define STATUS_OURS 125 /* as docker: for what is Fonda's and not the program's */

static const struct container_option run_options[] = {
    {"container", 0, CO_FLAG, "container", NULL, "a container, from an image"},
    {"vm", 0, CO_FLAG, "vm", NULL, "the same image as a machine, with a kernel of its own"},
    {"kernel", 0, CO_TEXT, "kernel", "FILE", "--vm: its kernel (default: fetched by apt, once)"},
    {"engine", 0, CO_TEXT, "engine", "NAME", "--vm: how its code runs; see 'fonda engines'"},
    {"interactive", 'i', CO_FLAG, "interactive", NULL, "keep its input open"},
    {"tty", 't', CO_FLAG, "terminal", NULL, "give it a terminal"},
    {"detach", 'd', CO_FLAG, "detach", NULL, "go on in the background, print the name"},
    {"rm", 0, CO_FLAG, "auto_remove", NULL, "delete it when it ends"},
    {"name", 0, CO_TEXT, "name", "NAME", "its name (default: made up)"},
    {"env", 'e', CO_LIST, "env", "NAME[=VALUE]", "a variable; without a value: as it is here"},
    {"env-file", 0, CO_LIST, "env_file", "FILE", "variables, one per line"},
    {"volume", 'v', CO_LIST, "mounts", "SOURCE:TARGET[:ro]",
     "a folder or file of the host, or a named folder"},
    {"tmpfs", 0, CO_LIST, "tmpfs", "TARGET[:OPTIONS]", "a folder in memory"},
    {"publish", 'p', CO_LIST, "publish", "HOST:CONTAINER", "a port of the host"},
    {"user", 'u', CO_TEXT, "user", "USER[:GROUP]", "names or numbers"},
    {"workdir", 'w', CO_TEXT, "workdir", "DIR", "working directory"},
    {"entrypoint", 0, CO_TEXT, "entrypoint", "PROGRAM", "instead of the image's; '': none"},
    {"hostname", 'h', CO_TEXT, "hostname", "NAME", "its host name"},
    {"init", 0, CO_FLAG, "init", NULL, "a small init is the first process"},
    {"system", 0, CO_FLAG, "system", NULL,
     "a whole system: its own init, such as systemd, is the first process"},
    {"memory", 'm', CO_SIZE, "memory", "SIZE", "at most so much memory, such as 512m"},
    {"memory-swap", 0, CO_SIZE, "memory_swap", "SIZE", "memory and swap together"},
    {"cpus", 0, CO_TEXT, "cpu_limit", "NUMBER", "at most so many CPUs, such as 1.5"},
    {"pids-limit", 0, CO_NUMBER, "pids_limit", "NUMBER", "at most so many processes"},
    {"shm-size", 0, CO_SIZE, "shm_size", "SIZE", "of /dev/shm"},
    {"cap-add", 0, CO_LIST, "cap_add", "NAME", "a capability, or ALL"},
    {"cap-drop", 0, CO_LIST, "cap_drop", "NAME", "a capability, or ALL"},
    {"security-opt", 0, CO_LIST, "security", "TEXT",
     "no-new-privileges, seccomp=unconfined, seccomp=FILE, ..."},
    {"privileged", 0, CO_FLAG, "privileged", NULL, "all capabilities and devices"},
    {"device", 0, CO_LIST, "devices", "SOURCE[:TARGET][:rwm]", "a device of the host"},
    {"ulimit", 0, CO_LIST, "ulimits", "NAME=SOFT[:HARD]", "such as nofile=1024"},
    {"sysctl", 0, CO_LIST, "sysctls", "NAME=VALUE", "of its own namespaces"},
    {"read-only", 0, CO_FLAG, "read_only", NULL, "its root can't be written"},
    {"network", 0, CO_TEXT, "network", "HOW", "user (default: NAT), none or host"},
    {"restart", 0, CO_TEXT, "restart", "POLICY", "no, on-failure[:TIMES], always, unless-stopped"},
    {"stop-signal", 0, CO_TEXT, "stop_signal", "SIGNAL", "what asks it to end"},
    {"stop-timeout", 0, CO_NUMBER, "stop_timeout", "SECONDS", "until it is ended by force (default: 10)"},
    {"health-cmd", 0, CO_TEXT, "health_cmd", "COMMAND", "a shell command that checks on it"},
    {"health-interval", 0, CO_SECONDS, "health_interval", "TIME", "between checks, such as 30s"},
    {"health-timeout", 0, CO_SECONDS, "health_timeout", "TIME", "that a check may take"},
    {"health-retries", 0, CO_NUMBER, "health_retries", "NUMBER", "failures in a row that make it unhealthy"},
    {"health-start-period", 0, CO_SECONDS, "health_start_period", "TIME", "in which failures don't count"},
    {"label", 'l', CO_LIST, "label", "NAME=TEXT", "a label"},
    {"pull", 0, CO_TEXT, "pull", "WHEN", "missing (default), always or never"},
    {"insecure", 0, CO_FLAG, "insecure_registry", NULL, "the registry may speak plain HTTP"},
    {"help", 0, CO_FLAG, "help", NULL, "print this help"},
};

static const struct container_option exec_options[] = {
    {"interactive", 'i', CO_FLAG, "interactive", NULL, "send it what comes in here"},
    {"tty", 't', CO_FLAG, "terminal", NULL, "give it a terminal"},
    {"env", 'e', CO_LIST, "env", "NAME=VALUE", "a variable"},
    {"user", 'u', CO_TEXT, "user", "USER[:GROUP]", "names or numbers"},
    {"workdir", 'w', CO_TEXT, "workdir", "DIR", "working directory"},
    {"help", 0, CO_FLAG, "help", NULL, "print this help"},
};

/* ---- run ---- */

static int read_env_file(const char *path, json_t *env, struct err *err)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t room = 0;
    if (!file) {
        return err_sys(err, -errno, "cannot open '%s'", path);
    }
    while (getline(&line, &room, file) >= 0) {
        line[strcspn(line, "\r\n")] = '\0';
        const char *own = strchr(line, '=') ? line : NULL;
        if (line[0] && line[0] != '#') {
            json_array_append_new(env, json_string(own ? own : line));
        }
    }
    free(line);
    fclose(file);
    return 0;
}

/* A variable without a value has this process's, not the daemon's. */
static void add_env(json_t *env, const char *text)
{
    const char *own = strchr(text, '=') ? NULL : getenv(text);
    char *full = NULL;
    if (strchr(text, '=')) {
        json_array_append_new(env, json_string(text));
    } else if (own && asprintf(&full, "%s=%s", text, own) >= 0) {
        json_array_append_new(env, json_string(full));
        free(full);
    }
}

static int make_env(json_t *body, struct err *err)
{
    json_t *all = json_array(), *env = json_array(), *item;
    size_t i;
    int rc = 0;
    json_array_foreach(json_object_get(body, "env_file"), i, item)
    {
        rc = rc < 0 ? rc : read_env_file(json_string_value(item), all, err);
    }
    json_array_extend(all, json_object_get(body, "env") ? json_object_get(body, "env") : env);
    json_array_foreach(all, i, item)
    {
        add_env(env, json_string_value(item) ? json_string_value(item) : "");
    }
    json_decref(all);
    json_object_del(body, "env_file");
    json_object_set_new(body, "env", env);
    return rc;
}

/* "./data:/data" is relative to here, and not to where the daemon is. */
static void make_mounts_absolute(json_t *body)
{
    json_t *list = json_object_get(body, "mounts"), *item;
    size_t i;
    char cwd[PATH_MAX];
    json_array_foreach(list, i, item)
    {
        const char *text = json_string_value(item);
        char *full = NULL;
        if (text[0] == '.' && getcwd(cwd, sizeof(cwd)) && asprintf(&full, "%s/%s", cwd, text) >= 0) {
            json_array_set_new(list, i, json_string(full));
            free(full);
        }
    }
}

static int make_labels(json_t *body, struct err *err)
{
    json_t *list = json_object_get(body, "label"), *labels = list ? json_object() : NULL, *item;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *text = json_string_value(item), *equals = strchr(text, '=');
        char name[128];
        if (!equals || equals == text || (size_t)(equals - text) >= sizeof(name)) {
            json_decref(labels);
            return err_set(err, -EINVAL, "--label: '%s' is not NAME=TEXT", text);
        }
        snprintf(name, sizeof(name), "%.*s", (int)(equals - text), text);
        json_object_set_new(labels, name, json_string(equals + 1));
    }
    if (labels) {
        json_object_set_new(body, "labels", labels);
    }
    json_object_del(body, "label");
    return 0;
}

static int make_policy(json_t *body, struct err *err)
{
    const char *policy = json_string_value(json_object_get(body, "restart"));
    uint64_t times = 0;
    if (!policy) {
        return 0;
    }
    const char *kind = strcmp(policy, "no") == 0                                                ? "never"
                       : strcmp(policy, "always") == 0 || strcmp(policy, "unless-stopped") == 0 ? "always"
                       : strncmp(policy, "on-failure", 10) == 0                                 ? "on-failure"
                                                                                                : NULL;
    const char *rest = kind && strcmp(kind, "on-failure") == 0 ? policy + 10 : "";
    if (!kind || (rest[0] && (rest[0] != ':' || parse_uint(rest + 1, &times, NULL) < 0 || times > 1000000))) {
        return err_set(err, -EINVAL,
                       "--restart: '%s' is none of no, on-failure[:TIMES], always, unless-stopped", policy);
    }
    json_object_set_new(body, "restart_policy", json_string(kind));
    if (times) {
        json_object_set_new(body, "restart_limit", json_integer((json_int_t)times));
    }
    json_object_del(body, "restart");
    return 0;
}

static int make_network(json_t *body, struct err *err)
{
    json_t *network = json_object_get(body, "network");
    const char *how = json_string_value(network);
    if (how && strcmp(how, "host") == 0) {
        json_object_set_new(body, "host_network", json_true());
    } else if (how && (strcmp(how, "none") == 0 || strcmp(how, "user") == 0)) {
        json_object_set(body, "network_mode", network);
    } else if (how) {
        return err_set(err, -EINVAL, "--network: '%s' is none of user, none, host", how);
    }
    json_object_del(body, "network");
    return 0;
}

/* A name that says what is in it and is not taken: "alpine-3f9c12". */
static void make_name(json_t *body, const char *image)
{
    const char *slash = strrchr(image, '/');
    const char *from = slash ? slash + 1 : image;
    char name[64];
    unsigned random = 0;
    FILE *file = fopen("/dev/urandom", "re");
    if (file) {
        (void)!fread(&random, sizeof(random), 1, file);
        fclose(file);
    }
    int len = (int)MIN(strcspn(from, ":@"), (size_t)40);
    bool good = len && ((from[0] >= 'a' && from[0] <= 'z') || (from[0] >= '0' && from[0] <= '9'));
    snprintf(name, sizeof(name), "%.*s-%06x", good ? len : 9, good ? from : "container", random & 0xffffff);
    json_object_set_new(body, "name", json_string(name));
}

static bool take_flag(json_t *body, const char *name)
{
    bool value = json_is_true(json_object_get(body, name));
    json_object_del(body, name);
    return value;
}

static void run_help(void)
{
    printf(
        "usage: fonda run --container [OPTIONS] IMAGE [COMMAND [ARGUMENT...]]\n"
        "       fonda run --vm [OPTIONS] IMAGE [COMMAND [ARGUMENT...]]\n\n"
        "Runs an image in a container, or (--vm) in a machine with a kernel of its own: fetches the image if "
        "it\n"
        "isn't there, and connects this terminal to the program. A machine has 256 MiB and one CPU unless "
        "--memory\n"
        "and --cpus say otherwise; options about capabilities, devices and cgroups are a container's alone.\n"
        "Ctrl-P Ctrl-Q leaves it running; 'fonda attach NAME' comes back. The status is the program's; 125: "
        "Fonda\n"
        "could not run it; 126: it can't be executed; 127: it was not found.\n\nOptions:\n");
    container_options_print(stdout, run_options, ARRAY_SIZE(run_options));
    printf("\nExamples:\n"
           "  fonda run --container -it --rm alpine\n"
           "  fonda run --container -d --name web -p 8080:80 --restart always nginx\n"
           "  fonda run --vm -it --rm alpine\n"
           "  fonda run --vm -d --name web -p 8080:80 --memory 512m --cpus 2 nginx\n"
           "  fonda run --container --rm -v $PWD:/src:ro -w /src --network none gcc make\n"
           "  fonda run --container -d --memory 256m --cpus 0.5 --health-cmd 'wget -qO- localhost' web:1.2\n"
           "  fonda run --container --system --memory 1g --cpus 2 debian-rootfs\n");
}

/* What follows a create that worked and a start that did not: nothing is left behind. */
static void drop(struct cli *cli, const char *name)
{
    char path[600];
    cli->options.quiet = true;
    snprintf(path, sizeof(path), "/v1/instances/%.400s", name);
    call_job(cli, "DELETE", path, NULL);
}

/* Behind --rm: until the daemon has deleted it. */
static void await_removal(struct cli *cli, const char *name)
{
    char path[600];
    snprintf(path, sizeof(path), "/v1/instances/%.400s", name);
    for (int tries = 0; tries < 500; tries++) {
        struct client_reply reply = {0};
        struct err err = {0};
        if (client_request(cli->client, "GET", path, NULL, &reply, &err) < 0) {
            return;
        }
        free(reply.text);
        if (reply.status == 404) {
            return;
        }
        usleep(20000);
    }
}

static int run_status(struct cli *cli)
{
    return cli->job_detail[0] ? stream_status_of(cli->job_detail) : STATUS_OURS;
}

static int create_and_run(struct cli *cli, json_t *body, bool detach, bool interactive)
{
    char path[600];
    auto_free char *name = strdup(json_string_value(json_object_get(body, "name")));
    bool remove = json_is_true(json_object_get(body, "auto_remove"));
    bool terminal = json_is_true(json_object_get(body, "terminal"));
    if (call_job(cli, "POST", "/v1/instances", body) != CLI_OK) {
        return STATUS_OURS;
    }
    snprintf(path, sizeof(path), "/v1/instances/%s/start", name);
    if (call_job(cli, "POST", path, detach ? NULL : json_pack("{s:b}", "hold", 1)) != CLI_OK) {
        int status = run_status(cli);
        if (remove) {
            drop(cli, name);
        }
        return status;
    }
    if (detach) {
        printf("%s\n", name);
        return 0;
    }
    bool raw = terminal && interactive && isatty(STDIN_FILENO);
    struct stream_use use = {
        .instance = name,
        .open = json_pack("{s:{s:b}}", "attach", "no_input", !interactive),
        .in = interactive ? STDIN_FILENO : -1,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .terminal = raw,
        .detach_keys = raw,
        .forward = !raw,
    };
    int status = stream_run(cli, &use);
    if (remove && !use.ret_detached) {
        await_removal(cli, name);
    }
    return status;
}

static int run_connected(struct cli *cli, void *opaque)
{
    json_t *body = opaque;
    bool detach = take_flag(body, "detach");
    if (json_is_true(json_object_get(body, "system"))) { /* its console */
        json_object_set_new(body, "terminal", json_true());
        json_object_set_new(body, "interactive", json_true());
    }
    return create_and_run(cli, json_incref(body), detach, json_is_true(json_object_get(body, "interactive")));
}

bool cli_has_room(const json_t *instance)
{
    const char *kind = json_string_value(json_object_get(instance, "kind"));
    return (kind && strcmp(kind, "container") == 0) || json_object_get(instance, "image");
}

/* A machine has whole CPUs. What else is different is for the daemon to say. */
static int make_room(json_t *body, struct err *err)
{
    bool vm = take_flag(body, "vm");
    const char *cpus = json_string_value(json_object_get(body, "cpu_limit"));
    const char *kernel = json_string_value(json_object_get(body, "kernel"));
    uint64_t count;
    json_object_set_new(body, "kind", json_string(vm ? "vm" : "container"));
    if (!vm && (kernel || json_object_get(body, "engine"))) {
        return err_set(err, -EINVAL, "--%s: a container has the host's kernel; a machine has its own (--vm)",
                       kernel ? "kernel" : "engine");
    }
    if (vm && cpus) {
        if (parse_uint(cpus, &count, NULL) < 0 || count < 1 || count > 32) {
            return err_set(err, -EINVAL,
                           "--cpus: '%s' is not a number of CPUs from 1 to 32, as machines have them", cpus);
        }
        json_object_set_new(body, "cpus", json_integer((json_int_t)count));
        json_object_del(body, "cpu_limit");
    }
    char *full = kernel ? realpath(kernel, NULL) : NULL;
    if (kernel && !full) {
        return err_sys(err, -errno, "--kernel: cannot find '%s'", kernel);
    }
    if (full) {
        json_object_set_new(body, "kernel", json_string(full));
        free(full);
    }
    return 0;
}

int cli_run_container(int argc, char **argv)
{
    struct err err = {0};
    json_t *body = json_object();
    int next = container_options_parse(run_options, ARRAY_SIZE(run_options), argc, argv, 1, body, &err);
    if (next >= 0 && json_object_get(body, "help")) {
        json_decref(body);
        run_help();
        return 0;
    }
    if (next >= 0 && next == argc) {
        next = err_set(&err, -EINVAL, "which image?");
    }
    take_flag(body, "container");
    if (next < 0 || make_env(body, &err) < 0 || make_labels(body, &err) < 0 || make_policy(body, &err) < 0 ||
        make_network(body, &err) < 0 || make_room(body, &err) < 0) {
        log_error("%s (see 'fonda run --container --help')", err.text);
        json_decref(body);
        return STATUS_OURS;
    }
    make_mounts_absolute(body);
    json_object_set_new(body, "image", json_string(argv[next]));
    if (!json_object_get(body, "stop_timeout")) {
        json_object_set_new(body, "stop_timeout", json_integer(10));
    }
    if (!json_object_get(body, "name")) {
        make_name(body, argv[next]);
    }
    if (next + 1 < argc) {
        json_t *command = json_array();
        for (int i = next + 1; i < argc; i++) {
            json_array_append_new(command, json_string(argv[i]));
        }
        json_object_set_new(body, "command", command);
    }
    int status = cli_connected(run_connected, body, STATUS_OURS);
    json_decref(body);
    return status;
}

/* ---- exec ---- */

struct exec {
    const char *name;
    json_t *how;
};

static int exec_connected(struct cli *cli, void *opaque)
{
    struct exec *e = opaque;
    bool interactive = json_is_true(json_object_get(e->how, "interactive"));
    bool terminal = json_is_true(json_object_get(e->how, "terminal"));
    json_object_del(e->how, "interactive");
    bool raw = terminal && interactive && isatty(STDIN_FILENO);
    struct winsize size;
    if (raw && ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
        json_object_set_new(e->how, "rows", json_integer(size.ws_row));
        json_object_set_new(e->how, "columns", json_integer(size.ws_col));
    }
    struct stream_use use = {
        .instance = e->name,
        .open = json_pack("{s:O}", "exec", e->how),
        .in = interactive ? STDIN_FILENO : open("/dev/null", O_RDONLY | O_CLOEXEC),
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .terminal = raw,
        .forward = !raw,
    };
    int status = stream_run(cli, &use);
    return !use.ret_started && status == 127 ? STATUS_OURS : status;
}

int container_shell(struct cli *cli)
{
    bool terminal = isatty(STDIN_FILENO);
    struct exec e = {cli->argv[0],
                     json_pack("{s:[s], s:b, s:b}", "command", "sh", "interactive", 1, "terminal", terminal)};
    int status = exec_connected(cli, &e);
    json_decref(e.how);
    return status;
}

int cli_exec(int argc, char **argv)
{
    struct err err = {0};
    struct exec e = {.how = json_object()};
    int next = container_options_parse(exec_options, ARRAY_SIZE(exec_options), argc, argv, 1, e.how, &err);
    if (next >= 0 && json_object_get(e.how, "help")) {
        printf("usage: fonda exec [OPTIONS] INSTANCE COMMAND [ARGUMENT...]\n\nRuns another program in a "
               "container that "
               "runs. The status is the program's.\n\nOptions:\n");
        container_options_print(stdout, exec_options, ARRAY_SIZE(exec_options));
        printf("\nExamples:\n  fonda exec -it web sh\n  fonda exec -u postgres db pg_dump shop > shop.sql\n");
        json_decref(e.how);
        return 0;
    }
    if (next >= 0 && argc - next < 2) {
        next = err_set(&err, -EINVAL, "usage: fonda exec [OPTIONS] INSTANCE COMMAND [ARGUMENT...]");
    }
    if (next < 0) {
        log_error("%s (see 'fonda exec --help')", err.text);
        json_decref(e.how);
        return STATUS_OURS;
    }
    e.name = argv[next];
    json_t *command = json_array();
    for (int i = next + 1; i < argc; i++) {
        json_array_append_new(command, json_string(argv[i]));
    }
    json_object_set_new(e.how, "command", command);
    int status = cli_connected(exec_connected, &e, STATUS_OURS);
    json_decref(e.how);
    return status;
}

/* ---- attach, logs, kill, wait ---- */

int cmd_attach(struct cli *cli)
{
    bool raw = isatty(STDIN_FILENO);
    json_t *instance = NULL;
    char path[600];
    auto_free char *name = url_escape(cli->argv[0]);
    snprintf(path, sizeof(path), "/v1/instances/%.400s", name ? name : "");
    int rc = call_api(cli, "GET", path, NULL, &instance);
    bool container = cli_has_room(instance);
    raw = raw && json_is_true(json_object_get(instance, "terminal"));
    json_decref(instance);
    if (rc != CLI_OK) {
        return rc;
    }
    if (!container) {
        return cmd_console(cli);
    }
    struct stream_use use = {
        .instance = cli->argv[0],
        .open = json_pack("{s:{s:b}}", "attach", "no_input", 0),
        .in = STDIN_FILENO,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .terminal = raw,
        .detach_keys = raw,
        .forward = !raw,
    };
    return stream_run(cli, &use);
}

int container_logs(struct cli *cli)
{
    json_t *how =
        json_pack("{s:b, s:b}", "follow", cli->options.follow, "timestamps", cli->options.timestamps);
    if (cli->options.tail != UINT64_MAX) {
        json_object_set_new(how, "tail", json_integer((json_int_t)cli->options.tail));
    }
    struct stream_use use = {
        .instance = cli->argv[0],
        .open = json_pack("{s:o}", "logs", how),
        .in = -1,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
    };
    return stream_run(cli, &use);
}

int cmd_kill(struct cli *cli)
{
    int status = CLI_OK;
    for (int i = 0; i < cli->argc; i++) {
        char path[600];
        auto_free char *name = url_escape(cli->argv[i]);
        snprintf(path, sizeof(path), "/v1/instances/%.400s/kill", name ? name : "");
        json_t *body =
            cli->options.signal ? json_pack("{s:s}", "signal", cli->options.signal) : json_object();
        int rc = call_api(cli, "POST", path, body, NULL);
        status = status == CLI_OK ? rc : status;
    }
    return status;
}

int cmd_wait(struct cli *cli)
{
    char path[600];
    auto_free char *name = url_escape(cli->argv[0]);
    snprintf(path, sizeof(path), "/v1/instances/%.400s/wait?seconds=30", name ? name : "");
    for (;;) {
        json_t *end = NULL;
        int rc = call_api(cli, "GET", path, NULL, &end);
        const json_t *status = json_object_get(end, "exit_status");
        const char *state = json_string_value(json_object_get(end, "state"));
        bool ended = state && (strcmp(state, "stopped") == 0 || strcmp(state, "failed") == 0);
        if (rc == CLI_OK && ended) {
            printf("%lld\n", status ? (long long)json_integer_value(status) : -1ll);
        }
        json_decref(end);
        if (rc != CLI_OK || ended) {
            return rc;
        }
    }
}

int container_top(struct cli *cli)
{
    char path[600];
    json_t *reply = NULL;
    auto_free char *name = url_escape(cli->argv[0]);
    snprintf(path, sizeof(path), "/v1/instances/%.400s/top", name ? name : "");
    int rc = call_api(cli, "GET", path, NULL, &reply);
    if (rc == CLI_OK) {
        output_list(cli, json_object_get(reply, "processes"), "pid command");
    }
    json_decref(reply);
    return rc;
}

/* ---- cp ---- */

/* "NAME:/path" has a name and an absolute path. */
static const char *split(char *text)
{
    char *colon = strchr(text, ':');
    if (!colon || colon == text || memchr(text, '/', (size_t)(colon - text))) {
        return NULL;
    }
    *colon = '\0';
    return colon + 1;
}

/* tar, with a pipe to its input or output. */
static pid_t run_tar(char *const *argv, bool to_it, int *ret_fd)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) {
        return -1;
    }
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[to_it ? 0 : 1], to_it ? 0 : 1);
        execvp(argv[0], argv);
        _exit(127);
    }
    close(fds[to_it ? 0 : 1]);
    *ret_fd = fds[to_it ? 1 : 0];
    if (pid < 0) {
        close(*ret_fd);
    }
    return pid;
}

static int finish_tar(pid_t pid, int fd, int status)
{
    int result = 0;
    close(fd);
    while (waitpid(pid, &result, 0) < 0 && errno == EINTR) {
    }
    return status == 0 && result == 0 ? CLI_OK : CLI_FAILED;
}

/* Into "-": the tar itself. Into a folder: below it. Anything else: under that name. */
static int copy_out(struct cli *cli, const char *name, const char *path, const char *to)
{
    struct stream_use use = {.instance = name, .in = -1, .out = STDOUT_FILENO, .err = STDERR_FILENO};
    use.open = json_pack("{s:{s:s}}", "export", "path", path);
    if (strcmp(to, "-") == 0) {
        return stream_run(cli, &use) == 0 ? CLI_OK : CLI_FAILED;
    }
    char dir[PATH_MAX], rename[2 * PATH_MAX] = "s,,,", leaf[PATH_MAX];
    struct stat st;
    snprintf(dir, sizeof(dir), "%s", to);
    if (stat(to, &st) < 0 || !S_ISDIR(st.st_mode)) {
        const char *slash = strrchr(to, '/'), *base = slash ? slash + 1 : to;
        snprintf(leaf, sizeof(leaf), "%s", base);
        snprintf(dir, sizeof(dir), "%.*s", slash ? (int)MAX(slash - to, 1) : 1, slash ? to : ".");
        if (strpbrk(leaf, ",\\&\n") || !leaf[0]) {
            log_error("cp: '%s' can't be the name of a copy", leaf);
            json_decref(use.open);
            return CLI_USAGE;
        }
        snprintf(rename, sizeof(rename), "flags=r;s,^[^/]*,%s,", leaf);
    }
    char *argv[] = {"tar", "-x", "--no-same-owner", "-C", dir, "--transform", rename, NULL};
    argv[5] = strcmp(rename, "s,,,") == 0 ? NULL : argv[5];
    pid_t pid = run_tar(argv, true, &use.out);
    if (pid < 0) {
        json_decref(use.open);
        return CLI_FAILED;
    }
    int status = stream_run(cli, &use);
    return finish_tar(pid, use.out, status);
}

static int copy_in(struct cli *cli, const char *from, const char *name, const char *path)
{
    struct stream_use use = {
        .instance = name, .in = STDIN_FILENO, .out = STDOUT_FILENO, .err = STDERR_FILENO};
    use.open = json_pack("{s:{s:s}}", "import", "path", path);
    if (strcmp(from, "-") == 0) {
        return stream_run(cli, &use) == 0 ? CLI_OK : CLI_FAILED;
    }
    char real[PATH_MAX], dir[PATH_MAX];
    if (!realpath(from, real)) {
        log_error("cannot read '%s': %s", from, strerror(errno));
        json_decref(use.open);
        return CLI_USAGE;
    }
    char *slash = strrchr(real, '/');
    snprintf(dir, sizeof(dir), "%.*s", (int)MAX(slash - real, 1), real);
    char *argv[] = {"tar", "-c", "--owner=0", "--group=0", "--numeric-owner",
                    "-C",  dir,  "--",        slash + 1,   NULL};
    pid_t pid = run_tar(argv, false, &use.in);
    if (pid < 0) {
        json_decref(use.open);
        return CLI_FAILED;
    }
    int status = stream_run(cli, &use);
    return finish_tar(pid, use.in, status);
}

int cmd_cp(struct cli *cli)
{
    char *from = cli->argv[0], *to = cli->argv[1];
    const char *from_path = split(from), *to_path = split(to);
    if (!from_path == !to_path) {
        log_error("cp: one of the two is INSTANCE:PATH (see 'fonda cp --help')");
        return CLI_USAGE;
    }
    return from_path ? copy_out(cli, from, from_path, to) : copy_in(cli, from, to, to_path);
}
