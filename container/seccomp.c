#include "container/seccomp.h"

#include "base/log.h"
#include "base/util.h"
#include "container/json.h"
#include "container/seccomp_names.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#define SYSCALL_NAMES_MAX 16384 /* of one profile, all rules together */
#define X32_BIT           0x40000000u

enum compare { CMP_NE, CMP_LT, CMP_LE, CMP_EQ, CMP_GE, CMP_GT, CMP_MASKED };

static const char *const operator_names[] = {"SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE",       "SCMP_CMP_EQ",
                                             "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"};

static const char *const action_names[] = {"SCMP_ACT_KILL",  "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS",
                                           "SCMP_ACT_TRAP",  "SCMP_ACT_ERRNO",       "SCMP_ACT_TRACE",
                                           "SCMP_ACT_ALLOW", "SCMP_ACT_LOG",         "SCMP_ACT_NOTIFY"};
static const uint32_t action_values[] = {
    SECCOMP_RET_KILL_THREAD, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_KILL_PROCESS,
    SECCOMP_RET_TRAP,        SECCOMP_RET_ERRNO,       SECCOMP_RET_TRACE,
    SECCOMP_RET_ALLOW,       SECCOMP_RET_LOG,         SECCOMP_RET_USER_NOTIF};

static const struct {
    const char *name;
    unsigned flag;
} flag_table[] = {
    {"SECCOMP_FILTER_FLAG_TSYNC", 0}, /* one thread: nothing to do */
    {"SECCOMP_FILTER_FLAG_LOG", SECCOMP_FILTER_FLAG_LOG},
    {"SECCOMP_FILTER_FLAG_SPEC_ALLOW", SECCOMP_FILTER_FLAG_SPEC_ALLOW},
    {"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1u << 5},
};

struct condition {
    unsigned index; /* argument 0..5 */
    enum compare op;
    uint64_t value;
    uint64_t value2; /* CMP_MASKED: (argument & value) == value2 */
};

struct rule {
    struct rule *next; /* of the same syscall, in the profile's order */
    uint32_t action;
    const struct condition *conditions;
    size_t condition_count;
};

/* One syscall of one architecture, with its rules. */
struct entry {
    uint32_t number;
    struct rule *rules;
};

struct compiler {
    struct arena *arena;
    struct err *err;
    uint32_t default_action;
    json_t *syscalls;
    struct sock_filter *v;
    size_t count;
    bool has_notify;
};

static int emit(struct compiler *k, unsigned code, unsigned jt, unsigned jf, uint32_t value)
{
    if (k->count == BPF_MAXINSNS) {
        return err_set(k->err, -E2BIG,
                       "the profile needs more than the %d instructions that the kernel takes", BPF_MAXINSNS);
    }
    k->v[k->count++] =
        (struct sock_filter){.code = (uint16_t)code, .jt = (uint8_t)jt, .jf = (uint8_t)jf, .k = value};
    return 0;
}

static int parse_action(const char *name, json_t *errno_value, uint32_t *ret, struct err *err)
{
    for (size_t i = 0; name && i < ARRAY_SIZE(action_names); i++) {
        if (strcmp(name, action_names[i]) != 0) {
            continue;
        }
        uint32_t value = action_values[i];
        bool takes_data = value == SECCOMP_RET_ERRNO || value == SECCOMP_RET_TRACE;
        if (json_is_integer(errno_value)) {
            json_int_t code = json_integer_value(errno_value);
            if (!takes_data) {
                return err_set(err, -EINVAL, "errnoRet can't go with %s", name);
            }
            if (code < 0 || code > SECCOMP_RET_DATA) {
                return err_set(err, -EINVAL, "errnoRet must be between 0 and %u", SECCOMP_RET_DATA);
            }
            value |= (uint32_t)code;
        } else if (takes_data) {
            value |= EPERM;
        }
        *ret = value;
        return 0;
    }
    return err_set(err, -EINVAL, "unknown action '%s'", name ? name : "");
}

static int parse_conditions(struct compiler *k, json_t *args, struct condition **ret, size_t *ret_count)
{
    size_t count = json_array_size(args);
    struct condition *v = arena_array(k->arena, count, sizeof(*v));
    for (size_t i = 0; i < count; i++) {
        json_t *item = json_array_get(args, i);
        const char *op = NULL;
        uint32_t index = 0;
        int rc;
        if ((rc = json_u32(item, "args[]", "index", &index, k->err)) < 0 ||
            (rc = json_u64(item, "args[]", "value", &v[i].value, k->err)) < 0 ||
            (rc = json_u64(item, "args[]", "valueTwo", &v[i].value2, k->err)) < 0 ||
            (rc = json_str(item, "args[]", "op", &op, k->err)) < 0) {
            return rc;
        }
        size_t which = 0;
        while (which < ARRAY_SIZE(operator_names) && (!op || strcmp(op, operator_names[which]) != 0)) {
            which++;
        }
        if (which == ARRAY_SIZE(operator_names)) {
            return err_set(k->err, -EINVAL, "unknown operator '%s'", op ? op : "");
        }
        if (index > 5) {
            return err_set(k->err, -EINVAL, "argument index %u is above 5", index);
        }
        v[i].index = index;
        v[i].op = (enum compare)which;
    }
    *ret = v;
    *ret_count = count;
    return 0;
}

static int order_entries(const void *a, const void *b)
{
    uint32_t x = ((const struct entry *)a)->number;
    uint32_t y = ((const struct entry *)b)->number;
    return (x > y) - (x < y);
}

struct rule_list {
    struct {
        const char *name;
        struct rule *rules;
        size_t rule_count;
    } *v;
    size_t count;
};

/* The rules of the profile, once for all architectures. An argument that is listed more than once makes
 * alternatives of its conditions (as every runtime has it), otherwise all conditions must hold. */
static int parse_rules(struct compiler *k, struct rule_list *ret)
{
    size_t total = 0;
    for (size_t i = 0; i < json_array_size(k->syscalls); i++) {
        total += json_array_size(json_object_get(json_array_get(k->syscalls, i), "names"));
    }
    if (total > SYSCALL_NAMES_MAX) {
        return err_set(k->err, -E2BIG, "more than %d names", SYSCALL_NAMES_MAX);
    }
    ret->v = arena_array(k->arena, total, sizeof(*ret->v));
    for (size_t i = 0; i < json_array_size(k->syscalls); i++) {
        json_t *item = json_array_get(k->syscalls, i);
        json_t *args = NULL;
        const char **names = NULL;
        const char *action = NULL;
        struct condition *conditions = NULL;
        size_t count = 0;
        uint32_t value = 0;
        int rc;
        if ((rc = json_strv(item, "syscalls[]", "names", k->arena, &names, NULL, k->err)) < 0 ||
            (rc = json_str(item, "syscalls[]", "action", &action, k->err)) < 0 ||
            (rc = json_arr(item, "syscalls[]", "args", &args, k->err)) < 0 ||
            (rc = parse_action(action, json_object_get(item, "errnoRet"), &value, k->err)) < 0 ||
            (rc = parse_conditions(k, args, &conditions, &count)) < 0) {
            return rc;
        }
        if (!names || !names[0]) {
            return err_set(k->err, -EINVAL, "syscalls[%zu].names is missing or empty", i);
        }
        k->has_notify = k->has_notify || value == SECCOMP_RET_USER_NOTIF;
        unsigned seen = 0;
        bool alternatives = false;
        for (size_t c = 0; c < count; c++) {
            alternatives = alternatives || (seen & BIT(conditions[c].index));
            seen |= BIT(conditions[c].index);
        }
        size_t rule_count = alternatives ? count : 1;
        struct rule *rules = arena_array(k->arena, rule_count, sizeof(*rules));
        for (size_t r = 0; r < rule_count; r++) {
            rules[r] = (struct rule){.action = value,
                                     .conditions = alternatives ? &conditions[r] : conditions,
                                     .condition_count = alternatives ? 1 : count};
        }
        for (size_t n = 0; names[n]; n++) {
            ret->v[ret->count].name = names[n];
            ret->v[ret->count].rules = rules;
            ret->v[ret->count++].rule_count = rule_count;
        }
    }
    return 0;
}

/* The table of one architecture, sorted by number. */
static size_t make_entries(struct compiler *k, const struct rule_list *list, const struct seccomp_arch *arch,
                           struct entry *entries)
{
    size_t count = 0;
    for (size_t i = 0; i < list->count; i++) {
        int number = seccomp_number(arch, list->v[i].name);
        if (number >= 0) {
            entries[count].number = (uint32_t)number;
            entries[count].rules = arena_array(k->arena, list->v[i].rule_count, sizeof(struct rule));
            for (size_t r = 0; r < list->v[i].rule_count; r++) {
                entries[count].rules[r] = list->v[i].rules[r];
                entries[count].rules[r].next =
                    r + 1 < list->v[i].rule_count ? &entries[count].rules[r + 1] : NULL;
            }
            count++;
        }
    }
    /* A stable sort (qsort isn't): rules of one syscall stay in the profile's order. */
    struct entry *temp = arena_array(k->arena, count, sizeof(*temp));
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t lo = 0; lo < count; lo += 2 * width) {
            size_t mid = MIN(lo + width, count);
            size_t hi = MIN(lo + 2 * width, count);
            size_t a = lo;
            size_t b = mid;
            for (size_t o = lo; o < hi; o++) {
                bool left = a < mid && (b >= hi || order_entries(&entries[a], &entries[b]) <= 0);
                temp[o] = left ? entries[a++] : entries[b++];
            }
        }
        memcpy(entries, temp, count * sizeof(*entries));
    }
    size_t out = 0;
    for (size_t i = 0; i < count; i++) {
        if (out > 0 && entries[out - 1].number == entries[i].number) {
            struct rule **tail = &entries[out - 1].rules;
            while (*tail) {
                tail = &(*tail)->next;
            }
            *tail = entries[i].rules;
        } else {
            entries[out++] = entries[i];
        }
    }
    return out;
}

/*
 * A condition on a 64-bit argument, in two halves of 32. Falls through when it holds; where it doesn't, jumps
 * to a place that isn't known yet: fix[] collects instructions whose jump `which` (0: true, 1: false) goes
 * there.
 */
struct fixes {
    size_t at[6 * 8];
    bool on_false[6 * 8];
    size_t count;
};

static void fix(struct fixes *f, size_t at, bool on_false)
{
    f->at[f->count] = at;
    f->on_false[f->count++] = on_false;
}

static int emit_condition(struct compiler *k, const struct condition *c, struct fixes *f)
{
    uint32_t low = (uint32_t)(16 + 8 * c->index); /* struct seccomp_data, little endian */
    uint32_t high = low + 4;
    uint32_t value_low = (uint32_t)c->value;
    uint32_t value_high = (uint32_t)(c->value >> 32);
    int rc = emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, high);
    if (rc < 0) {
        return rc;
    }
    switch (c->op) {
    case CMP_EQ:
        rc = emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, value_high);
        fix(f, k->count - 1, true);
        rc = rc < 0 ? rc : emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, low);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, value_low);
        fix(f, k->count - 1, true);
        break;
    case CMP_NE:
        rc = emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 2, value_high);
        rc = rc < 0 ? rc : emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, low);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, value_low);
        fix(f, k->count - 1, false);
        break;
    case CMP_MASKED:
        rc = emit(k, BPF_ALU | BPF_AND | BPF_K, 0, 0, value_high);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, (uint32_t)(c->value2 >> 32));
        fix(f, k->count - 1, true);
        rc = rc < 0 ? rc : emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, low);
        rc = rc < 0 ? rc : emit(k, BPF_ALU | BPF_AND | BPF_K, 0, 0, value_low);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, (uint32_t)c->value2);
        fix(f, k->count - 1, true);
        break;
    case CMP_GT:
    case CMP_GE: /* high greater: holds; high less: doesn't; equal: the low half says */
        rc = emit(k, BPF_JMP | BPF_JGT | BPF_K, 3, 0, value_high);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, value_high);
        fix(f, k->count - 1, true);
        rc = rc < 0 ? rc : emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, low);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | (c->op == CMP_GT ? BPF_JGT : BPF_JGE) | BPF_K, 0, 0, value_low);
        fix(f, k->count - 1, true);
        break;
    case CMP_LT:
    case CMP_LE: /* the same with the answers of the low half turned round */
        rc = emit(k, BPF_JMP | BPF_JGT | BPF_K, 0, 0, value_high);
        fix(f, k->count - 1, false);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JEQ | BPF_K, 0, 2, value_high);
        rc = rc < 0 ? rc : emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, low);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | (c->op == CMP_LT ? BPF_JGE : BPF_JGT) | BPF_K, 0, 0, value_low);
        fix(f, k->count - 1, false);
        break;
    }
    return rc;
}

static int emit_rule(struct compiler *k, const struct rule *rule)
{
    struct fixes f = {.count = 0};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < rule->condition_count; i++) {
        rc = emit_condition(k, &rule->conditions[i], &f);
    }
    rc = rc < 0 ? rc : emit(k, BPF_RET | BPF_K, 0, 0, rule->action);
    for (size_t i = 0; rc == 0 && i < f.count; i++) {
        struct sock_filter *at = &k->v[f.at[i]];
        size_t distance = k->count - f.at[i] - 1; /* at most 6 conditions of 6 instructions: fits 8 bits */
        if (f.on_false[i]) {
            at->jf = (uint8_t)distance;
        } else {
            at->jt = (uint8_t)distance;
        }
    }
    return rc;
}

static int emit_rules(struct compiler *k, const struct rule *rules)
{
    const struct rule *always = NULL;
    int rc = 0;
    for (const struct rule *r = rules; rc == 0 && r; r = r->next) {
        if (r->condition_count == 0) {
            always = always ? always : r;
        } else {
            rc = emit_rule(k, r);
        }
    }
    return rc < 0 ? rc : emit(k, BPF_RET | BPF_K, 0, 0, always ? always->action : k->default_action);
}

/* A run of numbers, up to the next range's first, that are all treated alike. */
struct range {
    uint32_t first;
    const struct rule *rules; /* NULL: plain action */
    uint32_t action;
};

static size_t make_ranges(const struct compiler *k, const struct entry *entries, size_t count,
                          struct range *ranges)
{
    size_t n = 0;
    ranges[n++] = (struct range){.first = 0, .action = k->default_action};
    for (size_t i = 0; i < count; i++) {
        const struct rule *rules = entries[i].rules;
        bool plain = rules->condition_count == 0 && !rules->next;
        struct range r = {
            .first = entries[i].number, .rules = plain ? NULL : rules, .action = plain ? rules->action : 0};
        struct range *last = &ranges[n - 1];
        if (last->first == r.first) {
            *last = r;
            if (n > 1 && !r.rules && !ranges[n - 2].rules && ranges[n - 2].action == r.action) {
                n--;
            }
        } else if (r.rules || last->rules || last->action != r.action) {
            ranges[n++] = r;
        }
        bool next_follows = i + 1 < count && entries[i + 1].number == entries[i].number + 1;
        last = &ranges[n - 1];
        if (!next_follows && (last->rules || last->action != k->default_action)) {
            ranges[n++] = (struct range){.first = entries[i].number + 1, .action = k->default_action};
        }
    }
    return n;
}

/* A search tree: compare with the middle range's first number, jump over the upper half if below. */
static int emit_tree(struct compiler *k, const struct range *ranges, size_t count)
{
    if (count == 1) {
        return ranges->rules ? emit_rules(k, ranges->rules) : emit(k, BPF_RET | BPF_K, 0, 0, ranges->action);
    }
    size_t mid = count / 2;
    size_t branch = k->count;
    /* The upper half comes first; the lower one may be further away than a conditional jump reaches (255). */
    int rc = emit(k, BPF_JMP | BPF_JGE | BPF_K, 1, 0, ranges[mid].first);
    rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JA, 0, 0, 0);
    rc = rc < 0 ? rc : emit_tree(k, ranges + mid, count - mid);
    if (rc < 0) {
        return rc;
    }
    size_t distance = k->count - branch - 2;
    if (distance + 1 <= 255) { /* near enough: without the long jump */
        memmove(&k->v[branch + 1], &k->v[branch + 2], distance * sizeof(*k->v));
        k->count--;
        k->v[branch].jt = 0;
        k->v[branch].jf = (uint8_t)distance;
    } else {
        k->v[branch + 1].k = (uint32_t)distance;
    }
    return emit_tree(k, ranges, mid);
}

static int emit_arch(struct compiler *k, const struct rule_list *list, const struct seccomp_arch *arch,
                     const struct seccomp_arch *x32)
{
    struct entry *entries = arena_array(k->arena, list->count + 1, sizeof(*entries));
    struct range *ranges = arena_array(k->arena, 2 * list->count + 2, sizeof(*ranges));
    size_t check = k->count;
    /* Another architecture: over this one's part, by a long jump. */
    int rc = emit(k, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, arch->audit);
    rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JA, 0, 0, 0);
    rc = rc < 0 ? rc : emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, 0);
    if (rc == 0 && arch->audit == AUDIT_ARCH_X86_64) {
        /* seccomp(2): x32 calls come as x86-64 with a bit set. As an architecture that isn't listed they die.
         */
        size_t branch = k->count;
        rc = emit(k, BPF_JMP | BPF_JGE | BPF_K, 1, 0, X32_BIT);
        rc = rc < 0 ? rc : emit(k, BPF_JMP | BPF_JA, 0, 0, 0);
        if (rc == 0 && x32) {
            size_t n = make_entries(k, list, x32, entries);
            n = make_ranges(k, entries, n, ranges);
            rc = emit_tree(k, ranges, n);
        } else if (rc == 0) {
            rc = emit(k, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_THREAD);
        }
        k->v[branch + 1].k = (uint32_t)(k->count - branch - 2);
    }
    if (rc == 0) {
        size_t n = make_entries(k, list, arch, entries);
        n = make_ranges(k, entries, n, ranges);
        rc = emit_tree(k, ranges, n);
    }
    if (rc == 0) {
        k->v[check + 1].k = (uint32_t)(k->count - check - 2);
    }
    return rc;
}

static int emit_program(struct compiler *k, const char **names)
{
    const struct seccomp_arch *archs[SECCOMP_ARCHS_MAX];
    const struct seccomp_arch *x32 = NULL;
    size_t count = 0;
    archs[count++] = seccomp_native_arch();
    for (size_t i = 0; names && names[i]; i++) {
        const struct seccomp_arch *arch = seccomp_arch_by_name(names[i]);
        if (!arch) {
            return err_set(k->err, -EINVAL, "unknown architecture '%s'", names[i]);
        }
        bool known = strcmp(arch->name, "SCMP_ARCH_X32") == 0;
        x32 = known ? arch : x32;
        for (size_t n = 0; n < count; n++) {
            known = known || archs[n] == arch;
        }
        if (!known && arch->audit && count < SECCOMP_ARCHS_MAX) {
            archs[count++] = arch;
        }
    }
    struct rule_list list = {.count = 0};
    int rc = parse_rules(k, &list);
    rc = rc < 0 ? rc : emit(k, BPF_LD | BPF_W | BPF_ABS, 0, 0, 4); /* struct seccomp_data: arch */
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = emit_arch(k, &list, archs[i], x32);
    }
    return rc < 0 ? rc : emit(k, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_THREAD);
}

int seccomp_compile(json_t *profile, struct arena *arena, struct seccomp_program **ret, struct err *err)
{
    struct seccomp_program *program = arena_alloc(arena, sizeof(*program));
    struct compiler k = {.arena = arena, .err = err};
    const char *action = NULL;
    const char **archs = NULL;
    const char **flags = NULL;
    int rc;
    k.v = arena_array(arena, BPF_MAXINSNS, sizeof(*k.v));
    if ((rc = json_str(profile, "seccomp", "defaultAction", &action, err)) < 0 ||
        (rc = parse_action(action, json_object_get(profile, "defaultErrnoRet"), &k.default_action, err)) <
            0 ||
        (rc = json_strv(profile, "seccomp", "architectures", arena, &archs, NULL, err)) < 0 ||
        (rc = json_strv(profile, "seccomp", "flags", arena, &flags, NULL, err)) < 0 ||
        (rc = json_str(profile, "seccomp", "listenerPath", &program->listener_path, err)) < 0 ||
        (rc = json_str(profile, "seccomp", "listenerMetadata", &program->listener_metadata, err)) < 0 ||
        (rc = json_arr(profile, "seccomp", "syscalls", &k.syscalls, err)) < 0) {
        return rc;
    }
    for (size_t i = 0; flags && flags[i]; i++) {
        size_t f = 0;
        while (f < ARRAY_SIZE(flag_table) && strcmp(flag_table[f].name, flags[i]) != 0) {
            f++;
        }
        if (f == ARRAY_SIZE(flag_table)) {
            return err_set(err, -EINVAL, "unknown flag '%s'", flags[i]);
        }
        program->flags |= flag_table[f].flag;
    }
    rc = emit_program(&k, archs);
    if (rc < 0) {
        return rc;
    }
    if (k.default_action == SECCOMP_RET_USER_NOTIF) {
        return err_set(err, -EINVAL, "SCMP_ACT_NOTIFY can't be the default action");
    }
    if (k.has_notify && !program->listener_path) {
        return err_set(err, -EINVAL, "SCMP_ACT_NOTIFY needs listenerPath");
    }
    if (!program->listener_path && program->listener_metadata) {
        return err_set(err, -EINVAL, "listenerMetadata needs listenerPath");
    }
    if (!k.has_notify) {
        program->listener_path = NULL;
    }
    program->v = k.v;
    program->count = k.count;
    program->has_notify = k.has_notify;
    *ret = program;
    return 0;
}

int seccomp_install(const struct seccomp_program *program, struct err *err)
{
    struct sock_fprog filter = {.len = (unsigned short)program->count, .filter = program->v};
    unsigned flags = program->flags | (program->has_notify ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0u);
    long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    return rc < 0 ? err_sys(err, -errno, "cannot load the seccomp filter") : (int)rc;
}

char *seccomp_agent_state(const struct seccomp_program *program, const char *state_text)
{
    json_t *o = json_object();
    json_t *state = json_loads(state_text, 0, NULL);
    json_t *fds = json_array();
    json_array_append_new(fds, json_string("seccompFd"));
    json_object_set(o, "ociVersion", json_object_get(state, "ociVersion"));
    json_object_set_new(o, "fds", fds);
    json_object_set(o, "pid", json_object_get(state, "pid"));
    if (program->listener_metadata) {
        json_object_set_new(o, "metadata", json_string(program->listener_metadata));
    }
    json_object_set_new(o, "state", state);
    char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return text;
}

const char *const *seccomp_action_names(size_t *ret_count)
{
    *ret_count = ARRAY_SIZE(action_names);
    return action_names;
}

const char *const *seccomp_operator_names(size_t *ret_count)
{
    *ret_count = ARRAY_SIZE(operator_names);
    return operator_names;
}

const char *const *seccomp_flag_names(size_t *ret_count)
{
    static const char *names[ARRAY_SIZE(flag_table)];
    for (size_t i = 0; i < ARRAY_SIZE(flag_table); i++) {
        names[i] = flag_table[i].name;
    }
    *ret_count = ARRAY_SIZE(flag_table);
    return names;
}
