#include "container/exec_error.h"

#include "base/util.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

static const struct {
    unsigned machine;
    const char *name;
} machines[] = {
    {EM_X86_64, "x86-64"},  {EM_386, "32-bit x86"}, {EM_AARCH64, "arm64"},
    {EM_ARM, "32-bit arm"}, {EM_RISCV, "riscv"},    {EM_PPC64, "powerpc 64"},
    {EM_S390, "s390x"},     {EM_MIPS, "mips"},      {EM_LOONGARCH, "loong"},
};

static const char *machine_name(unsigned machine)
{
    for (size_t i = 0; i < ARRAY_SIZE(machines); i++) {
        if (machines[i].machine == machine) {
            return machines[i].name;
        }
    }
    return "an unknown architecture";
}

/* The interpreter of a script ("#! path") or of an ELF file (PT_INTERP), at most PATH_MAX - 1 bytes; false:
 * none. */
static bool interpreter(int fd, const unsigned char *head, size_t size, char *path)
{
    if (size > 2 && head[0] == '#' && head[1] == '!') {
        size_t i = 2;
        size_t n = 0;
        while (i < size && (head[i] == ' ' || head[i] == '\t')) {
            i++;
        }
        while (i < size && n + 1 < PATH_MAX && !strchr(" \t\r\n", head[i]) && head[i]) {
            path[n++] = (char)head[i++];
        }
        path[n] = '\0';
        return n > 0;
    }
    Elf64_Ehdr elf;
    if (size < sizeof(elf) || memcmp(head, ELFMAG, SELFMAG) != 0 || head[EI_CLASS] != ELFCLASS64) {
        return false;
    }
    memcpy(&elf, head, sizeof(elf));
    for (unsigned i = 0; i < MIN(elf.e_phnum, 64); i++) {
        Elf64_Phdr ph;
        if (pread(fd, &ph, sizeof(ph), (off_t)(elf.e_phoff + i * sizeof(ph))) != sizeof(ph)) {
            return false;
        }
        if (ph.p_type == PT_INTERP) {
            ssize_t n = pread(fd, path, MIN(ph.p_filesz, PATH_MAX - 1), (off_t)ph.p_offset);
            path[n > 0 ? n : 0] = '\0';
            return n > 0;
        }
    }
    return false;
}

int exec_error(const char *path, int code, struct err *err)
{
    unsigned char head[512] = {0};
    char other[PATH_MAX];
    struct stat st;
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (code == -ENOENT && fd < 0) {
        return err_sys(err, code, "executable file '%s' not found", path);
    }
    if (code == -EACCES && stat(path, &st) == 0) {
        return S_ISDIR(st.st_mode) ? err_sys(err, code, "cannot execute '%s': it is a directory", path)
               : !(st.st_mode & 0111)
                   ? err_sys(err, code, "cannot execute '%s': the file is not executable (chmod +x)", path)
                   : err_sys(err, code, "cannot execute '%s' (its file system may be mounted noexec)", path);
    }
    ssize_t size = fd < 0 ? -1 : pread(fd, head, sizeof(head), 0);
    if (size < 4) {
        return err_sys(err, code, "cannot execute '%s'", path);
    }
    if (code == -ENOENT && interpreter(fd, head, (size_t)size, other)) {
        size_t n = strlen(other);
        bool carriage = head[0] == '#' && memchr(head, '\r', (size_t)size) && n < (size_t)size;
        return err_sys(err, code, "cannot execute '%s': its interpreter '%s' is missing%s", path, other,
                       carriage ? " (the file has DOS line ends)" : "");
    }
    if (code == -ENOEXEC && memcmp(head, ELFMAG, SELFMAG) == 0 && size >= (ssize_t)sizeof(Elf32_Ehdr)) {
        unsigned machine = head[EI_DATA] == ELFDATA2MSB ? (unsigned)(head[18] << 8 | head[19])
                                                        : (unsigned)(head[19] << 8 | head[18]);
        struct utsname host;
        uname(&host);
        return err_sys(err, code, "cannot execute '%s': it is built for %s, this host is %s", path,
                       machine_name(machine), host.machine);
    }
    if (code == -ENOEXEC) {
        return err_sys(err, code, "cannot execute '%s': neither a program nor a script that starts with #!",
                       path);
    }
    return err_sys(err, code, "cannot execute '%s'", path);
}
