#include "vm/config.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/util.h"
#include "vm/device_options.h"
#include "vm/gdb/where.h"
#include "vm/rundir.h"

#define OPT(name, kind, member, min, max, metavar, help)                                                     \
    {                                                                                                        \
        name, kind, offsetof(struct vm_config, member), min, max, metavar, help                              \
    }

const struct option_spec vm_options[] = {
    OPT("kernel", OPTION_STRING, kernel, 0, 0, "FILE",
        "a Linux bzImage, an ELF kernel with a PVH entry, or multiboot 1\n"
        "(default: the kernel and initrd of the first disk)"),
    OPT("initrd", OPTION_LIST, initrds, 0, 0, "FILE",
        "initial RAM disk; given again: joined (Linux) or a further module"),
    OPT("append", OPTION_STRING, append, 0, 0, "TEXT",
        "the kernel's command line (Linux default: console=ttyS0 panic=-1,\n"
        "with --console stdio console=hvc0 panic=-1);\n"
        "with a kernel from the disk: added to root=UUID=... ro and those"),
    OPT("memory", OPTION_SIZE, memory_bytes, MiB, 65536 * GiB, "SIZE",
        "guest RAM, such as 512M or 1.5G (default: 512M)"),
    OPT("cpus", OPTION_UINT, cpus, 1, VM_CPUS_MAX, "N", "virtual CPUs (default: 1)"),
    OPT("engine", OPTION_STRING, engine, 0, 0, "NAME",
        "how guest code runs (default: bt); see 'fonda engines'"),
    OPT("cpu-model", OPTION_STRING, cpu_model, 0, 0, "NAME",
        "what the guest's CPUID offers: host, x86-64-v2, x86-64-v3\n(default: host)"),
    OPT("code-cache", OPTION_SIZE, code_cache_bytes, 256 * KiB, 256 * MiB, "SIZE",
        "how much translated code each virtual CPU may keep, with bt\n(default: 24M; 16M for each of "
        "several)"),
    OPT("eager", OPTION_FLAG, eager, 0, 0, NULL, "with bt: translate all code as what runs often, for tests"),
    OPT("serial", OPTION_STRING, serial, 0, 0, "WHERE",
        "the first serial port: stdio, none, or a file to write to\n"
        "(default: stdio; none with --console stdio)"),
    OPT("console", OPTION_STRING, console, 0, 0, "WHERE",
        "a virtio console (/dev/hvc0): stdio, unix:PATH for a socket to listen\n"
        "on, control for 'fonda vm console' alone, or a file to write to; with --append console=hvc0 it is "
        "Linux's"),
    OPT("port", OPTION_LIST, ports, 0, 0, "PORT",
        "a channel to the host: NAME=unix:PATH, where a socket listens, or\n"
        "NAME=control, for 'fonda vm console' alone; there:\n"
        "/dev/virtio-ports/NAME, such as --port org.qemu.guest_agent.0=unix:qga"),
    OPT("disk", OPTION_LIST, disks, 0, 0, "FILE",
        "a disk: FILE[,format=raw|qcow2][,serial=TEXT][,readonly]\n"
        "[,cache=writeback|none|writethrough|unsafe] (direct is cache=none)\n"
        "[,on-error=enospc|stop|report]: which failures pause the machine\n"
        "[,iops=N[,iops-burst=N]][,bps=SIZE[,bps-burst=SIZE]]: limits a second;\n"
        "may be given again, such as --disk root.qcow2,iops=500 --disk d.raw"),
    OPT("ephemeral", OPTION_FLAG, ephemeral, 0, 0, NULL,
        "what the guest writes to its disks is thrown away at the end"),
    OPT("user-data", OPTION_STRING, user_data, 0, 0, "FILE",
        "cloud-init's user data, on a small read-only disk (NoCloud)"),
    OPT("meta-data", OPTION_STRING, meta_data, 0, 0, "FILE",
        "its meta data (default: an instance-id made from the user data)"),
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
    OPT("balloon-size", OPTION_SIZE, balloon_bytes, MiB, 65536 * GiB, "SIZE",
        "a balloon that takes this much of the guest's memory"),
    OPT("vsock", OPTION_STRING, vsock, 0, 0, "PATH",
        "sockets between guest and host: connect to the unix socket PATH and\n"
        "send 'CONNECT PORT'; guests reach port P as PATH_P"),
    OPT("name", OPTION_STRING, name, 0, 0, "NAME", "a name, by which 'fonda vm' finds it"),
    OPT("control", OPTION_STRING, control, 0, 0, "PATH",
        "the control socket (default: by --name, else none)"),
    OPT("restore", OPTION_STRING, restore, 0, 0, "FILE",
        "go on from what 'fonda vm save' made; the machine is as it was, so\n"
        "options that say what it is made of can't be given again"),
    OPT("virtio-without", OPTION_LIST, withheld, 0, 0, "WHAT",
        "don't offer the guest's drivers a feature, for tests:\n"
        "KIND[INDEX]:FEATURE[,FEATURE]...; net:mrg_rxbuf, blk0:flush,\n"
        "all:event_idx"),
    OPT("gdb", OPTION_STRING, gdb, 0, 0, "WHERE",
        "let gdb connect to this port of 127.0.0.1 (0: a free one), or to\nunix:PATH; there: target remote "
        ":PORT"),
    OPT("gdb-wait", OPTION_FLAG, gdb_wait, 0, 0, NULL, "start only when gdb says continue"),
    OPT("timeout", OPTION_UINT, timeout_s, 1, 86400ull * 365, "S",
        "end the machine after S seconds, with status 124"),
    OPT("jail", OPTION_STRING, jail, 0, 0, "HOW",
        "on: locks the machine's process in, and says what this host can't\n"
        "give for that; quiet: the same, says nothing; require: runs only with\n"
        "all of it; off (default: on; see 'fonda jail')"),
    OPT("save-dir", OPTION_LIST, save_dirs, 0, 0, "DIR",
        "a directory that 'fonda save' may write to, beside that of the\n"
        "control socket; may be given again"),
    OPT("no-reboot", OPTION_FLAG, no_reboot, 0, 0, NULL, "a reboot ends the machine, with status 0"),
    OPT("stats", OPTION_FLAG, stats, 0, 0, NULL, "print the counters at the end"),
    OPT("help", OPTION_FLAG, help, 0, 0, NULL, "print this help"),
};
const unsigned vm_option_count = ARRAY_SIZE(vm_options);

static int check_ports(const struct vm_config *config, struct err *err)
{
    struct port_options one, two;
    if (config->console && console_options_parse(config->console, &one, err) < 0) {
        return err_prefix(err, "--console");
    }
    for (unsigned i = 0; i < config->ports.count; i++) {
        if (port_options_parse(config->ports.values[i], &one, err) < 0) {
            return err_prefix(err, "--port");
        }
        for (unsigned j = 0; j < i; j++) {
            if (port_options_parse(config->ports.values[j], &two, err) == 0 &&
                strcmp(one.name, two.name) == 0) {
                return err_set(err, -EINVAL, "--port: the name '%s' is given twice", one.name);
            }
        }
    }
    if (config->ports.count == OPTION_LIST_MAX && config->console) {
        return err_set(err, -EINVAL, "--port: beside a console there is room for %d ports",
                       OPTION_LIST_MAX - 1);
    }
    if (vm_config_console_on_terminal(config) && strcmp(config->serial, "stdio") == 0) {
        return err_set(err, -EINVAL, "--console: the terminal is the serial port's already (--serial stdio)");
    }
    return 0;
}

bool vm_config_console_on_terminal(const struct vm_config *config)
{
    return config->console && strcmp(config->console, "stdio") == 0;
}

/* Two NICs with one address, or two directories with one tag. */
static int check_pairs(const struct vm_config *config, struct err *err)
{
    struct nic_options nics[2];
    struct share_options shares[2];
    for (unsigned i = 0; i < config->nics.count; i++) {
        for (unsigned j = 0; j < i; j++) {
            nic_options_parse(config->nics.values[i], &nics[0], err);
            nic_options_parse(config->nics.values[j], &nics[1], err);
            if (nics[0].has_mac && nics[1].has_mac && memcmp(nics[0].mac, nics[1].mac, 6) == 0) {
                return err_set(err, -EINVAL, "--net: '%s' has the MAC address of another one",
                               config->nics.values[i]);
            }
        }
    }
    for (unsigned i = 0; i < config->shares.count; i++) {
        for (unsigned j = 0; j < i; j++) {
            share_options_parse(config->shares.values[i], &shares[0], err);
            share_options_parse(config->shares.values[j], &shares[1], err);
            if (strcmp(shares[0].tag, shares[1].tag) == 0) {
                return err_set(err, -EINVAL, "--share: the tag '%s' is given twice", shares[0].tag);
            }
        }
    }
    return 0;
}

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
    int rc = check_ports(config, err);
    return rc ? rc : check_pairs(config, err);
}

/* Options, and one disk among them by its name alone: it is the first. */
static int parse_arguments(struct vm_config *config, int argc, char **argv, int first, struct err *err)
{
    const char *disk = NULL;
    for (int next = first; next < argc; next++) {
        next = options_parse(vm_options, vm_option_count, argc, argv, next, config, err);
        if (next < 0) {
            return next;
        }
        if (next < argc && disk) {
            return err_set(err, -EINVAL, "unexpected argument '%s': further disks go by --disk", argv[next]);
        }
        disk = next < argc ? argv[next] : disk;
    }
    if (disk && config->disks.count == OPTION_LIST_MAX) {
        return err_set(err, -EINVAL, "more than %d disks", OPTION_LIST_MAX);
    }
    if (disk) {
        memmove(config->disks.values + 1, config->disks.values,
                config->disks.count * sizeof(config->disks.values[0]));
        config->disks.values[0] = disk;
        config->disks.count++;
    }
    return 0;
}

int vm_config_parse(int argc, char **argv, int first, struct vm_config *ret_config, struct err *err)
{
    struct vm_config config = {
        .memory_bytes = 512 * MiB, .cpus = 1, .engine = "bt", .cpu_model = "host", .rng = "on", .jail = "on"};
    int rc = parse_arguments(&config, argc, argv, first, err);
    if (rc < 0) {
        return rc;
    }
    if (!config.kernel && config.disks.count == 0 && !config.help && !config.restore) {
        return err_set(err, -EINVAL, "nothing to boot: name a disk image, or --kernel FILE");
    }
    if (config.name && !rundir_name_valid(config.name)) {
        return err_set(err, -EINVAL, "--name: '%.64s' is no name: 1 to %u letters, digits, '-', '_' and '.'",
                       config.name, RUNDIR_NAME_MAX);
    }
    if (!config.kernel && config.initrds.count && !config.help) {
        return err_set(err, -EINVAL, "--initrd needs --kernel");
    }
    if (config.meta_data && !config.user_data) {
        return err_set(err, -EINVAL, "--meta-data needs --user-data");
    }
    if (!config.serial) {
        config.serial = vm_config_console_on_terminal(&config) ? "none" : "stdio";
    }
    if (config.serial[0] == '\0') {
        return err_set(err, -EINVAL, "--serial: '' is not stdio, none or a file");
    }
    if (config.gdb && gdb_where_parse(config.gdb, NULL, err) < 0) {
        return err_prefix(err, "--gdb");
    }
    if (config.gdb_wait && !config.gdb) {
        return err_set(err, -EINVAL, "--gdb-wait needs --gdb WHERE");
    }
    if (config.balloon_bytes >= config.memory_bytes) {
        return err_set(err, -EINVAL, "--balloon-size: the balloon is as large as the guest's memory");
    }
    rc = check_devices(&config, err);
    if (rc < 0) {
        return rc;
    }
    config.argc = argc - first;
    config.argv = argv + first;
    config.memory_bytes = align_up(config.memory_bytes, 4096);
    *ret_config = config;
    return 0;
}
