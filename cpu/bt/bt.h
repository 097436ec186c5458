/*
 * The binary translation engine: x86-64 guests on x86-64 hosts, in an ordinary process.
 */
#ifndef FONDA_CPU_BT_BT_H
#define FONDA_CPU_BT_BT_H

#include "cpu/engine.h"

extern const struct engine_ops bt_engine_ops;

#endif
