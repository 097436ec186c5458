#include "image/auth.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "image/fs.h"
#include "image/limits.h"

#define HELPER_OUTPUT_MAX 16384u
#define HELPER_WAIT_MS    30000

extern char **environ;

int auth_from_text(const char *text, struct auth *ret_auth, struct err *err)
{
    const char *colon = strchr(text, ':');
    if (!colon || (size_t)(colon - text) >= AUTH_TEXT_MAX || strlen(colon + 1) >= AUTH_TEXT_MAX) {
        return err_set(err, -EINVAL, "credentials are written USER:PASSWORD");
    }
    memset(ret_auth, 0, sizeof(*ret_auth));
    memcpy(ret_auth->user, text, (size_t)(colon - text));
    strcpy(ret_auth->password, colon + 1);
    return 0;
}

/* Base64 of "USER:PASSWORD" (RFC 7617 2). */
static int decode_basic(const char *base64, struct auth *ret_auth, struct err *err)
{
    size_t length = strlen(base64);
    while (length && base64[length - 1] == '\n') {
        length--;
    }
    unsigned char plain[2 * AUTH_TEXT_MAX];
    if (length == 0 || length % 4 || length / 4 * 3 >= sizeof(plain)) {
        return err_set(err, -EINVAL, "an auth file's entry is not base64");
    }
    int n = EVP_DecodeBlock(plain, (const unsigned char *)base64, (int)length);
    if (n < 0) {
        return err_set(err, -EINVAL, "an auth file's entry is not base64");
    }
    plain[n] = '\0';
    return auth_from_text((const char *)plain, ret_auth, err);
}

/* "https://index.docker.io/v1/" is how Docker writes docker.io. Returns the length of the prefix of HOST/NAME
 * that key is, or 0. */
static size_t match_key(const char *key, const char *host, const char *name)
{
    const char *p = strncmp(key, "https://", 8) == 0  ? key + 8
                    : strncmp(key, "http://", 7) == 0 ? key + 7
                                                      : key;
    size_t length = strcspn(p, "/");
    bool docker = strcmp(host, "docker.io") == 0 && length == 15 && strncmp(p, "index.docker.io", 15) == 0;
    if (!docker && (strlen(host) != length || strncmp(p, host, length) != 0)) {
        return 0;
    }
    p += length;
    if (docker || p != key + length || !*p || strcmp(p, "/") == 0 || strncmp(p, "/v1", 3) == 0 ||
        strncmp(p, "/v2", 3) == 0) {
        return length;
    }
    size_t path = strlen(++p);
    return strncmp(name, p, path) == 0 && (!name[path] || name[path] == '/') ? length + 1 + path : 0;
}

int auth_parse(const char *text, size_t size, const char *host, const char *name, struct auth *ret_auth,
               char ret_helper[static 64], struct err *err)
{
    json_error_t error;
    json_t *root = json_loadb(text, size, 0, &error);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(err, -EINVAL, "is not a JSON object: line %d: %s", error.line, error.text);
    }
    int rc = 0;
    size_t best = 0;
    const char *key, *helper = NULL;
    json_t *value, *found = NULL;
    ret_helper[0] = '\0';
    json_object_foreach(json_object_get(root, "credHelpers"), key, value)
    {
        if (match_key(key, host, name) && json_string_value(value)) {
            helper = json_string_value(value);
        }
    }
    json_object_foreach(json_object_get(root, "auths"), key, value)
    {
        size_t length = match_key(key, host, name);
        if (length > best && json_is_object(value)) {
            best = length;
            found = value;
        }
    }
    if (!helper) {
        const char *store = json_string_value(json_object_get(root, "credsStore"));
        helper = store && !json_object_get(found, "auth") ? store : NULL;
    }
    if (helper) {
        if (strlen(helper) > 40 ||
            strspn(helper, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") !=
                strlen(helper)) {
            rc = err_set(err, -EINVAL, "names the credential helper '%.40s', which is no name of a program",
                         helper);
        } else {
            strcpy(ret_helper, helper);
        }
    } else if (found) {
        const char *basic = json_string_value(json_object_get(found, "auth"));
        const char *token = json_string_value(json_object_get(found, "identitytoken"));
        memset(ret_auth, 0, sizeof(*ret_auth));
        if (basic && *basic) {
            rc = decode_basic(basic, ret_auth, err);
        }
        if (rc == 0 && token && strlen(token) < AUTH_TEXT_MAX) {
            strcpy(ret_auth->identity_token, token);
        }
        rc = rc < 0 ? rc : (basic && *basic) || (token && *token);
    }
    json_decref(root);
    return rc;
}

/* docker-credential-NAME get: the host on its stdin, JSON on its stdout. */
static int ask_helper(const char *helper, const char *host, struct auth *ret_auth, struct err *err)
{
    char program[96], reply[HELPER_OUTPUT_MAX];
    snprintf(program, sizeof(program), "docker-credential-%s", helper);
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0) {
        return err_sys(err, -errno, "cannot make a pipe");
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    char *argv[] = {program, (char *)"get", NULL};
    pid_t pid;
    int rc = posix_spawnp(&pid, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    const char *question = strcmp(host, "docker.io") == 0 ? "https://index.docker.io/v1/" : host;
    size_t used = 0;
    if (rc == 0) {
        struct sigaction ignore = {.sa_handler = SIG_IGN}, old;
        sigaction(SIGPIPE, &ignore, &old);
        (void)fs_write_all(in[1], question, strlen(question));
        close(in[1]);
        sigaction(SIGPIPE, &old, NULL);
        struct pollfd p = {.fd = out[0], .events = POLLIN};
        while (used < sizeof(reply) - 1 && poll(&p, 1, HELPER_WAIT_MS) == 1) {
            ssize_t n = read(out[0], reply + used, sizeof(reply) - 1 - used);
            if (n <= 0) {
                break;
            }
            used += (size_t)n;
        }
        kill(pid, SIGTERM);
        waitpid(pid, NULL, 0);
    } else {
        close(in[1]);
    }
    close(out[0]);
    if (rc) {
        return err_sys(err, -rc, "cannot run the credential helper '%s'", program);
    }
    json_t *root = json_loadb(reply, used, 0, NULL);
    const char *user = json_string_value(json_object_get(root, "Username"));
    const char *secret = json_string_value(json_object_get(root, "Secret"));
    memset(ret_auth, 0, sizeof(*ret_auth));
    int found = user && secret && strlen(user) < AUTH_TEXT_MAX && strlen(secret) < AUTH_TEXT_MAX;
    if (found && strcmp(user, "<token>") == 0) {
        strcpy(ret_auth->identity_token, secret);
    } else if (found) {
        strcpy(ret_auth->user, user);
        strcpy(ret_auth->password, secret);
    }
    json_decref(root);
    return found; /* helpers answer with a sentence when they know nothing */
}

static int try_file(const char *path, bool must, const char *host, const char *name, struct auth *ret_auth,
                    struct err *err)
{
    auto_free char *text = NULL;
    size_t size;
    char helper[64];
    int rc = fs_read_file(AT_FDCWD, path, IMAGE_AUTH_FILE_MAX, &text, &size, err);
    if (rc < 0) {
        return !must && (rc == -ENOENT || rc == -ENOTDIR || rc == -EACCES) ? 0 : err_prefix(err, "auth file");
    }
    rc = auth_parse(text, size, host, name, ret_auth, helper, err);
    if (rc < 0) {
        return err_prefix(err, "auth file '%s'", path);
    }
    return helper[0] ? ask_helper(helper, host, ret_auth, err) : rc;
}

int auth_find(const char *auth_file, const char *host, const char *name, struct auth *ret_auth,
              struct err *err)
{
    const char *given = auth_file ? auth_file : getenv("REGISTRY_AUTH_FILE");
    if (given && *given) {
        return try_file(given, true, host, name, ret_auth, err);
    }
    const char *runtime = getenv("XDG_RUNTIME_DIR"), *config = getenv("XDG_CONFIG_HOME"),
               *home = getenv("HOME");
    const char *docker = getenv("DOCKER_CONFIG");
    char paths[4][4096];
    if (runtime) {
        snprintf(paths[0], sizeof(paths[0]), "%s/containers/auth.json", runtime);
    } else {
        snprintf(paths[0], sizeof(paths[0]), "/run/containers/%u/auth.json", getuid());
    }
    snprintf(paths[1], sizeof(paths[1]), "%s%s/containers/auth.json",
             config ? config
             : home ? home
                    : "",
             config ? "" : "/.config");
    snprintf(paths[2], sizeof(paths[2]), "%s/config.json", docker ? docker : "/nonexistent");
    snprintf(paths[3], sizeof(paths[3]), "%s/.docker/config.json", home ? home : "");
    for (unsigned i = 0; i < ARRAY_SIZE(paths); i++) {
        int rc = try_file(paths[i], false, host, name, ret_auth, err);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}
