/* Fuzz target: an instance's export, as import reads it. No disk is written. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/export.h"
#include "fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct export_reader_ops ops = {0};
    struct fault fault = {0};
    int fd = memfd_create("export", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET) != 0) {
        abort();
    }
    if (export_read(fd, &ops, &fault) < 0 && fault.code == FAULT_NONE) {
        abort(); /* whatever is refused is refused with a reason */
    }
    close(fd);
    return 0;
}
