/* See chain.h. */
#include "block/chain.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/util.h"
#include "block/block.h"
#include "block/image.h"

void blk_chain_close(struct blk_chain *chain)
{
    while (chain->count > 0) {
        chain->count--;
        close(chain->fds[chain->count]);
        free(chain->paths[chain->count]);
    }
}

static int add(struct blk_chain *chain, const char *path, bool writable, struct err *err)
{
    if (chain->count == BLK_CHAIN_FILES_MAX) {
        return err_set(err, -E2BIG, "more than %u images lie one upon the other", BLK_CHAIN_FILES_MAX);
    }
    auto_close int fd = open(path, O_CLOEXEC | O_NONBLOCK | (writable ? O_RDWR : O_RDONLY));
    if (fd < 0) {
        return err_sys(err, -errno, "cannot open image '%s'", path);
    }
    char *copy = strdup(path);
    if (!copy) {
        return err_sys(err, -ENOMEM, "cannot open image '%s'", path);
    }
    chain->paths[chain->count] = copy;
    chain->fds[chain->count++] = take_fd(&fd);
    return 0;
}

static int add_all(struct blk_node *node, bool writable, struct blk_chain *chain, struct err *err)
{
    int rc = 0;
    for (; node && rc == 0; node = image_backing(node)) {
        struct blk_info info;
        blk_get_info(node, &info);
        rc = add(chain, info.filename, writable && chain->count == 0, err);
    }
    return rc;
}

int blk_chain_open(const char *path, const char *format, bool writable, struct blk_chain *ret_chain,
                   struct err *err)
{
    const struct blk_open_options options = {.format = format, .flags = BLK_OPEN_NO_LOCK};
    struct blk_loop *loop;
    struct blk_node *node;
    int rc = blk_loop_new(BLK_ENGINE_AUTO, &loop, err);
    if (rc < 0) {
        return rc;
    }
    ret_chain->count = 0;
    rc = blk_open(loop, path, &options, &node, err);
    if (rc == 0) {
        rc = add_all(node, writable, ret_chain, err);
        blk_close(node);
    }
    blk_loop_free(loop);
    if (rc < 0) {
        blk_chain_close(ret_chain);
    }
    return rc;
}
