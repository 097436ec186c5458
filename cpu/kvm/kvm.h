/*
 * The engine that lets the host's KVM execute guest code.
 *
 * Neighbours: implements cpu/engine.h; vm/ lists it among the engines.
 */
#ifndef FONDA_CPU_KVM_KVM_H
#define FONDA_CPU_KVM_KVM_H

#include "cpu/engine.h"

extern const struct engine_ops kvm_engine;

#endif
