/*
 * Credentials for registries, from the files and helpers that people have: containers-auth.json(5) and
 * Docker's config.json.
 */
#ifndef FONDA_IMAGE_AUTH_H
#define FONDA_IMAGE_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define AUTH_TEXT_MAX 8192

struct auth {
    char user[AUTH_TEXT_MAX], password[AUTH_TEXT_MAX];
    char identity_token[AUTH_TEXT_MAX]; /* for the token server instead of user and password */
};

/* One file's text: what it has for host and repository name ("library/debian"); the longest prefix wins.
 * *ret_helper: a credential helper to be asked ("" if none). 1: found, 0: nothing there, or -EINVAL. */
int auth_parse(const char *text, size_t size, const char *host, const char *name, struct auth *ret_auth,
               char ret_helper[static 64], struct err *err);
/* Looks through auth_file, or $REGISTRY_AUTH_FILE, ${XDG_RUNTIME_DIR}/containers/auth.json
 * (/run/containers/UID/auth.json), $XDG_CONFIG_HOME/containers/auth.json, $DOCKER_CONFIG/config.json,
 * ~/.docker/config.json. 1: found, 0: nothing. */
int auth_find(const char *auth_file, const char *host, const char *name, struct auth *ret_auth,
              struct err *err);
/* "USER:PASSWORD" */
int auth_from_text(const char *text, struct auth *ret_auth, struct err *err);

#endif
