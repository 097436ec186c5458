/* Commands of fonda-oci. main.c has their table; each takes its own options and arguments. */
#ifndef FONDA_CONTAINER_CMD_H
#define FONDA_CONTAINER_CMD_H

#include "base/err.h"
#include "container/cg.h"
#include "container/state.h"

#include <getopt.h>
#include <stdbool.h>

struct globals {
    const char *root; /* --root, NULL: default */
    bool systemd_cgroup;
    bool no_cgroups; /* --cgroup-manager disabled */
    char **argv;     /* as the program got it */
};

/* Returns the exit status, or a negative errno with a text for the log. argv[0] is the command's name. */
typedef int (*cmd_fn)(const struct globals *g, int argc, char **argv, struct err *err);

int cmd_create(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_run(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_start(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_exec(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_state(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_kill(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_delete(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_list(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_ps(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_pause(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_resume(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_update(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_events(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_spec(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_features(const struct globals *g, int argc, char **argv, struct err *err);
int cmd_checkpoint(const struct globals *g, int argc, char **argv, struct err *err);

/* An existing container: its state and its cgroups. */
struct handle {
    int root_fd;
    struct state state;
    struct cg cg;
    enum status status;
};

int handle_open(const struct globals *g, const char *id, struct handle *ret, struct err *err);
/* The same for a change: nobody else changes it until handle_done(). */
int handle_open_locked(const struct globals *g, const char *id, struct handle *ret, struct err *err);
void handle_done(struct handle *h);
int handle_delete(struct handle *h, bool force, struct err *err); /* locked by this; poststop hooks run */

int cmd_wait(pid_t pid); /* waits for a child, passing signals on to it; its exit status as a shell has it */

/* The one argument that is left after the options, or -EINVAL. */
int cmd_id(int argc, char **argv, const char **ret, struct err *err);
int cmd_bad_option(char **argv, struct err *err);
void cmd_print_json(json_t *value); /* takes the reference */

#endif
