/*
 * What went wrong, for people and for programs: a code that never changes its meaning, one sentence that says
 * what was wrong with what, and what to do about it. The daemon sends them as problem+json (RFC 9457).
 */
#ifndef FONDA_CORE_FAULT_H
#define FONDA_CORE_FAULT_H

#include "base/err.h"

enum fault_code {
    FAULT_NONE,
    FAULT_INVALID,      /* 400: a value, a filter, a body */
    FAULT_UNAUTHORIZED, /* 401: who are you? */
    FAULT_FORBIDDEN,    /* 403: not you */
    FAULT_NOT_FOUND,    /* 404 */
    FAULT_METHOD,       /* 405 */
    FAULT_EXISTS,       /* 409: the name is taken */
    FAULT_STATE,        /* 409: not in this state */
    FAULT_BUSY,         /* 409: something uses it */
    FAULT_CHANGED,      /* 412: If-Match */
    FAULT_TOO_LARGE,    /* 413 */
    FAULT_MEDIA,        /* 415: not JSON */
    FAULT_QUOTA,        /* 403: a user's quota */
    FAULT_LIMIT,        /* 429: rate, jobs, sockets */
    FAULT_INTERNAL,     /* 500 */
    FAULT_UNSUPPORTED,  /* 501: this host or build can't */
    FAULT_UNAVAILABLE,  /* 503: an instance does not answer */
    FAULT_NO_SPACE,     /* 507 */
    FAULT_CANCELED,     /* jobs only */
    FAULT_RESTARTED,    /* jobs only: the daemon ended under them */
    FAULT_TIMEOUT,      /* 504 */
    FAULT_COUNT,
};

struct fault {
    enum fault_code code;
    char detail[512];
    char hint[256]; /* may be empty */
};

/* Returns -1, so that callers can `return fault_set(...)`. hint may be NULL. */
int fault_set(struct fault *fault, enum fault_code code, const char *hint, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* Translates an error of the store or of files. Returns -1. */
int fault_from_err(struct fault *fault, const struct err *err);

/* "invalid_value", "Invalid value", 400. */
const char *fault_word(enum fault_code code);
const char *fault_title(enum fault_code code);
int fault_http(enum fault_code code);

#endif
