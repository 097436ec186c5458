/*
 * See jail.h. What is opened late, and by whom:
 *
 *     /etc/resolv.conf       libslirp, whenever the guest asks for a name
 *     a wire's directory     a wire that ended is connected again, or listened on; removed at the end
 *     a vsock's directory    connections to PATH_PORT; PATH is removed at the end
 *     a shared directory     beneath its descriptor
 *
 * Disks, the kernel, the serial port's file, /dev/kvm and tap devices are open before.
 */
#include "vm/jail.h"

#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "sandbox/jail.h"
#include "vm/device_options.h"
#include "vm/status.h"
#include "vm/terminal.h"

#define RESOLV_CONF "/etc/resolv.conf"

static enum jail_mode mode_of(const struct vm_config *config)
{
    return strcmp(config->jail, "off") == 0       ? JAIL_OFF
           : strcmp(config->jail, "require") == 0 ? JAIL_REQUIRE
                                                  : JAIL_ON;
}

static unsigned nic_needs(const struct vm_config *config)
{
    unsigned needs = config->nics.count ? 0 : JAIL_NEED_INTERNET;
    for (unsigned i = 0; i < config->nics.count; i++) {
        struct nic_options nic;
        if (nic_options_parse(config->nics.values[i], &nic, NULL) == 0) {
            needs |= nic.kind == NIC_USER   ? JAIL_NEED_INTERNET
                     : nic.kind == NIC_TAP  ? JAIL_NEED_TAP
                     : nic.kind == NIC_WIRE ? JAIL_NEED_UNIX
                                            : 0;
        }
    }
    return needs;
}

static unsigned needs_of(const struct vm_config *config)
{
    return nic_needs(config) | (config->vsock ? JAIL_NEED_UNIX : 0) |
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

int vm_jail_split(const struct vm_config *config, struct err *err)
{
    const struct jail_config jail = {
        .mode = mode_of(config),
        .needs = needs_of(config),
        .keep_fd = terminal_keeper_fd(),
        .violated = on_violation,
    };
    return jail_split(&jail, err);
}

static int grant_directory_of(const char *path, struct err *err)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof(copy), "%s", path);
    return jail_grant(dirname(copy), JAIL_GRANT_SOCKETS, err);
}

static int grant_nics(const struct vm_config *config, struct err *err)
{
    int rc = nic_needs(config) & JAIL_NEED_INTERNET ? jail_grant(RESOLV_CONF, JAIL_GRANT_FILE, err) : 0;
    for (unsigned i = 0; i < config->nics.count && rc == 0; i++) {
        struct nic_options nic;
        if (nic_options_parse(config->nics.values[i], &nic, NULL) == 0 && nic.kind == NIC_WIRE) {
            rc = grant_directory_of(nic.where, err);
        }
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

int vm_jail_enter(const struct vm_config *config, struct err *err)
{
    int rc = grant_nics(config, err);
    if (rc == 0) {
        rc = grant_shares(config, err);
    }
    if (rc == 0 && config->vsock) {
        rc = grant_directory_of(config->vsock, err);
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
