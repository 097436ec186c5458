/*
 * `fonda disk` and `fonda nic`: an instance's disks and networks, one at a time. A list is read, changed and
 * sent back as a whole; the daemon makes a running machine what it says (docs/api.md).
 */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"

/* Whether a list's text is what the user means: all of it, or a disk's file alone. */
static bool names(const char *text, const char *wanted)
{
    size_t len = strlen(wanted);
    return strncmp(text, wanted, len) == 0 && (text[len] == '\0' || text[len] == ',');
}

static int usage(const struct cli *cli, const char *text)
{
    log_error("%s (see 'fonda %s --help')", text, cli->command->name);
    return CLI_USAGE;
}

static int show(const json_t *list)
{
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)list, i, item)
    {
        puts(json_string_value(item));
    }
    return CLI_OK;
}

/* Files are the daemon's host's; a relative one is this directory's. */
static char *full_text(const char *text, bool disk)
{
    char cwd[PATH_MAX], *out = NULL;
    if (!disk || text[0] == '/' || !getcwd(cwd, sizeof(cwd))) {
        return strdup(text);
    }
    return asprintf(&out, "%s/%s", cwd, text) < 0 ? NULL : out;
}

static int change(struct cli *cli, const char *path, const char *member, json_t *list, const char *text)
{
    bool attach = strcmp(cli->argv[0], "attach") == 0, found = false;
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        if (!attach && !found && names(json_string_value(item), text)) {
            found = true;
            json_array_remove(list, i);
            break;
        }
    }
    if (!attach && !found) {
        log_error("instance '%s' has no '%s' among its %s", cli->argv[1], text, member);
        return CLI_NOT_FOUND;
    }
    if (attach) {
        json_array_append_new(list, json_string(text));
    }
    return cmd_patch_instance(cli, cli->argv[1], path, json_pack("{s:O}", member, list));
}

int cmd_device(struct cli *cli)
{
    bool disk = strcmp(cli->command->name, "disk") == 0, listing = strcmp(cli->argv[0], "list") == 0;
    const char *member = disk ? "disks" : "networks";
    if (!listing && strcmp(cli->argv[0], "attach") != 0 && strcmp(cli->argv[0], "detach") != 0) {
        return usage(cli, "attach, detach or list is needed");
    }
    if (cli->argc != (listing ? 2 : 3)) {
        return usage(cli, listing ? "an instance is needed"
                                  : "an instance, and what to attach or detach, are needed");
    }
    char path[600];
    json_t *instance = NULL;
    auto_free char *escaped = url_escape(cli->argv[1]);
    auto_free char *text = listing ? NULL : full_text(cli->argv[2], disk);
    snprintf(path, sizeof(path), "/v1/instances/%s", escaped ? escaped : "");
    int rc = call_api(cli, "GET", path, NULL, &instance);
    if (rc == CLI_OK) {
        json_t *list = json_deep_copy(json_object_get(instance, member));
        rc = listing ? show(list) : change(cli, path, member, list, text ? text : "");
        json_decref(list);
    }
    json_decref(instance);
    return rc;
}
