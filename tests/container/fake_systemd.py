"""The part of systemd's bus interface that makes scopes, on cgroups of this host: `fake_systemd.py BUS-ADDRESS`. Run by
Debian's own Python, which has dbus-python; prints "ready"."""
import os
import sys

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

INTERFACE = "org.freedesktop.systemd1.Manager"


def hierarchies():
    """systemd's own: its named one, and v2."""
    for line in open("/proc/self/mountinfo"):
        left, right = line.rstrip("\n").split(" - ")
        if right.startswith("cgroup2 ") or (right.startswith("cgroup ") and "name=systemd" in right):
            yield left.split()[4]


class Manager(dbus.service.Object):
    units = {}

    @dbus.service.method(INTERFACE, in_signature="", out_signature="")
    def Subscribe(self):
        pass

    @dbus.service.method(INTERFACE, in_signature="ssa(sv)a(sa(sv))", out_signature="o")
    def StartTransientUnit(self, name, mode, properties, aux):
        properties = {str(k): v for k, v in properties}
        print("start", name, mode, sorted((k, str(v)) for k, v in properties.items() if k != "PIDs"), flush=True)
        if name in self.units:
            raise dbus.exceptions.DBusException(f"Unit {name} already exists.", name="org.freedesktop.systemd1.UnitExists")
        result = "failed" if "fail" in name else "done"
        if result == "done":
            path = f"/{properties['Slice']}/{name}"
            for mount in hierarchies():
                os.makedirs(mount + path, exist_ok=True)
                for pid in properties["PIDs"]:
                    with open(mount + path + "/cgroup.procs", "w") as f:
                        f.write(str(int(pid)))
            self.units[str(name)] = path
        job = f"/org/freedesktop/systemd1/job/{len(self.units) + 7}"
        # Somebody else's job ends first.
        GLib.idle_add(lambda: self.JobRemoved(1, "/org/freedesktop/systemd1/job/1", "other.service", "done") and False)
        GLib.idle_add(lambda: self.JobRemoved(2, job, name, result) and False)
        return dbus.ObjectPath(job)

    @dbus.service.method(INTERFACE, in_signature="sba(sv)", out_signature="")
    def SetUnitProperties(self, name, runtime, properties):
        print("set", name, bool(runtime), sorted((str(k), str(v)) for k, v in properties), flush=True)

    @dbus.service.method(INTERFACE, in_signature="ss", out_signature="o")
    def StopUnit(self, name, mode):
        path = self.units.pop(str(name), None)
        print("stop", name, path is not None, flush=True)
        if not path:
            raise dbus.exceptions.DBusException(f"Unit {name} not loaded.", name="org.freedesktop.systemd1.NoSuchUnit")
        for mount in hierarchies():
            for where in (mount + path, os.path.dirname(mount + path)):
                try:
                    os.rmdir(where)
                except OSError:
                    pass
        return dbus.ObjectPath("/org/freedesktop/systemd1/job/1")

    @dbus.service.signal(INTERFACE, signature="uoss")
    def JobRemoved(self, number, job, unit, result):
        return False


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(sys.argv[1])
name = dbus.service.BusName("org.freedesktop.systemd1", bus)
manager = Manager(bus, "/org/freedesktop/systemd1")
print("ready", flush=True)
GLib.MainLoop().run()
