/*
 * Requests, redirects, authorization. Redirects are libcurl's: at most IMAGE_REDIRECTS_MAX, never to another
 * protocol than allowed, and credentials stay with the host they are for.
 */
#include "image/registry.h"

#include <ctype.h>
#include <curl/curl.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "image/auth.h"
#include "image/fs.h"
#include "image/limits.h"

#define URL_MAX    4096
#define HEADER_MAX 4096
#define TOKEN_TEXT 16384

#define ACCEPT                                                                                               \
    "Accept: " MEDIA_OCI_INDEX ", " MEDIA_OCI_MANIFEST ", " MEDIA_DOCKER_LIST ", " MEDIA_DOCKER_MANIFEST

struct registry {
    struct image_ref ref;
    const struct image_options *options;
    char host[REF_HOST_MAX + 1]; /* the one that is connected to */
    const char *scheme;
    const char *actions; /* "pull" or "pull,push" */
    char *ca;            /* certificates besides the system's, PEM, or NULL */
    char client_cert[PATH_MAX], client_key[PATH_MAX];
    pthread_mutex_t lock; /* of what follows */
    struct auth auth;
    bool have_auth, basic;
    char token[TOKEN_TEXT]; /* "" until one was given */
};

struct reply {
    long status;
    char authenticate[HEADER_MAX], content_type[MEDIA_TYPE_MAX], location[URL_MAX];
};

/* Where a body goes: memory up to max bytes, or a file that is hashed. */
struct sink {
    char *text;
    size_t size;
    uint64_t max;
    bool too_long;
    int fd; /* -1: memory */
    int error;
    struct digest_state *digest;
    uint64_t done;
    void (*on_bytes)(void *opaque, uint64_t done);
    void *opaque;
    CURL *curl;
};

struct registry_conn {
    struct registry *registry;
    CURL *curl;
    char error[CURL_ERROR_SIZE];
};

/* ---- one request ---- */

static size_t on_body(char *data, size_t one, size_t size, void *opaque)
{
    struct sink *s = opaque;
    long status = 0;
    curl_easy_getinfo(s->curl, CURLINFO_RESPONSE_CODE, &status);
    if (s->fd >= 0 && (status < 200 || status > 299)) {
        return size; /* an error's text has no place in the file */
    }
    if (s->fd >= 0) {
        if (s->done + size > s->max) {
            s->too_long = true;
            return 0;
        }
        s->error = fs_write_all(s->fd, data, size);
        if (s->error < 0) {
            return 0;
        }
        digest_update(s->digest, data, size);
        s->done += size;
        if (s->on_bytes) {
            s->on_bytes(s->opaque, s->done);
        }
        return size;
    }
    if (s->size + size > s->max) {
        s->too_long = true;
        return 0;
    }
    char *text = realloc(s->text, s->size + size + 1);
    if (!text) {
        s->error = -ENOMEM;
        return 0;
    }
    memcpy(text + s->size, data, size);
    s->text = text;
    s->size += size;
    s->text[s->size] = '\0';
    return size;
}

static void keep_header(const char *line, size_t size, const char *name, char *buf, size_t room)
{
    size_t length = strlen(name);
    if (size > length && strncasecmp(line, name, length) == 0 && line[length] == ':') {
        const char *p = line + length + 1, *end = line + size;
        while (p < end && isspace((unsigned char)*p)) {
            p++;
        }
        while (end > p && isspace((unsigned char)end[-1])) {
            end--;
        }
        snprintf(buf, room, "%.*s", (int)(end - p), p);
    }
}

static size_t on_header(char *line, size_t one, size_t size, void *opaque)
{
    struct reply *reply = opaque;
    if (size > 5 && strncmp(line, "HTTP/", 5) == 0) {
        memset(reply, 0, sizeof(*reply)); /* of the last hop only */
    }
    char challenge[HEADER_MAX] = "";
    keep_header(line, size, "WWW-Authenticate", challenge, sizeof(challenge));
    if (challenge[0] && strncasecmp(reply->authenticate, "Bearer", 6) != 0) {
        strcpy(reply->authenticate, challenge);
    }
    keep_header(line, size, "Content-Type", reply->content_type, sizeof(reply->content_type));
    keep_header(line, size, "Location", reply->location, sizeof(reply->location));
    return size;
}

static void common_options(struct registry_conn *c, const char *url, struct sink *sink, struct reply *reply)
{
    const struct registry *r = c->registry;
    bool insecure = r->options->insecure;
    CURL *h = c->curl;
    curl_easy_reset(h);
    c->error[0] = '\0';
    sink->curl = h;
    curl_easy_setopt(h, CURLOPT_URL, url);
    curl_easy_setopt(h, CURLOPT_ERRORBUFFER, c->error);
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_USERAGENT, "fonda");
    curl_easy_setopt(h, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(h, CURLOPT_MAXREDIRS, IMAGE_REDIRECTS_MAX);
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, insecure ? "http,https" : "https");
    curl_easy_setopt(h, CURLOPT_REDIR_PROTOCOLS_STR, insecure ? "http,https" : "https");
    curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT, IMAGE_CONNECT_SECONDS);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_TIME, IMAGE_STALL_SECONDS);
    curl_easy_setopt(h, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(h, CURLOPT_BUFFERSIZE, 256L * 1024L);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, sink);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, reply);
    curl_easy_setopt(h, CURLOPT_SSL_VERIFYPEER, insecure ? 0L : 1L);
    curl_easy_setopt(h, CURLOPT_SSL_VERIFYHOST, insecure ? 0L : 2L);
    if (r->ca) {
        struct curl_blob blob = {.data = r->ca, .len = strlen(r->ca), .flags = CURL_BLOB_NOCOPY};
        curl_easy_setopt(h, CURLOPT_CAINFO_BLOB, &blob);
    }
    if (r->client_cert[0]) {
        curl_easy_setopt(h, CURLOPT_SSLCERT, r->client_cert);
        curl_easy_setopt(h, CURLOPT_SSLKEY, r->client_key);
    }
}

static int perform(struct registry_conn *c, struct sink *sink, struct reply *reply, struct err *err)
{
    CURLcode code = curl_easy_perform(c->curl);
    curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &reply->status);
    if (sink->too_long) {
        return err_set(err, -E2BIG, "registry '%s' sends more than %llu bytes", c->registry->host,
                       (unsigned long long)sink->max);
    }
    if (sink->error) {
        return err_sys(err, sink->error, "cannot write what the registry sends");
    }
    if (code == CURLE_OK) {
        return 0;
    }
    const char *text = c->error[0] ? c->error : curl_easy_strerror(code);
    switch (code) {
    case CURLE_TOO_MANY_REDIRECTS:
        return err_set(err, -ELOOP, "registry '%s' redirects more than %ld times (IMAGE_REDIRECTS_MAX)",
                       c->registry->host, IMAGE_REDIRECTS_MAX);
    case CURLE_PEER_FAILED_VERIFICATION:
        return err_set(err, -EPROTO,
                       "the certificate of registry '%s' can't be checked: %s (put its CA into "
                       "/etc/containers/certs.d/%s/ca.crt, or use --insecure)",
                       c->registry->host, text, c->registry->host);
    case CURLE_UNSUPPORTED_PROTOCOL:
        return err_set(err, -EPROTO,
                       "registry '%s' wants plain HTTP or another protocol, which only --insecure allows",
                       c->registry->host);
    case CURLE_SSL_CONNECT_ERROR:
        return err_set(err, -EPROTO, "registry '%s' does not speak TLS: %s (--insecure allows plain HTTP)",
                       c->registry->host, text);
    case CURLE_RANGE_ERROR:
        return err_set(err, -ERANGE, "registry '%s' cannot go on with a download: %s", c->registry->host,
                       text);
    case CURLE_COULDNT_RESOLVE_HOST:
        return err_set(err, -EHOSTUNREACH, "registry '%s' is unknown: %s", c->registry->host, text);
    case CURLE_COULDNT_CONNECT:
        return err_set(err, -ECONNREFUSED, "cannot reach registry '%s': %s", c->registry->host, text);
    default: return err_set(err, -EIO, "registry '%s': %s", c->registry->host, text);
    }
}

/* ---- authorization ---- */

/* The value of a parameter in a challenge (RFC 7235 2.1): realm="..." */
static bool parameter(const char *challenge, const char *name, char *buf, size_t size)
{
    size_t length = strlen(name);
    for (const char *p = challenge; (p = strcasestr(p, name)); p += length) {
        if ((p == challenge || strchr(" ,\t", p[-1])) && p[length] == '=') {
            p += length + 1;
            bool quoted = *p == '"';
            p += quoted;
            size_t n = strcspn(p, quoted ? "\"" : ", ");
            if (n >= size) {
                return false;
            }
            memcpy(buf, p, n);
            buf[n] = '\0';
            return true;
        }
    }
    return false;
}

static int fetch_token(struct registry_conn *c, const char *challenge, struct err *err)
{
    struct registry *r = c->registry;
    char realm[URL_MAX], service[512] = "", scope[512], url[2 * URL_MAX];
    if (!parameter(challenge, "realm", realm, sizeof(realm))) {
        return err_set(err, -EPROTO, "registry '%s' asks for a token without saying where", r->host);
    }
    parameter(challenge, "service", service, sizeof(service));
    snprintf(scope, sizeof(scope), "repository:%s:%s", r->ref.name, r->actions);
    struct sink sink = {.max = IMAGE_TOKEN_MAX, .fd = -1};
    struct reply reply = {0};
    auto_free char *post = NULL;
    char *e_service = curl_easy_escape(c->curl, service, 0), *e_scope = curl_easy_escape(c->curl, scope, 0);
    snprintf(url, sizeof(url), "%s%cservice=%s&scope=%s", realm, strchr(realm, '?') ? '&' : '?', e_service,
             e_scope);
    bool refresh = r->have_auth && r->auth.identity_token[0];
    if (refresh) {
        char *e_token = curl_easy_escape(c->curl, r->auth.identity_token, 0);
        if (asprintf(&post, "grant_type=refresh_token&client_id=fonda&service=%s&scope=%s&refresh_token=%s",
                     e_service, e_scope, e_token) < 0) {
            post = NULL;
        }
        curl_free(e_token);
    }
    curl_free(e_service);
    curl_free(e_scope);
    common_options(c, refresh ? realm : url, &sink, &reply);
    if (refresh) {
        curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, post ? post : "");
    } else if (r->have_auth) {
        curl_easy_setopt(c->curl, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
        curl_easy_setopt(c->curl, CURLOPT_USERNAME, r->auth.user);
        curl_easy_setopt(c->curl, CURLOPT_PASSWORD, r->auth.password);
    }
    int rc = perform(c, &sink, &reply, err);
    json_t *root = rc == 0 ? json_loadb(sink.text ? sink.text : "", sink.size, 0, NULL) : NULL;
    const char *token = json_string_value(json_object_get(root, "token"));
    token = token ? token : json_string_value(json_object_get(root, "access_token"));
    if (rc == 0 && (reply.status != 200 || !token || strlen(token) >= TOKEN_TEXT)) {
        rc = err_set(err, -EACCES, "the token server of registry '%s' gives no token for '%s' (status %ld)%s",
                     r->host, r->ref.name, reply.status,
                     r->have_auth ? ": check user and password"
                                  : ": no credentials are known, see --auth-file");
    }
    if (rc == 0) {
        strcpy(r->token, token);
    }
    json_decref(root);
    free(sink.text);
    return rc;
}

/* Answers a 401. used, used_basic: what the refused request had. */
static int authorize(struct registry_conn *c, const char *challenge, const char *used, bool used_basic,
                     struct err *err)
{
    struct registry *r = c->registry;
    int rc = 0;
    pthread_mutex_lock(&r->lock);
    if (strcmp(used, r->token) != 0 || used_basic != r->basic) {
        pthread_mutex_unlock(&r->lock);
        return 0; /* another thread found out meanwhile */
    }
    if (strncasecmp(challenge, "Bearer", 6) == 0) {
        rc = fetch_token(c, challenge, err);
    } else if (strncasecmp(challenge, "Basic", 5) == 0 && r->have_auth && !r->basic) {
        r->basic = true;
    } else {
        rc = err_set(err, -EACCES,
                     r->have_auth
                         ? "registry '%s' refuses the credentials for '%s'"
                         : "registry '%s' wants credentials for '%s', and none are known (see --auth-file)",
                     r->host, r->ref.name);
    }
    pthread_mutex_unlock(&r->lock);
    return rc;
}

static bool set_authorization(struct registry_conn *c, char used[static TOKEN_TEXT])
{
    struct registry *r = c->registry;
    pthread_mutex_lock(&r->lock);
    strcpy(used, r->token);
    bool basic = r->basic;
    pthread_mutex_unlock(&r->lock);
    if (used[0]) {
        curl_easy_setopt(c->curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
        curl_easy_setopt(c->curl, CURLOPT_XOAUTH2_BEARER, used);
    } else if (basic) {
        curl_easy_setopt(c->curl, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
        curl_easy_setopt(c->curl, CURLOPT_USERNAME, r->auth.user);
        curl_easy_setopt(c->curl, CURLOPT_PASSWORD, r->auth.password);
    }
    return basic;
}

struct request {
    const char *method; /* NULL: GET */
    const char *header; /* one more, or NULL */
    const char *body;   /* for PUT of a document */
    size_t body_size;
    int upload_fd; /* -1: none */
    uint64_t upload_size, resume;
    bool no_redirects;
};

static size_t on_upload(char *buf, size_t one, size_t size, void *opaque)
{
    ssize_t n = read(*(int *)opaque, buf, size);
    return n < 0 ? CURL_READFUNC_ABORT : (size_t)n;
}

static int on_upload_seek(void *opaque, curl_off_t offset, int origin)
{
    return lseek(*(int *)opaque, offset, origin) < 0 ? CURL_SEEKFUNC_FAIL : CURL_SEEKFUNC_OK;
}

static int request(struct registry_conn *c, const char *url, struct request *q, struct sink *sink,
                   struct reply *reply, struct err *err)
{
    char used[TOKEN_TEXT];
    for (unsigned try = 0;; try++) {
        common_options(c, url, sink, reply);
        bool used_basic = set_authorization(c, used);
        struct curl_slist *headers = curl_slist_append(NULL, q->header ? q->header : ACCEPT);
        headers = curl_slist_append(headers, "Expect:");
        curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, headers);
        if (q->no_redirects) {
            curl_easy_setopt(c->curl, CURLOPT_FOLLOWLOCATION, 0L);
        }
        if (q->resume) {
            curl_easy_setopt(c->curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)q->resume);
        }
        if (q->upload_fd >= 0) {
            lseek(q->upload_fd, 0, SEEK_SET);
            curl_easy_setopt(c->curl, CURLOPT_UPLOAD, 1L);
            curl_easy_setopt(c->curl, CURLOPT_READFUNCTION, on_upload);
            curl_easy_setopt(c->curl, CURLOPT_READDATA, &q->upload_fd);
            curl_easy_setopt(c->curl, CURLOPT_SEEKFUNCTION, on_upload_seek);
            curl_easy_setopt(c->curl, CURLOPT_SEEKDATA, &q->upload_fd);
            curl_easy_setopt(c->curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)q->upload_size);
        } else if (q->body) {
            curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, q->body);
            curl_easy_setopt(c->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)q->body_size);
        }
        if (q->method && strcmp(q->method, "HEAD") == 0) {
            curl_easy_setopt(c->curl, CURLOPT_NOBODY, 1L);
        } else if (q->method) {
            curl_easy_setopt(c->curl, CURLOPT_CUSTOMREQUEST, q->method);
        }
        int rc = perform(c, sink, reply, err);
        curl_slist_free_all(headers);
        if (rc < 0 || reply->status != 401 || try == 2) {
            return rc < 0                 ? rc
                   : reply->status == 401 ? err_set(err, -EACCES, "registry '%s' refuses access to '%s'",
                                                    c->registry->host, c->registry->ref.name)
                                          : 0;
        }
        char challenge[HEADER_MAX];
        strcpy(challenge, reply->authenticate);
        rc = authorize(c, challenge, used, used_basic, err);
        if (rc < 0) {
            return rc;
        }
        free(sink->text);
        sink->text = NULL;
        sink->size = 0;
    }
}

/* ---- opening ---- */

static void add_ca(struct registry *r, const char *dir)
{
    DIR *list = opendir(dir);
    for (struct dirent *e; list && (e = readdir(list));) {
        const char *dot = strrchr(e->d_name, '.');
        auto_free char *text = NULL;
        if (dot && strcmp(dot, ".crt") == 0 &&
            fs_read_file(dirfd(list), e->d_name, IMAGE_AUTH_FILE_MAX, &text, NULL, NULL) == 0) {
            char *all = NULL;
            if (asprintf(&all, "%s%s\n", r->ca ? r->ca : "", text) >= 0) {
                free(r->ca);
                r->ca = all;
            }
        } else if (dot && strcmp(dot, ".cert") == 0) {
            snprintf(r->client_cert, sizeof(r->client_cert), "%s/%s", dir, e->d_name);
            snprintf(r->client_key, sizeof(r->client_key), "%s/%.*s.key", dir, (int)(dot - e->d_name),
                     e->d_name);
        }
    }
    if (list) {
        closedir(list);
    }
}

static void find_certificates(struct registry *r)
{
    char dir[512];
    static const char *const places[] = {"/etc/docker/certs.d", "/etc/containers/certs.d"};
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        snprintf(dir, sizeof(dir), "%s/%s", places[i], r->ref.host);
        add_ca(r, dir);
    }
    if (r->options->cert_dir) {
        add_ca(r, r->options->cert_dir);
    }
    if (r->ca) {
        /* They come in addition to the system's. */
        auto_free char *system = NULL;
        char *all = NULL;
        if (fs_read_file(AT_FDCWD, "/etc/ssl/certs/ca-certificates.crt", 16 * MiB, &system, NULL, NULL) ==
                0 &&
            asprintf(&all, "%s\n%s", r->ca, system) >= 0) {
            free(r->ca);
            r->ca = all;
        }
    }
}

/* Whether there is somebody, and with TLS or, where allowed, without. */
static int ping(struct registry *r, struct err *err)
{
    struct registry_conn *c = NULL;
    int rc = registry_conn_new(r, &c, err);
    for (unsigned try = 0; rc == 0; try++) {
        char url[URL_MAX];
        struct sink sink = {.max = IMAGE_TOKEN_MAX, .fd = -1};
        struct reply reply = {0};
        snprintf(url, sizeof(url), "%s://%s/v2/", r->scheme, r->host);
        common_options(c, url, &sink, &reply);
        rc = perform(c, &sink, &reply, err);
        free(sink.text);
        if (rc == 0) {
            break;
        }
        if (try == 0 && r->options->insecure && (rc == -EPROTO || rc == -ECONNREFUSED || rc == -EIO)) {
            r->scheme = "http";
            rc = 0;
        }
    }
    registry_conn_free(c);
    return rc;
}

int registry_open(const struct image_ref *ref, const struct image_options *options, bool push,
                  struct registry **ret_registry, struct err *err)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
    struct registry *r = calloc(1, sizeof(*r));
    if (!r) {
        return err_set(err, -ENOMEM, "no memory");
    }
    r->ref = *ref;
    r->options = options;
    r->scheme = "https";
    r->actions = push ? "pull,push" : "pull";
    pthread_mutex_init(&r->lock, NULL);
    strcpy(r->host, strcmp(ref->host, "docker.io") == 0 ? "registry-1.docker.io" : ref->host);
    int rc = options->credentials ? auth_from_text(options->credentials, &r->auth, err)
                                  : auth_find(options->auth_file, ref->host, ref->name, &r->auth, err);
    r->have_auth = options->credentials || rc > 0;
    if (rc >= 0) {
        find_certificates(r);
        rc = ping(r, err);
    }
    if (rc < 0) {
        registry_close(r);
        return rc;
    }
    *ret_registry = r;
    return 0;
}

void registry_close(struct registry *registry)
{
    if (registry) {
        pthread_mutex_destroy(&registry->lock);
        explicit_bzero(&registry->auth, sizeof(registry->auth));
        free(registry->ca);
        free(registry);
    }
}

int registry_conn_new(struct registry *registry, struct registry_conn **ret_conn, struct err *err)
{
    struct registry_conn *c = calloc(1, sizeof(*c));
    if (c) {
        c->registry = registry;
        c->curl = curl_easy_init();
    }
    if (!c || !c->curl) {
        free(c);
        return err_set(err, -ENOMEM, "no memory");
    }
    *ret_conn = c;
    return 0;
}

void registry_conn_free(struct registry_conn *conn)
{
    if (conn) {
        curl_easy_cleanup(conn->curl);
        free(conn);
    }
}

/* ---- pull ---- */

static void api_url(const struct registry_conn *c, const char *kind, const char *what,
                    char url[static URL_MAX])
{
    const struct registry *r = c->registry;
    snprintf(url, URL_MAX, "%s://%s/v2/%s/%s/%s", r->scheme, r->host, r->ref.name, kind, what);
}

static int status_error(const struct registry_conn *c, const struct reply *reply, const char *what,
                        struct err *err)
{
    const struct registry *r = c->registry;
    if (reply->status == 404) {
        return err_set(err, -ENOENT, "registry '%s' has no %s in '%s'", r->ref.host, what, r->ref.name);
    }
    if (reply->status == 403) {
        return err_set(err, -EACCES, "registry '%s' refuses access to '%s'", r->ref.host, r->ref.name);
    }
    return err_set(err, reply->status == 429 || reply->status >= 500 ? -EAGAIN : -EPROTO,
                   "registry '%s' answers %ld for %s of '%s'", r->ref.host, reply->status, what, r->ref.name);
}

int registry_get_manifest(struct registry_conn *conn, const char *reference, char **ret_text,
                          size_t *ret_size, char ret_media_type[static MEDIA_TYPE_MAX], struct err *err)
{
    char url[URL_MAX], what[200];
    struct sink sink = {.max = IMAGE_MANIFEST_MAX, .fd = -1};
    struct reply reply = {0};
    struct request q = {.upload_fd = -1};
    api_url(conn, "manifests", reference, url);
    snprintf(what, sizeof(what), "'%s'", reference);
    int rc = request(conn, url, &q, &sink, &reply, err);
    if (rc == 0 && reply.status != 200) {
        rc = status_error(conn, &reply, what, err);
    }
    if (rc < 0) {
        free(sink.text);
        return rc;
    }
    reply.content_type[strcspn(reply.content_type, "; ")] = '\0';
    strcpy(ret_media_type, reply.content_type);
    *ret_text = sink.text ? sink.text : strdup("");
    *ret_size = sink.size;
    return 0;
}

int registry_get_blob(struct registry_conn *conn, const struct descriptor *d, int fd, uint64_t have,
                      struct digest_state *state, void (*on_bytes)(void *opaque, uint64_t done), void *opaque,
                      struct err *err)
{
    char url[URL_MAX];
    struct sink sink = {.max = d->size_bytes,
                        .fd = fd,
                        .digest = state,
                        .done = have,
                        .on_bytes = on_bytes,
                        .opaque = opaque};
    struct reply reply = {0};
    int rc = 0;
    api_url(conn, "blobs", d->digest, url);
    for (unsigned try = 0; sink.done < d->size_bytes || try == 0; try++) {
        uint64_t before = sink.done;
        struct request q = {.upload_fd = -1, .resume = sink.done, .header = "Accept: */*"};
        if (before == d->size_bytes) {
            break;
        }
        rc = request(conn, url, &q, &sink, &reply, err);
        /* libcurl itself refuses an answer without Content-Range to a request with Range: start anew. */
        bool no_range =
            before > 0 && sink.done == before && (rc == -ERANGE || (rc == 0 && reply.status == 416));
        if (no_range) {
            digest_done(state);
            if (ftruncate(fd, 0) < 0 || lseek(fd, 0, SEEK_SET) < 0 || digest_init(state) < 0) {
                return err_sys(err, -errno, "cannot start the download anew");
            }
            sink.done = 0;
        } else if (rc == 0 && reply.status != 200 && reply.status != 206) {
            rc = status_error(conn, &reply, "such a blob", err);
        } else if (rc == 0 && sink.done < d->size_bytes) {
            rc = err_set(err, -EIO, "registry '%s' ends blob %.19s after %llu of %llu bytes",
                         conn->registry->ref.host, d->digest, (unsigned long long)sink.done,
                         (unsigned long long)d->size_bytes);
        }
        bool again = rc == -EIO || rc == -EAGAIN || rc == -ECONNREFUSED || no_range;
        if (rc < 0 && (!again || try + 1 >= IMAGE_TRIES_MAX)) {
            return rc;
        }
        if (try + 1 >= IMAGE_TRIES_MAX) {
            break;
        }
        if (rc < 0 && sink.done == before && !no_range) {
            usleep(200000u << try);
        }
    }
    return sink.done == d->size_bytes
               ? 0
               : err_set(err, -EIO, "registry '%s' does not give blob %.19s as a whole",
                         conn->registry->ref.host, d->digest);
}

/* ---- push ---- */

int registry_has_blob(struct registry_conn *conn, const char *digest, bool *ret_has, struct err *err)
{
    char url[URL_MAX];
    struct sink sink = {.max = IMAGE_TOKEN_MAX, .fd = -1};
    struct reply reply = {0};
    struct request q = {.upload_fd = -1, .method = "HEAD"};
    api_url(conn, "blobs", digest, url);
    int rc = request(conn, url, &q, &sink, &reply, err);
    free(sink.text);
    *ret_has = rc == 0 && reply.status == 200;
    return rc;
}

int registry_put_blob(struct registry_conn *conn, const struct descriptor *d, int fd,
                      void (*on_bytes)(void *opaque, uint64_t done), void *opaque, struct err *err)
{
    struct registry *r = conn->registry;
    char url[URL_MAX], target[2 * URL_MAX];
    struct sink sink = {.max = IMAGE_TOKEN_MAX, .fd = -1};
    struct reply reply = {0};
    struct request start = {.upload_fd = -1, .method = "POST", .body = "", .no_redirects = true};
    snprintf(url, sizeof(url), "%s://%s/v2/%s/blobs/uploads/", r->scheme, r->host, r->ref.name);
    int rc = request(conn, url, &start, &sink, &reply, err);
    free(sink.text);
    if (rc == 0 && (reply.status != 202 || !reply.location[0])) {
        rc = status_error(conn, &reply, "an upload", err);
    }
    if (rc < 0) {
        return rc;
    }
    if (reply.location[0] == '/') {
        snprintf(target, sizeof(target), "%s://%s%s", r->scheme, r->host, reply.location);
    } else {
        snprintf(target, sizeof(target), "%s", reply.location);
    }
    size_t used = strlen(target);
    snprintf(target + used, sizeof(target) - used, "%cdigest=%s", strchr(target, '?') ? '&' : '?', d->digest);
    sink = (struct sink){.max = IMAGE_TOKEN_MAX, .fd = -1};
    struct request put = {
        .upload_fd = fd, .upload_size = d->size_bytes, .header = "Content-Type: application/octet-stream"};
    rc = request(conn, target, &put, &sink, &reply, err);
    free(sink.text);
    if (rc == 0 && reply.status != 201) {
        rc = status_error(conn, &reply, "an uploaded blob", err);
    }
    if (rc == 0 && on_bytes) {
        on_bytes(opaque, d->size_bytes);
    }
    return rc;
}

int registry_put_manifest(struct registry_conn *conn, const char *reference, const char *media_type,
                          const char *text, size_t size, struct err *err)
{
    char url[URL_MAX], header[200];
    struct sink sink = {.max = IMAGE_TOKEN_MAX, .fd = -1};
    struct reply reply = {0};
    snprintf(header, sizeof(header), "Content-Type: %s", media_type);
    struct request q = {.upload_fd = -1, .method = "PUT", .body = text, .body_size = size, .header = header};
    api_url(conn, "manifests", reference, url);
    int rc = request(conn, url, &q, &sink, &reply, err);
    free(sink.text);
    return rc < 0 ? rc : reply.status != 201 ? status_error(conn, &reply, "an uploaded manifest", err) : 0;
}
