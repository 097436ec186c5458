/* The files of the web page: the table is made from web/ at build time (web/bundle). */
#include <string.h>

#include "base/util.h"
#include "daemon/server.h"
#include "web_assets.h"

static const struct asset *find(const char *path)
{
    for (size_t i = 0; i < ARRAY_SIZE(web_assets); i++) {
        if (strcmp(web_assets[i].path, path) == 0) {
            return &web_assets[i];
        }
    }
    return NULL;
}

bool asset_answer(struct request *request, const char *known)
{
    bool reading = strcmp(request->method, "GET") == 0 || strcmp(request->method, "HEAD") == 0;
    const struct asset *asset = reading ? find(request->path) : NULL;
    if (!asset) {
        return false;
    }
    if (known && strcmp(known, asset->etag) == 0) {
        answer_text(request, asset->type, NULL, 0);
        request->status = 304;
        request->asset = asset;
        return true;
    }
    char *copy = malloc(asset->len);
    if (!copy) {
        return false;
    }
    memcpy(copy, asset->gzip, asset->len);
    answer_text(request, asset->type, copy, asset->len);
    request->asset = asset;
    return true;
}
