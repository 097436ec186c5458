"""What users of other runtimes rely on, beyond the specification's text."""
import os
import subprocess
import time

from lib import *


def hidden(box):
    """A bundle with a user namespace in a place that its root may enter, owned by it."""
    add_user_namespace(box.config)
    subprocess.run(["chown", "-R", "100000:100000", box.rootfs], check=True)


@test
def options_may_follow_the_id(box):
    box.create("sleep", "100")
    box.start()
    where, version = hierarchy("pids")
    if version:
        box.oci("update", "c1", "--pids-limit", "77")
    box.oci("kill", "c1", "KILL", "--all")
    box.wait_status("stopped")
    box.oci("delete", "c1", "--force")


@test
def kill_and_delete_by_pattern(box):
    for name in ("web-1", "web-2", "db-1"):
        box.create("sleep", "100", name=name)
        box.start(name)
    box.oci("kill", "--regex", "^web-", "0")
    box.oci("delete", "--force", "--regex", "^web-")
    equal(box.oci("list", "-q").out, "db-1\n")
    contains(box.oci("delete", "--regex", "(", ok=False).err, "--regex '('")


@test
def signal_zero_asks_whether_it_is_there(box):
    box.create("sleep", "100")
    box.start()
    box.oci("kill", "c1", "0")
    contains(box.oci("kill", "c1", "SIGNOTHING", ok=False).err, "not a signal")


@test
def a_read_only_dev_gets_its_devices(box):
    for m in box.config["mounts"]:
        if m["destination"] == "/dev":
            m["options"].append("ro")
    out = box.sh("echo x > /dev/null && echo null; touch /dev/new 2>/dev/null || echo ro; ls -d /dev/pts /dev/fd").out
    equal(out, "null\nro\n/dev/fd\n/dev/pts\n")


@test
def missing_cwd_below_a_read_only_root(box):
    box.config["root"]["readonly"] = True
    box.config["process"]["cwd"] = "/not/there/yet"
    equal(box.run("pwd").out, "/not/there/yet\n")


@test
def hooks_without_env_have_the_runtime_s(box):
    out = box.dir + "/out"
    for env, wanted in ((None, "mine\n"), ([], "\n")):
        hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo $MARK > {out}"]}
        if env is not None:
            hook["env"] = env
        box.config["hooks"] = {"createRuntime": [hook]}
        box.run("true", env={"MARK": "mine"})
        equal(open(out).read(), wanted)


@test
def hostname_by_sysctl_is_refused(box):
    box.config["linux"]["sysctl"] = {"kernel.hostname": "other"}
    contains(box.run("true", ok=False).err, "'hostname'")


@test
def unknown_capability_of_exec_is_told(box):
    box.create("sleep", "100")
    box.start()
    r = box.oci("exec", "--cap", "CAP_FLY", "c1", "true")
    contains(r.err, "CAP_FLY")


@test
def groups_are_kept_by_annotation(box):
    box.config["annotations"] = {"run.oci.keep_original_groups": "1"}
    box.config["process"]["args"] = ["id", "-G"]
    box.write()
    p = subprocess.run([box.binary, "--root", box.root, "run", "-b", box.bundle, "run1"], capture_output=True, text=True,
                       timeout=20, extra_groups=[4321])
    contains(p.stdout, "4321")


@test
def no_pivot_shows_no_bare_proc(box):
    # A user namespace may mount a procfs where a whole one is to be seen: the host's must not be.
    box.config["process"]["args"] = ["sh", "-c", "cat /proc/self/mountinfo"]
    box.write()
    out = box.oci("run", "--no-pivot", "-b", box.bundle, "run1").out
    outside = [line for line in out.splitlines() if " - proc " in line and line.split()[4] != "/proc" and
               not line.split()[4].startswith("/proc/")]
    equal(outside, [])


@test
def killed_in_a_foreign_frozen_cgroup(box):
    freezer, version = hierarchy("freezer")
    if version != 1:
        raise Skip("no v1 freezer")
    box.create("sleep", "100")
    box.start()
    cold = freezer + "/fonda-cold-" + str(os.getpid())
    os.mkdir(cold)
    try:
        open(cold + "/cgroup.procs", "w").write(str(box.state()["pid"]))
        open(cold + "/freezer.state", "w").write("FROZEN")
        start = time.time()
        box.oci("delete", "--force", "c1")
        check(time.time() - start < 8, "it took too long")
    finally:
        open(cold + "/freezer.state", "w").write("THAWED")
        os.rmdir(cold)


@test
def exec_waits_for_resume_if_asked(box):
    box.create("sleep", "100")
    box.start()
    box.oci("pause", "c1")
    p = subprocess.Popen([box.binary, "--root", box.root, "exec", "--ignore-paused", "c1", "echo", "through"],
                         stdout=subprocess.PIPE, text=True)
    time.sleep(0.2)
    check(p.poll() is None, "it ran in a paused container")
    box.oci("resume", "c1")
    equal(p.communicate(timeout=20)[0], "through\n")


@test
def a_cgroup_of_its_own_to_write_to(box):
    hidden(box)
    box.config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup",
                                 "options": ["nosuid", "noexec", "nodev"]})
    with open("/proc/mounts") as f:
        if " cgroup2 " not in f.read():
            contains(box.run("true", ok=False).err, "no cgroup2")
            return
    out = box.sh("cd /sys/fs/cgroup; stat -f -c %T .; stat -c %u . cgroup.procs; mkdir sub && echo made; "
                 "echo 0 > sub/cgroup.procs && cat /proc/self/cgroup | grep ^0").out
    equal(out.split("\n")[1:5], ["0", "0", "made", "0::/sub"], out)


@test
def clocks_of_a_user_namespace(box):
    if not os.path.exists("/proc/self/ns/time"):
        raise Skip("no time namespaces")
    hidden(box)
    box.config["linux"]["namespaces"].append({"type": "time"})
    box.config["linux"]["timeOffsets"] = {"boottime": {"secs": 1000000}}
    check(float(box.run("cat", "/proc/uptime").out.split()[0]) > 1000000, "no offset")


@test
def a_terminal_that_is_hung_up_goes_on(box):
    box.config["process"]["terminal"] = True
    script = ("trap '' HUP; echo one; exec </dev/null >/dev/null 2>&1; sleep 0.3; "
              "echo two > /dev/console; sleep 0.3; echo three > /dev/console")
    box.config["process"]["args"] = ["sh", "-c", script]
    box.write()
    p = subprocess.run([box.binary, "--root", box.root, "run", "-b", box.bundle, "run1"], capture_output=True, text=True,
                       timeout=20, stdin=subprocess.DEVNULL)
    equal(p.stdout.split(), ["one", "two", "three"], p.stderr)


main()
