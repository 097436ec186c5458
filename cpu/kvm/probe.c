/*
 * Whether this host's KVM can run the engine, and if not, exactly why.
 *
 * Neighbours: engine.c opens the device through kvm_open(); `fonda engines` prints what kvm_probe() says.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "cpu/kvm/kvm_int.h"

#define KVM_DEVICE "/dev/kvm"

static const struct {
    int cap;
    const char *name;
} needed_caps[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_USER_NMI, "KVM_CAP_USER_NMI"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
    {KVM_CAP_XCRS, "KVM_CAP_XCRS"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"},
    {KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"},
};

/* VT-x: CPUID.1:ECX[5] (SDM vol. 3C, 24.6); AMD-V: CPUID.80000001h:ECX[2] (APM vol. 3, E.4.2). */
static bool host_has_virtualization(void)
{
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & BIT(5))) {
        return true;
    }
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & BIT(2));
}

static int explain_no_access(struct err *err)
{
    struct stat st;
    if (stat(KVM_DEVICE, &st) < 0) {
        return err_set(err, -EACCES, "no permission to reach " KVM_DEVICE);
    }
    if (!(st.st_mode & S_IRGRP) || !(st.st_mode & S_IWGRP)) {
        return err_set(err, -EACCES,
                       "no permission for " KVM_DEVICE
                       ": its mode is %04o, so only its owner (uid %u) may use it",
                       (unsigned)(st.st_mode & 07777), (unsigned)st.st_uid);
    }
    const struct group *group = getgrgid(st.st_gid);
    if (!group) {
        return err_set(err, -EACCES,
                       "no permission for " KVM_DEVICE
                       ": this user is not in its group (gid %u, which has no name)",
                       (unsigned)st.st_gid);
    }
    return err_set(err, -EACCES,
                   "no permission for " KVM_DEVICE
                   ": this user is not in the group '%s' (as root: usermod -aG %s USER, "
                   "then log in anew)",
                   group->gr_name, group->gr_name);
}

int kvm_open(struct err *err)
{
    auto_close int fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        switch (errno) {
        case ENOENT:
            return err_set(err, -ENOENT, "there is no " KVM_DEVICE ": %s",
                           host_has_virtualization()
                               ? "the kernel's KVM module is not loaded, or the device is not "
                                 "passed into this container"
                               : "this CPU shows neither VT-x nor AMD-V");
        case EACCES:
        case EPERM: return explain_no_access(err);
        case ENODEV:
        case ENXIO: return err_set(err, -errno, KVM_DEVICE " exists but no driver answers it");
        default: return err_sys(err, -errno, "cannot open " KVM_DEVICE);
        }
    }
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version < 0) {
        return err_sys(err, -errno, KVM_DEVICE " does not answer as KVM does");
    }
    if (version != KVM_API_VERSION) {
        return err_set(err, -ENOTSUP, KVM_DEVICE " speaks API version %d, this build speaks %d", version,
                       KVM_API_VERSION);
    }
    for (size_t i = 0; i < ARRAY_SIZE(needed_caps); i++) {
        if (ioctl(fd, KVM_CHECK_EXTENSION, needed_caps[i].cap) <= 0) {
            return err_set(err, -ENOTSUP, "the host kernel's KVM is too old: it lacks %s",
                           needed_caps[i].name);
        }
    }
    return take_fd(&fd);
}

/* Runs `mov al, 0x5a; out 0xf4, al; hlt` in real mode: a device that opens but can't run even this is broken.
 */
static int try_guest(int dev_fd, struct err *err)
{
    static const uint8_t code[] = {0xb0, 0x5a, 0xe6, 0xf4, 0xf4};
    int run_bytes = ioctl(dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_bytes < (int)sizeof(struct kvm_run)) {
        return err_set(err, -EIO, KVM_DEVICE " is broken: KVM_GET_VCPU_MMAP_SIZE says %d", run_bytes);
    }
    auto_close int vm_fd = ioctl(dev_fd, KVM_CREATE_VM, 0);
    if (vm_fd < 0) {
        int code_errno = errno;
        if (code_errno == EBUSY) {
            return err_set(err, -EBUSY,
                           "another hypervisor on this host holds the CPU's virtualization (KVM_CREATE_VM)");
        }
        return err_sys(err, -code_errno,
                       KVM_DEVICE " exists but cannot make a virtual machine (KVM_CREATE_VM)");
    }
    uint8_t *page = mmap(NULL, MEM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return err_sys(err, -errno, "no memory for a trial guest");
    }
    memcpy(page, code, sizeof(code));
    int rc;
    struct kvm_run *run = MAP_FAILED;
    auto_close int vcpu_fd = -1;
    struct kvm_userspace_memory_region region = {
        .slot = 0, .guest_phys_addr = 0, .memory_size = MEM_PAGE_SIZE, .userspace_addr = (uintptr_t)page};
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = 0, .rflags = 2};
    const char *step = "KVM_SET_TSS_ADDR";
    if (ioctl(vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000ul) < 0 ||
        (step = "KVM_SET_USER_MEMORY_REGION", ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0) ||
        (step = "KVM_CREATE_VCPU", (vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0)) < 0) ||
        (step = "mmap of kvm_run", (run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                               vcpu_fd, 0)) == MAP_FAILED) ||
        (step = "KVM_GET_SREGS", ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)) {
        rc = err_sys(err, -errno, KVM_DEVICE " exists but is broken (%s)", step);
        goto out;
    }
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if ((step = "KVM_SET_SREGS", ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) < 0) ||
        (step = "KVM_SET_REGS", ioctl(vcpu_fd, KVM_SET_REGS, &regs) < 0) ||
        (step = "KVM_RUN", ioctl(vcpu_fd, KVM_RUN, 0) < 0)) {
        rc = err_sys(err, -errno, KVM_DEVICE " exists but is broken (%s)", step);
        goto out;
    }
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0xf4 ||
        ((uint8_t *)run)[run->io.data_offset] != 0x5a) {
        rc = err_set(err, -EIO,
                     KVM_DEVICE " is broken: a guest of three instructions ended with exit reason %u",
                     run->exit_reason);
        goto out;
    }
    rc = 0;
out:
    if (run != MAP_FAILED) {
        munmap(run, (size_t)run_bytes);
    }
    munmap(page, MEM_PAGE_SIZE);
    return rc;
}

int kvm_probe(struct err *err)
{
    auto_close int fd = kvm_open(err);
    if (fd < 0) {
        return fd;
    }
    int rc = try_guest(fd, err);
    if (rc < 0) {
        return rc;
    }
    if (access("/sys/module/kvm_pvm", F_OK) == 0) {
        return err_set(
            err, 0,
            "works, but slowly: this host's KVM is pvm, which has no hardware virtualization beneath and "
            "emulates the kernels of unmodified guests");
    }
    if (!host_has_virtualization()) {
        return err_set(err, 0,
                       "works, but probably slowly: " KVM_DEVICE
                       " answers although this CPU shows neither VT-x nor "
                       "AMD-V, so the kernels of unmodified guests are emulated");
    }
    return 0;
}
