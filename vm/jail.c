/*
 * See jail.h. What is opened late, and by whom:
 *
 *     /etc/resolv.conf       libslirp, whenever the guest asks for a name
 *     a wire's directory     a wire that ended is connected again, or listened on; removed at the end
 *     a vsock's directory    connections to PATH_PORT; PATH is removed at the end
 *     a port's or debugger's directory
 *                            connections to its unix socket, which is removed at the end
 *     a shared directory     beneath its descriptor
 *     the directories of the control socket, of disks and of --save-dir:
 *                            saved machines, snapshots; the socket is removed at the end
 *
 * Disks, the kernel, the serial port's file, /dev/kvm and tap devices are open before.
 */
#include "vm/jail.h"

#include <errno.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "sandbox/jail.h"
#include "vm/device_options.h"
#include "vm/gdb/where.h"
#include "vm/rundir.h"
#include "vm/saved/save.h"
#include "vm/status.h"

#define RESOLV_CONF "/etc/resolv.conf"

static enum jail_mode mode_of(const struct vm_config *config)
{
    return strcmp(config->jail, "off") == 0       ? JAIL_OFF
           : strcmp(config->jail, "require") == 0 ? JAIL_REQUIRE
                                                  : JAIL_ON;
}

/* fn is given the texts of all disks or NICs: those of the options (list), and those that a saved machine had
 * plugged (vm/hotplug.h). Returns the first that is not 0. */
static int each_text(const struct vm_config *config, const struct option_list *list, const char *kind,
                     int (*fn)(void *opaque, const char *text, struct err *err), void *opaque,
                     struct err *err)
{
    json_t *root = config->device_changes ? json_loads(config->device_changes, 0, NULL) : NULL, *one;
    int rc = 0;
    size_t i;
    for (unsigned n = 0; n < list->count && rc == 0; n++) {
        rc = fn(opaque, list->values[n], err);
    }
    json_array_foreach(json_object_get(root, "plugged"), i, one)
    {
        const char *is = json_string_value(json_object_get(one, "kind"));
        const char *text = json_string_value(json_object_get(one, "text"));
        if (rc == 0 && is && text && strcmp(is, kind) == 0) {
            rc = fn(opaque, text, err);
        }
    }
    json_decref(root);
    return rc;
}

static int add_need(void *opaque, const char *text, struct err *err)
{
    unsigned *needs = opaque;
    struct nic_options nic;
    if (nic_options_parse(text, &nic, NULL) == 0) {
        *needs |= nic.kind == NIC_USER   ? JAIL_NEED_INTERNET
                  : nic.kind == NIC_TAP  ? JAIL_NEED_TAP
                  : nic.kind == NIC_WIRE ? JAIL_NEED_UNIX
                                         : 0;
    }
    return 0;
}

static unsigned nic_needs(const struct vm_config *config)
{
    unsigned needs = config->nics.count ? 0 : JAIL_NEED_INTERNET;
    (void)each_text(config, &config->nics, "nic", add_need, &needs, NULL);
    return needs;
}

static bool is_controlled(const struct vm_config *config)
{
    return config->control || config->name;
}

/* A debugger's TCP port is in the host's network. */
static unsigned gdb_needs(const struct vm_config *config)
{
    struct gdb_where where;
    if (!config->gdb || gdb_where_parse(config->gdb, &where, NULL) < 0) {
        return 0;
    }
    return where.path ? JAIL_NEED_UNIX : JAIL_NEED_INTERNET;
}

static unsigned needs_of(const struct vm_config *config)
{
    return nic_needs(config) | gdb_needs(config) |
           (config->console || config->ports.count || config->vsock ? JAIL_NEED_UNIX : 0) |
           (is_controlled(config) ? JAIL_NEED_UNIX | JAIL_NEED_FILES : 0) |
           (config->shares.count ? JAIL_NEED_TREE | JAIL_NEED_OWNERS : 0) |
           (strcmp(config->engine, "kvm") == 0 ? JAIL_NEED_KVM : 0);
}

/* The supervisor. */
static int on_violation(void)
{
    log_error(
        "the machine was ended: its process made a system call that its jail forbids (docs/jail.md; with "
        "--jail=off it would go on)");
    return VM_STATUS_JAIL;
}

static void on_ended(void *opaque)
{
    const struct vm_config *config = opaque;
    if (config->name && !config->control) {
        rundir_remove(config->name);
    }
}

/* Whether opaque, a path, is IMAGE.NAME.state of that disk's image (vm/saved/snapshot.h): 1, or 0. */
static int is_snapshot_of(void *opaque, const char *text, struct err *err)
{
    static const char end[] = ".state";
    const char *path = opaque;
    struct disk_options disk;
    if (disk_options_parse(text, &disk, NULL) < 0) {
        return 0;
    }
    size_t path_len = strlen(path), len = strlen(disk.path);
    return strncmp(path, disk.path, len) == 0 && path[len] == '.' && !strchr(path + len, '/') &&
           path_len > len + sizeof(end) && strcmp(path + path_len - sizeof(end) + 1, end) == 0;
}

static bool is_snapshot(const struct vm_config *config, const char *path)
{
    return each_text(config, &config->disks, "disk", is_snapshot_of, (void *)(uintptr_t)path, NULL);
}

/* The supervisor: the machine goes back to a snapshot. */
static int on_again(void *opaque, const char *path)
{
    const struct vm_config *config = opaque;
    struct err err = {0};
    if (!is_snapshot(config, path)) {
        err_set(&err, -EPERM, "'%s' is no snapshot of the machine's", path);
    } else {
        snapshot_start_again(config, path, &err);
    }
    log_error("%s", err.text);
    return VM_STATUS_HOST;
}

int vm_jail_split(const struct vm_config *config, struct err *err)
{
    const struct jail_config jail = {
        .mode = mode_of(config),
        .needs = needs_of(config),
        .violated = on_violation,
        .ended = on_ended,
        .again = on_again,
        .opaque = (void *)(uintptr_t)config,
    };
    return jail_split(&jail, err);
}

static int grant_directory_of(const char *path, enum jail_rights rights, struct err *err)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof(copy), "%s", path);
    return jail_grant(dirname(copy), rights, err);
}

static int grant_nic(void *opaque, const char *text, struct err *err)
{
    struct nic_options nic;
    return nic_options_parse(text, &nic, NULL) == 0 && nic.kind == NIC_WIRE
               ? grant_directory_of(nic.where, JAIL_GRANT_SOCKETS, err)
               : 0;
}

static int grant_nics(const struct vm_config *config, struct err *err)
{
    int rc = nic_needs(config) & JAIL_NEED_INTERNET ? jail_grant(RESOLV_CONF, JAIL_GRANT_FILE, err) : 0;
    return rc ? rc : each_text(config, &config->nics, "nic", grant_nic, NULL, err);
}

static int grant_ports(const struct vm_config *config, struct err *err)
{
    struct gdb_where where;
    int rc = 0;
    for (unsigned i = 0; i < config->ports.count && rc == 0; i++) {
        struct port_options port;
        if (port_options_parse(config->ports.values[i], &port, NULL) == 0 && port.kind == PORT_UNIX) {
            rc = grant_directory_of(port.path, JAIL_GRANT_SOCKETS, err);
        }
    }
    struct port_options console;
    if (rc == 0 && config->console && console_options_parse(config->console, &console, NULL) == 0 &&
        console.kind == PORT_UNIX) {
        rc = grant_directory_of(console.path, JAIL_GRANT_SOCKETS, err);
    }
    if (rc == 0 && config->gdb && gdb_where_parse(config->gdb, &where, NULL) == 0 && where.path) {
        rc = grant_directory_of(where.path, JAIL_GRANT_SOCKETS, err);
    }
    return rc;
}

static int grant_shares(const struct vm_config *config, struct err *err)
{
    int rc = 0;
    for (unsigned i = 0; i < config->shares.count && rc == 0; i++) {
        struct share_options share;
        if (share_options_parse(config->shares.values[i], &share, NULL) == 0) {
            rc = jail_grant(share.dir, share.read_only ? JAIL_GRANT_TREE_READ : JAIL_GRANT_TREE, err);
        }
    }
    return rc;
}

static int grant_disk(void *opaque, const char *text, struct err *err)
{
    struct disk_options disk;
    return disk_options_parse(text, &disk, NULL) == 0 && !disk.read_only
               ? grant_directory_of(disk.path, JAIL_GRANT_DIR, err)
               : 0;
}

/* Only who can be told to save does: into the directories of the control socket and of the disks that have
 * snapshots, and where the options say. */
static int grant_saving(const struct vm_config *config, struct err *err)
{
    char path[RUNDIR_PATH_MAX];
    int rc = 0;
    if (!is_controlled(config)) {
        return 0;
    }
    if (config->control) {
        rc = grant_directory_of(config->control, JAIL_GRANT_DIR, err);
    } else if (rundir_socket(config->name, path, sizeof(path), err) == 0) {
        rc = grant_directory_of(path, JAIL_GRANT_DIR, err);
    }
    rc = rc ? rc : each_text(config, &config->disks, "disk", grant_disk, NULL, err);
    for (unsigned i = 0; i < config->save_dirs.count && rc == 0; i++) {
        rc = jail_grant(config->save_dirs.values[i], JAIL_GRANT_DIR, err);
    }
    return rc;
}

int vm_jail_enter(const struct vm_config *config, struct err *err)
{
    int rc = grant_nics(config, err);
    if (rc == 0) {
        rc = grant_shares(config, err);
    }
    if (rc == 0 && config->vsock) {
        rc = grant_directory_of(config->vsock, JAIL_GRANT_SOCKETS, err);
    }
    if (rc == 0) {
        rc = grant_saving(config, err);
    }
    if (rc == 0) {
        rc = grant_ports(config, err);
    }
    if (rc == 0) {
        rc = jail_enter(err);
    }
    if (rc < 0) {
        return err_prefix(err, "--jail");
    }
    char missing[256];
    if (jail_missing(missing, sizeof(missing)) > 0 && strcmp(config->jail, "quiet") != 0) {
        log_warning("the jail lacks: %s (--jail=quiet does not say so)", missing);
    }
    return 0;
}
