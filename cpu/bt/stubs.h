/*
 * Sequences that the stubs and the generator both emit.
 */
#ifndef FONDA_CPU_BT_STUBS_H
#define FONDA_CPU_BT_STUBS_H

#include "cpu/bt/bt_int.h"
#include "cpu/bt/emit.h"

/* Looks r15 up in the jump cache without touching the flags: ind_rip = r15; destroys rcx and r15, leaves the
 * index in r14. Returns the short jump that is taken on a hit, to be patched; what follows it is the miss. */
uint8_t *bt_emit_jc_probe(struct emit *e, struct bt_vcpu *v);
/* On a hit: jumps to, or calls, the block that the probe found. */
void bt_emit_jc_go(struct emit *e, struct bt_vcpu *v, bool call);

/* The host's arithmetic flags into aflags, and back. RAX is kept in tmp, which is destroyed. */
void bt_emit_flags_save(struct emit *e, struct bt_vcpu *v, unsigned tmp);
void bt_emit_flags_restore(struct emit *e, struct bt_vcpu *v, unsigned tmp);

#endif
