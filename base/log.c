#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static const char *log_program = "fonda";
static enum log_level log_max = LOG_LEVEL_WARNING;

void log_init(const char *program, enum log_level max_level)
{
    log_program = program;
    log_max = max_level;
}

static log_sink log_sink_fn;
static void *log_sink_opaque;

void log_set_sink(log_sink sink, void *opaque)
{
    log_sink_fn = sink;
    log_sink_opaque = opaque;
}

void log_at(enum log_level level, const char *fmt, ...)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    if (level > log_max) {
        return;
    }
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (log_sink_fn) {
        log_sink_fn(level, text, log_sink_opaque);
        return;
    }
    fprintf(stderr, "%s: %s%s\n", log_program, names[level], text);
}
