/*
 * core/signin.c: codes work once and for five minutes, sessions end, roles are looked up each time, and the
 * store knows no token.
 */
#include "tests/unit/unit.h"

#include <ftw.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "core/core_int.h"

struct rig {
    char dir[64];
    struct core *core;
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void wake(void *opaque)
{
}

static const struct caller root = {.name = "root", .from = "unix", .role = ROLE_ADMIN};

static void add_user(struct core *core, const char *name, const char *role)
{
    struct fault fault = {0};
    json_t *user = json_pack("{s:s, s:s, s:{s:s}}", "name", name, "role", role, "grants", "web", "operator");
    assert_int_equal(object_create(core, &model_user, user, &root, &fault), 0);
    json_decref(user);
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    strcpy(rig->dir, "/tmp/fonda-signin-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    struct core_config config = {.state_dir = rig->dir, .wake = wake};
    struct err err = {0};
    assert_int_equal(core_open(&config, &rig->core, &err), 0);
    core_lock(rig->core);
    add_user(rig->core, "alice", "viewer");
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;
    core_unlock(rig->core);
    core_close(rig->core);
    nftw(rig->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(rig);
    return 0;
}

static struct caller alice(struct core *core)
{
    struct caller caller = {.from = "unix"};
    struct fault fault = {0};
    assert_int_equal(user_from_name(core, "alice", &caller, &fault), 0);
    return caller;
}

/* Signs in; the token goes into `token`. */
static void enter(struct core *core, const struct caller *who, char *token)
{
    char code[SIGNIN_CODE_LEN + 1];
    struct caller caller = {0};
    struct fault fault = {0};
    assert_int_equal(signin_code(core, who, code, &fault), 0);
    assert_int_equal(signin_redeem(core, code, &caller, token, &fault), 0);
    caller_done(&caller);
}

static int knows(struct core *core, const char *token, struct caller *caller)
{
    struct fault fault = {0};
    memset(caller, 0, sizeof(*caller));
    int rc = user_from_session(core, token, caller, &fault);
    assert_true(rc == 0 || fault.code == FAULT_UNAUTHORIZED);
    return rc;
}

static void test_once(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char code[SIGNIN_CODE_LEN + 1], token[SESSION_TOKEN_LEN + 1], second[SESSION_TOKEN_LEN + 1] = "";
    struct caller caller = {0};
    struct fault fault = {0};
    assert_int_equal(signin_code(core, &root, code, &fault), 0);
    assert_int_equal(strlen(code), SIGNIN_CODE_LEN);
    assert_int_equal(signin_redeem(core, code, &caller, token, &fault), 0);
    assert_int_equal(strlen(token), SESSION_TOKEN_LEN);
    assert_true(caller.session && caller.session_local && caller.role == ROLE_ADMIN);
    assert_string_equal(caller.name, "root");
    assert_int_equal(signin_redeem(core, code, &caller, second, &fault), -1);
    assert_int_equal(fault.code, FAULT_UNAUTHORIZED);
    assert_string_equal(second, "");
}

static void test_wrong_codes(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char code[SIGNIN_CODE_LEN + 1], token[SESSION_TOKEN_LEN + 1];
    struct caller caller = {0};
    struct fault fault = {0};
    assert_int_equal(signin_redeem(core, "", &caller, token, &fault),
                     -1); /* no code was made: none is empty */
    assert_int_equal(signin_code(core, &root, code, &fault), 0);
    char other[SIGNIN_CODE_LEN + 8];
    snprintf(other, sizeof(other), "%s0", code);
    assert_int_equal(signin_redeem(core, other, &caller, token, &fault), -1);
    snprintf(other, sizeof(other), "%.*s", SIGNIN_CODE_LEN - 1, code);
    assert_int_equal(signin_redeem(core, other, &caller, token, &fault), -1);
    code[0] = code[0] == 'a' ? 'b' : 'a';
    assert_int_equal(signin_redeem(core, code, &caller, token, &fault), -1);
}

static void test_old_code(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char code[SIGNIN_CODE_LEN + 1], token[SESSION_TOKEN_LEN + 1];
    struct caller caller = {0};
    struct fault fault = {0};
    assert_int_equal(signin_code(core, &root, code, &fault), 0);
    for (size_t i = 0; i < ARRAY_SIZE(core->signins); i++) {
        if (core->signins[i].expires_ms) {
            assert_in_range(core->signins[i].expires_ms - monotonic_ms(), 1, 5 * 60 * 1000);
            core->signins[i].expires_ms = monotonic_ms() - 1;
        }
    }
    assert_int_equal(signin_redeem(core, code, &caller, token, &fault), -1);
    assert_int_equal(fault.code, FAULT_UNAUTHORIZED);
}

/* There is room for 16 codes; one more takes the oldest one's place. */
static void test_many_codes(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    enum { ROOM = ARRAY_SIZE(((struct core *)NULL)->signins) };
    char codes[ROOM + 1][SIGNIN_CODE_LEN + 1], token[SESSION_TOKEN_LEN + 1];
    struct caller caller = {0};
    struct fault fault = {0};
    for (size_t i = 0; i <= ROOM; i++) {
        assert_int_equal(signin_code(core, &root, codes[i], &fault), 0);
        for (size_t k = 0; k < ROOM; k++) { /* so that each is older than the next by the clock too */
            core->signins[k].expires_ms -= core->signins[k].expires_ms ? 2 : 0;
        }
    }
    assert_int_equal(signin_redeem(core, codes[0], &caller, token, &fault), -1);
    for (size_t i = 1; i <= ROOM; i++) {
        assert_int_equal(signin_redeem(core, codes[i], &caller, token, &fault), 0);
    }
}

/* A session has the role that its user has now, and none when there is no such user any more. */
static void test_roles(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char token[SESSION_TOKEN_LEN + 1];
    struct caller who = alice(core), caller;
    struct fault fault = {0};
    enter(core, &who, token);
    caller_done(&who);
    assert_int_equal(knows(core, token, &caller), 0);
    assert_true(caller.role == ROLE_VIEWER && caller.session && !caller.session_local);
    assert_int_equal(caller_role(&caller, "web"), ROLE_OPERATOR);
    caller_done(&caller);
    json_t *patch = json_pack("{s:s}", "role", "operator");
    assert_int_equal(object_change(core, &model_user, "alice", patch, STORE_VERSION_ANY, &root, NULL, &fault),
                     0);
    json_decref(patch);
    assert_int_equal(knows(core, token, &caller), 0);
    assert_int_equal(caller.role, ROLE_OPERATOR);
    caller_done(&caller);
    assert_int_equal(object_delete(core, &model_user, "alice", STORE_VERSION_ANY, &root, &fault), 0);
    assert_int_equal(knows(core, token, &caller), -1);
}

/* Who is an administrator by the socket alone is one; who came otherwise, or by a user's session, is not. */
static void test_local(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char token[SESSION_TOKEN_LEN + 1], again[SESSION_TOKEN_LEN + 1];
    struct caller remote = {.name = "root", .from = "192.0.2.1", .role = ROLE_ADMIN}, caller, who;
    struct fault fault = {0};
    char code[SIGNIN_CODE_LEN + 1];
    assert_int_equal(signin_code(core, &remote, code, &fault), 0);
    memset(&caller, 0, sizeof(caller));
    assert_int_equal(signin_redeem(core, code, &caller, token, &fault), -1); /* there is no user "root" */
    who = alice(core);
    enter(core, &who, token);
    caller_done(&who);
    assert_int_equal(knows(core, token, &caller), 0);
    enter(core, &caller, again); /* a session makes a link for another browser */
    caller_done(&caller);
    assert_int_equal(knows(core, again, &caller), 0);
    assert_true(caller.role == ROLE_VIEWER && !caller.session_local);
    caller_done(&caller);
    enter(core, &root, token);
    assert_int_equal(knows(core, token, &caller), 0);
    enter(core, &caller, again);
    assert_int_equal(knows(core, again, &caller), 0);
    assert_true(caller.role == ROLE_ADMIN && caller.session_local);
}

static void test_end(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char token[SESSION_TOKEN_LEN + 1], other[SESSION_TOKEN_LEN + 1];
    struct caller caller, also;
    enter(core, &root, token);
    enter(core, &root, other);
    signin_end(core, &root); /* came by other ways: nothing ends */
    assert_int_equal(knows(core, token, &caller), 0);
    signin_end(core, &caller);
    assert_int_equal(knows(core, token, &also), -1);
    assert_int_equal(knows(core, other, &also), 0);
    signin_end(core, &caller); /* twice is no harm */
}

static void test_wrong_tokens(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char token[SESSION_TOKEN_LEN + 1];
    struct caller caller;
    enter(core, &root, token);
    static const char *const wrong[] = {
        "", "fonda_session_", "x",
        "fonda_session_0000000000000000000000000000000000000000000000000000000000000000"};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        assert_int_equal(knows(core, wrong[i], &caller), -1);
    }
    token[SESSION_TOKEN_LEN - 1] = token[SESSION_TOKEN_LEN - 1] == '0' ? '1' : '0';
    assert_int_equal(knows(core, token, &caller), -1);
}

struct rows {
    unsigned count;
    char names[SESSIONS_MAX + 8][64];
    const char *secret;
};

static bool each(void *arg, const struct store_row *row)
{
    struct rows *rows = arg;
    assert_null(strstr(row->json, rows->secret));
    assert_null(strstr(row->name, rows->secret));
    snprintf(rows->names[rows->count++], 64, "%s", row->name);
    return true;
}

static unsigned sessions(struct core *core, struct rows *rows, const char *token)
{
    struct store_query query = {.limit = 1000};
    memset(rows, 0, sizeof(*rows));
    rows->secret = token + strlen(SESSION_PREFIX);
    assert_int_equal(store_list(core->store, "session", &query, each, rows, NULL, NULL), 0);
    return rows->count;
}

/* At most 64; one more ends the oldest. Those that have expired make room first. */
static void test_many_sessions(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    char tokens[SESSIONS_MAX + 1][SESSION_TOKEN_LEN + 1];
    struct caller caller;
    struct rows rows;
    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        enter(core, &root, tokens[i]);
    }
    assert_int_equal(sessions(core, &rows, tokens[0]), SESSIONS_MAX);
    assert_int_equal(store_put(core->store, "session", rows.names[5],
                               "{\"user\":\"root\",\"local\":true,\"expires_ms\":1000}", STORE_VERSION_ANY,
                               NULL, NULL),
                     0);
    unsigned void_ones = 0;
    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        void_ones += knows(core, tokens[i], &caller) < 0; /* the one that has expired */
    }
    assert_int_equal(void_ones, 1);
    enter(core, &root, tokens[SESSIONS_MAX]);
    assert_int_equal(sessions(core, &rows, tokens[SESSIONS_MAX]), SESSIONS_MAX);
    enter(core, &root, tokens[SESSIONS_MAX]);
    assert_int_equal(sessions(core, &rows, tokens[SESSIONS_MAX]), SESSIONS_MAX);
    assert_int_equal(knows(core, tokens[SESSIONS_MAX], &caller), 0);
}

/* What the store has of a session may be damaged: nobody is signed in by it. */
static void test_damaged(void **state)
{
    struct core *core = ((struct rig *)*state)->core;
    static const char *const texts[] = {"{}",
                                        "[]",
                                        "7",
                                        "{\"user\":\"root\",\"local\":true}",
                                        "{\"user\":7,\"expires_ms\":9999999999999}",
                                        "{\"user\":\"\",\"expires_ms\":9999999999999}",
                                        "{\"user\":\"nobody\",\"expires_ms\":9999999999999}"};
    char token[SESSION_TOKEN_LEN + 1];
    struct caller caller;
    struct rows rows;
    enter(core, &root, token);
    assert_int_equal(sessions(core, &rows, token), 1);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        assert_int_equal(
            store_put(core->store, "session", rows.names[0], texts[i], STORE_VERSION_ANY, NULL, NULL), 0);
        assert_int_equal(knows(core, token, &caller), -1);
    }
}

/* Sessions outlive the daemon; codes don't. */
static void test_next_daemon(void **state)
{
    struct rig *rig = *state;
    char token[SESSION_TOKEN_LEN + 1], code[SIGNIN_CODE_LEN + 1], other[SESSION_TOKEN_LEN + 1];
    struct caller caller = {0};
    struct fault fault = {0};
    struct err err = {0};
    enter(rig->core, &root, token);
    assert_int_equal(signin_code(rig->core, &root, code, &fault), 0);
    core_unlock(rig->core);
    core_close(rig->core);
    struct core_config config = {.state_dir = rig->dir, .wake = wake};
    assert_int_equal(core_open(&config, &rig->core, &err), 0);
    core_lock(rig->core);
    assert_int_equal(knows(rig->core, token, &caller), 0);
    assert_int_equal(signin_redeem(rig->core, code, &caller, other, &fault), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_codes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_old_code, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_codes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_roles, setup, teardown),
        cmocka_unit_test_setup_teardown(test_local, setup, teardown),
        cmocka_unit_test_setup_teardown(test_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_tokens, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_sessions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_next_daemon, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
