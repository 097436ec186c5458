/*
 * The differential tester's command line. See README.md.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "base/util.h"
#include "tests/diff/gen.h"
#include "tests/diff/pool.h"
#include "tests/diff/reduce.h"

#define DEFAULT_CASES 10000u
#define GROUPS_MAX    256u
#define STEADY_RUNS   8u
#define REDUCED_MAX   300u /* later failures are counted only */

struct options {
    const char *engine;
    const char *save, *replay;
    uint64_t seed, cases, first;
    bool one; /* --case */
    enum diff_cat only;
    uint32_t ignored;
    uint32_t skipped; /* categories */
    uint32_t shown;   /* failing groups to print in full */
};

/* Failures with the same reduced instructions and differing items. */
struct group {
    char name[64];
    uint32_t bits;
    uint64_t count, index;
    uint32_t category;
};

struct session {
    struct options o;
    struct generator *generator;
    struct pool_worker *a, *b;
    struct diff_names names;
    uint64_t run[CAT_COUNT], failed[CAT_COUNT];
    uint64_t vectors[CAT_COUNT]; /* cases that ended with something else than the marker */
    struct group group[GROUPS_MAX];
    uint32_t groups, reduced;
    uint64_t unsteady; /* cases about which the host CPU contradicted itself */
    bool broken;       /* a runner can't be started again */
};

static uint32_t run_once(void *opaque, const struct diff_case *c)
{
    struct session *s = opaque;
    pool_submit(s->a, c, 1);
    pool_submit(s->b, c, 1);
    if (pool_wait(s->a) < 0 || pool_wait(s->b) < 0) {
        s->broken = true;
        return 0;
    }
    return diff_compare(c, pool_result(s->a, 0), pool_result(s->b, 0), s->o.ignored, &s->names, NULL);
}

static void print_items(uint32_t bits)
{
    if (bits & DIFF_BIT_VECTOR) {
        printf(" exception");
    }
    for (unsigned i = 0; i < ITEM_COUNT; i++) {
        if (bits & BIT(i)) {
            printf(" %s", diff_item_names[i]);
        }
    }
}

static void show(struct session *s, const struct diff_case *c)
{
    report_case(c, stdout);
    (void)run_once(s, c);
    const struct diff_result *a = pool_result(s->a, 0), *b = pool_result(s->b, 0);
    if (diff_compare(c, a, b, s->o.ignored, &s->names, stdout) == 0) {
        printf("  equal: ends with vector %u, error 0x%" PRIx64 ", CR2 0x%" PRIx64 ", RIP 0x%" PRIx64 "\n",
               a->vector, a->error, a->cr2, a->rip);
    }
}

/* Whether the host CPU itself disagrees with what it said before (`first`) and now agrees with the engine: an
 * interrupt at the wrong moment can change what XSAVE tells of unused state, for instance. That can happen
 * while the engine runs, too: then one of a few more runs agrees. */
static bool was_unsteady(struct session *s, const struct diff_case *c, const struct diff_result *first)
{
    bool xinuse = diff_tells_xinuse(c), equal = false;
    for (unsigned i = 0; !equal && i < (xinuse ? STEADY_RUNS : 1); i++) {
        equal = run_once(s, c) == 0;
    }
    if (!equal) {
        return false;
    }
    const struct diff_names again = {"native", "again"};
    uint32_t bits = diff_compare(c, first, pool_result(s->a, 0), s->o.ignored, &again, NULL);
    if (bits == 0 && !xinuse) {
        return false;
    }
    s->unsteady++;
    if (bits == 0) {
        return true;
    }
    printf("\n%s case %" PRIu64 ": the host CPU itself gave different results\n", diff_cat_names[c->category],
           c->index);
    report_case(c, stdout);
    (void)diff_compare(c, first, pool_result(s->a, 0), s->o.ignored, &again, stdout);
    return true;
}

/* The engine disagreed with what it says now: its state, or the moment of an interruption, made the
 * difference. */
static void show_once(struct session *s, const struct diff_case *c, const struct diff_result *first,
                      const struct diff_result *first_b)
{
    printf("\n%s case %" PRIu64 ": the engine gave a different result before\n", diff_cat_names[c->category],
           c->index);
    report_case(c, stdout);
    (void)diff_compare(c, first, first_b, s->o.ignored, &s->names, stdout);
}

static void fail(struct session *s, const struct diff_case *original, const struct diff_result *first,
                 const struct diff_result *first_b)
{
    if (was_unsteady(s, original, first)) {
        return;
    }
    s->failed[original->category]++;
    if (s->reduced >= REDUCED_MAX) {
        return;
    }
    s->reduced++;
    struct diff_case c = *original;
    reduce_case(&c, run_once, s);
    uint32_t bits = run_once(s, &c);
    char name[sizeof(s->group[0].name)];
    reduce_name(&c, name, sizeof(name));
    if (bits == 0) {
        snprintf(name, sizeof(name), "differed once only");
        show_once(s, original, first, first_b);
    }
    for (uint32_t i = 0; i < s->groups; i++) {
        if (s->group[i].bits == bits && strcmp(s->group[i].name, name) == 0) {
            s->group[i].count++;
            return;
        }
    }
    if (s->groups == GROUPS_MAX) {
        return;
    }
    struct group *g = &s->group[s->groups++];
    *g = (struct group){.bits = bits, .count = 1, .index = c.index, .category = c.category};
    memcpy(g->name, name, sizeof(name));
    if (s->groups <= s->o.shown) {
        printf("\n%s: %s differ in", diff_cat_names[c.category], name);
        print_items(bits);
        printf("\n  again with: --seed %" PRIu64 " --only %s --case %" PRIu64 "\n", c.seed,
               diff_cat_names[c.category], c.index);
        show(s, &c);
    }
    if (s->o.save && s->groups == 1) {
        (void)case_save(&c, s->o.save);
    }
}

static bool run_batch(struct session *s, const struct diff_case *cases, uint32_t n)
{
    static struct diff_case failing[POOL_BATCH];
    static struct diff_result first[POOL_BATCH], first_b[POOL_BATCH];
    uint32_t failures = 0;
    pool_submit(s->a, cases, n);
    pool_submit(s->b, cases, n);
    if (pool_wait(s->a) < 0 || pool_wait(s->b) < 0) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct diff_result *a = pool_result(s->a, i), *b = pool_result(s->b, i);
        s->run[cases[i].category]++;
        s->vectors[cases[i].category] += a->outcome == DIFF_EXCEPTION && a->vector != X86_BP;
        if (diff_compare(&cases[i], a, b, s->o.ignored, &s->names, NULL)) {
            first[failures] = *a;
            first_b[failures] = *b;
            failing[failures++] = cases[i];
        }
    }
    for (uint32_t i = 0; i < failures && !s->broken; i++) {
        fail(s, &failing[i], &first[i], &first_b[i]);
    }
    return !s->broken;
}

static bool run_all(struct session *s)
{
    static struct diff_case cases[POOL_BATCH];
    uint64_t end = s->o.first + (s->o.one ? 1 : s->o.cases);
    uint64_t index = s->o.first;
    while (index < end) {
        uint32_t n = 0;
        for (; n < POOL_BATCH && index < end; index++) {
            enum diff_cat category = s->o.only;
            if (category == CAT_COUNT) {
                category = (enum diff_cat)(index % CAT_COUNT);
            }
            if (!(s->o.skipped & BIT(category))) {
                generator_make(s->generator, s->o.seed, index, category, &cases[n++]);
            }
        }
        if (s->o.one && n > 0) {
            show(s, &cases[0]);
        }
        if (n > 0 && !run_batch(s, cases, n)) {
            return false;
        }
    }
    return true;
}

static int summary(const struct session *s, bool complete)
{
    if (s->groups) {
        printf("\nfailures by cause:\n");
    }
    for (uint32_t i = 0; i < s->groups; i++) {
        const struct group *g = &s->group[i];
        printf("  %6" PRIu64 "  %-10s %-40s", g->count, diff_cat_names[g->category], g->name);
        print_items(g->bits);
        printf("   (--only %s --case %" PRIu64 ")\n", diff_cat_names[g->category], g->index);
    }
    unsigned passed = 0, failed = 0;
    uint64_t total = 0;
    printf("\n");
    for (unsigned i = 0; i < CAT_COUNT; i++) {
        if (s->run[i] == 0) {
            continue;
        }
        printf("%s %-11s %8" PRIu64 " cases, %6" PRIu64 " of them faulted, %6" PRIu64 " differ\n",
               s->failed[i] ? "not ok" : "ok    ", diff_cat_names[i], s->run[i], s->vectors[i], s->failed[i]);
        passed += s->failed[i] == 0;
        failed += s->failed[i] != 0;
        total += s->run[i];
    }
    printf("%s against %s: %" PRIu64 " cases, %" PRIu64 " of them unsteady, seed %" PRIu64 "%s\n", s->names.b,
           s->names.a, total, s->unsteady, s->o.seed, complete ? "" : ", cut short");
    printf("1..%u\n", passed + failed);
    printf("%u passed, %u failed\n", passed, failed + (complete ? 0 : 1));
    return failed == 0 && complete ? 0 : 1;
}

static void usage(FILE *out)
{
    fprintf(out,
            "usage: diff [options]\n"
            "  --engine NAME    bt, bt-eager, kvm, or native for the host CPU against itself "
            "($FONDA_TEST_ENGINE, else "
            "bt)\n"
            "  --seed N         else random\n"
            "  --cases N        how many (%u)\n"
            "  --case N         this one only\n"
            "  --only CATEGORY  one category; --list shows them\n"
            "  --skip A,B,...   leave categories out\n"
            "  --ignore A,B,... items not to compare: ",
            DEFAULT_CASES);
    for (unsigned i = 0; i < ITEM_COUNT; i++) {
        fprintf(out, "%s%s", i ? "," : "", diff_item_names[i]);
    }
    fprintf(
        out,
        "\n"
        "  --defined        do not compare flags that the manual leaves undefined, nor what depends on them\n"
        "  --show N         print so many kinds of failures in full (20)\n"
        "  --save FILE      keep the first failing case, reduced\n"
        "  --replay FILE    run a kept case\n");
}

static int find_name(const char *const *names, unsigned count, const char *name, size_t length)
{
    for (unsigned i = 0; i < count; i++) {
        if (strlen(names[i]) == length && strncmp(names[i], name, length) == 0) {
            return (int)i;
        }
    }
    fprintf(stderr, "diff: there is no '%.*s'\n", (int)length, name);
    return -1;
}

/* A comma-separated list of names to a set of bits. */
static bool parse_list(const char *const *names, unsigned count, const char *list, uint32_t *ret_bits)
{
    while (*list) {
        size_t length = strcspn(list, ",");
        int i = find_name(names, count, list, length);
        if (i < 0) {
            return false;
        }
        *ret_bits |= BIT(i);
        list += length + (list[length] == ',');
    }
    return true;
}

static bool parse_number(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    uint64_t v = strtoull(text, &end, 0);
    if (errno || end == text || *end || *text == '-') {
        fprintf(stderr, "diff: '%s' is not a number\n", text);
        return false;
    }
    *ret = v;
    return true;
}

enum {
    OPT_ENGINE = 1,
    OPT_SEED,
    OPT_CASES,
    OPT_CASE,
    OPT_ONLY,
    OPT_SKIP,
    OPT_IGNORE,
    OPT_DEFINED,
    OPT_SHOW,
    OPT_SAVE,
    OPT_REPLAY,
    OPT_LIST,
    OPT_HELP
};

/* 0 to go on, 1 to leave with success, -1 with failure. */
static int parse_options(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"engine", required_argument, NULL, OPT_ENGINE}, {"seed", required_argument, NULL, OPT_SEED},
        {"cases", required_argument, NULL, OPT_CASES},   {"case", required_argument, NULL, OPT_CASE},
        {"only", required_argument, NULL, OPT_ONLY},     {"skip", required_argument, NULL, OPT_SKIP},
        {"ignore", required_argument, NULL, OPT_IGNORE}, {"show", required_argument, NULL, OPT_SHOW},
        {"save", required_argument, NULL, OPT_SAVE},     {"replay", required_argument, NULL, OPT_REPLAY},
        {"defined", no_argument, NULL, OPT_DEFINED},     {"list", no_argument, NULL, OPT_LIST},
        {"help", no_argument, NULL, OPT_HELP},           {NULL, 0, NULL, 0},
    };
    int opt;
    while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        uint64_t number = 0;
        bool good = true;
        switch (opt) {
        case OPT_ENGINE: o->engine = optarg; break;
        case OPT_SEED: good = parse_number(optarg, &o->seed); break;
        case OPT_CASES: good = parse_number(optarg, &o->cases); break;
        case OPT_CASE:
            good = parse_number(optarg, &o->first);
            o->one = true;
            break;
        case OPT_ONLY: {
            int cat = find_name(diff_cat_names, CAT_COUNT, optarg, strlen(optarg));
            o->only = (enum diff_cat)cat;
            good = cat >= 0;
            break;
        }
        case OPT_SKIP: good = parse_list(diff_cat_names, CAT_COUNT, optarg, &o->skipped); break;
        case OPT_IGNORE: good = parse_list(diff_item_names, ITEM_COUNT, optarg, &o->ignored); break;
        case OPT_DEFINED: o->ignored |= DIFF_IGNORE_UNDEFINED; break;
        case OPT_SHOW:
            good = parse_number(optarg, &number);
            o->shown = (uint32_t)MIN(number, GROUPS_MAX);
            break;
        case OPT_SAVE: o->save = optarg; break;
        case OPT_REPLAY: o->replay = optarg; break;
        case OPT_LIST: {
            struct generator *generator = generator_new();
            generator_list(generator, stdout);
            generator_free(generator);
            return 1;
        }
        case OPT_HELP: usage(stdout); return 1;
        default: good = false; break;
        }
        if (!good) {
            return -1;
        }
    }
    return optind == argc ? 0 : (fprintf(stderr, "diff: what is '%s'?\n", argv[optind]), -1);
}

static int replay(struct session *s)
{
    static struct diff_case c;
    if (case_load(&c, s->o.replay) < 0) {
        return 2;
    }
    show(s, &c);
    uint32_t bits = run_once(s, &c);
    if (bits) {
        printf("  differ in");
        print_items(bits);
        printf("\n");
    }
    printf("%u passed, %u failed\n", bits == 0, bits != 0);
    return bits != 0;
}

int main(int argc, char **argv)
{
    static struct session s;
    const char *environment = getenv("FONDA_TEST_ENGINE");
    s.o = (struct options){
        .engine = environment ? environment : "bt", .cases = DEFAULT_CASES, .only = CAT_COUNT, .shown = 20};
    if (getrandom(&s.o.seed, sizeof(s.o.seed), 0) < 0) {
        s.o.seed = 1;
    }
    s.o.seed %= 1000000000;
    int parsed = parse_options(argc, argv, &s.o);
    if (parsed != 0) {
        return parsed > 0 ? 0 : 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    bool itself = strcmp(s.o.engine, "native") == 0;
    if (strncmp(s.o.engine, "bt", 2) == 0) {
        s.o.ignored |= DIFF_IGNORE_BT | BIT(ITEM_FIP);
    }
    s.names = (struct diff_names){"native", itself ? "again" : s.o.engine};
    if (pool_start(&diff_native, NULL, &s.a) < 0 ||
        pool_start(itself ? &diff_native : &diff_guest, s.o.engine, &s.b) < 0) {
        pool_stop(s.a);
        return 2;
    }
    int status;
    if (s.o.replay) {
        status = replay(&s);
    } else {
        printf("seed %" PRIu64 "\n", s.o.seed);
        s.generator = generator_new();
        bool complete = run_all(&s);
        status = summary(&s, complete);
        generator_free(s.generator);
    }
    pool_stop(s.a);
    pool_stop(s.b);
    return status;
}
