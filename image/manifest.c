/*
 * Reading and writing of the JSON documents of an image. Text from outside is bounded by the callers
 * (limits.h); jansson bounds the nesting. Every digest and size is checked here, once.
 */
#include "image/manifest.h"

#include <errno.h>
#include <string.h>
#include <sys/utsname.h>

#include "image/limits.h"

static const struct {
    const char *uname, *arch, *variant;
} architectures[] = {
    {"x86_64", "amd64", ""}, {"aarch64", "arm64", "v8"}, {"riscv64", "riscv64", ""}, {"armv7l", "arm", "v7"},
    {"i686", "386", ""},     {"ppc64le", "ppc64le", ""}, {"s390x", "s390x", ""},
};

int platform_parse(const char *text, struct platform *ret_platform, struct err *err)
{
    struct platform platform = {.os = "linux"};
    if (!text) {
        struct utsname host;
        uname(&host);
        snprintf(platform.arch, sizeof(platform.arch), "%.31s", host.machine);
        for (unsigned i = 0; i < ARRAY_SIZE(architectures); i++) {
            if (strcmp(architectures[i].uname, host.machine) == 0) {
                strcpy(platform.arch, architectures[i].arch);
                strcpy(platform.variant, architectures[i].variant);
            }
        }
        *ret_platform = platform;
        return 0;
    }
    const char *parts[3] = {text, NULL, NULL};
    size_t lengths[3] = {strcspn(text, "/"), 0, 0};
    unsigned count = 1;
    for (const char *p = text + lengths[0]; *p == '/' && count < 3; p += lengths[count++]) {
        parts[count] = ++p;
        lengths[count] = strcspn(p, "/");
    }
    unsigned total = 0;
    for (unsigned i = 0; i < count; i++) {
        total += (unsigned)lengths[i] + (i > 0);
        if (lengths[i] == 0 || lengths[i] > 31) {
            total = 0;
            break;
        }
    }
    if (total == 0 || text[total]) {
        return err_set(err, -EINVAL,
                       "'%s' is not a platform: write OS/ARCHITECTURE[/VARIANT], such as linux/arm64", text);
    }
    if (count > 1) {
        snprintf(platform.os, sizeof(platform.os), "%.*s", (int)lengths[0], parts[0]);
        parts[0] = parts[1], lengths[0] = lengths[1];
    }
    snprintf(platform.arch, sizeof(platform.arch), "%.*s", (int)lengths[0], parts[0]);
    if (count > 2) {
        snprintf(platform.variant, sizeof(platform.variant), "%.*s", (int)lengths[2], parts[2]);
    }
    *ret_platform = platform;
    return 0;
}

void platform_format(const struct platform *platform, char ret_text[static 100])
{
    snprintf(ret_text, 100, "%s/%s%s%s", platform->os, platform->arch, platform->variant[0] ? "/" : "",
             platform->variant);
}

static json_t *load(const char *text, size_t size, const char *what, struct err *err)
{
    json_error_t error;
    json_t *root = json_loadb(text, size, 0, &error);
    if (!root) {
        err_set(err, -EINVAL, "%s is not valid JSON: line %d: %s", what, error.line, error.text);
        return NULL;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        err_set(err, -EINVAL, "%s is not a JSON object", what);
        return NULL;
    }
    return root;
}

static int copy_text(const json_t *json, const char *what, char *buf, size_t size, struct err *err)
{
    const char *text = json_string_value(json);
    if (!text) {
        text = "";
    }
    if (strlen(text) >= size) {
        return err_set(err, -EINVAL, "%s is too long: '%.40s...'", what, text);
    }
    strcpy(buf, text);
    return 0;
}

int descriptor_parse(const json_t *json, const char *what, struct descriptor *ret_descriptor, struct err *err)
{
    struct descriptor d;
    if (!json_is_object(json)) {
        return err_set(err, -EINVAL, "%s is missing or not an object", what);
    }
    int rc = copy_text(json_object_get(json, "mediaType"), "a media type", d.media_type, sizeof(d.media_type),
                       err);
    if (rc < 0) {
        return rc;
    }
    const char *digest = json_string_value(json_object_get(json, "digest"));
    rc = digest_check(digest, what, err);
    if (rc < 0) {
        return rc;
    }
    strcpy(d.digest, digest);
    const json_t *size = json_object_get(json, "size");
    json_int_t bytes = json_integer_value(size);
    if (!json_is_integer(size) || bytes < 0 || (uint64_t)bytes > IMAGE_BLOB_MAX) {
        return err_set(err, -EINVAL, "%s has no size, or one beyond IMAGE_BLOB_MAX", what);
    }
    d.size_bytes = (uint64_t)bytes;
    *ret_descriptor = d;
    return 0;
}

json_t *descriptor_json(const struct descriptor *d)
{
    return json_pack("{s:s, s:s, s:I}", "mediaType", d->media_type, "digest", d->digest, "size",
                     (json_int_t)d->size_bytes);
}

int document_kind(const char *text, size_t size, const char *media_type, enum document_kind *ret_kind,
                  struct err *err)
{
    json_t *root = load(text, size, "the manifest", err);
    if (!root) {
        return -EINVAL;
    }
    const char *own = json_string_value(json_object_get(root, "mediaType"));
    const char *type = own ? own : media_type ? media_type : "";
    int rc = 0;
    if (strcmp(type, MEDIA_OCI_INDEX) == 0 || strcmp(type, MEDIA_DOCKER_LIST) == 0) {
        *ret_kind = DOCUMENT_INDEX;
    } else if (strcmp(type, MEDIA_OCI_MANIFEST) == 0 || strcmp(type, MEDIA_DOCKER_MANIFEST) == 0) {
        *ret_kind = DOCUMENT_MANIFEST;
    } else if (json_object_get(root, "fsLayers")) {
        rc = err_set(
            err, -ENOTSUP,
            "the image has a manifest of Docker's schema 1, which is not supported: push it anew with a "
            "current tool");
    } else if (json_is_array(json_object_get(root, "manifests"))) {
        *ret_kind = DOCUMENT_INDEX;
    } else if (json_is_array(json_object_get(root, "layers"))) {
        *ret_kind = DOCUMENT_MANIFEST;
    } else {
        rc = err_set(err, -ENOTSUP, "the document is neither a manifest nor an index (media type '%.80s')",
                     type);
    }
    json_decref(root);
    return rc;
}

int manifest_parse(const char *text, size_t size, const char *media_type, struct image_manifest *ret_manifest,
                   struct err *err)
{
    struct image_manifest m = {.json = load(text, size, "the manifest", err)};
    if (!m.json) {
        return -EINVAL;
    }
    const json_t *type = json_object_get(m.json, "mediaType");
    const json_t *version = json_object_get(m.json, "schemaVersion");
    const json_t *layers = json_object_get(m.json, "layers");
    int rc = copy_text(type, "the manifest's media type", m.media_type, sizeof(m.media_type), err);
    if (rc == 0 && !m.media_type[0]) {
        snprintf(m.media_type, sizeof(m.media_type), "%.127s", media_type ? media_type : MEDIA_OCI_MANIFEST);
    }
    if (rc == 0 && json_integer_value(version) != 2) {
        rc = err_set(err, -ENOTSUP, "the manifest's schemaVersion is not 2");
    }
    if (rc == 0) {
        rc = descriptor_parse(json_object_get(m.json, "config"), "the manifest's config", &m.config, err);
    }
    if (rc == 0 && m.config.size_bytes > IMAGE_CONFIG_MAX) {
        rc = err_set(err, -E2BIG, "the image's config is larger than IMAGE_CONFIG_MAX");
    }
    if (rc == 0 && (!json_is_array(layers) || json_array_size(layers) > IMAGE_LAYERS_MAX)) {
        rc = err_set(err, -EINVAL, "the manifest has no layers, or more than IMAGE_LAYERS_MAX (%u)",
                     IMAGE_LAYERS_MAX);
    }
    if (rc == 0) {
        m.layers = calloc(json_array_size(layers) + 1, sizeof(*m.layers));
        rc = m.layers ? 0 : err_set(err, -ENOMEM, "no memory");
    }
    for (size_t i = 0; rc == 0 && i < json_array_size(layers); i++) {
        char what[64];
        snprintf(what, sizeof(what), "layer %zu of the manifest", i);
        rc = descriptor_parse(json_array_get(layers, i), what, &m.layers[i], err);
        m.layer_count++;
    }
    if (rc < 0) {
        manifest_free(&m);
        return rc;
    }
    *ret_manifest = m;
    return 0;
}

void manifest_free(struct image_manifest *manifest)
{
    free(manifest->layers);
    json_decref(manifest->json);
    *manifest = (struct image_manifest){0};
}

int index_parse(const char *text, size_t size, struct image_index *ret_index, struct err *err)
{
    struct image_index index = {.json = load(text, size, "the index", err)};
    if (!index.json) {
        return -EINVAL;
    }
    const json_t *list = json_object_get(index.json, "manifests");
    int rc = 0;
    if (!json_is_array(list) || json_array_size(list) > IMAGE_INDEX_ENTRIES_MAX) {
        rc = err_set(err, -EINVAL, "the index has no manifests, or more than IMAGE_INDEX_ENTRIES_MAX (%u)",
                     IMAGE_INDEX_ENTRIES_MAX);
    }
    if (rc == 0) {
        index.entries = calloc(json_array_size(list) + 1, sizeof(*index.entries));
        rc = index.entries ? 0 : err_set(err, -ENOMEM, "no memory");
    }
    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
        struct index_entry *entry = &index.entries[index.count++];
        const json_t *item = json_array_get(list, i), *p = json_object_get(item, "platform");
        rc = descriptor_parse(item, "an entry of the index", &entry->descriptor, err);
        if (rc == 0 && p) {
            struct platform *to = &entry->platform;
            rc = copy_text(json_object_get(p, "os"), "a platform", to->os, sizeof(to->os), err);
            rc = rc < 0 ? rc
                        : copy_text(json_object_get(p, "architecture"), "a platform", to->arch,
                                    sizeof(to->arch), err);
            rc = rc < 0 ? rc
                        : copy_text(json_object_get(p, "variant"), "a platform", to->variant,
                                    sizeof(to->variant), err);
        }
    }
    if (rc < 0) {
        index_free(&index);
        return rc;
    }
    *ret_index = index;
    return 0;
}

void index_free(struct image_index *index)
{
    free(index->entries);
    json_decref(index->json);
    *index = (struct image_index){0};
}

const struct index_entry *index_find(const struct image_index *index, const struct platform *platform)
{
    const struct index_entry *found = NULL;
    int best = -1;
    for (unsigned i = 0; i < index->count; i++) {
        const struct platform *p = &index->entries[i].platform;
        if (p->os[0] && (strcmp(p->os, platform->os) != 0 || strcmp(p->arch, platform->arch) != 0)) {
            continue;
        }
        int score = p->os[0] == '\0'                                                                  ? 0
                    : strcmp(p->variant, platform->variant) == 0                                      ? 3
                    : !platform->variant[0] || !p->variant[0]                                         ? 2
                    : strcmp(platform->arch, "arm") == 0 && strcmp(p->variant, platform->variant) > 0 ? -1
                                                                                                      : 1;
        if (score > best) {
            best = score;
            found = &index->entries[i];
        }
    }
    return found;
}

static const char **strings(const json_t *list)
{
    size_t count = json_is_array(list) ? json_array_size(list) : 0, used = 0;
    const char **result = calloc(count + 1, sizeof(*result));
    for (size_t i = 0; result && i < count; i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (text) {
            result[used++] = text;
        }
    }
    return result;
}

static const char **keys(json_t *object)
{
    const char **result = calloc(json_object_size(object) + 1, sizeof(*result)), *key;
    json_t *value;
    size_t used = 0;
    if (result) {
        json_object_foreach(object, key, value)
        {
            result[used++] = key;
        }
    }
    return result;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static uint64_t nanoseconds(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));
    return value > 0 ? (uint64_t)value : 0;
}

static int parse_diff_ids(struct image_config *c, struct err *err)
{
    const json_t *list = json_object_get(json_object_get(c->json, "rootfs"), "diff_ids");
    size_t count = json_array_size(list);
    if (count > IMAGE_LAYERS_MAX) {
        return err_set(err, -E2BIG, "the image's config has more layers than IMAGE_LAYERS_MAX (%u)",
                       IMAGE_LAYERS_MAX);
    }
    c->diff_ids = calloc(count + 1, sizeof(*c->diff_ids));
    if (!c->diff_ids) {
        return err_set(err, -ENOMEM, "no memory");
    }
    for (size_t i = 0; i < count; i++) {
        const char *id = json_string_value(json_array_get(list, i));
        int rc = digest_check(id, "a layer in the image's config", err);
        if (rc < 0) {
            return rc;
        }
        strcpy(c->diff_ids[c->diff_count++], id);
    }
    return 0;
}

int config_parse_image(const char *text, size_t size, struct image_config *ret_config, struct err *err)
{
    struct image_config c = {.json = load(text, size, "the image's config", err)};
    if (!c.json) {
        return -EINVAL;
    }
    json_t *run = json_object_get(c.json, "config"), *health = json_object_get(run, "Healthcheck");
    int rc = copy_text(json_object_get(c.json, "os"), "the config's os", c.platform.os, sizeof(c.platform.os),
                       err);
    rc = rc < 0 ? rc
                : copy_text(json_object_get(c.json, "architecture"), "the config's architecture",
                            c.platform.arch, sizeof(c.platform.arch), err);
    rc = rc < 0 ? rc
                : copy_text(json_object_get(c.json, "variant"), "the config's variant", c.platform.variant,
                            sizeof(c.platform.variant), err);
    rc = rc < 0 ? rc : parse_diff_ids(&c, err);
    if (rc == 0) {
        c.env = strings(json_object_get(run, "Env"));
        c.cmd = strings(json_object_get(run, "Cmd"));
        c.entrypoint = strings(json_object_get(run, "Entrypoint"));
        c.shell = strings(json_object_get(run, "Shell"));
        c.onbuild = strings(json_object_get(run, "OnBuild"));
        c.volumes = keys(json_object_get(run, "Volumes"));
        c.ports = keys(json_object_get(run, "ExposedPorts"));
        c.health.test = strings(json_object_get(health, "Test"));
        if (!c.env || !c.cmd || !c.entrypoint || !c.shell || !c.onbuild || !c.volumes || !c.ports ||
            !c.health.test) {
            rc = err_set(err, -ENOMEM, "no memory");
        }
    }
    if (rc < 0) {
        image_config_free(&c);
        return rc;
    }
    c.user = text_of(run, "User");
    c.working_dir = text_of(run, "WorkingDir");
    c.stop_signal = text_of(run, "StopSignal");
    c.health.interval_ns = nanoseconds(health, "Interval");
    c.health.timeout_ns = nanoseconds(health, "Timeout");
    c.health.start_period_ns = nanoseconds(health, "StartPeriod");
    c.health.start_interval_ns = nanoseconds(health, "StartInterval");
    c.health.retries = (unsigned)MIN(nanoseconds(health, "Retries"), 1000000u);
    *ret_config = c;
    return 0;
}

void image_config_free(struct image_config *c)
{
    free(c->env);
    free(c->cmd);
    free(c->entrypoint);
    free(c->shell);
    free(c->onbuild);
    free(c->volumes);
    free(c->ports);
    free(c->health.test);
    free(c->diff_ids);
    json_decref(c->json);
    *c = (struct image_config){0};
}

char *manifest_write(const struct descriptor *config, const struct descriptor *layers, unsigned count,
                     bool docker)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < count; i++) {
        json_array_append_new(list, descriptor_json(&layers[i]));
    }
    json_t *root = json_pack("{s:i, s:s, s:o, s:o}", "schemaVersion", 2, "mediaType",
                             docker ? MEDIA_DOCKER_MANIFEST : MEDIA_OCI_MANIFEST, "config",
                             descriptor_json(config), "layers", list);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}
