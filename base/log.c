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
    fprintf(stderr, "%s: %s%s\n", log_program, names[level], text);
}
