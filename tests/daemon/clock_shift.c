/* Preloaded into a daemon of the tests: its wall clock is off by as many seconds as the file CLOCK_SHIFT
 * says. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

time_t time(time_t *ret_time)
{
    struct timespec now;
    const char *path = getenv("CLOCK_SHIFT");
    FILE *file = path ? fopen(path, "re") : NULL;
    long shift = 0;
    if (file) {
        if (fscanf(file, "%ld", &shift) != 1) {
            shift = 0;
        }
        fclose(file);
    }
    clock_gettime(CLOCK_REALTIME, &now);
    if (ret_time) {
        *ret_time = now.tv_sec + shift;
    }
    return now.tv_sec + shift;
}
