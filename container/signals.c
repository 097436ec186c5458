#include "container/signals.h"

#include <ctype.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int signal_number(const char *text)
{
    if (isdigit((unsigned char)*text)) {
        char *end;
        unsigned long n = strtoul(text, &end, 10);
        return *end || n > 64 ? 0 : (int)n;
    }
    text += strncasecmp(text, "SIG", 3) == 0 ? 3 : 0;
    for (int n = 1; n < 32; n++) {
        const char *name = sigabbrev_np(n);
        if (name && strcasecmp(name, text) == 0) {
            return n;
        }
    }
    if (strncasecmp(text, "RTMIN", 5) == 0) {
        return SIGRTMIN + (text[5] == '+' ? atoi(text + 6) : 0);
    }
    if (strncasecmp(text, "RTMAX", 5) == 0) {
        return SIGRTMAX - (text[5] == '-' ? atoi(text + 6) : 0);
    }
    return strcasecmp(text, "IOT") == 0 ? SIGIOT : strcasecmp(text, "POLL") == 0 ? SIGPOLL : 0;
}
