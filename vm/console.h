/*
 * What the person at the terminal types: bytes for the guest, and commands behind Ctrl-A. A pure state
 * machine; the main loop feeds it and acts.
 *
 *               Ctrl-A                       X, P, H, S: command     any other: both bytes go to the guest
 *     PLAIN ------------> ESCAPED -----------------------------------------> PLAIN
 *                                  Ctrl-A: one Ctrl-A to the guest
 */
#ifndef FONDA_VM_CONSOLE_H
#define FONDA_VM_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum console_command { CONSOLE_NONE, CONSOLE_QUIT, CONSOLE_POWER, CONSOLE_HELP, CONSOLE_STATS };

struct console {
    bool escaped;
};

/* Consumes bytes of in up to and including the first command. out must have room for len + 1 bytes. Returns
 * how many were consumed; sets how many bytes go to the guest and the command, if one came. */
size_t console_input(struct console *console, const uint8_t *in, size_t len, uint8_t *out,
                     size_t *ret_out_len, enum console_command *ret_command);

extern const char console_help[];

#endif
