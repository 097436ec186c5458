"""Containers under fonda-monitor, for the tests: starting one, its files, and a client of its control socket."""
import json
import os
import re
import socket
import subprocess
import time

from lib import *

MONITOR = os.path.join(BUILD, "container", "monitor", "fonda-monitor")
NETD = os.path.join(BUILD, "container", "netd", "fonda-netd")
PATIENCE_S = 60


class Client:
    """A connection to the control socket."""

    def __init__(self, directory):
        self.socket = socket.socket(socket.AF_UNIX)
        fd = os.open(directory, os.O_PATH)
        self.socket.connect(f"/proc/self/fd/{fd}/control.sock")
        os.close(fd)
        self.socket.settimeout(PATIENCE_S)
        self.rest = b""
        self.number = 0

    def line(self):
        while b"\n" not in self.rest:
            data = self.socket.recv(65536)
            if not data:
                return None
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def call(self, method, ok=True, **params):
        self.number += 1
        self.socket.sendall(json.dumps({"id": self.number, "method": method, "params": params}).encode() + b"\n")
        while True:
            answer = self.line()
            if answer is None:
                raise AssertionError(f"{method}: the monitor is gone")
            if answer.get("id") == self.number:
                break
        if ok and "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"] if ok else answer.get("error")

    def event(self, name, **wanted):
        while True:
            message = self.line()
            if message is None:
                raise AssertionError(f"no event {name}: the monitor is gone")
            if message.get("event") == name and all(message["data"].get(k) == v for k, v in wanted.items()):
                return message["data"]

    def stream(self):
        """Everything to the end of the connection, behind an attach."""
        data, self.rest = self.rest, b""
        while True:
            more = self.socket.recv(65536)
            if not more:
                return data
            data += more

    def close(self):
        self.socket.close()


class Watched:
    def __init__(self, box, *command, ok=True, options=(), terminal=False, user=None, prefix=()):
        self.box, self.dir = box, box.dir + "/run"
        box.config["process"]["args"] = list(command)
        box.config["process"]["terminal"] = terminal
        box.write()
        box.ids.append("c1")
        if user:
            subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", box.dir], check=True)
        p = subprocess.run([*prefix, MONITOR, "--id", "c1", "--bundle", box.bundle, "--dir", self.dir, "--oci", OCI, "--oci-root",
                            box.root, "--netd", NETD, *options], capture_output=True, text=True, timeout=PATIENCE_S,
                           stdin=subprocess.DEVNULL, **(as_user(user) if user and not prefix else {}))
        self.code, self.err = p.returncode, p.stderr
        if ok:
            equal(self.code, 0, self.err)

    def client(self):
        return Client(self.dir)

    def record(self):
        with open(self.dir + "/status.json") as f:
            return json.load(f)

    def wait(self, state="stopped"):
        end = time.time() + PATIENCE_S
        while self.record()["state"] != state or (state == "stopped" and os.path.exists(self.dir + "/control.sock")):
            check(time.time() < end, f"the container is {self.record()['state']}, not {state}")
            time.sleep(0.01)
        return self.record()

    def lines(self, name="log"):
        with open(f"{self.dir}/{name}") as f:
            return [re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) (.*)\n", line).groups()
                    for line in f]

    def text(self, stream="stdout"):
        return "".join(text + ("\n" if flag == "F" else "") for _, which, flag, text in self.lines() if which == stream)

    def end(self):
        """However the test went."""
        try:
            self.client().call("quit")
            self.wait()
        except (OSError, AssertionError):
            pass


def watched(fn):
    """A test that gets a function to start monitors with; they are ended behind it."""
    def run(box):
        started = []

        def start(*command, **kw):
            started.append(Watched(box, *command, **kw))
            return started[-1]
        before = snapshot()
        try:
            fn(box, start)
        finally:
            for w in started:
                w.end()
        settle(before)
    run.__name__ = fn.__name__
    return test(run)
