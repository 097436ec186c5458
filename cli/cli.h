/*
 * The commands of `fonda`. Each gets its own name in argv[0] and returns the exit status.
 */
#ifndef FONDA_CLI_CLI_H
#define FONDA_CLI_CLI_H

int cli_run(int argc, char **argv);
int cli_engines(int argc, char **argv);
int cli_image(int argc, char **argv);

/* machines.c: over the control sockets of named machines. */
int cli_ps(int argc, char **argv);
int cli_machine_simple(int argc, char **argv); /* pause, resume, reset */
int cli_stop(int argc, char **argv);
int cli_save(int argc, char **argv);
int cli_snapshot(int argc, char **argv);
int cli_stats(int argc, char **argv);
int cli_console(int argc, char **argv);

#endif
