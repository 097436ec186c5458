"""fonda-oci on a kernel with cgroup v2 alone, in a Fonda VM: v2-guest.sh is its init. The kernel is FONDA_TEST_KERNEL, or
Debian's that tools/fetch-guest has fetched; the engine FONDA_TEST_ENGINE (default: bt)."""
import json
import os
import shutil
import subprocess

from lib import *


def kernel():
    path = os.environ.get("FONDA_TEST_KERNEL", os.path.join(BUILD, "guest", "vmlinuz"))
    if not os.path.exists(path):
        raise Skip(f"no kernel at {path} (tools/fetch-guest {BUILD}/guest)")
    if not shutil.which("cpio"):
        raise Skip("needs cpio")
    return path


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
    shutil.copy(os.path.join(os.path.dirname(OCI), "limit", "fonda-cg"), root + "/bin/fonda-cg")
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
    p = subprocess.run([os.path.join(BUILD, "vm", "fonda-vmm"), "--memory", "512M", "--net", "none", "--no-reboot",
                        "--timeout", "280", "--engine", os.environ.get("FONDA_TEST_ENGINE", "bt"), "--kernel", image,
                        "--initrd", initrd, "--append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"],
                       capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, errors="replace")
    out = p.stdout.replace("\r", "")
    lines = [line for line in out.split("\n") if line.startswith(("ok ", "not ok ", "# ", "1.."))]
    for line in lines:
        print("# " + line)
    check(any(line.startswith("1..") for line in lines), "the guest didn't finish: " + out[-2000:])
    check(not any(line.startswith("not ok") for line in lines), "a check in the guest failed")


main()
