/*
 * The parser of filters: recursive descent with bounded depth, nodes and text; children come before their
 * parents in the array, as the store wants them.
 */
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"
#include "core/filter.h"

struct parser {
    const struct object_type *type;
    struct filter *filter;
    struct fault *fault;
    const char *start, *at;
    unsigned depth;
};

static int bad(struct parser *p, const char *what)
{
    return fault_set(p->fault, FAULT_INVALID, "for example: state=running and memory>=1G",
                     "filter: %s at character %zu", what, (size_t)(p->at - p->start) + 1);
}

static void skip_space(struct parser *p)
{
    while (*p->at == ' ' || *p->at == '\t') {
        p->at++;
    }
}

static bool word_char(char c)
{
    return c && !strchr(" \t()=!<>~\"'", c);
}

static bool take_word(struct parser *p, const char *word)
{
    size_t len = strlen(word);
    skip_space(p);
    if (strncmp(p->at, word, len) != 0 || word_char(p->at[len])) {
        return false;
    }
    p->at += len;
    return true;
}

/* Keeps a copy of text[0..len) in the filter. */
static const char *keep(struct filter *filter, const char *text, size_t len)
{
    if (len + 1 > sizeof(filter->text) - filter->used) {
        return NULL;
    }
    char *copy = filter->text + filter->used;
    memcpy(copy, text, len);
    copy[len] = '\0';
    filter->used += len + 1;
    return copy;
}

static int push(struct parser *p, const struct store_node *node)
{
    if (p->filter->count == STORE_NODES_MAX) {
        return bad(p, "too many conditions");
    }
    p->filter->nodes[p->filter->count] = *node;
    return (int)p->filter->count++;
}

static int parse_op(struct parser *p, enum store_op *ret_op)
{
    static const struct {
        const char *text;
        enum store_op op;
    } ops[] = {{"!=", STORE_OP_NE}, {"<=", STORE_OP_LE}, {">=", STORE_OP_GE}, {"==", STORE_OP_EQ},
               {"=", STORE_OP_EQ},  {"<", STORE_OP_LT},  {">", STORE_OP_GT},  {"~", STORE_OP_HAS}};
    skip_space(p);
    for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
        size_t len = strlen(ops[i].text);
        if (strncmp(p->at, ops[i].text, len) == 0) {
            p->at += len;
            *ret_op = ops[i].op;
            return 0;
        }
    }
    return bad(p, "expected a comparison (= != < <= > >= ~)");
}

/* The member that a path names; maps take one more part. */
static int check_path(struct parser *p, const char *path, const struct field **ret_field)
{
    size_t len = strcspn(path, ".");
    const struct field *field = field_find(p->type, path, len);
    if (!field || (field->flags & F_SECRET)) {
        return fault_set(p->fault, FAULT_INVALID, "the members are described in /openapi.json",
                         "filter: %s has no member '%.64s'", p->type->kind, path);
    }
    const char *rest = path + len;
    if ((field->type == FIELD_MAP) != (*rest == '.') || (*rest && !field_name_ok(rest + 1))) {
        return fault_set(p->fault, FAULT_INVALID, "write labels.NAME", "filter: '%.64s' can't be compared",
                         path);
    }
    *ret_field = field;
    return 0;
}

static int parse_value(struct parser *p, const char **ret_text)
{
    skip_space(p);
    const char *from = p->at;
    size_t len;
    if (*from == '"' || *from == '\'') {
        const char *end = strchr(from + 1, *from);
        if (!end) {
            return bad(p, "a quote is not closed");
        }
        len = (size_t)(end - from - 1);
        from++;
        p->at = end + 1;
    } else {
        while (word_char(*p->at)) {
            p->at++;
        }
        len = (size_t)(p->at - from);
        if (!len) {
            return bad(p, "expected a value");
        }
    }
    *ret_text = keep(p->filter, from, len);
    return *ret_text ? 0 : bad(p, "too long");
}

/* The value in the member's type. */
static int type_value(struct parser *p, const struct field *field, struct store_node *node)
{
    uint64_t number = 0;
    node->type = STORE_TEXT;
    if (field->type == FIELD_BOOL) {
        bool yes = strcmp(node->text, "true") == 0;
        if (!yes && strcmp(node->text, "false") != 0) {
            return bad(p, "expected true or false");
        }
        node->type = STORE_BOOL;
        node->number = yes;
    } else if (field->type == FIELD_INT || field->type == FIELD_SIZE) {
        bool negative = node->text[0] == '-';
        if (parse_uint(node->text + negative, &number, NULL) < 0 &&
            parse_size(node->text, &number, NULL) < 0) {
            return bad(p, "expected a number or a size");
        }
        node->type = STORE_NUMBER;
        node->number = (int64_t)MIN(number, (uint64_t)INT64_MAX) * (negative ? -1 : 1);
    }
    return 0;
}

static int parse_condition(struct parser *p)
{
    skip_space(p);
    const char *from = p->at;
    while (word_char(*p->at)) {
        p->at++;
    }
    if (p->at == from) {
        return bad(p, "expected the name of a member");
    }
    struct store_node node = {.path = keep(p->filter, from, (size_t)(p->at - from))};
    const struct field *field = NULL;
    if (!node.path) {
        return bad(p, "too long");
    }
    if (check_path(p, node.path, &field) < 0 || parse_op(p, &node.op) < 0 || parse_value(p, &node.text) < 0 ||
        type_value(p, field, &node) < 0) {
        return -1;
    }
    return push(p, &node);
}

static int parse_or(struct parser *p);

static int parse_term(struct parser *p)
{
    if (p->depth >= FILTER_DEPTH_MAX) {
        return bad(p, "too deeply nested");
    }
    p->depth++;
    int at;
    skip_space(p);
    if (take_word(p, "not")) {
        at = parse_term(p);
        struct store_node node = {.op = STORE_OP_NOT, .left = (unsigned)at};
        at = at < 0 ? at : push(p, &node);
    } else if (*p->at == '(') {
        p->at++;
        at = parse_or(p);
        skip_space(p);
        if (at >= 0 && *p->at != ')') {
            at = bad(p, "expected ')'");
        } else if (at >= 0) {
            p->at++;
        }
    } else {
        at = parse_condition(p);
    }
    p->depth--;
    return at;
}

static int parse_and(struct parser *p)
{
    int left = parse_term(p);
    while (left >= 0 && take_word(p, "and")) {
        int right = parse_term(p);
        struct store_node node = {.op = STORE_OP_AND, .left = (unsigned)left, .right = (unsigned)right};
        left = right < 0 ? right : push(p, &node);
    }
    return left;
}

static int parse_or(struct parser *p)
{
    int left = parse_and(p);
    while (left >= 0 && take_word(p, "or")) {
        int right = parse_and(p);
        struct store_node node = {.op = STORE_OP_OR, .left = (unsigned)left, .right = (unsigned)right};
        left = right < 0 ? right : push(p, &node);
    }
    return left;
}

int filter_parse(const struct object_type *type, const char *text, struct filter *ret_filter,
                 struct fault *fault)
{
    struct parser p = {.type = type, .filter = ret_filter, .fault = fault, .start = text, .at = text};
    ret_filter->count = 0;
    ret_filter->used = 0;
    if (strnlen(text, FILTER_TEXT_MAX + 1) > FILTER_TEXT_MAX) {
        return fault_set(fault, FAULT_INVALID, NULL, "filter: longer than %d bytes", FILTER_TEXT_MAX);
    }
    skip_space(&p);
    if (!*p.at) {
        return 0;
    }
    if (parse_or(&p) < 0) {
        return -1;
    }
    skip_space(&p);
    return *p.at ? bad(&p, "expected 'and' or 'or'") : 0;
}

int filter_restrict(struct filter *filter, const char *path, const char *const *texts, unsigned count,
                    struct fault *fault)
{
    struct parser p = {.filter = filter, .fault = fault, .start = "", .at = ""};
    int old = (int)filter->count - 1;
    int any = -1;
    static const char nothing[] = "";
    for (unsigned i = 0; i < MAX(count, 1u); i++) {
        struct store_node node = {.op = STORE_OP_EQ, .path = path, .text = count ? texts[i] : nothing};
        int at = push(&p, &node);
        if (at >= 0 && any >= 0) {
            struct store_node either = {.op = STORE_OP_OR, .left = (unsigned)any, .right = (unsigned)at};
            at = push(&p, &either);
        }
        if (at < 0) {
            return fault_set(fault, FAULT_INVALID, "ask for single instances", "too many grants for a list");
        }
        any = at;
    }
    if (old >= 0) {
        struct store_node both = {.op = STORE_OP_AND, .left = (unsigned)old, .right = (unsigned)any};
        return push(&p, &both) < 0 ? -1 : 0;
    }
    return 0;
}

int filter_sort(const struct object_type *type, const char *text, struct store_query *query,
                struct fault *fault)
{
    query->sort_count = 0;
    while (*text) {
        bool descending = *text == '-';
        text += descending;
        size_t len = strcspn(text, ",");
        const struct field *field = field_find(type, text, len);
        if (!field || (field->flags & F_SECRET) || field->type > FIELD_TIME) {
            return fault_set(fault, FAULT_INVALID, "for example: sort=-memory,name",
                             "sort: %s can't be sorted by '%.*s'", type->kind, (int)MIN(len, 64), text);
        }
        if (query->sort_count == STORE_SORT_MAX) {
            return fault_set(fault, FAULT_INVALID, NULL, "sort: at most %d members", STORE_SORT_MAX);
        }
        query->sort[query->sort_count].path = field->name;
        query->sort[query->sort_count++].descending = descending;
        text += len;
        text += *text == ',';
    }
    return 0;
}
