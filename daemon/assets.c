/* Which file of the web page is at a path. The table is made from web/ at build time (web/bundle). */
#include <string.h>

#include "daemon/server.h"
#include "web_assets.h"

const struct asset *asset_find(const char *path)
{
    for (unsigned i = 0; i < sizeof(web_assets) / sizeof(web_assets[0]); i++) {
        if (strcmp(web_assets[i].path, path) == 0) {
            return &web_assets[i];
        }
    }
    return NULL;
}
