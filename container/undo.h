/*
 * The undo log: what was made so far and how each thing is taken back, newest first.
 *
 * Rule: a step registers its undo before or at once after it makes something, so that failing at any point
 * leaves nothing behind. What survives a SIGKILL of the runtime itself is found by `delete --force` through
 * the state file, which is written before the first thing outside of the state directory is made.
 */
#ifndef FONDA_CONTAINER_UNDO_H
#define FONDA_CONTAINER_UNDO_H

#define UNDO_MAX 64

struct undo {
    struct {
        void (*fn)(void *opaque);
        void *opaque;
    } v[UNDO_MAX];
    unsigned count;
};

void undo_push(struct undo *undo, void (*fn)(void *opaque), void *opaque);
void undo_all(struct undo *undo);    /* takes everything back */
void undo_forget(struct undo *undo); /* all went well */

#endif
