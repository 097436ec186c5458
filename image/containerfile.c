#include "image/containerfile.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/util.h"
#include "image/limits.h"

static const char *const names[] = {"ADD",    "ARG",   "CMD",         "COPY",  "ENTRYPOINT", "ENV",
                                    "EXPOSE", "FROM",  "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
                                    "RUN",    "SHELL", "STOPSIGNAL",  "USER",  "VOLUME",     "WORKDIR"};

const char *cf_kind_name(enum cf_kind kind)
{
    return names[kind];
}

const char *cf_flag(const struct cf_step *step, const char *name)
{
    size_t length = strlen(name);
    for (char **f = step->flags; *f; f++) {
        if (strncmp(*f, name, length) == 0 && ((*f)[length] == '=' || !(*f)[length])) {
            return (*f)[length] ? *f + length + 1 : "";
        }
    }
    return NULL;
}

void cf_free_words(char **words)
{
    for (char **w = words; w && *w; w++) {
        free(*w);
    }
    free(words);
}

void containerfile_free(struct containerfile *file)
{
    for (unsigned i = 0; i < file->count; i++) {
        struct cf_step *step = &file->steps[i];
        free(step->text);
        cf_free_words(step->flags);
        cf_free_words(step->json);
        for (unsigned j = 0; j < step->heredoc_count; j++) {
            free(step->heredocs[j].name);
            free(step->heredocs[j].text);
        }
        free(step->heredocs);
    }
    free(file->steps);
    *file = (struct containerfile){0};
}

/* ---- text that grows ---- */

struct text {
    char *p;
    size_t size;
};

static int add(struct text *t, const char *from, size_t n)
{
    char *p = t->size + n + 1 > CONTAINERFILE_BYTES_MAX * 2 ? NULL : realloc(t->p, t->size + n + 1);
    if (!p) {
        return -ENOMEM;
    }
    memcpy(p + t->size, from, n);
    p[t->size + n] = '\0';
    t->p = p;
    t->size += n;
    return 0;
}

/* ---- words ---- */

int cf_split(const char *text, char escape, char ***ret_words, struct err *err)
{
    char **words = calloc(1, sizeof(*words));
    size_t count = 0;
    const char *p = text;
    while (words) {
        p += strspn(p, " \t\n");
        if (!*p) {
            *ret_words = words;
            return 0;
        }
        const char *start = p;
        for (char quote = 0; *p && (quote || !strchr(" \t\n", *p)); p++) {
            if (*p == escape && p[1] && quote != '\'') {
                p++;
            } else if (quote ? *p == quote : *p == '"' || *p == '\'') {
                quote = quote ? 0 : *p;
            }
        }
        char **more = count < CONTAINERFILE_WORDS_MAX ? reallocarray(words, count + 2, sizeof(*words)) : NULL;
        if (!more || !(more[count] = strndup(start, (size_t)(p - start)))) {
            words = more ? more : words;
            break;
        }
        words = more;
        words[++count] = NULL;
    }
    if (words) {
        words[count] = NULL;
    }
    cf_free_words(words);
    return err_set(err, -E2BIG, "more than CONTAINERFILE_WORDS_MAX (%u) words", CONTAINERFILE_WORDS_MAX);
}

static int expand_into(struct text *out, const char *word, size_t size, char escape, bool quotes,
                       cf_lookup lookup, void *opaque, unsigned depth, struct err *err);

/* At "$": replaces a variable; returns how many bytes it took, or an error. */
static ssize_t variable(struct text *out, const char *p, const char *end, char escape, cf_lookup lookup,
                        void *opaque, unsigned depth, struct err *err)
{
    const char *name = p + 1, *q = name;
    bool brace = q < end && *q == '{';
    name += brace;
    for (q = name; q < end && (isalnum((unsigned char)*q) || *q == '_'); q++) {
    }
    size_t length = (size_t)(q - name);
    if (length == 0) {
        if (brace) {
            return err_set(err, -EINVAL, "'%.40s' is not a variable", p);
        }
        return add(out, p, 1) < 0 ? err_set(err, -ENOMEM, "no memory") : 1;
    }
    const char *value = lookup(opaque, name, length);
    if (!brace) {
        return value && add(out, value, strlen(value)) < 0 ? err_set(err, -ENOMEM, "no memory") : q - p;
    }
    char mode = 0;
    const char *word = q;
    if (q + 1 < end && *q == ':' && (q[1] == '-' || q[1] == '+')) {
        mode = q[1];
        word = q + 2;
        value = value && *value ? value : NULL;
    } else if (q < end && (*q == '-' || *q == '+')) {
        mode = *q;
        word = q + 1;
    }
    unsigned nested = 0;
    for (q = word; q < end && (nested || *q != '}'); q++) {
        nested += q + 1 < end && q[0] == '$' && q[1] == '{';
        nested -= *q == '}';
    }
    if (q == end || (!mode && q != word)) {
        return err_set(err, -EINVAL, "'%.40s': only ${NAME}, ${NAME:-word} and ${NAME:+word} are known", p);
    }
    int rc = 0;
    if (mode ? (mode == '-') != (value != NULL) : false) {
        rc = expand_into(out, word, (size_t)(q - word), escape, true, lookup, opaque, depth + 1, err);
    } else if (value && mode != '+') {
        rc = add(out, value, strlen(value)) < 0 ? err_set(err, -ENOMEM, "no memory") : 0;
    }
    return rc < 0 ? rc : q + 1 - p;
}

static int expand_into(struct text *out, const char *word, size_t size, char escape, bool quotes,
                       cf_lookup lookup, void *opaque, unsigned depth, struct err *err)
{
    const char *end = word + size;
    char quote = 0;
    if (depth > 8) {
        return err_set(err, -ELOOP, "variables are nested too deeply");
    }
    for (const char *p = word; p < end;) {
        if (out->size > CONTAINERFILE_VALUE_MAX) {
            return err_set(err, -E2BIG, "a word becomes longer than CONTAINERFILE_VALUE_MAX (%u)",
                           CONTAINERFILE_VALUE_MAX);
        }
        if (*p == escape && p + 1 < end && quote != '\'') {
            /* In double quotes the escape stays in front of what it has no meaning for. */
            bool keep = quote == '"' && p[1] != '"' && p[1] != '$' && p[1] != escape;
            if (add(out, keep ? p : p + 1, keep ? 2 : 1) < 0) {
                return err_set(err, -ENOMEM, "no memory");
            }
            p += 2;
        } else if (quotes && (quote ? *p == quote : *p == '"' || *p == '\'')) {
            quote = quote ? 0 : *p;
            p++;
        } else if (*p == '$' && quote != '\'') {
            ssize_t n = variable(out, p, end, escape, lookup, opaque, depth, err);
            if (n < 0) {
                return (int)n;
            }
            p += n;
        } else {
            if (add(out, p, 1) < 0) {
                return err_set(err, -ENOMEM, "no memory");
            }
            p++;
        }
    }
    return 0;
}

int cf_expand(const char *word, char escape, cf_lookup lookup, void *opaque, char **ret_text, struct err *err)
{
    struct text out = {0};
    int rc = add(&out, "", 0);
    rc = rc < 0 ? err_set(err, rc, "no memory")
                : expand_into(&out, word, strlen(word), escape, escape != 0, lookup, opaque, 0, err);
    if (rc < 0) {
        free(out.p);
        return rc;
    }
    *ret_text = out.p;
    return 0;
}

/* ---- lines ---- */

struct reader {
    const char *p, *end;
    unsigned line;
    char escape;
};

/* The next line without its end; false: no more. */
static bool next_line(struct reader *r, const char **ret_line, size_t *ret_size)
{
    if (r->p >= r->end) {
        return false;
    }
    const char *eol = memchr(r->p, '\n', (size_t)(r->end - r->p));
    size_t n = eol ? (size_t)(eol - r->p) : (size_t)(r->end - r->p);
    *ret_line = r->p;
    *ret_size = n && r->p[n - 1] == '\r' ? n - 1 : n;
    r->p += n + (eol != NULL);
    r->line++;
    return true;
}

/* A whole instruction: lines that end with the escape are joined, comment and empty lines in between left
 * out. 1, 0: the end. */
static int next_instruction(struct reader *r, struct text *out, unsigned *ret_line)
{
    const char *line;
    size_t n;
    bool more = true;
    out->size = 0;
    while (more && next_line(r, &line, &n)) {
        size_t blank = 0;
        while (blank < n && (line[blank] == ' ' || line[blank] == '\t')) {
            blank++;
        }
        if (blank == n || line[blank] == '#') {
            continue;
        }
        size_t used = n;
        while (used && (line[used - 1] == ' ' || line[used - 1] == '\t')) {
            used--;
        }
        more = used && line[used - 1] == r->escape;
        if (out->size == 0) {
            *ret_line = r->line;
        }
        size_t from = out->size == 0 ? blank : 0;
        if (add(out, line + from, (more ? used - 1 : n) - MIN(from, more ? used - 1 : n)) < 0) {
            return -ENOMEM;
        }
    }
    return out->size > 0;
}

/* <<NAME, <<-NAME, <<"NAME" in the text: reads the documents that follow. */
static int read_heredocs(struct reader *r, struct cf_step *step, struct err *err)
{
    char quote_now = 0;
    for (const char *p = step->text; *p; p++) {
        if (quote_now ? *p == quote_now : *p == '"' || *p == '\'') {
            quote_now = quote_now ? 0 : *p;
        }
        if (quote_now || p[0] != '<' || p[1] != '<' || (p > step->text && p[-1] == '<') || p[2] == '<') {
            continue;
        }
        bool strip = p[2] == '-';
        const char *name = p + 2 + strip;
        char quote = *name == '"' || *name == '\'' ? *name : 0;
        name += quote != 0;
        size_t length = 0;
        while (isalnum((unsigned char)name[length]) || name[length] == '_' || name[length] == '.' ||
               name[length] == '-') {
            length++;
        }
        if (length == 0 || (quote && name[length] != quote)) {
            continue;
        }
        struct cf_heredoc *docs = reallocarray(step->heredocs, step->heredoc_count + 1, sizeof(*docs));
        if (!docs) {
            return err_set(err, -ENOMEM, "no memory");
        }
        step->heredocs = docs;
        struct cf_heredoc *doc = &docs[step->heredoc_count++];
        *doc = (struct cf_heredoc){.name = strndup(name, length), .expand = !quote};
        struct text text = {0};
        const char *line;
        size_t n;
        bool found = false;
        if (!doc->name || add(&text, "", 0) < 0) {
            return err_set(err, -ENOMEM, "no memory");
        }
        while (!found && next_line(r, &line, &n)) {
            while (strip && n && *line == '\t') {
                line++, n--;
            }
            found = n == length && memcmp(line, doc->name, n) == 0;
            if (!found && (add(&text, line, n) < 0 || add(&text, "\n", 1) < 0)) {
                free(text.p);
                return err_set(err, -ENOMEM, "no memory");
            }
        }
        doc->text = text.p;
        if (!found) {
            return err_set(err, -EINVAL, "line %u: the document '<<%s' has no end", step->line, doc->name);
        }
        p = name + length - 1;
    }
    return 0;
}

static char **parse_json(const char *text)
{
    json_t *list = *text == '[' ? json_loads(text, 0, NULL) : NULL;
    size_t count = json_array_size(list);
    char **words =
        json_is_array(list) && count < CONTAINERFILE_WORDS_MAX ? calloc(count + 1, sizeof(*words)) : NULL;
    for (size_t i = 0; words && i < count; i++) {
        const char *s = json_string_value(json_array_get(list, i));
        words[i] = s ? strdup(s) : NULL;
        if (!words[i]) {
            cf_free_words(words);
            words = NULL;
        }
    }
    json_decref(list);
    return words;
}

static int parse_step(struct reader *r, const char *text, unsigned line, struct cf_step *step,
                      struct err *err)
{
    size_t n = strcspn(text, " \t"), count = 0;
    step->line = line;
    step->flags = calloc(1, sizeof(*step->flags));
    unsigned kind = 0;
    while (kind < ARRAY_SIZE(names) && (strlen(names[kind]) != n || strncasecmp(names[kind], text, n) != 0)) {
        kind++;
    }
    if (kind == ARRAY_SIZE(names)) {
        return err_set(err, -EINVAL, "line %u: '%.40s' is not an instruction", line, text);
    }
    step->kind = (enum cf_kind)kind;
    const char *p = text + n;
    bool flags =
        kind == CF_FROM || kind == CF_RUN || kind == CF_COPY || kind == CF_ADD || kind == CF_HEALTHCHECK;
    while (step->flags) {
        p += strspn(p, " \t");
        if (!flags || strncmp(p, "--", 2) != 0) {
            break;
        }
        n = strcspn(p, " \t");
        char **more =
            count < CONTAINERFILE_WORDS_MAX ? reallocarray(step->flags, count + 2, sizeof(*more)) : NULL;
        if (!more) {
            return err_set(err, -E2BIG, "line %u: too many flags", line);
        }
        step->flags = more;
        step->flags[count + 1] = NULL;
        step->flags[count] = strndup(p + 2, n - 2);
        count++;
        p += n;
    }
    size_t length = strlen(p);
    while (length && isspace((unsigned char)p[length - 1])) {
        length--;
    }
    step->text = strndup(p, length);
    if (!step->flags || !step->text) {
        return err_set(err, -ENOMEM, "no memory");
    }
    if (!*step->text) {
        return err_set(err, -EINVAL, "line %u: %s needs arguments", line, names[kind]);
    }
    step->json = parse_json(step->text);
    return kind == CF_RUN || kind == CF_COPY || kind == CF_ADD ? read_heredocs(r, step, err) : 0;
}

int containerfile_parse(const char *text, size_t size, struct containerfile *ret_file, struct err *err)
{
    struct containerfile file = {.escape = '\\'};
    struct reader r = {.p = text, .end = text + size};
    struct text instruction = {0};
    int rc = 0;
    if (size > CONTAINERFILE_BYTES_MAX || memchr(text, 0, size)) {
        return err_set(err, -EINVAL, "the Containerfile is larger than CONTAINERFILE_BYTES_MAX, or no text");
    }
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        r.p += 3;
    }
    /* Directives come before everything else. */
    for (struct reader look = r;;) {
        const char *line;
        size_t n;
        char key[32], value[8];
        if (!next_line(&look, &line, &n) || n >= 200) {
            break;
        }
        char copy[200];
        memcpy(copy, line, n);
        copy[n] = '\0';
        int got = sscanf(copy, " # %31[a-zA-Z] = %7s", key, value);
        if (got < 1) {
            break;
        }
        if (got == 2 && strcasecmp(key, "escape") == 0) {
            if (strcmp(value, "`") != 0 && strcmp(value, "\\") != 0) {
                return err_set(err, -EINVAL, "line %u: the escape character is \\ or `", look.line);
            }
            file.escape = value[0];
        }
    }
    r.escape = file.escape;
    unsigned line = 0;
    while (rc == 0 && (rc = next_instruction(&r, &instruction, &line)) > 0) {
        struct cf_step *steps = file.count < CONTAINERFILE_STEPS_MAX
                                    ? reallocarray(file.steps, file.count + 1, sizeof(*steps))
                                    : NULL;
        if (!steps) {
            rc = err_set(err, -E2BIG, "the Containerfile has more than CONTAINERFILE_STEPS_MAX (%u) steps",
                         CONTAINERFILE_STEPS_MAX);
            break;
        }
        file.steps = steps;
        file.steps[file.count] = (struct cf_step){0};
        rc = parse_step(&r, instruction.p, line, &file.steps[file.count++], err);
    }
    free(instruction.p);
    if (rc == 0 && file.count == 0) {
        rc = err_set(err, -EINVAL, "the Containerfile has no instructions");
    }
    if (rc < 0) {
        if (rc == -ENOMEM) {
            err_set(err, rc, "no memory");
        }
        containerfile_free(&file);
        return rc;
    }
    *ret_file = file;
    return 0;
}
