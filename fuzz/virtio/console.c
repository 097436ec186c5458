/* The console with three ports: see driver.h. */
#include "dev/virtio/console.h"
#include "fuzz/virtio/driver.h"

static size_t room = 100;

static size_t sink(void *opaque, const uint8_t *bytes, size_t len)
{
    size_t n = MIN(len, room);
    room -= n;
    return n;
}

static void on_room(void *opaque)
{
}

struct vdev *fuzz_make_device(struct mem *mem)
{
    static const struct vcon_port ports[] = {
        {.sink = sink, .room = on_room},
        {.name = "one", .sink = sink, .room = on_room, .closed = true},
        {.name = "two", .sink = sink},
    };
    return vcon_new(mem, ports, 3, NULL);
}

void fuzz_host_step(struct vdev *dev, uint8_t choice)
{
    static const uint8_t bytes[300];
    room = choice;
    vcon_room(dev, choice % 3);
    vcon_set_open(dev, choice % 3, choice & 4);
    (void)vcon_input(dev, choice % 3, bytes, choice);
    if (choice & 8) {
        vcon_resize(dev, choice, 25);
    }
}
