/*
 * The commands of `fonda`. Each gets its own name in argv[0] and returns the exit status.
 */
#ifndef FONDA_CLI_CLI_H
#define FONDA_CLI_CLI_H

int cli_run(int argc, char **argv);
int cli_engines(int argc, char **argv);
int cli_jail(int argc, char **argv);
int cli_image(int argc, char **argv);

#endif
