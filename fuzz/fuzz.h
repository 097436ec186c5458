/*
 * The entry point of a fuzz target, as libFuzzer calls it; replay.c calls it too, for compilers without
 * libFuzzer.
 */
#ifndef FONDA_FUZZ_FUZZ_H
#define FONDA_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
