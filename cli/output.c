/* Lists and objects as table, JSON, YAML or CSV. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/options.h"
#include "base/util.h"
#include "cli/cli.h"

#define COLUMNS_MAX 12
#define CELL_MAX    256

struct columns {
    char names[COLUMNS_MAX][32];
    unsigned count;
};

static void split(const char *text, struct columns *columns)
{
    columns->count = 0;
    while (*text && columns->count < COLUMNS_MAX) {
        size_t len = strcspn(text, " ");
        snprintf(columns->names[columns->count++], sizeof(columns->names[0]), "%.*s", (int)len, text);
        text += len;
        text += *text == ' ';
    }
}

static bool is_size(const char *name)
{
    return strcmp(name, "memory") == 0 || strcmp(name, "size") == 0 || strcmp(name, "rss") == 0;
}

/* A value as people read it; csv: as programs do. */
static void cell(const json_t *object, const char *name, bool people, char *buf)
{
    const json_t *value = json_object_get(object, name);
    buf[0] = '\0';
    if (json_is_string(value)) {
        snprintf(buf, CELL_MAX, "%s", json_string_value(value));
    } else if (json_is_integer(value) && people && is_size(name)) {
        format_size((uint64_t)json_integer_value(value), buf, CELL_MAX);
    } else if (value && !json_is_null(value)) {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        snprintf(buf, CELL_MAX, "%s", text ? text : "");
        free(text);
    }
    for (char *c = buf; *c; c++) {
        *c = (unsigned char)*c < ' ' || *c == 127 ? '?' : *c; /* nothing from elsewhere steers the terminal */
    }
}

static bool colours(void)
{
    const char *no = getenv("NO_COLOR");
    return isatty(STDOUT_FILENO) && !(no && no[0]);
}

static const char *colour_of(const char *column, const char *text)
{
    static const char *const table[][2] = {
        {"running", "\033[32m"}, {"done", "\033[32m"}, {"failed", "\033[31m"}, {"paused", "\033[33m"}};
    for (size_t i = 0; strcmp(column, "state") == 0 && i < ARRAY_SIZE(table); i++) {
        if (strcmp(table[i][0], text) == 0) {
            return table[i][1];
        }
    }
    return NULL;
}

static void print_table(const json_t *items, const struct columns *columns)
{
    int widths[COLUMNS_MAX] = {0};
    char text[CELL_MAX] = "";
    size_t i;
    json_t *item;
    bool colour = colours();
    for (unsigned c = 0; c < columns->count; c++) {
        widths[c] = (int)strlen(columns->names[c]);
        json_array_foreach(items, i, item)
        {
            cell(item, columns->names[c], true, text);
            widths[c] = MAX(widths[c], (int)strlen(text));
        }
    }
    for (unsigned c = 0; c < columns->count; c++) {
        char head[32];
        snprintf(head, sizeof(head), "%s", columns->names[c]);
        for (char *p = head; *p; p++) {
            *p = (char)(*p == '_' ? ' ' : *p >= 'a' && *p <= 'z' ? *p - 32 : *p);
        }
        printf("%-*s%s", c + 1 < columns->count ? widths[c] : 0, head, c + 1 < columns->count ? "  " : "\n");
    }
    json_array_foreach(items, i, item)
    {
        for (unsigned c = 0; c < columns->count; c++) {
            cell(item, columns->names[c], true, text);
            const char *on = colour ? colour_of(columns->names[c], text) : NULL;
            printf("%s%-*s%s%s", on ? on : "", c + 1 < columns->count ? widths[c] : 0, text,
                   on ? "\033[0m" : "", c + 1 < columns->count ? "  " : "\n");
        }
    }
}

static void print_csv_text(const char *text)
{
    if (!strpbrk(text, ",\"")) {
        fputs(text, stdout);
        return;
    }
    putchar('"');
    for (; *text; text++) {
        if (*text == '"') {
            putchar('"');
        }
        putchar(*text);
    }
    putchar('"');
}

static void print_csv(const json_t *items, const struct columns *columns)
{
    char text[CELL_MAX];
    size_t i;
    json_t *item;
    for (unsigned c = 0; c < columns->count; c++) {
        printf("%s%s", columns->names[c], c + 1 < columns->count ? "," : "\n");
    }
    json_array_foreach(items, i, item)
    {
        for (unsigned c = 0; c < columns->count; c++) {
            cell(item, columns->names[c], false, text);
            print_csv_text(text);
            putchar(c + 1 < columns->count ? ',' : '\n');
        }
    }
}

/* Scalars as in JSON, which YAML 1.2 contains (section 1.3). */
static void print_yaml(const json_t *value, unsigned indent, bool in_list)
{
    if (json_is_object(value) && json_object_size(value)) {
        const char *key;
        json_t *member;
        bool first = true;
        json_object_foreach((json_t *)value, key, member)
        {
            bool nested = (json_is_object(member) && json_object_size(member)) ||
                          (json_is_array(member) && json_array_size(member));
            printf("%*s%s:%s", in_list && first ? 0 : (int)indent, "", key, nested ? "\n" : " ");
            print_yaml(member, indent + 2, false);
            first = false;
        }
    } else if (json_is_array(value) && json_array_size(value)) {
        size_t i;
        json_t *item;
        json_array_foreach(value, i, item)
        {
            printf("%*s- ", (int)indent, "");
            print_yaml(item, indent + 2, true);
        }
    } else {
        auto_free char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        printf("%s\n", text ? text : "null");
    }
}

static void print_json(const json_t *value)
{
    auto_free char *text = json_dumps(value, JSON_INDENT(2));
    puts(text ? text : "null");
}

void output_list(const struct cli *cli, const json_t *items, const char *columns_text)
{
    struct columns columns;
    split(columns_text, &columns);
    if (cli->options.quiet) {
        size_t i;
        json_t *item;
        char text[CELL_MAX];
        json_array_foreach(items, i, item)
        {
            cell(item, columns.names[0], false, text);
            puts(text);
        }
        return;
    }
    switch (cli->format) {
    case FORMAT_TABLE: print_table(items, &columns); break;
    case FORMAT_CSV: print_csv(items, &columns); break;
    case FORMAT_YAML: print_yaml(items, 0, false); break;
    case FORMAT_JSON: print_json(items); break;
    }
}

void output_object(const struct cli *cli, const json_t *object)
{
    if (cli->format == FORMAT_JSON) {
        print_json(object);
    } else {
        print_yaml(object, 0, false);
    }
}
