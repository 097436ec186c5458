/* --help, man pages and shell completions, from the tables. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"

static void print_options(FILE *out, const struct cli_command *command)
{
    struct option_spec specs[64];
    unsigned count = 0;
    for (unsigned i = 0; i < cli_option_spec_count && count < ARRAY_SIZE(specs); i++) {
        if (cli_has_option(command, cli_option_specs[i].name)) {
            specs[count++] = cli_option_specs[i];
        }
    }
    if (count) {
        fprintf(out, "\nOptions:\n");
        options_print(out, specs, count);
    }
}

void help_command(FILE *out, const struct cli_command *command)
{
    fprintf(out, "usage: fonda %s%s%s%s\n\n%c%s.\n", command->name, command->become ? "" : " [OPTIONS]",
            command->args[0] ? " " : "", command->args, toupper(command->about[0]), command->about + 1);
    print_options(out, command);
    fprintf(out, "\nExamples:\n%s", command->examples);
}

void help_all(FILE *out)
{
    const char *group = "";
    fprintf(out, "usage: fonda COMMAND [OPTIONS]\n");
    for (unsigned i = 0; i < cli_command_count; i++) {
        if (strcmp(group, cli_commands[i].group) != 0) {
            group = cli_commands[i].group;
            fprintf(out, "\n%s:\n", group);
        }
        fprintf(out, "  %-10s %s\n", cli_commands[i].name, cli_commands[i].about);
    }
    fprintf(out, "\nOptions:\n  --help     print this help\n  --version  print the version\n"
                 "\n'fonda COMMAND --help' says more about a command.\n");
}

int cmd_help(struct cli *cli)
{
    if (cli->argc == 0) {
        help_all(stdout);
        return CLI_OK;
    }
    const struct cli_command *command = cli_find(cli->argv[0]);
    if (!command) {
        log_error("unknown command '%s' (see 'fonda help')", cli->argv[0]);
        return CLI_USAGE;
    }
    if (command->become) {
        char *argv[] = {cli->argv[0], "--help", NULL};
        return command->become(2, argv);
    }
    help_command(stdout, command);
    return CLI_OK;
}

/* ---- man pages ---- */

/* Text for roff: no line may begin as a request, and dashes are dashes. */
static void roff(const char *text)
{
    bool start = true;
    for (; *text; text++) {
        if (start && (*text == '.' || *text == '\'')) {
            fputs("\\&", stdout);
        }
        if (*text == '-') {
            putchar('\\');
        }
        putchar(*text);
        if (*text == '\\') {
            putchar('e');
        }
        start = *text == '\n';
    }
}

static void man_options(const struct cli_command *command)
{
    bool any = false;
    for (unsigned i = 0; i < cli_option_spec_count; i++) {
        const struct option_spec *spec = &cli_option_specs[i];
        if (!cli_has_option(command, spec->name)) {
            continue;
        }
        if (!any) {
            printf(".SH OPTIONS\n");
            any = true;
        }
        printf(".TP\n.B \\-\\-");
        roff(spec->name);
        printf("%s%s\n", spec->metavar ? " " : "", spec->metavar ? spec->metavar : "");
        roff(spec->help);
        putchar('\n');
    }
}

int cmd_man(struct cli *cli)
{
    if (strcmp(cli->argv[0], "fonda") == 0) {
        printf(".TH FONDA 1 \"\" \"Fonda\"\n.SH NAME\nfonda \\- machines and containers\n.SH SYNOPSIS\n.B "
               "fonda\n"
               "COMMAND [OPTIONS]\n.SH COMMANDS\n");
        for (unsigned i = 0; i < cli_command_count; i++) {
            printf(".TP\n.BR fonda\\-%s (1)\n", cli_commands[i].name);
            roff(cli_commands[i].about);
            putchar('\n');
        }
        return CLI_OK;
    }
    const struct cli_command *command = cli_find(cli->argv[0]);
    if (!command) {
        log_error("unknown command '%s' (see 'fonda help')", cli->argv[0]);
        return CLI_USAGE;
    }
    printf(".TH FONDA\\-%s 1 \"\" \"Fonda\"\n.SH NAME\nfonda\\-%s \\- ", command->name, command->name);
    roff(command->about);
    printf("\n.SH SYNOPSIS\n.B fonda %s\n", command->name);
    roff(command->args);
    printf("\n");
    man_options(command);
    printf(".SH EXAMPLES\n.nf\n");
    roff(command->examples);
    printf(".fi\n.SH EXIT STATUS\n0 done; 1 failed; 2 usage; 3 not found; 4 not allowed; 5 conflict; 6 no "
           "daemon; 7 a "
           "limit\n.SH SEE ALSO\n.BR fonda (1)\n");
    return CLI_OK;
}

/* ---- completions ---- */

static void print_command_options(const struct cli_command *command)
{
    for (unsigned i = 0; i < cli_option_spec_count; i++) {
        if (cli_has_option(command, cli_option_specs[i].name)) {
            printf(" --%s", cli_option_specs[i].name);
        }
    }
}

static void bash(void)
{
    printf(
        "_fonda() {\n    local cur=${COMP_WORDS[COMP_CWORD]} words=\n    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "        words=\"");
    for (unsigned i = 0; i < cli_command_count; i++) {
        printf("%s%s", i ? " " : "", cli_commands[i].name);
    }
    printf("\"\n    else\n        case ${COMP_WORDS[1]} in\n");
    for (unsigned i = 0; i < cli_command_count; i++) {
        const struct cli_command *command = &cli_commands[i];
        printf("        %s) words=\"%s", command->name, command->verbs ? command->verbs : "");
        print_command_options(command);
        printf("\"");
        if (command->complete == COMPLETE_INSTANCES) {
            printf("; case $cur in -*) ;; *) words=\"$(fonda ps --quiet 2>/dev/null)\" ;; esac");
        }
        printf(" ;;\n");
    }
    printf("        esac\n    fi\n    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n"
           "complete -o default -F _fonda fonda\n");
}

static void fish(void)
{
    printf("complete -c fonda -f\n");
    for (unsigned i = 0; i < cli_command_count; i++) {
        const struct cli_command *command = &cli_commands[i];
        printf("complete -c fonda -n __fish_use_subcommand -a %s -d \"%s\"\n", command->name, command->about);
        if (command->complete == COMPLETE_INSTANCES) {
            printf(
                "complete -c fonda -n '__fish_seen_subcommand_from %s' -a '(fonda ps --quiet 2>/dev/null)'\n",
                command->name);
        } else if (command->verbs) {
            printf("complete -c fonda -n '__fish_seen_subcommand_from %s' -a '%s'\n", command->name,
                   command->verbs);
        }
        for (unsigned o = 0; o < cli_option_spec_count; o++) {
            if (cli_has_option(command, cli_option_specs[o].name)) {
                printf("complete -c fonda -n '__fish_seen_subcommand_from %s' -l %s%s\n", command->name,
                       cli_option_specs[o].name, cli_option_specs[o].metavar ? " -r" : "");
            }
        }
    }
}

int cmd_completion(struct cli *cli)
{
    if (strcmp(cli->argv[0], "bash") == 0) {
        bash();
    } else if (strcmp(cli->argv[0], "zsh") == 0) {
        printf("autoload -U +X bashcompinit && bashcompinit\n");
        bash();
    } else if (strcmp(cli->argv[0], "fish") == 0) {
        fish();
    } else {
        log_error("there is no completion for '%s': bash, zsh, fish", cli->argv[0]);
        return CLI_USAGE;
    }
    return CLI_OK;
}
