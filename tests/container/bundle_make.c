/* Makes a bundle from options, for t_bundle.py: bundle_make DIR ROOTFS IMAGE.json OPTIONS.json, whose members
 * are those of struct bundle_options. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "container/bundle.h"

static const char *const *list(json_t *options, const char *key)
{
    json_t *a = json_object_get(options, key);
    const char **v = a ? calloc(json_array_size(a) + 1, sizeof(*v)) : NULL;
    for (size_t i = 0; v && i < json_array_size(a); i++) {
        v[i] = json_string_value(json_array_get(a, i));
    }
    return v;
}

int main(int argc, char **argv)
{
    json_t *image = argc == 5 ? json_load_file(argv[3], 0, NULL) : NULL;
    json_t *j = image ? json_load_file(argv[4], 0, NULL) : NULL;
    struct err err = {.code = 0};
    if (!j) {
        return 2;
    }
    const struct {
        const char *name;
        enum bundle_network value;
    } networks[] = {{"host", BUNDLE_NETWORK_HOST}, {"user", BUNDLE_NETWORK_USER}};
    struct bundle_options o = {.dir = argv[1], .rootfs = argv[2], .image = image};
    const struct {
        const char *key;
        const char **member;
    } texts[] = {{"id", &o.id},         {"entrypoint", &o.entrypoint},   {"volumes_dir", &o.volumes_dir},
                 {"user", &o.user},     {"workdir", &o.workdir},         {"hostname", &o.hostname},
                 {"memory", &o.memory}, {"memory_swap", &o.memory_swap}, {"cpus", &o.cpus},
                 {"cpuset", &o.cpuset}, {"shm_size", &o.shm_size},       {"init", &o.init}};
    const struct {
        const char *key;
        const char *const **member;
    } lists[] = {{"command", &o.command},   {"env", &o.env},           {"volumes", &o.volumes},
                 {"tmpfs", &o.tmpfs},       {"devices", &o.devices},   {"cap_add", &o.cap_add},
                 {"cap_drop", &o.cap_drop}, {"security", &o.security}, {"ulimits", &o.ulimits},
                 {"sysctls", &o.sysctls}};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        *texts[i].member = json_string_value(json_object_get(j, texts[i].key));
    }
    for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
        *lists[i].member = list(j, lists[i].key);
    }
    const char *network = json_string_value(json_object_get(j, "network"));
    for (size_t i = 0; i < ARRAY_SIZE(networks); i++) {
        o.network = network && strcmp(network, networks[i].name) == 0 ? networks[i].value : o.network;
    }
    o.pids_limit = (uint64_t)json_integer_value(json_object_get(j, "pids_limit"));
    o.terminal = json_is_true(json_object_get(j, "terminal"));
    o.read_only = json_is_true(json_object_get(j, "read_only"));
    o.privileged = json_is_true(json_object_get(j, "privileged"));
    o.rootless = json_is_true(json_object_get(j, "rootless"));
    if (bundle_write(&o, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    return 0;
}
