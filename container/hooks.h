/* Lifecycle hooks: config.md "POSIX-platform Hooks". Each gets the container's state on its stdin. */
#ifndef FONDA_CONTAINER_HOOKS_H
#define FONDA_CONTAINER_HOOKS_H

#include "base/err.h"
#include "container/config.h"

/* Runs all hooks in order, each to its end. state_text is what they read. The first that fails, or runs out
 * of its time and is killed, ends with an error that names it. cwd: NULL to stay. */
int hooks_run(const struct oci_hooks *hooks, enum oci_hook_kind kind, const char *state_text, const char *cwd,
              struct err *err);

#endif
