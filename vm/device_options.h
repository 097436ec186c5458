/*
 * The values of --disk, --net, --share, --console and --port, taken apart: "FILE,key=value,flag". Shared by
 * `fonda run` and fonda-vmm.
 */
#ifndef FONDA_VM_DEVICE_OPTIONS_H
#define FONDA_VM_DEVICE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "block/block.h"

#define DEVICE_TEXT_MAX 4096u
#define DISK_IOPS_MAX   1000000000u
#define PORT_NAME_BYTES 64u

struct disk_options {
    char path[DEVICE_TEXT_MAX];
    char format[16]; /* "": as found out from the image */
    char serial[21];
    bool read_only;
    enum blk_cache cache;
    enum blk_error_policy on_error;
    struct blk_throttle_limits throttle;
    bool ephemeral;                    /* of the whole machine: --ephemeral */
    const struct blk_open_file *files; /* not of the text: what somebody has opened for us */
    unsigned file_count;
};

enum nic_kind { NIC_NONE, NIC_USER, NIC_TAP, NIC_WIRE };

struct nic_options {
    enum nic_kind kind;
    char where[DEVICE_TEXT_MAX]; /* the tap's name, the wire's path */
    bool has_mac;
    uint8_t mac[6];
    uint64_t mtu, pairs; /* 0: not given */
};

struct share_options {
    char dir[DEVICE_TEXT_MAX];
    char tag[37];
    bool read_only;
};

enum port_kind {
    PORT_TERMINAL,
    PORT_FILE,
    PORT_UNIX,
    PORT_CONTROL /* clients of the control socket alone */
};

struct port_options {
    char name[PORT_NAME_BYTES]; /* "": a console */
    enum port_kind kind;
    char path[DEVICE_TEXT_MAX];
};

/* Return 0 or -EINVAL with a sentence. */
int disk_options_parse(const char *text, struct disk_options *ret, struct err *err);
int nic_options_parse(const char *text, struct nic_options *ret, struct err *err);
int share_options_parse(const char *text, struct share_options *ret, struct err *err);
int console_options_parse(const char *text, struct port_options *ret, struct err *err);
int port_options_parse(const char *text, struct port_options *ret, struct err *err);

#endif
