/*
 * Image references: [HOST[:PORT]/]NAME[:TAG][@DIGEST], with docker.io and library/ as people expect them
 * (grammar: OCI distribution specification 1.1, "Pulling manifests", and what Docker made of it).
 */
#ifndef FONDA_IMAGE_REF_H
#define FONDA_IMAGE_REF_H

#include "base/err.h"
#include "image/digest.h"

#define REF_HOST_MAX 255
#define REF_NAME_MAX 255
#define REF_TAG_MAX  128
#define REF_TEXT_MAX (REF_HOST_MAX + 1 + REF_NAME_MAX + 1 + REF_TAG_MAX + 1 + DIGEST_SIZE)

struct image_ref {
    char host[REF_HOST_MAX + 1]; /* "docker.io", "localhost:5000" */
    char name[REF_NAME_MAX + 1]; /* "library/debian" */
    char tag[REF_TAG_MAX + 1];   /* "" only where there is a digest */
    char digest[DIGEST_SIZE];    /* or "" */
};

/* "latest" where neither tag nor digest is there. Errors: -EINVAL. */
int image_ref_parse(const char *text, struct image_ref *ret_ref, struct err *err);
/* "docker.io/library/debian:12", the key of the store's table; a digest follows as it was given. */
void image_ref_format(const struct image_ref *ref, char ret_text[static REF_TEXT_MAX]);
/* As people write it: without docker.io/library/. Points into text. */
const char *image_ref_short(const char *text);

#endif
