/* See debian_archive.h. apt itself is asked, so that every way to write its sources is understood. */
#include "image/debian_archive.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "image/debian_process.h"

#define FORMAT "$(REPO_URI) $(RELEASE) $(COMPONENT)"

/* Reads a program's output line by line; a program that can't be run has none. */
static void for_lines(const char *const *argv, void (*each)(void *opaque, char *line), void *opaque)
{
    struct process process;
    struct err err = {0};
    if (process_start(&process, argv, NULL, NULL, &err) < 0) {
        return;
    }
    FILE *file = fdopen(process.out_fd, "r");
    char *line = NULL;
    size_t room = 0;
    while (file && getline(&line, &room, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        each(opaque, line);
    }
    free(line);
    if (file) {
        fclose(file);
        process.out_fd = -1;
    }
    process_wait(&process);
}

struct finder {
    const char *suite;
    struct archive_sources *sources;
};

/* "bookworm", and the suites that mend it; other suites of the same archive stay out. */
static bool belongs(const char *release, const char *suite)
{
    size_t len = strlen(suite);
    return strncmp(release, suite, len) == 0 &&
           (release[len] == '\0' || strcmp(release + len, "-updates") == 0 ||
            strcmp(release + len, "-security") == 0);
}

static void add_line(struct archive_sources *sources, const char *uri, const char *release,
                     const char *component)
{
    char *line;
    size_t len = strlen(uri);
    if (sources->count == ARCHIVE_LINES_MAX ||
        asprintf(&line, "deb %.*s %s %s", (int)(len && uri[len - 1] == '/' ? len - 1 : len), uri, release,
                 component) < 0) {
        return;
    }
    for (unsigned i = 0; i < sources->count; i++) {
        if (strcmp(sources->lines[i], line) == 0) {
            free(line);
            return;
        }
    }
    sources->lines[sources->count++] = line;
}

/* file: and cdrom: sources are the host's own, and out of the guest's reach. */
static void consider_target(void *opaque, char *line)
{
    struct finder *finder = opaque;
    char *save = NULL;
    const char *uri = strtok_r(line, " ", &save), *release = strtok_r(NULL, " ", &save);
    const char *component = strtok_r(NULL, " ", &save);
    if (component && strncmp(uri, "http", 4) == 0 && belongs(release, finder->suite)) {
        add_line(finder->sources, uri, release, component);
    }
}

/* Lines of apt-config: NAME='value'. */
static void consider_setting(void *opaque, char *line)
{
    struct archive_sources *sources = opaque;
    char *value = strchr(line, '\'');
    if (!value) {
        return;
    }
    value[strlen(value) - 1] = '\0';
    value++;
    if (strncmp(line, "VALID=", 6) == 0) {
        sources->ignore_dates =
            strcmp(value, "false") == 0 || strcmp(value, "0") == 0 || strcmp(value, "no") == 0;
    } else if (strncmp(line, "PROXY=", 6) == 0 && *value && !sources->proxy) {
        sources->proxy = strdup(value);
    }
}

int archive_sources_find(const char *suite, const char *mirror, struct archive_sources *ret_sources,
                         struct err *err)
{
    static const char *const targets[] = {"apt-get", "indextargets",         "--format",
                                          FORMAT,    "Created-By: Packages", NULL};
    static const char *const settings[] = {
        "apt-config", "shell", "VALID", "Acquire::Check-Valid-Until", "PROXY", "Acquire::http::Proxy", NULL};
    struct archive_sources sources = {0};
    struct finder finder = {suite, &sources};
    for_lines(settings, consider_setting, &sources);
    if (mirror) {
        add_line(&sources, mirror, suite, "main");
    } else {
        for_lines(targets, consider_target, &finder);
    }
    if (sources.count == 0) {
        archive_sources_done(&sources);
        return err_set(err, -ENOENT,
                       "this host's apt has no source for '%s': say where it is with --mirror URL", suite);
    }
    *ret_sources = sources;
    return 0;
}

void archive_sources_done(struct archive_sources *sources)
{
    for (unsigned i = 0; i < sources->count; i++) {
        free(sources->lines[i]);
    }
    free(sources->proxy);
    *sources = (struct archive_sources){0};
}
