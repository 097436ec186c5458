/*
 * A saved machine's configuration: the options that it was made with, as JSON, and back.
 *
 *     {"fonda": "0.1.0", "cwd": "/home/u", "tsc_hz": 2500000000, "engine": "bt",
 *      "options": ["--kernel", "vmlinuz", "--memory", "1G"], "disks": [{"file": "web.qcow2", "bytes":
 * 1073741824}]}
 *
 * and "devices" with what was plugged and unplugged since (vm/hotplug.h).
 *
 * Options of a run rather than of the machine (serial, control, name, timeout, no-reboot, stats, engine) are
 * not saved, and may be given again with --restore; the others may not.
 *
 * Threads: main.
 */
#ifndef FONDA_VM_SAVED_OPTIONS_H
#define FONDA_VM_SAVED_OPTIONS_H

#include "base/err.h"
#include "vm/config.h"

struct devices;

/* From malloc; NULL: no memory, or texts that are no UTF-8. */
char *saved_options_json(const struct vm_config *config, struct devices *devices, const char *engine,
                         uint64_t tsc_hz);
/* Whether the disks are as large as they were: what a guest knows of a disk can't change under it. Errors:
 * -EINVAL, with the disk's name. */
int saved_options_check_disks(const char *json, struct devices *devices, struct err *err);

/* What a restored machine's command line amounts to: the saved options, then those of this run. Changes into
 * the directory that saved paths are relative to. ret_config's texts live as long as the process. Errors:
 * -EINVAL (an option that can't be given), -EBADMSG (a configuration that none has written), those of chdir.
 */
int saved_options_merge(const char *json, const struct vm_config *run, struct vm_config *ret_config,
                        struct err *err);

#endif
