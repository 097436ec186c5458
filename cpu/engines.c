/*
 * The engines of this build, in order of preference.
 */
#include <stddef.h>

#include "cpu/engine.h"
#include "cpu/kvm/kvm.h"

const struct engine_ops *const engines[] = {
    &kvm_engine,
    NULL,
};
