/*
 * Fuzz target: image references and platforms. What is accepted, written out again and read again, has to
 * stay the same.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "image/manifest.h"
#include "image/ref.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = strndup((const char *)data, size);
    struct image_ref ref, again;
    struct platform platform;
    struct err err;
    char name[REF_TEXT_MAX];
    if (!text) {
        return 0;
    }
    if (image_ref_parse(text, &ref, &err) == 0) {
        image_ref_format(&ref, name);
        if (image_ref_parse(name, &again, &err) != 0 || strcmp(ref.host, again.host) != 0 ||
            strcmp(ref.name, again.name) != 0 || strcmp(ref.tag, again.tag) != 0 ||
            strcmp(ref.digest, again.digest) != 0) {
            abort();
        }
    }
    platform_parse(text, &platform, &err);
    free(text);
    return 0;
}
