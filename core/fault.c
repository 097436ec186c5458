/* Faults: the table of codes, words and HTTP statuses. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "core/fault.h"

static const struct {
    const char *word, *title;
    int http;
} faults[FAULT_COUNT] = {
    [FAULT_NONE] = {"none", "No error", 200},
    [FAULT_INVALID] = {"invalid_value", "Invalid value", 400},
    [FAULT_UNAUTHORIZED] = {"unauthorized", "Not signed in", 401},
    [FAULT_FORBIDDEN] = {"forbidden", "Not allowed", 403},
    [FAULT_NOT_FOUND] = {"not_found", "Not found", 404},
    [FAULT_METHOD] = {"method_not_allowed", "Method not allowed", 405},
    [FAULT_EXISTS] = {"already_exists", "The name is taken", 409},
    [FAULT_STATE] = {"wrong_state", "Not in this state", 409},
    [FAULT_BUSY] = {"in_use", "In use", 409},
    [FAULT_CHANGED] = {"changed_meanwhile", "Changed meanwhile", 412},
    [FAULT_TOO_LARGE] = {"too_large", "Too large", 413},
    [FAULT_MEDIA] = {"not_json", "Not JSON", 415},
    [FAULT_QUOTA] = {"quota_reached", "Quota reached", 403},
    [FAULT_LIMIT] = {"limit_reached", "Too much at once", 429},
    [FAULT_INTERNAL] = {"internal_error", "Internal error", 500},
    [FAULT_UNSUPPORTED] = {"not_supported", "Not supported here", 501},
    [FAULT_UNAVAILABLE] = {"no_answer", "No answer", 503},
    [FAULT_NO_SPACE] = {"no_space", "No space left", 507},
    [FAULT_CANCELED] = {"canceled", "Canceled", 409},
    [FAULT_RESTARTED] = {"daemon_restarted", "The daemon ended meanwhile", 500},
    [FAULT_TIMEOUT] = {"timed_out", "Took too long", 504},
};

int fault_set(struct fault *fault, enum fault_code code, const char *hint, const char *fmt, ...)
{
    if (fault) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(fault->detail, sizeof(fault->detail), fmt, args);
        va_end(args);
        fault->code = code;
        snprintf(fault->hint, sizeof(fault->hint), "%s", hint ? hint : "");
    }
    return -1;
}

int fault_from_err(struct fault *fault, const struct err *err)
{
    switch (err->code) {
    case -ENOENT: return fault_set(fault, FAULT_NOT_FOUND, NULL, "%s", err->text);
    case -EEXIST: return fault_set(fault, FAULT_EXISTS, "choose another name", "%s", err->text);
    case -ESTALE: return fault_set(fault, FAULT_CHANGED, "read it again, then change it", "%s", err->text);
    case -EBUSY: return fault_set(fault, FAULT_BUSY, "remove what uses it first", "%s", err->text);
    case -E2BIG: return fault_set(fault, FAULT_TOO_LARGE, NULL, "%s", err->text);
    case -EFBIG:
    case -EINVAL: return fault_set(fault, FAULT_INVALID, NULL, "%s", err->text);
    case -ENOSPC:
    case -EDQUOT: return fault_set(fault, FAULT_NO_SPACE, "make room, then try again", "%s", err->text);
    default:
        return fault_set(fault, FAULT_INTERNAL, NULL, "%s", err->text[0] ? err->text : strerror(-err->code));
    }
}

const char *fault_word(enum fault_code code)
{
    return faults[code].word;
}

const char *fault_title(enum fault_code code)
{
    return faults[code].title;
}

int fault_http(enum fault_code code)
{
    return faults[code].http;
}
