/* Streams with an instance (docs/api.md): this process's standard streams at one end. */
#ifndef FONDA_CLI_STREAM_H
#define FONDA_CLI_STREAM_H

#include "cli/cli.h"

struct stream_use {
    const char *instance;
    json_t *open;     /* {"exec": {...}}; taken over */
    int in, out, err; /* -1: not used. in: read from; the others are written to */
    bool terminal;    /* ours becomes raw, and its size goes along */
    bool detach_keys; /* Ctrl-P Ctrl-Q leaves */
    bool forward;     /* signals go to the instance */
    bool ret_detached;
    bool ret_started; /* it was opened; otherwise the status says why not */
};

/* Returns the exit status of what ran at the other end, or 125 to 127 when it did not. */
/* The exit status for a program that could not be started: 125, 126 or 127. */
int stream_status_of(const char *detail);

int stream_run(struct cli *cli, struct stream_use *use);

#endif
