/*
 * The command line: one table of commands and one of options (table.c), from which parsing, --help, man pages
 * and completions come. Commands speak the API; run, engines and image become other programs.
 */
#ifndef FONDA_CLI_CLI_H
#define FONDA_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/options.h"

/* Exit statuses of commands that speak the API; docs/cli.md. */
enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1, /* it was tried, and failed */
    CLI_USAGE = 2,  /* the command line, or a value in it */
    CLI_NOT_FOUND = 3,
    CLI_FORBIDDEN = 4,
    CLI_CONFLICT = 5,  /* taken, in use, not in this state, changed meanwhile */
    CLI_NO_DAEMON = 6, /* cannot be reached */
    CLI_LIMIT = 7,     /* a quota, a limit, a full disk */
};

enum cli_format { FORMAT_TABLE, FORMAT_JSON, FORMAT_YAML, FORMAT_CSV };

/* Everything that any command takes; a command's entry names which. */
struct cli_options {
    const char *state, *host, *context, *format, *filter, *sort, *token, *ca, *cert, *key;
    bool quiet, no_wait, no_open, force, follow, start, help, insecure;
    uint64_t timeout, limit, after;
    const char *memory, *cpus, *kernel, *append, *engine, *restart, *description, *size, *role, *mode,
        *net_options, *cpu_limit, *cpu_weight, *memory_limit, *pids_limit;
    struct option_list initrds, disks, volumes, networks, publish, shares, labels;
    bool autostart, no_reboot, timestamps, all, linked, full, no_memory, raw, trust, backup, with_memory,
        with_volumes;
    uint64_t tail;
    const char *signal, *snapshot, *every, *cron, *keep_for;
    uint64_t keep_last;
};

struct client;

struct cli {
    const struct cli_command *command;
    struct cli_options options;
    enum cli_format format;
    struct client *client;
    int argc; /* arguments that are no options */
    char **argv;
    const char *query;    /* of the request that begins a job: "&volumes=1", or NULL */
    char job_detail[512]; /* why the last job failed; "": it did not */
};

enum cli_complete { COMPLETE_NONE, COMPLETE_INSTANCES, COMPLETE_JOBS, COMPLETE_VERBS, COMPLETE_FILES };

struct cli_command {
    const char *name, *group;
    const char *args; /* "INSTANCE..." */
    const char *about;
    const char *options; /* names, separated by spaces; the common ones come in addition */
    int least, most;     /* arguments */
    enum cli_complete complete;
    const char *verbs; /* first arguments, for completion */
    const char *examples;
    int (*run)(struct cli *cli);          /* speaks the API */
    int (*become)(int argc, char **argv); /* or another program; parses its options itself */
    bool offline;                         /* needs no daemon */
};

extern const struct cli_command cli_commands[];
extern const unsigned cli_command_count;
extern const struct option_spec cli_option_specs[];
extern const unsigned cli_option_spec_count;
extern const char cli_common_options[];

const struct cli_command *cli_find(const char *name);
bool cli_has_option(const struct cli_command *command, const char *option);

/* ---- commands ---- */
int cli_run(int argc, char **argv);
int cli_engines(int argc, char **argv);
int cli_jail(int argc, char **argv);
int cli_image(int argc, char **argv);
int cli_serve(int argc, char **argv);
int cli_run_container(int argc, char **argv);
/* Whether an instance has a program with streams: a container, or a machine of an image. */
bool cli_has_room(const json_t *instance);
int cli_exec(int argc, char **argv);
/* Connects as commands do, by the environment and the context, and calls fn; otherwise the status `failed`.
 */
int cli_connected(int (*fn)(struct cli *cli, void *opaque), void *opaque, int failed);
/* What logs, top and shell are for containers (cmd_container.c). */
int container_logs(struct cli *cli), container_top(struct cli *cli), container_shell(struct cli *cli);
/* machines.c: over the control sockets of machines that `fonda run --name` started. */
int cli_vm(int argc, char **argv);
/* devices.c: of 'fonda vm'. */
int cli_vm_disk(int argc, char **argv);
int cli_vm_nic(int argc, char **argv);
int cli_vm_balloon(int argc, char **argv);
/* debug.c */
int cli_debug(int argc, char **argv);

/* machines.c: a request to a named machine; params is taken over. Returns the exit status, having said what
 * went wrong; ret_result may be NULL. */
int cli_machine_request(const char *name, const char *method, json_t *params, json_t **ret_result);
/* The same with open descriptors, which stay the caller's. */
int cli_machine_request_fds(const char *name, const char *method, json_t *params, const int *fds,
                            unsigned count, json_t **ret_result);
/* run.c: becomes the program that argv[0] names. */
int cli_become_program(char **argv);

int cmd_create(struct cli *cli), cmd_launch(struct cli *cli), cmd_ps(struct cli *cli),
    cmd_show(struct cli *cli), cmd_verb(struct cli *cli), cmd_stop(struct cli *cli),
    cmd_delete(struct cli *cli), cmd_rename(struct cli *cli), cmd_clone(struct cli *cli),
    cmd_set(struct cli *cli), cmd_logs(struct cli *cli), cmd_stats(struct cli *cli), cmd_top(struct cli *cli),
    cmd_console(struct cli *cli), cmd_job(struct cli *cli), cmd_events(struct cli *cli),
    cmd_audit(struct cli *cli), cmd_object(struct cli *cli), cmd_doctor(struct cli *cli),
    cmd_version(struct cli *cli), cmd_context(struct cli *cli), cmd_web(struct cli *cli),
    cmd_completion(struct cli *cli), cmd_attach(struct cli *cli), cmd_kill(struct cli *cli),
    cmd_shell(struct cli *cli), cmd_snapshot(struct cli *cli), cmd_template(struct cli *cli),
    cmd_export(struct cli *cli), cmd_import(struct cli *cli), cmd_backup(struct cli *cli),
    cmd_schedule(struct cli *cli), cmd_wait(struct cli *cli), cmd_cp(struct cli *cli),
    cmd_man(struct cli *cli), cmd_help(struct cli *cli);

/* cmd_instance.c: changes an instance (path is its URL), waits until a running one has taken it, and says
 * what takes a restart. patch is taken over. */
int cmd_patch_instance(struct cli *cli, const char *name, const char *path, json_t *patch);
int cmd_device(struct cli *cli); /* cmd_device.c */

/* ---- help.c ---- */
void help_command(FILE *out, const struct cli_command *command);
void help_all(FILE *out);

/* ---- output.c ---- */
/* A list in the chosen format; columns: member names, separated by spaces. --quiet: names alone. */
void output_list(const struct cli *cli, const json_t *items, const char *columns);
void output_object(const struct cli *cli, const json_t *object);

/* ---- calls.c: the API, with errors reported ---- */
/* Returns an exit status; ret_reply may be NULL. */
int call_api(struct cli *cli, const char *method, const char *path, json_t *body, json_t **ret_reply);
/* The same for routes that answer with a job: waits for it (unless --no-wait), showing progress. */
int call_job(struct cli *cli, const char *method, const char *path, json_t *body);
/* free() the text. */
char *url_escape(const char *text);

#endif
