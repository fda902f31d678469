//! Behaviours of `ctr run` with an image and the flags that users pass to it.

use anyhow::Result;

use super::{Behaviour, Outcome, calls};
use crate::containerd::Runtime;
use crate::containerd::ctr::{Run, fresh_id};

pub const BEHAVIOURS: &[Behaviour] = &[
    calls(
        "run: environment and working directory",
        &["process.env", "process.cwd"],
        |runtime| {
            run(
                runtime,
                &["--env", "A=b c", "--env", "D=", "--cwd", "/tmp"],
                "echo $A $D; pwd; env | sort | head -n 4",
            )
        },
    ),
    calls("run: read-only root file system", &["root.readonly"], |runtime| {
        run(
            runtime,
            &["--read-only"],
            "touch /x; touch /tmp/x; touch /run/x; ls /run",
        )
    }),
    calls(
        "run: privileged",
        &[
            "process.capabilities.effective",
            "linux.maskedPaths",
            "linux.readonlyPaths",
        ],
        |runtime| {
            run(
                runtime,
                &["--privileged"],
                "grep -E '^(Cap|NoNew)' /proc/self/status; touch /proc/sys/kernel/hostname && hostname changed && hostname; mount -t tmpfs none /tmp && echo mounted; test -e /proc/keys && cat /proc/keys > /dev/null && echo read",
            )
        },
    ),
    calls(
        "run: network devices",
        &["process.capabilities.effective"],
        |runtime| {
            run(
                runtime,
                &["--privileged"],
                "exec 2>&1; for type in dummy ifb veth bridge; do ip link add $type-x type $type && ip link delete $type-x && echo $type; done; ip link add dum0 type dummy; ip link add mac0 link dum0 type macvlan && echo macvlan; ip link add link dum0 name dum0.5 type vlan id 5 && echo vlan; ip -o link | cut -d : -f 2 | sort",
            )
        },
    ),
    calls(
        "run: tunnels and congestion control",
        &["process.capabilities.effective"],
        |runtime| {
            run(
                runtime,
                &["--privileged"],
                "exec 2>&1
                add() { ip link add $*; ip -o link show $1 | cut -d @ -f 1 | cut -d : -f 2; }
                add dum0 type dummy
                ip link set dum0 up
                add vxlan7 type vxlan id 7 dev dum0 dstport 4789
                add geneve7 type geneve id 7 remote 192.0.2.1
                add ipvlan7 link dum0 type ipvlan mode l2
                add wireguard7 type wireguard
                cd /proc/sys/net/ipv4
                echo bbr > tcp_congestion_control; cat tcp_congestion_control; stat -c '%F %t:%T' /dev/net/tun",
            )
        },
    ),
    calls(
        "run: counters of a process",
        &["process.capabilities.effective"],
        |runtime| {
            run(
                runtime,
                &[],
                "cut -d : -f 1 /proc/self/io; wc -w < /proc/self/schedstat",
            )
        },
    ),
    calls(
        "run: an added capability",
        &["process.capabilities.effective"],
        |runtime| {
            run(
                runtime,
                &["--cap-add", "CAP_SYS_ADMIN"],
                "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted",
            )
        },
    ),
    calls(
        "run: containerd's default seccomp filter",
        &["linux.seccomp"],
        |runtime| {
            run(
                runtime,
                &["--seccomp"],
                "grep Seccomp: /proc/self/status; unshare -U true; swapoff -a; date -s 2000-01-01; insmod x; chroot / echo chroot; linux32 echo linux32; mount -t tmpfs none /tmp; ping -c 1 127.0.0.1 | head -n 1; nice -n 5 nice; ls -A /tmp",
            )
        },
    ),
    calls(
        "run: memory and CPU limits",
        &["linux.resources.memory.limit", "linux.resources.cpu.quota"],
        |runtime| {
            let mount = "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev";
            run(
                runtime,
                &["--mount", mount, "--memory-limit", "67108864", "--cpus", "0.5"],
                "cd /sys/fs/cgroup$(grep ^0:: /proc/self/cgroup | cut -d : -f 3); cat memory.max cpu.max",
            )
        },
    ),
    calls(
        "run: a tmpfs and a bind mount",
        &["mounts[].options"],
        |runtime| {
            run(
                runtime,
                &[
                    "--mount",
                    "type=tmpfs,src=t,dst=/t,options=size=2m:mode=711",
                    "--mount",
                    "type=bind,src=/etc,dst=/host,options=rbind:ro",
                ],
                "df -k /t | tail -n 1 | awk '{ print $2 }'; stat -c %a /t; test -s /host/passwd && echo there; touch /host/x",
            )
        },
    ),
    calls("run: rlimits", &["process.rlimits"], |runtime| {
        run(runtime, &[], "ulimit -n; ulimit -Hn")
    }),
];

fn run(runtime: Runtime, flags: &[&str], script: &str) -> Result<Outcome> {
    let run = Run {
        flags,
        command: &["sh", "-c", script],
        runtime,
        ..Run::default()
    };
    Ok(run.output(&fresh_id("flags"))?.into())
}
