/* Saved daemons: $XDG_CONFIG_HOME/fonda/contexts.json (mode 0600: it may hold tokens). */
#ifndef FONDA_CLI_CONTEXT_H
#define FONDA_CLI_CONTEXT_H

#include "cli/cli.h"
#include "cli/client.h"

json_t *context_load(void); /* an empty object when there is none */
int context_save(const json_t *all, struct err *err);
/* "add", "use", "delete". Errors: -EINVAL. */
int context_change(json_t *all, const char *verb, const char *name, const struct cli_options *options,
                   struct err *err);
/* Where to connect: options, then FONDA_HOST, then the chosen or current context, else the local daemon. all
 * must outlive the result. */
int context_resolve(const json_t *all, const struct cli_options *options, struct client_config *ret_config,
                    struct err *err);

#endif
