/* The mounts section: config.md "Mounts" and the table of its Linux mount options. */
#include "base/util.h"
#include "container/config.h"
#include "container/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#ifndef MOUNT_ATTR_NOSYMFOLLOW
#define MOUNT_ATTR_NOSYMFOLLOW 0x00200000
#endif

enum option_kind {
    OPT_SET,     /* sets a mount attribute */
    OPT_CLEAR,   /* clears one */
    OPT_ATIME,   /* replaces the access time mode */
    OPT_REC_SET, /* the same three, with all mounts below */
    OPT_REC_CLEAR,
    OPT_REC_ATIME,
    OPT_SB, /* superblock flag */
    OPT_SB_CLEAR,
    OPT_PROPAGATION,
    OPT_BIND,
    OPT_RBIND,
    OPT_REMOUNT,
    OPT_COPY_UP,
    OPT_IDMAP,
    OPT_RIDMAP,
    OPT_NO_FOLLOW,
    OPT_NOTHING,
};

static const struct {
    const char *name;
    enum option_kind kind;
    unsigned long value;
} options[] = {
    {"async", OPT_SB_CLEAR, MS_SYNCHRONOUS},
    {"atime", OPT_ATIME, MOUNT_ATTR_RELATIME},
    {"bind", OPT_BIND, 0},
    {"copy-symlink", OPT_NO_FOLLOW, 0},
    {"defaults", OPT_NOTHING, 0},
    {"dev", OPT_CLEAR, MOUNT_ATTR_NODEV},
    {"diratime", OPT_CLEAR, MOUNT_ATTR_NODIRATIME},
    {"dirsync", OPT_SB, MS_DIRSYNC},
    {"exec", OPT_CLEAR, MOUNT_ATTR_NOEXEC},
    {"idmap", OPT_IDMAP, 0},
    {"iversion", OPT_SB, MS_I_VERSION},
    {"lazytime", OPT_SB, MS_LAZYTIME},
    {"loud", OPT_SB_CLEAR, MS_SILENT},
    {"mand", OPT_SB, MS_MANDLOCK},
    {"noatime", OPT_ATIME, MOUNT_ATTR_NOATIME},
    {"nodev", OPT_SET, MOUNT_ATTR_NODEV},
    {"nodiratime", OPT_SET, MOUNT_ATTR_NODIRATIME},
    {"noexec", OPT_SET, MOUNT_ATTR_NOEXEC},
    {"noiversion", OPT_SB_CLEAR, MS_I_VERSION},
    {"nolazytime", OPT_SB_CLEAR, MS_LAZYTIME},
    {"nomand", OPT_SB_CLEAR, MS_MANDLOCK},
    {"norelatime", OPT_ATIME, MOUNT_ATTR_STRICTATIME},
    {"nostrictatime", OPT_ATIME, MOUNT_ATTR_RELATIME},
    {"nosuid", OPT_SET, MOUNT_ATTR_NOSUID},
    {"nosymfollow", OPT_SET, MOUNT_ATTR_NOSYMFOLLOW},
    {"private", OPT_PROPAGATION, MS_PRIVATE},
    {"ratime", OPT_REC_ATIME, MOUNT_ATTR_RELATIME},
    {"rbind", OPT_RBIND, 0},
    {"rdev", OPT_REC_CLEAR, MOUNT_ATTR_NODEV},
    {"rdiratime", OPT_REC_CLEAR, MOUNT_ATTR_NODIRATIME},
    {"relatime", OPT_ATIME, MOUNT_ATTR_RELATIME},
    {"remount", OPT_REMOUNT, 0},
    {"rexec", OPT_REC_CLEAR, MOUNT_ATTR_NOEXEC},
    {"ridmap", OPT_RIDMAP, 0},
    {"rnoatime", OPT_REC_ATIME, MOUNT_ATTR_NOATIME},
    {"rnodev", OPT_REC_SET, MOUNT_ATTR_NODEV},
    {"rnodiratime", OPT_REC_SET, MOUNT_ATTR_NODIRATIME},
    {"rnoexec", OPT_REC_SET, MOUNT_ATTR_NOEXEC},
    {"rnorelatime", OPT_REC_ATIME, MOUNT_ATTR_STRICTATIME},
    {"rnostrictatime", OPT_REC_ATIME, MOUNT_ATTR_RELATIME},
    {"rnosuid", OPT_REC_SET, MOUNT_ATTR_NOSUID},
    {"rnosymfollow", OPT_REC_SET, MOUNT_ATTR_NOSYMFOLLOW},
    {"ro", OPT_SET, MOUNT_ATTR_RDONLY},
    {"rprivate", OPT_PROPAGATION, MS_PRIVATE | MS_REC},
    {"rrelatime", OPT_REC_ATIME, MOUNT_ATTR_RELATIME},
    {"rro", OPT_REC_SET, MOUNT_ATTR_RDONLY},
    {"rrw", OPT_REC_CLEAR, MOUNT_ATTR_RDONLY},
    {"rshared", OPT_PROPAGATION, MS_SHARED | MS_REC},
    {"rslave", OPT_PROPAGATION, MS_SLAVE | MS_REC},
    {"rstrictatime", OPT_REC_ATIME, MOUNT_ATTR_STRICTATIME},
    {"rsuid", OPT_REC_CLEAR, MOUNT_ATTR_NOSUID},
    {"rsymfollow", OPT_REC_CLEAR, MOUNT_ATTR_NOSYMFOLLOW},
    {"runbindable", OPT_PROPAGATION, MS_UNBINDABLE | MS_REC},
    {"rw", OPT_CLEAR, MOUNT_ATTR_RDONLY},
    {"shared", OPT_PROPAGATION, MS_SHARED},
    {"silent", OPT_SB, MS_SILENT},
    {"slave", OPT_PROPAGATION, MS_SLAVE},
    {"src-nofollow", OPT_NO_FOLLOW, 0},
    {"strictatime", OPT_ATIME, MOUNT_ATTR_STRICTATIME},
    {"suid", OPT_CLEAR, MOUNT_ATTR_NOSUID},
    {"symfollow", OPT_CLEAR, MOUNT_ATTR_NOSYMFOLLOW},
    {"sync", OPT_SB, MS_SYNCHRONOUS},
    {"tmpcopyup", OPT_COPY_UP, 0},
    {"unbindable", OPT_PROPAGATION, MS_UNBINDABLE},
};

const char *const *config_mount_option_names(size_t *ret_count)
{
    static const char *names[ARRAY_SIZE(options)];
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        names[i] = options[i].name;
    }
    *ret_count = ARRAY_SIZE(options);
    return names;
}

static void flag_set(uint64_t *set, uint64_t *clear, uint64_t flag)
{
    *set |= flag;
    *clear &= ~flag;
}

/* mount_setattr(2): the access time mode is a field, to be cleared as a whole when it is set. */
static void atime_set(uint64_t *set, uint64_t *clear, uint64_t mode)
{
    *set = (*set & ~(uint64_t)MOUNT_ATTR__ATIME) | mode;
    *clear |= MOUNT_ATTR__ATIME;
}

static bool apply_option(struct oci_mount *m, const char *name)
{
    size_t lo = 0;
    size_t hi = ARRAY_SIZE(options);
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int order = strcmp(name, options[mid].name);
        if (order == 0) {
            lo = mid;
            break;
        }
        if (order < 0) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    if (lo >= ARRAY_SIZE(options) || strcmp(name, options[lo].name) != 0) {
        return false;
    }
    unsigned long value = options[lo].value;
    switch (options[lo].kind) {
    case OPT_SET: flag_set(&m->attr_set, &m->attr_clear, value); break;
    case OPT_CLEAR:
        flag_set(&m->attr_clear, &m->attr_set, value);
        m->explicit_rw = m->explicit_rw || value == MOUNT_ATTR_RDONLY;
        break;
    case OPT_ATIME: atime_set(&m->attr_set, &m->attr_clear, value); break;
    case OPT_REC_SET: flag_set(&m->rec_set, &m->rec_clear, value); break;
    case OPT_REC_CLEAR: flag_set(&m->rec_clear, &m->rec_set, value); break;
    case OPT_REC_ATIME: atime_set(&m->rec_set, &m->rec_clear, value); break;
    case OPT_SB: m->sb_flags |= value; break;
    case OPT_SB_CLEAR: m->sb_flags &= ~value; break;
    case OPT_PROPAGATION: m->propagation = value; break;
    case OPT_BIND: m->bind = true; break;
    case OPT_RBIND:
        m->bind = true;
        m->recursive = true;
        break;
    case OPT_REMOUNT: m->remount = true; break;
    case OPT_COPY_UP: m->copy_up = true; break;
    case OPT_IDMAP: m->idmap = MOUNT_IDMAP_TOP; break;
    case OPT_RIDMAP: m->idmap = MOUNT_IDMAP_RECURSIVE; break;
    case OPT_NO_FOLLOW: m->no_follow = true; break;
    case OPT_NOTHING: break;
    }
    return true;
}

/* "idmap=uids=0-1000-10;gids=..." as crun's users write it is refused below: the specification's uidMappings
 * do that. */
static int parse_options(struct oci_config *config, struct oci_mount *m, const char **list, struct err *err)
{
    size_t room = 1;
    for (size_t i = 0; list && list[i]; i++) {
        room += strlen(list[i]) + 1;
    }
    char *data = arena_alloc(&config->arena, room);
    size_t used = 0;
    for (size_t i = 0; list && list[i]; i++) {
        if (!*list[i] || apply_option(m, list[i])) {
            continue;
        }
        if (strncmp(list[i], "idmap=", 6) == 0) {
            return err_set(err, -EINVAL,
                           "mount '%s': option '%s': write the mapping as uidMappings and gidMappings",
                           m->destination, list[i]);
        }
        used += (size_t)snprintf(data + used, room - used, "%s%s", used ? "," : "", list[i]);
    }
    m->data = used ? data : NULL;
    return 0;
}

int config_parse_mounts(struct oci_config *config, struct err *err)
{
    json_t *list = NULL;
    int rc = json_arr(config->json, "", "mounts", &list, err);
    size_t count = json_array_size(list);
    if (rc < 0) {
        return rc;
    }
    if (count > CONFIG_MOUNTS_MAX) {
        return err_set(err, -EINVAL, "mounts has more than %d members", CONFIG_MOUNTS_MAX);
    }
    config->mounts = arena_array(&config->arena, count, sizeof(struct oci_mount));
    for (size_t i = 0; i < count; i++) {
        struct oci_mount *m = &config->mounts[i];
        json_t *item = json_array_get(list, i);
        const char **opts = NULL;
        const char *where = "mounts[]";
        if (!json_is_object(item)) {
            return err_set(err, -EINVAL, "mounts[%zu] must be an object", i);
        }
        if ((rc = json_str(item, where, "destination", &m->destination, err)) < 0 ||
            (rc = json_str(item, where, "source", &m->source, err)) < 0 ||
            (rc = json_str(item, where, "type", &m->type, err)) < 0 ||
            (rc = json_strv(item, where, "options", &config->arena, &opts, NULL, err)) < 0 ||
            (rc = config_parse_idmaps(item, where, "uidMappings", &config->arena, &m->uid_maps, err)) < 0 ||
            (rc = config_parse_idmaps(item, where, "gidMappings", &config->arena, &m->gid_maps, err)) < 0) {
            return rc;
        }
        if (!m->destination || !*m->destination) {
            return err_set(err, -EINVAL, "mounts[%zu].destination is missing", i);
        }
        rc = parse_options(config, m, opts, err);
        if (rc < 0) {
            return rc;
        }
        if (m->type && strcmp(m->type, "bind") == 0 && !m->bind) {
            m->bind = true;
        }
        if (m->bind) {
            m->type = "bind";
        }
        if (!m->type || !*m->type) {
            m->type = "none";
        }
        if (m->bind && (!m->source || !*m->source)) {
            return err_set(err, -EINVAL, "mount '%s': a bind mount needs a source", m->destination);
        }
        if ((m->uid_maps.count == 0) != (m->gid_maps.count == 0)) {
            return err_set(err, -EINVAL, "mount '%s': uidMappings and gidMappings go together",
                           m->destination);
        }
        if (m->uid_maps.count && m->idmap == MOUNT_IDMAP_NONE) {
            m->idmap = MOUNT_IDMAP_TOP;
        }
        if (m->idmap != MOUNT_IDMAP_NONE && !m->bind) {
            return err_set(err, -EINVAL, "mount '%s': only bind mounts can be id-mapped", m->destination);
        }
        config->mount_count++;
    }
    return 0;
}
