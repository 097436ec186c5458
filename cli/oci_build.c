/*
 * fonda image build: a Containerfile and its context.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"
#include "cli/oci.h"

static void print_line(void *opaque, const char *text)
{
    fprintf(stderr, "%s\n", text);
}

/* Beside this program, in the build tree's container/, or by $PATH. */
static const char *find_runtime(char path[static 4096])
{
    static const char *const places[] = {"../container/fonda-oci", "../../bin/fonda-oci", "fonda-oci"};
    char self[2048];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n > 0) {
        self[n] = '\0';
        char *slash = strrchr(self, '/');
        *(slash ? slash : self) = '\0';
        for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
            snprintf(path, 4096, "%s/%s", self, places[i]);
            if (access(path, X_OK) == 0) {
                return path;
            }
        }
    }
    return "fonda-oci";
}

int oci_cmd_build(int argc, char **argv)
{
    static const struct option_spec specs[] = {
        OCI_OPT_STORE,
        OCI_OPT("tag", OPTION_LIST, tags, "NAME", "the image's name, also -t; may be given more than once"),
        OCI_OPT("file", OPTION_STRING, file, "FILE",
                "the Containerfile, also -f (default: Containerfile or\nDockerfile in DIR)"),
        OCI_OPT("build-arg", OPTION_LIST, build_args, "NAME[=VALUE]", "value of an ARG"),
        OCI_OPT("target", OPTION_STRING, target, "STAGE", "stop after this stage"),
        OCI_OPT("no-cache", OPTION_FLAG, no_cache, NULL, "run every step anew"),
        OCI_OPT("network", OPTION_STRING, network, "WHAT", "for RUN: host (default) or none"),
        OCI_OPT("platform", OPTION_STRING, platform, "OS/ARCH", "of base images (default: this host's)"),
        OCI_OPT("pull", OPTION_STRING, policy, "WHEN", "base images: missing (default), always or never"),
        OCI_OPT("runtime", OPTION_STRING, runtime, "FILE",
                "the program fonda-oci (default: the one beside this)"),
        OCI_OPTS_REGISTRY,
        OCI_OPT_MAX_LAYER,
    };
    struct oci_args args = {.network = "host", .policy = "missing"};
    struct image_args rest;
    struct image_options options;
    struct err err = {0};
    char digest[DIGEST_SIZE], runtime[4096];
    int status;
    for (int i = 1; i < argc; i++) {
        argv[i] = strcmp(argv[i], "-t") == 0   ? (char *)"--tag"
                  : strcmp(argv[i], "-f") == 0 ? (char *)"--file"
                                               : argv[i];
    }
    if (!image_args(argc, argv, specs, ARRAY_SIZE(specs), &args,
                    "-t NAME [-f FILE] DIR [OPTIONS]\n\nMakes an image from a Containerfile. DIR is what "
                    "COPY and ADD see.\n\nExample:\n"
                    "  fonda image build -t app:1.2 --build-arg VERSION=1.2 .",
                    1, 1, &rest, &status) ||
        (status = oci_registry_options(&args, &options)) != 0) {
        return status;
    }
    options.policy = strcmp(args.policy, "always") == 0  ? IMAGE_PULL_ALWAYS
                     : strcmp(args.policy, "never") == 0 ? IMAGE_PULL_NEVER
                                                         : IMAGE_PULL_MISSING;
    bool none = strcmp(args.network, "none") == 0;
    if (!none && strcmp(args.network, "host") != 0) {
        log_error("--network: '%s' is neither host nor none", args.network);
        return IMAGE_EXIT_USAGE;
    }
    struct image_store *store = oci_open(&args);
    if (!store) {
        return IMAGE_EXIT_FAILED;
    }
    struct image_build build = {.context_dir = rest.args[0],
                                .file = args.file,
                                .tags = args.tags.values,
                                .tag_count = args.tags.count,
                                .args = args.build_args.values,
                                .arg_count = args.build_args.count,
                                .target = args.target,
                                .no_cache = args.no_cache,
                                .network_none = none,
                                .quiet = args.quiet,
                                .runtime = args.runtime ? args.runtime : find_runtime(runtime),
                                .options = &options,
                                .line = args.quiet ? NULL : print_line};
    int rc = image_build(store, &build, digest, &err);
    if (rc == 0) {
        printf("%s\n", digest);
    }
    image_store_close(store);
    return rc < 0 ? image_failed(&err) : IMAGE_EXIT_OK;
}
