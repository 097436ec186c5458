/*
 * fonda-guest-init: the first process of a machine that was made from an image. It brings the machine up as
 * far as a container is when its program begins, and serves the host (guest/wire.h).
 *
 *     main.c     the boot, then: connections, orphans, the end
 *     boot.c     modules, file systems, the network
 *     setup.c    what the first program wants around it: shares, files, limits of the kernel
 *     serve.c    one connection, in a process of its own
 *     program.c  a program and its streams
 *     user.c     names of users, as the image has them
 *     numbers.c  stats and top
 *
 * Invariants
 *  1. Process 1 itself only waits, forks and reaps: what may block or fail is done in a child of it.
 *  2. Only the host is served (its CID), not programs inside.
 *  3. The host is trusted, and checks what it sends; the image is trusted with the machine, and nothing more.
 */
#ifndef FONDA_GUEST_INIT_INIT_H
#define FONDA_GUEST_INIT_INIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "guest/wire.h"

#define GROUPS_MAX 64

/* ---- boot.c ---- */
int boot_begin(struct err *err); /* proc, sys, dev */
int boot_modules(struct err *err);
int boot_root(struct err *err); /* mounts the disk and makes it the root */
int boot_network(struct err *err);
int boot_make_folders(const char *path); /* mkdir -p */

/* ---- setup.c ---- */
int setup_room(const struct wire_texts *request, struct err *err);

/* ---- user.c ---- */
struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    unsigned group_count;
    char home[256]; /* "": not known */
};
/* "NAME", "UID", either with ":GROUP" or ":GID". Errors: -ENOENT. */
int user_find(const char *text, struct user *ret_user, struct err *err);

/* ---- program.c ---- */
/* Runs the program of a request until it has ended, and tells the other end. first: the machine's own
 * program, which waits for messages on `orders` (serve.c). Returns its status. */
int program_run(struct wire *wire, const struct wire_texts *request, bool first, int orders);

/* ---- numbers.c ---- */
void numbers_stats(struct wire_texts *reply);
void numbers_top(struct wire_texts *reply);

/* ---- serve.c ---- */
/* Serves one connection (taken over); the caller is a process of its own. orders: messages to the first
 * program's process. first: this is its connection, and orders is its end. Returns that program's status. */
int serve(int fd, bool first, int orders);

#endif
