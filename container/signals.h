/* Signals by name, as people and image configurations write them. */
#ifndef FONDA_CONTAINER_SIGNALS_H
#define FONDA_CONTAINER_SIGNALS_H

/* "TERM", "SIGTERM", "15", "RTMIN+3"; 0: not a signal. */
int signal_number(const char *text);

#endif
