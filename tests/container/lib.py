"""What the container tests share: bundles, running fonda-oci, looking at the host, TAP output.

A test is a function registered with @test; it fails by an exception (check() and friends raise). Each gets a fresh
Box: a temporary directory with a state root, which cleans up after itself.
"""
import copy
import ctypes
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("FONDA_BUILD", os.path.join(TOP, "build"))
OCI = os.path.join(BUILD, "container", "fonda-oci")
FAULTS = os.path.join(BUILD, "container", "fonda-oci-faults")
APPLETS = ("sh true false cat ls sleep id ps mount umount echo env stat hostname grep head kill touch mkdir tty wc dd "
           "chmod uname date readlink ulimit ip dnsdomainname free test mknod nice ionice getopt stty cut tr sed nc ifconfig route md5sum df tail pwd").split()

tests = []


class Skip(Exception):
    pass


def test(fn):
    tests.append(fn)
    return fn


def anyone(fn):
    """A test that a plain user can run too, as itself."""
    fn.anyone = True
    return fn


def check(condition, text="condition is false"):
    if not condition:
        raise AssertionError(text)


def equal(got, wanted, text=""):
    if got != wanted:
        raise AssertionError(f"{text}: got {got!r}, wanted {wanted!r}")


def contains(text, part):
    if part not in text:
        raise AssertionError(f"{part!r} is not in {text!r}")


def base_config():
    caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    return {
        "ociVersion": "1.3.0",
        "process": {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
            "capabilities": {s: list(caps) for s in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    }


def add_user_namespace(config, outside=100000, size=65536):
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": outside, "size": size}]
    config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": outside, "size": size}]


USER = "fondatest"


def account():
    """A user with subordinate ids, made if there is none; whoever is not root plays it."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        if subprocess.run(["useradd", "-m", USER], capture_output=True).returncode != 0:
            raise Skip("cannot make a test user")
        return pwd.getpwnam(USER)


def as_user(user):
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


class Box:
    """One bundle and one state root."""

    def __init__(self, binary=OCI):
        self.binary = binary
        self.dir = tempfile.mkdtemp(prefix="fonda-oci-test-")
        os.chmod(self.dir, 0o755)
        self.root = os.path.join(self.dir, "state")
        self.bundle = os.path.join(self.dir, "bundle")
        self.rootfs = os.path.join(self.bundle, "rootfs")
        os.makedirs(os.path.join(self.rootfs, "bin"))
        os.makedirs(os.path.join(self.rootfs, "tmp"))
        shutil.copy("/bin/busybox", os.path.join(self.rootfs, "bin", "busybox"))
        for applet in APPLETS:
            os.symlink("busybox", os.path.join(self.rootfs, "bin", applet))
        self.config = base_config()
        self.ids = []
        self.env = {}

    def write(self, config=None):
        with open(os.path.join(self.bundle, "config.json"), "w") as f:
            json.dump(config or self.config, f)

    def oci(self, *args, ok=True, env=None, timeout=30, user=None, options=(), pass_fds=(), stdin=subprocess.DEVNULL):
        full = dict(os.environ, **self.env, **(env or {}))
        user = user if os.geteuid() == 0 else None
        p = subprocess.run([self.binary, "--root", self.root, *options, *args], stdin=stdin, capture_output=True,
                           text=True, env=full, timeout=timeout, pass_fds=pass_fds,
                           user=user, group=user, extra_groups=[] if user else None)
        if ok and p.returncode != 0:
            raise AssertionError(f"fonda-oci {' '.join(args)}: status {p.returncode}: {p.stderr}")
        return Result(p.returncode, p.stdout, p.stderr)

    def run(self, *command, ok=True, options=(), config=None, **kw):
        """Runs command in a container of its own; its output."""
        config = config or self.config
        if command:
            config["process"]["args"] = list(command)
        self.write(config)
        return self.oci("run", *options, "-b", self.bundle, "run1", ok=ok, **kw)

    def sh(self, script, **kw):
        return self.run("sh", "-c", script, **kw)

    def create(self, *command, name="c1", options=(), **kw):
        if command:
            self.config["process"]["args"] = list(command)
        self.write()
        self.ids.append(name)
        # A pipe would be held open by the container, so its output goes nowhere.
        full = dict(os.environ, **self.env, **kw.pop("env", {}))
        ok = kw.pop("ok", True)
        err = os.path.join(self.dir, "stderr")
        with open(err, "w") as f:
            p = subprocess.run([self.binary, "--root", self.root, "create", *options, "-b", self.bundle, name],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=f, env=full, timeout=30, **kw)
        text = open(err).read()
        if ok and p.returncode != 0:
            raise AssertionError(f"create: status {p.returncode}: {text}")
        return Result(p.returncode, "", text)

    def start(self, name="c1"):
        return self.oci("start", name)

    def state(self, name="c1"):
        return json.loads(self.oci("state", name).out)

    def status(self, name="c1"):
        return self.state(name)["status"]

    def wait_status(self, wanted, name="c1", seconds=10):
        end = time.time() + seconds
        while self.status(name) != wanted:
            if time.time() > end:
                raise AssertionError(f"{name} is {self.status(name)}, not {wanted}")
            time.sleep(0.02)

    def done(self):
        for name in set(self.ids) | {"run1"}:
            subprocess.run([OCI, "--root", self.root, "delete", "--force", name], capture_output=True, timeout=30)
        shutil.rmtree(self.dir, ignore_errors=True)


def own_mount_namespace():
    """So that what others mount meanwhile is not taken for left behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and (libc.unshare(0x20000) or libc.mount(None, b"/", None, 0x4000 | (1 << 18), None)):
        print(f"# no mount namespace of its own: {os.strerror(ctypes.get_errno())}")


def cgroup_dirs(part="fonda-oci"):
    """Cgroups of the test containers that exist now."""
    found = []
    for top, dirs, _ in os.walk("/sys/fs/cgroup"):
        for d in dirs:
            if part in os.path.join(top, d):
                found.append(os.path.join(top, d))
    return sorted(found)


def own_cgroups():
    """Those of these tests: other programs may be running containers of their own below the same parent."""
    return [d for d in cgroup_dirs() if not os.path.basename(d).startswith("fonda-build") and
            (os.path.basename(d) != "fonda-oci" or not any(e.is_dir() for e in os.scandir(d)))]


def snapshot():
    """What a container must not leave behind: mounts, cgroups, processes of ours."""
    with open("/proc/self/mountinfo") as f:
        mounts = {line.split(" ", 1)[1] for line in f}
    try:
        cgroups = set(own_cgroups())
    except FileNotFoundError:  # somebody's is going away
        cgroups = set(own_cgroups())
    procs = set()
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    if b"fonda-oci-test-" in f.read():
                        procs.add(pid)
            except OSError:
                pass
    return mounts, cgroups, procs


def settle(before, seconds=5):
    """Waits until the host has nothing that it hadn't before; dying processes take a moment."""
    end = time.time() + seconds
    while True:
        left = [now - old for now, old in zip(snapshot(), before)]
        if not any(left):
            return
        if time.time() > end:
            raise AssertionError(f"left behind: {left}")
        time.sleep(0.02)


def hierarchy(controller):
    """(directory, version) that serves a controller on this host, as the runtime looks it up."""
    v2 = None
    with open("/proc/self/mountinfo") as f:
        for line in f:
            left, right = line.split(" - ")
            where = left.split()[4]
            kind, _, opts = right.split()[:3]
            if kind == "cgroup" and controller in opts.split(","):
                return where, 1
            if kind == "cgroup2":
                with open(os.path.join(where, "cgroup.controllers")) as c:
                    if controller in c.read().split():
                        v2 = where
    return (v2, 2) if v2 else (None, 0)


def clone_config():
    return copy.deepcopy(base_config())


def main():
    wanted = sys.argv[1:]
    own_mount_namespace()
    chosen = [t for t in tests if not wanted or t.__name__ in wanted]
    print(f"1..{len(chosen)}")
    failed = 0
    for number, fn in enumerate(chosen, 1):
        box = Box()
        name = fn.__name__.replace("_", " ")
        try:
            if os.geteuid() != 0 and not getattr(fn, "anyone", False):
                raise Skip("needs root")
            fn(box)
            print(f"ok {number} - {name}", flush=True)
        except Skip as e:
            print(f"ok {number} - {name} # SKIP {e}", flush=True)
        except Exception as e:  # a test may fail in any way
            failed += 1
            print(f"not ok {number} - {name}", flush=True)
            for line in f"{type(e).__name__}: {e}".splitlines():
                print(f"# {line}", flush=True)
        finally:
            box.done()
    sys.exit(1 if failed else 0)
