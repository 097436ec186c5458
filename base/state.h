/*
 * The state of a machine's parts, as sections of named fields: one function per part writes and reads it.
 *
 *     void i8254_state(struct device *dev, struct state *s)
 *     {
 *         state_field(s, "port61", &pit->port61);
 *         ...
 *         if (state_loaded(s)) { put timers and lines in accordance }
 *     }
 *
 * When it is being saved, fields are appended; when it is being loaded, they are looked up by name and
 * checked for type and size. The first mistake is latched, named by section and field; everything after it
 * does nothing. What a loaded section has beyond the fields that were asked for is a mistake too. The sender
 * of a state is not trusted: whoever uses a value as an index or a divisor checks it with state_require.
 *
 * Encoding (docs/state.md): little-endian, a CRC-32C per section.
 *
 * Threads: one at a time.
 */
#ifndef FONDA_BASE_STATE_H
#define FONDA_BASE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define STATE_NAME_MAX     63u /* bytes of a section's or a field's name */
#define STATE_SECTIONS_MAX 512u
#define STATE_FIELDS_MAX   2048u       /* of one section */
#define STATE_BYTES_MAX    (64u << 20) /* of all sections together */

enum state_type {
    STATE_BOOL = 1,
    STATE_U8,
    STATE_U16,
    STATE_U32,
    STATE_U64,
    STATE_I64,
    STATE_BYTES, /* of any length, which is the owner's affair */
};

struct state;

/* A writer. NULL: no memory. */
struct state *state_new_writer(void);
/* A reader of sections as state_encoded gives them; bytes are copied. Checks the encoding of all of it:
 * bounds, checksums, no section twice, no field twice. Errors: -EBADMSG, -ENOMEM. */
int state_new_reader(const void *bytes, size_t len, struct state **ret_state, struct err *err);
void state_free(struct state *s);
/* What the writer has so far; valid until the next call. NULL: out of memory, or beyond a limit. */
const void *state_encoded(struct state *s, size_t *ret_len);

/* A section begins, and ends. versions: saved as the newest; when loading, older ones are accepted and
 * state_version tells. A section that is not there is a mistake. */
void state_begin(struct state *s, const char *name, unsigned version);
unsigned state_version(const struct state *s);
void state_end(struct state *s);
/* Loading: whether there is such a section. */
bool state_has(const struct state *s, const char *name);
/* Loading, behind the last section: one that nobody asked for is a mistake. Returns 0, or the mistake. */
int state_finish(struct state *s, struct err *err);

bool state_loading(const struct state *s);
/* Loading, and without a mistake so far: the fields hold what the state has. */
bool state_loaded(const struct state *s);

/* A prefix for the names that follow, until the section ends: state_prefix(s, "timer%u.", i). */
void state_prefix(struct state *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void state_no_prefix(struct state *s);

/* A field of size bytes at p. What p points to stays as it was on a mistake. */
void state_raw(struct state *s, const char *name, enum state_type type, void *p, size_t size);

#define STATE_TYPE(p)                                                                                        \
    _Generic((p),                                                                                            \
        bool *: STATE_BOOL,                                                                                  \
        uint8_t *: STATE_U8,                                                                                 \
        uint16_t *: STATE_U16,                                                                               \
        uint32_t *: STATE_U32,                                                                               \
        uint64_t *: STATE_U64,                                                                               \
        int64_t *: STATE_I64)
#define state_field(s, name, p) state_raw(s, name, STATE_TYPE(p), p, sizeof(*(p)))
/* An array of integers, all of it. */
#define state_array(s, name, a) state_raw(s, name, STATE_TYPE(&(a)[0]), a, sizeof(a))

/* Loading: a value that must not be is a mistake. */
void state_require(struct state *s, bool ok, const char *field);
/* A mistake of the owner's choosing (loading or saving): "this device can't be saved". */
void state_fail(struct state *s, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The first mistake: 0 or a negative errno (-EBADMSG: what is loaded is damaged or does not fit). */
int state_error(const struct state *s, struct err *err);

/* CRC-32C (Castagnoli; RFC 3720 appendix B.4), continued from crc (0 at first). */
uint32_t state_crc32c(uint32_t crc, const void *bytes, size_t len);

#endif
