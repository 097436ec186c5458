"""The undo log: every step of create fails once, or the runtime is killed there, and nothing is left behind."""
import json
import os
import subprocess

from lib import *


def full(box):
    """A container that takes all steps."""
    box.binary = FAULTS
    c = box.config
    c["hooks"] = {kind: [{"path": "/bin/true"}] for kind in ("prestart", "createRuntime", "createContainer",
                                                            "startContainer", "poststart", "poststop")}
    c["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 50},
                               "devices": [{"allow": False, "access": "rwm"}]}
    c["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    c["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    c["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]})
    c["process"]["oomScoreAdj"] = 100
    c["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 512}]


def steps(box, kind):
    path = box.dir + "/steps"
    box.create("sleep", "100", name="probe", options=["--pid-file", box.dir + "/pid"],
               env={"FONDA_OCI_STEPS": path})
    box.oci("delete", "--force", "probe")
    os.unlink(box.dir + "/pid")
    return [line[6:].strip() for line in open(path) if line.startswith(kind)]


def each(box, kind, variable, clear):
    names = steps(box, kind)
    check(len(names) >= 5, f"steps: {names}")
    before = snapshot()
    for n in range(1, len(names) + 1):
        what = f"step {n} ({names[n - 1]})"
        r = box.create("sleep", "100", options=["--pid-file", box.dir + "/pid"], env={variable: str(n)}, ok=False)
        if clear:
            # A step after the first process was let go makes no difference to it.
            box.binary = OCI
            box.oci("delete", "--force", "c1")
            box.binary = FAULTS
            if os.path.exists(box.dir + "/pid"):
                os.unlink(box.dir + "/pid")
        else:
            check(r.code != 0, f"{what}: create must fail")
            check("injected fault" in r.err, f"{what}: {r.err}")
        equal(os.listdir(box.root), [], f"{what}: state directory")
        check(not os.path.exists(box.dir + "/pid"), f"{what}: pid file")
        try:
            settle(before)
        except AssertionError as e:
            raise AssertionError(f"{what}: {e}")


@test
def every_step_of_the_runtime_can_fail(box):
    full(box)
    each(box, "main", "FONDA_OCI_FAIL", clear=False)


@test
def every_step_of_the_first_process_can_fail(box):
    full(box)
    each(box, "child", "FONDA_OCI_CHILD_FAIL", clear=False)


@test
def the_runtime_can_be_killed_at_every_step(box):
    full(box)
    each(box, "main", "FONDA_OCI_KILL", clear=True)


@test
def the_first_process_can_be_killed_at_every_step(box):
    full(box)
    names = steps(box, "child")
    before = snapshot()
    for n in range(1, len(names) + 1):
        r = box.create("sleep", "100", env={"FONDA_OCI_CHILD_KILL": str(n)}, ok=False)
        check(r.code != 0, f"step {n} ({names[n - 1]})")
        contains(r.err, "died")
        settle(before)


@test
def every_step_with_a_user_namespace_can_fail(box):
    full(box)
    add_user_namespace(box.config)
    box.config["mounts"] = [m for m in box.config["mounts"] if m["type"] != "cgroup"]
    subprocess.run(["chown", "-R", "100000:100000", box.rootfs], check=True)
    each(box, "main", "FONDA_OCI_FAIL", clear=False)


@test
def the_plain_build_has_no_faults(box):
    box.create("sleep", "100", env={"FONDA_OCI_FAIL": "1", "FONDA_OCI_WITHOUT": "openat2"})
    equal(box.status(), "created")


main()
