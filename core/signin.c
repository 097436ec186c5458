/*
 * Signing in with a browser: one-time codes (`fonda web`), and the sessions that they become.
 *
 *     caller who is known --signin_code--> code, 5 minutes, in memory --signin_redeem--> session, 12 hours,
 * in the store
 *
 * Invariants
 *   1. A code works once; of a session, the store has the SHA-256 of its token alone.
 *   2. A session has no role of its own: the user's is looked up at each request. Sessions of the daemon's
 * own administrators (root, its user), who have no user object, are marked as local.
 */
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/util.h"
#include "core/core_int.h"

#define CODE_TTL_MS    (5 * 60 * 1000)
#define SESSION_TTL_MS (12ull * 3600 * 1000)
#define KIND           "session"

static int64_t wall_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void to_hex(const unsigned char *bytes, size_t len, char *hex)
{
    for (size_t i = 0; i < len; i++) {
        snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
    }
}

static int random_hex(char *hex, size_t bytes, struct fault *fault)
{
    unsigned char random[32];
    if (getrandom(random, bytes, 0) != (ssize_t)bytes) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no random numbers");
    }
    to_hex(random, bytes, hex);
    return 0;
}

/* The name that the store knows a token by: 30 of its SHA-256's bytes, as names are at most 63 long. */
static void name_of(const char *token, char *name)
{
    unsigned char hash[SHA256_DIGEST_LENGTH];
    SHA256((const unsigned char *)token, strlen(token), hash);
    to_hex(hash, 30, name);
}

static bool is_local(const struct caller *caller)
{
    return caller->session ? caller->session_local : strcmp(caller->from, "unix") == 0 && !caller->grants;
}

int signin_code(struct core *core, const struct caller *caller, char *ret_code, struct fault *fault)
{
    struct signin *oldest = &core->signins[0];
    for (size_t i = 0; i < ARRAY_SIZE(core->signins); i++) {
        if (core->signins[i].expires_ms < oldest->expires_ms) {
            oldest = &core->signins[i];
        }
    }
    if (random_hex(oldest->code, SIGNIN_CODE_LEN / 2, fault) < 0) {
        oldest->expires_ms = 0;
        return -1;
    }
    snprintf(oldest->user, sizeof(oldest->user), "%s", caller->name);
    oldest->local = is_local(caller);
    oldest->expires_ms = monotonic_ms() + CODE_TTL_MS;
    memcpy(ret_code, oldest->code, SIGNIN_CODE_LEN + 1);
    return 0;
}

/* ---- sessions ---- */

struct sessions {
    struct store *store;
    int64_t now, oldest_expires;
    unsigned count, stale_count;
    char oldest[64], stale[SESSIONS_MAX + 1][64];
};

static bool look_at(void *arg, const struct store_row *row)
{
    struct sessions *all = arg;
    json_t *session = json_loads(row->json, 0, NULL);
    int64_t expires = obj_int(session, "expires_ms");
    json_decref(session);
    if (expires < all->now) {
        if (all->stale_count < ARRAY_SIZE(all->stale)) {
            snprintf(all->stale[all->stale_count++], 64, "%s", row->name);
        }
    } else if (all->count++ == 0 || expires < all->oldest_expires) {
        all->oldest_expires = expires;
        snprintf(all->oldest, sizeof(all->oldest), "%s", row->name);
    }
    return true;
}

/* Forgets those that have expired; and the oldest, where there is no room for one more. */
static void make_room(struct core *core)
{
    struct sessions all = {.now = wall_ms()};
    struct store_query query = {.limit = UINT32_MAX};
    store_list(core->store, KIND, &query, look_at, &all, NULL, NULL);
    for (unsigned i = 0; i < all.stale_count; i++) {
        store_delete(core->store, KIND, all.stale[i], STORE_VERSION_ANY, NULL);
    }
    if (all.count >= SESSIONS_MAX) {
        store_delete(core->store, KIND, all.oldest, STORE_VERSION_ANY, NULL);
    }
}

int signin_redeem(struct core *core, const char *code, struct caller *ret_caller, char *ret_token,
                  struct fault *fault)
{
    struct signin *found = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(core->signins); i++) {
        if (core->signins[i].expires_ms > monotonic_ms() && strcmp(core->signins[i].code, code) == 0) {
            found = &core->signins[i];
        }
    }
    if (!found) {
        return fault_set(fault, FAULT_UNAUTHORIZED, "make a new one: fonda web",
                         "this sign-in link was used already, or is older than five minutes");
    }
    found->expires_ms = 0;
    char name[64];
    struct err err = {0};
    memcpy(ret_token, SESSION_PREFIX, sizeof(SESSION_PREFIX) - 1);
    if (random_hex(ret_token + sizeof(SESSION_PREFIX) - 1, 32, fault) < 0) {
        return -1;
    }
    make_room(core);
    name_of(ret_token, name);
    json_t *session = json_pack("{s:s, s:b, s:I}", "user", found->user, "local", found->local, "expires_ms",
                                (json_int_t)(wall_ms() + (int64_t)SESSION_TTL_MS));
    auto_free char *text = session ? json_dumps(session, JSON_COMPACT) : NULL;
    json_decref(session);
    if (!text) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    if (store_put(core->store, KIND, name, text, STORE_VERSION_NEW, NULL, &err) < 0) {
        return fault_from_err(fault, &err);
    }
    return user_from_session(core, ret_token, ret_caller, fault);
}

int user_from_session(struct core *core, const char *token, struct caller *ret_caller, struct fault *fault)
{
    char name[64];
    auto_free char *text = NULL;
    name_of(token, name);
    json_t *session = NULL;
    if (store_get(core->store, KIND, name, &text, NULL, NULL) == 0) {
        session = json_loads(text, 0, NULL);
    }
    int rc = 0;
    if (!session || obj_int(session, "expires_ms") < wall_ms()) {
        rc = fault_set(fault, FAULT_UNAUTHORIZED, "sign in again: fonda web", "the session has ended");
    } else if (obj_bool(session, "local")) {
        snprintf(ret_caller->name, sizeof(ret_caller->name), "%s", obj_text(session, "user"));
        ret_caller->role = ROLE_ADMIN;
    } else {
        rc = user_from_name(core, obj_text(session, "user"), ret_caller, fault);
    }
    if (rc == 0) {
        ret_caller->session = true;
        ret_caller->session_local = obj_bool(session, "local");
        memcpy(ret_caller->session_name, name, sizeof(name));
    }
    json_decref(session);
    return rc;
}

void signin_end(struct core *core, const struct caller *caller)
{
    if (caller->session) {
        store_delete(core->store, KIND, caller->session_name, STORE_VERSION_ANY, NULL);
    }
}
