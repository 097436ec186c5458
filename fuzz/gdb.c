/* Fuzz target: what a gdb client says, raw and as packets with right checksums. */
#include "fuzz/fuzz.h"
#include "fuzz/gdb_target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fake_gdb_fuzz(data, size);
    return 0;
}
