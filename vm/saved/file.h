/*
 * The file of a saved machine: its configuration (JSON), its parts' sections (base/state.h), and its RAM in
 * compressed blocks that can be read in any order. docs/state.md has the layout byte by byte.
 *
 * Every byte is covered by a checksum or has to have one value; all of it is checked when a file is opened,
 * so that a damaged file is refused before anything runs.
 *
 * Threads: a writer or reader by one at a time; saved_read_chunk also in signal handlers, one at a time in
 * each lane.
 */
#ifndef FONDA_VM_SAVED_FILE_H
#define FONDA_VM_SAVED_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define SAVED_CONFIG_MAX   (1u << 20)
#define SAVED_CHUNK_MAX    (64u << 20)
#define SAVED_CHUNKS_MAX   (1u << 20)
#define SAVED_SECTIONS_MAX (64u << 20)
#define SAVED_LANES        8u /* chunks that can be read at a time; one where chunks are large */

struct saved_head {
    const char *config; /* JSON, terminated */
    const void *sections;
    size_t sections_len;
    uint64_t ram_bytes;
    uint32_t chunk_bytes; /* of RAM in a block: a power of two, at least 4 KiB */
};

struct saved_writer;
struct saved_reader;

/* Begins "PATH.partial", with mode 0600. Errors: those of open and write. */
int saved_create(const char *path, const struct saved_head *head, struct saved_writer **ret_writer,
                 struct err *err);
/* The next chunk, in order, each once. */
int saved_write_chunk(struct saved_writer *writer, const uint8_t *bytes, struct err *err);
/* Completes the file, puts it on the disk and in PATH's place: an older one was there until then. Ends the
 * writer either way; *ret_bytes gets the file's size. */
int saved_commit(struct saved_writer *writer, uint64_t *ret_bytes, struct err *err);
/* Gives up, and removes what is there. NULL is accepted. */
void saved_abort(struct saved_writer *writer);

/* Opens and checks a file. Errors: -EBADMSG with the name of the part that is damaged; those of open and
 * read. */
int saved_open(const char *path, struct saved_reader **ret_reader, struct err *err);
void saved_close(struct saved_reader *reader);
/* Valid until saved_close. */
const struct saved_head *saved_head(const struct saved_reader *reader);
uint64_t saved_chunks(const struct saved_reader *reader);
/* One byte per chunk: whether there is more in it than zeros. */
const uint8_t *saved_present(const struct saved_reader *reader);
unsigned saved_lanes(const struct saved_reader *reader);
/* A chunk's bytes, len as RAM has them there. System calls and computation only. Errors: -EBADMSG, -EIO... */
int saved_read_chunk(struct saved_reader *reader, unsigned lane, uint64_t chunk, uint8_t *buf, uint64_t len);

#endif
