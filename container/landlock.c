#include "container/landlock.h"

#include "base/util.h"
#include "container/json.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* linux/landlock.h of today; a build machine's may be older. */
#define SYS_CREATE_RULESET 444
#define SYS_ADD_RULE       445
#define SYS_RESTRICT_SELF  446
#define ASK_VERSION        1u
#define RULE_PATH          1
#define RULE_PORT          2

#define FS_EXECUTE    BIT64(0)
#define FS_WRITE_FILE BIT64(1)
#define FS_READ_FILE  BIT64(2)
#define FS_READ_DIR   BIT64(3)
#define FS_CHANGE_DIR                                                                                        \
    (BIT64(4) | BIT64(5) | BIT64(6) | BIT64(7) | BIT64(8) | BIT64(9) | BIT64(10) | BIT64(11) | BIT64(12))
#define FS_REFER     BIT64(13) /* from ABI 2 on */
#define FS_TRUNCATE  BIT64(14) /* 3 */
#define FS_IOCTL_DEV BIT64(15) /* 5 */
#define FS_ON_FILES  (FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV)
#define NET_BIND     BIT64(0) /* 4 */
#define NET_CONNECT  BIT64(1)
#define SCOPE_UNIX   BIT64(0) /* 6 */
#define SCOPE_SIGNAL BIT64(1)

struct ruleset {
    uint64_t files, net, scope;
};

struct __attribute__((packed)) path_rule {
    uint64_t access;
    int32_t fd;
};

struct port_rule {
    uint64_t access, port;
};

static int parse_access(const char *text, unsigned *ret, struct err *err)
{
    unsigned access = 0;
    for (const char *p = text ? text : ""; *p; p++) {
        unsigned bit = *p == 'r'   ? LANDLOCK_READ
                       : *p == 'w' ? LANDLOCK_WRITE
                       : *p == 'x' ? LANDLOCK_EXECUTE
                                   : 0;
        if (!bit) {
            return err_set(err, -EINVAL, "access '%.16s' is not made of r, w and x", text);
        }
        access |= bit;
    }
    *ret = access;
    return access ? 0 : err_set(err, -EINVAL, "a rule for files needs an access, such as \"rx\"");
}

static int parse_files(json_t *list, struct arena *arena, struct landlock *l, struct err *err)
{
    l->has_files = list != NULL;
    size_t count = json_array_size(list);
    if (count > LANDLOCK_RULES_MAX) {
        return err_set(err, -E2BIG, "more than %d rules", LANDLOCK_RULES_MAX);
    }
    l->files = arena_array(arena, count, sizeof(*l->files));
    for (size_t i = 0; i < count; i++) {
        json_t *item = json_array_get(list, i);
        const char *access = NULL;
        size_t paths = 0;
        int rc = json_is_object(item) ? 0 : err_set(err, -EINVAL, "files[%zu] must be an object", i);
        rc = rc < 0 ? rc : json_strv(item, "files[]", "paths", arena, &l->files[i].paths, &paths, err);
        rc = rc < 0 ? rc : json_str(item, "files[]", "access", &access, err);
        if (rc < 0 || (rc = parse_access(access, &l->files[i].access, err)) < 0) {
            return rc;
        }
        for (size_t k = 0; k < paths; k++) {
            if (l->files[i].paths[k][0] != '/') {
                return err_set(err, -EINVAL, "path '%s' is not absolute", l->files[i].paths[k]);
            }
        }
        l->file_count++;
    }
    return 0;
}

static int parse_ports(json_t *tcp, struct arena *arena, struct landlock *l, struct err *err)
{
    static const char *const keys[] = {"bind", "connect"};
    l->has_tcp = tcp != NULL;
    for (size_t i = 0; tcp && i < ARRAY_SIZE(keys); i++) {
        json_t *list = NULL;
        int rc = json_arr(tcp, "tcp", keys[i], &list, err);
        size_t count = json_array_size(list);
        if (rc < 0 || count > LANDLOCK_RULES_MAX) {
            return rc < 0 ? rc : err_set(err, -E2BIG, "more than %d ports", LANDLOCK_RULES_MAX);
        }
        l->ports[i] = arena_array(arena, count, sizeof(uint16_t));
        for (size_t k = 0; k < count; k++) {
            json_t *port = json_array_get(list, k);
            if (!json_is_integer(port) || json_integer_value(port) < 0 || json_integer_value(port) > 65535) {
                return err_set(err, -EINVAL, "tcp.%s must be a list of ports", keys[i]);
            }
            l->ports[i][l->port_count[i]++] = (uint16_t)json_integer_value(port);
        }
    }
    return 0;
}

static int parse(struct arena *arena, struct landlock *l, struct err *err)
{
    static const char *const known[] = {"files", "tcp", "scope"};
    json_t *files = NULL;
    json_t *tcp = NULL;
    const char **scope = NULL;
    const char *key;
    json_t *value;
    if (!json_is_object(l->json)) {
        return err_set(err, -EINVAL, "it must be an object");
    }
    json_object_foreach(l->json, key, value)
    {
        size_t i = 0;
        while (i < ARRAY_SIZE(known) && strcmp(key, known[i]) != 0) {
            i++;
        }
        if (i == ARRAY_SIZE(known)) { /* a misspelt restriction must not be none */
            return err_set(err, -EINVAL, "unknown member '%.32s'", key);
        }
    }
    int rc = json_arr(l->json, "", "files", &files, err);
    rc = rc < 0 ? rc : json_obj(l->json, "", "tcp", &tcp, err);
    rc = rc < 0 ? rc : json_strv(l->json, "", "scope", arena, &scope, NULL, err);
    rc = rc < 0 ? rc : parse_files(files, arena, l, err);
    rc = rc < 0 ? rc : parse_ports(tcp, arena, l, err);
    for (; rc == 0 && scope && *scope; scope++) {
        if (strcmp(*scope, "abstract-unix") == 0) {
            l->scope_abstract_unix = true;
        } else if (strcmp(*scope, "signal") == 0) {
            l->scope_signal = true;
        } else {
            rc = err_set(err, -EINVAL, "scope '%.32s' is neither abstract-unix nor signal", *scope);
        }
    }
    return rc;
}

int landlock_parse(const char *text, struct arena *arena, struct landlock *ret, struct err *err)
{
    struct landlock l = {.wanted = true, .json = json_parse(text, strlen(text), "value", err)};
    int rc = l.json ? parse(arena, &l, err) : -EINVAL;
    if (rc < 0) {
        landlock_done(&l);
        return err_prefix(err, "annotation %s", LANDLOCK_ANNOTATION);
    }
    *ret = l;
    return 0;
}

void landlock_done(struct landlock *l)
{
    json_decref(l->json);
    l->json = NULL;
}

static long kernel_abi(void)
{
    long abi = syscall(SYS_CREATE_RULESET, NULL, 0, ASK_VERSION);
    return abi < 0 ? 0 : abi;
}

int landlock_check(const struct landlock *l, struct err *err)
{
    long abi = l->wanted ? kernel_abi() : 0;
    long needed = l->scope_abstract_unix || l->scope_signal ? 6 : l->has_tcp ? 4 : 1;
    if (l->wanted && abi < needed) {
        return err_set(err, -EOPNOTSUPP, "annotation %s needs Landlock ABI %ld; this kernel has %s%ld",
                       LANDLOCK_ANNOTATION, needed, abi ? "" : "none: ", abi);
    }
    return 0;
}

/* What the kernel can hold back of files: all of it, so that what isn't listed is refused. */
static uint64_t all_of_files(long abi)
{
    return FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_READ_DIR | FS_CHANGE_DIR |
           (abi >= 2 ? FS_REFER : 0) | (abi >= 3 ? FS_TRUNCATE : 0) | (abi >= 5 ? FS_IOCTL_DEV : 0);
}

static int add_path(int ruleset, const char *path, unsigned access, uint64_t handled, struct err *err)
{
    auto_close int fd = open(path, O_PATH | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "annotation %s: '%s'", LANDLOCK_ANNOTATION, path);
    }
    uint64_t allowed =
        (access & LANDLOCK_READ ? FS_READ_FILE | FS_READ_DIR | FS_IOCTL_DEV : 0) |
        (access & LANDLOCK_WRITE ? FS_WRITE_FILE | FS_CHANGE_DIR | FS_REFER | FS_TRUNCATE | FS_IOCTL_DEV
                                 : 0) |
        (access & LANDLOCK_EXECUTE ? FS_EXECUTE : 0);
    struct path_rule rule = {.access = allowed & handled & (S_ISDIR(st.st_mode) ? UINT64_MAX : FS_ON_FILES),
                             .fd = fd};
    return syscall(SYS_ADD_RULE, ruleset, RULE_PATH, &rule, 0u) < 0
               ? err_sys(err, -errno, "cannot add a Landlock rule for '%s'", path)
               : 0;
}

int landlock_apply(const struct landlock *l, struct err *err)
{
    if (!l || !l->wanted) {
        return 0;
    }
    long abi = kernel_abi();
    struct ruleset attr = {.files = l->has_files ? all_of_files(abi) : 0,
                           .net = l->has_tcp ? NET_BIND | NET_CONNECT : 0,
                           .scope = (l->scope_abstract_unix ? SCOPE_UNIX : 0) |
                                    (l->scope_signal ? SCOPE_SIGNAL : 0)};
    if (!attr.files && !attr.net && !attr.scope) {
        return 0;
    }
    /* Older kernels know a shorter structure; landlock_check() has seen to it that the rest is zero. */
    size_t size = abi >= 6 ? sizeof(attr) : abi >= 4 ? 2 * sizeof(uint64_t) : sizeof(uint64_t);
    auto_close int ruleset = (int)syscall(SYS_CREATE_RULESET, &attr, size, 0u);
    if (ruleset < 0) {
        return err_sys(err, -errno, "cannot make a Landlock ruleset");
    }
    for (size_t i = 0; i < l->file_count; i++) {
        for (const char **path = l->files[i].paths; path && *path; path++) {
            int rc = add_path(ruleset, *path, l->files[i].access, attr.files, err);
            if (rc < 0) {
                return rc;
            }
        }
    }
    for (size_t i = 0; i < 2; i++) {
        for (size_t k = 0; k < l->port_count[i]; k++) {
            struct port_rule rule = {.access = i ? NET_CONNECT : NET_BIND, .port = l->ports[i][k]};
            if (syscall(SYS_ADD_RULE, ruleset, RULE_PORT, &rule, 0u) < 0) {
                return err_sys(err, -errno, "cannot add a Landlock rule for port %u", l->ports[i][k]);
            }
        }
    }
    return syscall(SYS_RESTRICT_SELF, ruleset, 0u) < 0
               ? err_sys(err, -errno, "cannot enforce the Landlock rules")
               : 0;
}
