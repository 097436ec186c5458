/* The table of engines: those of x86-64 whose folders are in this build. */
#include "tests/diff/engines.h"

#include <string.h>

#include "base/util.h"
#include "cpu/kvm/kvm.h"
#if __has_include("cpu/bt/bt.h")
#include "cpu/bt/bt.h"
#define HAVE_BT 1
#endif

static const struct engine_ops *const table[] = {
#ifdef HAVE_BT
    &bt_engine_ops,
#endif
    &kvm_engine,
};

const struct engine_ops *diff_engine(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
        if (strcmp(table[i]->name, name) == 0) {
            return table[i];
        }
    }
    return NULL;
}
