/*
 * The commands and their options. What is not here does not exist: parsing, --help, man pages and completions
 * all read these tables.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"

#define AT(member) offsetof(struct cli_options, member)

const struct option_spec cli_option_specs[] = {
    {"all", OPTION_FLAG, AT(all), 0, 0, NULL, "those that don't run too (they are always listed)"},
    {"append", OPTION_STRING, AT(append), 0, 0, "TEXT", "the kernel's command line"},
    {"autostart", OPTION_FLAG, AT(autostart), 0, 0, NULL, "start with the daemon"},
    {"after", OPTION_UINT, AT(after), 0, INT64_MAX, "NUMBER", "only what came behind this number"},
    {"backup", OPTION_FLAG, AT(backup), 0, 0, NULL, "make backups instead of snapshots"},
    {"cpu-limit", OPTION_STRING, AT(cpu_limit), 0, 0, "NUMBER", "at most so much CPU time, in CPUs: 1.5"},
    {"cpu-weight", OPTION_STRING, AT(cpu_weight), 0, 0, "NUMBER",
     "its share of CPU time where that is short, 1 to 10000 (100)"},
    {"cpus", OPTION_STRING, AT(cpus), 0, 0, "NUMBER", "virtual CPUs"},
    {"cron", OPTION_STRING, AT(cron), 0, 0, "TIMES",
     "minute, hour, day, month, day of the week, such as '30 3 * * 1-5', in the daemon's local time"},
    {"description", OPTION_STRING, AT(description), 0, 0, "TEXT", "free text"},
    {"disk", OPTION_LIST, AT(disks), 0, 0, "FILE[,OPTIONS]",
     "a disk on the host, as 'fonda run --disk' takes it"},
    {"engine", OPTION_STRING, AT(engine), 0, 0, "NAME", "how guest code runs: bt, kvm"},
    {"every", OPTION_STRING, AT(every), 0, 0, "TIME", "such as 30m, 12h or 7d"},
    {"filter", OPTION_STRING, AT(filter), 0, 0, "TEXT", "only what fits: 'state=running and memory>=1G'"},
    {"follow", OPTION_FLAG, AT(follow), 0, 0, NULL, "go on with what comes"},
    {"force", OPTION_FLAG, AT(force), 0, 0, NULL, "at once, without asking the guest"},
    {"full", OPTION_FLAG, AT(full), 0, 0, NULL, "copy the disks instead of linking to the template's"},
    {"initrd", OPTION_LIST, AT(initrds), 0, 0, "FILE", "an initial RAM disk"},
    {"keep-for", OPTION_STRING, AT(keep_for), 0, 0, "TIME",
     "delete what is older, but the newest; such as 7d"},
    {"keep-last", OPTION_UINT, AT(keep_last), 1, 1000, "NUMBER", "delete all but so many"},
    {"kernel", OPTION_STRING, AT(kernel), 0, 0, "FILE", "the kernel to boot"},
    {"label", OPTION_LIST, AT(labels), 0, 0, "NAME=TEXT", "a label"},
    {"limit", OPTION_UINT, AT(limit), 1, 10000, "NUMBER", "at most so many"},
    {"linked", OPTION_FLAG, AT(linked), 0, 0, NULL,
     "disks have only what differs; the original can't start as long as there are such copies"},
    {"memory", OPTION_STRING, AT(memory), 0, 0, "SIZE", "memory, such as 512M"},
    {"memory-limit", OPTION_STRING, AT(memory_limit), 0, 0, "SIZE",
     "of its process, guest memory included: allow 64M, and 64M for each virtual CPU, beyond it"},
    {"mode", OPTION_STRING, AT(mode), 0, 0, "MODE", "user, tap or wire"},
    {"net-options", OPTION_STRING, AT(net_options), 0, 0, "TEXT", "further options of the network"},
    {"network", OPTION_LIST, AT(networks), 0, 0, "NAME",
     "a network to be attached to; 'user' is always there"},
    {"no-memory", OPTION_FLAG, AT(no_memory), 0, 0, NULL, "the disks alone, also of one that runs"},
    {"no-open", OPTION_FLAG, AT(no_open), 0, 0, NULL, "print the link, and open no browser"},
    {"no-reboot", OPTION_FLAG, AT(no_reboot), 0, 0, NULL, "a reboot ends it"},
    {"no-wait", OPTION_FLAG, AT(no_wait), 0, 0, NULL, "print the job's name instead of waiting for its end"},
    {"pids-limit", OPTION_STRING, AT(pids_limit), 0, 0, "NUMBER", "threads of its process at most"},
    {"publish", OPTION_LIST, AT(publish), 0, 0, "HOST:GUEST", "a port of the host"},
    {"raw", OPTION_FLAG, AT(raw), 0, 0, NULL, "stored raw instead of as qcow2: without snapshots"},
    {"restart", OPTION_STRING, AT(restart), 0, 0, "POLICY",
     "when it ends by itself: never, on-failure, always"},
    {"role", OPTION_STRING, AT(role), 0, 0, "ROLE", "none, viewer, operator or admin"},
    {"share", OPTION_LIST, AT(shares), 0, 0, "DIRECTORY:TAG", "a directory of the host"},
    {"signal", OPTION_STRING, AT(signal), 0, 0, "SIGNAL", "such as TERM or 15 (default: KILL)"},
    {"size", OPTION_STRING, AT(size), 0, 0, "SIZE", "such as 10G"},
    {"snapshot", OPTION_STRING, AT(snapshot), 0, 0, "NAME",
     "copy this snapshot's disks; then the instance may run"},
    {"sort", OPTION_STRING, AT(sort), 0, 0, "MEMBERS", "such as -memory,name"},
    {"start", OPTION_FLAG, AT(start), 0, 0, NULL, "and start it"},
    {"tail", OPTION_UINT, AT(tail), 0, INT32_MAX, "LINES", "only the last lines (containers)"},
    {"timestamps", OPTION_FLAG, AT(timestamps), 0, 0, NULL, "with the time of each line (containers)"},
    {"timeout", OPTION_UINT, AT(timeout), 0, 3600, "SECONDS", "until it is ended by force"},
    {"trust", OPTION_FLAG, AT(trust), 0, 0, NULL,
     "also take what names the host's files: kernel, shares, published ports"},
    {"volume", OPTION_LIST, AT(volumes), 0, 0, "NAME", "a volume as a further disk"},
    {"with-memory", OPTION_FLAG, AT(with_memory), 0, 0, NULL, "snapshots with memory, while it runs"},
    {"volumes", OPTION_FLAG, AT(with_volumes), 0, 0, NULL,
     "its volumes too, but those that something else uses"},
    /* common */
    {"ca", OPTION_STRING, AT(ca), 0, 0, "FILE", "who signed the remote daemon's certificate"},
    {"cert", OPTION_STRING, AT(cert), 0, 0, "FILE", "a certificate to sign in with"},
    {"context", OPTION_STRING, AT(context), 0, 0, "NAME", "a saved daemon ('fonda context')"},
    {"format", OPTION_STRING, AT(format), 0, 0, "FORMAT", "table, json, yaml or csv"},
    {"help", OPTION_FLAG, AT(help), 0, 0, NULL, "print this help"},
    {"host", OPTION_STRING, AT(host), 0, 0, "HOST:PORT",
     "a remote daemon (FONDA_HOST); FONDA_TOKEN has the token"},
    {"key", OPTION_STRING, AT(key), 0, 0, "FILE", "the certificate's key"},
    {"quiet", OPTION_FLAG, AT(quiet), 0, 0, NULL, "names alone, no progress"},
    {"state", OPTION_STRING, AT(state), 0, 0, "DIR", "the local daemon's state directory (FONDA_STATE)"},
};
const unsigned cli_option_spec_count = ARRAY_SIZE(cli_option_specs);
const char cli_common_options[] = "ca cert context format help host key quiet state";

#define CREATE_OPTIONS                                                                                       \
    "append autostart cpu-limit cpu-weight cpus description disk engine initrd kernel label memory "         \
    "memory-limit network no-reboot no-wait pids-limit publish "                                             \
    "restart share volume"
#define LIST_OPTIONS "filter sort limit"
#define MANY         99

#define INSTANCES_GROUP "Instances"
#define THINGS_GROUP    "What they use"
#define DAEMON_GROUP    "The daemon"
#define LOCAL_GROUP     "Without the daemon"

const struct cli_command cli_commands[] = {
    {"launch", INSTANCES_GROUP, "NAME", "create an instance and start it", CREATE_OPTIONS, 1, 1,
     COMPLETE_NONE, NULL, "  fonda launch web --kernel /boot/vmlinuz --initrd /boot/initrd.img --memory 1G\n",
     cmd_launch, NULL, false},
    {"create", INSTANCES_GROUP, "NAME", "create an instance", CREATE_OPTIONS " start", 1, 1, COMPLETE_NONE,
     NULL, "  fonda create web --kernel /boot/vmlinuz --label team=web\n", cmd_create, NULL, false},
    {"ps", INSTANCES_GROUP, "", "list instances", LIST_OPTIONS " all", 0, 0, COMPLETE_NONE, NULL,
     "  fonda ps --filter 'state=running and labels.team=web' --sort -memory\n  fonda ps --format json\n",
     cmd_ps, NULL, false},
    {"show", INSTANCES_GROUP, "INSTANCE", "all that is known about one", "", 1, 1, COMPLETE_INSTANCES, NULL,
     "  fonda show web\n", cmd_show, NULL, false},
    {"start", INSTANCES_GROUP, "INSTANCE...", "start", "no-wait", 1, MANY, COMPLETE_INSTANCES, NULL,
     "  fonda start web db\n", cmd_verb, NULL, false},
    {"stop", INSTANCES_GROUP, "INSTANCE...", "stop: power button first, force after a time",
     "force timeout no-wait", 1, MANY, COMPLETE_INSTANCES, NULL,
     "  fonda stop web --timeout 60\n  fonda stop --force web\n", cmd_stop, NULL, false},
    {"restart", INSTANCES_GROUP, "INSTANCE...", "stop and start", "force timeout no-wait", 1, MANY,
     COMPLETE_INSTANCES, NULL, "  fonda restart web\n", cmd_stop, NULL, false},
    {"pause", INSTANCES_GROUP, "INSTANCE...", "stand still", "no-wait", 1, MANY, COMPLETE_INSTANCES, NULL,
     "  fonda pause web\n", cmd_verb, NULL, false},
    {"resume", INSTANCES_GROUP, "INSTANCE...", "go on", "no-wait", 1, MANY, COMPLETE_INSTANCES, NULL,
     "  fonda resume web\n", cmd_verb, NULL, false},
    {"delete", INSTANCES_GROUP, "INSTANCE...", "delete; volumes stay, but with --volumes",
     "force volumes no-wait", 1, MANY, COMPLETE_INSTANCES, NULL,
     "  fonda delete web\n  fonda delete --force web    (ends it first)\n  fonda delete --volumes web\n",
     cmd_delete, NULL, false},
    {"rename", INSTANCES_GROUP, "INSTANCE NAME", "give another name", "", 2, 2, COMPLETE_INSTANCES, NULL,
     "  fonda rename web old-web\n", cmd_rename, NULL, false},
    {"save", INSTANCES_GROUP, "INSTANCE...", "keep its memory in a file and end it; 'start' goes on there",
     "no-wait", 1, MANY, COMPLETE_INSTANCES, NULL, "  fonda save web\n  fonda start web\n", cmd_verb, NULL,
     false},
    {"snapshot", INSTANCES_GROUP,
     "create INSTANCE [NAME] | list INSTANCE | tree INSTANCE | show, restore, delete INSTANCE NAME",
     "its disks, and its memory if it runs, at one moment; and back",
     LIST_OPTIONS " description no-memory no-wait start", 2, 3, COMPLETE_VERBS,
     "create list tree show restore delete",
     "  fonda snapshot create web before-upgrade\n  fonda snapshot tree web\n"
     "  fonda snapshot restore web before-upgrade\n",
     cmd_snapshot, NULL, false},
    {"clone", INSTANCES_GROUP, "INSTANCE NAME",
     "copy a stopped instance, or a snapshot of one; disks included", "linked snapshot no-wait", 2, 2,
     COMPLETE_INSTANCES, NULL,
     "  fonda clone web web2\n  fonda clone --linked web web2\n  fonda clone --snapshot before web web2\n",
     cmd_clone, NULL, false},
    {"template", INSTANCES_GROUP, "list | show NAME | create NAME INSTANCE | use NAME INSTANCE | delete NAME",
     "what instances are made from: configuration and disks that don't change",
     LIST_OPTIONS " description full no-wait start", 1, 3, COMPLETE_VERBS, "list show create use delete",
     "  fonda template create web-base web\n  fonda template use web-base web7 --start\n", cmd_template, NULL,
     false},
    {"export", INSTANCES_GROUP, "INSTANCE FILE",
     "write disks and configuration into one file, on the daemon's host", "no-wait", 2, 2, COMPLETE_INSTANCES,
     NULL, "  fonda export web web.tar\n", cmd_export, NULL, false},
    {"import", INSTANCES_GROUP, "FILE NAME", "make an instance from such a file, when all of it was verified",
     "trust no-wait", 2, 2, COMPLETE_FILES, NULL, "  fonda import web.tar web2\n", cmd_import, NULL, false},
    {"backup", INSTANCES_GROUP,
     "create INSTANCE [NAME] | list | show NAME | verify NAME | restore NAME [NEW-INSTANCE] | delete NAME",
     "an instance's disks and configuration in a file that the daemon keeps",
     LIST_OPTIONS " description no-wait", 1, 3, COMPLETE_VERBS, "create list show verify restore delete",
     "  fonda backup create web\n  fonda backup restore web-20240506-070809 web2\n", cmd_backup, NULL, false},
    {"schedule", INSTANCES_GROUP,
     "create NAME INSTANCE | list | show NAME | enable NAME | disable NAME | delete NAME",
     "snapshots or backups at certain times, and how long they are kept",
     LIST_OPTIONS " backup cron description every keep-for keep-last with-memory", 1, 3, COMPLETE_VERBS,
     "create list show enable disable delete",
     "  fonda schedule create nightly web --cron '30 3 * * *' --backup --keep-last 7\n"
     "  fonda schedule create hourly web --every 1h --keep-for 2d\n",
     cmd_schedule, NULL, false},
    {"set", INSTANCES_GROUP, "INSTANCE MEMBER=VALUE...", "change members; see 'fonda show'", "", 2, MANY,
     COMPLETE_INSTANCES, NULL, "  fonda set web memory=2G cpus=2\n  fonda set web restart_policy=always\n",
     cmd_set, NULL, false},
    {"disk", INSTANCES_GROUP, "list INSTANCE | attach INSTANCE FILE[,OPTIONS] | detach INSTANCE FILE",
     "an instance's disks, also while it runs", "no-wait", 2, 3, COMPLETE_VERBS, "list attach detach",
     "  fonda disk attach web /srv/data.qcow2,iops=500\n  fonda disk detach web /srv/data.qcow2\n",
     cmd_device, NULL, false},
    {"nic", INSTANCES_GROUP, "list INSTANCE | attach INSTANCE NETWORK | detach INSTANCE NETWORK",
     "an instance's networks, also while it runs", "no-wait", 2, 3, COMPLETE_VERBS, "list attach detach",
     "  fonda nic attach web lan\n  fonda nic detach web lan\n", cmd_device, NULL, false},
    {"console", INSTANCES_GROUP, "INSTANCE", "the serial console; Ctrl-] leaves it", "", 1, 1,
     COMPLETE_INSTANCES, NULL, "  fonda console web\n", cmd_console, NULL, false},
    {"logs", INSTANCES_GROUP, "INSTANCE", "what the console has shown, or a container has printed",
     "follow tail timestamps", 1, 1, COMPLETE_INSTANCES, NULL,
     "  fonda logs web\n  fonda logs -f --tail 20 web\n", cmd_logs, NULL, false},
    {"stats", INSTANCES_GROUP, "INSTANCE", "what it uses, and what its engine counts", "", 1, 1,
     COMPLETE_INSTANCES, NULL, "  fonda stats web --format json\n", cmd_stats, NULL, false},
    {"exec", INSTANCES_GROUP, "[OPTIONS] INSTANCE COMMAND...", "run another program in a container", "", 0,
     MANY, COMPLETE_INSTANCES, NULL, "  fonda exec -it web sh\n", NULL, cli_exec, false},
    {"shell", INSTANCES_GROUP, "INSTANCE", "a shell in a container; a machine's console (Ctrl-] leaves it)",
     "", 1, 1, COMPLETE_INSTANCES, NULL, "  fonda shell web\n", cmd_shell, NULL, false},
    {"attach", INSTANCES_GROUP, "INSTANCE", "a container's input and output; Ctrl-P Ctrl-Q leaves it", "", 1,
     1, COMPLETE_INSTANCES, NULL, "  fonda attach web\n", cmd_attach, NULL, false},
    {"kill", INSTANCES_GROUP, "INSTANCE...", "send a signal to a container", "signal", 1, MANY,
     COMPLETE_INSTANCES, NULL, "  fonda kill web\n  fonda kill -s HUP web\n", cmd_kill, NULL, false},
    {"wait", INSTANCES_GROUP, "INSTANCE", "wait for its end, print the exit status", "", 1, 1,
     COMPLETE_INSTANCES, NULL, "  fonda wait job\n", cmd_wait, NULL, false},
    {"cp", INSTANCES_GROUP, "INSTANCE:PATH PATH | PATH INSTANCE:FOLDER",
     "copy files out of or into a container; '-': tar", "", 2, 2, COMPLETE_FILES, NULL,
     "  fonda cp web:/etc/nginx .\n  fonda cp site.conf web:/etc/nginx\n", cmd_cp, NULL, false},
    {"rm", INSTANCES_GROUP, "INSTANCE...", "delete", "force no-wait", 1, MANY, COMPLETE_INSTANCES, NULL,
     "  fonda rm -f web\n", cmd_delete, NULL, false},
    {"top", INSTANCES_GROUP, "[CONTAINER]", "CPU and memory of what runs; a container's processes", "", 0, 1,
     COMPLETE_INSTANCES, NULL, "  fonda top\n  fonda top web\n", cmd_top, NULL, false},

    {"volume", THINGS_GROUP, "list | show NAME | create NAME | delete NAME", "disks that outlive instances",
     LIST_OPTIONS " size description raw", 1, 2, COMPLETE_VERBS, "list show create delete",
     "  fonda volume create data --size 10G\n  fonda launch db --kernel vmlinuz --volume data\n", cmd_object,
     NULL, false},
    {"network", THINGS_GROUP, "list | show NAME | create NAME | delete NAME",
     "what instances are attached to", LIST_OPTIONS " mode net-options description", 1, 2, COMPLETE_VERBS,
     "list show create delete", "  fonda network create lan --mode tap --net-options ifname=tap0\n",
     cmd_object, NULL, false},
    {"user", THINGS_GROUP, "list | show NAME | create NAME | delete NAME | token NAME",
     "who may use the daemon", LIST_OPTIONS " role description", 1, 2, COMPLETE_VERBS,
     "list show create delete token", "  fonda user create alice --role operator\n  fonda user token alice\n",
     cmd_object, NULL, false},

    {"job", DAEMON_GROUP, "list | show JOB | wait JOB | cancel JOB | log JOB", "work that goes on, or ended",
     LIST_OPTIONS, 1, 2, COMPLETE_VERBS, "list show wait cancel log",
     "  fonda job list --filter state=running\n", cmd_job, NULL, false},
    {"event", DAEMON_GROUP, "", "what happened; --follow: what happens", "follow after limit", 0, 0,
     COMPLETE_NONE, NULL, "  fonda event --follow\n", cmd_events, NULL, false},
    {"audit", DAEMON_GROUP, "", "who changed what", "after limit", 0, 0, COMPLETE_NONE, NULL,
     "  fonda audit\n", cmd_audit, NULL, false},
    {"serve", DAEMON_GROUP, "[OPTIONS]", "be the daemon (fondad)", "", 0, 0, COMPLETE_NONE, NULL,
     "  fonda serve --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem\n", NULL, cli_serve, true},
    {"context", DAEMON_GROUP, "list | add NAME | use NAME | delete NAME", "remote daemons by name", "", 1, 2,
     COMPLETE_VERBS, "list add use delete",
     "  FONDA_TOKEN=... fonda context add office --host office:8443 --ca ca.pem\n", cmd_context, NULL, true},
    {"web", DAEMON_GROUP, "", "open the web page, signed in: prints a link that works once", "no-open", 0, 0,
     COMPLETE_NONE, NULL, "  fonda web\n  fonda web --no-open\n", cmd_web, NULL, false},
    {"doctor", DAEMON_GROUP, "", "what this host can do, and what would mend what it can't", "", 0, 0,
     COMPLETE_NONE, NULL, "  fonda doctor\n", cmd_doctor, NULL, true},
    {"version", DAEMON_GROUP, "", "versions of the command line and the daemon", "", 0, 0, COMPLETE_NONE,
     NULL, "  fonda version\n", cmd_version, NULL, false},

    {"run", LOCAL_GROUP, "[OPTIONS]",
     "start a virtual machine here, or an image in a container (--container) or machine (--vm)", "", 0, 0,
     COMPLETE_FILES, NULL,
     "  fonda run --kernel vmlinuz --initrd initrd.img\n  fonda run --container -it --rm alpine\n"
     "  fonda run --vm -it --rm alpine\n",
     NULL, cli_run, true},
    {"vm", LOCAL_GROUP, "ps | COMMAND NAME", "machines of 'fonda run --name', without the daemon", "", 0,
     MANY, COMPLETE_VERBS, "ps console stop pause resume reset stats save snapshot",
     "  fonda run --kernel vmlinuz --name web\n  fonda vm ps\n  fonda vm stop web\n  fonda vm save web "
     "web.fonda\n  fonda vm snapshot save web before-upgrade\n",
     NULL, cli_vm, true},
    {"debug", LOCAL_GROUP, "translate | count",
     "what the translator makes of guest code, and how often it runs", "", 0, MANY, COMPLETE_VERBS,
     "translate count", "  fonda debug translate web 0xffffffff81000100\n", NULL, cli_debug, true},
    {"engines", LOCAL_GROUP, "", "which engines can run guest code on this host, and why others can't", "", 0,
     0, COMPLETE_NONE, NULL, "  fonda engines\n", NULL, cli_engines, true},
    {"jail", LOCAL_GROUP, "",
     "which layers of the machines' jail this host gives, and why others can't be had", "", 0, 0,
     COMPLETE_NONE, NULL, "  fonda jail\n", NULL, cli_jail, true},
    {"image", LOCAL_GROUP, "COMMAND", "create, convert, check and change disk images", "", 0, MANY,
     COMPLETE_FILES, "create info convert check resize rebase commit snapshot",
     "  fonda image info disk.qcow2\n", NULL, cli_image, true},
    {"completion", LOCAL_GROUP, "bash | zsh | fish", "print a completion script", "", 1, 1, COMPLETE_VERBS,
     "bash zsh fish", "  eval \"$(fonda completion bash)\"\n", cmd_completion, NULL, true},
    {"man", LOCAL_GROUP, "COMMAND", "print a command's manual page ('fonda': of all)", "", 1, 1,
     COMPLETE_NONE, NULL, "  fonda man ps | man -l -\n", cmd_man, NULL, true},
    {"help", LOCAL_GROUP, "[COMMAND]", "print this help, or a command's", "", 0, 1, COMPLETE_NONE, NULL,
     "  fonda help launch\n", cmd_help, NULL, true},
};
const unsigned cli_command_count = ARRAY_SIZE(cli_commands);

const struct cli_command *cli_find(const char *name)
{
    for (unsigned i = 0; i < cli_command_count; i++) {
        if (strcmp(cli_commands[i].name, name) == 0) {
            return &cli_commands[i];
        }
    }
    return NULL;
}

static bool in_words(const char *words, const char *word)
{
    size_t len = strlen(word);
    while (*words) {
        size_t n = strcspn(words, " ");
        if (n == len && memcmp(words, word, n) == 0) {
            return true;
        }
        words += n;
        words += *words == ' ';
    }
    return false;
}

bool cli_has_option(const struct cli_command *command, const char *option)
{
    return in_words(command->options, option) || (!command->become && in_words(cli_common_options, option));
}
