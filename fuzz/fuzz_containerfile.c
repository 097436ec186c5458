/*
 * Fuzz target: Containerfiles: steps, words, and the expansion of variables in all of them.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "image/containerfile.h"

static const char *lookup(void *opaque, const char *name, size_t length)
{
    return length % 3 == 0 ? NULL : length % 3 == 1 ? "" : "value of $X";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct containerfile file;
    struct err err;
    if (containerfile_parse((const char *)data, size, &file, &err) < 0) {
        return 0;
    }
    for (unsigned i = 0; i < file.count; i++) {
        char **words = NULL;
        if (cf_split(file.steps[i].text, file.escape, &words, &err) == 0) {
            for (char **w = words; *w; w++) {
                char *text = NULL;
                if (cf_expand(*w, file.escape, lookup, NULL, &text, &err) == 0) {
                    free(text);
                }
            }
            cf_free_words(words);
        }
        cf_flag(&file.steps[i], "from");
    }
    containerfile_free(&file);
    return 0;
}
