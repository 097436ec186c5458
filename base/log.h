/*
 * Logging of the programs (libraries return errors instead). One line per message on stderr:
 * "fonda-vmm: warning: text". Thread-safe.
 */
#ifndef FONDA_BASE_LOG_H
#define FONDA_BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* program is kept by reference; messages above max_level are dropped. */
void log_init(const char *program, enum log_level max_level);

/* Takes messages instead of stderr; NULL: back to stderr. The text has no program name and no newline. */
typedef void (*log_sink)(enum log_level level, const char *text, void *opaque);
void log_set_sink(log_sink sink, void *opaque); /* before other threads log */

void log_at(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_at(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_at(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
