#include "container/undo.h"

#include "base/log.h"

#include <stdlib.h>

void undo_push(struct undo *undo, void (*fn)(void *opaque), void *opaque)
{
    if (undo->count == UNDO_MAX) {
        log_error("undo log is full");
        abort(); /* the number of steps is fixed by the code */
    }
    undo->v[undo->count].fn = fn;
    undo->v[undo->count++].opaque = opaque;
}

void undo_all(struct undo *undo)
{
    while (undo->count > 0) {
        undo->count--;
        undo->v[undo->count].fn(undo->v[undo->count].opaque);
    }
}

void undo_forget(struct undo *undo)
{
    undo->count = 0;
}
