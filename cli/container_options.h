/* Options as people type them for containers: "-it", "-eNAME=X", "--env NAME", until the first argument. */
#ifndef FONDA_CLI_CONTAINER_OPTIONS_H
#define FONDA_CLI_CONTAINER_OPTIONS_H

#include <jansson.h>
#include <stdio.h>

#include "base/err.h"

enum container_option_kind { CO_FLAG, CO_TEXT, CO_NUMBER, CO_SIZE, CO_SECONDS, CO_LIST };

struct container_option {
    const char *name;
    char letter; /* 0: none */
    enum container_option_kind kind;
    const char *member; /* of the result */
    const char *metavar;
    const char *help;
};

/* Reads argv[first..) into the object `into`. Returns the index of the first argument that is no option, or
 * -EINVAL. */
int container_options_parse(const struct container_option *options, unsigned count, int argc, char **argv,
                            int first, json_t *into, struct err *err);
void container_options_print(FILE *out, const struct container_option *options, unsigned count);

#endif
