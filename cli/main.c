/*
 * fonda: the command line. One table of commands; `run`, `engines` and `jail` end in fonda-vmm, `image` in
 * fonda-image.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "vm/status.h"

#ifndef FONDA_VERSION
#define FONDA_VERSION "unknown"
#endif

static int cmd_help(int argc, char **argv);

static const struct {
    const char *name, *about;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"run", "start a virtual machine and attach to its console", cli_run},
    {"engines", "which engines can run guest code on this host, and why others can't", cli_engines},
    {"jail", "which layers of the machines' jail this host gives, and why others can't be had", cli_jail},
    {"image", "create, convert, check and change disk images", cli_image},
    {"help", "print this help, or 'fonda help COMMAND'", cmd_help},
};

static void print_usage(FILE *out)
{
    fprintf(out, "usage: fonda COMMAND [OPTIONS]\n\nCommands:\n");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].about);
    }
    fprintf(out, "\nOptions:\n  --help     print this help\n  --version  print the version\n"
                 "\n'fonda COMMAND --help' says more about a command.\n");
}

static int run_command(const char *name, int argc, char **argv)
{
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return commands[i].run(argc, argv);
        }
    }
    log_error("unknown %s '%s' (see 'fonda help')", name[0] == '-' ? "option" : "command", name);
    return VM_STATUS_USAGE;
}

static int cmd_help(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] == '-') {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return 0;
    }
    char *help_argv[] = {argv[1], "--help", NULL};
    return run_command(argv[1], 2, help_argv);
}

int main(int argc, char **argv)
{
    log_init("fonda", LOG_LEVEL_WARNING);
    if (argc < 2) {
        print_usage(stderr);
        return VM_STATUS_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("fonda %s\n", FONDA_VERSION);
        return 0;
    }
    return run_command(argv[1], argc - 1, argv + 1);
}
