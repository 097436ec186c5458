/*
 * Bytes to a file descriptor that may block (a terminal, a pipe), from a thread of its own: the serial port's
 * sink must not block, and the terminal must not be made non-blocking, as others share it.
 *
 * Threads: output_write from any; output_free on the main loop.
 */
#ifndef FONDA_VM_OUTPUT_H
#define FONDA_VM_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define OUTPUT_BYTES 65536u

struct output;

/* room runs on the output's thread when there is room again after output_write took less than it was given.
 * fd is closed by output_free. Nothing is written before output_start. Errors: -ENOMEM. */
int output_new(int fd, void (*room)(void *opaque), void *opaque, struct output **ret_output, struct err *err);

/* Starts the thread. NULL is accepted. Errors: -EAGAIN (no thread). Main loop. */
int output_start(struct output *output, struct err *err);

/* Returns how many bytes it took; the rest has to come again. */
size_t output_write(struct output *output, const uint8_t *bytes, size_t len);

/* Waits until everything is written, for timeout_ms at most. Returns 0 or -ETIMEDOUT. NULL is accepted. */
int output_drain(struct output *output, unsigned timeout_ms);
/* Drains and frees; when the other side does not read, the thread is left behind. NULL is accepted. */
void output_free(struct output *output, unsigned timeout_ms);

#endif
