/* The sockets; the host connects now and then: see driver.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "dev/virtio/vsock.h"
#include "fuzz/virtio/driver.h"

static uv_loop_t loop;
static char path[64];
static int client = -1;

struct vdev *fuzz_make_device(struct mem *mem)
{
    static char dir[] = "/tmp/fonda-fuzz-vsock-XXXXXX";
    if (!mkdtemp(dir) || uv_loop_init(&loop) != 0) {
        return NULL;
    }
    snprintf(path, sizeof(path), "%s/s", dir);
    return vsock_new(mem, &loop, path, NULL);
}

void fuzz_host_step(struct vdev *dev, uint8_t choice)
{
    static const char text[] = "CONNECT 5\nsome data";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    if (choice & 1 && client >= 0) {
        close(client);
        client = -1;
    } else if (client < 0) {
        client = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)connect(client, (const struct sockaddr *)&address, sizeof(address));
    }
    if (client >= 0) {
        (void)send(client, text, sizeof(text) - 1, MSG_NOSIGNAL);
    }
    for (unsigned i = 0; i < 4; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
}
