/* An image of the block layer as a disk source. */
#include "block/block.h"
#include "vm/bootdisk/bootdisk.h"

static int read_node(void *opaque, uint64_t offset, void *buf, uint64_t bytes)
{
    return blk_pread(opaque, offset, buf, bytes);
}

int bootdisk_find_in_node(struct blk_node *node, const char *path, struct bootdisk *ret_found,
                          struct err *err)
{
    const struct disk_source disk = {blk_size(node), read_node, node};
    int rc = bootdisk_find(&disk, ret_found, err);
    return rc < 0 ? err_prefix(err, "disk '%s': no kernel found to boot", path) : 0;
}

int bootdisk_find_in_image(const char *path, const char *format, struct bootdisk *ret_found, struct err *err)
{
    struct blk_loop *loop;
    struct blk_node *node;
    const struct blk_open_options options = {.format = format};
    int rc = blk_loop_new(BLK_ENGINE_AUTO, &loop, err);
    if (rc < 0) {
        return rc;
    }
    rc = blk_open(loop, path, &options, &node, err);
    if (rc == 0) {
        rc = bootdisk_find_in_node(node, path, ret_found, err);
        blk_close(node);
    }
    blk_loop_free(loop);
    return rc;
}
