"""config-linux.md "Namespaces", user namespaces, sysctl, time offsets; hooks (config.md "POSIX-platform Hooks")."""
import json
import os
import shutil
import subprocess

from lib import *

FILES = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "mount": "mnt", "cgroup": "cgroup", "user": "user",
         "time": "time"}


@test
def new_and_inherited_namespaces(box):
    host = {k: os.readlink(f"/proc/self/ns/{f}") for k, f in FILES.items()}
    script = "; ".join(f"readlink /proc/self/ns/{f}" for f in FILES.values())
    got = dict(zip(FILES, box.sh(script).out.split()))
    for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup"):
        check(got[kind] != host[kind], f"{kind} is new")
    equal(got["user"], host["user"], "user")
    box.config["linux"]["namespaces"] = [{"type": "mount"}]
    del box.config["hostname"]
    box.config["mounts"] = [m for m in box.config["mounts"] if m["type"] not in ("sysfs", "mqueue")]
    box.config["linux"]["maskedPaths"] = []
    got = dict(zip(FILES, box.sh(script).out.split()))
    for kind in ("pid", "network", "ipc", "uts", "cgroup"):
        equal(got[kind], host[kind], kind)


@test
def joining_by_path(box):
    p = subprocess.Popen(["unshare", "-n", "-i", "-u", "-p", "-f", "--kill-child", "sh", "-c", "echo; sleep 100"],
                         stdout=subprocess.PIPE)
    try:
        p.stdout.readline()
        child = open(f"/proc/{p.pid}/task/{p.pid}/children").read().split()[0]
        for ns in box.config["linux"]["namespaces"]:
            if ns["type"] in ("network", "ipc", "uts", "pid"):
                ns["path"] = f"/proc/{child}/ns/{FILES[ns['type']]}"
        want = [os.readlink(f"/proc/{child}/ns/{f}") for f in ("net", "ipc", "uts", "pid")]
        got = box.sh("for n in net ipc uts pid; do readlink /proc/self/ns/$n; done").out.split()
        equal(got, want)
        box.config["linux"]["namespaces"][0]["path"] = f"/proc/{child}/ns/net"
        contains(box.run("true", ok=False).err, "is not a pid namespace")
        box.config["linux"]["namespaces"][0]["path"] = "/no/such"
        contains(box.run("true", ok=False).err, "/no/such")
    finally:
        p.kill()
        p.wait()


@test
def user_namespace(box):
    add_user_namespace(box.config)
    subprocess.run(["chown", "-R", "100000:100000", box.rootfs], check=True)
    out = box.sh("cat /proc/self/uid_map; id -u; touch /tmp/mine; ls -l /dev/null | cut -c1; hostname").out
    contains(out, "0     100000      65536")
    contains(out, "\n0\nc\nbox\n")
    equal(os.stat(box.rootfs + "/tmp/mine").st_uid, 100000, "owner on the host")


@test
def joining_a_user_namespace(box):
    add_user_namespace(box.config)
    subprocess.run(["chown", "-R", "100000:100000", box.rootfs], check=True)
    box.create("sleep", "100")
    box.start()
    equal(box.oci("exec", "c1", "id", "-u").out, "0\n", "exec")
    pid = box.state()["pid"]
    second = clone_config()
    second["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{pid}/ns/user"})
    out = box.run("readlink", "/proc/self/ns/user", config=second).out
    equal(out.strip(), os.readlink(f"/proc/{pid}/ns/user"))


@test
def mappings_are_checked(box):
    box.config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 0, "size": 1}]
    contains(box.run("true", ok=False).err, "user namespace")
    del box.config["linux"]["uidMappings"]
    box.config["linux"]["namespaces"].append({"type": "user"})
    contains(box.run("true", ok=False).err, "uidMappings")
    box.config["linux"]["namespaces"].append({"type": "pid"})
    contains(box.run("true", ok=False).err, "twice")


@test
def time_offsets(box):
    box.config["linux"]["namespaces"].append({"type": "time"})
    box.config["linux"]["timeOffsets"] = {"boottime": {"secs": 1000000, "nanosecs": 0}, "monotonic": {"secs": 1}}
    check(float(box.run("cat", "/proc/uptime").out.split()[0]) > 1000000)
    box.create("sleep", "100")
    box.start()
    check(float(box.oci("exec", "c1", "cat", "/proc/uptime").out.split()[0]) > 1000000, "exec")


@test
def sysctl(box):
    box.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096", "net/ipv4/ip_default_ttl": "55"}
    equal(box.sh("cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmax net/ipv4/ip_default_ttl").out, "1\n4096\n55\n")
    for bad in ("vm.swappiness", "kernel.pid_max", "../x", "net.x/../../y"):
        box.config["linux"]["sysctl"] = {bad: "1"}
        check(box.run("true", ok=False).code != 0, bad)
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "network"]
    box.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    contains(box.run("true", ok=False).err, "network namespace")


@test
def loopback_is_up(box):
    contains(box.run("ip", "addr", "show", "lo").out, "127.0.0.1")


@test
def network_devices_move_in(box):
    ways = (["ip", "link", "add", "fondat0", "type", "dummy"], ["ip", "tuntap", "add", "fondat0", "mode", "tap"])
    if not shutil.which("ip") or all(subprocess.run(way, capture_output=True).returncode for way in ways):
        raise Skip("neither dummy nor tap devices can be made here")
    try:
        box.config["linux"]["netDevices"] = {"fondat0": {"name": "eth7"}}
        contains(box.run("ip", "link", "show", "eth7").out, "eth7")
    finally:
        subprocess.run(["ip", "link", "del", "fondat0"], capture_output=True)
    box.config["linux"]["netDevices"] = {"nosuchdev0": {}}
    contains(box.run("true", ok=False).err, "nosuchdev0")


@test
def hooks_run_in_order_with_the_state(box):
    log = box.dir + "/hooks"
    script = box.dir + "/hook"
    with open(script, "w") as f:
        f.write(f"#!/bin/sh\nread -r line\necho \"$1 $line\" >> {log}\n")
    os.chmod(script, 0o755)
    # createContainer and startContainer run inside; the latter finds only what the container has.
    with open(box.rootfs + "/hook", "w") as f:
        f.write("#!/bin/sh\nread -r line\necho \"$1 $line\" > /tmp/hook\n")
    os.chmod(box.rootfs + "/hook", 0o755)
    box.config["hooks"] = {k: [{"path": script, "args": ["hook", k]}]
                           for k in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")}
    box.config["hooks"]["startContainer"] = [{"path": "/hook", "args": ["hook", "startContainer"]}]
    box.config["annotations"] = {"org.example": "x"}
    box.create("sleep", "100")
    equal([line.split(" ", 1)[0] for line in open(log)], ["prestart", "createRuntime", "createContainer"])
    box.start()
    box.oci("delete", "--force", "c1")
    lines = [line.split(" ", 1) for line in open(log)]
    equal([line[0] for line in lines], ["prestart", "createRuntime", "createContainer", "poststart", "poststop"])
    states = {name: json.loads(text) for name, text in lines}
    equal(states["prestart"]["status"], "creating")
    equal(states["poststart"]["status"], "running")
    equal(states["poststop"]["status"], "stopped")
    equal(states["createRuntime"]["annotations"], {"org.example": "x"})
    equal(states["createRuntime"]["bundle"], box.bundle)
    check(states["createRuntime"]["pid"] > 1)
    name, text = open(box.rootfs + "/tmp/hook").read().split(" ", 1)
    equal((name, json.loads(text)["status"]), ("startContainer", "created"))


@test
def failing_hooks(box):
    before = snapshot()
    for kind in ("prestart", "createRuntime", "createContainer"):
        box.config["hooks"] = {kind: [{"path": "/bin/false"}]}
        contains(box.create("sleep", "100", ok=False).err, kind)
        check(box.oci("state", "c1", ok=False).code != 0, f"{kind}: nothing is left")
    box.config["hooks"] = {"poststart": [{"path": "/bin/false"}]}
    box.create("sleep", "100")
    contains(box.oci("start", "c1", ok=False).err, "poststart")
    box.wait_status("stopped")
    box.oci("delete", "c1")
    box.config["hooks"] = {"poststop": [{"path": "/bin/false"}]}
    contains(box.run("true").err, "poststop")
    settle(before)


@test
def slow_hooks_are_killed(box):
    box.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}
    contains(box.create("true", ok=False, ).err, "longer than 1 s")


main()
