/* From a bundle's config.json (container/bundle.h writes it) to requests. What only a container has,
 * namespaces and the like, is left out: core/ refuses the options for it. */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

#define FILE_TEXT_MAX 65536

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static void add_list(struct wire_texts *request, const char *name, const json_t *list)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        wire_add(request, name, json_string_value(item) ? json_string_value(item) : "");
    }
}

static void add_ids(const json_t *process, struct wire_texts *request)
{
    const json_t *user = json_object_get(process, "user");
    size_t i;
    json_t *item;
    wire_add_number(request, "uid", (uint64_t)json_integer_value(json_object_get(user, "uid")));
    wire_add_number(request, "gid", (uint64_t)json_integer_value(json_object_get(user, "gid")));
    json_array_foreach(json_object_get(user, "additionalGids"), i, item)
    {
        wire_add_number(request, "group", (uint64_t)json_integer_value(item));
    }
}

static void add_rlimits(const json_t *process, struct wire_texts *request)
{
    static const struct {
        const char *name;
        int number;
    } kinds[] = {
        {"RLIMIT_AS", RLIMIT_AS},           {"RLIMIT_CORE", RLIMIT_CORE},   {"RLIMIT_CPU", RLIMIT_CPU},
        {"RLIMIT_DATA", RLIMIT_DATA},       {"RLIMIT_FSIZE", RLIMIT_FSIZE}, {"RLIMIT_LOCKS", RLIMIT_LOCKS},
        {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK}, {"RLIMIT_NICE", RLIMIT_NICE},   {"RLIMIT_NOFILE", RLIMIT_NOFILE},
        {"RLIMIT_NPROC", RLIMIT_NPROC},     {"RLIMIT_STACK", RLIMIT_STACK}};
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(process, "rlimits"), i, item)
    {
        for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
            char text[96];
            if (strcmp(text_of(item, "type"), kinds[k].name) == 0) {
                snprintf(text, sizeof(text), "%d %llu %llu", kinds[k].number,
                         (unsigned long long)json_integer_value(json_object_get(item, "soft")),
                         (unsigned long long)json_integer_value(json_object_get(item, "hard")));
                wire_add(request, "rlimit", text);
            }
        }
    }
}

static void add_pair(struct wire_texts *request, const char *name, const char *first, const char *rest)
{
    char *text = NULL;
    if (asprintf(&text, "%s %s", first, rest) < 0) {
        request->failed = true;
        return;
    }
    wire_add(request, name, text);
    free(text);
}

/* ---- mounts ---- */

static bool has_option(const json_t *mount, const char *option)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(mount, "options"), i, item)
    {
        if (json_is_string(item) && strcmp(json_string_value(item), option) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_read_only(const json_t *mount)
{
    return has_option(mount, "ro") || has_option(mount, "rro");
}

/* A file of the bundle's own, such as /etc/hosts: the machine gets a copy. */
static bool is_own_file(const json_t *mount)
{
    static const char *const names[] = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"};
    const char *target = text_of(mount, "destination"), *source = text_of(mount, "source");
    const char *base = strrchr(source, '/');
    for (size_t i = 0; base && i < ARRAY_SIZE(names); i++) {
        if (strcmp(target, names[i]) == 0 && strcmp(base, strrchr(names[i], '/')) == 0) {
            return true;
        }
    }
    return false;
}

static int add_file(const json_t *mount, struct wire_texts *request, struct err *err)
{
    char text[FILE_TEXT_MAX];
    auto_close int fd = open(text_of(mount, "source"), O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n < 0) {
        return err_sys(err, -errno, "cannot read '%s'", text_of(mount, "source"));
    }
    text[n] = '\0';
    add_pair(request, "file", text_of(mount, "destination"), text);
    return 0;
}

static bool is_share(const json_t *mount)
{
    return strcmp(text_of(mount, "type"), "bind") == 0 &&
           strncmp(text_of(mount, "destination"), "/sys", 4) != 0 && !is_own_file(mount);
}

static void add_share(const json_t *mount, unsigned number, struct wire_texts *request)
{
    char tag[32];
    snprintf(tag, sizeof(tag), "fonda%u %s", number, is_read_only(mount) ? "ro" : "rw");
    add_pair(request, "share", tag, text_of(mount, "destination"));
}

static void add_tmpfs(const json_t *mount, struct wire_texts *request)
{
    char options[512] = "";
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(mount, "options"), i, item)
    {
        size_t len = strlen(options);
        snprintf(options + len, sizeof(options) - len, "%s%s", len ? "," : "",
                 json_string_value(item) ? json_string_value(item) : "");
    }
    add_pair(request, "tmpfs", options[0] ? options : "rw", text_of(mount, "destination"));
}

static int add_mounts(json_t *config, struct wire_texts *request, struct err *err)
{
    size_t i;
    json_t *mount;
    unsigned shares = 0;
    int rc = 0;
    json_array_foreach(json_object_get(config, "mounts"), i, mount)
    {
        const char *target = text_of(mount, "destination");
        if (strcmp(text_of(mount, "type"), "tmpfs") == 0 && strcmp(target, "/dev") != 0) {
            add_tmpfs(mount, request);
        } else if (is_share(mount)) {
            add_share(mount, shares++, request);
        } else if (is_own_file(mount) && (rc = add_file(mount, request, err)) < 0) {
            return rc;
        }
    }
    return 0;
}

int request_shares(json_t *config, char ***ret_shares, struct err *err)
{
    json_t *mounts = json_object_get(config, "mounts"), *mount;
    char **list = calloc(json_array_size(mounts) + 1, sizeof(*list));
    unsigned count = 0;
    size_t i;
    if (!list) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    *ret_shares = list;
    json_array_foreach(mounts, i, mount)
    {
        const char *source = text_of(mount, "source");
        struct stat st;
        if (!is_share(mount)) {
            continue;
        }
        if (stat(source, &st) < 0 || !S_ISDIR(st.st_mode)) {
            return err_set(err, -ENOTDIR,
                           "cannot share '%s' with a machine: it is not a folder (a container can "
                           "have single files)",
                           source);
        }
        if (strchr(source, ':') ||
            asprintf(&list[count], "%s:fonda%u%s", source, count, is_read_only(mount) ? ":ro" : "") < 0) {
            return err_set(err, -EINVAL, "cannot share '%s' with a machine: its path has a colon", source);
        }
        count++;
    }
    return 0;
}

/* ---- requests ---- */

int request_first(json_t *config, struct wire_texts *request, struct err *err)
{
    json_t *process = json_object_get(config, "process"), *value;
    const char *name;
    wire_add(request, "verb", "first");
    wire_add(request, "hostname", text_of(config, "hostname"));
    if (json_is_true(json_object_get(json_object_get(config, "root"), "readonly"))) {
        wire_add(request, "read_only", "1");
    }
    json_object_foreach(json_object_get(json_object_get(config, "linux"), "sysctl"), name, value)
    {
        add_pair(request, "sysctl", name, json_string_value(value) ? json_string_value(value) : "");
    }
    int rc = add_mounts(config, request, err);
    add_list(request, "arg", json_object_get(process, "args"));
    add_list(request, "env", json_object_get(process, "env"));
    wire_add(request, "cwd", text_of(process, "cwd"));
    add_ids(process, request);
    add_rlimits(process, request);
    if (json_is_true(json_object_get(process, "terminal"))) {
        wire_add(request, "terminal", "1");
    }
    return rc < 0            ? rc
           : request->failed ? err_set(err, -E2BIG, "the command and its variables are too long")
                             : 0;
}

int request_exec(json_t *config, const struct options *o, struct wire_texts *request, struct err *err)
{
    json_t *process = json_object_get(config, "process");
    wire_add(request, "verb", "exec");
    for (int i = 0; i < o->rest_count; i++) {
        wire_add(request, "arg", o->rest[i]);
    }
    add_list(request, "env", json_object_get(process, "env"));
    for (unsigned i = 0; i < o->env_count; i++) {
        wire_add(request, "more_env", o->env[i]);
    }
    wire_add(request, "cwd", o->cwd ? o->cwd : text_of(process, "cwd"));
    if (o->user) {
        wire_add(request, "user", o->user);
    } else {
        add_ids(process, request);
    }
    add_rlimits(process, request);
    unsigned rows, columns;
    if (o->tty) {
        wire_add(request, "terminal", "1");
    }
    if (o->size && sscanf(o->size, "%ux%u", &rows, &columns) == 2) {
        wire_add_number(request, "rows", rows);
        wire_add_number(request, "columns", columns);
    }
    return request->failed ? err_set(err, -E2BIG, "the command and its variables are too long") : 0;
}
