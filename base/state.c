/*
 * See state.h. A section:
 *
 *     u32 magic  u32 version  u32 name length  u32 payload length  name  payload  u32 CRC-32C of all before
 *
 * A field of its payload: u8 type, u8 name length, u16 zero, u32 length, name, bytes.
 */
#include "base/state.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define SECTION_MAGIC 0x53444e46u /* "FNDS" */
#define SECTION_HEAD  16u
#define FIELD_HEAD    8u
#define CRC_BYTES     4u

struct field {
    const uint8_t *name, *bytes;
    uint32_t len;
    uint8_t name_len, type;
    bool taken;
};

struct section {
    char name[STATE_NAME_MAX + 1];
    uint32_t version;
    const uint8_t *payload;
    uint32_t len;
    bool taken;
};

struct state {
    bool loading;
    struct err err;
    uint8_t *bytes;
    size_t used, size;
    /* The section that has begun. */
    bool open;
    char name[STATE_NAME_MAX + 1];
    char prefix[STATE_NAME_MAX + 1];
    size_t start; /* writing: of its head */
    unsigned version;
    unsigned section_count, field_count;
    struct section *sections;
    struct field *fields;
};

/* --- CRC-32C ----------------------------------------------------------------------------------------------
 */

#define CRC_POLYNOMIAL 0x82f63b78u /* reflected */

static uint32_t crc_plain(uint32_t crc, const uint8_t *at, size_t len)
{
    while (len--) {
        crc ^= *at++;
        for (unsigned i = 0; i < 8; i++) {
            crc = crc >> 1 ^ (crc & 1 ? CRC_POLYNOMIAL : 0);
        }
    }
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *at, size_t len)
{
    uint64_t wide = crc, word;
    for (; len >= sizeof(word); at += sizeof(word), len -= sizeof(word)) {
        memcpy(&word, at, sizeof(word));
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    while (len--) {
        crc = __builtin_ia32_crc32qi(crc, *at++);
    }
    return crc;
}
#endif

uint32_t state_crc32c(uint32_t crc, const void *bytes, size_t len)
{
    crc = ~crc;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) {
        return ~crc_sse42(crc, bytes, len);
    }
#endif
    return ~crc_plain(crc, bytes, len);
}

/* --- mistakes ---------------------------------------------------------------------------------------------
 */

static bool failed(const struct state *s)
{
    return s->err.code != 0;
}

int state_error(const struct state *s, struct err *err)
{
    if (err && failed(s)) {
        *err = s->err;
    }
    return s->err.code;
}

void state_fail(struct state *s, int code, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (!failed(s)) {
        err_set(&s->err, code, "%s%s%s%s", s->open ? "section '" : "", s->open ? s->name : "",
                s->open ? "': " : "", text);
    }
}

void state_require(struct state *s, bool ok, const char *field)
{
    if (s->loading && !ok) {
        state_fail(s, -EBADMSG, "field '%s%s' has a value that can't be", s->prefix, field);
    }
}

bool state_loading(const struct state *s)
{
    return s->loading;
}

bool state_loaded(const struct state *s)
{
    return s->loading && !failed(s);
}

/* --- writing ----------------------------------------------------------------------------------------------
 */

static void put(struct state *s, const void *bytes, size_t len)
{
    if (failed(s)) {
        return;
    }
    if (s->used + len > s->size) {
        size_t size = MAX(2 * s->size, s->used + len + 4096);
        uint8_t *grown = s->used + len <= STATE_BYTES_MAX ? realloc(s->bytes, size) : NULL;
        if (!grown) {
            state_fail(s, -ENOMEM, "no memory for the machine's state");
            return;
        }
        s->bytes = grown;
        s->size = size;
    }
    memcpy(s->bytes + s->used, bytes, len);
    s->used += len;
}

static void put32(struct state *s, uint32_t value)
{
    put(s, &value, sizeof(value));
}

struct state *state_new_writer(void)
{
    return calloc(1, sizeof(struct state));
}

const void *state_encoded(struct state *s, size_t *ret_len)
{
    *ret_len = s->used;
    return failed(s) ? NULL : s->bytes;
}

/* --- reading ----------------------------------------------------------------------------------------------
 */

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static bool is_name(const uint8_t *name, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (name[i] <= ' ' || name[i] > '~') {
            return false;
        }
    }
    return len > 0 && len <= STATE_NAME_MAX;
}

static const struct section *find_section(const struct state *s, const char *name)
{
    for (unsigned i = 0; i < s->section_count; i++) {
        if (strcmp(s->sections[i].name, name) == 0) {
            return &s->sections[i];
        }
    }
    return NULL;
}

/* Fills fields from a section's payload. */
static void split_fields(struct state *s, const struct section *section)
{
    const uint8_t *at = section->payload;
    size_t left = section->len;
    s->field_count = 0;
    while (left > 0 && !failed(s)) {
        size_t name_len = left >= FIELD_HEAD ? at[1] : 0;
        uint64_t len = left >= FIELD_HEAD ? get32(at + 4) : 0;
        if (left < FIELD_HEAD || FIELD_HEAD + name_len + len > left || s->field_count == STATE_FIELDS_MAX ||
            at[2] || at[3] || !is_name(at + FIELD_HEAD, name_len)) {
            state_fail(s, -EBADMSG, "field %u is malformed", s->field_count);
            return;
        }
        struct field *field = &s->fields[s->field_count];
        *field = (struct field){
            at + FIELD_HEAD, at + FIELD_HEAD + name_len, (uint32_t)len, (uint8_t)name_len, at[0], false};
        for (unsigned i = 0; i < s->field_count; i++) {
            if (s->fields[i].name_len == name_len && memcmp(s->fields[i].name, field->name, name_len) == 0) {
                state_fail(s, -EBADMSG, "field '%.*s' is there twice", (int)name_len, field->name);
                return;
            }
        }
        s->field_count++;
        at += FIELD_HEAD + name_len + len;
        left -= FIELD_HEAD + name_len + len;
    }
}

/* Takes the section at `at`; returns its bytes, or 0 on a mistake. */
static size_t split_section(struct state *s, const uint8_t *at, size_t left)
{
    uint64_t name_len = left >= SECTION_HEAD ? get32(at + 8) : 0;
    uint64_t len = left >= SECTION_HEAD ? get32(at + 12) : 0,
             bytes = SECTION_HEAD + name_len + len + CRC_BYTES;
    if (left < SECTION_HEAD || get32(at) != SECTION_MAGIC || bytes > left ||
        !is_name(at + SECTION_HEAD, name_len)) {
        state_fail(s, -EBADMSG, "section %u (behind '%s') is cut off, or none at all", s->section_count,
                   s->section_count ? s->sections[s->section_count - 1].name : "the header");
        return 0;
    }
    struct section section = {
        .version = get32(at + 4), .payload = at + SECTION_HEAD + name_len, .len = (uint32_t)len};
    memcpy(section.name, at + SECTION_HEAD, name_len);
    if (get32(at + bytes - CRC_BYTES) != state_crc32c(0, at, bytes - CRC_BYTES)) {
        state_fail(s, -EBADMSG, "section '%s' is damaged: its checksum is wrong", section.name);
    } else if (find_section(s, section.name)) {
        state_fail(s, -EBADMSG, "section '%s' is there twice", section.name);
    } else if (s->section_count == STATE_SECTIONS_MAX) {
        state_fail(s, -EBADMSG, "more than %u sections", STATE_SECTIONS_MAX);
    } else {
        s->sections[s->section_count++] = section;
    }
    return failed(s) ? 0 : bytes;
}

int state_new_reader(const void *bytes, size_t len, struct state **ret_state, struct err *err)
{
    struct state *s = calloc(1, sizeof(*s));
    if (s) {
        s->loading = true;
        s->bytes = malloc(MAX(len, 1u));
        s->sections = calloc(STATE_SECTIONS_MAX, sizeof(*s->sections));
        s->fields = calloc(STATE_FIELDS_MAX, sizeof(*s->fields));
    }
    if (!s || !s->bytes || !s->sections || !s->fields) {
        state_free(s);
        return err_sys(err, -ENOMEM, "cannot load the state");
    }
    memcpy(s->bytes, bytes, len);
    s->used = len;
    for (size_t at = 0, step = 1; at < len && step; at += step) {
        step = split_section(s, s->bytes + at, len - at);
    }
    int rc = state_error(s, err);
    if (rc < 0) {
        state_free(s);
        return rc;
    }
    *ret_state = s;
    return 0;
}

void state_free(struct state *s)
{
    if (s) {
        free(s->bytes);
        free(s->sections);
        free(s->fields);
        free(s);
    }
}

/* --- both ways --------------------------------------------------------------------------------------------
 */

void state_begin(struct state *s, const char *name, unsigned version)
{
    if (failed(s)) {
        return;
    }
    if (strlen(name) > STATE_NAME_MAX || s->open) {
        state_fail(s, -EINVAL, "section '%s' can't begin", name);
        return;
    }
    snprintf(s->name, sizeof(s->name), "%s", name);
    s->prefix[0] = '\0';
    if (!s->loading) {
        s->open = true;
        s->version = version;
        s->start = s->used;
        put32(s, SECTION_MAGIC);
        put32(s, version);
        put32(s, (uint32_t)strlen(name));
        put32(s, 0);
        put(s, name, strlen(name));
        return;
    }
    const struct section *section = find_section(s, name);
    if (!section || section->taken) {
        state_fail(s, -EBADMSG, "section '%s' is missing", name);
        return;
    }
    s->sections[section - s->sections].taken = true;
    s->open = true;
    s->version = section->version;
    if (section->version == 0 || section->version > version) {
        state_fail(s, -EBADMSG, "its version is %u, and this program knows up to %u", section->version,
                   version);
        return;
    }
    split_fields(s, section);
}

unsigned state_version(const struct state *s)
{
    return s->version;
}

void state_end(struct state *s)
{
    if (!s->loading && !failed(s)) {
        uint32_t len = (uint32_t)(s->used - s->start - SECTION_HEAD - strlen(s->name));
        memcpy(s->bytes + s->start + 12, &len, sizeof(len));
        put32(s, state_crc32c(0, s->bytes + s->start, s->used - s->start));
    }
    for (unsigned i = 0; s->loading && !failed(s) && i < s->field_count; i++) {
        const struct field *field = &s->fields[i];
        if (!field->taken) {
            state_fail(s, -EBADMSG, "field '%.*s' is unknown", (int)field->name_len, field->name);
        }
    }
    s->open = false;
    s->field_count = 0;
}

bool state_has(const struct state *s, const char *name)
{
    return s->loading && find_section(s, name);
}

int state_finish(struct state *s, struct err *err)
{
    for (unsigned i = 0; i < s->section_count; i++) {
        if (!s->sections[i].taken) {
            state_fail(s, -EBADMSG, "section '%s' is unknown to this machine", s->sections[i].name);
        }
    }
    return state_error(s, err);
}

void state_prefix(struct state *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->prefix, sizeof(s->prefix), fmt, ap);
    va_end(ap);
}

void state_no_prefix(struct state *s)
{
    s->prefix[0] = '\0';
}

static void load_raw(struct state *s, const char *name, size_t name_len, enum state_type type, void *p,
                     size_t size)
{
    for (unsigned i = 0; i < s->field_count; i++) {
        struct field *field = &s->fields[i];
        if (field->name_len != name_len || memcmp(field->name, name, name_len) != 0) {
            continue;
        }
        if (field->taken || field->type != type || field->len != size) {
            state_fail(s, -EBADMSG, "field '%s' has another type or size", name);
            return;
        }
        for (uint32_t at = 0; type == STATE_BOOL && at < size; at++) {
            if (field->bytes[at] > 1) {
                state_fail(s, -EBADMSG, "field '%s' has a value that can't be", name);
                return;
            }
        }
        memcpy(p, field->bytes, size);
        field->taken = true;
        return;
    }
    state_fail(s, -EBADMSG, "field '%s' is missing", name);
}

void state_raw(struct state *s, const char *name, enum state_type type, void *p, size_t size)
{
    char full[2 * STATE_NAME_MAX + 2];
    int len = snprintf(full, sizeof(full), "%s%s", s->prefix, name);
    if (failed(s)) {
        return;
    }
    if (len <= 0 || (unsigned)len > STATE_NAME_MAX || !s->open || size > STATE_BYTES_MAX) {
        state_fail(s, -EINVAL, "field '%s' can't be", full);
    } else if (s->loading) {
        load_raw(s, full, (size_t)len, type, p, size);
    } else {
        const uint8_t head[4] = {(uint8_t)type, (uint8_t)len, 0, 0};
        put(s, head, sizeof(head));
        put32(s, (uint32_t)size);
        put(s, full, (size_t)len);
        put(s, p, size);
    }
}
