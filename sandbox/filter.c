/*
 * The roles' filters, compiled by libseccomp when the jail closes, so that a thread that begins only has to
 * install what is there. A filter that a thread has stays: that of the main thread is inherited by those that
 * it makes, and their own comes on top. So what a role may do is what both allow, and main has to allow what
 * any other does (filter_enter checks that by making it so).
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/thread.h"
#include "base/util.h"
#include "sandbox/jail_int.h"
#include "sandbox/roles.h"

static struct sock_fprog programs[ROLES];

static int install(enum role role)
{
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &programs[role]) < 0 ? -errno : 0;
}

/* A thread that can't be narrowed must not run. What makes no noise is ended all the same. */
static void on_thread(const char *role)
{
    for (unsigned i = 0; i < ROLES; i++) {
        if (strcmp(role_names[i], role) == 0 && i != ROLE_MAIN) {
            if (install(i) == 0) {
                JAIL_TAKEN(role);
                return;
            }
            break;
        }
    }
    static const char text[] = "fonda: error: a thread could not be put into the jail\n";
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    syscall(SYS_exit_group, 128 + SIGSYS);
}

static int add_row(scmp_filter_ctx ctx, const struct role_row *row)
{
    int nr = seccomp_syscall_resolve_name(row->syscall);
    struct scmp_arg_cmp args[ROLE_CONDS_MAX];
    unsigned count = 0;
    if (nr < 0) {
        return 0; /* not on this architecture */
    }
    for (; count < ROLE_CONDS_MAX && row->conds[count].mask; count++) {
        const struct role_cond *cond = &row->conds[count];
        uint64_t value = cond->value == ROLE_OWN_PID ? (uint64_t)getpid() : cond->value;
        args[count] = SCMP_CMP64(cond->arg, SCMP_CMP_MASKED_EQ, cond->mask, value);
    }
    return seccomp_rule_add_array(ctx, row->error ? SCMP_ACT_ERRNO((unsigned)row->error) : SCMP_ACT_ALLOW, nr,
                                  count, args);
}

static bool applies(const struct role_row *row, enum role role, unsigned needs)
{
    return ((row->roles & BIT(role)) || role == ROLE_MAIN) && (!row->needs || (row->needs & needs));
}

/* The program's bytes go through a memfd, as libseccomp writes to descriptors. */
static int export(scmp_filter_ctx ctx, struct sock_fprog *ret_program)
{
    auto_close int fd = memfd_create("fonda-filter", MFD_CLOEXEC);
    struct stat st;
    int rc = fd < 0 ? -errno : seccomp_export_bpf(ctx, fd);
    if (rc < 0) {
        return rc;
    }
    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    void *code = malloc((size_t)st.st_size);
    if (!code || pread(fd, code, (size_t)st.st_size, 0) != st.st_size) {
        free(code);
        return code ? -EIO : -ENOMEM;
    }
    ret_program->filter = code;
    ret_program->len = (unsigned short)((size_t)st.st_size / sizeof(struct sock_filter));
    return 0;
}

static int compile(enum role role, unsigned needs)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int rc = ctx ? seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) : -ENOMEM;
    for (size_t i = 0; i < role_table_len && rc == 0; i++) {
        rc = applies(&role_table[i], role, needs) ? add_row(ctx, &role_table[i]) : 0;
    }
    if (rc == 0) {
        (void)seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a binary tree, where libseccomp can */
        rc = export(ctx, &programs[role]);
    }
    seccomp_release(ctx);
    return rc;
}

int filter_enter(unsigned needs)
{
    if (!(needs & (JAIL_NEED_TREE | JAIL_NEED_INTERNET | JAIL_NEED_FILES))) {
        needs |= ROLE_NEED_NO_FILES;
    }
    for (unsigned role = 0; role < ROLES; role++) {
        int rc = compile(role, needs);
        if (rc < 0) {
            return rc;
        }
    }
    int rc = install(ROLE_MAIN);
    if (rc == 0) {
        thread_set_hook(on_thread);
    }
    return rc;
}
