/*
 * A process made from inside of namespaces that are joined: a user namespace has to be entered before what it
 * owns can be made or joined, and the caller itself stays outside. A stage process goes in, and makes the
 * child as its own sibling.
 */
#ifndef FONDA_CONTAINER_STAGE_H
#define FONDA_CONTAINER_STAGE_H

#include "base/err.h"
#include "container/config.h"

#include <stdint.h>
#include <sys/types.h>

/* Joins fds (-1: not this one), makes a child with clone flags, which runs fn(arg) and doesn't return from
 * it. What goes wrong inside comes by sync_fds: [0] is the caller's end. `what` is the child in errors.
 * Returns its pid, a child of the caller, or a negative errno. */
pid_t stage_clone(const int fds[NS_KINDS], uint64_t flags, const int sync_fds[2], void (*fn)(void *arg),
                  void *arg, const char *what, struct err *err);

#endif
