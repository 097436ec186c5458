/* An image of the block layer as a disk source. */
#include "block/block.h"
#include "vm/bootdisk/bootdisk.h"

static int read_node(void *opaque, uint64_t offset, void *buf, uint64_t bytes)
{
    return blk_pread(opaque, offset, buf, bytes);
}

int bootdisk_find_in_image(const char *path, const char *format, bool shared, struct bootdisk *ret_found,
                           struct err *err)
{
    struct blk_loop *loop;
    struct blk_node *node;
    const struct blk_open_options options = {.format = format, .flags = shared ? BLK_OPEN_NO_LOCK : 0};
    int rc = blk_loop_new(BLK_ENGINE_AUTO, &loop, err);
    if (rc < 0) {
        return rc;
    }
    rc = blk_open(loop, path, &options, &node, err);
    if (rc == 0) {
        const struct disk_source disk = {blk_size(node), read_node, node};
        rc = bootdisk_find(&disk, ret_found, err);
        if (rc < 0) {
            err_prefix(err, "disk '%s': no kernel found to boot", path);
        }
        blk_close(node);
    }
    blk_loop_free(loop);
    return rc;
}
