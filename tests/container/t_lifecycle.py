"""runtime.md: state, create, start, kill, delete; run, list, ps, pause, exec."""
import json
import os
import subprocess
import time

from lib import *


@test
def create_start_kill_delete(box):
    before = snapshot()
    pid_file = os.path.join(box.dir, "pid")
    box.create("sleep", "100", options=["--pid-file", pid_file])
    state = box.state()
    equal(state["status"], "created", "status after create")
    equal(state["id"], "c1", "id")
    equal(state["bundle"], box.bundle, "bundle")
    equal(int(open(pid_file).read()), state["pid"], "pid file")
    box.start()
    equal(box.status(), "running", "status after start")
    check(box.oci("start", "c1", ok=False).code != 0, "a second start must fail")
    check(box.oci("delete", "c1", ok=False).code != 0, "delete of a running container must fail")
    equal(box.status(), "running", "status after the refused delete")
    box.oci("kill", "c1", "KILL")
    box.wait_status("stopped")
    check("pid" not in box.state(), "a stopped container has no pid")
    check(box.oci("kill", "c1", "TERM", ok=False).code != 0, "kill of a stopped container must fail")
    box.oci("delete", "c1")
    check(box.oci("state", "c1", ok=False).code != 0, "state of a deleted container must fail")
    settle(before)


@test
def user_code_does_not_run_before_start(box):
    box.create("touch", "/tmp/ran")
    time.sleep(0.1)
    check(not os.path.exists(box.rootfs + "/tmp/ran"))
    box.start()
    box.wait_status("stopped")
    check(os.path.exists(box.rootfs + "/tmp/ran"))


@test
def config_is_read_once(box):
    box.create("touch", "/tmp/first")
    box.config["process"]["args"] = ["touch", "/tmp/second"]
    box.write()
    box.start()
    box.wait_status("stopped")
    check(os.path.exists(box.rootfs + "/tmp/first") and not os.path.exists(box.rootfs + "/tmp/second"))


@test
def ids_are_unique_and_checked(box):
    box.create("sleep", "100")
    r = box.oci("create", "-b", box.bundle, "c1", ok=False)
    contains(r.err, "exists already")
    equal(box.status(), "created", "the first one is left alone")
    for bad in ("", "a/b", "../x", "a b", ".hidden", "x" * 300):
        check(box.oci("create", "-b", box.bundle, bad, ok=False).code != 0, f"id {bad!r}")


@test
def unknown_containers_are_errors(box):
    for args in (["state"], ["start"], ["delete"], ["kill"], ["pause"], ["exec", "none", "true"], ["ps"]):
        r = box.oci(*(args if len(args) > 1 else args + ["none"]), ok=False)
        check(r.code != 0, str(args))
        contains(r.err, "does not exist")
    equal(box.oci("delete", "--force", "none").code, 0, "delete --force of nothing")
    check(box.oci("state", ok=False).code != 0, "state without an id")


@test
def a_created_container_obeys_signals_and_delete(box):
    box.create("sleep", "100")
    box.oci("kill", "c1", "TERM")
    box.wait_status("stopped")
    box.oci("delete", "c1")
    box.create("sleep", "100")
    box.oci("delete", "c1")
    check(box.oci("state", "c1", ok=False).code != 0)


@test
def run_returns_the_status(box):
    equal(box.sh("exit 7", ok=False).code, 7, "exit status")
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "pid"]
    equal(box.sh("kill -TERM $$", ok=False).code, 128 + 15, "death by signal")


@test
def run_detached(box):
    box.config["process"]["args"] = ["sleep", "100"]
    box.write()
    box.ids.append("d1")
    subprocess.run([box.binary, "--root", box.root, "run", "-d", "-b", box.bundle, "d1"], check=True, timeout=20,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    equal(box.status("d1"), "running", "status")
    box.oci("pause", "d1")
    box.oci("resume", "d1")
    box.oci("delete", "--force", "d1")


@test
def a_foreground_run_can_be_handled_by_others(box):
    box.config["process"]["args"] = ["sleep", "100"]
    box.write()
    box.ids.append("f1")
    p = subprocess.Popen([box.binary, "--root", box.root, "run", "-b", box.bundle, "f1"], stdin=subprocess.DEVNULL)
    end = time.time() + 10
    while box.oci("state", "f1", ok=False).code != 0 or box.status("f1") != "running":
        check(time.time() < end, "it never ran")
        time.sleep(0.02)
    box.oci("pause", "f1")
    box.oci("resume", "f1")
    box.oci("kill", "f1", "KILL")
    equal(p.wait(10), 128 + 9, "status of run")
    check(box.oci("state", "f1", ok=False).code != 0, "run deletes")


@test
def list_and_ps(box):
    box.create("sleep", "100")
    box.start()
    listed = json.loads(box.oci("list", "--format", "json").out)
    equal([c["id"] for c in listed], ["c1"], "list")
    equal(box.oci("list", "-q").out, "c1\n", "list -q")
    pids = json.loads(box.oci("ps", "--format", "json", "c1").out)
    equal(pids, [box.state()["pid"]], "ps")
    contains(box.oci("ps", "c1").out, "sleep 100")


@test
def pause_and_resume(box):
    box.create("sh", "-c", "while :; do echo x >> /tmp/ticks; sleep 0.01; done")
    box.start()
    box.oci("pause", "c1")
    equal(box.status(), "paused", "status")
    size = os.path.getsize(box.rootfs + "/tmp/ticks") if os.path.exists(box.rootfs + "/tmp/ticks") else 0
    time.sleep(0.1)
    now = os.path.getsize(box.rootfs + "/tmp/ticks") if size else 0
    equal(now, size, "something ran while paused")
    started = time.time()
    r = box.oci("exec", "c1", "true", ok=False, timeout=10)
    check(r.code != 0 and time.time() - started < 5, "exec into a paused container is refused at once")
    contains(r.err, "paused")
    check(box.oci("pause", "c1", ok=False).code != 0, "pause twice")
    box.oci("resume", "c1")
    equal(box.status(), "running", "status")
    check(box.oci("resume", "c1", ok=False).code != 0, "resume twice")


@test
def a_paused_container_can_be_deleted(box):
    before = snapshot()
    box.create("sleep", "100")
    box.start()
    box.oci("pause", "c1")
    box.oci("delete", "--force", "c1", timeout=15)
    settle(before)


@test
def a_paused_container_can_be_killed(box):
    box.create("sleep", "100")
    box.start()
    box.oci("pause", "c1")
    box.oci("kill", "c1", "KILL")
    box.wait_status("stopped")


@test
def exec_runs_and_returns_the_status(box):
    box.create("sleep", "100")
    box.start()
    equal(box.oci("exec", "c1", "sh", "-c", "exit 5", ok=False).code, 5, "status")
    equal(box.oci("exec", "-e", "A=b", "--cwd", "/bin", "-u", "3:4", "c1", "sh", "-c", "echo $A $PWD $(id -u):$(id -g)")
          .out, "b /bin 3:4\n", "options")
    equal(box.oci("exec", "c1", "hostname").out, "box\n", "namespaces")
    own = box.oci("exec", "c1", "cat", "/proc/self/cgroup").out
    contains(own, "0::/")
    r = box.oci("exec", "c1", "nothing-of-this-name", ok=False)
    contains(r.err, "not found")
    equal(json.loads(box.oci("ps", "--format", "json", "c1").out), [box.state()["pid"]], "processes afterwards")


@test
def exec_takes_a_process_file(box):
    box.create("sleep", "100")
    box.start()
    process = dict(box.config["process"], args=["sh", "-c", "echo $0 $X; id -u", "zero"], env=["X=1", "PATH=/bin"],
                   user={"uid": 9, "gid": 9})
    path = box.dir + "/process.json"
    with open(path, "w") as f:
        json.dump(process, f)
    equal(box.oci("exec", "--process", path, "c1").out, "zero 1\n9\n", "output")
    pid_file = box.dir + "/exec.pid"
    process["args"] = ["sleep", "50"]
    with open(path, "w") as f:
        json.dump(process, f)
    subprocess.run([box.binary, "--root", box.root, "exec", "-d", "--pid-file", pid_file, "--process", path, "c1"],
                   check=True, timeout=20, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    check(int(open(pid_file).read()) in json.loads(box.oci("ps", "--format", "json", "c1").out))


@test
def exec_after_the_end_is_refused(box):
    box.create("true")
    box.start()
    box.wait_status("stopped")
    contains(box.oci("exec", "c1", "true", ok=False).err, "stopped")


@test
def kill_all_reaches_everybody(box):
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "pid"]
    before = snapshot()
    box.create("sh", "-c", "sleep 100 & sleep 100 & wait")
    box.start()
    end = time.time() + 5
    while len(json.loads(box.oci("ps", "--format", "json", "c1").out)) < 3 and time.time() < end:
        time.sleep(0.02)
    box.oci("kill", "--all", "c1", "KILL")
    box.wait_status("stopped")
    box.oci("delete", "c1")
    settle(before)


@test
def delete_takes_survivors_along(box):
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "pid"]
    before = snapshot()
    box.create("sh", "-c", "sleep 1000 & exit 0")
    box.start()
    box.wait_status("stopped")
    box.oci("delete", "c1", timeout=15)
    settle(before)


@test
def logs_are_written_as_asked(box):
    log = box.dir + "/log"
    box.config["process"]["args"] = ["nothing-here"]
    box.write()
    r = box.oci("create", "-b", box.bundle, "l1", ok=False, options=["--log", log, "--log-format", "json"])
    check(r.code != 0)
    entry = json.loads(open(log).read().splitlines()[-1])
    equal(entry["level"], "error", "level")
    contains(entry["msg"], "nothing-here")


@test
def features_and_spec(box):
    f = json.loads(box.oci("features").out)
    equal(f["ociVersionMax"], "1.3.0", "version")
    for key in ("hooks", "mountOptions", "linux"):
        check(f[key], key)
    d = box.dir + "/new"
    os.mkdir(d)
    box.oci("spec", "--bundle", d)
    config = json.load(open(d + "/config.json"))
    equal(config["ociVersion"], "1.3.0", "version")
    check(box.oci("spec", "--bundle", d, ok=False).code != 0, "spec doesn't overwrite")
    config["process"].update(terminal=False, args=["echo", "hi"])
    equal(box.run("echo", "hi", config=config).out, "hi\n", "the example runs")


@test
def checkpoint_is_refused_clearly(box):
    contains(box.oci("checkpoint", "x", ok=False).err, "CRIU")


@test
def five_hundred_cycles_leave_nothing(box):
    """Half of them take the long way: start, exec, kill, delete."""
    before = snapshot()
    fds = len(os.listdir("/proc/self/fd"))
    for n in range(500):
        if n % 2:
            box.create("true")
            box.oci("delete", "c1")
            continue
        box.create("sleep", "100")
        box.start()
        box.oci("exec", "c1", "true")
        box.oci("delete", "--force", "c1")
    equal(os.listdir(box.root), [], "state directory")
    equal(len(os.listdir("/proc/self/fd")), fds, "descriptors")
    settle(before)


main()
