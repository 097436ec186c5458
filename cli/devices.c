/*
 * `fonda vm disk` and `fonda vm nic`: what comes and goes while a named machine runs. The files of a disk and
 * tap devices are opened here and sent along, as the machine's process may be locked in.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/options.h"
#include "base/util.h"
#include "block/chain.h"
#include "cli/cli.h"
#include "net/tap_open.h"
#include "vm/device_options.h"
#include "vm/status.h"

#define FAILED 1

/* --- the parts of a command line --------------------------------------------------------------------------
 */

struct words {
    int count;
    char **word;
};

static int usage(const char *command, const char *text)
{
    log_error("%s (see 'fonda vm %s --help')", text, command);
    return VM_STATUS_USAGE;
}

/* False: an option, and there is none. */
static bool take_words(int argc, char **argv, struct words *ret)
{
    *ret = (struct words){argc, argv};
    for (int i = 0; i < argc; i++) {
        if (argv[i][0] == '-') {
            return false;
        }
    }
    return true;
}

static int list(const char *name, const char *kind)
{
    json_t *result = NULL, *one;
    size_t i;
    int status = cli_machine_request(name, "devices", NULL, &result);
    if (status != 0) {
        return status;
    }
    bool disks = strcmp(kind, "disk") == 0;
    printf("%-16s %4s %-8s %s\n", "ID", "SLOT", disks ? "SIZE" : "NET", disks ? "FILE" : "MAC");
    json_array_foreach(json_object_get(result, "devices"), i, one)
    {
        const char *id, *of, *what, *net = NULL;
        int slot = 0;
        json_int_t bytes = 0;
        char size[32] = "";
        if (json_unpack(one, "{s:s, s:s, s:i, s?I, s?s}", "id", &id, "kind", &of, "slot", &slot, "size_bytes",
                        &bytes, "net", &net) < 0 ||
            strcmp(of, kind) != 0) {
            continue;
        }
        format_size((uint64_t)bytes, size, sizeof(size));
        what = json_string_value(json_object_get(one, disks ? "file" : "mac"));
        printf("%-16s %4d %-8s %s%s\n", id, slot, disks ? size : net, what ? what : "?",
               json_is_true(json_object_get(one, "leaving")) ? "  (is being detached)" : "");
    }
    json_decref(result);
    return 0;
}

static int print_id(int status, json_t *result)
{
    if (status == 0) {
        const char *id = json_string_value(json_object_get(result, "id"));
        puts(id ? id : "?");
        json_decref(result);
    }
    return status;
}

static int detach(const struct words *w, const char *method)
{
    return cli_machine_request(w->word[0], method, json_pack("{s:s}", "id", w->word[1]), NULL);
}

/* --- disks ------------------------------------------------------------------------------------------------
 */

/* The path made absolute, the options behind it as they are. */
static char *absolute_text(const char *text)
{
    char cwd[PATH_MAX], *out = NULL;
    if (text[0] == '/' || !getcwd(cwd, sizeof(cwd))) {
        return strdup(text);
    }
    return asprintf(&out, "%s/%s", cwd, text) < 0 ? NULL : out;
}

static int attach_disk(const struct words *w)
{
    struct disk_options options;
    struct blk_chain chain;
    struct err err = {0};
    auto_free char *text = absolute_text(w->word[1]);
    json_t *files = json_array(), *result = NULL;
    int rc = text ? disk_options_parse(text, &options, &err) : err_sys(&err, -ENOMEM, "cannot attach a disk");
    if (rc == 0) {
        rc = blk_chain_open(options.path, options.format[0] ? options.format : NULL, !options.read_only,
                            &chain, &err);
    }
    if (rc < 0) {
        log_error("%s", err.text);
        json_decref(files);
        return VM_STATUS_USAGE;
    }
    for (unsigned i = 0; i < chain.count; i++) {
        json_array_append_new(files, json_string(chain.paths[i]));
    }
    json_t *params =
        json_pack("{s:s, s:s*, s:o}", "disk", text, "id", w->count > 2 ? w->word[2] : NULL, "files", files);
    int status = cli_machine_request_fds(w->word[0], "disk_attach", params, chain.fds, chain.count, &result);
    blk_chain_close(&chain);
    return print_id(status, result);
}

/* "iops=500,bps=10M", or "none". */
static int throttle(const struct words *w)
{
    struct disk_options options;
    struct err err = {0};
    char text[DEVICE_TEXT_MAX];
    bool none = strcmp(w->word[2], "none") == 0;
    snprintf(text, sizeof(text), "x%s%s", none ? "" : ",", none ? "" : w->word[2]);
    if (disk_options_parse(text, &options, &err) < 0) {
        log_error("%s", err.text);
        return VM_STATUS_USAGE;
    }
    const struct blk_throttle_limits *l = &options.throttle;
    if (!none && !l->iops && !l->bytes_per_s) {
        return usage("disk", "a limit is iops=N or bps=SIZE, or both with a comma; 'none' takes them away");
    }
    return cli_machine_request(w->word[0], "throttle",
                               json_pack("{s:s, s:I, s:I, s:I, s:I}", "id", w->word[1], "iops",
                                         (json_int_t)l->iops, "iops_burst", (json_int_t)l->iops_burst, "bps",
                                         (json_int_t)l->bytes_per_s, "bps_burst", (json_int_t)l->bytes_burst),
                               NULL);
}

static const char disk_help[] =
    "usage: fonda vm disk list NAME\n"
    "       fonda vm disk attach NAME FILE[,OPTIONS] [ID]\n"
    "       fonda vm disk detach NAME ID\n"
    "       fonda vm disk throttle NAME ID iops=N[,iops-burst=N][,bps=SIZE[,bps-burst=SIZE]] | none\n\n"
    "Disks of a running machine. attach takes what 'fonda run --disk' takes, and prints the new disk's ID. "
    "detach\nasks the guest to let the disk go, and waits for that, at most 30 seconds; a guest that does "
    "not is "
    "reset\n('fonda vm reset'), which takes the disk out.\n\n"
    "Examples:\n  fonda vm disk attach web data.qcow2 data\n  fonda vm disk throttle web data "
    "iops=500,bps=20M\n"
    "  fonda vm disk detach web data\n";

int cli_vm_disk(int argc, char **argv)
{
    struct words w;
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(disk_help, argc < 2 ? stderr : stdout);
        return argc < 2 ? VM_STATUS_USAGE : 0;
    }
    const char *verb = argv[1];
    if (!take_words(argc - 2, argv + 2, &w)) {
        return usage("disk", "unknown option");
    }
    if (strcmp(verb, "detach") == 0 && w.count == 2) {
        return detach(&w, "disk_detach");
    }
    if (strcmp(verb, "list") == 0 && w.count == 1) {
        return list(w.word[0], "disk");
    }
    if (strcmp(verb, "attach") == 0 && (w.count == 2 || w.count == 3)) {
        return attach_disk(&w);
    }
    if (strcmp(verb, "throttle") == 0 && w.count == 3) {
        return throttle(&w);
    }
    return usage("disk", "list, attach, detach or throttle, and what they need");
}

/* --- NICs -------------------------------------------------------------------------------------------------
 */

static int attach_nic(const struct words *w)
{
    struct nic_options options;
    struct err err = {0};
    json_t *result = NULL;
    auto_close int fd = -1;
    int rc = nic_options_parse(w->word[1], &options, &err);
    bool tap = rc == 0 && options.kind == NIC_TAP;
    rc = tap ? fd = net_tap_open(options.where, &err) : rc;
    if (rc < 0) {
        log_error("%s", err.text);
        return VM_STATUS_USAGE;
    }
    json_t *params =
        json_pack("{s:s, s:s*, s:b}", "nic", w->word[1], "id", w->count > 2 ? w->word[2] : NULL, "tap", tap);
    int status = cli_machine_request_fds(w->word[0], "nic_attach", params, &fd, tap ? 1 : 0, &result);
    return print_id(status, result);
}

static const char nic_help[] =
    "usage: fonda vm nic list NAME\n"
    "       fonda vm nic attach NAME user|tap=NAME|wire=PATH[,mac=MAC][,mtu=N][,queues=N] [ID]\n"
    "       fonda vm nic detach NAME ID\n"
    "       fonda vm nic link NAME ID up|down\n\n"
    "Network cards of a running machine. detach asks the guest to let the card go, and waits for that, at "
    "most "
    "30\nseconds. link plugs its cable in, or pulls it.\n\n"
    "Examples:\n  fonda vm nic attach web wire=/run/lan.sock lan\n  fonda vm nic link web nic0 down\n"
    "  fonda vm nic detach web lan\n";

int cli_vm_nic(int argc, char **argv)
{
    struct words w;
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(nic_help, argc < 2 ? stderr : stdout);
        return argc < 2 ? VM_STATUS_USAGE : 0;
    }
    const char *verb = argv[1];
    if (!take_words(argc - 2, argv + 2, &w)) {
        return usage("nic", "unknown option");
    }
    if (strcmp(verb, "detach") == 0 && w.count == 2) {
        return detach(&w, "nic_detach");
    }
    if (strcmp(verb, "list") == 0 && w.count == 1) {
        return list(w.word[0], "nic");
    }
    if (strcmp(verb, "attach") == 0 && (w.count == 2 || w.count == 3)) {
        return attach_nic(&w);
    }
    bool up = w.count == 3 && strcmp(w.word[2], "up") == 0;
    if (strcmp(verb, "link") == 0 && w.count == 3 && (up || strcmp(w.word[2], "down") == 0)) {
        return cli_machine_request(w.word[0], "nic_link", json_pack("{s:s, s:b}", "id", w.word[1], "up", up),
                                   NULL);
    }
    return usage("nic", "list, attach, detach or link, and what they need");
}

int cli_vm_balloon(int argc, char **argv)
{
    uint64_t bytes;
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        printf(
            "usage: fonda vm balloon NAME SIZE\n\nHow much of its memory a machine's guest is to give back "
            "(run with --balloon); 0: nothing.\n\nExample:\n  fonda vm balloon web 512M\n");
        return 0;
    }
    if (argc != 3 || parse_size(argv[2], &bytes, NULL) < 0) {
        return usage("balloon", "a machine's name and a size are needed");
    }
    return cli_machine_request(argv[1], "balloon", json_pack("{s:I}", "bytes", (json_int_t)bytes), NULL);
}
