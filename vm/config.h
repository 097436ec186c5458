/*
 * What a machine is made of, as the options of `fonda run` and fonda-vmm say it: one table for both programs,
 * so that they can't differ. Stands alone above base/, and is what cli/ may include of vm/ (with status.h).
 */
#ifndef FONDA_VM_CONFIG_H
#define FONDA_VM_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/options.h"

#define VM_CPUS_MAX 32

struct vm_config {
    const char *kernel; /* NULL: the one on the first disk */
    struct option_list initrds;
    const char *append; /* NULL: the default of the kernel's kind */
    uint64_t memory_bytes;
    uint64_t cpus;
    const char *engine;
    const char *cpu_model;
    uint64_t code_cache_bytes; /* for each vCPU; 0: a default by their number */
    bool eager;
    const char *serial;                              /* "stdio", "none", or a file's path */
    struct option_list disks, nics, publish, shares; /* texts for vm/device_options.h and net/user.h */
    struct option_list withheld;                     /* texts for dev/virtio/feature_names.h */
    const char *rng;                                 /* "on", "off" */
    const char *vsock;                               /* NULL: none */
    struct option_list save_dirs;
    const char *jail;                  /* "on", "quiet", "require", "off" */
    const char *console;               /* virtio; NULL: none */
    struct option_list ports;          /* texts for vm/device_options.h */
    const char *user_data, *meta_data; /* files of a NoCloud seed; NULL: none */
    bool ephemeral;                    /* what is written to disks goes with the machine */
    bool balloon;
    const char *gdb; /* NULL: none */
    bool gdb_wait;
    const char *control, *name; /* the control socket's path; or a name that stands for one (vm/rundir.h) */
    const char *restore;        /* a saved machine's file */
    const char *device_changes; /* no option: of the saved machine (vm/hotplug.h); NULL: none */
    int argc;                   /* the arguments as they were given, behind the program's name */
    char **argv;
    uint64_t tsc_hz;        /* no option: of the saved machine, 0 otherwise */
    uint64_t balloon_bytes; /* its size at the start; 0: none */
    uint64_t timeout_s;     /* 0: none */
    bool stats, no_reboot, help;
};

/* Whether the terminal belongs to the virtio console instead of the serial port. */
bool vm_config_console_on_terminal(const struct vm_config *config);

extern const struct option_spec vm_options[];
extern const unsigned vm_option_count;

/* Reads argv[first..argc) over the defaults and checks what can be checked without opening a file. Errors:
 * -EINVAL. */
int vm_config_parse(int argc, char **argv, int first, struct vm_config *ret_config, struct err *err);

#endif
