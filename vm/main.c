/*
 * fonda-vmm: one virtual machine, or the list of engines. `fonda run` becomes this program; it may be started
 * by hand with the same options.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "base/log.h"
#include "base/util.h"
#include "cpu/engine.h"
#include "mem/mem.h"
#include "sandbox/jail.h"
#include "vm/boot/boot.h"
#include "vm/config.h"
#include "vm/host.h"
#include "vm/jail.h"
#include "vm/kernel.h"
#include "vm/saved/file.h"
#include "vm/saved/options.h"
#include "vm/status.h"
#include "vm/terminal.h"

#define TRANSLATE_BYTES_MAX 1024u
#define TRANSLATE_TEXT_MAX  (1u << 20)
static int list_engines(void)
{
    for (size_t i = 0; engines[i]; i++) {
        struct err err = {0};
        int rc = engines[i]->probe(&err);
        printf("%-6s %-8s %s\n", engines[i]->name, engines[i]->arch, engines[i]->about);
        printf("%-15s %s%s\n", "",
               rc == 0 ? "can be used here" : "can't be used here: ", rc == 0 ? "" : err.text);
    }
    return 0;
}

/* "48 89 e5", with or without spaces. Returns how many bytes, or -1. */
static int read_hex(const char *text, uint8_t *bytes, size_t max)
{
    size_t n = 0;
    while (*text) {
        int used = 0;
        if (*text == ' ') {
            text++;
            continue;
        }
        if (n == max || sscanf(text, "%2hhx%n", &bytes[n], &used) != 1 || used != 2) {
            return -1;
        }
        text += used;
        n++;
    }
    return (int)n;
}

/* What `fonda debug translate --bytes` becomes. */
static int translate(const char *hex, const char *bits)
{
    static uint8_t bytes[TRANSLATE_BYTES_MAX];
    static char text[TRANSLATE_TEXT_MAX];
    int len = read_hex(hex, bytes, sizeof(bytes));
    uint64_t mode;
    struct err err = {0};
    if (len <= 0 || parse_uint(bits, &mode, &err) < 0) {
        log_error("--bytes: '%.60s' is not 1 to %u bytes, two hexadecimal digits each", hex,
                  TRANSLATE_BYTES_MAX);
        return VM_STATUS_USAGE;
    }
    for (size_t i = 0; engines[i]; i++) {
        if (engines[i]->translate_bytes) {
            int rc =
                engines[i]->translate_bytes(bytes, (size_t)len, (unsigned)mode, text, sizeof(text), &err);
            fputs(text, stdout);
            if (rc < 0) {
                log_error("%s", err.text);
            }
            return rc < 0 ? VM_STATUS_USAGE : 0;
        }
    }
    log_error("no engine of this build translates");
    return VM_STATUS_USAGE;
}

static const struct engine_ops *find_engine(const char *name, struct err *err)
{
    char known[128] = "";
    for (size_t i = 0, used = 0; engines[i]; i++) {
        if (strcmp(engines[i]->name, name) == 0) {
            return engines[i];
        }
        if (used < sizeof(known)) {
            used +=
                (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", engines[i]->name);
        }
    }
    err_set(err, -EINVAL, "unknown engine '%s': there is %s", name, known);
    return NULL;
}

/* A limit of the control group that a container puts around us; UINT64_MAX: none. */
static uint64_t cgroup_limit(void)
{
    static const char *const files[] = {"/sys/fs/cgroup/memory.max",
                                        "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        FILE *file = fopen(files[i], "re");
        uint64_t limit;
        int n = file ? fscanf(file, "%" SCNu64, &limit) : 0;
        if (file) {
            fclose(file);
        }
        if (n == 1) {
            return limit;
        }
    }
    return UINT64_MAX;
}

/* RAM is taken only as the guest touches it, so more than what is free is fine, and more than there is can't
 * be. */
static int check_memory(uint64_t bytes, struct err *err)
{
    struct sysinfo info;
    if (sysinfo(&info) < 0) {
        return err_sys(err, -errno, "cannot ask for the host's memory");
    }
    uint64_t host = ((uint64_t)info.totalram + info.totalswap) * info.mem_unit;
    host = MIN(host, cgroup_limit());
    if (bytes > host) {
        char want[32], have[32];
        format_size(bytes, want, sizeof(want));
        format_size(host, have, sizeof(have));
        return err_set(err, -ENOMEM, "--memory: %s is more than this host has (%s)", want, have);
    }
    return 0;
}

static int run(const struct vm_config *config, struct saved_reader *saved, struct err *err)
{
    const struct engine_ops *engine = find_engine(config->engine, err);
    struct boot *boot = NULL;
    struct mem *mem = NULL;
    if (!engine || check_memory(config->memory_bytes, err) < 0 ||
        (!config->restore && kernel_open(config, NULL, &boot, err) < 0)) {
        return VM_STATUS_USAGE;
    }
    int status = VM_STATUS_HOST;
    int rc = engine->probe(err);
    if (rc < 0) {
        err_prefix(err, "engine '%s' can't be used here", engine->name);
        status = VM_STATUS_ENGINE;
    } else if (mem_new(config->memory_bytes, &mem, err) == 0) {
        status = host_run(config, engine, boot, mem, saved, err);
    }
    boot_free(boot);
    mem_free(mem);
    return status;
}

/* The machine's configuration comes from the file, and what belongs to this run from the command line. */
static int open_saved(struct vm_config *config, struct saved_reader **ret_saved, struct err *err)
{
    const struct vm_config run_config = *config;
    char *path = realpath(config->restore, NULL);
    if (!path) {
        return err_sys(err, -errno, "--restore: cannot open '%s'", config->restore);
    }
    int rc = saved_open(path, ret_saved, err);
    if (rc == 0) {
        rc = saved_options_merge(saved_head(*ret_saved)->config, &run_config, config, err);
    }
    config->restore = path;
    if (rc == 0) {
        kernel_keep(config);
    }
    return rc < 0 ? err_prefix(err, "--restore") : 0;
}

/* What the options and a saved file say is known now; from here on the process is the machine's. */
static int start(const struct vm_config *config, struct saved_reader *saved, struct err *err)
{
    int rc = vm_config_console_on_terminal(config) || strcmp(config->serial, "stdio") == 0
                 ? terminal_raw(STDIN_FILENO)
                 : 0;
    if (rc < 0) {
        err_sys(err, rc, "cannot set up the terminal");
        return VM_STATUS_HOST;
    }
    return vm_jail_split(config, err) < 0 ? VM_STATUS_HOST : run(config, saved, err);
}

int main(int argc, char **argv)
{
    log_init("fonda", LOG_LEVEL_WARNING);
    if (argc == 2 && strcmp(argv[1], "--list-engines") == 0) {
        return list_engines();
    }
    if (argc == 2 && strcmp(argv[1], "--list-jail") == 0) {
        return jail_report(stdout) == 0 ? 0 : 1;
    }
    if (argc == 4 && strcmp(argv[1], "--translate") == 0) {
        return translate(argv[2], argv[3]);
    }
    struct vm_config config;
    struct err err = {0};
    if (vm_config_parse(argc, argv, 1, &config, &err) < 0) {
        log_error("%s (see 'fonda run --help')", err.text);
        return VM_STATUS_USAGE;
    }
    if (config.help) {
        printf("usage: fonda-vmm OPTIONS, or fonda-vmm --list-engines | --list-jail\n\nOptions:\n");
        options_print(stdout, vm_options, vm_option_count);
        return 0;
    }
    struct saved_reader *saved = NULL;
    int status = VM_STATUS_USAGE;
    if (!config.restore || open_saved(&config, &saved, &err) == 0) {
        status = start(&config, saved, &err);
    }
    saved_close(saved);
    if (err.code) {
        log_error("%s", err.text);
    }
    return status;
}
