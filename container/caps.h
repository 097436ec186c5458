/* Linux capabilities by name (capabilities(7)), and their sets on the calling thread. */
#ifndef FONDA_CONTAINER_CAPS_H
#define FONDA_CONTAINER_CAPS_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CAPS_COUNT 41 /* CAP_CHECKPOINT_RESTORE + 1 */

extern const char *const caps_names[CAPS_COUNT];

/* "CAP_SYS_ADMIN" in any case, with or without the prefix; -1: unknown. */
int caps_number(const char *name);

uint64_t caps_permitted(void); /* of the calling thread */
uint64_t caps_bounding(void);
bool caps_have(unsigned cap); /* effective */

struct caps_sets {
    uint64_t bounding, effective, inheritable, permitted, ambient;
};

/* Takes out what can't be had here (not permitted, or unknown to the kernel), warning about each by name
 * once. */
void caps_limit(struct caps_sets *sets);

int caps_drop_bounding(const struct caps_sets *sets, struct err *err); /* needs CAP_SETPCAP */
int caps_apply(const struct caps_sets *sets, struct err *err);         /* the other four sets, after setuid */

#endif
