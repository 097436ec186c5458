/*
 * What the translator makes of guest code, as text for people: the engine's operations of these names.
 */
#ifndef FONDA_CPU_BT_EXPLAIN_H
#define FONDA_CPU_BT_EXPLAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct vcpu;

int bt_translation(struct vcpu *vcpu, uint64_t rip, char *buf, size_t size);
void bt_count_blocks(struct vcpu *vcpu, bool on);
int bt_translate_bytes(const uint8_t *bytes, size_t len, unsigned bits, char *buf, size_t size,
                       struct err *err);

#endif
