#include "base/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void err_format(struct err *err, int code, const char *suffix, const char *fmt, va_list ap)
{
    int n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
    if (n >= 0 && (size_t)n < sizeof(err->text) && suffix) {
        snprintf(err->text + n, sizeof(err->text) - (size_t)n, ": %s", suffix);
    }
    err->code = code;
}

int(err_set)(struct err *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err_format(err, code, NULL, fmt, ap);
        va_end(ap);
    }
    return code;
}

int(err_sys)(struct err *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err_format(err, code, strerror(-code), fmt, ap);
        va_end(ap);
    }
    return code;
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    if (!err) {
        return -EIO;
    }
    char old[ERR_TEXT_MAX];
    memcpy(old, err->text, sizeof(old));
    va_list ap;
    va_start(ap, fmt);
    err_format(err, err->code, old, fmt, ap);
    va_end(ap);
    return err->code;
}
