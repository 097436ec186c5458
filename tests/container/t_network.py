"""--network user: fonda-netd, as root and as a plain user; --network none."""
import hashlib
import os
import socket
import subprocess
import threading
import time

from lib import *
from watched import *


def port():
    """One that nobody uses, most likely."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def need_tun():
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as e:
        raise Skip(f"/dev/net/tun: {e.strerror}")


def own_network(box, user=None):
    need_tun()
    if user:
        c = box.config["linux"]
        c["namespaces"] = [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "user")]
        c["uidMappings"] = [{"containerID": 0, "hostID": user.pw_uid, "size": 1}]
        c["gidMappings"] = [{"containerID": 0, "hostID": user.pw_gid, "size": 1}]


def talk(box, start, user=None):
    """Both directions, with some megabytes each way."""
    own_network(box, user)
    published = port()
    data = os.urandom(2 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = server.getsockname()[1]
        got = {}

        def serve():
            try:
                conn, _ = server.accept()
            except OSError:
                return  # the test is over
            conn.sendall(data)
            conn.shutdown(socket.SHUT_WR)
            got["back"] = conn.recv(100)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        prefix = ()
        if user and os.geteuid() == 0 and not os.stat("/dev/net/tun").st_mode & 0o002:
            # Hosts let everybody use it; where this one doesn't, a node of the test's own lies over it.
            prefix = ("unshare", "-m", "sh", "-c", f"mknod -m 666 {box.dir}/tun c 10 200 && mount --bind {box.dir}/tun /dev/net/tun &&"
                      f" exec setpriv --reuid {user.pw_uid} --regid {user.pw_gid} --clear-groups \"$@\"", "sh")
        w = start("sh", "-c", f"ifconfig eth0; route -n; nc 10.0.2.2 {host} < /dev/null > /tmp/got; md5sum < /tmp/got; "
                  "echo served | nc -l -p 80; echo over", prefix=prefix,
                  options=["--network", "user", "--publish", f"{published}:80"], user=user)
        end = time.time() + PATIENCE_S
        answer = b""
        while not answer:
            check(time.time() < end, "no answer on the published port: " + w.text())
            try:
                with socket.create_connection(("127.0.0.1", published), timeout=PATIENCE_S) as c:
                    answer = c.recv(100)
            except OSError:
                pass
            time.sleep(0.05)
        equal(answer, b"served\n")
        w.wait()
    text = w.text()
    for part in ("10.0.2.15", "10.0.2.2", hashlib.md5(data).hexdigest(), "over"):
        contains(text, part)


@watched
def as_root(box, start):
    talk(box, start)


@watched
def as_a_plain_user(box, start):
    user = account()
    talk(box, start, user)


@watched
def a_port_that_is_taken(box, start):
    own_network(box)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        w = start("sleep", "100", options=["--network", "user", "--publish", f"{taken}:80"], ok=False)
    equal(w.code, 125)
    contains(w.err, f"port {taken}")
    equal(w.wait()["state"], "stopped")


@watched
def the_hosts_own_network_is_left_alone(box, start):
    need_tun()
    box.config["linux"]["namespaces"] = [n for n in box.config["linux"]["namespaces"] if n["type"] != "network"]
    w = start("sleep", "100", options=["--network", "user"], ok=False)
    equal(w.code, 125)
    contains(w.err, "network namespace of its own")


@watched
def it_ends_with_the_container(box, start):
    """Also when the monitor was killed; and it has no rights left."""
    own_network(box)
    w = start("sleep", "100", options=["--network", "user"])
    status = w.client().call("status")
    children = [int(p) for p in os.listdir("/proc") if p.isdigit() and parent(p) == status["monitor_pid"]]
    netd = [p for p in children if "fonda-netd" in open(f"/proc/{p}/comm").read()]
    equal(len(netd), 1)
    text = open(f"/proc/{netd[0]}/status").read()
    contains(text, "Uid:\t65534")
    contains(text, "CapEff:\t0000000000000000")
    contains(text, "NoNewPrivs:\t1")
    pss = [line.split()[1] for line in open(f"/proc/{netd[0]}/smaps_rollup") if line.startswith("Pss:")][0]
    print(f"# fonda-netd: {pss} KiB")
    os.kill(status["monitor_pid"], 9)
    os.kill(status["pid"], 9)
    box.oci("delete", "--force", "c1")
    end = time.time() + PATIENCE_S
    while os.path.exists(f"/proc/{netd[0]}") and "Z" not in open(f"/proc/{netd[0]}/stat").read().split(")")[1][:3]:
        check(time.time() < end, "fonda-netd is still there")
        time.sleep(0.02)


def parent(pid):
    try:
        return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


main()
