/*
 * A host that lacks something: `refuse SYSCALL[:ARGUMENT=HEX],... ERRNO PROGRAM ARGUMENT...` has those
 * system calls (with that argument only) answered with an error from here on, as a container's filter or a
 * kernel without them does.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int add(scmp_filter_ctx ctx, char *spec, unsigned error)
{
    unsigned arg = 0;
    unsigned long value = 0;
    char *colon = strchr(spec, ':');
    if (colon) {
        *colon = '\0';
    }
    int nr = seccomp_syscall_resolve_name(spec);
    if (nr == __NR_SCMP_ERROR || (colon && sscanf(colon + 1, "%u=%lx", &arg, &value) != 2)) {
        return -EINVAL;
    }
    const struct scmp_arg_cmp cmp = {.arg = arg, .op = SCMP_CMP_EQ, .datum_a = value};
    return seccomp_rule_add_array(ctx, SCMP_ACT_ERRNO(error), nr, colon ? 1 : 0, &cmp);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: refuse SYSCALL[:ARGUMENT=HEX],... ERRNO PROGRAM ARGUMENT...\n");
        return 2;
    }
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    unsigned error = (unsigned)strtoul(argv[2], NULL, 10);
    int rc = ctx ? 0 : -ENOMEM;
    for (char *spec = strtok(argv[1], ","); spec && rc == 0; spec = strtok(NULL, ",")) {
        rc = add(ctx, spec, error);
    }
    rc = rc < 0 ? rc : seccomp_load(ctx);
    if (rc < 0) {
        fprintf(stderr, "refuse: %s\n", strerror(-rc));
        return 1;
    }
    seccomp_release(ctx);
    execv(argv[3], argv + 3);
    perror("refuse");
    return 1;
}
