/*
 * What a thread is for. Every thread that the project starts says its role first; whoever locks the process
 * in (sandbox/) listens, and leaves the thread what its role needs.
 */
#ifndef FONDA_BASE_THREAD_H
#define FONDA_BASE_THREAD_H

#define THREAD_NAME_MAX 16 /* with the final zero: what the kernel keeps, prctl(2) PR_SET_NAME */

/* First thing in a thread's main function: names the calling thread (name, cut to THREAD_NAME_MAX; NULL: like
 * its role), then tells the hook. role is a word of the hook's table; the string must be constant. */
void thread_enter(const char *role, const char *name);

/* Threads that begin from now on tell hook; NULL: nobody listens. Main thread. */
void thread_set_hook(void (*hook)(const char *role));

#endif
