/*
 * The engines of this build, in order of preference.
 */
#include <stddef.h>

#include "cpu/bt/bt.h"
#include "cpu/engine.h"
#include "cpu/kvm/kvm.h"

const struct engine_ops *const engines[] = {
    &bt_engine_ops,
    &kvm_engine,
    NULL,
};
