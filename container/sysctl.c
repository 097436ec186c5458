#include "container/sysctl.h"

#include "base/util.h"
#include "container/fault.h"
#include "container/paths.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Which namespace a key belongs to (sysctl(2) documents, kernel Documentation/admin-guide/sysctl). */
static const struct {
    const char *key; /* a trailing '.' or '*' takes what follows */
    enum ns_kind ns;
} owners[] = {
    {"net.", NS_NETWORK},           {"fs.mqueue.", NS_IPC},         {"kernel.msg*", NS_IPC},
    {"kernel.sem", NS_IPC},         {"kernel.sem_next_id", NS_IPC}, {"kernel.shm*", NS_IPC},
    {"kernel.hostname", NS_UTS},    {"kernel.domainname", NS_UTS},  {"user.", NS_USER},
    {"kernel.ns_last_pid", NS_PID},
};

static int check_key(const struct oci_config *config, const char *key, struct err *err)
{
    char name[256];
    size_t n = strlen(key);
    if (n == 0 || n >= sizeof(name) || key[0] == '/' || strstr(key, "..") || strstr(key, "//")) {
        return err_set(err, -EINVAL, "linux.sysctl: '%.64s' is not a key", key);
    }
    /* Both spellings: "net.ipv4.conf.eth0/1.x" and "net/ipv4/conf/eth0.1/x". */
    memcpy(name, key, n + 1);
    bool slashes = strcspn(key, "/") < strcspn(key, ".");
    for (size_t i = 0; slashes && i < n; i++) {
        name[i] = key[i] == '/' ? '.' : key[i] == '.' ? '/' : key[i];
    }
    for (size_t i = 0; i < ARRAY_SIZE(owners); i++) {
        size_t len = strlen(owners[i].key);
        char last = owners[i].key[len - 1];
        bool match = last == '.'   ? strncmp(name, owners[i].key, len) == 0
                     : last == '*' ? strncmp(name, owners[i].key, len - 1) == 0
                                   : strcmp(name, owners[i].key) == 0;
        if (!match) {
            continue;
        }
        if (strcmp(name, "kernel.hostname") == 0) { /* which of the two would win? */
            return err_set(err, -EINVAL, "linux.sysctl: '%s' is the member 'hostname'; set that", key);
        }
        if (!config->lnx.ns[owners[i].ns].wanted) {
            return err_set(err, -EINVAL,
                           "linux.sysctl: '%s' needs a %s namespace of its own, it would change the host",
                           key, ns_type_names[owners[i].ns]);
        }
        return 0;
    }
    return err_set(err, -EINVAL, "linux.sysctl: '%s' belongs to no namespace, it would change the host", key);
}

int sysctl_check(const struct oci_config *config, struct err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(config->lnx.sysctl, key, value)
    {
        int rc = check_key(config, key, err);
        if (rc < 0) {
            return rc;
        }
        if (!json_is_string(value)) {
            return err_set(err, -EINVAL, "linux.sysctl: the value of '%s' must be a string", key);
        }
    }
    return 0;
}

int sysctl_write(const struct oci_config *config, int proc_fd, struct err *err)
{
    const char *key;
    json_t *value;
    int rc = json_object_size(config->lnx.sysctl) ? fault_step("sysctl", err) : 0;
    json_object_foreach(config->lnx.sysctl, key, value)
    {
        char path[272];
        int n = snprintf(path, sizeof(path), "sys/%s", key);
        bool slashes = strcspn(key, "/") < strcspn(key, ".");
        for (int i = 4; !slashes && i < n; i++) {
            path[i] = path[i] == '.' ? '/' : path[i] == '/' ? '.' : path[i];
        }
        if (rc == 0 && (rc = write_file_at(proc_fd, path, json_string_value(value))) < 0) {
            err_sys(err, rc, "linux.sysctl: cannot set '%s' to '%s'", key, json_string_value(value));
        }
    }
    return rc;
}
