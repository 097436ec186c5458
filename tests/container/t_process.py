"""config.md "Process" and config-linux.md: user, capabilities, rlimits, terminal, environment, errors of execve."""
import json
import os
import socket
import array
import subprocess

from lib import *


@test
def user_groups_umask_cwd(box):
    box.config["process"]["user"] = {"uid": 12, "gid": 34, "additionalGids": [56, 78], "umask": 0o27}
    box.config["process"]["cwd"] = "/tmp"
    out = box.sh("id -u; id -g; id -G; umask; pwd").out.split("\n")
    equal(out[:5], ["12", "34", "34 56 78", "0027", "/tmp"])


@test
def missing_cwd_is_made_and_bad_cwd_refused(box):
    box.config["process"]["cwd"] = "/a/new/place"
    equal(box.sh("pwd").out, "/a/new/place\n")
    box.config["process"]["cwd"] = "/bin/sh"
    contains(box.sh("pwd", ok=False).err, "process.cwd")
    box.config["process"]["cwd"] = "relative"
    contains(box.sh("pwd", ok=False).err, "absolute")


@test
def capabilities_are_exact(box):
    caps = ["CAP_KILL", "CAP_CHOWN"]
    box.config["process"]["capabilities"] = {"bounding": caps + ["CAP_NET_RAW"], "permitted": caps,
                                             "effective": ["CAP_KILL"], "inheritable": caps, "ambient": ["CAP_KILL"]}
    box.config["process"]["user"] = {"uid": 5, "gid": 5}
    status = dict(line.split(":\t") for line in box.run("grep", "Cap", "/proc/self/status").out.strip().split("\n"))
    equal(int(status["CapBnd"], 16), 1 << 5 | 1 << 0 | 1 << 13, "bounding")
    equal(int(status["CapInh"], 16), 1 << 5 | 1 << 0, "inheritable")
    equal(int(status["CapAmb"], 16), 1 << 5, "ambient")
    equal(int(status["CapEff"], 16), 1 << 5, "effective, after execve as a user: the ambient ones")
    del box.config["process"]["capabilities"]
    contains(box.run("grep", "CapBnd", "/proc/self/status").out, "0" * 16)


@test
def unknown_capabilities_are_dropped_with_a_warning(box):
    box.config["process"]["capabilities"]["bounding"].append("CAP_MAKE_COFFEE")
    contains(box.run("true").err, "CAP_MAKE_COFFEE")


@test
def no_new_privileges(box):
    contains(box.run("grep", "NoNewPrivs", "/proc/self/status").out, "1")
    box.config["process"]["noNewPrivileges"] = False
    contains(box.run("grep", "NoNewPrivs", "/proc/self/status").out, "0")


@test
def rlimits(box):
    box.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                                        {"type": "RLIMIT_CORE", "soft": 0, "hard": 18446744073709551615}]
    out = box.sh("ulimit -n; ulimit -Hn; ulimit -Hc").out.split()
    equal(out[:2], ["100", "200"])
    box.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}] * 2
    contains(box.run("true", ok=False).err, "twice")
    box.config["process"]["rlimits"] = [{"type": "RLIMIT_COFFEE", "soft": 1, "hard": 1}]
    contains(box.run("true", ok=False).err, "RLIMIT_COFFEE")


@test
def oom_score_and_priorities(box):
    box.config["process"]["oomScoreAdj"] = 321
    box.config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
    box.config["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    out = box.sh("cat /proc/self/oom_score_adj; ionice; cut -d' ' -f19,41 /proc/self/stat").out
    contains(out, "321\n")
    contains(out, "idle")
    contains(out, "7 3\n")  # nice, SCHED_BATCH


@test
def environment_and_home(box):
    os.makedirs(box.rootfs + "/etc")
    with open(box.rootfs + "/etc/passwd", "w") as f:
        f.write("root:x:0:0::/root:/bin/sh\nme:x:77:77::/home/me:/bin/sh\n")
    box.config["process"]["env"] = ["PATH=/bin", "A=1", "B=two words"]
    box.config["process"]["user"] = {"uid": 77, "gid": 77}
    out = sorted(box.run("env").out.strip().split("\n"))
    equal(out, ["A=1", "B=two words", "HOME=/home/me", "PATH=/bin"])


@test
def hostname_and_domainname(box):
    box.config["domainname"] = "example.org"
    equal(box.sh("hostname; cat /proc/sys/kernel/domainname").out, "box\nexample.org\n")


@test
def personality_is_set(box):
    box.config["linux"]["personality"] = {"domain": "LINUX32"}
    equal(box.run("uname", "-m").out, "i686\n")


@test
def exec_errors_say_what_is_wrong(box):
    def fail(path, text, content=None, mode=0o755):
        if content is not None:
            with open(box.rootfs + path, "wb") as f:
                f.write(content)
            os.chmod(box.rootfs + path, mode)
        r = box.run(path, ok=False)
        check(r.code != 0)
        contains(r.err, text)

    fail("/bin/missing", "No such file")
    fail("no-such-command", "not found in $PATH")
    fail("/tmp", "directory")
    fail("/bin/plain", "not executable", b"x", 0o644)
    fail("/bin/script", "interpreter '/bin/no-such-shell' is missing", b"#!/bin/no-such-shell\n")
    fail("/bin/text", "starts with #!", b"hello, this is no program\n" * 3)
    elf = bytearray(open(box.rootfs + "/bin/busybox", "rb").read(4096))
    elf[18:20] = (183).to_bytes(2, "little")
    fail("/bin/other", "arm64", bytes(elf))


@test
def descriptors_do_not_leak(box):
    f = open("/etc/passwd")
    fds = box.run("ls", "/proc/self/fd", pass_fds=(f.fileno(),)).out.split()
    equal(sorted(fds), ["0", "1", "2", "3"], "descriptors (3 is ls's own)")


@test
def preserved_descriptors_arrive(box):
    box.config["process"]["args"] = ["sh", "-c", "echo through >&3"]
    box.write()
    out = subprocess.run(["sh", "-c", f'"$0" --root {box.root} run --preserve-fds 1 -b {box.bundle} run1 3>&1 >/dev/null',
                          box.binary], capture_output=True, text=True, timeout=20)
    equal(out.stdout, "through\n", out.stderr)


@test
def preserve_fds_that_are_not_open_are_told(box):
    contains(box.run("true", options=["--preserve-fds", "200"]).err, "not open")


def receive_master(listener):
    conn, _ = listener.accept()
    fds = array.array("i")
    _, anc, _, _ = conn.recvmsg(100, socket.CMSG_LEN(4))
    fds.frombytes(anc[0][2][:4])
    conn.close()
    return fds[0]


def read_all(fd):
    out = b""
    while True:
        try:
            part = os.read(fd, 1000)
        except OSError:
            return out
        if not part:
            return out
        out += part


@test
def terminal_over_a_console_socket(box):
    path = box.dir + "/console.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    box.config["process"]["terminal"] = True
    box.config["process"]["consoleSize"] = {"width": 91, "height": 37}
    box.create("sh", "-c", "tty; stty size; ls -l /dev/console; test -c /dev/tty && echo ctty > /dev/tty",
               options=["--console-socket", path])
    master = receive_master(listener)
    box.start()
    out = read_all(master).decode()
    contains(out, "/dev/pts/0")
    contains(out, "37 91")
    contains(out, "136,")
    contains(out, "ctty")
    box.wait_status("stopped")


@test
def exec_with_a_terminal(box):
    path = box.dir + "/console.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    box.create("sleep", "100")
    box.start()
    subprocess.run([box.binary, "--root", box.root, "exec", "-d", "-t", "--console-socket", path, "c1", "tty"], check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=20)
    contains(read_all(receive_master(listener)).decode(), "/dev/pts/0")


@test
def terminal_needs_a_socket_at_create(box):
    box.config["process"]["terminal"] = True
    contains(box.create("true", ok=False).err, "--console-socket")


@test
def labels_without_an_lsm_are_errors(box):
    if os.path.exists("/sys/fs/selinux/enforce") or os.path.exists("/sys/module/apparmor/parameters/enabled"):
        raise Skip("this kernel has them")
    box.config["process"]["apparmorProfile"] = "x"
    contains(box.run("true", ok=False).err, "AppArmor")
    box.config["process"]["apparmorProfile"] = ""
    box.config["process"]["selinuxLabel"] = "a:b:c"
    contains(box.run("true", ok=False).err, "SELinux")


@test
def exec_cpu_affinity(box):
    box.create("sleep", "100")
    box.start()
    process = dict(box.config["process"], args=["grep", "Cpus_allowed_list", "/proc/self/status"],
                   execCPUAffinity={"final": "0"})
    path = box.dir + "/process.json"
    with open(path, "w") as f:
        json.dump(process, f)
    contains(box.oci("exec", "--process", path, "c1").out, "\t0\n")


@test
def memory_policy(box):
    box.config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    if not os.path.exists("/proc/self/numa_maps"):
        contains(box.run("true", ok=False).err, "linux.memoryPolicy")
        raise Skip("a kernel without NUMA: it is an error")
    contains(box.run("cat", "/proc/self/numa_maps").out, " bind:0")
    for bad in ({"mode": "MPOL_X"}, {"mode": "MPOL_BIND", "nodes": "x"}, {"mode": "MPOL_BIND", "nodes": "64"},
                {"mode": "MPOL_BIND", "nodes": "0", "flags": ["X"]}):
        box.config["linux"]["memoryPolicy"] = bad
        contains(box.run("true", ok=False).err, "linux.memoryPolicy")


@test
def landlock(box):
    """By annotation: files, ports, and what is refused."""
    import ctypes
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 4:
        raise Skip("this kernel has no Landlock with TCP rules")

    def rules(**members):
        box.config["annotations"] = {"org.fonda.landlock": json.dumps(members)}
    os.mkdir(box.rootfs + "/data")
    rules(files=[{"paths": ["/bin"], "access": "rx"}, {"paths": ["/tmp", "/dev/null"], "access": "rw"}])
    script = ("echo a > /tmp/x && cat /tmp/x; mkdir /tmp/d && echo made; echo b > /data/x || echo data; ls / 2>&1 >/dev/null || echo root;"
              "cp /bin/busybox /tmp/sh && /tmp/sh true 2>/dev/null || echo exec")
    want = ["a", "made", "data", "root", "exec"]
    equal([w for w in box.sh(script + " 2>/dev/null").out.split() if w in want], want)
    box.create("sleep", "100")
    box.start()
    r = box.oci("exec", "c1", "sh", "-c", "echo b > /data/x", ok=False)
    check(r.code != 0 and "ermission denied" in r.err, "exec is held back too: " + r.err)
    rules(tcp={"bind": [80], "connect": []})
    r = box.sh("nc -l -p 81 & sleep 0.2; nc 127.0.0.1 81 < /dev/null; kill %1", ok=False)
    contains(r.err, "ermission denied")
    rules(files=[{"paths": ["/nonexistent"], "access": "r"}])
    contains(box.run("true", ok=False).err, "/nonexistent")
    for bad in ({"files": [{"paths": ["x"], "access": "r"}]}, {"files": [{"paths": ["/"], "access": "q"}]}, {"files": [{"paths": ["/"]}]},
                {"file": []}, {"tcp": {"bind": [70000]}}, {"scope": ["all"]}, {"files": [1]}, {"files": {}}):
        rules(**bad)
        contains(box.run("true", ok=False).err, "org.fonda.landlock")
    rules()
    box.run("true")
    rules(files=[{"paths": ["/"], "access": "rwx"}])
    box.config["process"]["noNewPrivileges"] = False
    contains(box.run("true", ok=False).err, "noNewPrivileges")


main()
