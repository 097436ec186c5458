/* See thread.h. */
#include "base/thread.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>

static void (*_Atomic the_hook)(const char *role);

void thread_set_hook(void (*hook)(const char *role))
{
    atomic_store(&the_hook, hook);
}

void thread_enter(const char *role, const char *name)
{
    (void)prctl(PR_SET_NAME, name ? name : role); /* the kernel cuts it */
    void (*hook)(const char *role) = atomic_load(&the_hook);
    if (hook) {
        hook(role);
    }
}
