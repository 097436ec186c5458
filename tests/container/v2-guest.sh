#!/bin/sh
# Runs as init of a small VM whose kernel has every controller on cgroup v2: prints TAP about what needs that, and powers
# off. t_v2_vm.py packs it with busybox and fonda-oci.
if [ ! -e /moved ]; then
    # The root of an initramfs can't be pivoted away from.
    mount -t tmpfs root /new && cp -a /bin /bundle /init /new/ && touch /new/moved
    mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/run
    exec switch_root /new /init
fi
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs cgroup /sys/fs/cgroup 2>/dev/null && umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
CG=/sys/fs/cgroup/fonda-oci/c1
n=0
t() { # t NAME COMMAND...
    name=$1
    shift
    n=$((n + 1))
    if "$@" >/tmp/out 2>&1; then
        echo "ok $n - $name"
    else
        echo "not ok $n - $name"
        sed 's/^/# /' /tmp/out
    fi
}
is() { # is FILE VALUE
    got=$(cat "$CG/$1") && [ "$got" = "$2" ] || {
        echo "$1: $got, wanted $2"
        return 1
    }
}
config() { # config RESOURCES ARGS
    sed "s|@RESOURCES@|$1|; s|@ARGS@|$2|" /bundle/template.json >/bundle/config.json
}
echo "TAP begins"
grep -q cgroup_no_v1 /proc/cmdline || echo "# not booted with cgroup_no_v1=all"
config '"memory":{"limit":33554432,"swap":67108864,"reservation":16777216},"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0"},"pids":{"limit":9},"unified":{"memory.high":"20971520"},"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]' '"sleep","1000"'
t "create with limits" fonda-oci create -b /bundle c1
t "memory.max" is memory.max 33554432
t "memory.low" is memory.low 16777216
t "memory.high by a unified key" is memory.high 20971520
t "memory.swap.max is the difference" sh -c "[ ! -e $CG/memory.swap.max ] || [ \$(cat $CG/memory.swap.max) = 33554432 ]"
t "cpu.weight" is cpu.weight 100
t "cpu.max" is cpu.max "50000 100000"
t "cpuset.cpus" is cpuset.cpus 0
t "pids.max" is pids.max 9
t "start" fonda-oci start c1
t "exec" fonda-oci exec c1 true
t "devices: an allowed one" fonda-oci exec c1 sh -c ': < /dev/kmsg'
t "devices: another one" sh -c '! fonda-oci exec c1 sh -c ": < /dev/port"'
t "update" fonda-oci update --memory 48m --memory-swap 96m --pids-limit 20 --cpu-quota 70000 c1
t "memory.max after update" is memory.max 50331648
t "cpu.max keeps the period" is cpu.max "70000 100000"
t "pause" fonda-oci pause c1
t "state is paused" sh -c 'fonda-oci state c1 | grep -q paused'
t "exec is refused" sh -c '! fonda-oci exec c1 true'
t "resume" fonda-oci resume c1
t "stats" sh -c 'fonda-oci events --stats c1 | grep -q "\"limit\":50331648"'
t "delete --force" fonda-oci delete --force c1
t "no cgroup is left" sh -c '! ls -d /sys/fs/cgroup/fonda-oci'
config '"memory":{"limit":20971520}' '"sh","-c","dd if=/dev/zero of=/dev/null bs=200M count=1"'
t "the memory limit kills" sh -c '! fonda-oci run -b /bundle c1'
config '"memory":{"swappiness":10}' '"true"'
t "what v2 hasn't got is an error" sh -c 'fonda-oci run -b /bundle c1 2>&1 | grep -q "no such limit"'
config '"pids":{"limit":3}' '"sh","-c","cat /sys/fs/cgroup/pids.max; cat /proc/self/cgroup"'
t "the cgroup mount shows the own one" sh -c '[ "$(fonda-oci run -b /bundle c1 | tr "\n" " ")" = "3 0::/ " ]'
# Limits of machines: fonda-cg around a process.
mkdir -p /tmp/cg
fonda-cg run /tmp/cg web '{"cpu_limit":"1.5","cpu_weight":50,"memory_limit":33554432,"memory_swap":67108864,"pids_limit":9}' /bin/sleep 1000 &
pid=$!
CG=/sys/fs/cgroup/fonda-vm/web-$pid
i=0
while [ "$(cat $CG/cgroup.procs 2>/dev/null)" != "$pid" ] && [ $i -lt 200 ]; do
    sleep 0.1
    i=$((i + 1))
done
t "limits: the process is in its group" is cgroup.procs $pid
t "limits: cpu.max" is cpu.max "150000 100000"
t "limits: cpu.weight" is cpu.weight 50
t "limits: memory.max" is memory.max 33554432
t "limits: memory.swap.max is the difference" sh -c "[ ! -e $CG/memory.swap.max ] || [ \$(cat $CG/memory.swap.max) = 33554432 ]"
t "limits: pids.max" is pids.max 9
t "limits: changed" fonda-cg set /tmp/cg/cgroup.$pid '{"cpu_limit":"0.5"}'
t "limits: cpu.max after it" is cpu.max "50000 100000"
t "limits: memory.max taken away" is memory.max max
t "limits: pids.max taken away" is pids.max max
t "limits: less than is in use is refused" sh -c "! fonda-cg set /tmp/cg/cgroup.$pid '{\"memory_limit\":1}'"
t "limits: removed, with who is in it" fonda-cg remove /tmp/cg/cgroup.$pid
t "limits: nothing is left" sh -c "[ ! -e $CG ] && [ ! -e /tmp/cg/cgroup.$pid ] && ! kill -0 $pid 2>/dev/null || [ ! -d /proc/$pid ] || grep -q Z /proc/$pid/status"
echo "1..$n"
sync
poweroff -f
