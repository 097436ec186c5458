/*
 * Fuzz target: config.json, with its seccomp profile and sysctl keys. With -Dfuzzers=true (clang) it is a
 * libFuzzer program; otherwise it runs the files that it is given once, which keeps the corpus in `meson
 * test`.
 */
#include "base/log.h"
#include "container/config.h"
#include "container/json.h"
#include "container/seccomp.h"
#include "container/sysctl.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void quiet(enum log_level level, const char *text, void *opaque)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct oci_config config;
    struct err err = {.code = 0};
    log_set_sink(quiet, NULL);
    if (config_parse(&config, (const char *)data, size, "fuzz", &err) < 0) {
        return 0;
    }
    struct seccomp_program *program = NULL;
    if (config.lnx.seccomp) {
        seccomp_compile(config.lnx.seccomp, &config.arena, &program, &err);
    }
    sysctl_check(&config, &err);
    config_free(&config);
    return 0;
}

#ifndef FONDA_LIBFUZZER
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        char *text = NULL;
        size_t size = 0;
        struct err err = {.code = 0};
        if (file_read_all(AT_FDCWD, argv[i], &text, &size, &err) < 0) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        LLVMFuzzerTestOneInput((const uint8_t *)text, size);
        free(text);
    }
    return 0;
}
#endif
