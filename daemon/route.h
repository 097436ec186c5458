/*
 * The API as one table (routes.c): what is dispatched, who may, what the body is, and what the OpenAPI file
 * says all come from it.
 */
#ifndef FONDA_DAEMON_ROUTE_H
#define FONDA_DAEMON_ROUTE_H

#include "daemon/request.h"

enum route_flag {
    ROUTE_JOB = 1,       /* answers 202 and a job; takes ?wait= */
    ROUTE_LIST = 2,      /* takes filter, sort, limit, offset, fields */
    ROUTE_WS = 4,        /* a web socket */
    ROUTE_ASIDE = 8,     /* may block: runs on a thread of its own, without the lock */
    ROUTE_GRANTS = 16,   /* {name} is an instance: roles on it count */
    ROUTE_OPTIONAL = 32, /* the body may be left out */
    ROUTE_TEXT = 64,     /* answers text */
    ROUTE_OPEN = 128,    /* anybody who may connect */
    ROUTE_IF_MATCH = 256,
    ROUTE_AFTER = 512,    /* takes after and limit: logs */
    ROUTE_EMPTY = 1024,   /* answers 204 */
    ROUTE_CREATED = 2048, /* answers 201 */
};

typedef int route_fn(struct request *request, struct fault *fault);

struct route {
    const char *method, *path; /* "/v1/instances/{name}/start" */
    enum role role;
    unsigned flags;
    const struct object_type *type; /* what is worked on: for generic handlers */
    const struct object_type *body; /* NULL: none */
    enum field_mode mode;
    const struct object_type *result; /* NULL: text, or nothing */
    route_fn *handler;                /* NULL: web sockets */
    const char *id, *about;
};

extern const struct route routes[];
extern const unsigned route_count;

/* Finds the route, checks role, limits and body, runs the handler; the answer is in the request. Locked,
 * unless it returns true: then route_aside has to run, unlocked. */
bool route_dispatch(struct request *request);
void route_aside(struct request *request);
/* Which route a web socket wants, when it may have it. */
const struct route *route_upgrade(struct request *request, struct fault *fault);

/* Whether a caller sees an event, or what a job does (both as objects): viewers all of them, others those of
 * instances that are granted to them, and their own jobs. (ws_events.c) */
bool events_seen(const struct caller *caller, const json_t *event);
bool events_job_seen(const struct caller *caller, const json_t *job);

/* The OpenAPI 3.1 description; free() it. */
char *openapi_text(void);

/* Prometheus' text format; free() it. */
char *metrics_text(struct core *core);
void metrics_request(int status, uint64_t duration_us);

/* Whether this caller has asked too much lately. */
bool rate_exceeded(const char *who);

#endif
