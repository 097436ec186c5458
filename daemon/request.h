/*
 * One HTTP request: what was asked, by whom, and what will be answered. Handlers see nothing of sockets.
 *
 *     server.c: headers, body  -->  route_dispatch: match, rate, role, body  -->  route->handler
 *                                       |                                            |
 *                                       +--------------- answer <--------------------+
 *
 * Threads: the main loop's; handlers of ROUTE_ASIDE routes run on a thread of their own, without the core's
 * lock.
 */
#ifndef FONDA_DAEMON_REQUEST_H
#define FONDA_DAEMON_REQUEST_H

#include <stdbool.h>
#include <stddef.h>

#include "core/core.h"

#define REQUEST_BODY_MAX (256u * 1024)
#define REQUEST_PATH_MAX 512
#define REQUEST_ARGS_MAX 16
#define REQUEST_WAIT_MAX 600 /* seconds */
#define LIST_LIMIT       100
#define LIST_LIMIT_MAX   10000

struct route;

struct request {
    struct core *core;
    const struct route *route;
    struct caller caller;
    char method[8];
    char path[REQUEST_PATH_MAX];
    char name[FIELD_NAME_MAX + 1]; /* {name} of the path */
    char item[FIELD_NAME_MAX + 1]; /* {item} */
    struct {
        char *name, *value;
    } args[REQUEST_ARGS_MAX];
    unsigned arg_count;
    char *if_match;
    char host[128]; /* what the caller called this daemon; over TLS alone */
    bool json_type; /* Content-Type says JSON, or nothing */
    char *body_text;
    size_t body_len;
    json_t *body;

    /* The answer. */
    int status;
    const char *type; /* NULL: application/json */
    char *text;       /* free()d */
    size_t len;
    uint64_t version; /* ETag, unless 0 */
    char location[128];
    char job[24]; /* wait for it, if the caller wants that */
    unsigned wait_s;
    bool retry;                /* Retry-After: 1 */
    const struct asset *asset; /* a file of the web page: gzip, with the page's headers */

    /* Makes the page reachable on this host (server.c). */
    int (*open_web)(void *opaque, unsigned *ret_port, struct fault *fault);
    void *open_web_opaque;
};

const char *request_arg(const struct request *request, const char *name); /* NULL: not given */
/* A whole number from the query; absent: def. Errors: FAULT_INVALID. */
int request_arg_uint(const struct request *request, const char *name, uint64_t def, uint64_t max,
                     uint64_t *ret_value, struct fault *fault);
/* What If-Match asks for, as the store's expected version. */
int request_expected(const struct request *request, uint64_t *ret_expected, struct fault *fault);
void request_done(struct request *request);

/* Answers; object is taken over. */
void answer_json(struct request *request, int status, json_t *object);
void answer_object(struct request *request, int status, const struct object_type *type, json_t *object,
                   uint64_t version);
void answer_text(struct request *request, const char *type, char *text, size_t len);
void answer_fault(struct request *request, const struct fault *fault);
/* 202 with Location; or, behind a wait, the job itself. */
void answer_job(struct request *request, const char *job);

#endif
