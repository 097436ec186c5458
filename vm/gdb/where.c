#include "vm/gdb/where.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/un.h>

#include "base/options.h"

#define UNIX_PREFIX "unix:"

int gdb_where_parse(const char *text, struct gdb_where *ret_where, struct err *err)
{
    uint64_t port = 0;
    size_t prefix = strlen(UNIX_PREFIX);
    bool is_path = strncmp(text, UNIX_PREFIX, prefix) == 0;
    if (is_path &&
        (text[prefix] == '\0' || strlen(text + prefix) >= sizeof(((struct sockaddr_un *)0)->sun_path))) {
        return err_set(err, -EINVAL, "'%s' has no path, or one of more than 107 bytes", text);
    }
    if (!is_path && (parse_uint(text, &port, NULL) < 0 || port > UINT16_MAX)) {
        return err_set(err, -EINVAL, "'%s' is not a port (0 to 65535) or unix:PATH", text);
    }
    if (ret_where) {
        *ret_where = (struct gdb_where){.path = is_path ? text + prefix : NULL, .port = (uint16_t)port};
    }
    return 0;
}
