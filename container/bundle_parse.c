/* Options as people write them: volumes, devices, limits, users. */
#include "base/options.h"
#include "base/util.h"
#include "container/bundle.h"
#include "container/json.h"
#include "container/paths.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define CPU_PERIOD_US 100000

int bundle_bytes(const char *what, const char *text, int64_t *ret, struct err *err)
{
    struct err why = {.code = 0};
    uint64_t bytes = 0;
    bool plain = *text && text[strspn(text, "0123456789")] == '\0';
    int rc = plain ? parse_uint(text, &bytes, &why) : parse_size(text, &bytes, &why);
    if (rc < 0 || bytes == 0 || bytes > INT64_MAX) {
        return err_set(err, -EINVAL, "%s '%s' is not a size such as 512m or 1.5g", what, text);
    }
    *ret = (int64_t)bytes;
    return 0;
}

/* "1.5" to microseconds of each period. */
static int parse_cpus(const char *text, int64_t *ret_quota_us, struct err *err)
{
    char *end;
    double cpus = strtod(text, &end);
    if (!isdigit((unsigned char)*text) || *end || !(cpus >= 0.01 && cpus <= 10000)) {
        return err_set(err, -EINVAL, "--cpus '%s' is not a number of CPUs such as 1.5", text);
    }
    *ret_quota_us = (int64_t)(cpus * CPU_PERIOD_US + 0.5);
    return 0;
}

json_t *bundle_resources(const struct bundle_options *o, json_t *device_rules, struct err *err)
{
    json_t *r = json_pack("{s:o}", "devices", device_rules);
    json_t *memory = json_object();
    json_t *cpu = json_object();
    int64_t value = 0;
    int rc = 0;
    if (o->memory && (rc = bundle_bytes("--memory", o->memory, &value, err)) == 0) {
        json_object_set_new(memory, "limit", json_integer(value));
    }
    if (rc == 0 && o->memory_swap && (rc = bundle_bytes("--memory-swap", o->memory_swap, &value, err)) == 0) {
        json_object_set_new(memory, "swap", json_integer(value));
    }
    if (rc == 0 && o->cpus && (rc = parse_cpus(o->cpus, &value, err)) == 0) {
        json_object_set_new(cpu, "quota", json_integer(value));
        json_object_set_new(cpu, "period", json_integer(CPU_PERIOD_US));
    }
    if (o->cpuset) {
        json_object_set_new(cpu, "cpus", json_string(o->cpuset));
    }
    if (json_object_size(memory)) {
        json_object_set(r, "memory", memory);
    }
    if (json_object_size(cpu)) {
        json_object_set(r, "cpu", cpu);
    }
    if (o->pids_limit) {
        json_object_set_new(r, "pids", json_pack("{s:I}", "limit", (json_int_t)o->pids_limit));
    }
    json_decref(memory);
    json_decref(cpu);
    if (rc < 0) {
        json_decref(r);
        return NULL;
    }
    return r;
}

/* --- volumes --- */

static bool is_name(const char *text)
{
    return isalnum((unsigned char)*text) &&
           text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")] == '\0';
}

static int one_volume(const struct bundle_options *o, const char *text, json_t *mounts, struct err *err)
{
    char source[PATH_MAX];
    char path[PATH_MAX];
    const char *colon = strchr(text, ':');
    const char *target = colon ? colon + 1 : "";
    size_t target_size = strcspn(target, ":");
    const char *options = target + target_size + (target[target_size] == ':');
    bool read_only = strcmp(options, "ro") == 0;
    if (!colon || target[0] != '/' || target_size < 2 ||
        (*options && !read_only && strcmp(options, "rw") != 0) || (size_t)(colon - text) >= sizeof(source)) {
        return err_set(err, -EINVAL, "volume '%s' is not of the form SOURCE:/TARGET[:ro]", text);
    }
    snprintf(source, sizeof(source), "%.*s", (int)(colon - text), text);
    if (source[0] == '/' || source[0] == '.') {
        if (!realpath(source, path)) {
            return err_sys(err, -errno, "volume '%s'", text);
        }
    } else if (!is_name(source)) {
        return err_set(err, -EINVAL,
                       "volume '%s': '%s' is neither a path (with / or . in front) nor a volume's name", text,
                       source);
    } else if (!o->volumes_dir) {
        return err_set(err, -EINVAL,
                       "volume '%s': there are no named volumes here; give a path with / or . in front",
                       text);
    } else {
        if ((size_t)snprintf(path, sizeof(path), "%s/%s", o->volumes_dir, source) >= sizeof(path)) {
            return err_sys(err, -ENAMETOOLONG, "volume '%s'", text);
        }
        if (mkdir(path, 0755) < 0 && errno != EEXIST) {
            return err_sys(err, -errno, "cannot make volume '%s'", path);
        }
    }
    json_array_append_new(mounts, json_pack("{s:s%, s:s, s:s, s:[s, s, s, s]}", "destination", target,
                                            target_size, "type", "bind", "source", path, "options", "rbind",
                                            "rprivate", "nodev", read_only ? "rro" : "rw"));
    return 0;
}

static int one_tmpfs(const char *text, json_t *mounts, struct err *err)
{
    size_t size = strcspn(text, ":");
    if (text[0] != '/' || size < 2) {
        return err_set(err, -EINVAL, "tmpfs '%s' is not of the form /TARGET[:OPTIONS]", text);
    }
    json_t *options = json_pack("[s, s, s]", "nosuid", "nodev", "tmpcopyup");
    for (const char *p = text + size; *p;) {
        size_t n = strcspn(++p, ",");
        if (n) {
            json_array_append_new(options, json_stringn(p, n));
        }
        p += n;
    }
    json_array_append_new(mounts, json_pack("{s:s%, s:s, s:s, s:o}", "destination", text, size, "type",
                                            "tmpfs", "source", "tmpfs", "options", options));
    return 0;
}

int bundle_volumes(const struct bundle_options *o, json_t *mounts, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && o->volumes && o->volumes[i]; i++) {
        rc = i == BUNDLE_LIST_MAX ? err_set(err, -E2BIG, "too many volumes")
                                  : one_volume(o, o->volumes[i], mounts, err);
    }
    for (size_t i = 0; rc == 0 && o->tmpfs && o->tmpfs[i]; i++) {
        rc = i == BUNDLE_LIST_MAX ? err_set(err, -E2BIG, "too many tmpfs mounts")
                                  : one_tmpfs(o->tmpfs[i], mounts, err);
    }
    return rc;
}

/* --- devices --- */

static int one_device(const struct bundle_options *o, const char *text, json_t *devices, json_t *rules,
                      json_t *mounts, struct err *err)
{
    char source[PATH_MAX] = "";
    char target[PATH_MAX] = "";
    char access[8] = "rwm";
    int used = 0;
    struct stat st;
    /* Two paths, or a path and what may be done. */
    if (sscanf(text, "%4000[^:]%n", source, &used) != 1 ||
        (text[used] == ':' && text[used + 1] == '/' && sscanf(text + used, ":%4000[^:]", target) != 1)) {
        return err_set(err, -EINVAL, "device '%s' is not of the form SOURCE[:TARGET][:rwm]", text);
    }
    used += *target ? (int)strlen(target) + 1 : 0;
    if (!*target) {
        snprintf(target, sizeof(target), "%s", source);
    }
    if (text[used] == ':') {
        snprintf(access, sizeof(access), "%s", text + used + 1);
    }
    if (source[0] != '/' || !*access || strlen(access) > 3 || access[strspn(access, "rwm")]) {
        return err_set(err, -EINVAL, "device '%s' is not of the form SOURCE[:TARGET][:rwm]", text);
    }
    if (stat(source, &st) < 0) {
        return err_sys(err, -errno, "device '%s'", source);
    }
    if (!S_ISCHR(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return err_set(err, -EINVAL, "'%s' is not a device", source);
    }
    const char *type = S_ISCHR(st.st_mode) ? "c" : "b";
    if (o->rootless || o->bind_devices) { /* nodes can't be made there */
        json_array_append_new(mounts, json_pack("{s:s, s:s, s:s, s:[s]}", "destination", target, "type",
                                                "bind", "source", source, "options", "bind"));
        return 0;
    }
    int number[2] = {(int)major(st.st_rdev), (int)minor(st.st_rdev)};
    json_array_append_new(devices,
                          json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i}", "path", target, "type", type,
                                    "major", number[0], "minor", number[1], "fileMode",
                                    (int)(st.st_mode & 07777), "uid", (int)st.st_uid, "gid", (int)st.st_gid));
    json_array_append_new(rules, json_pack("{s:b, s:s, s:i, s:i, s:s}", "allow", 1, "type", type, "major",
                                           number[0], "minor", number[1], "access", access));
    return 0;
}

int bundle_devices(const struct bundle_options *o, json_t *devices, json_t *rules, json_t *mounts,
                   struct err *err)
{
    int rc = 0;
    json_array_append_new(rules, json_pack("{s:b, s:s}", "allow", o->privileged, "access", "rwm"));
    for (size_t i = 0; rc == 0 && o->devices && o->devices[i]; i++) {
        rc = i == BUNDLE_LIST_MAX ? err_set(err, -E2BIG, "too many devices")
                                  : one_device(o, o->devices[i], devices, rules, mounts, err);
    }
    return rc;
}

json_t *bundle_rlimits(const struct bundle_options *o, struct err *err)
{
    json_t *list = json_array();
    for (size_t i = 0; o->ulimits && o->ulimits[i]; i++) {
        const char *text = o->ulimits[i];
        char name[32];
        char type[48] = "RLIMIT_";
        long long soft = 0;
        long long hard = 0;
        int used = 0;
        int n = sscanf(text, "%20[a-z]=%lld%n:%lld%n", name, &soft, &used, &hard, &used);
        if (n < 2 || text[used] || soft < -1 || hard < -1 || i == BUNDLE_LIST_MAX) {
            err_set(err, -EINVAL, "ulimit '%s' is not of the form nofile=SOFT[:HARD]", text);
            json_decref(list);
            return NULL;
        }
        for (size_t k = 0; name[k]; k++) {
            type[7 + k] = (char)toupper((unsigned char)name[k]);
        }
        json_array_append_new(list, json_pack("{s:s, s:I, s:I}", "type", type, "soft", (json_int_t)soft,
                                              "hard", (json_int_t)(n == 3 ? hard : soft)));
    }
    return list;
}

/* --- users --- */

/* A file of the container's; "" when there is none. */
static char *read_inside(const char *rootfs, const char *path)
{
    struct fd_path name;
    char *text = NULL;
    size_t size = 0;
    struct stat st;
    auto_close int root = open(rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC);
    auto_close int fd = root < 0 ? -1 : path_open(root, path, 0);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
        file_read_all(AT_FDCWD, fd_path(fd, &name), &text, &size, NULL) == 0) {
        return text;
    }
    return calloc(1, 1);
}

static bool number(const char *text, uint32_t *ret)
{
    uint64_t value;
    if (!*text || parse_uint(text, &value, NULL) < 0 || value > UINT32_MAX - 1) {
        return false;
    }
    *ret = (uint32_t)value;
    return true;
}

/* Splits a line of passwd(5) or group(5) in place; missing fields are "". */
static void split(char *line, char *fields[7])
{
    static char empty[1];
    for (int i = 0; i < 7; i++) {
        fields[i] = line ? strsep(&line, ":") : empty;
    }
}

static bool in_list(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',') {
        if (strncmp(p, name, n) == 0 && (p[n] == ',' || !p[n])) {
            return true;
        }
    }
    return false;
}

int bundle_find_user(const char *rootfs, const char *text, struct arena *arena, struct bundle_user *ret,
                     struct err *err)
{
    struct bundle_user u = {.uid = 0};
    char name[256];
    const char *colon = strchr(text ? text : "", ':');
    const char *group = colon ? colon + 1 : "";
    size_t size = colon ? (size_t)(colon - text) : strlen(text ? text : "");
    if (size >= sizeof(name)) {
        return err_set(err, -EINVAL, "user '%.64s...' is too long", text);
    }
    snprintf(name, sizeof(name), "%.*s", (int)size, text ? text : "");
    bool by_id = number(name, &u.uid) || !*name;
    bool known = false;
    bool has_group = *group && number(group, &u.gid);
    bool group_given = *group;
    auto_free char *passwd = read_inside(rootfs, "/etc/passwd");
    auto_free char *groups = read_inside(rootfs, "/etc/group");
    char *save = NULL;
    for (char *line = passwd ? strtok_r(passwd, "\n", &save) : NULL; line && !known;
         line = strtok_r(NULL, "\n", &save)) {
        char *f[7];
        uint32_t uid;
        uint32_t gid;
        split(line, f);
        if (!number(f[2], &uid) || !number(f[3], &gid) || (by_id ? uid != u.uid : strcmp(f[0], name) != 0)) {
            continue;
        }
        known = true;
        u.uid = uid;
        u.gid = group_given ? u.gid : gid;
        u.home = f[5][0] == '/' ? arena_strdup(arena, f[5]) : NULL;
        snprintf(name, sizeof(name), "%s", f[0]);
    }
    if (!known && !by_id) {
        return err_set(err, -EINVAL, "user '%s' is not in the container's /etc/passwd; give a number", name);
    }
    u.groups = arena_array(arena, BUNDLE_LIST_MAX, sizeof(*u.groups));
    for (char *line = groups ? strtok_r(groups, "\n", &save) : NULL; line;
         line = strtok_r(NULL, "\n", &save)) {
        char *f[7];
        uint32_t gid;
        split(line, f);
        if (!number(f[2], &gid)) {
            continue;
        }
        if (group_given && !has_group && strcmp(f[0], group) == 0) {
            u.gid = gid;
            has_group = true;
        }
        /* A group that is asked for replaces the others. */
        if (known && !group_given && in_list(f[3], name) && gid != u.gid && u.group_count < BUNDLE_LIST_MAX) {
            u.groups[u.group_count++] = gid;
        }
    }
    if (group_given && !has_group) {
        return err_set(err, -EINVAL, "group '%.64s' is not in the container's /etc/group; give a number",
                       group);
    }
    *ret = u;
    return 0;
}

/* The caller's range in /etc/subuid or /etc/subgid; false: none. */
static bool sub_range(const char *file, const struct passwd *user, uint32_t *ret_first, uint32_t *ret_count)
{
    char line[512];
    bool found = false;
    FILE *f = fopen(file, "re");
    while (f && !found && fgets(line, sizeof(line), f)) {
        char name[256];
        unsigned first;
        unsigned count;
        uint32_t uid;
        if (sscanf(line, "%255[^:]:%u:%u", name, &first, &count) == 3 && count > 0 &&
            count <= UINT32_MAX - first &&
            (strcmp(name, user->pw_name) == 0 || (number(name, &uid) && uid == user->pw_uid))) {
            *ret_first = first;
            *ret_count = count;
            found = true;
        }
    }
    if (f) {
        fclose(f);
    }
    return found;
}

int bundle_own_maps(json_t *linux_, struct err *err)
{
    static const char *const keys[] = {"uidMappings", "gidMappings"};
    static const char *const files[] = {"/etc/subuid", "/etc/subgid"};
    const struct passwd *user = getpwuid(geteuid());
    uint32_t first[2];
    uint32_t count[2];
    /* Both or neither: half a range would leave files with owners that have no group. */
    bool ranges = user && sub_range(files[0], user, &first[0], &count[0]) &&
                  sub_range(files[1], user, &first[1], &count[1]);
    for (size_t i = 0; i < 2; i++) {
        json_t *maps = json_array();
        json_array_append_new(maps, json_pack("{s:i, s:I, s:i}", "containerID", 0, "hostID",
                                              (json_int_t)(i ? getegid() : geteuid()), "size", 1));
        if (ranges) {
            json_array_append_new(maps, json_pack("{s:i, s:I, s:I}", "containerID", 1, "hostID",
                                                  (json_int_t)first[i], "size", (json_int_t)count[i]));
        }
        if (json_object_set_new(linux_, keys[i], maps) < 0) {
            return err_set(err, -ENOMEM, "out of memory");
        }
    }
    return 0;
}
