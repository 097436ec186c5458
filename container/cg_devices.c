/*
 * Device rules: config-linux.md "Allowed Device list", as lines of the v1 devices controller or as a v2 BPF
 * program. Both start from what the specification's default devices need, so that no rule list can make a
 * container that has them but can't open them.
 */
#include "base/util.h"
#include "container/cg.h"
#include "container/paths.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#define RULES_MAX 1024
#define INSNS_MAX (RULES_MAX * 10 + 32)

struct rule {
    bool allow;
    char type;     /* a: any, c, b */
    int64_t major; /* -1: any */
    int64_t minor;
    unsigned access; /* BPF_DEVCG_ACC_* */
};

/* Always usable, config-linux.md "Default Devices", with the terminals that /dev/console and /dev/pts are. */
static const struct rule defaults[] = {
    {true, 'c', -1, -1, BPF_DEVCG_ACC_MKNOD},
    {true, 'b', -1, -1, BPF_DEVCG_ACC_MKNOD},
    {true, 'c', 1, 3, 7},
    {true, 'c', 1, 5, 7},
    {true, 'c', 1, 7, 7},
    {true, 'c', 1, 8, 7},
    {true, 'c', 1, 9, 7},
    {true, 'c', 5, 0, 7},
    {true, 'c', 5, 1, 7},
    {true, 'c', 5, 2, 7},
    {true, 'c', 136, -1, 7},
};

static int parse_rule(json_t *item, struct rule *ret, struct err *err)
{
    json_t *allow = json_object_get(item, "allow");
    const char *type = json_string_value(json_object_get(item, "type"));
    const char *access = json_string_value(json_object_get(item, "access"));
    json_t *major = json_object_get(item, "major");
    json_t *minor = json_object_get(item, "minor");
    struct rule r = {
        .allow = json_is_true(allow), .type = type && *type ? type[0] : 'a', .major = -1, .minor = -1};
    if (!json_is_object(item) || !json_is_boolean(allow) || !strchr("acb", r.type) ||
        (type && strlen(type) > 1)) {
        return err_set(err, -EINVAL, "linux.resources.devices: a rule needs 'allow' and a type of a, c or b");
    }
    r.major = json_is_integer(major) ? json_integer_value(major) : -1;
    r.minor = json_is_integer(minor) ? json_integer_value(minor) : -1;
    for (const char *p = access && *access ? access : "rwm"; *p; p++) {
        r.access |= *p == 'r' ? BPF_DEVCG_ACC_READ : *p == 'w' ? BPF_DEVCG_ACC_WRITE : BPF_DEVCG_ACC_MKNOD;
        if (!strchr("rwm", *p)) {
            return err_set(err, -EINVAL,
                           "linux.resources.devices: access '%s' has letters other than r, w and m", access);
        }
    }
    *ret = r;
    return 0;
}

static int write_rule(int dirfd, const struct rule *r, struct err *err)
{
    char major[24] = "*";
    char minor[24] = "*";
    char text[96];
    if (r->major >= 0) {
        snprintf(major, sizeof(major), "%" PRId64, r->major);
    }
    if (r->minor >= 0) {
        snprintf(minor, sizeof(minor), "%" PRId64, r->minor);
    }
    snprintf(text, sizeof(text), "%c %s:%s %s%s%s", r->type, major, minor,
             r->access & BPF_DEVCG_ACC_READ ? "r" : "", r->access & BPF_DEVCG_ACC_WRITE ? "w" : "",
             r->access & BPF_DEVCG_ACC_MKNOD ? "m" : "");
    int rc = write_file_at(dirfd, r->allow ? "devices.allow" : "devices.deny", text);
    return rc < 0 ? err_sys(err, rc, "linux.resources.devices: cannot write '%s'", text) : 0;
}

static bool is_all(const struct rule *r)
{
    return r->type == 'a' && r->major < 0 && r->minor < 0 && r->access == 7;
}

int cg_devices_v1(int dirfd, json_t *rules, bool update, struct err *err)
{
    bool defaults_done = update;
    for (size_t i = 0; i < json_array_size(rules); i++) {
        struct rule r;
        int rc = parse_rule(json_array_get(rules, i), &r, err);
        /* A line of type 'a' changes the default of the cgroup; the kernel takes no numbers there. */
        if (rc == 0 && r.type == 'a' && !is_all(&r)) {
            struct rule part = r;
            part.type = 'b';
            r.type = 'c';
            rc = write_rule(dirfd, &part, err);
        }
        if (rc == 0) {
            rc = write_rule(dirfd, &r, err);
        }
        /* Once nothing is allowed, what every container has comes back, before the rules that say more. */
        for (size_t k = 0; rc == 0 && !defaults_done && is_all(&r) && !r.allow && k < ARRAY_SIZE(defaults);
             k++) {
            rc = write_rule(dirfd, &defaults[k], err);
        }
        defaults_done = defaults_done || (is_all(&r) && !r.allow);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

/* BPF program under construction. Registers: r2 type, r3 access, r4 major, r5 minor. */
struct program {
    struct bpf_insn v[INSNS_MAX];
    size_t count;
};

static void emit(struct program *p, unsigned code, unsigned dst, unsigned src, int off, int imm)
{
    p->v[p->count++] = (struct bpf_insn){
        .code = (uint8_t)code, .dst_reg = dst & 15, .src_reg = src & 15, .off = (int16_t)off, .imm = imm};
}

static void emit_rule(struct program *p, const struct rule *r)
{
    /* Where a condition fails the rule is jumped over; the distance is known once its length is. */
    size_t jumps[4];
    size_t n = 0;
    if (r->type != 'a') {
        jumps[n++] = p->count;
        emit(p, BPF_JMP | BPF_JNE | BPF_K, 2, 0, 0,
             r->type == 'c' ? BPF_DEVCG_DEV_CHAR : BPF_DEVCG_DEV_BLOCK);
    }
    if (r->access != 7) {
        if (r->allow) { /* every access asked for must be among the allowed ones */
            emit(p, BPF_ALU64 | BPF_MOV | BPF_X, 1, 3, 0, 0);
            emit(p, BPF_ALU64 | BPF_AND | BPF_K, 1, 0, 0, (int)(~r->access & 7));
            jumps[n++] = p->count;
            emit(p, BPF_JMP | BPF_JNE | BPF_K, 1, 0, 0, 0);
        } else { /* one that is denied is enough */
            emit(p, BPF_ALU64 | BPF_MOV | BPF_X, 1, 3, 0, 0);
            emit(p, BPF_ALU64 | BPF_AND | BPF_K, 1, 0, 0, (int)r->access);
            jumps[n++] = p->count;
            emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 0, 0);
        }
    }
    if (r->major >= 0) {
        jumps[n++] = p->count;
        emit(p, BPF_JMP | BPF_JNE | BPF_K, 4, 0, 0, (int)r->major);
    }
    if (r->minor >= 0) {
        jumps[n++] = p->count;
        emit(p, BPF_JMP | BPF_JNE | BPF_K, 5, 0, 0, (int)r->minor);
    }
    emit(p, BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, r->allow);
    emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    for (size_t i = 0; i < n; i++) {
        p->v[jumps[i]].off = (int16_t)(p->count - jumps[i] - 1);
    }
}

int cg_devices_v2(int dirfd, json_t *rules, struct err *err)
{
    static struct rule list[RULES_MAX];
    static struct program program;
    struct program *p = &program;
    size_t count = json_array_size(rules);
    bool allow_all = true;
    if (count > RULES_MAX) {
        return err_set(err, -E2BIG, "linux.resources.devices has more than %d rules", RULES_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        int rc = parse_rule(json_array_get(rules, i), &list[i], err);
        if (rc < 0) {
            return rc;
        }
        allow_all = is_all(&list[i]) ? list[i].allow : allow_all;
    }
    p->count = 0;
    /* struct bpf_cgroup_dev_ctx: access_type (access << 16 | type), major, minor */
    emit(p, BPF_LDX | BPF_MEM | BPF_W, 2, 1, 0, 0);
    emit(p, BPF_ALU64 | BPF_MOV | BPF_X, 3, 2, 0, 0);
    emit(p, BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, 0xffff);
    emit(p, BPF_ALU64 | BPF_RSH | BPF_K, 3, 0, 0, 16);
    emit(p, BPF_LDX | BPF_MEM | BPF_W, 4, 1, 4, 0);
    emit(p, BPF_LDX | BPF_MEM | BPF_W, 5, 1, 8, 0);
    bool ended = false;
    for (size_t i = count; i > 0 && !ended; i--) { /* the last rule that matches decides */
        ended = is_all(&list[i - 1]);
        if (!ended) {
            emit_rule(p, &list[i - 1]);
        }
    }
    for (size_t i = 0; !allow_all && i < ARRAY_SIZE(defaults); i++) {
        emit_rule(p, &defaults[i]);
    }
    emit(p, BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, allow_all);
    emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
                           .insns = (uint64_t)(uintptr_t)p->v,
                           .insn_cnt = (uint32_t)p->count,
                           .license = (uint64_t)(uintptr_t) "Apache-2.0"};
    auto_close int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
    if (fd < 0) {
        return err_sys(err, -errno, "linux.resources.devices: cannot load the BPF program");
    }
    /* An update replaces the program of before: the old one is found, and taken off once the new one is on.
     */
    uint32_t old[64] = {0};
    union bpf_attr query = {.query = {.target_fd = (uint32_t)dirfd,
                                      .attach_type = BPF_CGROUP_DEVICE,
                                      .prog_ids = (uint64_t)(uintptr_t)old,
                                      .prog_cnt = ARRAY_SIZE(old)}};
    unsigned old_count =
        syscall(SYS_bpf, BPF_PROG_QUERY, &query, sizeof(query)) == 0 ? query.query.prog_cnt : 0;
    union bpf_attr attach = {.target_fd = (uint32_t)dirfd,
                             .attach_bpf_fd = (uint32_t)fd,
                             .attach_type = BPF_CGROUP_DEVICE,
                             .attach_flags = BPF_F_ALLOW_MULTI};
    if (syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof(attach)) < 0) {
        return err_sys(err, -errno, "linux.resources.devices: cannot attach the BPF program");
    }
    for (unsigned i = 0; i < MIN(old_count, ARRAY_SIZE(old)); i++) {
        union bpf_attr by_id = {.prog_id = old[i]};
        auto_close int old_fd = (int)syscall(SYS_bpf, BPF_PROG_GET_FD_BY_ID, &by_id, sizeof(by_id));
        union bpf_attr detach = {.target_fd = (uint32_t)dirfd,
                                 .attach_bpf_fd = (uint32_t)old_fd,
                                 .attach_type = BPF_CGROUP_DEVICE};
        if (old_fd < 0 || syscall(SYS_bpf, BPF_PROG_DETACH, &detach, sizeof(detach)) < 0) {
            return err_sys(err, -errno, "linux.resources.devices: cannot take off the old BPF program");
        }
    }
    return 0;
}
