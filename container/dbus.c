#include "container/dbus.h"

#include "base/util.h"
#include "container/sync.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

/* D-Bus specification, "Message Format". */
enum { CALL = 1, REPLY = 2, ERROR = 3, SIGNAL = 4 };
enum {
    PATH = 1,
    INTERFACE = 2,
    MEMBER = 3,
    ERROR_NAME = 4,
    REPLY_SERIAL = 5,
    DESTINATION = 6,
    BODY_SIGNATURE = 8
};

#define BUS     "org.freedesktop.DBus"
#define MANAGER "org.freedesktop.systemd1"

/* --- values --- */

static uint8_t *grow(struct dbus_body *b, size_t alignment, size_t size)
{
    size_t at = align_up(b->size, alignment);
    if (b->failed || at + size > sizeof(b->bytes)) {
        b->failed = true;
        return NULL;
    }
    memset(b->bytes + b->size, 0, at - b->size);
    b->size = at + size;
    return b->bytes + at;
}

static void put(struct dbus_body *b, size_t alignment, const void *bytes, size_t size)
{
    uint8_t *to = grow(b, alignment, size);
    if (to) {
        memcpy(to, bytes, size);
    }
}

void dbus_put_u32(struct dbus_body *b, uint32_t v)
{
    put(b, 4, &v, sizeof(v));
}

void dbus_put_u64(struct dbus_body *b, uint64_t v)
{
    put(b, 8, &v, sizeof(v));
}

void dbus_put_string(struct dbus_body *b, const char *text)
{
    dbus_put_u32(b, (uint32_t)strlen(text));
    put(b, 1, text, strlen(text) + 1);
}

void dbus_put_signature(struct dbus_body *b, const char *text)
{
    uint8_t n = (uint8_t)strlen(text);
    put(b, 1, &n, 1);
    put(b, 1, text, (size_t)n + 1);
}

void dbus_put_struct(struct dbus_body *b)
{
    grow(b, 8, 0);
}

/* An array's length counts from its first element, behind the padding (specification "Marshaling"). */
size_t dbus_put_array(struct dbus_body *b, size_t alignment)
{
    dbus_put_u32(b, 0);
    size_t begin = b->size;
    grow(b, alignment, 0);
    return begin;
}

void dbus_end_array(struct dbus_body *b, size_t begin, size_t alignment)
{
    uint32_t size = (uint32_t)(b->size - align_up(begin, alignment));
    if (!b->failed) {
        memcpy(b->bytes + begin - 4, &size, sizeof(size));
    }
}

static const uint8_t *take(struct dbus_body *b, size_t alignment, size_t size)
{
    size_t at = align_up(b->at, alignment);
    if (b->failed || at > b->size || size > b->size - at) {
        b->failed = true;
        return NULL;
    }
    b->at = at + size;
    return b->bytes + at;
}

uint32_t dbus_get_u32(struct dbus_body *b)
{
    uint32_t v = 0;
    const uint8_t *p = take(b, 4, sizeof(v));
    if (p) {
        memcpy(&v, p, sizeof(v));
    }
    return v;
}

const char *dbus_get_string(struct dbus_body *b)
{
    uint32_t size = dbus_get_u32(b);
    const uint8_t *p = size < DBUS_MESSAGE_MAX ? take(b, 1, (size_t)size + 1) : NULL;
    return p && p[size] == '\0' ? (const char *)p : "";
}

/* --- messages --- */

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int read_exactly(int fd, void *to, size_t size, int64_t end_ms)
{
    for (size_t done = 0; done < size;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int64_t left = end_ms - now_ms();
        if (left <= 0 || poll(&p, 1, (int)left) == 0) {
            return -ETIMEDOUT;
        }
        ssize_t n = read(fd, (char *)to + done, size - done);
        if (n == 0) {
            return -ECONNRESET;
        }
        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            return -errno;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* Without a signal when the other side is gone. */
static int send_all(int fd, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static void put_field(struct dbus_body *b, uint8_t code, const char *type, const char *text)
{
    dbus_put_struct(b);
    put(b, 1, &code, 1);
    dbus_put_signature(b, type);
    if (*type == 'g') {
        dbus_put_signature(b, text);
    } else {
        dbus_put_string(b, text);
    }
}

static int send_call(struct dbus *bus, const char *destination, const char *path, const char *member,
                     const char *signature, const struct dbus_body *body, struct err *err)
{
    static struct dbus_body head; /* large; one call at a time */
    const uint8_t fixed[4] = {'l', CALL, 0, 1};
    head.size = 0;
    head.failed = false;
    put(&head, 1, fixed, sizeof(fixed));
    dbus_put_u32(&head, body ? (uint32_t)body->size : 0);
    dbus_put_u32(&head, ++bus->serial);
    char interface[64];
    snprintf(interface, sizeof(interface), "%s%s", destination,
             strcmp(destination, MANAGER) == 0 ? ".Manager" : "");
    size_t fields = dbus_put_array(&head, 8);
    put_field(&head, PATH, "o", path);
    put_field(&head, INTERFACE, "s", interface);
    put_field(&head, MEMBER, "s", member);
    if (!bus->peer) {
        put_field(&head, DESTINATION, "s", destination);
    }
    if (*signature) {
        put_field(&head, BODY_SIGNATURE, "g", signature);
    }
    dbus_end_array(&head, fields, 8);
    dbus_put_struct(&head);
    if (head.failed || (body && body->failed)) {
        return err_set(err, -EMSGSIZE, "a message to systemd is too long");
    }
    int rc = send_all(bus->fd, head.bytes, head.size);
    rc = rc < 0 || !body ? rc : send_all(bus->fd, body->bytes, body->size);
    return rc < 0 ? err_sys(err, rc, "cannot write to systemd") : 0;
}

struct message {
    uint8_t type;
    uint32_t reply_to;
    char member[64];
    char error[128];
};

/* The members of the header that matter; others are passed over by their type. */
static void read_fields(struct dbus_body *head, struct message *ret)
{
    while (head->at < head->size && !head->failed) {
        const uint8_t *code = take(head, 8, 1);
        const uint8_t *size = take(head, 1, 1);
        const uint8_t *type = size ? take(head, 1, (size_t)*size + 1) : NULL;
        if (!type || *size != 1) {
            head->failed = true;
        } else if (type[0] == 'u') {
            uint32_t v = dbus_get_u32(head);
            ret->reply_to = *code == REPLY_SERIAL ? v : ret->reply_to;
        } else if (type[0] == 'g') {
            const uint8_t *n = take(head, 1, 1);
            (void)(n && take(head, 1, (size_t)*n + 1));
        } else {
            const char *text = dbus_get_string(head);
            char *to = *code == MEMBER ? ret->member : *code == ERROR_NAME ? ret->error : NULL;
            if (to) {
                snprintf(to, *code == MEMBER ? sizeof(ret->member) : sizeof(ret->error), "%s", text);
            }
        }
    }
}

static int receive(struct dbus *bus, int64_t end_ms, struct message *ret, struct err *err)
{
    static struct dbus_body head;
    uint8_t fixed[16];
    uint32_t body_size;
    uint32_t fields_size;
    *ret = (struct message){.type = 0};
    int rc = read_exactly(bus->fd, fixed, sizeof(fixed), end_ms);
    memcpy(&body_size, fixed + 4, 4);
    memcpy(&fields_size, fixed + 12, 4);
    if (rc == 0 && (fixed[0] != 'l' || body_size > DBUS_MESSAGE_MAX || fields_size > DBUS_MESSAGE_MAX - 8)) {
        return err_set(err, -EPROTO, "systemd's answer is not one that is understood");
    }
    head = (struct dbus_body){.size = fields_size};
    rc = rc < 0 ? rc : read_exactly(bus->fd, head.bytes, align_up(fields_size, 8), end_ms);
    bus->in.size = body_size;
    bus->in.at = 0;
    bus->in.failed = false;
    rc = rc < 0 ? rc : read_exactly(bus->fd, bus->in.bytes, body_size, end_ms);
    if (rc < 0) {
        return err_sys(err, rc, "no answer from systemd");
    }
    ret->type = fixed[1];
    read_fields(&head, ret);
    return 0;
}

static int call(struct dbus *bus, const char *destination, const char *path, const char *member,
                const char *signature, const struct dbus_body *body, struct err *err)
{
    struct message m;
    int64_t end = now_ms() + DBUS_WAIT_MS;
    int rc = send_call(bus, destination, path, member, signature, body, err);
    do {
        rc = rc < 0 ? rc : receive(bus, end, &m, err);
        if (rc < 0) {
            return rc;
        }
    } while (m.reply_to != bus->serial || (m.type != REPLY && m.type != ERROR));
    if (m.type == ERROR) {
        const char *text = dbus_get_string(&bus->in);
        return err_set(err, strstr(m.error, "AccessDenied") ? -EACCES : -EIO, "systemd refuses %s: %s",
                       member, *text ? text : m.error);
    }
    return 0;
}

int dbus_call_manager(struct dbus *bus, const char *member, const char *signature,
                      const struct dbus_body *body, struct err *err)
{
    return call(bus, MANAGER, "/org/freedesktop/systemd1", member, signature, body, err);
}

int dbus_subscribe(struct dbus *bus, struct err *err)
{
    static struct dbus_body body;
    body.size = 0;
    body.failed = false;
    if (!bus->peer) {
        dbus_put_string(&body, "type='signal',interface='" MANAGER ".Manager',member='JobRemoved'");
        int rc = call(bus, BUS, "/org/freedesktop/DBus", "AddMatch", "s", &body, err);
        if (rc < 0) {
            return rc;
        }
    }
    return dbus_call_manager(bus, "Subscribe", "", NULL, err);
}

int dbus_wait_signal(struct dbus *bus, const char *member, struct err *err)
{
    struct message m;
    int64_t end = now_ms() + DBUS_WAIT_MS;
    do {
        int rc = receive(bus, end, &m, err);
        if (rc < 0) {
            return rc;
        }
    } while (m.type != SIGNAL || strcmp(m.member, member) != 0);
    return 0;
}

/* --- the connection --- */

/* "unix:path=/run/bus" or "unix:abstract=name,guid=...", the first of a list. */
static int connect_address(const char *address)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    const char *path = strstr(address, "path=");
    const char *name = path ? path : strstr(address, "abstract=");
    if (strncmp(address, "unix:", 5) != 0 || !name) {
        return -EAFNOSUPPORT;
    }
    name = strchr(name, '=') + 1;
    size_t n = strcspn(name, ",;");
    if (n == 0 || n >= sizeof(addr.sun_path) - 1) {
        return -ENAMETOOLONG;
    }
    memcpy(addr.sun_path + (path ? 0 : 1), name, n);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, size) < 0) {
        int code = -errno;
        if (fd >= 0) {
            close(fd);
        }
        return code;
    }
    return fd;
}

static int connect_manager(struct dbus *bus, bool of_user)
{
    char path[128];
    const char *run = getenv("XDG_RUNTIME_DIR");
    const char *address = getenv(of_user ? "DBUS_SESSION_BUS_ADDRESS" : "DBUS_SYSTEM_BUS_ADDRESS");
    if (address && *address) {
        return connect_address(address);
    }
    snprintf(path, sizeof(path), "%s/systemd/private", of_user ? (run ? run : "/nonexistent") : "/run");
    int fd = unix_connect(path);
    bus->peer = fd >= 0;
    return fd >= 0 || of_user ? fd : connect_address("unix:path=/run/dbus/system_bus_socket");
}

/* Specification "Authentication Protocol": the socket says who we are. */
static int authenticate(struct dbus *bus)
{
    char uid[16];
    char line[128] = "";
    snprintf(uid, sizeof(uid), "%u", (unsigned)geteuid());
    int n = snprintf(line, sizeof(line), "%cAUTH EXTERNAL ", '\0');
    for (const char *p = uid; *p; p++) {
        n += snprintf(line + n, sizeof(line) - (size_t)n, "%02x", (unsigned char)*p);
    }
    n += snprintf(line + n, sizeof(line) - (size_t)n, "\r\n");
    int rc = send_all(bus->fd, line, (size_t)n);
    int64_t end = now_ms() + DBUS_WAIT_MS;
    size_t size = 0;
    for (char c = 0; rc == 0 && c != '\n' && size < sizeof(line) - 1;) {
        rc = read_exactly(bus->fd, &c, 1, end);
        line[size++] = c;
    }
    line[size] = '\0';
    if (rc == 0 && strncmp(line, "OK", 2) != 0) {
        rc = -EACCES;
    }
    return rc < 0 ? rc : send_all(bus->fd, "BEGIN\r\n", 7);
}

int dbus_open(struct dbus *bus, bool of_user, struct err *err)
{
    *bus = (struct dbus){.fd = -1};
    bus->fd = connect_manager(bus, of_user);
    if (bus->fd < 0) {
        return err_sys(err, bus->fd, "%s",
                       of_user
                           ? "the user's systemd can't be reached (DBUS_SESSION_BUS_ADDRESS, XDG_RUNTIME_DIR)"
                           : "systemd is not running here, or can't be reached");
    }
    int rc = authenticate(bus);
    if (rc < 0) {
        rc = err_sys(err, rc, "systemd doesn't let us in");
    } else if (!bus->peer) {
        rc = call(bus, BUS, "/org/freedesktop/DBus", "Hello", "", NULL, err);
    }
    if (rc < 0) {
        dbus_close(bus);
    }
    return rc;
}

void dbus_close(struct dbus *bus)
{
    if (bus->fd >= 0) {
        close(bus->fd);
        bus->fd = -1;
    }
}
