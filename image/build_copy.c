/*
 * COPY and ADD: from a folder into a root, or into a digest that says what would be copied (for the cache).
 * Both ends are foreign: paths are resolved below their roots only.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/options.h"
#include "image/build_int.h"
#include "image/fs.h"
#include "image/layer.h"
#include "image/limits.h"

/* ---- .containerignore ---- */

/* Docker's patterns: components by fnmatch, "**" for any number of them; a match of a folder is a match of
 * what is in it. */
static bool match(const char *pattern, const char *path)
{
    char name[NAME_MAX + 1], part[NAME_MAX + 1];
    size_t p = strcspn(pattern, "/"), n = strcspn(path, "/");
    if (!*pattern) {
        return true;
    }
    if (p == 2 && strncmp(pattern, "**", 2) == 0) {
        const char *rest = pattern[p] ? pattern + p + 1 : "";
        for (const char *at = path;; at += strcspn(at, "/") + 1) {
            if (match(rest, at) && (*rest || *at)) {
                return true;
            }
            if (!at[strcspn(at, "/")]) {
                return false;
            }
        }
    }
    if (!*path || p > NAME_MAX || n > NAME_MAX) {
        return false;
    }
    snprintf(part, sizeof(part), "%.*s", (int)p, pattern);
    snprintf(name, sizeof(name), "%.*s", (int)n, path);
    return fnmatch(part, name, 0) == 0 &&
           match(pattern[p] ? pattern + p + 1 : "", path[n] ? path + n + 1 : "");
}

bool build_ignored(char *const *patterns, const char *path)
{
    bool ignored = false;
    for (; patterns && *patterns; patterns++) {
        bool not = **patterns == '!';
        if (ignored == not &&match(*patterns + not, path)) {
            ignored = !not ;
        }
    }
    return ignored;
}

int build_read_ignore(int context, const char *containerfile, char ***ret_patterns, struct err *err)
{
    char own[NAME_MAX + 32];
    const char *slash = strrchr(containerfile, '/');
    snprintf(own, sizeof(own), "%.255s.containerignore", slash ? slash + 1 : containerfile);
    const char *const files[] = {own, ".containerignore", ".dockerignore"};
    auto_free char *text = NULL;
    int rc = -ENOENT;
    for (unsigned i = 0; rc == -ENOENT && i < ARRAY_SIZE(files); i++) {
        rc = fs_read_file(context, files[i], CONTAINERFILE_BYTES_MAX, &text, NULL, err);
    }
    *ret_patterns = NULL;
    if (rc < 0) {
        return rc == -ENOENT ? 0 : rc;
    }
    size_t count = 0;
    char **patterns = calloc(CONTAINERFILE_WORDS_MAX + 1, sizeof(*patterns)), *rest = text;
    for (char *line; patterns && (line = strsep(&rest, "\n"));) {
        line += strspn(line, " \t");
        size_t n = strcspn(line, "\r");
        while (n && (line[n - 1] == ' ' || line[n - 1] == '/')) {
            n--;
        }
        line[n] = '\0';
        bool not = *line == '!';
        char *from = line + not ;
        from += *from == '/';
        if (!*from || *line == '#') {
            continue;
        }
        if (count == CONTAINERFILE_WORDS_MAX) {
            cf_free_words(patterns);
            return err_set(err, -E2BIG, "the ignore file has more than CONTAINERFILE_WORDS_MAX (%u) patterns",
                           CONTAINERFILE_WORDS_MAX);
        }
        if (asprintf(&patterns[count], "%s%s", not ? "!" : "", from) < 0) {
            patterns[count] = NULL;
            break;
        }
        count++;
    }
    *ret_patterns = patterns;
    return patterns ? 0 : err_set(err, -ENOMEM, "no memory");
}

/* ---- users ---- */

/* Field number of the line in file whose first field is name. */
static int find_in(int root, const char *file, const char *name, unsigned field, uint32_t *ret_id,
                   uint32_t *ret_next)
{
    auto_close int fd = fs_open(root, file, O_RDONLY | O_NONBLOCK, 0, FS_IN_ROOT);
    auto_free char *text = calloc(1, MiB);
    ssize_t n = fd < 0 || !text ? -1 : read(fd, text, MiB - 1);
    char *rest = n > 0 ? text : NULL;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *parts[7] = {NULL};
        for (unsigned i = 0; i < 7 && line; i++) {
            parts[i] = strsep(&line, ":");
        }
        bool same = parts[0] &&
                    (strcmp(parts[0], name) == 0 || (field == 3 && parts[2] && strcmp(parts[2], name) == 0));
        if (same && parts[2]) {
            *ret_id = (uint32_t)strtoul(parts[2], NULL, 10);
            if (ret_next && parts[3]) {
                *ret_next = (uint32_t)strtoul(parts[3], NULL, 10);
            }
            return 0;
        }
    }
    return -ENOENT;
}

int build_find_user(int root, const char *text, uid_t *ret_uid, gid_t *ret_gid, struct err *err)
{
    char user[256];
    size_t n = strcspn(text, ":");
    const char *group = text[n] ? text + n + 1 : NULL;
    uint32_t uid = 0, gid = 0;
    uint64_t number;
    snprintf(user, sizeof(user), "%.*s", (int)MIN(n, sizeof(user) - 1), text);
    bool found = !*user || find_in(root, "etc/passwd", user, 3, &uid, &gid) == 0;
    if (!found) {
        if (parse_uint(user, &number, NULL) < 0 || number >= UINT32_MAX) {
            return err_set(err, -EINVAL, "the image's /etc/passwd has no user '%s'", user);
        }
        uid = (uint32_t)number;
    }
    if (group && find_in(root, "etc/group", group, 2, &gid, NULL) < 0) {
        if (parse_uint(group, &number, NULL) < 0 || number >= UINT32_MAX) {
            return err_set(err, -EINVAL, "the image's /etc/group has no group '%s'", group);
        }
        gid = (uint32_t)number;
    }
    *ret_uid = uid;
    *ret_gid = gid;
    return 0;
}

/* ---- one tree ---- */

static void hash_text(struct digest_state *digest, const char *text)
{
    digest_update(digest, text, strlen(text) + 1);
}

static int hash_node(struct copy *c, int dir, const char *name, const char *path, const struct stat *st,
                     struct err *err)
{
    char head[128], sum[DIGEST_SIZE];
    snprintf(head, sizeof(head), "%o %u %u %d", st->st_mode, c->keep_owner ? st->st_uid : c->uid,
             c->keep_owner ? st->st_gid : c->gid, c->mode);
    hash_text(c->digest, path);
    hash_text(c->digest, head);
    if (S_ISREG(st->st_mode)) {
        auto_close int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        int rc = fd < 0 ? err_sys(err, -errno, "cannot read '%s'", path) : digest_fd(fd, sum, NULL, err);
        if (rc < 0) {
            return rc;
        }
        hash_text(c->digest, sum);
    } else if (S_ISLNK(st->st_mode)) {
        char link[PATH_MAX];
        ssize_t n = readlinkat(dir, name, link, sizeof(link) - 1);
        link[MAX(n, 0)] = '\0';
        hash_text(c->digest, link);
    }
    return 0;
}

static int own(struct copy *c, int to_dir, const char *to, const struct stat *st, struct err *err)
{
    uid_t uid = c->keep_owner ? st->st_uid : c->uid;
    gid_t gid = c->keep_owner ? st->st_gid : c->gid;
    mode_t mode = c->mode >= 0 ? (mode_t)c->mode : st->st_mode & 07777;
    return layer_set_owner(to_dir, to, uid, gid, mode, err);
}

/* from in from_dir (path: below the source, for patterns) to the name to in to_dir. */
static int copy_tree(struct copy *c, int from_dir, const char *from, const char *path, int to_dir,
                     const char *to, unsigned depth, struct err *err);

static int copy_contents(struct copy *c, int from, const char *path, int to, unsigned depth, struct err *err)
{
    struct dirent **list = NULL;
    char proc[FS_PROC_MAX];
    fs_proc_path(from, proc);
    int n = scandir(proc, &list, NULL, alphasort),
        rc = n < 0 ? err_sys(err, -errno, "cannot read '%s'", path) : 0;
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        char below[PATH_MAX];
        if (rc == 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
            rc = snprintf(below, sizeof(below), "%s%s%s", path, *path ? "/" : "", name) >= (int)sizeof(below)
                     ? err_set(err, -ENAMETOOLONG, "a path in the context is too long")
                     : copy_tree(c, from, name, below, to, name, depth + 1, err);
        }
        free(list[i]);
    }
    free(list);
    return rc;
}

static int copy_tree(struct copy *c, int from_dir, const char *from, const char *path, int to_dir,
                     const char *to, unsigned depth, struct err *err)
{
    struct stat st, old;
    if (depth > IMAGE_TREE_DEPTH_MAX) {
        return err_set(err, -ELOOP, "the tree is deeper than IMAGE_TREE_DEPTH_MAX (%u)",
                       IMAGE_TREE_DEPTH_MAX);
    }
    int rc = layer_stat(from_dir, from, &st);
    if (rc < 0) {
        return err_sys(err, rc, "cannot read '%s'", path);
    }
    bool folder = S_ISDIR(st.st_mode), ignored = build_ignored(c->ignore, path);
    if (!folder && (ignored || S_ISSOCK(st.st_mode))) {
        return 0;
    }
    if (ignored) {
        /* Only an exception may bring something of it back. */
        bool exception = false;
        for (char **p = c->ignore; *p; p++) {
            exception |= **p == '!';
        }
        if (!exception) {
            return 0;
        }
    }
    if (c->digest) {
        rc = hash_node(c, from_dir, from, path, &st, err);
    } else if (fstatat(to_dir, to, &old, AT_SYMLINK_NOFOLLOW) == 0 && !(folder && S_ISDIR(old.st_mode))) {
        if (S_ISDIR(old.st_mode)) {
            return err_set(err, -EISDIR, "cannot copy '%s': a folder is in its place", path);
        }
        unlinkat(to_dir, to, 0);
    }
    if (rc == 0 && !c->digest) {
        rc = fs_copy_node(from_dir, from, to_dir, to, err);
        rc = rc < 0 ? rc : own(c, to_dir, to, &st, err);
    }
    if (rc == 0 && folder) {
        auto_close int sub = openat(from_dir, from, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        auto_close int target =
            c->digest ? -1 : openat(to_dir, to, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        rc = sub < 0 || (target < 0 && !c->digest) ? err_sys(err, -errno, "cannot open '%s'", path)
                                                   : copy_contents(c, sub, path, target, depth, err);
    }
    return rc;
}

/* ---- ADD of archives ---- */

static bool is_archive(int dir, const char *name)
{
    uint8_t head[512];
    auto_close int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, head, sizeof(head));
    return (n >= 2 && head[0] == 0x1f && head[1] == 0x8b) ||
           (n >= 4 && memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0) ||
           (n == 512 && memcmp(head + 257, "ustar", 5) == 0); /* POSIX.1-2017 pax, "ustar Header Block" */
}

static int unpack_into(struct copy *c, int dir, const char *name, int root, const char *dest, struct err *err)
{
    auto_close int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    auto_close int to = fs_mkdirs(root, dest, FS_IN_ROOT);
    auto_close int target = to < 0 ? -1 : openat(to, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct layer_stream *stream = NULL;
    struct layer_fixups *fixups = NULL;
    if (fd < 0 || target < 0) {
        return err_sys(err, -errno, "cannot unpack '%s'", name);
    }
    int rc = layer_stream_new(fd, c->layer_max, &stream, err);
    rc = rc < 0 ? rc : layer_unpack(stream, target, &fixups, err);
    layer_stream_free(stream);
    return rc < 0 ? rc : layer_finish(fixups, target, NULL, 0, err);
}

/* ---- where to ---- */

/* One source, whose parent folder is dir. many: there are more. */
static int copy_one(struct copy *c, int dir, const char *name, const char *path, int root, const char *dest,
                    bool many, struct err *err)
{
    struct stat st;
    char target[2 * PATH_MAX];
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        return err_sys(err, -errno, "cannot read '%s'", path);
    }
    bool folder = S_ISDIR(st.st_mode), unpack = c->unpack && S_ISREG(st.st_mode) && is_archive(dir, name);
    if (c->digest) {
        return copy_tree(c, dir, name, path, -1, name, 0, err);
    }
    if (unpack) {
        return unpack_into(c, dir, name, root, dest, err);
    }
    if (folder) {
        auto_close int from = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        bool fresh = fs_open(root, dest, O_PATH, 0, FS_IN_ROOT) == -ENOENT;
        auto_close int to = fs_mkdirs(root, dest, FS_IN_ROOT);
        auto_close int into = to < 0 ? -1 : openat(to, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (from < 0 || into < 0) {
            return err_sys(err, to < 0 ? to : -errno, "cannot make '%s'", dest);
        }
        int rc = copy_contents(c, from, path, into, 0, err);
        if (rc == 0 && fresh) {
            st.st_mode = S_IFDIR | (c->mode >= 0 ? (mode_t)c->mode : 0755);
            rc = own(c, into, "", &st, err);
        }
        return rc;
    }
    size_t length = strlen(dest);
    bool into = many || length == 0 || dest[length - 1] == '/';
    if (!into) {
        auto_close int fd = fs_open(root, dest, O_PATH | O_DIRECTORY, 0, FS_IN_ROOT);
        into = fd >= 0;
    }
    snprintf(target, sizeof(target), "%s%s%s", dest, into && length ? "/" : "", into ? name : "");
    char *slash = strrchr(target, '/');
    const char *leaf = slash ? slash + 1 : target;
    if (slash) {
        *slash = '\0';
    }
    auto_close int parent =
        slash ? fs_mkdirs(root, target, FS_IN_ROOT) : fs_open(root, ".", O_PATH | O_DIRECTORY, 0, FS_IN_ROOT);
    return parent < 0 ? err_sys(err, parent, "cannot make the folder '/%s'", slash ? target : "")
                      : copy_tree(c, dir, name, path, parent, leaf, 0, err);
}

/* Expands a pattern's components from rest on, below dir (whose path is path), and copies what matches. */
static int each_match(struct copy *c, int dir, const char *path, const char *rest, int root, const char *dest,
                      bool many, unsigned *count, struct err *err)
{
    char part[NAME_MAX + 1], below[PATH_MAX];
    rest += strspn(rest, "/");
    size_t n = strcspn(rest, "/");
    bool last = !rest[n + strspn(rest + n, "/")];
    if (n > NAME_MAX) {
        return err_set(err, -ENAMETOOLONG, "a name is longer than %d bytes", NAME_MAX);
    }
    snprintf(part, sizeof(part), "%.*s", (int)n, rest);
    struct dirent **list = NULL;
    char proc[FS_PROC_MAX];
    fs_proc_path(dir, proc);
    int entries = scandir(proc, &list, NULL, alphasort),
        rc = entries < 0 ? err_sys(err, -errno, "cannot read '%s'", path) : 0;
    for (int i = 0; i < entries; i++) {
        const char *name = list[i]->d_name;
        if (rc == 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
            fnmatch(part, name, FNM_PERIOD) == 0 &&
            snprintf(below, sizeof(below), "%s%s%s", path, *path ? "/" : "", name) < (int)sizeof(below)) {
            if (last && !build_ignored(c->ignore, below)) {
                rc = copy_one(c, dir, name, below, root, dest, many, err);
                (*count)++;
            } else if (!last) {
                auto_close int sub = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                rc = sub < 0 ? 0 : each_match(c, sub, below, rest + n, root, dest, many, count, err);
            }
        }
        free(list[i]);
    }
    free(list);
    return rc;
}

/* "/a/./b/../c" to "a/c"; '..' stops at the root. */
static void clean(const char *path, char out[static PATH_MAX])
{
    size_t used = 0;
    for (const char *p = path; *p;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && strncmp(p, "..", 2) == 0) {
            while (used && out[--used] != '/') {
            }
        } else if (n && !(n == 1 && *p == '.') && used + n + 2 < PATH_MAX) {
            out[used] = '/';
            used += used > 0;
            memcpy(out + used, p, n);
            used += n;
        }
        p += n + (p[n] == '/');
    }
    out[used] = '\0';
}

int build_copy(struct copy *copy, char *const *sources, unsigned count, int root, const char *dest,
               struct err *err)
{
    char to[PATH_MAX + 1];
    clean(dest, to);
    size_t length = strlen(dest);
    if (*to && length && dest[length - 1] == '/') {
        strcat(to, "/");
    }
    for (unsigned i = 0; i < count; i++) {
        char from[PATH_MAX];
        unsigned found = 0;
        clean(sources[i], from);
        auto_close int dir = openat(copy->source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int rc = 0;
        if (!*from) {
            /* The whole context. */
            auto_close int into = copy->digest ? -1 : fs_mkdirs(root, to, FS_IN_ROOT);
            auto_close int target = into < 0 ? -1 : openat(into, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            rc = !copy->digest && target < 0
                     ? err_sys(err, into < 0 ? into : -errno, "cannot make '%s'", dest)
                     : copy_contents(copy, dir, "", target, 0, err);
            found = 1;
        } else if (strpbrk(from, "*?[")) {
            rc = each_match(copy, dir, "", from, root, to, true, &found, err);
        } else {
            const char *leaf, *slash = strrchr(from, '/');
            auto_free char *folder = slash ? strndup(from, (size_t)(slash - from)) : strdup(".");
            leaf = slash ? slash + 1 : from;
            auto_close int parent =
                folder ? fs_open(copy->source, folder, O_RDONLY | O_DIRECTORY, 0, FS_IN_ROOT) : -ENOMEM;
            struct stat st;
            if (parent >= 0 && fstatat(parent, leaf, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                !build_ignored(copy->ignore, from)) {
                rc = copy_one(copy, parent, leaf, from, root, to, count > 1, err);
                found = 1;
            }
        }
        if (rc == 0 && !found) {
            rc = err_set(err, -ENOENT, "nothing to copy: '%s' isn't in the %s, or is ignored", sources[i],
                         copy->keep_owner ? "other image" : "context");
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

int build_copy_text(struct copy *copy, const char *name, const char *text, int root, const char *dest,
                    struct err *err)
{
    char to[PATH_MAX + NAME_MAX + 2];
    size_t length = strlen(dest);
    if (copy->digest) {
        hash_text(copy->digest, name);
        hash_text(copy->digest, text);
        return 0;
    }
    clean(dest, to);
    if (length && dest[length - 1] == '/') {
        snprintf(to + strlen(to), sizeof(to) - strlen(to), "%s%.255s", *to ? "/" : "", name);
    }
    char *slash = strrchr(to, '/');
    const char *leaf = slash ? slash + 1 : to;
    if (slash) {
        *slash = '\0';
    }
    auto_close int parent =
        slash ? fs_mkdirs(root, to, FS_IN_ROOT) : fs_open(root, ".", O_PATH | O_DIRECTORY, 0, FS_IN_ROOT);
    if (parent >= 0) {
        unlinkat(parent, leaf, 0);
    }
    auto_close int fd =
        parent < 0 ? -1 : openat(parent, leaf, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    int rc = fd < 0 ? (parent < 0 ? parent : -errno) : fs_write_all(fd, text, strlen(text));
    return rc < 0 ? err_sys(err, rc, "cannot write '%s'", dest)
                  : layer_set_owner(parent, leaf, copy->uid, copy->gid,
                                    copy->mode >= 0 ? (mode_t)copy->mode : 0644, err);
}
