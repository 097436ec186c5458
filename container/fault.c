#include "container/fault.h"

#ifdef OCI_FAULTS

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned fault_count;
static const char *fault_fail = "FONDA_OCI_FAIL";
static const char *fault_kill = "FONDA_OCI_KILL";

static unsigned fault_env(const char *name)
{
    const char *text = getenv(name);
    return text ? (unsigned)strtoul(text, NULL, 10) : 0;
}

void fault_enter_child(void)
{
    fault_count = 0;
    fault_fail = "FONDA_OCI_CHILD_FAIL";
    fault_kill = "FONDA_OCI_CHILD_KILL";
}

int fault_step(const char *name, struct err *err)
{
    fault_count++;
    const char *path = getenv("FONDA_OCI_STEPS");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (fd >= 0) {
        char line[128];
        size_t n = strlen(name) < 100 ? strlen(name) : 100;
        memcpy(line, strstr(fault_fail, "CHILD") ? "child " : "main  ", 6);
        memcpy(line + 6, name, n);
        line[6 + n] = '\n';
        if (write(fd, line, n + 7) < 0) {
            abort();
        }
        close(fd);
    }
    if (fault_env(fault_kill) == fault_count) {
        kill(getpid(), SIGKILL);
        _exit(137); /* the first process of a pid namespace can't kill itself */
    }
    if (fault_env(fault_fail) == fault_count) {
        return err_set(err, -EIO, "injected fault at step %u (%s)", fault_count, name);
    }
    return 0;
}

bool fault_without(const char *feature)
{
    const char *list = getenv("FONDA_OCI_WITHOUT");
    size_t n = strlen(feature);
    while (list && *list) {
        size_t item = strcspn(list, ",");
        if (item == n && strncmp(list, feature, n) == 0) {
            return true;
        }
        list += item + (list[item] == ',');
    }
    return false;
}

#endif
