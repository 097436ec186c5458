"""config-linux.md "Seccomp": actions, arguments, architectures, the notify agent."""
import array
import json
import os
import socket
import subprocess
import threading

from lib import *


def profile(*rules, default="SCMP_ACT_ALLOW", **more):
    return dict({"defaultAction": default, "syscalls": list(rules)}, **more)


def rule(names, action, **more):
    return dict({"names": names.split(), "action": action}, **more)


@test
def errno_with_and_without_value(box):
    box.config["linux"]["seccomp"] = profile(rule("mkdir mkdirat", "SCMP_ACT_ERRNO", errnoRet=28))
    contains(box.sh("mkdir /tmp/x 2>&1; true").out, "No space left")
    box.config["linux"]["seccomp"] = profile(rule("mkdir mkdirat", "SCMP_ACT_ERRNO"))
    contains(box.sh("mkdir /tmp/x 2>&1; true").out, "Operation not permitted")


@test
def default_errno_and_allow_list(box):
    names = open("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read().split("__NR_")[1:] \
        if os.path.exists("/usr/include/x86_64-linux-gnu/asm/unistd_64.h") else []
    if not names:
        raise Skip("no list of system calls")
    allowed = " ".join(n.split()[0] for n in names if not n.startswith("mkdir"))
    box.config["linux"]["seccomp"] = profile(rule(allowed, "SCMP_ACT_ALLOW"), default="SCMP_ACT_ERRNO",
                                             defaultErrnoRet=38)
    contains(box.sh("mkdir /tmp/x 2>&1; echo alive").out, "not implemented\nalive")


@test
def kill_and_trap(box):
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "pid"]
    for action in ("SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"):
        box.config["linux"]["seccomp"] = profile(rule("mkdir mkdirat", action))
        equal(box.run("mkdir", "/tmp/x", ok=False).code, 128 + 31, action)


@test
def arguments_are_compared(box):
    # kill(1, sig): by its second argument
    for op, value, value2, blocked in (("SCMP_CMP_EQ", 10, 0, {10}), ("SCMP_CMP_NE", 0, 0, {10, 12}),
                                       ("SCMP_CMP_GT", 10, 0, {12}), ("SCMP_CMP_GE", 12, 0, {12}),
                                       ("SCMP_CMP_LT", 12, 0, {0, 10}), ("SCMP_CMP_LE", 10, 0, {0, 10}),
                                       ("SCMP_CMP_MASKED_EQ", 4, 4, {12})):
        box.config["linux"]["seccomp"] = profile(rule("kill", "SCMP_ACT_ERRNO", errnoRet=1, args=[
            {"index": 1, "value": value, "valueTwo": value2, "op": op}]))
        out = box.sh("trap : USR1 USR2; for s in 0 10 12; do kill -$s $$ 2>/dev/null || echo $s; done").out.split()
        equal(set(map(int, out)), blocked, op)


@test
def unknown_names_are_ignored_bad_profiles_are_not(box):
    box.config["linux"]["seccomp"] = profile(rule("no_such_call", "SCMP_ACT_ERRNO"))
    box.run("true")
    for bad in (profile(default="SCMP_ACT_X"), profile(rule("kill", "SCMP_ACT_X")), profile(rule("", "SCMP_ACT_ERRNO")),
                profile(architectures=["SCMP_ARCH_X"]), profile(flags=["X"]), profile(rule("kill", "SCMP_ACT_NOTIFY")),
                profile(rule("kill", "SCMP_ACT_ERRNO", args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]))):
        box.config["linux"]["seccomp"] = bad
        contains(box.run("true", ok=False).err, "linux.seccomp")


@test
def without_no_new_privileges(box):
    box.config["process"]["noNewPrivileges"] = False
    box.config["linux"]["seccomp"] = profile(rule("mkdir mkdirat", "SCMP_ACT_ERRNO"), flags=["SECCOMP_FILTER_FLAG_LOG"])
    contains(box.sh("mkdir /tmp/x 2>&1; true").out, "not permitted")


@test
def exec_gets_the_filter_too(box):
    box.config["linux"]["seccomp"] = profile(rule("mkdir mkdirat", "SCMP_ACT_ERRNO"))
    box.create("sleep", "100")
    box.start()
    contains(box.oci("exec", "c1", "sh", "-c", "mkdir /tmp/x 2>&1; true").out, "not permitted")


@test
def notify_agent_gets_the_listener(box):
    path = box.dir + "/agent.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    got = {}

    def agent():
        conn, _ = listener.accept()
        data, anc, _, _ = conn.recvmsg(65536, socket.CMSG_LEN(4))
        fds = array.array("i")
        fds.frombytes(anc[0][2][:4])
        got.update(json.loads(data), link=os.readlink(f"/proc/self/fd/{fds[0]}"))
        os.close(fds[0])  # calls that are waiting then fail with ENOSYS

    for nnp in (True, False):
        got.clear()
        thread = threading.Thread(target=agent, daemon=True)
        thread.start()
        box.config["process"]["noNewPrivileges"] = nnp
        box.config["linux"]["seccomp"] = profile(rule("mkdir mkdirat", "SCMP_ACT_NOTIFY"), listenerPath=path,
                                                 listenerMetadata="meta")
        contains(box.sh("mkdir /tmp/x 2>&1; true").out, "not implemented")
        thread.join(5)
        contains(got["link"], "seccomp")
        equal(got["metadata"], "meta")
        equal(got["fds"], ["seccompFd"])
        equal(got["state"]["id"], "run1")


main()
