/*
 * Error objects of the control plane.
 *
 * A function that can fail for reasons a person should read takes a `struct err *` last, returns a negative
 * errno, and leaves one sentence in the object. Callers add context in front where they know it:
 *
 *     return err_prefix(err, "cannot open disk '%s'", path);
 *
 * so that the user reads "cannot open disk 'db.qcow2': backing file 'base.qcow2' is missing".
 * Every function accepts err == NULL, when nobody is going to read the text.
 */
#ifndef FONDA_BASE_ERR_H
#define FONDA_BASE_ERR_H

#include <stdarg.h>

#define ERR_TEXT_MAX 512

struct err {
    int code; /* negative errno, 0 while no error was set */
    char text[ERR_TEXT_MAX];
};

/* Sets code (a negative errno) and text. Returns code, so that callers can `return err_set(...)`. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same with ": <strerror(-code)>" appended. */
int err_sys(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "<text>: " in front of what is there. Returns the code that was set; without an object -EIO, as nobody
 * knows it. */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* What clang's analyser, which sees one file at a time, has to know: these return a code, and it is never 0.
 */
#ifdef __clang_analyzer__
#define ERR_CODE_(code)         ((code) < 0 ? (code) : -1)
#define err_set(err, code, ...) (err_set(err, code, __VA_ARGS__), ERR_CODE_(code))
#define err_sys(err, code, ...) (err_sys(err, code, __VA_ARGS__), ERR_CODE_(code))
#endif

#endif
