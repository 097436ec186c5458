/* See bundle.h: config.json from options and image, and the files beside it. */
#include "container/bundle.h"

#include "base/util.h"
#include "container/caps.h"
#include "container/config.h"
#include "container/json.h"
#include "container/paths.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define INIT_PATH    "/run/fonda-init"
#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define ALL_CAPS     (BIT64(CAPS_COUNT) - 1)
/* What programs that change users, own files and serve low ports need; nothing that reaches the host. */
#define DEFAULT_CAPS                                                                                         \
    (BIT64(CAP_CHOWN) | BIT64(CAP_DAC_OVERRIDE) | BIT64(CAP_FOWNER) | BIT64(CAP_FSETID) | BIT64(CAP_KILL) |  \
     BIT64(CAP_NET_BIND_SERVICE) | BIT64(CAP_SETFCAP) | BIT64(CAP_SETGID) | BIT64(CAP_SETPCAP) |             \
     BIT64(CAP_SETUID) | BIT64(CAP_SYS_CHROOT))

struct builder {
    const struct bundle_options *o;
    struct arena arena;
    struct bundle_user user;
    uint64_t caps;
    uint64_t added; /* by name, which a user other than root gets too */
    bool no_new_privileges, unmasked, no_seccomp;
    const char *seccomp_file, *apparmor, *label;
};

/* --- the process --- */

static void append_all(json_t *list, json_t *more)
{
    size_t i;
    json_t *value;
    json_array_foreach(more, i, value)
    {
        if (json_is_string(value)) {
            json_array_append(list, value);
        }
    }
}

static void append_strings(json_t *list, const char *const *strings)
{
    for (size_t i = 0; strings && strings[i] && i < BUNDLE_LIST_MAX; i++) {
        json_array_append_new(list, json_string(strings[i]));
    }
}

/* image-spec config.md: Entrypoint, then Cmd; a new entrypoint discards the image's Cmd. */
static json_t *make_args(const struct builder *b, struct err *err)
{
    const struct bundle_options *o = b->o;
    json_t *args = json_array();
    if (o->init) {
        json_array_append_new(args, json_string(INIT_PATH));
        json_array_append_new(args, json_string("--"));
    }
    size_t before = json_array_size(args);
    if (o->entrypoint && *o->entrypoint) {
        json_array_append_new(args, json_string(o->entrypoint));
    } else if (!o->entrypoint) {
        append_all(args, json_object_get(o->image, "Entrypoint"));
    }
    if (o->command) {
        append_strings(args, o->command);
    } else if (!o->entrypoint) {
        append_all(args, json_object_get(o->image, "Cmd"));
    }
    if (json_array_size(args) == before && o->system) {
        json_array_append_new(args, json_string("/sbin/init"));
    }
    if (json_array_size(args) == before) {
        json_decref(args);
        err_set(err, -EINVAL, "the image names no command; give one");
        return NULL;
    }
    return args;
}

/* A variable replaces one of the same name that is there. */
static void set_env(json_t *env, const char *text)
{
    size_t n = strcspn(text, "=");
    for (size_t i = 0; i < json_array_size(env); i++) {
        const char *old = json_string_value(json_array_get(env, i));
        if (strncmp(old, text, n) == 0 && old[n] == '=') {
            json_array_set_new(env, i, json_string(text));
            return;
        }
    }
    json_array_append_new(env, json_string(text));
}

static json_t *make_env(struct builder *b)
{
    const struct bundle_options *o = b->o;
    json_t *env = json_array();
    size_t i;
    json_t *value;
    set_env(env, DEFAULT_PATH);
    set_env(env, arena_printf(&b->arena, "HOSTNAME=%s",
                              o->hostname ? o->hostname
                                          : arena_printf(&b->arena, "%.12s", o->id ? o->id : "fonda")));
    if (o->terminal) {
        set_env(env, "TERM=xterm");
    }
    if (o->system) { /* systemd(1) and others look for it */
        set_env(env, "container=fonda");
    }
    set_env(env, arena_printf(&b->arena, "HOME=%s", b->user.home ? b->user.home : "/"));
    json_array_foreach(json_object_get(o->image, "Env"), i, value)
    {
        if (json_is_string(value) && strchr(json_string_value(value), '=')) {
            set_env(env, json_string_value(value));
        }
    }
    for (i = 0; o->env && o->env[i] && i < BUNDLE_LIST_MAX; i++) {
        const char *text = o->env[i];
        const char *own = strchr(text, '=') ? NULL : getenv(text);
        if (strchr(text, '=') || own) {
            set_env(env, own ? arena_printf(&b->arena, "%s=%s", text, own) : text);
        }
    }
    return env;
}

static bool has_all(const char *const *names)
{
    while (names && *names && strcasecmp(*names, "ALL") != 0) {
        names++;
    }
    return names && *names;
}

static int change_caps(struct builder *b, const char *const *names, bool add, struct err *err)
{
    for (size_t i = 0; names && names[i]; i++) {
        if (strcasecmp(names[i], "ALL") == 0) {
            continue;
        }
        int cap = caps_number(names[i]);
        if (cap < 0) {
            return err_set(err, -EINVAL, "--cap-%s: '%s' is not a capability", add ? "add" : "drop",
                           names[i]);
        }
        b->caps = add ? b->caps | BIT64(cap) : b->caps & ~BIT64(cap);
        b->added = add ? b->added | BIT64(cap) : b->added & ~BIT64(cap);
    }
    return 0;
}

/* "ALL" first, whichever list it is in; then single ones, as people expect of --cap-drop ALL --cap-add CHOWN.
 */
static int choose_caps(struct builder *b, struct err *err)
{
    const struct bundle_options *o = b->o;
    bool adds_all = has_all(o->cap_add);
    uint64_t standard = o->system ? DEFAULT_CAPS | bundle_system_caps : DEFAULT_CAPS;
    b->caps = o->privileged || adds_all ? ALL_CAPS : has_all(o->cap_drop) ? 0 : standard;
    b->added = adds_all ? ALL_CAPS : 0;
    int rc = change_caps(b, o->cap_drop, false, err);
    return rc < 0 ? rc : change_caps(b, o->cap_add, true, err);
}

static json_t *cap_names(uint64_t set)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < CAPS_COUNT; i++) {
        if (set & BIT64(i)) {
            json_array_append_new(list, json_string(caps_names[i]));
        }
    }
    return list;
}

static int read_security(struct builder *b, struct err *err)
{
    for (size_t i = 0; b->o->security && b->o->security[i]; i++) {
        const char *text = b->o->security[i];
        if (strcmp(text, "no-new-privileges") == 0 || strcmp(text, "no-new-privileges=true") == 0) {
            b->no_new_privileges = true;
        } else if (strcmp(text, "seccomp=unconfined") == 0) {
            b->no_seccomp = true;
        } else if (strncmp(text, "seccomp=", 8) == 0) {
            b->seccomp_file = text + 8;
        } else if (strncmp(text, "apparmor=", 9) == 0) {
            b->apparmor = text + 9;
        } else if (strncmp(text, "label=", 6) == 0) {
            b->label = text + 6;
        } else if (strcmp(text, "unmask=ALL") == 0) {
            b->unmasked = true;
        } else {
            return err_set(err, -EINVAL,
                           "security option '%s' is none of no-new-privileges, seccomp=unconfined, "
                           "seccomp=FILE, apparmor=NAME, "
                           "label=TEXT, unmask=ALL",
                           text);
        }
    }
    return 0;
}

static json_t *make_process(struct builder *b, struct err *err)
{
    const struct bundle_options *o = b->o;
    const char *cwd = o->workdir ? o->workdir : json_string_value(json_object_get(o->image, "WorkingDir"));
    if (o->workdir && o->workdir[0] != '/') {
        err_set(err, -EINVAL, "--workdir '%s' is not an absolute path", o->workdir);
        return NULL;
    }
    json_t *args = make_args(b, err);
    json_t *rlimits = args ? bundle_rlimits(o, err) : NULL;
    if (!rlimits) {
        json_decref(args);
        return NULL;
    }
    json_t *groups = json_array();
    for (size_t i = 0; i < b->user.group_count; i++) {
        json_array_append_new(groups, json_integer(b->user.groups[i]));
    }
    /* capabilities(7): another user than root keeps what was asked for by name, also over its own execve. */
    uint64_t own = b->user.uid == 0 ? b->caps : b->caps & b->added;
    json_t *caps = json_pack("{s:o, s:o, s:o}", "bounding", cap_names(b->caps), "effective", cap_names(own),
                             "permitted", cap_names(own));
    if (b->user.uid != 0 && own) {
        json_object_set_new(caps, "inheritable", cap_names(own));
        json_object_set_new(caps, "ambient", cap_names(own));
    }
    json_t *process =
        json_pack("{s:b, s:{s:I, s:I, s:o}, s:o, s:o, s:s, s:o, s:b}", "terminal", o->terminal, "user", "uid",
                  (json_int_t)b->user.uid, "gid", (json_int_t)b->user.gid, "additionalGids", groups, "args",
                  args, "env", make_env(b), "cwd", cwd && *cwd ? cwd : "/", "capabilities", caps,
                  "noNewPrivileges", b->no_new_privileges);
    if (json_array_size(rlimits)) {
        json_object_set(process, "rlimits", rlimits);
    }
    json_decref(rlimits);
    if (b->apparmor && strcmp(b->apparmor, "unconfined") != 0) {
        json_object_set_new(process, "apparmorProfile", json_string(b->apparmor));
    }
    if (b->label && strcmp(b->label, "disable") != 0) {
        json_object_set_new(process, "selinuxLabel", json_string(b->label));
    }
    return process;
}

/* --- mounts --- */

static void add_mount(json_t *mounts, const char *destination, const char *type, const char *source,
                      const char *options)
{
    json_t *list = json_array();
    for (const char *p = options; *p; p += strcspn(p, ","), p += *p == ',') {
        json_array_append_new(list, json_stringn(p, strcspn(p, ",")));
    }
    json_array_append_new(mounts, json_pack("{s:s, s:s, s:s, s:o}", "destination", destination, "type", type,
                                            "source", source, "options", list));
}

static int make_mounts(struct builder *b, json_t *mounts, struct err *err)
{
    const struct bundle_options *o = b->o;
    int64_t shm = 64 << 20;
    int rc = o->shm_size ? bundle_bytes("--shm-size", o->shm_size, &shm, err) : 0;
    if (rc < 0) {
        return rc;
    }
    bool host_network = o->network == BUNDLE_NETWORK_HOST;
    bool mapped = o->rootless || (o->system && o->system->map_count);
    add_mount(mounts, "/proc", "proc", "proc", "nosuid,noexec,nodev");
    add_mount(mounts, "/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k");
    add_mount(mounts, "/dev/pts", "devpts", "devpts",
              o->rootless ? "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"
                          : "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5");
    add_mount(mounts, "/dev/shm", "tmpfs", "shm",
              arena_printf(&b->arena, "nosuid,noexec,nodev,mode=1777,size=%lld", (long long)shm));
    add_mount(mounts, "/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev");
    if ((mapped || o->bind_devices) &&
        host_network) { /* a new sysfs belongs to who owns the network namespace */
        add_mount(mounts, "/sys", "bind", "/sys", "rbind,rprivate,nosuid,noexec,nodev,rro");
    } else {
        add_mount(mounts, "/sys", "sysfs", "sysfs",
                  o->privileged ? "nosuid,noexec,nodev" : "nosuid,noexec,nodev,ro");
        if (!o->system) {
            add_mount(mounts, "/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro");
        }
    }
    if (o->system) {
        bundle_system_mounts(o, mounts);
    }
    static const char *const files[] = {"hosts", "hostname", "resolv.conf"};
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        add_mount(mounts, arena_printf(&b->arena, "/etc/%s", files[i]), "bind",
                  arena_printf(&b->arena, "%s/%s", o->dir, files[i]), "bind,rprivate,nosuid,noexec,nodev");
    }
    if (o->init) {
        add_mount(mounts, INIT_PATH, "bind", o->init, "bind,rprivate,nosuid,nodev,ro");
    }
    return bundle_volumes(o, mounts, err); /* last: a user's mount may cover one of these */
}

/* All devices of the host's, for --privileged. */
static void add_host_devices(json_t *devices)
{
    DIR *dir = opendir("/dev");
    for (struct dirent *e; dir && (e = readdir(dir)) && json_array_size(devices) < BUNDLE_LIST_MAX;) {
        struct stat st;
        bool ours = strcmp(e->d_name, "tty") == 0 || strcmp(e->d_name, "console") == 0 ||
                    strcmp(e->d_name, "ptmx") == 0;
        if (ours || fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            (!S_ISCHR(st.st_mode) && !S_ISBLK(st.st_mode))) {
            continue;
        }
        char path[300];
        snprintf(path, sizeof(path), "/dev/%s", e->d_name);
        json_array_append_new(devices, json_pack("{s:s, s:s, s:i, s:i, s:i}", "path", path, "type",
                                                 S_ISCHR(st.st_mode) ? "c" : "b", "major",
                                                 (int)major(st.st_rdev), "minor", (int)minor(st.st_rdev),
                                                 "fileMode", (int)(st.st_mode & 07777)));
    }
    if (dir) {
        closedir(dir);
    }
}

/* --- the linux section --- */

static json_t *make_namespaces(const struct bundle_options *o)
{
    json_t *list = json_pack("[{s:s}, {s:s}, {s:s}, {s:s}, {s:s}]", "type", "pid", "type", "ipc", "type",
                             "uts", "type", "mount", "type", "cgroup");
    if (o->network != BUNDLE_NETWORK_HOST) {
        json_array_append_new(list, json_pack("{s:s}", "type", "network"));
    }
    if (o->rootless) {
        json_array_append_new(list, json_pack("{s:s}", "type", "user"));
    }
    return list;
}

static int add_seccomp(struct builder *b, json_t *lnx, struct err *err)
{
    if (b->no_seccomp || (b->o->privileged && !b->seccomp_file)) {
        return 0;
    }
    if (!b->seccomp_file) {
        json_object_set_new(lnx, "seccomp", bundle_seccomp(b->caps));
        return 0;
    }
    auto_free char *text = NULL;
    size_t size = 0;
    int rc = file_read_all(AT_FDCWD, b->seccomp_file, &text, &size, err);
    json_t *profile = rc < 0 ? NULL : json_parse(text, size, b->seccomp_file, err);
    if (!profile) {
        return err_prefix(err, "--security-opt seccomp=%s", b->seccomp_file);
    }
    json_object_set_new(lnx, "seccomp", profile);
    return 0;
}

static int add_sysctls(const struct bundle_options *o, json_t *lnx, struct err *err)
{
    json_t *sysctl = json_object();
    json_object_set_new(lnx, "sysctl", sysctl);
    for (size_t i = 0; o->sysctls && o->sysctls[i]; i++) {
        const char *equals = strchr(o->sysctls[i], '=');
        char key[256];
        if (!equals || equals == o->sysctls[i] || (size_t)(equals - o->sysctls[i]) >= sizeof(key)) {
            return err_set(err, -EINVAL, "--sysctl '%s' is not of the form NAME=VALUE", o->sysctls[i]);
        }
        snprintf(key, sizeof(key), "%.*s", (int)(equals - o->sysctls[i]), o->sysctls[i]);
        json_object_set_new(sysctl, key, json_string(equals + 1));
    }
    /* Without the right to low ports for everybody in there, only root could serve them. */
    if (o->network != BUNDLE_NETWORK_HOST &&
        !json_object_get(sysctl, "net.ipv4.ip_unprivileged_port_start")) {
        json_object_set_new(sysctl, "net.ipv4.ip_unprivileged_port_start", json_string("0"));
    }
    return 0;
}

static json_t *make_linux(struct builder *b, json_t *mounts, struct err *err)
{
    const struct bundle_options *o = b->o;
    json_t *lnx = json_pack("{s:o}", "namespaces", make_namespaces(o));
    json_t *devices = json_array();
    json_t *rules = json_array();
    json_object_set_new(lnx, "devices", devices);
    int rc = bundle_devices(o, devices, rules, mounts, err);
    if (rc < 0) {
        json_decref(rules);
    } else {
        json_t *resources = bundle_resources(o, rules, err);
        rc = resources ? json_object_set_new(lnx, "resources", resources) : -EINVAL;
    }
    if (rc == 0 && o->privileged && !o->rootless && !o->bind_devices) {
        add_host_devices(devices);
    }
    rc = rc < 0 ? rc : add_sysctls(o, lnx, err);
    rc = rc < 0 ? rc : add_seccomp(b, lnx, err);
    rc = rc < 0 || !o->rootless ? rc : bundle_own_maps(lnx, err);
    if (rc == 0 && o->system) {
        bundle_system_linux(o, lnx);
    }
    if (rc < 0) {
        json_decref(lnx);
        return NULL;
    }
    if (o->cgroups_path) {
        json_object_set_new(lnx, "cgroupsPath", json_string(o->cgroups_path));
    }
    if (!b->unmasked && !o->privileged) {
        json_object_set_new(lnx, "maskedPaths",
                            json_pack("[s, s, s, s, s, s, s, s, s, s]", "/proc/acpi", "/proc/asound",
                                      "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
                                      "/proc/scsi", "/proc/timer_list", "/sys/firmware",
                                      "/sys/devices/virtual/powercap"));
        json_object_set_new(lnx, "readonlyPaths",
                            json_pack("[s, s, s, s, s]", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                                      "/proc/sysrq-trigger"));
    }
    return lnx;
}

static json_t *build(struct builder *b, struct err *err)
{
    const struct bundle_options *o = b->o;
    const char *user = o->user ? o->user : json_string_value(json_object_get(o->image, "User"));
    if (read_security(b, err) < 0 || choose_caps(b, err) < 0 ||
        bundle_find_user(o->rootfs, user, &b->arena, &b->user, err) < 0) {
        return NULL;
    }
    json_t *process = make_process(b, err);
    json_t *mounts = json_array();
    json_t *lnx = !process || make_mounts(b, mounts, err) < 0 ? NULL : make_linux(b, mounts, err);
    if (!lnx) {
        json_decref(process);
        json_decref(mounts);
        return NULL;
    }
    const char *hostname =
        o->hostname ? o->hostname : arena_printf(&b->arena, "%.12s", o->id ? o->id : "fonda");
    return json_pack("{s:s, s:o, s:{s:s, s:b}, s:s, s:o, s:o}", "ociVersion", OCI_VERSION, "process", process,
                     "root", "path", o->rootfs, "readonly", o->read_only, "hostname", hostname, "mounts",
                     mounts, "linux", lnx);
}

json_t *bundle_config(const struct bundle_options *o, struct err *err)
{
    struct builder b = {.o = o};
    struct err why = {.code = 0};
    json_t *config = build(&b, &why);
    if (!config) {
        err_set(err, why.code < 0 ? why.code : -EINVAL, "%s",
                why.code < 0 ? why.text : "an option is not text (UTF-8)");
    }
    arena_free(&b.arena);
    return config;
}

/* --- files --- */

static int write_text(const char *dir, const char *name, const char *text, struct err *err)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path)) {
        return err_sys(err, -ENAMETOOLONG, "bundle '%.64s'", dir);
    }
    auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    /* Read by users of the container, whatever the umask here. */
    int rc = fd < 0 || fchmod(fd, 0644) < 0 ? -errno : write_all(fd, text, strlen(text));
    return rc < 0 ? err_sys(err, rc, "cannot write '%s'", path) : 0;
}

/* resolv.conf: the NAT's own server, the host's file, or nothing. */
static int write_resolver(const struct bundle_options *o, struct err *err)
{
    auto_free char *text = NULL;
    size_t size = 0;
    if (o->network == BUNDLE_NETWORK_USER) {
        return write_text(o->dir, "resolv.conf", "nameserver 10.0.2.3\n", err);
    }
    if (o->network == BUNDLE_NETWORK_HOST) {
        (void)file_read_all(AT_FDCWD, "/etc/resolv.conf", &text, &size,
                            NULL); /* a host without one: an empty file */
    }
    return write_text(o->dir, "resolv.conf", text ? text : "", err);
}

int bundle_write(const struct bundle_options *o, struct err *err)
{
    char hosts[512];
    char name[128];
    json_t *config = bundle_config(o, err);
    if (!config) {
        return -EINVAL;
    }
    snprintf(name, sizeof(name), "%.64s", json_string_value(json_object_get(config, "hostname")));
    auto_free char *text = json_dumps(config, JSON_INDENT(2));
    json_decref(config);
    snprintf(hosts, sizeof(hosts),
             "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n",
             o->network == BUNDLE_NETWORK_USER ? "10.0.2.15" : "127.0.1.1", name);
    int rc = text ? write_text(o->dir, "hosts", hosts, err) : err_set(err, -ENOMEM, "out of memory");
    snprintf(hosts, sizeof(hosts), "%s\n", name);
    rc = rc < 0 ? rc : write_text(o->dir, "hostname", hosts, err);
    rc = rc < 0 ? rc : write_resolver(o, err);
    rc = rc < 0 || !o->system ? rc : bundle_system_files(o, err);
    return rc < 0 ? rc : write_text(o->dir, "config.json", text, err);
}

/* --- what the monitor wants to know --- */

/* One argument in quotes that sh(1) takes apart again. */
static const char *quoted(struct arena *arena, const char *text)
{
    const char *out = "'";
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, "'");
        out = arena_printf(arena, "%s%.*s%s", out, (int)n, p, p[n] ? "'\\''" : "");
        p += n + (p[n] != '\0');
    }
    return arena_printf(arena, "%s'", out);
}

static uint64_t seconds(json_t *health, const char *key)
{
    json_int_t ns = json_integer_value(json_object_get(health, key));
    return ns <= 0 ? 0 : (uint64_t)(ns + 999999999) / 1000000000;
}

int bundle_monitoring(json_t *image, struct arena *arena, struct bundle_monitoring *ret, struct err *err)
{
    struct bundle_monitoring m = {.stop_signal = json_string_value(json_object_get(image, "StopSignal"))};
    json_t *health = json_object_get(image, "Healthcheck");
    json_t *test = json_object_get(health, "Test");
    const char *kind = json_string_value(json_array_get(test, 0));
    m.stop_signal = m.stop_signal ? arena_strdup(arena, m.stop_signal) : NULL;
    if (kind && strcmp(kind, "CMD-SHELL") == 0 && json_is_string(json_array_get(test, 1))) {
        m.health_cmd = arena_strdup(arena, json_string_value(json_array_get(test, 1)));
    } else if (kind && strcmp(kind, "CMD") == 0) {
        const char *line = "exec";
        for (size_t i = 1; i < MIN(json_array_size(test), (size_t)BUNDLE_LIST_MAX); i++) {
            const char *arg = json_string_value(json_array_get(test, i));
            line = arena_printf(arena, "%s %s", line, quoted(arena, arg ? arg : ""));
        }
        m.health_cmd = line;
    } else if (kind && strcmp(kind, "NONE") != 0) {
        return err_set(err, -EINVAL, "the image's health check is of an unknown kind '%.32s'", kind);
    }
    m.health_interval_s = seconds(health, "Interval");
    m.health_timeout_s = seconds(health, "Timeout");
    m.health_start_s = seconds(health, "StartPeriod");
    json_int_t retries = json_integer_value(json_object_get(health, "Retries"));
    m.health_retries = retries > 0 && retries <= 1000 ? (uint64_t)retries : 0;
    *ret = m;
    return 0;
}
