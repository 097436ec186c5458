/*
 * Fuzz target: auth files (containers-auth.json, Docker's config.json).
 */
#include "fuzz/fuzz.h"
#include "image/auth.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct auth auth;
    char helper[64];
    struct err err;
    auth_parse((const char *)data, size, "docker.io", "library/debian", &auth, helper, &err);
    auth_parse((const char *)data, size, "localhost:5000", "a/b", &auth, helper, &err);
    return 0;
}
