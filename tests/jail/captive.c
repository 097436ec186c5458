/*
 * A process in the jail that has been taken over: `captive [OPTIONS] ROLE DEED [ARGUMENT]` closes the jail as
 * fonda-vmm does, starts a thread of that role, and has it do the deed. Not shipped; it links a build of the
 * jail from which single layers can be left out, so that each shows what it holds on its own.
 *
 *     --needs N     enum jail_need       --without L,...  layers by number
 *     --share DIR   a shared directory   --share-ro DIR   --sockets DIR
 *     --table       prints the table of system calls
 *     --deeds       prints the names of the deeds
 *
 * Prints "refused ERRNO" or "done", and ends with status 0; a deed that seccomp answers ends with status 122.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/thread.h"
#include "base/util.h"
#include "sandbox/jail_int.h"
#include "tests/jail/captive.h"

#define STATUS_VIOLATED 122

struct captive captive = {.share_fd = -1, .outside_fd = -1};

static const struct deed *find_deed(const char *name)
{
    for (size_t i = 0; i < deed_count; i++) {
        if (strcmp(deeds[i].name, name) == 0) {
            return &deeds[i];
        }
    }
    fprintf(stderr, "captive: no deed '%s'\n", name);
    exit(1);
}

static void do_deed(const struct deed *deed)
{
    char text[64];
    int rc = deed->run();
    int len = rc < 0 ? snprintf(text, sizeof(text), "refused %s\n", strerrorname_np(-rc))
                     : snprintf(text, sizeof(text), "done\n");
    (void)!write(STDOUT_FILENO, text, (size_t)len);
}

struct work {
    const char *role;
    const struct deed *deed;
};

static void *thread_main(void *opaque)
{
    const struct work *work = opaque;
    thread_enter(work->role, NULL);
    do_deed(work->deed);
    return NULL;
}

static void perform(const char *role, const struct deed *deed)
{
    struct work work = {role, deed};
    pthread_t thread;
    if (strcmp(role, "main") == 0) {
        do_deed(deed);
    } else if (pthread_create(&thread, NULL, thread_main, &work) == 0) {
        pthread_join(thread, NULL);
    }
}

static int on_violation(void)
{
    return STATUS_VIOLATED;
}

static void grant(const char *path, enum jail_rights rights)
{
    struct err err = {0};
    if (path && jail_grant(path, rights, &err) < 0) {
        fprintf(stderr, "captive: %s\n", err.text);
        exit(1);
    }
}

static unsigned parse_layers(const char *text)
{
    unsigned layers = 0;
    for (char *end = NULL; *text; text = *end == ',' ? end + 1 : end) {
        layers |= BIT(strtoul(text, &end, 10));
    }
    return layers;
}

int main(int argc, char **argv)
{
    struct jail_config config = {.mode = JAIL_ON, .violated = on_violation};
    const char *share = NULL, *share_ro = NULL, *sockets = NULL;
    int i = 1;
    log_init("captive", LOG_LEVEL_WARNING);
    for (; i + 2 < argc && argv[i][0] == '-'; i += 2) {
        const char *option = argv[i] + 2, *value = argv[i + 1];
        if (strcmp(option, "needs") == 0) {
            config.needs = (unsigned)strtoul(value, NULL, 0);
        } else if (strcmp(option, "without") == 0) {
            jail_test_without = parse_layers(value);
        } else if (strcmp(option, "share") == 0) {
            share = value;
        } else if (strcmp(option, "share-ro") == 0) {
            share_ro = value;
        } else if (strcmp(option, "sockets") == 0) {
            sockets = value;
        }
    }
    if (i < argc && strcmp(argv[i], "--table") == 0) {
        jail_print_table(stdout);
        return 0;
    }
    if (i < argc && strcmp(argv[i], "--deeds") == 0) {
        for (size_t n = 0; n < deed_count; n++) {
            puts(deeds[n].name);
        }
        return 0;
    }
    if (argc - i < 2) {
        fprintf(stderr, "usage: captive [OPTIONS] ROLE DEED [ARGUMENT]\n");
        return 2;
    }
    const struct deed *deed = find_deed(argv[i + 1]);
    captive.argument = argc - i > 2 ? argv[i + 2] : "";
    struct err err = {0};
    int inherited = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* a directory that is open */
    if (jail_split(&config, &err) < 0) {
        fprintf(stderr, "captive: %s\n", err.text);
        return 1;
    }
    captive.outside_fd = inherited;
    captive.share_fd =
        share || share_ro ? open(share ? share : share_ro, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    captive_open_ring();
    grant(share, JAIL_GRANT_TREE);
    grant(share_ro, JAIL_GRANT_TREE_READ);
    grant(sockets, JAIL_GRANT_SOCKETS);
    if (jail_enter(&err) < 0) {
        fprintf(stderr, "captive: %s\n", err.text);
        return 1;
    }
    char missing[256];
    if (jail_missing(missing, sizeof(missing)) > 0) {
        fprintf(stderr, "missing: %s\n", missing);
    }
    perform(argv[i], deed);
    return 0;
}
