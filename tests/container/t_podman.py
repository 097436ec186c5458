"""podman with --runtime fonda-oci, as root and as a plain user; images are made here, no registry is asked."""
import os
import pwd
import shutil
import subprocess
import tempfile

from lib import *

IMAGE = "localhost/fonda-test:1"
# This host may not let limits be raised to podman's defaults.
COMMON = ["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]


class Podman:
    def __init__(self, box, user=None):
        if not shutil.which("podman"):
            raise Skip("podman is not installed")
        self.dir = tempfile.mkdtemp(prefix="fonda-oci-test-")
        self.user = user
        self.runtime = self.dir + "/fonda-oci"
        shutil.copy(OCI, self.runtime)
        self.tar = self.dir + "/image.tar"
        subprocess.run(["tar", "-C", box.rootfs, "-cf", self.tar, "."], check=True)
        self.env = dict(os.environ)
        if user:
            run = f"{self.dir}/run"
            os.mkdir(run)
            subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", self.dir], check=True)
            self.env.update(HOME=user.pw_dir, XDG_RUNTIME_DIR=run)
        self.base = ["podman", "--root", self.dir + "/root", "--runroot", self.dir + "/runroot", "--storage-driver", "vfs",
                     "--runtime", self.runtime, "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        self("import", self.tar, IMAGE)

    def __call__(self, *args, ok=True):
        ids = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if self.user and os.geteuid() == 0 else {}
        p = subprocess.run([*self.base, *args], capture_output=True, text=True, timeout=90, env=self.env, cwd="/",
                           stdin=subprocess.DEVNULL, **ids)
        if ok and p.returncode != 0:
            raise AssertionError(f"podman {' '.join(args)}: status {p.returncode}: {p.stderr}")
        return Result(p.returncode, p.stdout, p.stderr)

    def done(self):
        self("rm", "-af", "-t", "0", ok=False)
        if self.user:
            self("unshare", "rm", "-rf", self.dir + "/root", self.dir + "/runroot", ok=False)
        shutil.rmtree(self.dir, ignore_errors=True)


def common(p):
    equal(p("run", "--rm", *COMMON, IMAGE, "sh", "-c", "echo hi; exit 3", ok=False).code, 3, "status")
    equal(p("run", "--rm", *COMMON, IMAGE, "echo", "hi").out, "hi\n", "output")
    r = p("run", "--rm", *COMMON, IMAGE, "no-such-command", ok=False)
    equal(r.code, 127, "status of a missing command")
    p("run", "-d", "--name", "c1", *COMMON, IMAGE, "sleep", "1000")
    equal(p("exec", "c1", "hostname").code, 0, "exec")
    equal(p("exec", "-u", "7", "c1", "id", "-u").out, "7\n", "exec as a user")
    equal(p("exec", "c1", "sh", "-c", "exit 4", ok=False).code, 4, "status of exec")
    equal(p("inspect", "c1", "--format", "{{.State.Status}}").out, "running\n", "inspect")
    contains(p("run", "--rm", "-t", *COMMON, IMAGE, "tty").out, "/dev/pts/0")
    contains(p("run", "--rm", *COMMON, "-v", p.dir + ":/vol:ro", "--tmpfs", "/t", "--read-only", IMAGE, "sh", "-c",
               "ls /vol; touch /t/x && touch /x 2>/dev/null || echo ro").out, "ro\n")
    contains(p("run", "--rm", *COMMON, "--cap-drop", "all", IMAGE, "grep", "CapBnd", "/proc/self/status").out, "0" * 16)
    p("stop", "-t", "0", "c1")
    p("rm", "c1")
    equal(p("ps", "-aq").out, "", "containers left")


@test
def as_root(box):
    p = Podman(box)
    try:
        common(p)
        p("run", "-d", "--name", "c2", *COMMON, "--memory", "64m", "--pids-limit", "55", "--cpus", "0.5", IMAGE,
          "sleep", "1000")
        where, version = hierarchy("pids")
        found = [d for d in cgroup_dirs("libpod-") if d.startswith(where)]
        check(any(open(d + "/pids.max").read() == "55\n" for d in found if os.path.exists(d + "/pids.max")), "pids limit")
        p("pause", "c2")
        equal(p("inspect", "c2", "--format", "{{.State.Status}}").out, "paused\n")
        check(p("exec", "c2", "true", ok=False).code != 0, "exec while paused")
        p("unpause", "c2")
        equal(p("exec", "c2", "echo", "back").out, "back\n")
        p("stats", "--no-stream", "c2")
        p("rm", "-f", "-t", "0", "c2")
        contains(p("run", "--rm", "--uidmap", "0:100000:1000", *COMMON, IMAGE, "cat", "/proc/self/uid_map").out, "100000")
        equal([d for d in cgroup_dirs("libpod-")], [], "cgroups left")
    finally:
        p.done()


@test
@anyone
def as_a_plain_user(box):
    try:
        user = pwd.getpwnam("fondatest") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    except KeyError:
        if subprocess.run(["useradd", "-m", "fondatest"], capture_output=True).returncode != 0:
            raise Skip("cannot make a test user")
        user = pwd.getpwnam("fondatest")
    p = Podman(box, user)
    try:
        common(p)
        contains(p("run", "--rm", *COMMON, "--userns", "keep-id", IMAGE, "id", "-u").out, str(user.pw_uid))
    finally:
        p.done()


main()
