/*
 * Seccomp profiles: config-linux.md "Seccomp", compiled to classic BPF.
 *
 * The compiler is the project's own: a search tree over the syscall numbers of each architecture, made anew
 * on every start, for a program that decides in about nine steps. libseccomp is only asked for the numbers
 * that belong to names. Names that no architecture knows are ignored, as the specification's users expect.
 *
 * Rules for one syscall are tried in their order; those with conditions come before one without.
 */
#ifndef FONDA_CONTAINER_SECCOMP_H
#define FONDA_CONTAINER_SECCOMP_H

#include "base/err.h"
#include "container/arena.h"

#include <jansson.h>
#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>

struct seccomp_program {
    struct sock_filter *v;
    size_t count;
    unsigned flags;                /* SECCOMP_FILTER_FLAG_* */
    bool has_notify;               /* SCMP_ACT_NOTIFY is used */
    const char *listener_path;     /* socket of the agent; NULL: none */
    const char *listener_metadata; /* for the agent; NULL: none */
};

int seccomp_compile(json_t *profile, struct arena *arena, struct seccomp_program **ret, struct err *err);

/* For the calling thread. Without no_new_privs it needs CAP_SYS_ADMIN. Returns the listener (has_notify), or
 * 0. */
int seccomp_install(const struct seccomp_program *program, struct err *err);

/* What the agent gets with the listener (config-linux.md "The Container Process State"); malloc'ed.
 * state_text: the container's state. */
char *seccomp_agent_state(const struct seccomp_program *program, const char *state_text);

/* Names for features. */
const char *const *seccomp_action_names(size_t *ret_count);
const char *const *seccomp_operator_names(size_t *ret_count);
const char *const *seccomp_arch_names(size_t *ret_count);
const char *const *seccomp_flag_names(size_t *ret_count);

#endif
