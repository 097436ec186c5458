/* The engines that can be tested. */
#ifndef FONDA_TESTS_DIFF_ENGINES_H
#define FONDA_TESTS_DIFF_ENGINES_H

#include "cpu/engine.h"

/* NULL when this build has no engine of that name. */
const struct engine_ops *diff_engine(const char *name);

#endif
