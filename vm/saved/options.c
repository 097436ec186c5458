/* See options.h. */
#include "vm/saved/options.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "block/block.h"
#include "vm/devices.h"
#include "vm/hotplug.h"
#include "vm/tsc.h"

#define OPTIONS_MAX 512u
/* Two measurements of one TSC may differ by as much; more would be another machine's. */
#define TSC_TOLERANCE_PPM 500u

static const char *const run_options[] = {"serial", "control",  "name",       "timeout", "no-reboot",
                                          "stats",  "engine",   "code-cache", "eager",   "restore",
                                          "gdb",    "gdb-wait", "jail",       "save-dir"};

static bool of_run(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(run_options); i++) {
        if (strcmp(run_options[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static const struct option_spec *find_spec(const char *name, size_t len)
{
    for (unsigned i = 0; i < vm_option_count; i++) {
        if (strlen(vm_options[i].name) == len && memcmp(vm_options[i].name, name, len) == 0) {
            return &vm_options[i];
        }
    }
    return NULL;
}

/* The option at argv[i], which was parsed before, and how many arguments it takes. */
static const struct option_spec *option_at(char **argv, int argc, int i, int *ret_taken)
{
    *ret_taken = 1;
    if (argv[i][0] != '-') {
        return NULL;
    }
    const char *name = argv[i] + MIN(strlen(argv[i]), 2u);
    size_t len = strcspn(name, "=");
    const struct option_spec *spec = find_spec(name, len);
    bool apart = spec && spec->kind != OPTION_FLAG && name[len] == '\0' && i + 1 < argc;
    *ret_taken = apart ? 2 : 1;
    return spec;
}

static json_t *describe_disks(struct devices *devices)
{
    json_t *disks = json_array();
    for (unsigned i = 0; i < devices_disks(devices); i++) {
        struct blk_node *node = devices_disk(devices, i);
        struct blk_info info;
        blk_get_info(node, &info);
        json_array_append_new(
            disks, json_pack("{s:s, s:I}", "file", info.filename, "bytes", (json_int_t)blk_size(node)));
    }
    return disks;
}

int saved_options_check_disks(const char *json, struct devices *devices, struct err *err)
{
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, NULL);
    const json_t *disks = json_object_get(root, "disks"); /* files of earlier programs have none */
    int rc = 0;
    for (unsigned i = 0; i < devices_disks(devices) && i < json_array_size(disks) && rc == 0; i++) {
        struct blk_node *node = devices_disk(devices, i);
        json_int_t bytes = json_integer_value(json_object_get(json_array_get(disks, i), "bytes"));
        struct blk_info info;
        blk_get_info(node, &info);
        if (bytes != (json_int_t)blk_size(node)) {
            rc = err_set(err, -EINVAL,
                         "disk '%s' had %lld bytes when it was saved and has %lld now: it is another one, or "
                         "was resized",
                         info.filename, (long long)bytes, (long long)blk_size(node));
        }
    }
    json_decref(root);
    return rc;
}

char *saved_options_json(const struct vm_config *config, struct devices *devices, const char *engine,
                         uint64_t tsc_hz)
{
    char cwd[PATH_MAX];
    json_t *options = json_array();
    for (int i = 0, taken; i < config->argc; i += taken) {
        const struct option_spec *spec = option_at(config->argv, config->argc, i, &taken);
        bool own = !spec || !of_run(spec->name); /* no option: a disk by its name alone */
        for (int j = i; own && j < i + taken; j++) {
            if (json_array_append_new(options, json_string(config->argv[j])) < 0) {
                json_decref(options); /* text that is no UTF-8 */
                return NULL;
            }
        }
    }
    json_t *json = json_pack("{s:s, s:s, s:I, s:s, s:o, s:o}", "fonda", FONDA_VERSION, "cwd",
                             getcwd(cwd, sizeof(cwd)) ? cwd : "/", "tsc_hz", (json_int_t)tsc_hz, "engine",
                             engine, "options", options, "disks", describe_disks(devices));
    auto_free char *changes = devices_changes_json(devices);
    if (json && changes) {
        json_object_set_new(json, "devices", json_loads(changes, 0, NULL));
    }
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    return text;
}

/* Paths of this run are relative to this run's directory. */
static char *run_value(const struct option_spec *spec, const char *value)
{
    char path[PATH_MAX], cwd[PATH_MAX];
    bool is_path =
        strcmp(spec->name, "control") == 0 ||
        (strcmp(spec->name, "serial") == 0 && strcmp(value, "stdio") != 0 && strcmp(value, "none") != 0);
    if (is_path && value[0] != '/' && value[0] && getcwd(cwd, sizeof(cwd)) &&
        snprintf(path, sizeof(path), "%s/%s", cwd, value) < PATH_MAX) {
        return strdup(path);
    }
    return strdup(value);
}

static int add_run_options(const struct vm_config *run, char **argv, int *argc, struct err *err)
{
    for (int i = 0, taken; i < run->argc; i += taken) {
        const struct option_spec *spec = option_at(run->argv, run->argc, i, &taken);
        if (!spec || !of_run(spec->name)) {
            return err_set(err, -EINVAL, "--restore: the machine is as it was saved, so '%s' can't be given",
                           run->argv[i]);
        }
        if (*argc + 2 > (int)OPTIONS_MAX) {
            return err_set(err, -EINVAL, "too many options");
        }
        const char *equals = strchr(run->argv[i], '=');
        const char *value = spec->kind == OPTION_FLAG ? NULL : equals ? equals + 1 : run->argv[i + taken - 1];
        char name[64];
        snprintf(name, sizeof(name), "--%s", spec->name);
        argv[(*argc)++] = strdup(name);
        if (value) {
            argv[(*argc)++] = run_value(spec, value);
        }
    }
    return 0;
}

static int add_saved_options(const json_t *options, char **argv, int *argc, struct err *err)
{
    size_t count = json_array_size(options);
    if (!json_is_array(options) || count + 3 > OPTIONS_MAX) {
        return err_set(err, -EBADMSG, "its configuration has no options");
    }
    for (size_t i = 0; i < count; i++) {
        const char *text = json_string_value(json_array_get(options, i));
        if (!text) {
            return err_set(err, -EBADMSG, "its configuration has an option that is no text");
        }
        argv[(*argc)++] = strdup(text);
    }
    for (int i = 0, taken; i < *argc; i += taken) {
        const struct option_spec *spec = option_at(argv, *argc, i, &taken);
        if (spec ? of_run(spec->name) : argv[i][0] == '-') {
            return err_set(err, -EBADMSG, "its configuration has an option that can't be: '%.64s'", argv[i]);
        }
    }
    return 0;
}

static bool tsc_fits(uint64_t saved_hz, uint64_t hz)
{
    uint64_t off = saved_hz > hz ? saved_hz - hz : hz - saved_hz;
    return saved_hz >= 1000000 && off <= hz / 1000000 * TSC_TOLERANCE_PPM;
}

/* The guest waits for this: a rough look first. */
static int check_tsc(uint64_t saved_hz, struct err *err)
{
    if (tsc_fits(saved_hz, tsc_host_hz_roughly())) {
        return 0;
    }
    uint64_t hz = tsc_host_hz();
    if (!tsc_fits(saved_hz, hz)) {
        return err_set(err, -EINVAL,
                       "it was saved where the TSC counts at %llu kHz, and here it is %llu kHz: the "
                       "guest's clock would run wrong",
                       (unsigned long long)saved_hz / 1000, (unsigned long long)hz / 1000);
    }
    return 0;
}

int saved_options_merge(const char *json, const struct vm_config *run, struct vm_config *ret_config,
                        struct err *err)
{
    char **argv = calloc(OPTIONS_MAX + 1, sizeof(*argv)); /* lives on, as the configuration points into it */
    int argc = 0;
    json_error_t where;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &where);
    const char *cwd = json_string_value(json_object_get(root, "cwd"));
    const char *engine = json_string_value(json_object_get(root, "engine"));
    uint64_t tsc_hz = (uint64_t)json_integer_value(json_object_get(root, "tsc_hz"));
    int rc = argv && cwd && engine ? 0 : err_set(err, -EBADMSG, "its configuration is incomplete");
    if (rc == 0) {
        rc = add_saved_options(json_object_get(root, "options"), argv, &argc, err);
    }
    if (rc == 0) {
        argv[argc++] = strdup("--engine");
        argv[argc++] = strdup(engine);
        rc = add_run_options(run, argv, &argc, err);
    }
    if (rc == 0) {
        rc = vm_config_parse(argc, argv, 0, ret_config, err);
    }
    if (rc == 0) {
        rc = check_tsc(tsc_hz, err);
    }
    if (rc == 0 && chdir(cwd) < 0) {
        rc = err_sys(err, -errno, "cannot go to '%.256s', where it was started first", cwd);
    }
    ret_config->tsc_hz = tsc_hz;
    json_t *devices = json_object_get(root, "devices");
    ret_config->device_changes = json_is_object(devices) ? json_dumps(devices, JSON_COMPACT) : NULL;
    json_decref(root);
    return rc;
}
