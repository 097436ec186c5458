/*
 * What every fuzz target offers: libFuzzer's entry points. standalone.c drives them without libFuzzer.
 */
#ifndef FONDA_FUZZ_FUZZ_H
#define FONDA_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
