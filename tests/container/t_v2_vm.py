"""fonda-oci on a kernel with cgroup v2 alone, in a VM: v2-guest.sh is its init. Needs qemu-system-x86_64 and a kernel with
the 9p-free basics built in (Debian's are fine): FONDA_TEST_KERNEL, or the newest in /boot."""
import glob
import json
import os
import shutil
import subprocess

from lib import *


def kernel():
    path = os.environ.get("FONDA_TEST_KERNEL")
    found = [path] if path else sorted(glob.glob("/boot/vmlinuz-*"))
    if not found:
        raise Skip("no kernel (FONDA_TEST_KERNEL)")
    if not shutil.which("qemu-system-x86_64") or not shutil.which("cpio"):
        raise Skip("needs qemu-system-x86_64 and cpio")
    return found[-1]


@test
def pure_cgroup_v2(box):
    image = kernel()
    root = box.dir + "/initrd"
    for d in ("new", "proc", "sys", "dev", "tmp", "bundle"):
        os.makedirs(f"{root}/{d}")
    shutil.copytree(box.rootfs, root + "/bundle/rootfs", symlinks=True)
    shutil.copytree(box.rootfs + "/bin", root + "/bin", symlinks=True)
    for applet in ("cp", "sed", "tr", "switch_root", "poweroff", "sync", "dd", "ls", "["):
        if not os.path.lexists(f"{root}/bin/{applet}"):
            os.symlink("busybox", f"{root}/bin/{applet}")
    shutil.copy(OCI, root + "/bin/fonda-oci")
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "v2-guest.sh")
    shutil.copy(script, root + "/init")
    os.chmod(root + "/init", 0o755)
    c = box.config
    c["process"]["args"] = "@ARGS@"
    c["linux"]["resources"] = "@RESOURCES@"
    c["linux"]["devices"] = [{"path": "/dev/port", "type": "c", "major": 1, "minor": 4},
                             {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]
    caps = ["CAP_SYS_RAWIO", "CAP_SYSLOG"]
    c["process"]["capabilities"] = {s: caps for s in ("bounding", "effective", "permitted")}
    c["mounts"] = [m for m in c["mounts"] if m["type"] != "mqueue"]
    c["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]})
    text = json.dumps(c).replace('"@ARGS@"', "[@ARGS@]").replace('"@RESOURCES@"', "{@RESOURCES@}")
    with open(root + "/bundle/template.json", "w") as f:
        f.write(text)
    initrd = box.dir + "/initrd.cpio"
    subprocess.run(f"cd {root} && find . | cpio -o -H newc --quiet > {initrd}", shell=True, check=True)
    p = subprocess.run(["qemu-system-x86_64", "-m", "512", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
                        "-accel", os.environ.get("FONDA_TEST_ACCEL", "tcg"), "-cpu", "max", "-kernel", image, "-initrd", initrd, "-append",
                        "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"],
                       capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    out = p.stdout.replace("\r", "")
    lines = [line for line in out.split("\n") if line.startswith(("ok ", "not ok ", "# ", "1.."))]
    for line in lines:
        print("    " + line)
    check(any(line.startswith("1..") for line in lines), "the guest didn't finish: " + out[-2000:])
    check(not any(line.startswith("not ok") for line in lines), "a check in the guest failed")


main()
