/*
 * fonda: the command line. Finds the command in the table, reads its options, and either speaks the API or
 * becomes another program.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/context.h"

#ifndef FONDA_VERSION
#define FONDA_VERSION "unknown"
#endif

/* The command's own options, and those that all have. */
static unsigned options_of(const struct cli_command *command, struct option_spec *specs)
{
    unsigned count = 0;
    for (unsigned i = 0; i < cli_option_spec_count; i++) {
        if (cli_has_option(command, cli_option_specs[i].name)) {
            specs[count++] = cli_option_specs[i];
        }
    }
    return count;
}

static int read_format(struct cli *cli, struct err *err)
{
    static const char *const names[] = {"table", "json", "yaml", "csv"};
    const char *name = cli->options.format ? cli->options.format : "table";
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(names[i], name) == 0) {
            cli->format = (enum cli_format)i;
            return 0;
        }
    }
    return err_set(err, -EINVAL, "--format: '%s' is none of table, json, yaml, csv", name);
}

/* Options may stand before, between and behind arguments. */
static int parse(struct cli *cli, int argc, char **argv, struct err *err)
{
    struct option_spec *specs = calloc(cli_option_spec_count, sizeof(*specs));
    if (!specs) {
        return err_set(err, -ENOMEM, "no memory");
    }
    unsigned count = options_of(cli->command, specs);
    int rc = 0;
    for (int next = 1; rc >= 0 && next < argc;) {
        rc = next = options_parse(specs, count, argc, argv, next, &cli->options, err);
        if (rc >= 0 && next < argc) {
            cli->argv[cli->argc++] = argv[next++];
        }
    }
    free(specs);
    if (rc < 0) {
        return rc;
    }
    if (cli->options.help) {
        return 0;
    }
    if (cli->argc < cli->command->least) {
        return err_set(err, -EINVAL, "usage: fonda %s %s", cli->command->name, cli->command->args);
    }
    if (cli->argc > cli->command->most) {
        return err_set(err, -EINVAL, "unexpected argument '%s'", cli->argv[cli->command->most]);
    }
    return read_format(cli, err);
}

static int connect_and_run(struct cli *cli)
{
    struct client_config config;
    struct err err = {0};
    if (cli->command->offline) {
        return cli->command->run(cli);
    }
    json_t *contexts = context_load();
    int rc = context_resolve(contexts, &cli->options, &config, &err);
    if (rc == 0) {
        rc = client_new(&config, &cli->client, &err);
    }
    int status = rc == 0 ? cli->command->run(cli) : rc == -EINVAL ? CLI_USAGE : CLI_NO_DAEMON;
    if (rc < 0) {
        log_error("%s", err.text);
    }
    client_free(cli->client);
    json_decref(contexts);
    return status;
}

int cli_connected(int (*fn)(struct cli *cli, void *opaque), void *opaque, int failed)
{
    struct cli cli = {.options.timeout = UINT64_MAX};
    struct client_config config;
    struct err err = {0};
    json_t *contexts = context_load();
    int rc = context_resolve(contexts, &cli.options, &config, &err);
    rc = rc < 0 ? rc : client_new(&config, &cli.client, &err);
    if (rc < 0) {
        log_error("%s", err.text);
    }
    int status = rc < 0 ? failed : fn(&cli, opaque);
    client_free(cli.client);
    json_decref(contexts);
    return status;
}

/* The letters that people are used to. */
static void spell_out(int argc, char **argv)
{
    static const struct {
        const char *command, *letter, *name;
    } letters[] = {
        {"logs", "-f", "--follow"},     {"logs", "-n", "--tail"},    {"logs", "-t", "--timestamps"},
        {"rm", "-f", "--force"},        {"delete", "-f", "--force"}, {"ps", "-a", "--all"},
        {"ps", "-q", "--quiet"},        {"kill", "-s", "--signal"},  {"stop", "-t", "--timeout"},
        {"restart", "-t", "--timeout"},
    };
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        for (size_t k = 0; k < ARRAY_SIZE(letters); k++) {
            if (strcmp(argv[0], letters[k].command) == 0 && strcmp(argv[i], letters[k].letter) == 0) {
                argv[i] = (char *)(uintptr_t)letters[k].name;
            }
        }
    }
}

static int run_command(int argc, char **argv)
{
    struct cli cli = {
        .command = cli_find(argv[0]), .options.timeout = UINT64_MAX, .options.tail = UINT64_MAX};
    struct err err = {0};
    if (!cli.command) {
        log_error("unknown %s '%s' (see 'fonda help')", argv[0][0] == '-' ? "option" : "command", argv[0]);
        return CLI_USAGE;
    }
    if (cli.command->become) {
        return cli.command->become(argc, argv);
    }
    spell_out(argc, argv);
    cli.argv = calloc((size_t)argc + 1, sizeof(*cli.argv));
    int rc = cli.argv ? parse(&cli, argc, argv, &err) : err_set(&err, -ENOMEM, "no memory");
    int status = CLI_USAGE;
    if (rc < 0) {
        log_error("%s (see 'fonda %s --help')", err.text, argv[0]);
    } else if (cli.options.help) {
        help_command(stdout, cli.command);
        status = CLI_OK;
    } else {
        status = connect_and_run(&cli);
    }
    free(cli.argv);
    return status;
}

int main(int argc, char **argv)
{
    log_init("fonda", LOG_LEVEL_WARNING);
    if (argc < 2) {
        help_all(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help_all(stdout);
        return CLI_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("fonda %s\n", FONDA_VERSION);
        return CLI_OK;
    }
    return run_command(argc - 1, argv + 1);
}
