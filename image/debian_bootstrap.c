/* See debian_bootstrap.h. */
#include "image/debian_bootstrap.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

/* Beside what is essential and apt: a machine that one can log in to, on the console and by ssh, with its
 * network. */
#define PACKAGES                                                                                             \
    "systemd-sysv,udev,dbus,libpam-systemd,systemd-resolved,libnss-resolve,initramfs-tools,kmod,e2fsprogs,"  \
    "openssh-server,iproute2,iputils-ping,netbase,procps,less,nano,ca-certificates,chrony"
#define ARGS_MAX 24u

static const char *kernel_package(const char *kernel)
{
    return strcmp(kernel, "cloud") == 0     ? "linux-image-cloud-amd64"
           : strcmp(kernel, "generic") == 0 ? "linux-image-amd64"
                                            : kernel;
}

/* ---- its messages ---- */

static void keep_reason(struct bootstrap *bootstrap, int code, const char *text, const char *detail)
{
    if (bootstrap->reason.code == 0) {
        err_set(&bootstrap->reason, code, "%s%s%s", text, *detail ? ": " : "", detail);
    }
}

static void explain(struct bootstrap *bootstrap, const char *line)
{
    static const struct {
        const char *seen;
        int code;
        const char *text;
        bool with_line;
    } reasons[] = {
        {"Unable to locate package", -ENXIO, "the archive has no such package", true},
        {"has no installation candidate", -ENXIO, "the archive has no such package", true},
        {"was not found", -ENXIO, "the archive has no such package", true},
        {"unmet dependencies", -ENXIO, "the packages can't be installed together", true},
        {"No space left on device", -ENOSPC,
         "no space left for the packages (TMPDIR says where they are unpacked)", false},
        {"don't have enough free space", -ENOSPC,
         "no space left for the packages (TMPDIR says where they are unpacked)", false},
        {"Could not resolve", -EHOSTUNREACH, "the archive can't be reached", true},
        {"Temporary failure resolving", -EHOSTUNREACH, "the archive can't be reached", true},
        {"Could not connect", -EHOSTUNREACH, "the archive can't be reached", true},
        {"Cannot initiate the connection", -EHOSTUNREACH, "the archive can't be reached", true},
        {"Connection timed out", -EHOSTUNREACH, "the archive can't be reached", true},
        {"Connection failed", -EHOSTUNREACH, "the archive can't be reached", true},
        {"does not have a Release file", -EHOSTUNREACH, "the archive has no such suite", true},
        {"404", -EHOSTUNREACH, "the archive lacks a file", true},
        {"GPG error", -EIO, "the archive's signature can't be checked", true},
        {"NO_PUBKEY", -EIO, "the archive's signature can't be checked", true},
        {"is not valid yet", -EIO, "the host's clock is behind the archive's", true},
        {"is expired", -EIO, "the archive's lists have expired", true},
        {"newuidmap", -EPERM,
         "this user may not use user namespaces (apt-get install uidmap; see /etc/subuid)", true},
        {"Unable to fork", -EAGAIN, "the host has no room for further processes", true},
    };
    for (size_t i = 0; i < ARRAY_SIZE(reasons); i++) {
        if (strstr(line, reasons[i].seen)) {
            keep_reason(bootstrap, reasons[i].code, reasons[i].text,
                        reasons[i].with_line ? line + strspn(line, "EW: ") : "");
            return;
        }
    }
}

static void on_line(void *opaque, const char *line)
{
    static const struct {
        const char *seen, *said;
    } steps[] = {
        {"I: running apt-get update", "reading the archive's lists"},
        {"I: downloading packages with apt", "downloading packages"},
        {"I: extracting archives", "unpacking the base system"},
        {"I: installing essential packages", "installing the base system"},
        {"I: installing remaining packages", "installing kernel, ssh and what else was asked for"},
        {"I: creating tarball", "writing the disk"},
    };
    struct bootstrap *bootstrap = opaque;
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        if (strncmp(line, steps[i].seen, strlen(steps[i].seen)) == 0) {
            bootstrap->config->progress(bootstrap->config->opaque, steps[i].said);
            return;
        }
    }
    /* It says so of SIGPIPE, too, when one of its own helpers failed. */
    bootstrap->interrupted =
        bootstrap->interrupted || strstr(line, "received signal INT") || strstr(line, "received signal TERM");
    if (strncmp(line, "I: ", 3) != 0) {
        if (strncmp(line, "E: ", 3) == 0 && !bootstrap->cause[0]) {
            snprintf(bootstrap->cause, sizeof(bootstrap->cause), "%s", line + 3);
        }
        explain(bootstrap, line);
    }
}

/* ---- the run ---- */

static char *make_include(const struct debian_config *config)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *file = open_memstream(&text, &bytes);
    if (!file) {
        return NULL;
    }
    fprintf(file, "--include=" PACKAGES ",%s", kernel_package(config->kernel));
    for (unsigned i = 0; i < config->package_count; i++) {
        fprintf(file, ",%s", config->packages[i]);
    }
    return fclose(file) == 0 ? text : NULL;
}

int bootstrap_start(struct bootstrap *bootstrap, const struct debian_config *config,
                    const struct archive_sources *sources, struct err *err)
{
    const char *argv[ARGS_MAX + ARCHIVE_LINES_MAX];
    unsigned n = 0;
    *bootstrap = (struct bootstrap){.config = config, .sources = sources};
    bootstrap->include = make_include(config);
    if (!bootstrap->include) {
        return err_sys(err, -ENOMEM, "cannot start mmdebstrap");
    }
    argv[n++] = "mmdebstrap";
    argv[n++] = "--mode=auto";
    argv[n++] = "--variant=minbase";
    argv[n++] = "--format=tar";
    argv[n++] = "--architectures=amd64";
    argv[n++] = bootstrap->include;
    argv[n++] = "--aptopt=Acquire::Retries \"2\"";
    if (sources->ignore_dates) {
        argv[n++] = "--aptopt=Acquire::Check-Valid-Until \"false\"";
        argv[n++] = "--aptopt=Acquire::Check-Date \"false\"";
    }
    argv[n++] = config->suite;
    argv[n++] = "-";
    for (unsigned i = 0; i < sources->count; i++) {
        argv[n++] = sources->lines[i];
    }
    argv[n] = NULL;
    setenv("DEBIAN_FRONTEND", "noninteractive", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    if (sources->proxy) {
        setenv("http_proxy", sources->proxy, 0);
    }
    int rc = process_start(&bootstrap->process, argv, on_line, bootstrap, err);
    if (rc < 0) {
        free(bootstrap->include);
    }
    return rc == -ENOENT ? err_set(err, rc, "mmdebstrap is missing: apt-get install mmdebstrap") : rc;
}

int bootstrap_wait(struct bootstrap *bootstrap, struct err *err)
{
    int status = process_wait(&bootstrap->process);
    free(bootstrap->include);
    if (status == 0) {
        return 0;
    }
    if (bootstrap->interrupted || status == 128 + SIGINT || status == 128 + SIGTERM) {
        return err_set(err, -EINTR, "interrupted");
    }
    if (bootstrap->reason.code) {
        return err_set(err, bootstrap->reason.code, "%s", bootstrap->reason.text);
    }
    return err_set(err, -EIO, "mmdebstrap failed: %s",
                   bootstrap->cause[0] ? bootstrap->cause : bootstrap->process.last_line);
}
