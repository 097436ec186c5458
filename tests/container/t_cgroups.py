"""config-linux.md "Control groups": limits land in the files of this host's hierarchies, or are errors."""
import json
import os
import subprocess

from lib import *


def read(controller, name, v1, v2):
    where, version = hierarchy(controller)
    if not where:
        raise Skip(f"no {controller} controller")
    return open(os.path.join(where, "fonda-oci", name, v1 if version == 1 else v2)).read().strip()


@test
def memory(box):
    box.config["linux"]["resources"] = {"memory": {"limit": 64 << 20, "reservation": 32 << 20}}
    box.create("sleep", "100")
    equal(read("memory", "c1", "memory.limit_in_bytes", "memory.max"), str(64 << 20))
    equal(read("memory", "c1", "memory.soft_limit_in_bytes", "memory.low"), str(32 << 20))


@test
def memory_limit_kills(box):
    box.config["linux"]["resources"] = {"memory": {"limit": 16 << 20}}
    box.config["process"]["oomScoreAdj"] = 1000
    r = box.sh("dd if=/dev/zero of=/dev/null bs=200M count=1", ok=False)
    check(r.code != 0, "200 MB in 16")


@test
def cpu(box):
    box.config["linux"]["resources"] = {"cpu": {"shares": 512, "quota": 50000, "period": 200000, "cpus": "0"}}
    box.create("sleep", "100")
    where, version = hierarchy("cpu")
    if version == 1:
        equal(read("cpu", "c1", "cpu.shares", ""), "512")
        equal(read("cpu", "c1", "cpu.cfs_quota_us", ""), "50000")
        equal(read("cpu", "c1", "cpu.cfs_period_us", ""), "200000")
    else:
        equal(read("cpu", "c1", "", "cpu.max"), "50000 200000")
    equal(read("cpuset", "c1", "cpuset.cpus", "cpuset.cpus"), "0")


@test
def pids(box):
    box.config["linux"]["resources"] = {"pids": {"limit": 3}}
    out = box.sh("sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait", ok=False)
    contains(out.err.lower(), "fork")
    box.config["linux"]["resources"] = {"pids": {"limit": -1}}
    box.create("sleep", "100")
    equal(read("pids", "c1", "pids.max", "pids.max"), "max")


@test
def devices(box):
    box.config["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"},
                                                    {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]}
    box.config["linux"]["devices"] = [{"path": "/dev/port", "type": "c", "major": 1, "minor": 4},
                                      {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]
    box.config["process"]["capabilities"]["bounding"] = box.config["process"]["capabilities"]["effective"] = \
        box.config["process"]["capabilities"]["permitted"] = ["CAP_SYS_RAWIO", "CAP_SYSLOG", "CAP_SYS_ADMIN"]
    out = box.sh("echo x > /dev/null && echo null; (: < /dev/port) 2>/dev/null || echo port; (: < /dev/kmsg) && echo kmsg; "
                 "(: > /dev/kmsg) 2>/dev/null || echo write").out
    equal(out, "null\nport\nkmsg\nwrite\n")


@test
def devices_by_bpf(box):
    """The same by cgroup v2's means, which the hybrid host has too."""
    box.binary = FAULTS
    box.env = {"FONDA_OCI_WITHOUT": "devicesv1"}
    devices(box)


@test
def hugepages(box):
    where, version = hierarchy("hugetlb")
    if not where:
        raise Skip("no hugetlb controller")
    box.config["linux"]["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    r = box.create("sleep", "100", ok=False)
    if r.code != 0:
        contains(r.err, "hugepageLimits")
        raise Skip("not enabled below the root: " + r.err.strip())
    equal(read("hugetlb", "c1", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"), str(4 << 20))


@test
def impossible_limits_are_errors(box):
    before = snapshot()
    for resources, text in (({"cpu": {"quota": 1}}, "cpu.quota"), ({"cpu": {"cpus": "999"}}, "cpu.cpus"),
                            ({"memory": {"kernel": 1 << 20}}, "memory.kernel"),
                            ({"unified": {"no.such": "1"}}, "no.such"), ({"unified": {"../x": "1"}}, "../x"),
                            ({"rdma": {"mlx": {"hcaHandles": 1}}}, "rdma"),
                            ({"blockIO": {"throttleReadBpsDevice": [{"major": 999, "minor": 0, "rate": 1}]}}, "blockIO"),
                            ({"pids": {"limit": "many"}}, "pids.limit"), ({"memory": []}, "memory")):
        box.config["linux"]["resources"] = resources
        r = box.create("true", ok=False)
        check(r.code != 0, str(resources))
        contains(r.err, text)
    settle(before)


@test
def unified_keys(box):
    where = [line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup2 " in line]
    if not where:
        raise Skip("no cgroup2")
    box.config["linux"]["resources"] = {"unified": {"cgroup.max.depth": "5"}}
    box.create("sleep", "100")
    equal(open(where[0] + "/fonda-oci/c1/cgroup.max.depth").read(), "5\n")


@test
def cgroups_path(box):
    box.config["linux"]["cgroupsPath"] = "/fonda-oci-path/deep/er"
    box.create("sleep", "100")
    check(any(d.endswith("fonda-oci-path/deep/er") for d in cgroup_dirs("fonda-oci-path")))
    box.oci("delete", "c1")
    check(not any(d.endswith("/er") for d in cgroup_dirs("fonda-oci-path")))
    for d in reversed(cgroup_dirs("fonda-oci-path")):
        os.rmdir(d)
    for bad in ("/", "/a/../..", "slice:prefix:name"):
        box.config["linux"]["cgroupsPath"] = bad
        check(box.create("true", ok=False).code != 0, bad)


@test
def a_failed_create_takes_the_parents_it_made_along(box):
    box.config["linux"]["cgroupsPath"] = "/fonda-oci-new/deep/er"
    check(box.create("no-such-program", ok=False).code != 0)
    equal(cgroup_dirs("fonda-oci-new"), [])


@test
def a_cgroup_in_use_is_refused(box):
    box.config["linux"]["cgroupsPath"] = "/fonda-oci/shared"
    box.create("sleep", "100")
    contains(box.create("sleep", "100", name="c2", ok=False).err, "in use")
    equal(box.status(), "created", "the first one is left alone")
    box.oci("delete", "c1")


@test
def update(box):
    box.create("sleep", "100")
    box.start()
    box.oci("update", "--memory", "50m", "--pids-limit", "33", "c1")
    equal(read("memory", "c1", "memory.limit_in_bytes", "memory.max"), str(50 << 20))
    equal(read("pids", "c1", "pids.max", "pids.max"), "33")
    path = box.dir + "/res"
    with open(path, "w") as f:
        json.dump({"cpu": {"shares": 300}, "memory": {"limit": 40 << 20}}, f)
    box.oci("update", "-r", path, "c1")
    equal(read("memory", "c1", "memory.limit_in_bytes", "memory.max"), str(40 << 20))
    check(box.oci("update", "--memory", "lots", "c1", ok=False).code != 0)
    contains(box.oci("update", "--cpu-quota", "1", "c1", ok=False).err, "cpu.quota")


@test
def stats(box):
    box.config["linux"]["resources"] = {"pids": {"limit": 77}}
    box.create("sleep", "100")
    box.start()
    event = json.loads(box.oci("events", "--stats", "c1").out)
    equal(event["type"], "stats")
    equal(event["data"]["pids"], {"current": 1, "limit": 77})
    check(event["data"]["memory"]["usage"]["usage"] > 0)
    check(event["data"]["cpu"]["usage"]["total"] > 0)


@test
def cgroup_mount_shows_the_own_part(box):
    box.config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                                 "options": ["ro", "nosuid", "noexec", "nodev"]})
    where, version = hierarchy("pids")
    path = "/sys/fs/cgroup/" + (os.path.basename(where) if version == 1 else "") + "/cgroup.procs"
    for namespaced in (True, False):
        if not namespaced:
            box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "cgroup"]
        equal(box.sh(f"cat {path} | head -1; mkdir /sys/fs/cgroup/x 2>/dev/null || echo ro").out, "1\nro\n")


@test
def systemd_cgroups_are_refused_clearly(box):
    box.write()
    contains(box.oci("run", "-b", box.bundle, "x", ok=False, options=["--systemd-cgroup"]).err, "systemd")


@test
def without_cgroups(box):
    disabled = ["--cgroup-manager", "disabled"]
    box.config["process"]["args"] = ["cat", "/proc/self/cgroup"]
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "cgroup"]
    box.write()
    equal(box.oci("run", "-b", box.bundle, "run1", options=disabled).out, open("/proc/self/cgroup").read())
    box.config["linux"]["resources"] = {"pids": {"limit": 5}}
    box.write()
    contains(box.oci("run", "-b", box.bundle, "run1", options=disabled, ok=False).err, "pids.limit")


@test
def hosts_with_cgroup_v2_alone(box):
    """A mount namespace in which only a cgroup2 is mounted, at the usual place; where this host has v1 too, it is one
    without the controllers that v1 holds, so that limits on those must be errors."""
    inner = "FONDA_TEST_V2_INNER"
    if not os.environ.get(inner):
        v2 = [line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup2 " in line]
        if not v2:
            raise Skip("no cgroup2")
        script = (f"mount --make-rprivate / && mkdir -p {box.dir}/v2 && mount --bind {v2[0]} {box.dir}/v2 && "
                  f"umount -R /sys/fs/cgroup && mkdir -p /sys/fs/cgroup && mount --move {box.dir}/v2 /sys/fs/cgroup && "
                  f"exec python3 {os.path.abspath(__file__)} hosts_with_cgroup_v2_alone")
        p = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60,
                           env=dict(os.environ, **{inner: "1"}))
        check(p.returncode == 0 and "ok 1" in p.stdout, p.stdout + p.stderr)
        return
    before = snapshot()
    devices(box)
    have = open("/sys/fs/cgroup/cgroup.controllers").read().split()
    for controller, resources in (("memory", {"memory": {"limit": 32 << 20, "swap": 64 << 20}}),
                                  ("cpu", {"cpu": {"shares": 1024, "quota": 50000, "period": 100000}}),
                                  ("cpuset", {"cpu": {"cpus": "0"}}), ("pids", {"pids": {"limit": 9}})):
        box.config["linux"]["resources"] = resources
        r = box.create("sleep", "100", ok=False)
        if controller not in have:
            contains(r.err, "can't be applied")
            continue
        equal(r.code, 0, r.err)
        for file, value in {"memory": (("memory.max", str(32 << 20)), ("memory.swap.max", str(32 << 20))),
                            "cpu": (("cpu.weight", "100"), ("cpu.max", "50000 100000")), "cpuset": (("cpuset.cpus", "0"),),
                            "pids": (("pids.max", "9"),)}[controller]:
            equal(open("/sys/fs/cgroup/fonda-oci/c1/" + file).read().strip(), value, file)
        box.oci("delete", "--force", "c1")
    box.config["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    box.config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]})
    box.create("sleep", "100")
    box.start()
    contains(box.oci("exec", "c1", "cat", "/sys/fs/cgroup/cgroup.procs").out, "1\n")
    path = box.dir + "/res"
    with open(path, "w") as f:
        json.dump({"devices": [{"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]}, f)
    box.oci("update", "-r", path, "c1")
    box.oci("pause", "c1")
    equal(box.status(), "paused")
    box.oci("delete", "--force", "c1")
    settle(before)


main()
