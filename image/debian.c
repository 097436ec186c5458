/*
 * See debian.h.
 *
 *     apt's sources ---> mmdebstrap ---tar---> debian_tree.c <--- the files below
 */
#include "image/debian.h"

#include <crypt.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "image/debian_archive.h"
#include "image/debian_bootstrap.h"
#include "image/debian_tree.h"

#define KEY_FILE_MAX 65536u
#define HOSTNAME_MAX 63u
#define UNIT         "etc/systemd/system/"
#define LIB_UNIT     "/lib/systemd/system/"

/* What must not be the same on two machines, or is written here. */
static const char *const left_out[] = {
    "etc/machine-id",
    "etc/hostname",
    "etc/hosts",
    "etc/fstab",
    "etc/resolv.conf",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "etc/default/locale",
};
#define HOST_KEY_PREFIX "etc/ssh/ssh_host_"

static const char network_file[] = "# Every Ethernet card, by DHCP and router advertisements.\n"
                                   "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n";
/* Host keys are one machine's: a copy, which has another machine id, makes its own. */
static const char host_keys_unit[] =
    "[Unit]\nDescription=Make this machine's SSH host keys\nBefore=ssh.service ssh.socket\n\n"
    "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'cmp -s /etc/machine-id /etc/ssh/.host-keys-of || "
    "{ rm -f /etc/ssh/ssh_host_* && ssh-keygen -A && cp /etc/machine-id /etc/ssh/.host-keys-of; }'\n\n"
    "[Install]\nWantedBy=ssh.service\n";

/* The host's clock, which ptp_kvm shows as a PTP clock: Linux takes whole seconds from the RTC, and stands
 * still while the machine is saved. Where there is no such clock chrony stays off. */
static const char chrony_file[] =
    "# The host's clock (module ptp_kvm); steps after the machine stood still.\n"
    "refclock PHC /dev/ptp_kvm poll 1 dpoll 0 trust prefer\nmakestep 0.01 -1\n";
static const char chrony_condition[] = "[Unit]\nConditionPathExists=/dev/ptp_kvm\n";

/* The same on every disk. */
static const struct tree_entry fixed_entries[] = {
    /* Empty: systemd makes one at the first boot (machine-id(5)). */
    {"etc/machine-id", S_IFREG | 0444, ""},
    {"etc/resolv.conf", S_IFLNK | 0777, "../run/systemd/resolve/stub-resolv.conf"},
    {"etc/default/locale", S_IFREG | 0644, "LANG=C.UTF-8\n"},
    {"etc/systemd/network/80-ethernet.network", S_IFREG | 0644, network_file},
    {"etc/modules-load.d/ptp_kvm.conf", S_IFREG | 0644, "ptp_kvm\n"},
    {"etc/chrony/conf.d/host.conf", S_IFREG | 0644, chrony_file},
    {UNIT "chrony.service.d/host.conf", S_IFREG | 0644, chrony_condition},
    {UNIT "ssh-host-keys.service", S_IFREG | 0644, host_keys_unit},
    {UNIT "ssh.service.wants/ssh-host-keys.service", S_IFLNK | 0777, "/" UNIT "ssh-host-keys.service"},
    {UNIT "getty.target.wants/serial-getty@ttyS0.service", S_IFLNK | 0777, LIB_UNIT "serial-getty@.service"},
    {UNIT "multi-user.target.wants/systemd-networkd.service", S_IFLNK | 0777,
     LIB_UNIT "systemd-networkd.service"},
    {UNIT "dbus-org.freedesktop.network1.service", S_IFLNK | 0777, LIB_UNIT "systemd-networkd.service"},
    {UNIT "sockets.target.wants/systemd-networkd.socket", S_IFLNK | 0777, LIB_UNIT "systemd-networkd.socket"},
    {UNIT "network-online.target.wants/systemd-networkd-wait-online.service", S_IFLNK | 0777,
     LIB_UNIT "systemd-networkd-wait-online.service"},
};

/* ---- what the user gave ---- */

/* Names go into command lines and files: Debian policy 5.6.7, with apt's =VERSION and :ARCHITECTURE. */
static bool is_package(const char *text)
{
    return isalnum((unsigned char)text[0]) && strlen(text) < 200 &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.:=~") ==
               strlen(text);
}

static bool is_suite(const char *text)
{
    return islower((unsigned char)text[0]) && strlen(text) < 64 &&
           strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(text);
}

static bool is_url(const char *text)
{
    return (strncmp(text, "http://", 7) == 0 || strncmp(text, "https://", 8) == 0) && strlen(text) < 1000 &&
           strpbrk(text, " \t\n\"';") == NULL && strlen(strchr(text, '/')) > 2;
}

static bool is_hostname(const char *text)
{
    size_t len = strlen(text);
    return len > 0 && len <= HOSTNAME_MAX && text[0] != '-' && text[len - 1] != '-' &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == len;
}

static int read_keys(const char *path, char **ret_text, struct err *err)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    auto_free char *text = calloc(1, KEY_FILE_MAX + 1);
    if (fd < 0 || !text) {
        return err_sys(err, fd < 0 ? -errno : -ENOMEM, "--ssh-key: cannot open '%s'", path);
    }
    ssize_t n = read(fd, text, KEY_FILE_MAX);
    if (n < 0) {
        return err_sys(err, -errno, "--ssh-key: cannot read '%s'", path);
    }
    if (strstr(text, "PRIVATE KEY")) {
        return err_set(err, -EINVAL, "--ssh-key: '%s' is a private key: give the public one, '%s.pub'", path,
                       path);
    }
    if (!strstr(text, "ssh-") && !strstr(text, "ecdsa-") && !strstr(text, "sk-")) {
        return err_set(err, -EINVAL, "--ssh-key: '%s' holds no public key such as 'ssh-ed25519 AAAA... name'",
                       path);
    }
    *ret_text = text;
    text = NULL;
    return 0;
}

int debian_check(const struct debian_config *config, struct err *err)
{
    if (!is_suite(config->suite)) {
        return err_set(err, -EINVAL, "'%s' is not a suite of Debian's such as bookworm", config->suite);
    }
    if (config->mirror && !is_url(config->mirror)) {
        return err_set(err, -EINVAL, "--mirror: '%s' is not a URL such as http://HOST/debian",
                       config->mirror);
    }
    if (config->apt_proxy && !is_url(config->apt_proxy)) {
        return err_set(err, -EINVAL, "--apt-proxy: '%s' is not a URL such as http://10.0.2.2:3142",
                       config->apt_proxy);
    }
    if (!is_hostname(config->hostname)) {
        return err_set(err, -EINVAL, "--hostname: '%s' is not a name of letters, digits and '-'",
                       config->hostname);
    }
    if (!is_package(config->kernel)) {
        return err_set(err, -EINVAL, "--kernel: '%s' is not cloud, generic or a package's name",
                       config->kernel);
    }
    for (unsigned i = 0; i < config->package_count; i++) {
        if (!is_package(config->packages[i])) {
            return err_set(err, -EINVAL, "--package: '%s' is not a package's name", config->packages[i]);
        }
    }
    if (config->size_bytes < DEBIAN_SIZE_MIN) {
        return err_set(err, -EINVAL, "--size: a Debian needs 1G at least");
    }
    char *keys = NULL;
    int rc = config->ssh_key ? read_keys(config->ssh_key, &keys, err) : 0;
    free(keys);
    return rc;
}

/* ---- the system's files ---- */

/* The line "root:*:19000:..." with another second field. */
static char *set_root_password(const char *shadow, const char *password)
{
    char setting[CRYPT_GENSALT_OUTPUT_SIZE];
    struct crypt_data data = {0};
    const char *hash = "";
    if (*password) {
        if (!crypt_gensalt_rn(NULL, 0, NULL, 0, setting, sizeof(setting))) {
            return NULL;
        }
        hash = crypt_r(password, setting, &data);
    }
    const char *line = strncmp(shadow, "root:", 5) == 0 ? shadow : strstr(shadow, "\nroot:");
    line = line && line[0] == '\n' ? line + 1 : line;
    const char *rest = line ? strchr(line + 5, ':') : NULL;
    char *text = NULL;
    if (!hash || hash[0] == '*' || !rest ||
        asprintf(&text, "%.*sroot:%s%s", (int)(line - shadow), shadow, hash, rest) < 0) {
        return NULL;
    }
    return text;
}

struct edits {
    const struct debian_config *config;
    bool has_password;
};

static bool edit(void *opaque, const char *path, const char *text, char **ret_text)
{
    struct edits *edits = opaque;
    for (size_t i = 0; i < ARRAY_SIZE(left_out); i++) {
        if (strcmp(path, left_out[i]) == 0) {
            return false;
        }
    }
    if (strcmp(path, "etc/shadow") == 0 && text) {
        *ret_text = set_root_password(text, edits->config->password);
        edits->has_password = *ret_text != NULL;
    }
    return strncmp(path, HOST_KEY_PREFIX, strlen(HOST_KEY_PREFIX)) != 0;
}

__attribute__((format(printf, 5, 6))) static int
add_text(struct tree *tree, const char *path, uint32_t permissions, struct err *err, const char *fmt, ...)
{
    va_list args;
    char *text;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n < 0) {
        return err_sys(err, -ENOMEM, "cannot write '%s'", path);
    }
    int rc = tree_add(tree, &(struct tree_entry){path, S_IFREG | permissions, text}, err);
    free(text);
    return rc;
}

static int add_keys(struct tree *tree, const char *path, struct err *err)
{
    auto_free char *keys = NULL;
    int rc = read_keys(path, &keys, err);
    if (rc == 0) {
        rc = tree_add(tree, &(struct tree_entry){"root/.ssh", S_IFDIR | 0700, NULL}, err);
    }
    return rc ? rc : add_text(tree, "root/.ssh/authorized_keys", 0600, err, "%s", keys);
}

static int add_files(struct tree *tree, const struct debian_config *config, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; i < ARRAY_SIZE(fixed_entries) && rc == 0; i++) {
        rc = tree_add(tree, &fixed_entries[i], err);
    }
    rc = rc ? rc
            : add_text(tree, "etc/fstab", 0644, err, "UUID=%s / ext4 errors=remount-ro 0 1\n",
                       tree_uuid(tree));
    rc = rc ? rc : add_text(tree, "etc/hostname", 0644, err, "%s\n", config->hostname);
    rc = rc ? rc
            : add_text(tree, "etc/hosts", 0644, err,
                       "127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost ip6-loopback\n",
                       config->hostname);
    if (rc == 0 && config->apt_proxy) {
        rc = add_text(tree, "etc/apt/apt.conf.d/30proxy", 0644, err,
                      "Acquire::http::Proxy \"%s\";\nAcquire::https::Proxy \"%s\";\n", config->apt_proxy,
                      config->apt_proxy);
    }
    return rc == 0 && config->ssh_key ? add_keys(tree, config->ssh_key, err) : rc;
}

/* A failure of mmdebstrap's explains a stream that breaks off. */
static int fill(struct tree *tree, const struct debian_config *config, const struct archive_sources *sources,
                struct err *err)
{
    struct bootstrap bootstrap;
    struct edits edits = {config, false};
    struct err own = {0};
    int rc = bootstrap_start(&bootstrap, config, sources, err);
    if (rc < 0) {
        return rc;
    }
    int tar_rc = tree_add_tar(tree, bootstrap.process.out_fd, edit, &edits, &own);
    if (tar_rc == -ENOSPC) {
        bootstrap_wait(&bootstrap, NULL);
        return err_set(err, tar_rc, "%s", own.text);
    }
    rc = bootstrap_wait(&bootstrap, err);
    if (rc == 0 && tar_rc < 0) {
        rc = err_set(err, tar_rc, "%s", own.text);
    }
    if (rc == 0 && !edits.has_password) {
        rc = err_set(err, -EIO, "the system has no /etc/shadow that a password could be set in");
    }
    return rc ? rc : add_files(tree, config, err);
}

int debian_build(const struct debian_config *config, int fd, struct err *err)
{
    struct archive_sources sources;
    struct tree *tree = NULL;
    int rc = debian_check(config, err);
    if (rc == 0 && ftruncate(fd, (off_t)config->size_bytes) < 0) {
        rc = err_sys(err, -errno, "cannot make a file of that size");
    }
    rc = rc ? rc : archive_sources_find(config->suite, config->mirror, &sources, err);
    if (rc < 0) {
        return rc;
    }
    rc = tree_new(fd, config->size_bytes, &tree, err);
    rc = rc ? rc : fill(tree, config, &sources, err);
    int close_rc = tree_close(tree, rc ? NULL : err);
    archive_sources_done(&sources);
    return rc ? rc : close_rc;
}
