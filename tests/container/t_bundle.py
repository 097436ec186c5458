"""Bundles made from what people ask for (container/bundle.h), run by fonda-oci; fonda-init."""
import json
import os
import subprocess
import time

from lib import *
from watched import Watched, watched

MAKE = os.path.join(BUILD, "tests", "container", "bundle_make")
INIT = os.path.join(BUILD, "container", "fonda-init")
IMAGE = {"Cmd": ["echo", "cmd"], "Env": ["PATH=/bin", "A=image"], "WorkingDir": "/tmp"}


def make(box, image=None, ok=True, user=None, **options):
    for name, value in (("image", IMAGE if image is None else image), ("options", dict({"id": "0123456789abcdef"}, **options))):
        with open(f"{box.dir}/{name}.json", "w") as f:
            json.dump(value, f)
    os.makedirs(box.rootfs + "/etc", exist_ok=True)
    if not os.path.lexists(box.rootfs + "/etc/passwd"):
        with open(box.rootfs + "/etc/passwd", "w") as f:
            f.write("root:x:0:0::/root:/bin/sh\nbroken\nwww:x:33:34::/srv:/bin/sh\n")
        with open(box.rootfs + "/etc/group", "w") as f:
            f.write("root:x:0:\nwww:x:34:\nextra:x:77:other,www\nlone:x:78:\n")
    if user:
        subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", box.dir], check=True)
    p = subprocess.run([MAKE, box.bundle, box.rootfs, box.dir + "/image.json", box.dir + "/options.json"], capture_output=True,
                       text=True, **(as_user(user) if user else {}))
    if ok:
        equal(p.returncode, 0, p.stderr)
    return p


def run(box, *command, user=None, code=0, **options):
    make(box, command=list(command), user=user, **options)
    r = box.oci("run", "-b", box.bundle, "run1", ok=False, user=user.pw_uid if user else None)
    equal(r.code, code, r.err)
    return r.out


def config(box, **options):
    make(box, **options)
    with open(box.bundle + "/config.json") as f:
        return json.load(f)


@test
def image_defaults_and_what_replaces_them(box):
    equal(config(box)["process"]["args"], ["echo", "cmd"])
    equal(config(box, command=["x"])["process"]["args"], ["x"])
    both = {"Entrypoint": ["e"], "Cmd": ["c"]}
    equal(config(box, image=both)["process"]["args"], ["e", "c"])
    equal(config(box, image=both, command=["x"])["process"]["args"], ["e", "x"])
    equal(config(box, image=both, entrypoint="n")["process"]["args"], ["n"])
    equal(config(box, image=both, entrypoint="", command=["x"])["process"]["args"], ["x"])
    contains(make(box, image={}, ok=False).stderr, "names no command")
    contains(run(box, "sh", "-c", "pwd; echo $A $B; hostname; cat /etc/hostname", env=["A=own", "B=2"]),
             "/tmp\nown 2\n0123456789ab\n0123456789ab\n")
    equal(run(box, "pwd", workdir="/made"), "/made\n")
    contains(run(box, "cat", "/etc/hosts", hostname="inn"), "inn")


@test
def users_and_groups(box):
    for user, wanted in ((None, "uid=0(root) gid=0(root)"), ("www", "uid=33(www) gid=34(www) groups=77(extra)"),
                         ("33", "uid=33(www) gid=34(www) groups=77(extra)"), ("www:lone", "uid=33(www) gid=78(lone)"),
                         ("5:6", "uid=5 gid=6"), ("9", "uid=9 gid=0(root)")):
        contains(run(box, "id", user=None, **({"image": dict(IMAGE, User=user)} if user else {})), wanted)
    contains(run(box, "sh", "-c", "echo $HOME", image=dict(IMAGE, User="www")), "/srv")
    for user in ("nobody-here", "www:none"):
        contains(make(box, image=dict(IMAGE, User=user), ok=False).stderr, "give a number")


@test
def a_hostile_passwd(box):
    """It is read inside of the root file system, whatever it points to."""
    os.makedirs(box.rootfs + "/etc")
    os.symlink("/../../../../../../../../etc/passwd", box.rootfs + "/etc/passwd")
    contains(make(box, image=dict(IMAGE, User="daemon"), ok=False).stderr, "not in the container's /etc/passwd")
    os.unlink(box.rootfs + "/etc/passwd")
    os.mkfifo(box.rootfs + "/etc/passwd")
    contains(make(box, image=dict(IMAGE, User="daemon"), ok=False).stderr, "not in the container's /etc/passwd")


@test
def volumes_and_tmpfs(box):
    os.makedirs(box.dir + "/data")
    os.makedirs(box.dir + "/volumes")
    out = run(box, "sh", "-c", "touch /ro/x 2>/dev/null || echo ro; touch /rw/x /named/y /t/z && echo rw; grep ' /t ' /proc/mounts",
              volumes=[box.dir + "/data:/ro:ro", box.dir + "/data:/rw", "keep:/named"], volumes_dir=box.dir + "/volumes",
              tmpfs=["/t:size=1m,mode=700"])
    contains(out, "ro\nrw\n")
    contains(out, "size=1024k,mode=700")
    check(os.path.exists(box.dir + "/data/x") and os.path.exists(box.dir + "/volumes/keep/y"))
    contains(run(box, "sh", "-c", "touch /x 2>/dev/null || echo ro; touch /run2/x && echo rw", read_only=True, tmpfs=["/run2"]), "ro\nrw\n")
    for bad in ("x", "/x", "/nonexistent:/y", "a/b:/y", "name:y", "/tmp:/y:zz", "../../etc:/", ":/x", "name:/x:"):
        p = make(box, ok=False, volumes=[bad])
        check(p.returncode == 1 and "volume" in p.stderr and len(p.stderr.splitlines()) == 1, bad + ": " + p.stderr)


@test
def limits(box):
    c = config(box, memory="64m", memory_swap="128m", cpus="1.5", cpuset="0", pids_limit=9, shm_size="1m",
               ulimits=["nofile=100:200", "core=0"])
    equal(c["linux"]["resources"]["memory"], {"limit": 64 << 20, "swap": 128 << 20})
    equal(c["linux"]["resources"]["cpu"], {"quota": 150000, "period": 100000, "cpus": "0"})
    equal(c["linux"]["resources"]["pids"], {"limit": 9})
    out = run(box, "sh", "-c", "ulimit -n; df -k /dev/shm | tail -1; grep shm /proc/mounts", ulimits=["nofile=100:200"], shm_size="1m",
              memory="64m", pids_limit=20, cpus="0.5")
    contains(out, "100\n")
    contains(out, "size=1024k")
    for bad in ({"memory": "much"}, {"cpus": "-1"}, {"cpus": "0"}, {"cpus": "nan"}, {"ulimits": ["x"]}, {"ulimits": ["nofile=1:2:3"]},
                {"shm_size": "0"}, {"sysctls": ["x"]}, {"workdir": "x"}):
        p = make(box, ok=False, **bad)
        check(p.returncode == 1 and len(p.stderr.splitlines()) == 1, str(bad) + p.stderr)


@test
def capabilities(box):
    def bounding(**options):
        return int(run(box, "grep", "CapBnd", "/proc/self/status", **options).split()[1], 16)
    equal(bounding(), 0x800405fb)  # the eleven of bundle.c
    equal(bounding(cap_drop=["ALL"]), 0)
    equal(bounding(cap_drop=["all"], cap_add=["CHOWN"]), 1)
    equal(bounding(cap_add=["net_admin"]) & (1 << 12), 1 << 12)
    contains(make(box, ok=False, cap_add=["X"]).stderr, "'X' is not a capability")
    out = run(box, "grep", "Cap", "/proc/self/status", image=dict(IMAGE, User="www"), cap_add=["NET_RAW"])
    contains(out, "CapEff:\t0000000000002000")
    contains(out, "CapAmb:\t0000000000002000")


@test
def the_default_profile(box):
    """What it refuses, by an own program: no shell command calls these."""
    source = box.dir + "/calls.c"
    with open(source, "w") as f:
        f.write('''#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#include <unistd.h>
#define T(name, ...) errno = 0; syscall(SYS_##name, __VA_ARGS__); printf("%s %d\\n", #name, errno)
int main(void) { T(unshare, CLONE_NEWUSER); T(keyctl, 0, 0, 0); T(bpf, 0, 0, 0); T(clone3, 0, 0); T(io_uring_setup, 1, 0);
T(personality, 0xffffffff); T(personality, 0x40000); T(mount, 0, 0, 0, 0, 0); T(kexec_load, 0, 0, 0, 0); T(ptrace, -1, 0, 0, 0); T(getpid, 0);
errno = 0; syscall(600); printf("600 %d\\n", errno); errno = 0; syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0); printf("clone %d\\n", errno);
return 0; }''')
    subprocess.run(["gcc", "-static", "-o", box.rootfs + "/bin/calls", source], check=True)
    want = {"unshare": 1, "keyctl": 1, "bpf": 1, "clone3": 38, "io_uring_setup": 1, "mount": 1, "kexec_load": 1, "getpid": 0, "600": 38, "clone": 1}
    lines = run(box, "calls").splitlines()
    got = dict(line.split() for line in lines)
    equal({k: int(got[k]) for k in want}, want)
    equal([line for line in lines if line.startswith("personality")], ["personality 0", "personality 1"])
    equal(int(dict(line.split() for line in run(box, "calls", cap_add=["SYS_ADMIN"]).splitlines())["mount"]), 14, "with SYS_ADMIN")
    got = dict(line.split() for line in run(box, "calls", security=["seccomp=unconfined"]).splitlines())
    check(int(got["keyctl"]) != 1 and int(got["clone3"]) == 22, str(got))
    with open(box.dir + "/profile.json", "w") as f:
        json.dump({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}]}, f)
    contains(run(box, "calls", security=["seccomp=" + box.dir + "/profile.json"]), "getpid 5\n")
    contains(make(box, ok=False, security=["seccomp=/nonexistent"]).stderr, "/nonexistent")
    contains(make(box, ok=False, security=["nonsense"]).stderr, "'nonsense'")


@test
def devices_and_privileged(box):
    equal(run(box, "sh", "-c", "dd if=/dev/mem2 bs=1 count=0 2>/dev/null && echo ok; : 2>/dev/null > /dev/mem2 || echo ro",
              devices=["/dev/zero:/dev/mem2:r"]).splitlines()[0], "ok")
    for bad in ("/nonexistent", "x", "/etc/passwd", "/dev/null:/dev/y:q", "/dev/null:rwmm"):
        p = make(box, ok=False, devices=[bad])
        check(p.returncode == 1 and len(p.stderr.splitlines()) == 1, bad + p.stderr)
    out = run(box, "sh", "-c", "mount -t tmpfs x /tmp && echo mounted; ls /dev/kmsg", privileged=True)
    contains(out, "mounted\n/dev/kmsg\n")


@test
def networks(box):
    equal(run(box, "sh", "-c", "ls /sys/class/net; cat /etc/resolv.conf", network="none"), "lo\n")
    equal(run(box, "sh", "-c", "readlink /proc/self/ns/net", network="host").strip(), os.readlink("/proc/self/ns/net"))
    equal(run(box, "sh", "-c", "cat /etc/resolv.conf", network="user"), "nameserver 10.0.2.3\n")


@test
@anyone
def rootless(box):
    user = account()
    contains(run(box, "sh", "-c", "id; ls /sys/class/net; cat /proc/self/uid_map | wc -l", user=user, rootless=True), "uid=0(root)")
    contains(run(box, "sh", "-c", "ls /sys/class/net", user=user, rootless=True, network="host"), "lo")


@test
def the_init_reaps_and_passes_on(box):
    size = os.path.getsize(INIT)
    check(size < 1 << 20, f"{size} bytes")
    equal(run(box, "sh", "-c", "exit 7", init=INIT, code=7), "")
    equal(run(box, "sh", "-c", "kill -9 $$", init=INIT, code=137), "")
    equal(run(box, "no-such", init=INIT, code=127), "")
    equal(run(box, "echo", "$$", init=INIT), "$$\n")
    out = run(box, "sh", "-c", "(sleep 0.1 & ) ; cat /proc/1/comm; sleep 0.4; cat /proc/[0-9]*/stat | grep -c ') Z '", init=INIT, code=1)
    equal(out, "fonda-init\n0\n")


@watched
def the_init_passes_signals_on(box, start):
    make(box, command=["sh", "-c", "trap 'echo got; exit 6' TERM; echo ready; while :; do sleep 0.05; done"], init=INIT)
    with open(box.bundle + "/config.json") as f:
        box.config = json.load(f)
    w = start(*box.config["process"]["args"])
    while "ready" not in w.text():
        time.sleep(0.01)
    w.client().call("kill", signal="TERM")
    equal(w.wait()["exit"]["status"], 6)
    contains(w.text(), "got\n")


main()
