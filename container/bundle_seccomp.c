/*
 * The default seccomp profile: every call that the kernel interface of today has is allowed, but for those of
 * the table below, which need a capability that the container hasn't got, or are never needed by programs and
 * have been a way into the kernel. Calls that this list doesn't know (newer than libseccomp) fail with
 * ENOSYS, so that programs fall back.
 */
#include "base/util.h"
#include "container/bundle.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>

#define NEVER     64 /* no capability lets it through */
#define CALLS_MAX 1024
#define NEW_SPACES                                                                                           \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |            \
     CLONE_NEWNET)

static const struct {
    const char *name;
    int cap; /* that allows it */
} guarded[] = {
    {"_sysctl", NEVER},
    {"acct", CAP_SYS_PACCT},
    {"add_key", NEVER},
    {"afs_syscall", NEVER},
    {"bdflush", NEVER},
    {"bpf", CAP_SYS_ADMIN},
    {"clock_settime", CAP_SYS_TIME},
    {"clock_settime64", CAP_SYS_TIME},
    {"create_module", NEVER},
    {"delete_module", CAP_SYS_MODULE},
    {"fanotify_init", CAP_SYS_ADMIN},
    {"finit_module", CAP_SYS_MODULE},
    {"fsconfig", CAP_SYS_ADMIN},
    {"fsmount", CAP_SYS_ADMIN},
    {"fsopen", CAP_SYS_ADMIN},
    {"fspick", CAP_SYS_ADMIN},
    {"get_kernel_syms", NEVER},
    {"init_module", CAP_SYS_MODULE},
    {"io_uring_enter", NEVER},
    {"io_uring_register", NEVER},
    {"io_uring_setup", NEVER},
    {"ioperm", CAP_SYS_RAWIO},
    {"iopl", CAP_SYS_RAWIO},
    {"kcmp", CAP_SYS_PTRACE},
    {"kexec_file_load", CAP_SYS_BOOT},
    {"kexec_load", CAP_SYS_BOOT},
    {"keyctl", NEVER},
    {"lookup_dcookie", CAP_SYS_ADMIN},
    {"mbind", CAP_SYS_NICE},
    {"migrate_pages", CAP_SYS_NICE},
    {"mount", CAP_SYS_ADMIN},
    {"mount_setattr", CAP_SYS_ADMIN},
    {"move_mount", CAP_SYS_ADMIN},
    {"move_pages", CAP_SYS_NICE},
    {"nfsservctl", NEVER},
    {"open_by_handle_at", CAP_DAC_READ_SEARCH},
    {"open_tree", CAP_SYS_ADMIN},
    {"perf_event_open", CAP_PERFMON},
    {"pivot_root", CAP_SYS_ADMIN},
    {"process_madvise", CAP_SYS_PTRACE},
    {"process_vm_readv", CAP_SYS_PTRACE},
    {"process_vm_writev", CAP_SYS_PTRACE},
    {"query_module", NEVER},
    {"quotactl", CAP_SYS_ADMIN},
    {"quotactl_fd", CAP_SYS_ADMIN},
    {"reboot", CAP_SYS_BOOT},
    {"request_key", NEVER},
    {"set_mempolicy", CAP_SYS_NICE},
    {"set_mempolicy_home_node", CAP_SYS_NICE},
    {"setdomainname", CAP_SYS_ADMIN},
    {"sethostname", CAP_SYS_ADMIN},
    {"setns", CAP_SYS_ADMIN},
    {"settimeofday", CAP_SYS_TIME},
    {"stime", CAP_SYS_TIME},
    {"swapoff", CAP_SYS_ADMIN},
    {"swapon", CAP_SYS_ADMIN},
    {"sysfs", NEVER},
    {"syslog", CAP_SYSLOG},
    {"umount", CAP_SYS_ADMIN},
    {"umount2", CAP_SYS_ADMIN},
    {"unshare", CAP_SYS_ADMIN},
    {"uselib", NEVER},
    {"userfaultfd", NEVER},
    {"ustat", NEVER},
    {"vhangup", CAP_SYS_TTY_CONFIG},
    {"vm86", NEVER},
    {"vm86old", NEVER},
};

static json_t *rule(const char *action, int errno_ret, json_t *names)
{
    json_t *r = json_pack("{s:s, s:o}", "action", action, "names", names);
    if (errno_ret) {
        json_object_set_new(r, "errnoRet", json_integer(errno_ret));
    }
    return r;
}

/* One call, allowed where an argument compares. */
static json_t *rule_if(const char *name, unsigned index, const char *op, uint64_t value, uint64_t value2)
{
    json_t *r = rule("SCMP_ACT_ALLOW", 0, json_pack("[s]", name));
    json_object_set_new(r, "args",
                        json_pack("[{s:i, s:I, s:I, s:s}]", "index", (int)index, "value", (json_int_t)value,
                                  "valueTwo", (json_int_t)value2, "op", op));
    return r;
}

/* Calls of an architecture that go without a condition, into names; those that are refused into denied. */
static void add_calls(uint32_t arch, uint64_t caps, json_t *names, json_t *denied)
{
    for (int number = 0; number < CALLS_MAX; number++) {
        char *name = seccomp_syscall_resolve_num_arch(arch, number);
        if (!name) {
            continue;
        }
        size_t i = 0;
        while (i < ARRAY_SIZE(guarded) && strcmp(guarded[i].name, name) != 0) {
            i++;
        }
        bool free_pass =
            i == ARRAY_SIZE(guarded) || (guarded[i].cap != NEVER && caps & BIT64(guarded[i].cap));
        bool conditional =
            strcmp(name, "clone") == 0 || strcmp(name, "personality") == 0 || strcmp(name, "clone3") == 0;
        if (!(conditional && !(caps & BIT64(CAP_SYS_ADMIN)))) {
            json_object_set_new(free_pass ? names : denied, name, json_true());
        }
        free(name);
    }
}

static json_t *keys(json_t *object)
{
    json_t *list = json_array();
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        json_array_append_new(list, json_string(key));
    }
    json_decref(object);
    return list;
}

json_t *bundle_seccomp(uint64_t caps)
{
    /* Personalities that change nothing but what uname says, and the question which one it is. */
    static const uint64_t personalities[] = {0x0, 0x8, 0x20000, 0x20008, 0xffffffff};
    json_t *names = json_object();
    json_t *denied = json_object();
    json_t *rules = json_array();
    json_t *archs = json_array();
    add_calls(seccomp_arch_native(), caps, names, denied);
    if (seccomp_arch_native() == SCMP_ARCH_X86_64) {
        add_calls(SCMP_ARCH_X86, caps, names, denied);
        json_array_append_new(archs, json_string("SCMP_ARCH_X86_64"));
        json_array_append_new(archs, json_string("SCMP_ARCH_X86"));
    }
    json_array_append_new(rules, rule("SCMP_ACT_ALLOW", 0, keys(names)));
    if (json_object_size(denied)) {
        json_array_append_new(rules, rule("SCMP_ACT_ERRNO", EPERM, keys(denied)));
    } else {
        json_decref(denied);
    }
    if (!(caps & BIT64(CAP_SYS_ADMIN))) {
        json_array_append_new(rules, rule_if("clone", 0, "SCMP_CMP_MASKED_EQ", (unsigned)NEW_SPACES, 0));
        json_array_append_new(rules, rule("SCMP_ACT_ERRNO", EPERM, json_pack("[s]", "clone")));
        /* Its flags lie in memory, where no filter sees them; without it the C library uses clone. */
        json_array_append_new(rules, rule("SCMP_ACT_ERRNO", ENOSYS, json_pack("[s]", "clone3")));
        for (size_t i = 0; i < ARRAY_SIZE(personalities); i++) {
            json_array_append_new(rules, rule_if("personality", 0, "SCMP_CMP_EQ", personalities[i], 0));
        }
        json_array_append_new(rules, rule("SCMP_ACT_ERRNO", EPERM, json_pack("[s]", "personality")));
    }
    json_t *profile = json_pack("{s:s, s:i, s:o}", "defaultAction", "SCMP_ACT_ERRNO", "defaultErrnoRet",
                                ENOSYS, "syscalls", rules);
    if (json_array_size(archs)) {
        json_object_set(profile, "architectures", archs);
    }
    json_decref(archs);
    return profile;
}
