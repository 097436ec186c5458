/*
 * The seccomp compiler against libseccomp, its simpler twin for this purpose: both compile the same random
 * profile, and an interpreter of classic BPF runs both programs over random system calls. The seed is
 * printed; FONDA_SEED repeats it.
 */
#include "base/util.h"
#include "container/seccomp.h"
#include "container/seccomp_names.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

static uint64_t state;

static uint32_t rnd(uint32_t bound)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 20) % bound;
}

/* The instructions that seccomp filters use (seccomp(2), linux/filter.h). */
static uint32_t interpret(const struct sock_filter *v, size_t count, const struct seccomp_data *data)
{
    uint32_t a = 0;
    uint32_t x = 0;
    uint32_t mem[16] = {0};
    for (size_t pc = 0, steps = 0; pc < count && steps < 100000; pc++, steps++) {
        const struct sock_filter *i = &v[pc];
        uint32_t k = i->k;
        switch (i->code) {
        case BPF_LD | BPF_W | BPF_ABS: memcpy(&a, (const char *)data + k, 4); break;
        case BPF_ALU | BPF_AND | BPF_K: a &= k; break;
        case BPF_JMP | BPF_JA: pc += k; break;
        case BPF_JMP | BPF_JEQ | BPF_K: pc += a == k ? i->jt : i->jf; break;
        case BPF_JMP | BPF_JGT | BPF_K: pc += a > k ? i->jt : i->jf; break;
        case BPF_JMP | BPF_JGE | BPF_K: pc += a >= k ? i->jt : i->jf; break;
        case BPF_ST: mem[k & 15] = a; break;
        case BPF_LD | BPF_MEM: a = mem[k & 15]; break;
        case BPF_MISC | BPF_TAX: x = a; break;
        case BPF_MISC | BPF_TXA: a = x; break;
        case BPF_RET | BPF_K: return k;
        default: fail_msg("instruction %#x", i->code);
        }
    }
    fail_msg("the program runs off its end");
    return 0;
}

static const char *const operators[] = {"SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE",       "SCMP_CMP_EQ",
                                        "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"};
static const enum scmp_compare twins[] = {SCMP_CMP_NE, SCMP_CMP_LT, SCMP_CMP_LE,       SCMP_CMP_EQ,
                                          SCMP_CMP_GE, SCMP_CMP_GT, SCMP_CMP_MASKED_EQ};

static const uint64_t interesting[] = {
    0, 1, 2, 7, 8, 0xffffffff, 0x100000000, 0x100000001, 0x7fffffffffffffff};

/* One rule for a name that has none yet, in both forms. libseccomp wants an action other than the default. */
static void add_rule(json_t *rules, scmp_filter_ctx ctx, const char *name, int number)
{
    uint32_t code = 1 + rnd(100);
    unsigned args = rnd(3) ? 0 : 1 + rnd(3);
    struct scmp_arg_cmp twin[3];
    json_t *list = json_array();
    for (unsigned i = 0; i < args; i++) {
        unsigned op = rnd(ARRAY_SIZE(operators));
        uint64_t value = interesting[rnd(ARRAY_SIZE(interesting))];
        uint64_t value2 = interesting[rnd(ARRAY_SIZE(interesting))] & value;
        twin[i] = (struct scmp_arg_cmp){.arg = i * 2, .op = twins[op], .datum_a = value, .datum_b = value2};
        json_array_append_new(list, json_pack("{s:i, s:I, s:I, s:s}", "index", (int)(i * 2), "value",
                                              (json_int_t)value, "valueTwo", (json_int_t)value2, "op",
                                              operators[op]));
    }
    json_array_append_new(rules, json_pack("{s:[s], s:s, s:i, s:o}", "names", name, "action",
                                           "SCMP_ACT_ERRNO", "errnoRet", (int)code, "args", list));
    assert_int_equal(seccomp_rule_add_array(ctx, SCMP_ACT_ERRNO(code), number, args, twin), 0);
}

static void compare_once(unsigned rule_count)
{
    struct arena arena = {NULL};
    struct seccomp_program *program = NULL;
    struct err err = {.code = 0};
    json_t *rules = json_array();
    bool used[512] = {false};
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    assert_non_null(ctx);
    for (unsigned i = 0; i < rule_count; i++) {
        int number = (int)rnd(335);
        char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64, number);
        if (name && !used[number]) {
            used[number] = true;
            add_rule(rules, ctx, name, number);
        }
        free(name);
    }
    json_t *profile = json_pack("{s:s, s:o}", "defaultAction", "SCMP_ACT_ALLOW", "syscalls", rules);
    if (seccomp_compile(profile, &arena, &program, &err) < 0) {
        fail_msg("%s", err.text);
    }
    int fd = memfd_create("bpf", MFD_CLOEXEC);
    assert_int_equal(seccomp_export_bpf(ctx, fd), 0);
    off_t size = lseek(fd, 0, SEEK_END);
    struct sock_filter *twin = malloc((size_t)size);
    assert_int_equal(pread(fd, twin, (size_t)size, 0), size);
    for (unsigned i = 0; i < 4000; i++) {
        struct seccomp_data data = {.nr = (int)rnd(340), .arch = AUDIT_ARCH_X86_64};
        if (rnd(50) == 0) {
            data.arch = AUDIT_ARCH_I386;
        }
        if (rnd(50) == 0) {
            data.nr |= 0x40000000;
        }
        for (unsigned k = 0; k < 6; k++) {
            data.args[k] = interesting[rnd(ARRAY_SIZE(interesting))] + (rnd(4) == 0);
        }
        uint32_t got = interpret(program->v, program->count, &data);
        uint32_t wanted = interpret(twin, (size_t)size / sizeof(*twin), &data);
        if (got != wanted) {
            fail_msg("call %d arch %#x: %#x, libseccomp has %#x", data.nr, data.arch, got, wanted);
        }
    }
    free(twin);
    close(fd);
    seccomp_release(ctx);
    json_decref(profile);
    arena_free(&arena);
}

static void test_against_libseccomp(void **unused)
{
    const char *text = getenv("FONDA_SEED");
    state = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 0x9e3779b97f4a7c15ull | 1;
    print_message("seed %#llx\n", (unsigned long long)state);
    for (unsigned i = 0; i < 12; i++) {
        compare_once(i * i * 3);
    }
}

static struct seccomp_program *compile(struct arena *arena, const char *text, struct err *err)
{
    struct seccomp_program *program = NULL;
    json_t *profile = json_loads(text, 0, NULL);
    assert_non_null(profile);
    int rc = seccomp_compile(profile, arena, &program, err);
    json_decref(profile);
    return rc < 0 ? NULL : program;
}

/* A condition before the rule without one; libseccomp would drop the condition. */
static void test_conditions_come_first(void **unused)
{
    struct arena arena = {NULL};
    struct err err;
    struct seccomp_program *p = compile(&arena,
                                        "{\"defaultAction\":\"SCMP_ACT_KILL\",\"syscalls\":[{\"names\":["
                                        "\"socket\"],\"action\":\"SCMP_ACT_ALLOW\"},"
                                        "{\"names\":[\"socket\"],\"action\":\"SCMP_ACT_ERRNO\",\"args\":[{"
                                        "\"index\":0,\"value\":40,\"op\":\"SCMP_CMP_EQ\"}]}]}",
                                        &err);
    struct seccomp_data data = {.nr = 41, .arch = AUDIT_ARCH_X86_64, .args = {40}};
    assert_non_null(p);
    assert_int_equal(interpret(p->v, p->count, &data), SECCOMP_RET_ERRNO | EPERM);
    data.args[0] = 1;
    assert_int_equal(interpret(p->v, p->count, &data), SECCOMP_RET_ALLOW);
    data.nr = 42;
    assert_int_equal(interpret(p->v, p->count, &data), SECCOMP_RET_KILL_THREAD);
    arena_free(&arena);
}

/* The same argument twice in one rule: either will do. */
static void test_same_argument_makes_alternatives(void **unused)
{
    struct arena arena = {NULL};
    struct err err;
    struct seccomp_program *p = compile(&arena,
                                        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":["
                                        "\"socket\"],\"action\":\"SCMP_ACT_ERRNO\","
                                        "\"args\":[{\"index\":0,\"value\":1,\"op\":\"SCMP_CMP_EQ\"},{"
                                        "\"index\":0,\"value\":2,\"op\":\"SCMP_CMP_EQ\"}]}]}",
                                        &err);
    assert_non_null(p);
    for (uint64_t family = 0; family < 4; family++) {
        struct seccomp_data data = {.nr = 41, .arch = AUDIT_ARCH_X86_64, .args = {family}};
        assert_int_equal(interpret(p->v, p->count, &data),
                         family == 1 || family == 2 ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_ALLOW);
    }
    arena_free(&arena);
}

static void test_architectures(void **unused)
{
    struct arena arena = {NULL};
    struct err err;
    struct seccomp_program *p = compile(
        &arena,
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"architectures\":[\"SCMP_ARCH_X86\",\"SCMP_ARCH_X32\"],"
        "\"syscalls\":[{\"names\":[\"mkdir\"],\"action\":\"SCMP_ACT_ERRNO\",\"errnoRet\":7}]}",
        &err);
    assert_non_null(p);
    const struct {
        uint32_t arch;
        int nr;
    } calls[] = {{AUDIT_ARCH_X86_64, 83}, {AUDIT_ARCH_I386, 39}, {AUDIT_ARCH_X86_64, 0x40000000 + 83}};
    for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
        struct seccomp_data data = {.nr = calls[i].nr, .arch = calls[i].arch};
        assert_int_equal(interpret(p->v, p->count, &data), SECCOMP_RET_ERRNO | 7);
        data.nr++;
        assert_int_equal(interpret(p->v, p->count, &data), SECCOMP_RET_ALLOW);
    }
    struct seccomp_data other = {.nr = 1, .arch = AUDIT_ARCH_AARCH64};
    assert_int_equal(interpret(p->v, p->count, &other), SECCOMP_RET_KILL_THREAD);
    arena_free(&arena);
}

static void test_bad_profiles(void **unused)
{
    static const char *const bad[] = {
        "{}",
        "{\"defaultAction\":\"SCMP_ACT_COFFEE\"}",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"defaultErrnoRet\":1}",
        "{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"defaultErrnoRet\":70000}",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[],\"action\":\"SCMP_ACT_KILL\"}]}",
        "{\"syscalls\":[{\"names\":\"x\",\"action\":\"SCMP_ACT_KILL\"}],\"defaultAction\":\"SCMP_ACT_LOG\"}",
        "{\"defaultAction\":\"SCMP_ACT_NOTIFY\",\"listenerPath\":\"/x\"}",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct arena arena = {NULL};
        struct err err = {.code = 0};
        assert_null(compile(&arena, bad[i], &err));
        assert_true(err.text[0] != '\0');
        arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_libseccomp),
        cmocka_unit_test(test_conditions_come_first),
        cmocka_unit_test(test_same_argument_makes_alternatives),
        cmocka_unit_test(test_architectures),
        cmocka_unit_test(test_bad_profiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
