"""config.md "Mounts", config-linux.md "Devices", "Masked Paths", "Readonly Paths", rootfs; hostile root file systems."""
import os
import shutil
import subprocess

from lib import *


def mount(box, destination, source=None, kind="bind", options=(), **more):
    box.config["mounts"].append(dict({"destination": destination, "type": kind, "options": list(options)},
                                     **({"source": source} if source else {}), **more))


def mount_line(box, where):
    out = box.sh("cat /proc/self/mountinfo").out
    lines = [line.split() for line in out.strip().split("\n") if line.split()[4] == where]
    check(lines, f"{where} is not mounted")
    return lines[-1]


@test
def bind_mounts_of_directories_and_files(box):
    os.mkdir(box.dir + "/vol")
    open(box.dir + "/vol/file", "w").write("content")
    mount(box, "/data/deep", box.dir + "/vol", options=["rbind", "ro"])
    mount(box, "/etc/one", box.dir + "/vol/file", options=["bind"])
    equal(box.sh("cat /data/deep/file /etc/one; touch /data/deep/x 2>/dev/null || echo ro").out, "contentcontentro\n")
    mount(box, "/x", "/no/such/source", options=["bind"])
    contains(box.run("true", ok=False).err, "/no/such/source")


@test
def flags(box):
    os.mkdir(box.dir + "/vol")
    mount(box, "/v", box.dir + "/vol", options=["bind", "ro", "nosuid", "nodev", "noexec", "noatime"])
    line = mount_line(box, "/v")
    for flag in ("ro", "nosuid", "nodev", "noexec", "noatime"):
        check(flag in line[5].split(","), f"{flag} in {line[5]}")
    check(box.sh("cp /bin/busybox /tmp/; true").code == 0)


@test
def recursive_options(box):
    os.makedirs(box.dir + "/vol/sub")
    subprocess.run(["mount", "-t", "tmpfs", "x", box.dir + "/vol/sub"], check=True)
    try:
        mount(box, "/v", box.dir + "/vol", options=["rbind", "rro"])
        equal(box.sh("touch /v/a 2>/dev/null || echo 1; touch /v/sub/b 2>/dev/null || echo 2").out, "1\n2\n")
        box.config["mounts"][-1]["options"] = ["rbind", "ro"]
        equal(box.sh("touch /v/a 2>/dev/null || echo 1; touch /v/sub/b 2>/dev/null || echo 2").out, "1\n")
        box.config["mounts"][-1]["options"] = ["bind"]
        equal(box.sh("ls /v/sub").out, "", "bind without r leaves what is mounted below")
    finally:
        subprocess.run(["umount", box.dir + "/vol/sub"], check=True)


@test
def idmapped_mounts(box):
    os.mkdir(box.dir + "/vol")
    open(box.dir + "/vol/file", "w").close()
    maps = [{"containerID": 0, "hostID": 5000, "size": 100}]
    mount(box, "/v", box.dir + "/vol", options=["rbind", "ridmap"], uidMappings=maps, gidMappings=maps)
    r = box.run("stat", "-c", "%u:%g", "/v/file", ok=False)
    if r.code != 0 and "file system" in r.err:
        raise Skip(r.err.strip())
    equal(r.out, "5000:5000\n")
    box.config["mounts"][-1].pop("gidMappings")
    contains(box.run("true", ok=False).err, "go together")


@test
def idmapped_to_the_container(box):
    add_user_namespace(box.config)
    subprocess.run(["chown", "-R", "100000:100000", box.rootfs], check=True)
    os.mkdir(box.dir + "/vol")
    open(box.dir + "/vol/file", "w").close()
    mount(box, "/v", box.dir + "/vol", options=["bind", "idmap"])
    equal(box.run("stat", "-c", "%u:%g", "/v/file").out, "0:0\n", "the host's root is the container's root here")


@test
def tmpfs_with_copy_up(box):
    os.makedirs(box.rootfs + "/var/x")
    open(box.rootfs + "/var/x/f", "w").write("old")
    os.chmod(box.rootfs + "/var", 0o751)
    os.symlink("x/f", box.rootfs + "/var/link")
    mount(box, "/var", "tmpfs", "tmpfs", ["tmpcopyup", "size=1m"])
    equal(box.sh("cat /var/link; stat -c %a /var; echo new > /var/x/f").out, "old751\n")
    equal(open(box.rootfs + "/var/x/f").read(), "old", "below stays as it was")


@test
def overlay(box):
    for d in ("lower", "upper", "work"):
        os.mkdir(f"{box.dir}/{d}")
    open(box.dir + "/lower/a", "w").write("lower")
    mount(box, "/o", "overlay", "overlay",
          [f"lowerdir={box.dir}/lower", f"upperdir={box.dir}/upper", f"workdir={box.dir}/work"])
    box.sh("cat /o/a; echo b > /o/b")
    equal(open(box.dir + "/upper/b").read(), "b\n")


@test
def bad_mounts_are_errors(box):
    mount(box, "/x", "x", "no-such-fs")
    contains(box.run("true", ok=False).err, "no-such-fs")
    box.config["mounts"][-1] = {"destination": "/x", "type": "tmpfs", "source": "x", "options": ["nonsense=1"]}
    contains(box.run("true", ok=False).err, "'/x'")
    box.config["mounts"][-1] = {"destination": "/x", "type": "bind"}
    contains(box.run("true", ok=False).err, "source")


@test
def default_devices_and_links(box):
    out = box.sh("for d in null zero full random urandom tty ptmx; do test -c /dev/$d || echo no $d; done; "
                 "for l in fd stdin stdout stderr; do readlink /dev/$l; done; echo x > /dev/null").out
    equal(out.split(), ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"])


@test
def configured_devices(box):
    box.config["linux"]["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/dev/deep/pipe", "type": "p", "fileMode": 0o600},
    ]
    out = box.run("stat", "-c", "%F %a %u %g %t:%T", "/dev/mine", "/dev/deep/pipe").out.split("\n")
    equal(out[0], "character special file 640 3 4 1:5")
    contains(out[1], "fifo 600")
    box.config["linux"]["devices"] = [{"path": "/dev/x", "type": "q"}]
    contains(box.run("true", ok=False).err, "type must be")


@test
def masked_and_readonly_paths(box):
    os.makedirs(box.rootfs + "/secret")
    open(box.rootfs + "/secret/x", "w").write("s")
    open(box.rootfs + "/file", "w").write("s")
    os.makedirs(box.rootfs + "/look")
    box.config["linux"]["maskedPaths"] = ["/secret", "/file", "/not/there"]
    box.config["linux"]["readonlyPaths"] = ["/look", "/not/there"]
    equal(box.sh("ls /secret; cat /file; touch /secret/y 2>/dev/null || echo ro; touch /look/y 2>/dev/null || echo ro").out,
          "ro\nro\n")


@test
def readonly_root(box):
    box.config["root"]["readonly"] = True
    equal(box.sh("touch /x 2>/dev/null || echo ro; touch /dev/shm/x && echo rw").out, "ro\nrw\n")


@test
def propagation(box):
    box.config["linux"]["rootfsPropagation"] = "rprivate"
    check(not [f for f in mount_line(box, "/")[6:] if f.startswith(("shared", "master"))])
    box.config["linux"]["rootfsPropagation"] = "rshared"
    contains(" ".join(mount_line(box, "/")), "shared:")
    os.mkdir(box.dir + "/vol")
    mount(box, "/v", box.dir + "/vol", options=["bind", "rslave"])
    box.run("true")


@test
def no_pivot(box):
    equal(box.run("ls", "/proc/1/root/bin/sh", options=["--no-pivot"]).out, "/proc/1/root/bin/sh\n")


@test
def nothing_is_mounted_on_the_host(box):
    before = open("/proc/self/mountinfo").read()
    box.create("sleep", "100")
    equal(open("/proc/self/mountinfo").read(), before)


@test
def symlinks_stay_inside(box):
    os.symlink(box.dir + "/outside", box.rootfs + "/abs")
    os.symlink("../../../../../../.." + box.dir + "/outside", box.rootfs + "/rel")
    os.mkdir(box.dir + "/vol")
    mount(box, "/abs/x", box.dir + "/vol")
    mount(box, "/rel/y", box.dir + "/vol")
    box.run("true")
    check(not os.path.exists(box.dir + "/outside"), "the host's path was made")
    check(os.path.isdir(box.rootfs + box.dir + "/outside/x"), "it is made inside")


@test
def proc_and_sys_through_symlinks_are_refused(box):
    os.mkdir(box.rootfs + "/elsewhere")
    os.symlink("elsewhere", box.rootfs + "/proc")
    contains(box.run("true", ok=False).err, "symbolic link")


@test
def mounts_over_proc_are_refused(box):
    os.mkdir(box.dir + "/vol")
    for where in ("/proc/self", "/proc/sys", "/proc/sys/kernel", "/proc/self/attr", "/tmp/../proc/1"):
        box.config["mounts"] = base_config()["mounts"]
        mount(box, where, box.dir + "/vol", options=["bind"])
        check(box.run("true", ok=False).code != 0, where)
    open(box.dir + "/uptime", "w").write("1.00 1.00\n")
    box.config["mounts"] = base_config()["mounts"]
    mount(box, "/proc/uptime", box.dir + "/uptime", options=["bind"])
    equal(box.run("cat", "/proc/uptime").out, "1.00 1.00\n", "files that lxcfs covers are fine")


@test
def magic_links_in_destinations_are_refused(box):
    os.mkdir(box.dir + "/vol")
    mount(box, "/proc/self/root/x", box.dir + "/vol", options=["bind"])
    check(box.run("true", ok=False).code != 0)
    check(not os.path.exists("/x"))


@test
def a_fake_dev_pts_is_refused(box):
    box.config["mounts"] = [m for m in box.config["mounts"] if m["destination"] != "/dev/pts"]
    os.makedirs(box.rootfs + "/dev/pts")
    box.config["mounts"] = [m for m in box.config["mounts"] if m["destination"] != "/dev"]
    open(box.rootfs + "/dev/pts/ptmx", "w").close()
    box.config["process"]["terminal"] = True
    contains(box.run("true", ok=False).err, "devpts")


@test
def the_runtime_cannot_be_overwritten(box):
    before = open(OCI, "rb").read()
    box.config["process"]["noNewPrivileges"] = False
    every = ["CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER"]
    box.config["process"]["capabilities"] = {s: every for s in ("bounding", "effective", "permitted")}
    # The classic: the container's program is the runtime itself.
    with open(box.rootfs + "/bin/evil", "w") as f:
        f.write("#!/proc/self/exe\n")
    os.chmod(box.rootfs + "/bin/evil", 0o755)
    box.run("/bin/evil", ok=False)
    r = box.create("/proc/self/exe", "state", "x", ok=False)
    if r.code == 0:
        pid = box.state()["pid"]
        try:
            fd = os.open(f"/proc/{pid}/exe", os.O_WRONLY)
            os.close(fd)
            raise AssertionError("the binary could be opened for writing")
        except OSError as e:
            check(e.strerror in ("Read-only file system", "Text file busy", "Operation not permitted"), e.strerror)
        exe = os.readlink(f"/proc/{pid}/exe")
        out = subprocess.run(["grep", "-c", ".", f"/proc/{pid}/mountinfo"], capture_output=True, text=True)
        check(out.returncode == 0, exe)
    equal(open(OCI, "rb").read(), before, "the binary")


@test
def open_descriptors_are_no_way_out(box):
    """CVE-2024-21626: a directory of the host that the runtime has open, as working directory or program."""
    marker = box.dir + "/marker"
    shutil.copy(box.rootfs + "/bin/busybox", marker)
    box.create("sleep", "100")
    box.start()
    for fd in range(3, 40):
        for up in ("", "/..", "/../..", "/../../../../.."):
            there = f"/proc/self/fd/{fd}{up}"
            r = box.oci("exec", "--cwd", there, "c1", "sh", "-c", f"ls -d .{box.dir}/marker ..{box.dir}/marker", ok=False)
            check("marker\n" not in r.out, f"exec: {there} leads out")
        r = box.oci("exec", "c1", f"/proc/self/fd/{fd}/..{marker}", "id", ok=False)
        check(r.code != 0 and "uid" not in r.out, f"exec: a program by {fd}")
    for fd in range(3, 40, 1):
        box.config["process"]["cwd"] = f"/proc/self/fd/{fd}/.."
        r = box.sh(f"ls -d .{box.dir}/marker", ok=False)
        check("marker\n" not in r.out, f"run: {fd} leads out")


@test
def fallbacks_of_old_kernels(box):
    box.binary = FAULTS
    os.mkdir(box.dir + "/vol")
    open(box.dir + "/vol/f", "w").write("x")
    os.symlink("/etc", box.rootfs + "/link")
    mount(box, "/link/v", box.dir + "/vol", options=["bind", "ro", "nosuid"])
    box.config["root"]["readonly"] = True
    box.config["linux"]["resources"] = {"pids": {"limit": 20}}
    for what in ("openat2", "mountapi", "clone3", "pidfd", "cgroupv2", "selfbind",
                 "openat2,mountapi,clone3,pidfd,cgroupv2,selfbind"):
        box.env = {"FONDA_OCI_WITHOUT": what}
        equal(box.sh("cat /etc/v/f; touch /etc/v/g 2>/dev/null || echo ro; touch /x 2>/dev/null || echo ro").out,
              "xro\nro\n", what)
        box.create("sleep", "100")
        box.start()
        equal(box.oci("exec", "c1", "hostname").out, "box\n", what)
        box.oci("pause", "c1")
        equal(box.status(), "paused", what)
        box.oci("delete", "--force", "c1")


main()
