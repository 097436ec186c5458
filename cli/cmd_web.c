/* fonda web: a one-time link to the page, and a browser that opens it. */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"

extern char **environ;

/* By the desktop's own opener, where there is a desktop. False: it was not opened. */
static bool open_browser(const char *url)
{
    const char *x11 = getenv("DISPLAY"), *wayland = getenv("WAYLAND_DISPLAY");
    char *argv[] = {"xdg-open", (char *)url, NULL};
    pid_t pid;
    int status;
    if ((!x11 || !x11[0]) && (!wayland || !wayland[0])) {
        return false;
    }
    return posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) == 0 && waitpid(pid, &status, 0) == pid &&
           WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int cmd_web(struct cli *cli)
{
    json_t *link = NULL;
    char url[512];
    int rc = call_api(cli, "POST", "/v1/web", NULL, &link);
    if (rc != CLI_OK) {
        return rc;
    }
    const char *text = json_string_value(json_object_get(link, "url"));
    snprintf(url, sizeof(url), "%s", text ? text : "");
    json_decref(link);
    puts(url);
    fflush(stdout);
    if (!cli->options.no_open && !open_browser(url) && !cli->options.quiet) {
        fprintf(stderr, "open this link in a browser within five minutes; it works once\n");
    }
    return CLI_OK;
}
