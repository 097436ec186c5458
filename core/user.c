/*
 * Who may do what, and how much: callers from peer credentials, tokens and certificates; quotas.
 *
 * Tokens are 32 random bytes; only their SHA-256 is stored, so the state tells nobody a token.
 */
#include <openssl/sha.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/util.h"
#include "core/core_int.h"

static const char *const roles[] = {"none", "viewer", "operator", "admin"};

const char *role_name(enum role role)
{
    return roles[role];
}

enum role role_parse(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(roles); i++) {
        if (strcmp(roles[i], name) == 0) {
            return (enum role)i;
        }
    }
    return ROLE_NONE;
}

void caller_done(struct caller *caller)
{
    json_decref(caller->grants);
    caller->grants = NULL;
}

enum role caller_role(const struct caller *caller, const char *instance)
{
    const char *granted = instance ? json_string_value(json_object_get(caller->grants, instance)) : NULL;
    enum role role = granted ? role_parse(granted) : ROLE_NONE;
    return MAX(role, caller->role);
}

static void take_user(const json_t *user, struct caller *caller)
{
    snprintf(caller->name, sizeof(caller->name), "%s", obj_text(user, "name"));
    caller->role = role_parse(obj_text(user, "role"));
    caller->grants = json_incref(json_object_get(user, "grants"));
}

int user_from_name(struct core *core, const char *name, struct caller *ret_caller, struct fault *fault)
{
    json_t *user = NULL;
    struct fault ignored = {0};
    if (!field_name_ok(name) || object_get(core, &model_user, name, &user, NULL, &ignored) < 0) {
        return fault_set(fault, FAULT_UNAUTHORIZED,
                         "an administrator can add it: fonda user create NAME --role viewer",
                         "'%.64s' is not a user of this daemon", name);
    }
    take_user(user, ret_caller);
    json_decref(user);
    return 0;
}

int user_from_uid(struct core *core, unsigned uid, struct caller *ret_caller, struct fault *fault)
{
    struct passwd *pw = getpwuid(uid);
    char name[64];
    if (pw && field_name_ok(pw->pw_name)) {
        snprintf(name, sizeof(name), "%s", pw->pw_name);
    } else {
        snprintf(name, sizeof(name), "uid-%u", uid);
    }
    if (uid == geteuid() || uid == 0) {
        snprintf(ret_caller->name, sizeof(ret_caller->name), "%s", name);
        ret_caller->role = ROLE_ADMIN;
        return 0;
    }
    return user_from_name(core, name, ret_caller, fault);
}

static void hash_token(const char *token, char *hex)
{
    unsigned char hash[SHA256_DIGEST_LENGTH];
    SHA256((const unsigned char *)token, strlen(token), hash);
    for (size_t i = 0; i < sizeof(hash); i++) {
        snprintf(hex + 2 * i, 3, "%02x", hash[i]);
    }
}

static bool first_row(void *arg, const struct store_row *row)
{
    *(json_t **)arg = json_loads(row->json, 0, NULL);
    return false;
}

int user_from_token(struct core *core, const char *token, struct caller *ret_caller, struct fault *fault)
{
    char hex[2 * SHA256_DIGEST_LENGTH + 1];
    if (strncmp(token, SESSION_PREFIX, sizeof(SESSION_PREFIX) - 1) == 0) {
        return user_from_session(core, token, ret_caller, fault);
    }
    hash_token(token, hex);
    struct store_node node = {.op = STORE_OP_EQ, .path = "token_hash", .type = STORE_TEXT, .text = hex};
    struct store_query query = {.nodes = &node, .count = 1, .limit = 1};
    json_t *user = NULL;
    store_list(core->store, "user", &query, first_row, &user, NULL, NULL);
    if (!user) {
        return fault_set(fault, FAULT_UNAUTHORIZED,
                         "an administrator can make a new one: fonda user token NAME",
                         "the token is not valid");
    }
    take_user(user, ret_caller);
    json_decref(user);
    return 0;
}

int user_new_token(struct core *core, const struct caller *caller, const char *name, char **ret_token,
                   struct fault *fault)
{
    unsigned char bytes[32];
    char token[2 * sizeof(bytes) + 8] = "fonda_";
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no random numbers");
    }
    for (size_t i = 0; i < sizeof(bytes); i++) {
        snprintf(token + 6 + 2 * i, 3, "%02x", bytes[i]);
    }
    json_t *user = NULL;
    uint64_t version;
    if (object_get(core, &model_user, name, &user, &version, fault) < 0) {
        return -1;
    }
    char hex[2 * SHA256_DIGEST_LENGTH + 1];
    hash_token(token, hex);
    obj_set_text(user, "token_hash", hex);
    json_object_set_new(user, "has_token", json_true());
    int rc = object_put(core, &model_user, user, version, "user.token", caller->name, fault);
    json_decref(user);
    if (rc == 0 && !(*ret_token = strdup(token))) {
        rc = fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    return rc;
}

/* ---- quotas ---- */

struct sums {
    const char *except;
    int64_t objects, cpus, memory, disk;
};

static bool sum_row(void *arg, const struct store_row *row)
{
    struct sums *sums = arg;
    if (!sums->except || strcmp(sums->except, row->name) != 0) {
        json_t *object = json_loads(row->json, 0, NULL);
        sums->objects++;
        sums->cpus += obj_int(object, "cpus");
        sums->memory += obj_int(object, "memory");
        sums->disk += obj_int(object, "size") + obj_int(object, "saved_bytes");
        json_decref(object);
    }
    return true;
}

static int over(const char *owner, const json_t *user, const char *quota, int64_t would_be,
                struct fault *fault)
{
    const json_t *limit = json_object_get(user, quota);
    if (!limit || would_be <= json_integer_value(limit)) {
        return 0;
    }
    return fault_set(fault, FAULT_QUOTA, "delete something, or ask an administrator for more",
                     "user '%s': %s is %lld, and this would make it %lld", owner, quota,
                     (long long)json_integer_value(limit), (long long)would_be);
}

/* What counts against quota_disk, by "size"; instances by what is saved of them. */
static const char *const on_disk[] = {"volume", "snapshot", "backup", "instance"};

int quota_check(struct core *core, const char *owner, const struct object_type *type, const json_t *more,
                const char *except, struct fault *fault)
{
    json_t *user = NULL;
    struct fault ignored = {0};
    if (object_get(core, &model_user, owner, &user, NULL, &ignored) < 0) {
        return 0; /* the host's own administrators have no quota */
    }
    struct store_node node = {.op = STORE_OP_EQ, .path = "owner", .type = STORE_TEXT, .text = owner};
    struct store_query query = {.nodes = &node, .count = 1, .limit = UINT32_MAX};
    struct sums sums = {.except = type == &model_instance ? except : NULL};
    int rc = 0;
    for (size_t i = 0; type != &model_instance && i < ARRAY_SIZE(on_disk); i++) {
        store_list(core->store, on_disk[i], &query, sum_row, &sums, NULL, NULL);
    }
    if (type == &model_instance) {
        store_list(core->store, "instance", &query, sum_row, &sums, NULL, NULL);
    }
    if (type != &model_instance) {
        rc = over(owner, user, "quota_disk", sums.disk + obj_int(more, "size"), fault);
    } else if (over(owner, user, "quota_instances", sums.objects + 1, fault) < 0 ||
               over(owner, user, "quota_cpus", sums.cpus + obj_int(more, "cpus"), fault) < 0 ||
               over(owner, user, "quota_memory", sums.memory + obj_int(more, "memory"), fault) < 0) {
        rc = -1;
    }
    json_decref(user);
    return rc;
}
