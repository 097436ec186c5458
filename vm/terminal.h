/*
 * The host's terminal in raw mode, and back: whichever way the process ends.
 *
 * terminal_restore() runs on every ordinary way out (atexit). For the others (a crash, SIGKILL)
 * terminal_raw() leaves a keeper behind: a tiny child process that waits for the end of a pipe, and restores
 * the terminal when it comes without terminal_restore() having said so.
 *
 * Threads: main.
 */
#ifndef FONDA_VM_TERMINAL_H
#define FONDA_VM_TERMINAL_H

/* Puts the terminal behind fd into raw mode; nothing happens when it is none. Call before there are other
 * threads and before guest RAM is mapped: it forks. Returns 0 or a negative errno. */
int terminal_raw(int fd);
/* Safe to call again, and in signal handlers. */
void terminal_restore(void);

#endif
