/*
 * The commands of fonda-image that work on OCI images: they share options, the opened store, and the way to
 * show progress.
 */
#ifndef FONDA_CLI_OCI_H
#define FONDA_CLI_OCI_H

#include "base/options.h"
#include "image/image.h"

struct oci_args {
    const char *store, *platform, *auth_file, *creds, *cert_dir, *tls_verify, *policy;
    const char *format, *output, *input, *name, *message, *author, *change;
    const char *file, *target, *network, *runtime, *compression;
    struct option_list tags, build_args;
    uint64_t parallel, max_layer_bytes;
    bool insecure, quiet, force, all, json, no_cache, digests, no_trunc;
};

#define OCI_OPT(name, kind, member, metavar, help)                                                           \
    {                                                                                                        \
        name, kind, offsetof(struct oci_args, member), 0, 0, metavar, help                                   \
    }
#define OCI_OPT_STORE                                                                                        \
    OCI_OPT("image-store", OPTION_STRING, store, "DIR",                                                      \
            "the image store (default: /var/lib/fonda/images as root,\n"                                     \
            "else $XDG_DATA_HOME/fonda/images)")
#define OCI_OPTS_REGISTRY                                                                                    \
    OCI_OPT("auth-file", OPTION_STRING, auth_file, "FILE",                                                   \
            "credentials (default: $REGISTRY_AUTH_FILE, containers/auth.json,\n.docker/config.json)"),       \
        OCI_OPT("creds", OPTION_STRING, creds, "USER:PASSWORD", "credentials for this call"),                \
        OCI_OPT("cert-dir", OPTION_STRING, cert_dir, "DIR", "CA (*.crt) and client certificates"),           \
        OCI_OPT("insecure", OPTION_FLAG, insecure, NULL,                                                     \
                "allow plain HTTP, and TLS whose certificate is not checked"),                               \
        OCI_OPT("tls-verify", OPTION_STRING, tls_verify, "BOOL", "false: the same as --insecure"),           \
        {"parallel", OPTION_UINT, offsetof(struct oci_args, parallel), 1,                                    \
         16,         "N",         "transfers at a time (default: 4)"},                                       \
        OCI_OPT("quiet", OPTION_FLAG, quiet, NULL, "no progress")
#define OCI_OPT_MAX_LAYER                                                                                    \
    {                                                                                                        \
        "max-layer-size", OPTION_SIZE, offsetof(struct oci_args, max_layer_bytes), 1, 1ull << 50, "SIZE",    \
            "refuse layers that unpack to more (default: 64G)"                                               \
    }

/* Enters the user namespace where needed, and opens the store. NULL: said why. */
struct image_store *oci_open(const struct oci_args *args);
/* 0, or a usage error that was said. */
int oci_registry_options(const struct oci_args *args, struct image_options *ret_options);

int oci_cmd_pull(int argc, char **argv);
int oci_cmd_push(int argc, char **argv);
int oci_cmd_list(int argc, char **argv);
int oci_cmd_inspect(int argc, char **argv);
int oci_cmd_history(int argc, char **argv);
int oci_cmd_diff(int argc, char **argv);
int oci_cmd_remove(int argc, char **argv);
int oci_cmd_prune(int argc, char **argv);
int oci_cmd_tag(int argc, char **argv);
int oci_cmd_save(int argc, char **argv);
int oci_cmd_load(int argc, char **argv);
int oci_cmd_import(int argc, char **argv);
int oci_cmd_commit(int argc, char **argv);
int oci_cmd_build(int argc, char **argv);
int oci_cmd_layer(int argc, char **argv);

#endif
