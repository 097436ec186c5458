/*
 * Landlock by the annotation `org.fonda.landlock`: what the container's processes may do to files, TCP ports
 * and each other, enforced by the kernel beside all else (Linux Documentation/userspace-api/landlock.rst).
 * Its value is JSON:
 *
 *     {"files": [{"paths": ["/usr", "/bin"], "access": "rx"}, {"paths": ["/tmp"], "access": "rw"}],
 *      "tcp": {"bind": [80], "connect": [443, 5432]},
 *      "scope": ["abstract-unix", "signal"]}
 *
 * Each member that is there forbids everything of its kind that it doesn't list. What the kernel doesn't know
 * is an error.
 */
#ifndef FONDA_CONTAINER_LANDLOCK_H
#define FONDA_CONTAINER_LANDLOCK_H

#include "base/err.h"
#include "container/arena.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LANDLOCK_ANNOTATION "org.fonda.landlock"
#define LANDLOCK_RULES_MAX  1024

struct landlock_file_rule {
    const char **paths; /* NULL-terminated */
    unsigned access;    /* LANDLOCK_READ... */
};
#define LANDLOCK_READ    1u
#define LANDLOCK_WRITE   2u
#define LANDLOCK_EXECUTE 4u

struct landlock {
    bool wanted, has_files, has_tcp, scope_abstract_unix, scope_signal;
    struct landlock_file_rule *files;
    size_t file_count;
    uint16_t *ports[2]; /* bind, connect */
    size_t port_count[2];
    json_t *json; /* which the strings are of */
};

/* text: the annotation's value. Strings live as long as ret->json, which landlock_done() drops. */
int landlock_parse(const char *text, struct arena *arena, struct landlock *ret, struct err *err);
void landlock_done(struct landlock *l);

int landlock_check(const struct landlock *l, struct err *err); /* whether this kernel can do it */
int landlock_apply(const struct landlock *l, struct err *err); /* to the calling thread; needs no_new_privs */

#endif
