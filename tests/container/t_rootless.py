"""The runtime as a plain user: one id mapped, several by newuidmap, and errors that say what to do."""
import json
import os
import shutil
import subprocess

from lib import *

def rootless(box):
    user = account()
    c = box.config
    c["linux"]["namespaces"] = [{"type": t} for t in ("pid", "ipc", "uts", "mount", "user")]
    c["linux"]["uidMappings"] = [{"containerID": 0, "hostID": user.pw_uid, "size": 1}]
    c["linux"]["gidMappings"] = [{"containerID": 0, "hostID": user.pw_gid, "size": 1}]
    c["mounts"] = [m for m in c["mounts"] if m["type"] != "sysfs"]
    c["mounts"].append({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]})
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", box.dir], check=True)
    # The build directory may be closed to others.
    box.binary = box.dir + "/fonda-oci"
    shutil.copy(OCI, box.binary)
    os.chmod(box.binary, 0o755)
    return user


def subordinate(user, kind):
    for line in open(f"/etc/sub{kind}"):
        name, first, count = line.strip().split(":")
        if name == user.pw_name:
            return int(first), int(count)
    raise Skip(f"no range in /etc/sub{kind}")


@test
@anyone
def single_mapping(box):
    user = rootless(box)
    out = box.sh("id -u; cat /proc/self/uid_map; hostname; touch /tmp/mine", user=user.pw_uid).out
    contains(out, "0\n")
    contains(out, f"{user.pw_uid}          1")
    equal(os.stat(box.rootfs + "/tmp/mine").st_uid, user.pw_uid)


@test
@anyone
def life_cycle(box):
    user = rootless(box)
    box.create("sleep", "100", **as_user(user))
    box.oci("start", "c1", user=user.pw_uid)
    equal(box.oci("exec", "c1", "sh", "-c", "id -u; hostname", user=user.pw_uid).out, "0\nbox\n")
    box.oci("kill", "c1", "KILL", user=user.pw_uid)
    box.oci("delete", "--force", "c1", user=user.pw_uid)


@test
@anyone
def ranges_by_newuidmap(box):
    user = rootless(box)
    if not shutil.which("newuidmap"):
        raise Skip("newuidmap is not installed")
    for kind, key, own in (("uid", "uidMappings", user.pw_uid), ("gid", "gidMappings", user.pw_gid)):
        first, count = subordinate(user, kind)
        box.config["linux"][key] = [{"containerID": 0, "hostID": own, "size": 1},
                                    {"containerID": 1, "hostID": first, "size": count}]
    box.config["process"]["user"] = {"uid": 33, "gid": 33}
    equal(box.sh("id -u", user=user.pw_uid).out, "33\n")


@test
@anyone
def a_range_that_is_too_small(box):
    user = rootless(box)
    if not shutil.which("newuidmap"):
        raise Skip("newuidmap is not installed")
    for key, own in (("uidMappings", user.pw_uid), ("gidMappings", user.pw_gid)):
        box.config["linux"][key] = [{"containerID": 0, "hostID": own, "size": 1},
                                    {"containerID": 1, "hostID": 3000000000, "size": 70000}]
    err = box.run("true", ok=False, user=user.pw_uid).err
    contains(err, f"{user.pw_name}:3000000000:70000")
    contains(err, "/etc/subgid")


@test
@anyone
def without_a_user_namespace(box):
    user = rootless(box)
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "user"]
    for key in ("uidMappings", "gidMappings"):
        del box.config["linux"][key]
    contains(box.run("true", ok=False, user=user.pw_uid).err, "user namespace")


@test
@anyone
def limits_are_not_skipped(box):
    user = rootless(box)
    box.config["linux"]["resources"] = {"memory": {"limit": 64 << 20}}
    err = box.run("true", ok=False, user=user.pw_uid).err
    contains(err, "memory.limit")
    contains(err, "can't be applied")


@test
@anyone
def groups_that_cannot_be_had(box):
    user = rootless(box)
    box.config["process"]["user"] = {"uid": 0, "gid": 0, "additionalGids": [5]}
    contains(box.run("true", ok=False, user=user.pw_uid).err, "additionalGids")


main()
