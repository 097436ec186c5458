/*
 * Builds an image from a Containerfile. A stage is an image that grows: steps that change files run in a
 * writable layer, which is packed, put into the store and unpacked as the next layer; the others change the
 * configuration only.
 *
 * The cache: cache/KEY names the image that a step made. The key is the digest of the chain of layers below,
 * the configuration as it was, the step's words with variables replaced, the build arguments that it can see,
 * and the contents of what it copies.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"
#include "image/build_int.h"
#include "image/fs.h"
#include "image/layer.h"
#include "image/limits.h"

#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* ---- steps that make a layer ---- */

typedef int (*work_fn)(struct builder *b, struct image_rootfs *rootfs, void *opaque);

static void cache_key(struct builder *b, const char *words, const char *content,
                      char ret_key[static DIGEST_SIZE])
{
    struct digest_state state;
    auto_free char *config = json_dumps(build_config(b), JSON_COMPACT | JSON_SORT_KEYS);
    auto_free char *args = json_dumps(b->args, JSON_COMPACT | JSON_SORT_KEYS);
    const char *below =
        b->image->config.diff_count ? b->image->chain_ids[b->image->config.diff_count - 1] : "scratch";
    const char *const parts[] = {
        "fonda build 1", below,  b->image->config.platform.arch, config ? config : "", args ? args : "",
        words,           content};
    if (digest_init(&state) < 0) {
        strcpy(ret_key, "");
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
        digest_update(&state, parts[i], strlen(parts[i]) + 1);
    }
    digest_final(&state, ret_key);
    digest_done(&state);
}

/* The stage goes on with another image, whose configuration is doc. */
static int move_to(struct builder *b, const struct descriptor *manifest)
{
    struct image *image = NULL;
    int rc = image_from_manifest(b->store, "", manifest, &image, b->err);
    rc = rc < 0 ? rc : image_unpack(b->store, image, b->err);
    if (rc < 0) {
        image_free(image);
        return rc;
    }
    image_free(b->image);
    b->image = image;
    json_decref(b->doc);
    b->doc = json_deep_copy(image->config.json);
    return 0;
}

static int from_cache(struct builder *b, const char *key)
{
    char path[STORE_TEMP_MAX];
    auto_free char *text = NULL;
    struct descriptor d;
    snprintf(path, sizeof(path), "cache/%s", digest_hex(key));
    if (b->build->no_cache || fs_read_file(b->store->fd, path, IMAGE_STORE_JSON_MAX, &text, NULL, NULL) < 0) {
        return 0;
    }
    json_t *root = json_loads(text, 0, NULL);
    int rc = descriptor_parse(root, "a build step", &d, NULL);
    json_decref(root);
    struct err *real = b->err, ignored = {0};
    b->err = &ignored;
    rc = rc < 0 ? rc : move_to(b, &d);
    b->err = real;
    return rc == 0;
}

static int make_rootfs(struct builder *b, struct image *image, struct image_rootfs **ret_rootfs)
{
    char name[64];
    snprintf(name, sizeof(name), "build-%d-%u", getpid(), b->serial++);
    (void)image_rootfs_remove(b->store, name, NULL);
    int rc = image_rootfs_create(b->store, image, name, ret_rootfs, b->err);
    return rc < 0 ? rc : image_rootfs_mount(*ret_rootfs, NULL, b->err);
}

static void drop_rootfs(struct builder *b, struct image_rootfs *rootfs)
{
    if (rootfs) {
        (void)image_rootfs_unmount(rootfs, NULL);
        (void)image_rootfs_remove(b->store, rootfs->name, NULL);
        image_rootfs_close(rootfs);
    }
}

static int layer_step(struct builder *b, const char *words, const char *content, work_fn work, void *opaque)
{
    char key[DIGEST_SIZE], diff_id[DIGEST_SIZE], path[STORE_TEMP_MAX];
    struct image_rootfs *rootfs = NULL;
    struct descriptor layer, manifest;
    cache_key(b, words, content, key);
    if (from_cache(b, key)) {
        if (b->build->line) {
            b->build->line(b->build->opaque, "  from the cache");
        }
        return 0;
    }
    int rc = make_rootfs(b, b->image, &rootfs);
    rc = rc < 0 ? rc : work(b, rootfs, opaque);
    if (rc == 0 && rootfs->mounted) {
        rc = image_rootfs_unmount(rootfs, b->err);
    }
    rc = rc < 0 ? rc : image_pack_rootfs(b->store, rootfs, false, &layer, diff_id, b->err);
    drop_rootfs(b, rootfs);
    rc = rc < 0 ? rc : image_document_add(b->doc, diff_id, words, NULL, NULL);
    rc = rc < 0 ? rc : image_write_over(b->store, b->image, &layer, b->doc, &manifest, b->err);
    rc = rc < 0 ? rc : move_to(b, &manifest);
    if (rc == 0 && *key) {
        json_t *record = descriptor_json(&manifest);
        auto_free char *text = json_dumps(record, 0);
        json_decref(record);
        snprintf(path, sizeof(path), "cache/%s", digest_hex(key));
        rc = text ? fs_write_file(b->store->fd, path, text, strlen(text), b->err) : -ENOMEM;
    }
    return rc;
}

static int work_run(struct builder *b, struct image_rootfs *rootfs, void *opaque)
{
    const struct cf_step *step = opaque;
    json_t *config = build_config(b), *env = json_object_get(config, "Env"), *value;
    const char *key, *cwd = json_string_value(json_object_get(config, "WorkingDir"));
    json_t *all = json_is_array(env) ? json_copy(env) : json_array();
    if (!build_from_env(all, "PATH", 4)) {
        json_array_append_new(all, json_string(DEFAULT_PATH));
    }
    json_object_foreach(b->args, key, value)
    {
        if (!build_from_env(all, key, strlen(key))) {
            json_array_append_new(all, json_sprintf("%s=%s", key, json_string_value(value)));
        }
    }
    auto_free char *script = NULL;
    if (step->heredoc_count) {
        const struct cf_heredoc *doc = &step->heredocs[0];
        bool alone =
            step->heredoc_count == 1 && strncmp(step->text, "<<", 2) == 0 && !strpbrk(step->text, " \t");
        if (alone) {
            script = strdup(doc->text);
        } else {
            script = strdup(step->text);
            for (unsigned i = 0; script && i < step->heredoc_count; i++) {
                char *more = NULL;
                if (asprintf(&more, "%s\n%s%s", script, step->heredocs[i].text, step->heredocs[i].name) < 0) {
                    more = NULL;
                }
                free(script);
                script = more;
            }
        }
    }
    json_t *command = step->json && !script ? build_strings(step->json)
                                            : build_shell_command(b, script ? script : step->text);
    auto_free const char **args = calloc(json_array_size(command) + 1, sizeof(char *));
    auto_free const char **vars = calloc(json_array_size(all) + 1, sizeof(char *));
    for (size_t i = 0; args && i < json_array_size(command); i++) {
        args[i] = json_string_value(json_array_get(command, i));
    }
    for (size_t i = 0; vars && i < json_array_size(all); i++) {
        vars[i] = json_string_value(json_array_get(all, i));
    }
    struct run run = {.runtime = b->build->runtime,
                      .user = json_string_value(json_object_get(config, "User")),
                      .cwd = cwd && *cwd ? cwd : "/",
                      .args = (char *const *)args,
                      .env = vars,
                      .network_none = b->build->network_none};
    int rc = args && vars ? build_run(b->store, rootfs, &run, b->err) : err_set(b->err, -ENOMEM, "no memory");
    json_decref(command);
    json_decref(all);
    return rc;
}

struct copy_call {
    struct copy copy;
    const struct cf_step *step;
    char **words; /* sources and the destination */
    unsigned count;
    const char *chown;
    char dest[PATH_MAX];
};

static int copy_all(struct builder *b, struct copy_call *call, int root)
{
    int rc = 0;
    unsigned plain = 0;
    char *sources[CONTAINERFILE_WORDS_MAX];
    for (unsigned i = 0; rc == 0 && i + 1 < call->count; i++) {
        const struct cf_heredoc *doc = NULL;
        for (unsigned j = 0; j < call->step->heredoc_count && !doc; j++) {
            const struct cf_heredoc *d = &call->step->heredocs[j];
            doc = strncmp(call->words[i], "<<", 2) == 0 && strstr(call->words[i], d->name) ? d : NULL;
        }
        if (doc) {
            char *text = NULL;
            rc = doc->expand ? cf_expand(doc->text, 0, build_lookup, b, &text, b->err) : 0;
            rc = rc < 0 ? rc
                        : build_copy_text(&call->copy, doc->name, text ? text : doc->text, root, call->dest,
                                          b->err);
            free(text);
        } else {
            sources[plain++] = call->words[i];
        }
    }
    if (rc == 0 && plain > 1 && call->dest[strlen(call->dest) - 1] != '/') {
        rc = err_set(b->err, -EINVAL, "with more than one source, '%s' has to end with '/'", call->dest);
    }
    return rc < 0 || !plain ? rc : build_copy(&call->copy, sources, plain, root, call->dest, b->err);
}

static int work_copy(struct builder *b, struct image_rootfs *rootfs, void *opaque)
{
    struct copy_call *call = opaque;
    auto_close int root = open(rootfs->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = root < 0 ? err_sys(b->err, -errno, "cannot open '%s'", rootfs->dir) : 0;
    if (rc == 0 && call->chown) {
        rc = build_find_user(root, call->chown, &call->copy.uid, &call->copy.gid, b->err);
        if (rc == 0 && !strchr(call->chown, ':')) {
            call->copy.gid =
                call->copy.uid; /* as Docker has it: COPY --chown=USER means the same number for the group */
        }
    }
    return rc < 0 ? rc : copy_all(b, call, root);
}

static int find_stage(struct builder *b, const char *name, unsigned before)
{
    for (unsigned i = before; i-- > 0;) {
        if (b->stages[i].name && *b->stages[i].name && strcasecmp(b->stages[i].name, name) == 0) {
            return (int)i;
        }
    }
    uint64_t number;
    return parse_uint(name, &number, NULL) == 0 && number < before ? (int)number : -1;
}

static int do_copy(struct builder *b, const struct cf_step *step, unsigned stage)
{
    struct copy_call call = {.step = step,
                             .copy = {.source = b->context,
                                      .ignore = b->ignore,
                                      .mode = -1,
                                      .layer_max = b->store->layer_max,
                                      .unpack = step->kind == CF_ADD}};
    const char *from = cf_flag(step, "from"), *mode = cf_flag(step, "chmod"), *cwd;
    struct image_rootfs *other = NULL;
    struct image *image = NULL;
    char **raw = NULL, content[DIGEST_SIZE] = "";
    int other_fd = -1;
    auto_free char *chown = NULL;
    int rc = step->json ? 0 : cf_split(step->text, b->file.escape, &raw, b->err);
    char **words = step->json ? step->json : raw;
    while (rc == 0 && words[call.count]) {
        call.count++;
    }
    if (rc == 0 && call.count < 2) {
        rc = err_set(b->err, -EINVAL, "a source and a destination are needed");
    }
    call.words = calloc(call.count + 1, sizeof(*call.words));
    for (unsigned i = 0; rc == 0 && i < call.count; i++) {
        rc = strncmp(words[i], "<<", 2) == 0
                 ? (call.words[i] = strdup(words[i])) ? 0 : -ENOMEM
                 : cf_expand(words[i], b->file.escape, build_lookup, b, &call.words[i], b->err);
        if (rc == 0 && step->kind == CF_ADD &&
            (strncmp(call.words[i], "http://", 7) == 0 || strncmp(call.words[i], "https://", 8) == 0)) {
            rc =
                err_set(b->err, -ENOTSUP,
                        "ADD of a URL is not supported: fetch it in a RUN step, or copy it into the context");
        }
    }
    if (rc == 0 && mode) {
        char *end;
        call.copy.mode = (int)strtol(mode, &end, 8);
        rc = *end || end == mode || call.copy.mode < 0 || call.copy.mode > 07777
                 ? err_set(b->err, -EINVAL, "--chmod=%s is not an octal mode such as 755", mode)
                 : 0;
    }
    if (rc == 0 && cf_flag(step, "chown")) {
        rc = cf_expand(cf_flag(step, "chown"), b->file.escape, build_lookup, b, &chown, b->err);
        call.chown = chown;
    }
    if (rc == 0) {
        cwd = json_string_value(json_object_get(build_config(b), "WorkingDir"));
        const char *dest = call.words[call.count - 1];
        if (snprintf(call.dest, sizeof(call.dest), "%s%s%s",
                     dest[0] == '/' ? ""
                     : cwd && *cwd  ? cwd
                                    : "/",
                     dest[0] == '/' ? "" : "/",
                     strcmp(dest, ".") == 0 ? "./" : dest) >= (int)sizeof(call.dest)) {
            rc = err_set(b->err, -ENAMETOOLONG, "the destination is too long");
        }
    }
    if (rc == 0 && from) {
        int index = find_stage(b, from, stage);
        rc = index >= 0 ? image_from_manifest(b->store, "", &b->stages[index].image->manifest, &image, b->err)
                        : image_get(b->store, from, b->build->options, &image, b->err);
        rc = rc < 0 ? rc : make_rootfs(b, image, &other);
        other_fd = rc < 0 ? -1 : open(other->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        call.copy.source = other_fd;
        call.copy.ignore = NULL;
        call.copy.keep_owner = !chown;
    }
    struct digest_state state = {NULL};
    if (rc == 0 && digest_init(&state) == 0) {
        call.copy.digest = &state;
        rc = copy_all(b, &call, -1);
        digest_final(&state, content);
        call.copy.digest = NULL;
    }
    digest_done(&state);
    if (rc == 0) {
        char *text = NULL;
        if (asprintf(&text, "%s %s%s%s%s%s%s%s", cf_kind_name(step->kind), from ? "--from=" : "",
                     from ? from : "", from ? " " : "", chown ? "--chown=" : "", chown ? chown : "",
                     chown ? " " : "", step->text) < 0) {
            text = NULL;
        }
        rc = text ? layer_step(b, text, content, work_copy, &call) : -ENOMEM;
        free(text);
    }
    if (other_fd >= 0) {
        close(other_fd);
    }
    drop_rootfs(b, other);
    image_free(image);
    for (unsigned i = 0; call.words && i < call.count; i++) {
        free(call.words[i]);
    }
    free(call.words);
    cf_free_words(raw);
    return rc;
}

static int do_run(struct builder *b, const struct cf_step *step)
{
    if (step->flags[0]) {
        return err_set(b->err, -ENOTSUP, "RUN --%s is not supported", step->flags[0]);
    }
    char *text = NULL;
    if (asprintf(&text, "RUN %s", step->text) < 0) {
        return -ENOMEM;
    }
    struct digest_state state;
    char content[DIGEST_SIZE] = "";
    if (digest_init(&state) == 0) {
        for (unsigned i = 0; i < step->heredoc_count; i++) {
            digest_update(&state, step->heredocs[i].text, strlen(step->heredocs[i].text) + 1);
        }
        digest_final(&state, content);
        digest_done(&state);
    }
    int rc = layer_step(b, text, content, work_run, (void *)(uintptr_t)step);
    free(text);
    return rc;
}

static int work_mkdir(struct builder *b, struct image_rootfs *rootfs, void *opaque)
{
    const char *path = opaque;
    auto_close int root = open(rootfs->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    auto_close int made = root < 0 ? -errno : fs_mkdirs(root, path + strspn(path, "/"), FS_IN_ROOT);
    return made < 0 ? err_sys(b->err, made, "cannot make '%s'", path) : 0;
}

static int do_workdir(struct builder *b, const struct cf_step *step)
{
    auto_free char *text = NULL, *path = NULL, *words = NULL;
    const char *old = json_string_value(json_object_get(build_config(b), "WorkingDir"));
    int rc = cf_expand(step->text, b->file.escape, build_lookup, b, &text, b->err);
    if (rc < 0) {
        return rc;
    }
    size_t n = strlen(text);
    while (n > 1 && text[n - 1] == '/') {
        text[--n] = '\0';
    }
    if (asprintf(&path, "%s%s%s",
                 text[0] == '/' ? ""
                 : old          ? old
                                : "",
                 text[0] == '/' || (old && strcmp(old, "/") == 0) ? "" : "/", text) < 0 ||
        asprintf(&words, "WORKDIR %s", path) < 0) {
        return -ENOMEM;
    }
    rc = json_object_set_new(build_config(b), "WorkingDir", json_string(path));
    /* The folder belongs to the image: a layer only where it isn't there. */
    int *stack = NULL;
    struct stat st;
    rc = rc < 0 ? rc : image_stack(b->store, b->image, &stack, b->err);
    bool there =
        rc == 0 && layer_lookup(stack, b->image->config.diff_count, path + strspn(path, "/"), &st) >= 0;
    layer_close_stack(stack, b->image->config.diff_count);
    return rc < 0  ? rc
           : there ? image_document_add(b->doc, NULL, words, NULL, NULL)
                   : layer_step(b, words, "", work_mkdir, path);
}

/* ---- stages ---- */

static int do_from(struct builder *b, unsigned stage)
{
    const struct cf_step *step = &b->file.steps[b->stages[stage].first];
    char **words = NULL;
    auto_free char *base = NULL;
    struct image *image = NULL;
    json_decref(b->doc);
    b->doc = NULL; /* FROM sees the global arguments only */
    int rc = cf_split(step->text, b->file.escape, &words, b->err);
    rc = rc < 0 ? rc : cf_expand(words[0], b->file.escape, build_lookup, b, &base, b->err);
    cf_free_words(words);
    if (rc < 0) {
        return rc;
    }
    struct image_options options = *b->build->options;
    const char *platform = cf_flag(step, "platform");
    options.platform = platform && !strchr(platform, '$') ? platform : options.platform;
    int other = find_stage(b, base, stage);
    struct descriptor manifest;
    if (strcmp(base, "scratch") == 0) {
        struct platform target;
        rc = platform_parse(options.platform, &target, b->err);
        json_t *doc = rc < 0 ? NULL : image_document(NULL, &target);
        rc = rc < 0 ? rc : image_write_over(b->store, NULL, NULL, doc, &manifest, b->err);
        json_decref(doc);
    } else if (other >= 0) {
        manifest = b->stages[other].image->manifest;
    } else {
        rc = image_get(b->store, base, &options, &image, b->err);
        if (rc == 0) {
            manifest = image->manifest;
        }
        image_free(image);
    }
    json_decref(b->args);
    b->args = json_object();
    rc = rc < 0 ? rc : move_to(b, &manifest);
    if (rc == 0 && b->image->config.onbuild[0]) {
        rc =
            err_set(b->err, -ENOTSUP, "the base image '%s' has ONBUILD steps, which are not supported", base);
    }
    return rc;
}

static int do_step(struct builder *b, const struct cf_step *step, unsigned stage)
{
    int rc = 0;
    switch (step->kind) {
    case CF_FROM: return do_from(b, stage);
    case CF_RUN: return do_run(b, step);
    case CF_COPY:
    case CF_ADD: return do_copy(b, step, stage);
    case CF_WORKDIR: return do_workdir(b, step);
    case CF_ARG: return build_arg_step(b, step);
    case CF_ENV:
    case CF_LABEL: rc = build_pairs(b, step); break;
    case CF_CMD:
    case CF_ENTRYPOINT: rc = build_command(b, step); break;
    case CF_EXPOSE:
    case CF_VOLUME: rc = build_keys(b, step); break;
    case CF_USER: rc = build_word(b, step, "User"); break;
    case CF_STOPSIGNAL: rc = build_word(b, step, "StopSignal"); break;
    case CF_SHELL:
        rc = step->json
                 ? json_object_set_new(build_config(b), "Shell", build_strings(step->json))
                 : err_set(b->err, -EINVAL, "SHELL wants a JSON array, such as [\"/bin/bash\", \"-c\"]");
        break;
    case CF_HEALTHCHECK: rc = build_healthcheck(b, step); break;
    case CF_MAINTAINER: rc = json_object_set_new(b->doc, "author", json_string(step->text)); break;
    case CF_ONBUILD: return err_set(b->err, -ENOTSUP, "ONBUILD is not supported: OCI images don't have it");
    }
    char *text = NULL;
    if (rc == 0 && asprintf(&text, "%s %s", cf_kind_name(step->kind), step->text) >= 0) {
        rc = image_document_add(b->doc, NULL, text, NULL, NULL);
        free(text);
    }
    return rc;
}

/* Which steps belong to which stage, and what they are called. */
static int find_stages(struct builder *b)
{
    for (unsigned i = 0; i < b->file.count; i++) {
        const struct cf_step *step = &b->file.steps[i];
        if (step->kind == CF_FROM) {
            if (b->stage_count == CONTAINERFILE_STAGES_MAX) {
                return err_set(b->err, -E2BIG, "more than CONTAINERFILE_STAGES_MAX (%u) stages",
                               CONTAINERFILE_STAGES_MAX);
            }
            char **words = NULL;
            int rc = cf_split(step->text, b->file.escape, &words, b->err);
            size_t n = 0;
            while (rc == 0 && words[n]) {
                n++;
            }
            if (rc == 0 && n != 1 && (n != 3 || strcasecmp(words[1], "AS") != 0)) {
                rc = err_set(b->err, -EINVAL, "line %u: expected FROM IMAGE [AS NAME]", step->line);
            }
            if (rc == 0) {
                struct stage *stage = &b->stages[b->stage_count++];
                *stage = (struct stage){.first = i, .name = strdup(n == 3 ? words[2] : "")};
            }
            cf_free_words(words);
            if (rc < 0) {
                return rc;
            }
        } else if (b->stage_count == 0 && step->kind != CF_ARG) {
            return err_set(b->err, -EINVAL, "line %u: %s before the first FROM", step->line,
                           cf_kind_name(step->kind));
        }
        if (b->stage_count) {
            b->stages[b->stage_count - 1].end = i + 1;
        }
    }
    return b->stage_count ? 0 : err_set(b->err, -EINVAL, "the Containerfile has no FROM");
}

static void mark_needed(struct builder *b, unsigned stage)
{
    if (b->stages[stage].needed) {
        return;
    }
    b->stages[stage].needed = true;
    for (unsigned i = b->stages[stage].first; i < b->stages[stage].end; i++) {
        const struct cf_step *step = &b->file.steps[i];
        char base[256];
        const char *name = cf_flag(step, "from");
        if (step->kind == CF_FROM) {
            snprintf(base, sizeof(base), "%.*s", (int)MIN(strcspn(step->text, " \t"), sizeof(base) - 1),
                     step->text);
            name = base;
            for (unsigned j = 0; strchr(base, '$') && j < stage; j++) {
                mark_needed(b, j); /* any of them may be meant */
            }
        }
        int other = name ? find_stage(b, name, stage) : -1;
        if (other >= 0) {
            mark_needed(b, (unsigned)other);
        }
    }
}

static int run_stage(struct builder *b, unsigned stage, unsigned *done, unsigned total)
{
    int rc = 0;
    for (unsigned i = b->stages[stage].first; rc == 0 && i < b->stages[stage].end; i++) {
        const struct cf_step *step = &b->file.steps[i];
        char line[256];
        snprintf(line, sizeof(line), "STEP %u/%u: %s %.200s", ++*done, total, cf_kind_name(step->kind),
                 step->text);
        if (b->build->line) {
            b->build->line(b->build->opaque, line);
        }
        b->err->code = 0;
        rc = do_step(b, step, stage);
        if (rc < 0) {
            if (!b->err->code) {
                err_sys(b->err, rc, "failed");
            }
            return err_prefix(b->err, "line %u: %s %.60s", step->line, cf_kind_name(step->kind), step->text);
        }
    }
    /* What only the configuration has yet becomes part of the image, too. */
    struct descriptor manifest;
    rc = image_write_over(b->store, b->image, NULL, b->doc, &manifest, b->err);
    rc = rc < 0 ? rc : move_to(b, &manifest);
    b->stages[stage].image = rc < 0 ? NULL : b->image;
    b->image = rc < 0 ? b->image : NULL;
    return rc;
}

static int load_file(struct builder *b)
{
    const struct image_build *build = b->build;
    const char *name = build->file ? build->file : "Containerfile";
    auto_free char *text = NULL;
    size_t size;
    b->context = open(build->context_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (b->context < 0) {
        return err_sys(b->err, -errno, "cannot open the context '%s'", build->context_dir);
    }
    int dir = build->file ? AT_FDCWD : b->context;
    int rc = fs_read_file(dir, name, CONTAINERFILE_BYTES_MAX, &text, &size, b->err);
    if (rc == -ENOENT && !build->file) {
        name = "Dockerfile";
        rc = fs_read_file(dir, name, CONTAINERFILE_BYTES_MAX, &text, &size, b->err);
        if (rc == -ENOENT) {
            return err_set(b->err, rc, "'%s' has neither a Containerfile nor a Dockerfile (see --file)",
                           build->context_dir);
        }
    }
    rc = rc < 0 ? rc : containerfile_parse(text, size, &b->file, b->err);
    return rc < 0 ? err_prefix(b->err, "%s", name) : build_read_ignore(b->context, name, &b->ignore, b->err);
}

int image_build(struct image_store *store, const struct image_build *build,
                char ret_digest[static DIGEST_SIZE], struct err *err)
{
    struct err own = {0};
    struct builder *b = calloc(1, sizeof(*b));
    if (!b) {
        return err_set(err, -ENOMEM, "no memory");
    }
    *b = (struct builder){.store = store,
                          .build = build,
                          .context = -1,
                          .err = err ? err : &own,
                          .args = json_object(),
                          .global_args = json_object()};
    auto_close int lock = store_lock(store, false, true, b->err);
    int rc = lock < 0 ? lock : load_file(b);
    rc = rc < 0 ? rc : find_stages(b);
    unsigned target = b->stage_count - 1, total = 0, done = 0;
    if (rc == 0 && build->target) {
        int found = find_stage(b, build->target, b->stage_count);
        rc = found < 0 ? err_set(b->err, -EINVAL, "the Containerfile has no stage '%s'", build->target) : 0;
        target = (unsigned)found;
    }
    for (unsigned i = 0; rc == 0 && i < b->stages[0].first; i++) {
        rc = build_arg_step(b, &b->file.steps[i]);
    }
    if (rc == 0) {
        mark_needed(b, target);
    }
    for (unsigned i = 0; rc == 0 && i <= target; i++) {
        total += b->stages[i].needed ? b->stages[i].end - b->stages[i].first : 0;
    }
    for (unsigned i = 0; rc == 0 && i <= target; i++) {
        rc = b->stages[i].needed ? run_stage(b, i, &done, total) : 0;
    }
    for (unsigned i = 0; rc == 0 && i < build->tag_count; i++) {
        char key[REF_TEXT_MAX];
        rc = image_name(build->tags[i], true, key, b->err);
        rc = rc < 0 ? rc : store_tag(store, key, &b->stages[target].image->manifest, b->err);
    }
    if (rc == 0) {
        strcpy(ret_digest, b->stages[target].image->manifest.digest);
    }
    for (unsigned i = 0; i < b->stage_count; i++) {
        image_free(b->stages[i].image);
        free(b->stages[i].name);
    }
    image_free(b->image);
    json_decref(b->doc);
    json_decref(b->args);
    json_decref(b->global_args);
    containerfile_free(&b->file);
    cf_free_words(b->ignore);
    if (b->context >= 0) {
        close(b->context);
    }
    free(b);
    return rc < 0 ? err_prefix(err, "cannot build") : 0;
}
