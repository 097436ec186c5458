/*
 * `fonda debug`: what the translator makes of guest code, of a named machine over its control socket, or of
 * bytes, in which case fonda-vmm answers.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/options.h"
#include "base/util.h"
#include "cli/cli.h"
#include "vm/status.h"

#define OPT(name, kind, member, min, max, metavar, help)                                                     \
    {                                                                                                        \
        name, kind, offsetof(struct translate_options, member), min, max, metavar, help                      \
    }

struct translate_options {
    const char *bytes;
    uint64_t mode, cpu;
    bool help;
};

static const struct option_spec options[] = {
    OPT("cpu", OPTION_UINT, cpu, 0, 31, "N", "the vCPU whose code cache is looked at (default: 0)"),
    OPT("bytes", OPTION_STRING, bytes, 0, 0, "HEX", "translate these bytes, of no machine"),
    OPT("mode", OPTION_UINT, mode, 16, 64, "BITS", "with --bytes: 16, 32 or 64-bit code (default: 64)"),
    OPT("help", OPTION_FLAG, help, 0, 0, NULL, "print this help"),
};

static void print_help(void)
{
    printf("usage: fonda debug translate NAME ADDRESS [OPTIONS]\n       fonda debug translate --bytes HEX "
           "[--mode BITS]\n"
           "       fonda debug count NAME on|off\n\n"
           "Shows what the translator (--engine bt) made of the guest code at an address: the guest's "
           "instructions, "
           "the host's,\nwhere the block leads to, and how often it ran. Runs are counted between 'count "
           "NAME on' and "
           "'off'; the machine\ntranslates anew then and is a little slower.\n\nOptions:\n");
    options_print(stdout, options, ARRAY_SIZE(options));
    printf(
        "\nExamples:\n  fonda debug count web on\n  fonda debug translate web 0xffffffff81000100\n"
        "  fonda debug translate --bytes '48 89 e5 c3'\n  fonda debug translate --bytes 'f3 a4' --mode 16\n");
}

static int usage_error(const char *text)
{
    log_error("%s (see 'fonda debug --help')", text);
    return VM_STATUS_USAGE;
}

static int translate_bytes(const struct translate_options *o)
{
    char mode[8];
    if (o->mode != 16 && o->mode != 32 && o->mode != 64) {
        return usage_error("--mode: 16, 32 or 64");
    }
    snprintf(mode, sizeof(mode), "%u", (unsigned)o->mode);
    char *argv[] = {"fonda-vmm", "--translate", (char *)o->bytes, mode, NULL};
    return cli_become_program(argv);
}

static int translate(int argc, char **argv)
{
    struct translate_options o = {.mode = 64};
    struct err err = {0};
    const char *words[2];
    unsigned count = 0;
    for (int next = 1; next < argc;) {
        next = options_parse(options, ARRAY_SIZE(options), argc, argv, next, &o, &err);
        if (next < 0) {
            return usage_error(err.text);
        }
        if (next < argc) {
            if (count == ARRAY_SIZE(words)) {
                return usage_error("too many arguments");
            }
            words[count++] = argv[next++];
        }
    }
    if (o.help) {
        print_help();
        return 0;
    }
    if (o.bytes) {
        return count == 0 ? translate_bytes(&o) : usage_error("--bytes is of no machine: no other arguments");
    }
    if (count != 2) {
        return usage_error("a machine's name and an address are needed, or --bytes");
    }
    json_t *result = NULL;
    int status =
        cli_machine_request(words[0], "translate",
                            json_pack("{s:s, s:I}", "address", words[1], "cpu", (json_int_t)o.cpu), &result);
    if (status == 0) {
        const char *text = json_string_value(json_object_get(result, "text"));
        fputs(text ? text : "", stdout);
        json_decref(result);
    }
    return status;
}

static int count_runs(int argc, char **argv)
{
    bool on = argc == 3 && strcmp(argv[2], "on") == 0;
    if (argc != 3 || (!on && strcmp(argv[2], "off") != 0)) {
        return usage_error("count: a machine's name, and on or off");
    }
    return cli_machine_request(argv[1], "count", json_pack("{s:b}", "on", on), NULL);
}

int cli_debug(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help();
        return argc < 2 ? VM_STATUS_USAGE : 0;
    }
    if (strcmp(argv[1], "translate") == 0) {
        return translate(argc - 1, argv + 1);
    }
    if (strcmp(argv[1], "count") == 0) {
        return count_runs(argc - 1, argv + 1);
    }
    log_error("debug: '%s' is neither translate nor count (see 'fonda debug --help')", argv[1]);
    return VM_STATUS_USAGE;
}
