#include <errno.h>
#include "image/image.h"
int image_build(struct image_store *store, const struct image_build *build, char ret_digest[static DIGEST_SIZE], struct err *err)
{
    return err_set(err, -ENOSYS, "not yet");
}
