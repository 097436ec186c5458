/*
 * Folders, locks, blobs and the table of names. Who unpacks into layers/ is layer.c; who removes is gc.c.
 */
#include "image/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "image/fs.h"
#include "image/limits.h"

#define REF_NAME     "org.opencontainers.image.ref.name" /* image specification, annotations.md */
#define SYNC_SECONDS 60 /* the kernel has written by then: the sync is cheap */

/* ---- opening ---- */

static char *default_path(void)
{
    char *path = NULL;
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    int n = image_host_root()      ? asprintf(&path, "/var/lib/fonda/images")
            : data && *data == '/' ? asprintf(&path, "%s/fonda/images", data)
                                   : asprintf(&path, "%s/.local/share/fonda/images", home ? home : "");
    return n < 0 ? NULL : path;
}

static int make_folders(const char *path)
{
    char part[PATH_MAX];
    if (strlen(path) >= sizeof(part)) {
        return -ENAMETOOLONG;
    }
    strcpy(part, path);
    for (char *p = part + 1; *p; p++) {
        if (*p == '/') {
            *p = '\0';
            if (mkdir(part, 0755) < 0 && errno != EEXIST) {
                return -errno;
            }
            *p = '/';
        }
    }
    return mkdir(part, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

static void boot_id(char ret_id[static 40])
{
    auto_close int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret_id, 36);
    if (n != 36) {
        strcpy(ret_id, "unknown");
    } else {
        ret_id[36] = '\0';
    }
}

/* The machine went down before these were on the disk: what doesn't check out goes. */
static void check_unsynced(struct image_store *store, const char *list_name)
{
    auto_free char *text = NULL;
    if (fs_read_file(store->fd, list_name, IMAGE_STORE_JSON_MAX, &text, NULL, NULL) < 0) {
        return;
    }
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char digest[DIGEST_SIZE];
        if (strncmp(line, "blobs/sha256/", 13) == 0) {
            auto_close int fd = fs_open(store->fd, line, O_RDONLY, 0, FS_NO_LINKS);
            if (fd >= 0 &&
                (digest_fd(fd, digest, NULL, NULL) < 0 || strcmp(digest_hex(digest), line + 13) != 0)) {
                unlinkat(store->fd, line, 0);
            }
        } else if (strncmp(line, "layers/", 7) == 0 && !strstr(line, "..")) {
            fs_remove_tree(store->fd, line); /* unpacked again when it is needed */
        }
    }
    unlinkat(store->fd, list_name, 0);
}

static void settle(struct image_store *store)
{
    char boot[40], path[STORE_TEMP_MAX + NAME_MAX], old[STORE_TEMP_MAX];
    boot_id(boot);
    int tmp = openat(store->fd, "tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = tmp < 0 ? NULL : fdopendir(tmp);
    for (struct dirent *e; list && (e = readdir(list));) {
        struct stat st;
        if (strncmp(e->d_name, "unsynced-", 9) != 0 || fstatat(tmp, e->d_name, &st, 0) < 0) {
            continue;
        }
        snprintf(path, sizeof(path), "tmp/%s", e->d_name);
        if (strncmp(e->d_name + 9, boot, strlen(boot)) != 0) {
            check_unsynced(store, path);
        } else if (st.st_mtime + SYNC_SECONDS < time(NULL)) {
            snprintf(old, sizeof(old), "tmp/unsynced-%s-%d", boot, getpid());
            if (renameat(store->fd, path, store->fd, old) == 0 && syncfs(store->fd) == 0) {
                unlinkat(store->fd, old, 0);
            }
        }
    }
    if (list) {
        closedir(list);
    }
}

int store_note_unsynced(struct image_store *store, const char *path, struct err *err)
{
    char boot[40], name[STORE_TEMP_MAX], line[STORE_TEMP_MAX + 1];
    boot_id(boot);
    snprintf(name, sizeof(name), "tmp/unsynced-%s", boot);
    int n = snprintf(line, sizeof(line), "%s\n", path);
    auto_close int fd = openat(store->fd, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    int rc = fd < 0 ? -errno : fs_write_all(fd, line, (size_t)n);
    /* The list itself has to be there before what it names. */
    if (rc == 0 && fdatasync(fd) < 0) {
        rc = -errno;
    }
    return rc < 0 ? err_sys(err, rc, "cannot write '%s/%s'", store->path, name) : 0;
}

int image_store_open(const char *path, struct image_store **ret_store, struct err *err)
{
    static const char *const folders[] = {"blobs", "blobs/sha256", "layers", "containers", "cache", "tmp"};
    struct image_store *store = calloc(1, sizeof(*store));
    auto_free char *wanted = path ? strdup(path) : default_path();
    if (!store || !wanted) {
        free(store);
        return err_set(err, -ENOMEM, "no memory");
    }
    store->layer_max = IMAGE_LAYER_BYTES_MAX;
    store->fd = -1;
    int rc = make_folders(wanted);
    store->path = rc < 0 ? NULL : realpath(wanted, NULL);
    store->fd = store->path ? open(store->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    rc = store->fd < 0 ? -errno : 0;
    for (unsigned i = 0; rc == 0 && i < ARRAY_SIZE(folders); i++) {
        rc = mkdirat(store->fd, folders[i], 0755) < 0 && errno != EEXIST ? -errno : 0;
    }
    if (rc < 0) {
        err_sys(err, rc, "cannot open the image store '%s' (choose another by --image-store DIR)", wanted);
        image_store_close(store);
        return rc;
    }
    static const char layout[] =
        "{\"imageLayoutVersion\":\"1.0.0\"}"; /* image-layout.md, "oci-layout file" */
    if (faccessat(store->fd, "oci-layout", F_OK, 0) < 0) {
        rc = fs_write_file(store->fd, "oci-layout", layout, sizeof(layout) - 1, err);
    }
    if (rc < 0) {
        image_store_close(store);
        return rc;
    }
    settle(store);
    *ret_store = store;
    return 0;
}

void image_store_close(struct image_store *store)
{
    if (store) {
        if (store->fd >= 0) {
            close(store->fd);
        }
        free(store->path);
        free(store);
    }
}

void image_store_set_layer_max(struct image_store *store, uint64_t bytes)
{
    store->layer_max = bytes;
}

const char *image_store_path(const struct image_store *store)
{
    return store->path;
}

/* ---- locks ---- */

static int lock_name(struct image_store *store, const char *name, int how, struct err *err)
{
    int fd = openat(store->fd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot open '%s/%s'", store->path, name);
    }
    int rc;
    do {
        rc = flock(fd, how) < 0 ? -errno : 0;
    } while (rc == -EINTR);
    if (rc < 0) {
        close(fd);
        return rc == -EWOULDBLOCK ? rc : err_sys(err, rc, "cannot lock '%s/%s'", store->path, name);
    }
    return fd;
}

int store_lock(struct image_store *store, bool alone, bool wait, struct err *err)
{
    return lock_name(store, "lock", (alone ? LOCK_EX : LOCK_SH) | (wait ? 0 : LOCK_NB), err);
}

int store_lock_file(struct image_store *store, const char *name, struct err *err)
{
    return lock_name(store, name, LOCK_EX, err);
}

/* ---- blobs ---- */

static void blob_path(const char *digest, char path[static STORE_TEMP_MAX])
{
    snprintf(path, STORE_TEMP_MAX, "blobs/sha256/%s", digest_hex(digest));
}

bool store_has_blob(struct image_store *store, const char *digest)
{
    char path[STORE_TEMP_MAX];
    blob_path(digest, path);
    return faccessat(store->fd, path, F_OK, 0) == 0;
}

int store_open_blob(struct image_store *store, const char *digest, uint64_t *ret_size, struct err *err)
{
    char path[STORE_TEMP_MAX];
    struct stat st;
    blob_path(digest, path);
    int fd = openat(store->fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "the store has no blob %.19s", digest);
    }
    if (ret_size) {
        *ret_size = (uint64_t)st.st_size;
    }
    return fd;
}

int store_read_blob(struct image_store *store, const struct descriptor *d, uint64_t max, char **ret_text,
                    size_t *ret_size, struct err *err)
{
    char path[STORE_TEMP_MAX], digest[DIGEST_SIZE];
    blob_path(d->digest, path);
    auto_free char *text = NULL;
    size_t size = 0;
    int rc = fs_read_file(store->fd, path, max, &text, &size, err);
    if (rc < 0) {
        return rc;
    }
    if (digest_bytes(text, size, digest) < 0 || strcmp(digest, d->digest) != 0) {
        return err_set(err, -EUCLEAN,
                       "the store's blob %.19s is damaged: remove '%s/%s' and pull the image again",
                       d->digest, store->path, path);
    }
    *ret_text = text;
    *ret_size = size;
    text = NULL;
    return 0;
}

int store_put_blob(struct image_store *store, const void *data, size_t size,
                   char ret_digest[static DIGEST_SIZE], struct err *err)
{
    char path[STORE_TEMP_MAX];
    if (digest_bytes(data, size, ret_digest) < 0) {
        return err_set(err, -ENOMEM, "no memory");
    }
    blob_path(ret_digest, path);
    return fs_write_file(store->fd, path, data, size, err);
}

int store_temp(struct image_store *store, char ret_name[static STORE_TEMP_MAX], struct err *err)
{
    static unsigned serial;
    snprintf(ret_name, STORE_TEMP_MAX, "tmp/new-%d-%u", getpid(),
             __atomic_fetch_add(&serial, 1, __ATOMIC_RELAXED));
    unlinkat(store->fd, ret_name, 0);
    int fd = openat(store->fd, ret_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    return fd < 0 ? err_sys(err, -errno, "cannot write to the image store '%s'", store->path) : fd;
}

int store_adopt_blob(struct image_store *store, const char *name, const char *digest, struct err *err)
{
    char path[STORE_TEMP_MAX];
    blob_path(digest, path);
    int rc = store_note_unsynced(store, path, err);
    if (rc == 0 && renameat(store->fd, name, store->fd, path) < 0) {
        rc = err_sys(err, -errno, "cannot rename '%s' in the image store", name);
    }
    return rc;
}

/* ---- layers ---- */

void store_layer_path(const char *chain_id, char ret_path[static STORE_LAYER_MAX])
{
    snprintf(ret_path, STORE_LAYER_MAX, "layers/%s/diff", digest_hex(chain_id));
}

bool store_has_layer(struct image_store *store, const char *chain_id)
{
    char path[STORE_LAYER_MAX];
    store_layer_path(chain_id, path);
    return faccessat(store->fd, path, F_OK, 0) == 0;
}

/* ---- the table of names ---- */

static int load_table(struct image_store *store, json_t **ret_root, struct err *err)
{
    auto_free char *text = NULL;
    size_t size;
    struct err ignored;
    int rc = fs_read_file(store->fd, "index.json", IMAGE_STORE_JSON_MAX, &text, &size, &ignored);
    if (rc == -ENOENT) {
        *ret_root =
            json_pack("{s:i, s:s, s:[]}", "schemaVersion", 2, "mediaType", MEDIA_OCI_INDEX, "manifests");
        return *ret_root ? 0 : err_set(err, -ENOMEM, "no memory");
    }
    json_error_t error = {.text = ""};
    *ret_root = rc < 0 ? NULL : json_loadb(text, size, 0, &error);
    if (!json_is_array(json_object_get(*ret_root, "manifests"))) {
        json_decref(*ret_root);
        return err_set(err, rc < 0 ? rc : -EUCLEAN, "cannot read '%s/index.json': %s", store->path,
                       rc < 0 ? ignored.text : error.text);
    }
    return 0;
}

static int save_table(struct image_store *store, json_t *root, struct err *err)
{
    auto_free char *text = json_dumps(root, JSON_INDENT(1));
    return text ? fs_write_file(store->fd, "index.json", text, strlen(text), err)
                : err_set(err, -ENOMEM, "no memory");
}

static const char *entry_name(const json_t *item)
{
    return json_string_value(json_object_get(json_object_get(item, "annotations"), REF_NAME));
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct store_entry *)a)->name, ((const struct store_entry *)b)->name);
}

int store_entries(struct image_store *store, struct store_entry **ret_entries, size_t *ret_count,
                  struct err *err)
{
    json_t *root = NULL;
    int rc = load_table(store, &root, err);
    if (rc < 0) {
        return rc;
    }
    const json_t *list = json_object_get(root, "manifests");
    struct store_entry *entries = calloc(json_array_size(list) + 1, sizeof(*entries));
    size_t count = 0;
    for (size_t i = 0; entries && i < json_array_size(list); i++) {
        const char *name = entry_name(json_array_get(list, i));
        if (name && strlen(name) < REF_TEXT_MAX &&
            descriptor_parse(json_array_get(list, i), "an image in the store", &entries[count].manifest,
                             NULL) == 0) {
            strcpy(entries[count++].name, name);
        }
    }
    json_decref(root);
    if (!entries) {
        return err_set(err, -ENOMEM, "no memory");
    }
    qsort(entries, count, sizeof(*entries), by_name);
    *ret_entries = entries;
    *ret_count = count;
    return 0;
}

/* Takes name out of the table and puts it in again with manifest (NULL: not). -ENOENT: it wasn't there and
 * isn't put in. */
static int change_table(struct image_store *store, const char *name, const struct descriptor *manifest,
                        struct err *err)
{
    auto_close int lock = store_lock_file(store, "index.lock", err);
    json_t *root = NULL;
    int rc = lock < 0 ? lock : load_table(store, &root, err);
    if (rc < 0) {
        return rc;
    }
    json_t *list = json_object_get(root, "manifests");
    bool found = false;
    for (size_t i = json_array_size(list); i-- > 0;) {
        const char *other = entry_name(json_array_get(list, i));
        if (other && strcmp(other, name) == 0) {
            json_array_remove(list, i);
            found = true;
        }
    }
    if (manifest) {
        json_t *item = descriptor_json(manifest);
        json_object_set_new(item, "annotations", json_pack("{s:s}", REF_NAME, name));
        rc = json_array_append_new(list, item) < 0 ? err_set(err, -ENOMEM, "no memory") : 0;
    } else if (!found) {
        rc = err_set(err, -ENOENT, "no image is called '%s' (see 'fonda image list')", image_ref_short(name));
    }
    rc = rc < 0 ? rc : save_table(store, root, err);
    json_decref(root);
    return rc;
}

int store_tag(struct image_store *store, const char *name, const struct descriptor *manifest, struct err *err)
{
    return change_table(store, name, manifest, err);
}

int store_untag(struct image_store *store, const char *name, struct err *err)
{
    return change_table(store, name, NULL, err);
}

/* Whether the image's config (its "image ID") begins with hex. */
static bool config_matches(struct image_store *store, const struct descriptor *manifest, const char *hex)
{
    auto_free char *text = NULL;
    size_t size;
    struct image_manifest m;
    if (store_read_blob(store, manifest, IMAGE_MANIFEST_MAX, &text, &size, NULL) < 0 ||
        manifest_parse(text, size, manifest->media_type, &m, NULL) < 0) {
        return false;
    }
    bool match = strncmp(digest_hex(m.config.digest), hex, strlen(hex)) == 0;
    manifest_free(&m);
    return match;
}

int store_find(struct image_store *store, const char *text, struct store_entry *ret_entry, struct err *err)
{
    auto_free struct store_entry *entries = NULL;
    size_t count = 0;
    int rc = store_entries(store, &entries, &count, err);
    if (rc < 0) {
        return rc;
    }
    const char *hex = strncmp(text, "sha256:", 7) == 0 ? text + 7 : text;
    bool is_id = strlen(hex) >= STORE_ID_MIN && strlen(hex) <= DIGEST_HEX &&
                 strspn(hex, "0123456789abcdef") == strlen(hex);
    struct image_ref ref;
    char name[REF_TEXT_MAX] = "";
    rc = image_ref_parse(text, &ref, err);
    if (rc == 0) {
        image_ref_format(&ref, name);
    } else if (!is_id) {
        return rc;
    }
    for (size_t i = 0; i < count; i++) {
        if (strcmp(entries[i].name, name) == 0) {
            *ret_entry = entries[i];
            return 0;
        }
    }
    const struct store_entry *found = NULL;
    for (size_t i = 0; is_id && i < count; i++) {
        if (strncmp(digest_hex(entries[i].manifest.digest), hex, strlen(hex)) == 0 ||
            config_matches(store, &entries[i].manifest, hex)) {
            if (found && strcmp(found->manifest.digest, entries[i].manifest.digest) != 0) {
                return err_set(err, -EINVAL,
                               "'%s' is the beginning of more than one image's id: write more digits", text);
            }
            found = &entries[i];
        }
    }
    /* NAME@DIGEST names an image that was pulled by its tag, too. */
    for (size_t i = 0; !found && ref.digest[0] && name[0] && i < count; i++) {
        if (strcmp(entries[i].manifest.digest, ref.digest) == 0) {
            found = &entries[i];
        }
    }
    if (!found) {
        return err_set(err, -ENOENT,
                       "no image '%s' in the store (see 'fonda image list', or 'fonda image pull %s')", text,
                       text);
    }
    *ret_entry = *found;
    return 0;
}
