#include "vm/console.h"

#define CTRL_A 0x01

const char console_help[] = "\r\nFonda keys: Ctrl-A X  end the machine\r\n"
                            "            Ctrl-A P  press the power button\r\n"
                            "            Ctrl-A S  print the counters\r\n"
                            "            Ctrl-A H  this help\r\n"
                            "            Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

static enum console_command command_of(uint8_t byte)
{
    switch (byte | 0x20) {
    case 'x': return CONSOLE_QUIT;
    case 'p': return CONSOLE_POWER;
    case 'h': return CONSOLE_HELP;
    case 's': return CONSOLE_STATS;
    default: return byte == '?' ? CONSOLE_HELP : CONSOLE_NONE;
    }
}

size_t console_input(struct console *console, const uint8_t *in, size_t len, uint8_t *out,
                     size_t *ret_out_len, enum console_command *ret_command)
{
    size_t n = 0, i = 0;
    *ret_command = CONSOLE_NONE;
    while (i < len && *ret_command == CONSOLE_NONE) {
        uint8_t byte = in[i++];
        if (!console->escaped) {
            if (byte == CTRL_A) {
                console->escaped = true;
            } else {
                out[n++] = byte;
            }
            continue;
        }
        console->escaped = false;
        *ret_command = command_of(byte);
        if (*ret_command == CONSOLE_NONE) {
            out[n++] = CTRL_A;
            if (byte != CTRL_A) {
                out[n++] = byte;
            }
        }
    }
    *ret_out_len = n;
    return i;
}
