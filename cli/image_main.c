/*
 * fonda-image: works on disk images with block/, and on OCI images with image/, directly, without a daemon.
 * `fonda image` ends here.
 */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"
#include "cli/oci.h"

struct command {
    const char *name, *about;
    int (*run)(int argc, char **argv);
    const char *examples; /* NULL: they are part of the synopsis */
};

static const struct command commands[] = {
    {"build", "make a bootable disk from Debian's archive", image_cmd_build,
     "  fonda image build debian:bookworm debian.qcow2\n"
     "  fonda image build --size 20G --package git --ssh-key ~/.ssh/id_ed25519.pub debian:bookworm "
     "debian.qcow2\n"},
    {"create", "make an empty image, or an overlay over another", image_cmd_create,
     "  fonda image create --size 20G disk.qcow2\n"
     "  fonda image create --backing base.qcow2 --backing-format qcow2 overlay.qcow2\n"},
    {"info", "what an image is", image_cmd_info,
     "  fonda image info disk.qcow2\n"
     "  fonda image info --shared --json disk.qcow2\n"},
    {"convert", "copy an image into another format", image_cmd_convert,
     "  fonda image convert disk.raw disk.qcow2\n"
     "  fonda image convert --to raw --snapshot before-upgrade disk.qcow2 old.raw\n"},
    {"check", "look for damage, and repair it", image_cmd_check,
     "  fonda image check disk.qcow2\n"
     "  fonda image check --repair leaks disk.qcow2\n"},
    {"resize", "change the disk's size", image_cmd_resize,
     "  fonda image resize disk.qcow2 +10G\n"
     "  fonda image resize --shrink disk.qcow2 8G\n"},
    {"rebase", "put an overlay over another backing image", image_cmd_rebase,
     "  fonda image rebase --backing new.qcow2 --backing-format qcow2 overlay.qcow2\n"
     "  fonda image rebase --backing '' overlay.qcow2\n"},
    {"commit", "write an overlay's contents into its backing image", image_cmd_commit,
     "  fonda image commit overlay.qcow2\n"
     "  fonda image commit --keep overlay.qcow2\n"},
    {"snapshot", "list, create, apply and delete internal snapshots", image_cmd_snapshot,
     "  fonda image snapshot create disk.qcow2 before-upgrade\n"
     "  fonda image snapshot list disk.qcow2\n"
     "  fonda image snapshot apply disk.qcow2 before-upgrade\n"},
};

static const struct command oci_commands[] = {
    {"pull", "get an image from a registry", oci_cmd_pull, NULL},
    {"push", "send an image to a registry", oci_cmd_push, NULL},
    {"build", "make an image from a Containerfile", oci_cmd_build, NULL},
    {"list", "the images in the store", oci_cmd_list, NULL},
    {"inspect", "an image's manifest and configuration", oci_cmd_inspect, NULL},
    {"history", "the steps that made an image", oci_cmd_history, NULL},
    {"diff", "what a layer changed, or what differs between images", oci_cmd_diff, NULL},
    {"tag", "give an image one more name", oci_cmd_tag, NULL},
    {"commit", "make an image from a container's writable layer", oci_cmd_commit, NULL},
    {"save", "write images into an archive", oci_cmd_save, NULL},
    {"load", "read images from an archive", oci_cmd_load, NULL},
    {"import", "make an image from a tar with a root file system", oci_cmd_import, NULL},
    {"layer", "writable layers over images", oci_cmd_layer, NULL},
    {"remove", "take names away, and what nothing else needs", oci_cmd_remove, NULL},
    {"prune", "remove what nothing needs", oci_cmd_prune, NULL},
};

typedef int (*command_fn)(int argc, char **argv);

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    interrupted = 1;
}

static void print_usage(FILE *out)
{
    fprintf(out, "usage: fonda image COMMAND [OPTIONS] ...\n\nDisk images:\n");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].about);
    }
    fprintf(out, "\nOCI images:\n");
    for (size_t i = 0; i < ARRAY_SIZE(oci_commands); i++) {
        fprintf(out, "  %-10s %s\n", oci_commands[i].name, oci_commands[i].about);
    }
    fprintf(out, "\n'fonda image COMMAND --help' says more about a command.\n");
}

static void print_command_help(const char *name, const char *synopsis, const struct option_spec *specs,
                               unsigned spec_count)
{
    /* OCI commands say what they do behind the first line of their synopsis: `commit` is there twice. */
    bool described = strchr(synopsis, '\n') != NULL;
    const struct command *command = NULL;
    for (size_t i = 0; !described && i < ARRAY_SIZE(commands); i++) {
        command = strcmp(commands[i].name, name) == 0 ? &commands[i] : command;
    }
    printf("usage: fonda image %s %s\n", name, synopsis);
    if (command) {
        printf("\n%c%s.\n", toupper((unsigned char)command->about[0]), command->about + 1);
    }
    if (spec_count) {
        printf("\nOptions:\n");
        options_print(stdout, specs, spec_count);
    }
    if (command && command->examples) {
        printf("\nExamples:\n%s", command->examples);
    }
}

bool image_args(int argc, char **argv, const struct option_spec *specs, unsigned spec_count, void *target,
                const char *synopsis, unsigned least, unsigned most, struct image_args *ret_args,
                int *ret_status)
{
    struct err err = {0};
    struct image_args args = {0};
    *ret_status = IMAGE_EXIT_USAGE;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            print_command_help(argv[0], synopsis, specs, spec_count);
            *ret_status = IMAGE_EXIT_OK;
            return false;
        }
    }
    for (int next = 1; next < argc;) {
        next = options_parse(specs, spec_count, argc, argv, next, target, &err);
        if (next < 0) {
            log_error("%s (see 'fonda image %s --help')", err.text, argv[0]);
            return false;
        }
        if (next < argc) {
            if (args.count == most) {
                log_error("unexpected argument '%s' (see 'fonda image %s --help')", argv[next], argv[0]);
                return false;
            }
            args.args[args.count++] = argv[next++];
        }
    }
    if (args.count < least) {
        log_error("too few arguments (see 'fonda image %s --help')", argv[0]);
        return false;
    }
    *ret_args = args;
    return true;
}

int image_failed(const struct err *err)
{
    log_error("%s", err->text);
    return IMAGE_EXIT_FAILED;
}

struct blk_loop *image_loop(void)
{
    struct blk_loop *loop = NULL;
    struct err err = {0};
    if (blk_loop_new(BLK_ENGINE_AUTO, &loop, &err) < 0) {
        image_failed(&err);
    }
    return loop;
}

struct blk_node *image_open(struct blk_loop *loop, const char *path, const struct blk_open_options *options)
{
    struct blk_node *node = NULL;
    struct err err = {0};
    if (blk_open(loop, path, options, &node, &err) < 0) {
        image_failed(&err);
    }
    return node;
}

int image_finish(struct blk_loop *loop, struct blk_node *node, int status)
{
    int error = blk_close(node);
    if (error) {
        log_error("cannot finish writing: %s", strerror(-error));
        status = IMAGE_EXIT_FAILED;
    }
    blk_loop_free(loop);
    return status;
}

static bool progress_is_shown(bool asked)
{
    return asked || isatty(STDERR_FILENO);
}

bool image_progress(void *arg, uint64_t done, uint64_t total)
{
    static unsigned last = UINT_MAX;
    unsigned percent = total ? (unsigned)((double)done / (double)total * 100) : 100;
    if (progress_is_shown(*(bool *)arg) && percent != last) {
        fprintf(stderr, "\r%3u%%", percent);
        last = percent;
    }
    return !interrupted;
}

void image_progress_end(bool asked, bool began)
{
    if (began && progress_is_shown(asked)) {
        fprintf(stderr, "\n");
    }
}

/* `commit` is there for both kinds: a disk's takes one file, a container's a layer and a name. */
static bool is_layer_commit(int argc, char **argv)
{
    struct oci_args target = {0};
    static const struct option_spec known[] = {
        OCI_OPT_STORE,
        OCI_OPT("help", OPTION_FLAG, quiet, NULL, NULL),
        OCI_OPT("message", OPTION_STRING, message, NULL, NULL),
        OCI_OPT("author", OPTION_STRING, author, NULL, NULL),
        OCI_OPT("compression", OPTION_STRING, compression, NULL, NULL),
    };
    unsigned words = 0;
    for (int next = 1; next < argc; words += next < argc, next++) {
        next = options_parse(known, ARRAY_SIZE(known), argc, argv, next, &target, NULL);
        if (next < 0) {
            return false;
        }
    }
    return words == 2;
}

/* "build NAME:SUITE OUT" makes a disk. A Containerfile's image has its name behind -t, and a folder has no
 * colon. */
static bool is_disk_build(int argc, char **argv)
{
    bool named = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-t") == 0 || strncmp(argv[i], "--tag", 5) == 0) {
            return false;
        }
        named = named || (argv[i][0] != '-' && argv[i][0] != '/' && strchr(argv[i], ':')) ||
                strcmp(argv[i], "debian") == 0;
    }
    return named;
}

static command_fn find_command(int argc, char **argv)
{
    if (strcmp(argv[0], "commit") == 0) {
        return is_layer_commit(argc, argv) ? oci_cmd_commit : image_cmd_commit;
    }
    if (strcmp(argv[0], "build") == 0) {
        return is_disk_build(argc, argv) ? image_cmd_build : oci_cmd_build;
    }
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(commands[i].name, argv[0]) == 0) {
            return commands[i].run;
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(oci_commands); i++) {
        if (strcmp(oci_commands[i].name, argv[0]) == 0) {
            return oci_commands[i].run;
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    log_init("fonda image", LOG_LEVEL_WARNING);
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a write beyond ulimit -f then fails with EFBIG */
    if (argc < 2) {
        print_usage(stderr);
        return IMAGE_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return IMAGE_EXIT_OK;
    }
    command_fn run = find_command(argc - 1, argv + 1);
    if (run) {
        return run(argc - 1, argv + 1);
    }
    log_error("unknown command '%s' (see 'fonda image --help')", argv[1]);
    return IMAGE_EXIT_USAGE;
}
