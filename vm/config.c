#include "vm/config.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/util.h"
#include "vm/device_options.h"

#define OPT(name, kind, member, min, max, metavar, help)                                                     \
    {                                                                                                        \
        name, kind, offsetof(struct vm_config, member), min, max, metavar, help                              \
    }

const struct option_spec vm_options[] = {
    OPT("kernel", OPTION_STRING, kernel, 0, 0, "FILE",
        "a Linux bzImage, an ELF kernel with a PVH entry, or multiboot 1"),
    OPT("initrd", OPTION_LIST, initrds, 0, 0, "FILE",
        "initial RAM disk; given again: joined (Linux) or a further module"),
    OPT("append", OPTION_STRING, append, 0, 0, "TEXT",
        "the kernel's command line (Linux default: console=ttyS0 panic=-1)"),
    OPT("memory", OPTION_SIZE, memory_bytes, MiB, 65536 * GiB, "SIZE",
        "guest RAM, such as 512M or 1.5G (default: 512M)"),
    OPT("cpus", OPTION_UINT, cpus, 1, VM_CPUS_MAX, "N", "virtual CPUs (default: 1)"),
    OPT("engine", OPTION_STRING, engine, 0, 0, "NAME",
        "how guest code runs (default: bt); see 'fonda engines'"),
    OPT("cpu-model", OPTION_STRING, cpu_model, 0, 0, "NAME",
        "what the guest's CPUID offers: host, x86-64-v2, x86-64-v3\n(default: host)"),
    OPT("serial", OPTION_STRING, serial, 0, 0, "WHERE",
        "the first serial port: stdio, none, or a file to write to\n(default: stdio)"),
    OPT("disk", OPTION_LIST, disks, 0, 0, "FILE",
        "a disk: FILE[,format=raw|qcow2][,serial=TEXT][,readonly][,direct];\n"
        "may be given again; direct: past the host's page cache"),
    OPT("net", OPTION_LIST, nics, 0, 0, "HOW",
        "a network card: user, tap=NAME, wire=PATH, each with\n"
        "[,mac=MAC][,mtu=N][,queues=N]; or none (default: user)"),
    OPT("publish", OPTION_LIST, publish, 0, 0, "PORTS",
        "a guest's port on the host: [ADDRESS:]HOST:GUEST[/udp], for --net\n"
        "user (default address: 127.0.0.1)"),
    OPT("rng", OPTION_STRING, rng, 0, 0, "on|off", "the entropy device (default: on)"),
    OPT("share", OPTION_LIST, shares, 0, 0, "DIR:TAG",
        "a host directory for the guest: DIR:TAG[:ro]; there:\n"
        "mount -t 9p -o trans=virtio TAG /mnt"),
    OPT("balloon", OPTION_FLAG, balloon, 0, 0, NULL, "memory that the guest frees goes back to the host"),
    OPT("vsock", OPTION_STRING, vsock, 0, 0, "PATH",
        "sockets between guest and host: connect to the unix socket PATH and\n"
        "send 'CONNECT PORT'; guests reach port P as PATH_P"),
    OPT("timeout", OPTION_UINT, timeout_s, 1, 86400ull * 365, "S",
        "end the machine after S seconds, with status 124"),
    OPT("jail", OPTION_STRING, jail, 0, 0, "HOW",
        "on: locks the machine's process in, and says what this host can't\n"
        "give for that; quiet: the same, says nothing; require: runs only with\n"
        "all of it; off (default: on; see 'fonda jail')"),
    OPT("no-reboot", OPTION_FLAG, no_reboot, 0, 0, NULL, "a reboot ends the machine, with status 0"),
    OPT("stats", OPTION_FLAG, stats, 0, 0, NULL, "print the counters at the end"),
    OPT("help", OPTION_FLAG, help, 0, 0, NULL, "print this help"),
};
const unsigned vm_option_count = ARRAY_SIZE(vm_options);

static int check_devices(const struct vm_config *config, struct err *err)
{
    union {
        struct disk_options disk;
        struct nic_options nic;
        struct share_options share;
    } parsed;
    for (unsigned i = 0; i < config->disks.count; i++) {
        if (disk_options_parse(config->disks.values[i], &parsed.disk, err) < 0) {
            return err_prefix(err, "--disk");
        }
    }
    for (unsigned i = 0; i < config->nics.count; i++) {
        if (nic_options_parse(config->nics.values[i], &parsed.nic, err) < 0) {
            return err_prefix(err, "--net");
        }
    }
    for (unsigned i = 0; i < config->shares.count; i++) {
        if (share_options_parse(config->shares.values[i], &parsed.share, err) < 0) {
            return err_prefix(err, "--share");
        }
    }
    if (strcmp(config->rng, "on") != 0 && strcmp(config->rng, "off") != 0) {
        return err_set(err, -EINVAL, "--rng: '%s' is not on or off", config->rng);
    }
    static const char *const jails[] = {"on", "quiet", "require", "off"};
    bool known = false;
    for (size_t i = 0; i < ARRAY_SIZE(jails); i++) {
        known |= strcmp(config->jail, jails[i]) == 0;
    }
    if (!known) {
        return err_set(err, -EINVAL, "--jail: '%s' is not on, quiet, require or off", config->jail);
    }
    return 0;
}

int vm_config_parse(int argc, char **argv, int first, struct vm_config *ret_config, struct err *err)
{
    struct vm_config config = {.memory_bytes = 512 * MiB,
                               .cpus = 1,
                               .engine = "bt",
                               .cpu_model = "host",
                               .serial = "stdio",
                               .rng = "on",
                               .jail = "on"};
    int end = options_parse(vm_options, vm_option_count, argc, argv, first, &config, err);
    if (end < 0) {
        return end;
    }
    if (end < argc) {
        return err_set(err, -EINVAL, "unexpected argument '%s'", argv[end]);
    }
    if (!config.kernel && !config.help) {
        return err_set(err, -EINVAL, "no kernel given: --kernel FILE");
    }
    if (config.serial[0] == '\0') {
        return err_set(err, -EINVAL, "--serial: '' is not stdio, none or a file");
    }
    int rc = check_devices(&config, err);
    if (rc < 0) {
        return rc;
    }
    config.memory_bytes = align_up(config.memory_bytes, 4096);
    *ret_config = config;
    return 0;
}
