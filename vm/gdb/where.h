/*
 * What --gdb says: a port of 127.0.0.1, or unix:PATH. Stands alone above base/, for cli/ too.
 */
#ifndef FONDA_VM_GDB_WHERE_H
#define FONDA_VM_GDB_WHERE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct gdb_where {
    const char *path; /* NULL: a port */
    uint16_t port;
};

/* path points into text. Errors: -EINVAL. ret_where may be NULL. */
int gdb_where_parse(const char *text, struct gdb_where *ret_where, struct err *err);

#endif
