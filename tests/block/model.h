/*
 * What the randomized tests of the block layer share: reproducible random numbers, TAP, and random requests together
 * with a plain array that says what the disk must read as afterwards.
 */
#ifndef FONDA_TESTS_BLOCK_MODEL_H
#define FONDA_TESTS_BLOCK_MODEL_H

#include "block/block.h"
#include "block/image.h"

uint64_t model_random(uint64_t *state);
uint64_t model_below(uint64_t *state, uint64_t n);
/* FONDA_TEST_SEED, or something new. */
uint64_t model_seed(void);

/* TAP */
void tap(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int tap_end(void); /* prints the plan; exit status */

struct model_config {
    struct image_create_options create;
    const char *name;
};
/* Every combination of features that is worth a run. */
extern const struct model_config model_configs[];
extern const unsigned model_config_count;

/* One random write, zeroing or discard somewhere in a disk of `size`, with random alignment. data: for a write. */
struct model_op {
    enum blk_op op;
    unsigned flags;
    uint64_t offset, bytes;
    uint8_t *data;
};
void model_op_random(uint64_t *state, uint64_t size, struct model_op *ret_op);
void model_op_done(struct model_op *op);
/* Does it to the node. */
int model_op_run(struct blk_node *node, const struct model_op *op);
/* And to the array. A discard's effect is the node's choice, per sector zeroes or nothing: it is read back; false: it was
 * something else. */
bool model_op_apply(struct blk_node *node, const struct model_op *op, uint8_t *model);

#endif
