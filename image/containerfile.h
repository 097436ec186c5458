/*
 * Containerfiles (Dockerfiles), read into steps: line continuation, comments, the escape directive, flags,
 * JSON arrays and here documents; and the expansion of variables in words. What a step does is build.c's
 * matter.
 */
#ifndef FONDA_IMAGE_CONTAINERFILE_H
#define FONDA_IMAGE_CONTAINERFILE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum cf_kind {
    CF_ADD,
    CF_ARG,
    CF_CMD,
    CF_COPY,
    CF_ENTRYPOINT,
    CF_ENV,
    CF_EXPOSE,
    CF_FROM,
    CF_HEALTHCHECK,
    CF_LABEL,
    CF_MAINTAINER,
    CF_ONBUILD,
    CF_RUN,
    CF_SHELL,
    CF_STOPSIGNAL,
    CF_USER,
    CF_VOLUME,
    CF_WORKDIR,
};

struct cf_heredoc {
    char *name, *text;
    bool expand;
};

struct cf_step {
    enum cf_kind kind;
    unsigned line;
    char *text;   /* behind the keyword and the flags, continuation lines joined */
    char **flags; /* "from=build", NULL at the end */
    char **json;  /* the elements where text is a JSON array of strings, otherwise NULL */
    struct cf_heredoc *heredocs;
    unsigned heredoc_count;
};

struct containerfile {
    struct cf_step *steps;
    unsigned count;
    char escape;
};

int containerfile_parse(const char *text, size_t size, struct containerfile *ret_file, struct err *err);
void containerfile_free(struct containerfile *file);
const char *cf_kind_name(enum cf_kind kind);
/* A flag's value, or NULL. */
const char *cf_flag(const struct cf_step *step, const char *name);

typedef const char *(*cf_lookup)(void *opaque, const char *name, size_t length); /* NULL: not set */
/* One word: quotes and escapes go (escape 0: a document, they stay), $NAME, ${NAME}, ${NAME:-word} and
 * ${NAME:+word} are replaced. Caller frees. */
int cf_expand(const char *word, char escape, cf_lookup lookup, void *opaque, char **ret_text,
              struct err *err);
/* Words between blanks outside of quotes, quotes kept; NULL at the end. Free with cf_free_words. */
int cf_split(const char *text, char escape, char ***ret_words, struct err *err);
void cf_free_words(char **words);

#endif
