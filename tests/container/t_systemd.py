"""--systemd-cgroup: over a real bus (dbus-daemon), to a stand-in for systemd that makes the scopes' cgroups."""
import os
import shutil
import subprocess
import time

from lib import *

PYTHON = "/usr/bin/python3"  # the one that Debian's packages are for


class Systemd:
    def __init__(self, box):
        if not shutil.which("dbus-daemon"):
            raise Skip("dbus-daemon is not installed")
        if subprocess.run([PYTHON, "-c", "import dbus; from gi.repository import GLib"], capture_output=True).returncode:
            raise Skip("python3-dbus and python3-gi are not installed")
        if not any(" - cgroup2 " in line or "name=systemd" in line for line in open("/proc/self/mountinfo")):
            raise Skip("this host has neither cgroup2 nor a name=systemd hierarchy")
        self.address = f"unix:path={box.dir}/bus"
        config = box.dir + "/bus.conf"
        with open(config, "w") as f:
            f.write(f"<busconfig><listen>{self.address}</listen><policy context='default'><allow send_destination='*' eavesdrop='true'/>"
                    "<allow eavesdrop='true'/><allow own='*'/></policy></busconfig>")
        self.bus = subprocess.Popen(["dbus-daemon", "--config-file", config, "--nofork", "--print-address"],
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.bus.stdout.readline()
        self.log = box.dir + "/systemd.log"
        fake = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_systemd.py")
        self.manager = subprocess.Popen([PYTHON, fake, self.address], stdout=open(self.log, "w"), stderr=subprocess.STDOUT)
        end = time.time() + 30
        while "ready" not in open(self.log).read():
            check(time.time() < end and self.manager.poll() is None, "the stand-in doesn't start: " + open(self.log).read())
            time.sleep(0.02)
        box.env = {"DBUS_SYSTEM_BUS_ADDRESS": self.address}

    def text(self):
        return open(self.log).read()

    def done(self):
        for p in (self.manager, self.bus):
            p.kill()
            p.wait()


def with_systemd(fn):
    def run(box):
        before = snapshot()
        systemd = Systemd(box)
        try:
            fn(box, systemd)
        finally:
            box.oci("delete", "--force", "c1", ok=False)
            systemd.done()
        settle(before)
        equal(cgroup_dirs("fonda-oci-test.slice") + cgroup_dirs("c1.scope"), [], "cgroups left")
    run.__name__ = fn.__name__
    return test(run)


def create(box, *command, path="fonda-oci-test.slice:pre:c1", binary=None, **kw):
    box.config["linux"]["cgroupsPath"] = path
    box.config["process"]["args"] = list(command)
    box.write()
    box.ids.append("c1")
    env = dict(os.environ, **box.env, **kw)
    with open(box.dir + "/stderr", "w") as err:
        p = subprocess.run([binary or box.binary, "--root", box.root, "--systemd-cgroup", "create", "-b", box.bundle, "c1"],
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=env, timeout=30)
    return Result(p.returncode, "", open(box.dir + "/stderr").read())


@with_systemd
def a_scope_for_the_container(box, systemd):
    box.config["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 19}, "cpu": {"quota": 50000, "period": 100000}}
    r = create(box, "sleep", "100")
    equal(r.code, 0, r.err)
    text = systemd.text()
    contains(text, "start pre-c1.scope fail")
    for part in ("('Slice', 'fonda-oci-test.slice')", "('Delegate', '1')", "('MemoryMax', '67108864')", "('TasksMax', '19')",
                 "('CPUQuotaPerSecUSec', '500000')"):
        contains(text, part)
    found = cgroup_dirs("fonda-oci-test.slice/pre-c1.scope")
    check(found, "no cgroup")
    pid = box.state()["pid"]
    where, version = hierarchy("pids")
    equal(open(f"{where}/fonda-oci-test.slice/pre-c1.scope/pids.max").read(), "19\n")
    for line in open(f"/proc/{pid}/cgroup"):
        check(line.rstrip().endswith("/fonda-oci-test.slice/pre-c1.scope") or ":net_" in line or line.count(":/") == 1 and
              "scope" not in line and line.split(":")[1] not in ("pids", "name=systemd", ""), line)
    for d in found:
        check(open(d + "/cgroup.procs").read().split() == [str(pid)], f"{d}: somebody else is in it")
    box.start()
    equal(box.oci("exec", "c1", "echo", "hi").out, "hi\n")
    box.oci("update", "--pids-limit", "21", "c1")
    contains(systemd.text(), "set pre-c1.scope True [('TasksMax', '21')]")
    equal(open(f"{where}/fonda-oci-test.slice/pre-c1.scope/pids.max").read(), "21\n")
    box.oci("pause", "c1")
    box.oci("resume", "c1")
    box.oci("delete", "--force", "c1")
    contains(systemd.text(), "stop pre-c1.scope True")


@with_systemd
def defaults_and_bad_paths(box, systemd):
    r = create(box, "sleep", "100", path="")
    equal(r.code, 0, r.err)
    contains(systemd.text(), "start fonda-oci-c1.scope")
    contains(systemd.text(), "('Slice', 'system.slice')")
    box.oci("delete", "--force", "c1")
    for bad in ("/plain/path", "a:b", "a:b:c/d", "sl ice:x:y", "a:b:c:d"):
        r = create(box, "true", path=bad)
        check(r.code != 0, bad)
        contains(r.err, "linux.cgroupsPath")


@with_systemd
def refusals_leave_nothing(box, systemd):
    r = create(box, "true", path="fonda-oci-test.slice:pre:fail")
    check(r.code != 0)
    contains(r.err, "could not start 'pre-fail.scope': failed")
    equal(os.listdir(box.root), [])
    r = create(box, "no-such-program")
    contains(r.err, "no-such-program")
    contains(systemd.text(), "stop pre-c1.scope True")
    equal(os.listdir(box.root), [])


@with_systemd
def it_can_be_killed_at_every_step(box, systemd):
    steps = box.dir + "/steps"
    equal(create(box, "sleep", "100", binary=FAULTS, FONDA_OCI_STEPS=steps).code, 0)
    box.oci("delete", "--force", "c1")
    names = [line for line in open(steps) if line.startswith("main")]
    check(any("scope" in n for n in names))
    for n in range(1, len(names) + 1):
        create(box, "sleep", "100", binary=FAULTS, FONDA_OCI_KILL=str(n))
        box.oci("delete", "--force", "c1")
        equal(os.listdir(box.root), [], f"step {n} ({names[n - 1].strip()})")
        equal(cgroup_dirs("pre-c1.scope"), [], f"step {n} ({names[n - 1].strip()})")


@test
def without_systemd(box):
    box.env = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={box.dir}/none"}
    r = create(box, "true")
    check(r.code != 0)
    contains(r.err, "systemd is not running here")
    equal(os.listdir(box.root), [])


@test
def hostile_buses(box):
    """Answers that are none."""
    import socket
    import threading
    for answer in (b"", b"NO\r\n", b"x" * 5000, b"OK 1\r\n", b"OK 1\r\n" + b"\0" * 64, b"OK 1\r\nl\2\0\1" + b"\xff" * 60,
                   b"OK 1\r\nl\3\0\1\4\0\0\0\1\0\0\0\x10\0\0\0\5\1u\0\1\0\0\0\4\1s\0\xff\xff\xff\xff\1\2\3\4"):
        path = box.dir + "/hostile"
        if os.path.exists(path):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)
            s.listen(1)

            def serve():
                conn, _ = s.accept()
                conn.recv(1000)
                conn.sendall(answer)
                conn.close()
            thread = threading.Thread(target=serve)
            thread.start()
            box.env = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=" + path}
            r = create(box, "true")
            thread.join()
        check(r.code == 1 and "systemd" in r.err, f"{answer[:20]}: {r.code} {r.err}")
        equal(os.listdir(box.root), [])


main()
