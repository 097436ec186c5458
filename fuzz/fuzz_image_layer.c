/*
 * Fuzz target: a layer, compressed or not, unpacked into a folder of its own. A file beside that folder must
 * not change.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "image/fs.h"
#include "image/layer.h"

#define BYTES_MAX (4u << 20)

static char top[64];

static void remove_top(void)
{
    fs_remove_tree(AT_FDCWD, top);
}

static void prepare(void)
{
    snprintf(top, sizeof(top), "/tmp/fonda-fuzz-layer-XXXXXX");
    if (!mkdtemp(top)) {
        abort();
    }
    atexit(remove_top);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!top[0]) {
        prepare();
    }
    int dir = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct layer_stream *stream = NULL;
    struct layer_fixups *fixups = NULL;
    struct err err = {0};
    struct stat st;
    char diff_id[DIGEST_SIZE];
    if (mkdirat(dir, "diff", 0755) < 0) {
        abort();
    }
    int diff = openat(dir, "diff", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (layer_stream_new_memory(data, size, BYTES_MAX, &stream, &err) == 0) {
        if (layer_unpack(stream, diff, &fixups, &err) == 0) {
            layer_stream_finish(stream, diff_id, NULL, &err);
            layer_finish(fixups, diff, NULL, 0, &err);
        }
        layer_stream_free(stream);
    }
    close(diff);
    if (fs_remove_tree(dir, "diff") < 0 || fstat(dir, &st) < 0 || st.st_nlink != 2) {
        abort(); /* something is left, or was made beside the folder */
    }
    close(dir);
    return 0;
}
