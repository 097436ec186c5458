/*
 * `fonda run`, `fonda engines`, `fonda jail`, `fonda image` and `fonda serve`: become fonda-vmm, fonda-image
 * or fondad, which lie beside this program or in libexec.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "vm/config.h"
#include "vm/status.h"

#define VMM_NAME "fonda-vmm"

/* Where a program may lie, from the directory of the real binary (links are resolved): an installed tree,
 * then a build tree. */
static const char *const program_places[] = {"",       "../libexec/fonda/", "../libexec/", "../sbin/",
                                             "../vm/", "../daemon/"};

int cli_become_program(char **argv)
{
    const char *name = argv[0];
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n < 0) {
        log_error("cannot find %s: /proc/self/exe: %s", name, strerror(errno));
        return VM_STATUS_HOST;
    }
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    slash[1] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(program_places); i++) {
        char path[2 * PATH_MAX];
        snprintf(path, sizeof(path), "%s%s%s", self, program_places[i], name);
        execv(path, argv);
        if (errno != ENOENT && errno != ENOTDIR) {
            log_error("cannot run '%s': %s", path, strerror(errno));
            return VM_STATUS_HOST;
        }
    }
    log_error("cannot find %s beside %s or in ../libexec: is the installation complete?", name, self);
    return VM_STATUS_HOST;
}

static void print_run_help(void)
{
    printf("usage: fonda run DISK [OPTIONS]\n       fonda run --kernel FILE [OPTIONS]\n"
           "       fonda run --container [OPTIONS] IMAGE [COMMAND...]   (fonda run --container --help)\n"
           "       fonda run --vm [OPTIONS] IMAGE [COMMAND...]          (the same image as a machine)\n\n"
           "Starts a virtual machine and connects this terminal to its serial console. DISK is the first "
           "--disk; "
           "without\n"
           "--kernel the kernel that lies on it is started. Ctrl-A P presses the power button, Ctrl-A X ends "
           "the "
           "machine,\n"
           "Ctrl-A H lists the other keys. SIGTERM presses the power button too, where the guest listens to "
           "it; the "
           "second\n"
           "one ends the machine.\n\nOptions:\n");
    options_print(stdout, vm_options, vm_option_count);
    printf("\nExit status:\n");
    vm_status_print(stdout);
    printf("\nExamples:\n"
           "  fonda run debian.qcow2 --memory 2G --publish 2222:22\n"
           "  fonda run debian.qcow2 --ephemeral --append systemd.unit=rescue.target\n"
           "  fonda run --kernel /boot/vmlinuz --initrd /boot/initrd.img\n"
           "  fonda run --kernel vmlinuz --initrd test.cpio --append 'console=ttyS0 quiet' --memory 1G\n"
           "  fonda run --kernel tests.elf --serial log.txt --timeout 60 --no-reboot --stats\n"
           "  fonda run --kernel vmlinuz --engine kvm --cpus 2\n"
           "  fonda run debian.qcow2 --console stdio --serial boot.log\n"
           "  fonda run debian.qcow2 --port org.qemu.guest_agent.0=unix:/tmp/agent.sock\n"
           "  fonda run --kernel vmlinuz --disk web.qcow2 --name web\n"
           "  fonda run --restore web.fonda --name web\n"
           "  fonda run --kernel vmlinuz --disk db.qcow2 --net none --jail require\n");
}

int cli_run(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--container") == 0 || strcmp(argv[i], "--vm") == 0) {
            return cli_run_container(argc, argv);
        }
    }
    struct vm_config config;
    struct err err = {0};
    if (vm_config_parse(argc, argv, 1, &config, &err) < 0) {
        log_error("%s (see 'fonda run --help')", err.text);
        return VM_STATUS_USAGE;
    }
    if (config.help) {
        print_run_help();
        return 0;
    }
    argv[0] = VMM_NAME;
    return cli_become_program(argv);
}

int cli_engines(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        printf("usage: fonda engines\n\nLists the engines of this build, and for each that can't run here, "
               "why.\n");
        return 0;
    }
    if (argc > 1) {
        log_error("unexpected argument '%s' (see 'fonda engines --help')", argv[1]);
        return VM_STATUS_USAGE;
    }
    char *vmm_argv[] = {VMM_NAME, "--list-engines", NULL};
    return cli_become_program(vmm_argv);
}

int cli_jail(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        printf("usage: fonda jail\n\nTries the layers of the jail that a machine's process is locked into, "
               "and says "
               "for each that\nthis host does not give, why. Status 0 when all are there, else 1.\n");
        return 0;
    }
    if (argc > 1) {
        log_error("unexpected argument '%s' (see 'fonda jail --help')", argv[1]);
        return VM_STATUS_USAGE;
    }
    char *vmm_argv[] = {VMM_NAME, "--list-jail", NULL};
    return cli_become_program(vmm_argv);
}

int cli_image(int argc, char **argv)
{
    argv[0] = "fonda-image";
    return cli_become_program(argv);
}

int cli_serve(int argc, char **argv)
{
    argv[0] = "fondad";
    return cli_become_program(argv);
}
