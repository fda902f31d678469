//! What service meshes, shapers of traffic and firewalls ask of a privileged pod's kernel, by their tools of Debian:
//! queueing disciplines, classifiers and actions, nftables, iptables and transparent proxies. The cases need the image
//! of `tests/lab/software`.

use anyhow::{Result, ensure};
use serde_json::json;

use super::software::{printed, serve};
use crate::cri::node::Node;
use crate::cri::{Case, calls};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[
    calls(
        "software: queueing disciplines, classifiers and actions",
        |node| privileged(node, DISCIPLINES),
    ),
    calls("software: nftables and iptables", |node| {
        privileged(node, FIREWALLS)
    }),
    calls("software: transparent proxies", |node| privileged(node, PROXIES)),
];

/// A network namespace `inner` behind the pod, which has 172.30.0.2 there and the pod 172.30.0.1.
const INNER: &str = "set -e
ip netns add inner
ip link add outside type veth peer name eth0 netns inner
ip addr add 172.30.0.1/24 dev outside
ip link set outside up
inside() { ip netns exec inner \"$@\"; }
inside ip addr add 172.30.0.2/24 dev eth0
inside ip link set eth0 up
inside ip link set lo up
inside ip route add default via 172.30.0.1
answers() { if ping -c 1 -W \"${1:-10}\" 172.30.0.2 >/dev/null; then echo answered; else echo lost; fi; }
answers
";

/// Handles are given, since the kernel's own are random.
const DISCIPLINES: &str = "
for kind in fq fq_codel sfq prio 'tbf rate 1mbit burst 32kbit latency 400ms' 'netem delay 1ms'; do
    tc qdisc add dev outside root handle 1: $kind; tc qdisc show dev outside | head -n 1 | cut -d ' ' -f 1-3
    answers
    tc qdisc del dev outside root
done
tc qdisc add dev outside root netem loss 100%; answers 1; tc qdisc del dev outside root
tc qdisc add dev outside root handle 1: htb default 10
tc class add dev outside parent 1: classid 1:10 htb rate 1mbit
tc class add dev outside parent 1: classid 1:20 htb rate 8mbit ceil 10mbit
tc filter add dev outside parent 1: protocol ip prio 1 u32 match ip dst 172.30.0.2/32 flowid 1:20
tc filter add dev outside parent 1: protocol ip prio 2 handle 7 fw classid 1:10
answers
tc -s class show dev outside classid 1:20 | grep -q 'Sent 98 bytes 1 pkt'; echo htb counted the packet
tc class show dev outside | sort
tc qdisc del dev outside root
tc qdisc add dev outside ingress
tc filter add dev outside ingress protocol ip prio 1 flower ip_proto icmp action drop; answers 1
tc filter del dev outside ingress
tc filter add dev outside ingress protocol ip prio 1 flower ip_proto icmp action pass; answers
tc filter del dev outside ingress
ip link add ifb0 type ifb; ip link set ifb0 up
tc filter add dev outside ingress protocol all prio 1 matchall action mirred egress redirect dev ifb0
answers; tc qdisc replace dev ifb0 root netem loss 100%; answers 1; tc qdisc del dev ifb0 root
tc filter del dev outside ingress
tc filter add dev outside ingress protocol ip prio 1 matchall action police rate 8kbit burst 10 conform-exceed drop/pipe
answers 1
tc filter del dev outside ingress
tc qdisc del dev outside ingress
tc qdisc add dev outside clsact
tc filter add dev outside egress protocol ip matchall action skbedit mark 7 pipe action gact pass
answers
tc qdisc show dev outside | grep clsact";

const FIREWALLS: &str = "
nft -f - <<'END'
table inet mesh {
    set allowed { type ipv4_addr; flags interval, timeout; elements = { 172.30.0.0/24 timeout 1h } }
    map ports { type inet_service : verdict; elements = { 81 : drop, 82 : accept } }
    counter seen { }
    quota much { over 1000 mbytes }
    limit slow { rate 100/second burst 5 packets }
    ct helper ftp { type \"ftp\" protocol tcp; }
    chain input {
        type filter hook input priority filter; policy accept
        ct state established,related accept
        fib saddr . iif oif missing drop
        ip saddr @allowed counter name seen
        tcp dport vmap @ports
        icmp type echo-request limit name slow accept
        tcp dport 83 ct count over 10 reject with tcp reset
        tcp dport 84 queue num 0-1 bypass
        quota name much drop
        meta mark set jhash ip saddr mod 2 offset 1
        log prefix \"mesh \" group 1
    }
    chain translated {
        type nat hook prerouting priority dstnat
        tcp dport 90 redirect to :91
        tcp dport 92 dnat ip to numgen inc mod 2 map { 0 : 172.30.0.2, 1 : 172.30.0.3 }
    }
    chain marked { type route hook output priority mangle; socket mark 1 ct mark set 2; }
}
table netdev early {
    chain ingress { type filter hook ingress device outside priority 0; ip daddr 203.0.113.1 drop; }
}
table bridge links {
    chain forward { type filter hook forward priority 0; meta ibrname \"none\" drop; }
}
END
inside ping -c 1 172.30.0.1 >/dev/null; nft list counter inet mesh seen | grep -o 'packets [0-9]*'
nft list ruleset | sed 's/expires [0-9a-z]*/expires N/; s/packets [0-9]* bytes [0-9]*/N/; s/used [0-9]* bytes/N/'
nft flush ruleset
for rule in '-m conntrack --ctstate NEW' '-m limit --limit 9/second' '-m hashlimit --hashlimit 9/second --hashlimit-name h' \\
    '-m recent --name r --set' '-m statistic --mode nth --every 3 --packet 0' '-m string --algo bm --string secret' \\
    '-m iprange --src-range 172.30.0.7-172.30.0.9' '-m mac --mac-source 02:00:00:00:00:01' '-m length --length 9:99' \\
    '-m connlimit --connlimit-above 9' '-m connbytes --connbytes 9: --connbytes-dir both --connbytes-mode bytes' \\
    '-m time --timestart 01:00' '-m u32 --u32 6&0xFF=1' '-m dscp --dscp 8' '-m pkttype --pkt-type unicast' \\
    '-m socket --transparent' '-m owner --uid-owner 7' '-m comment --comment seen' '-m multiport -p tcp --dports 1,2'; do
    chain=INPUT; case $rule in *owner*) chain=OUTPUT ;; esac
    iptables-nft -t mangle -A $chain $rule -j MARK --set-mark 7
done
for target in 'CT --notrack' 'TRACE' 'NFLOG --nflog-group 2'; do iptables-nft -t raw -A PREROUTING -p udp -j $target; done
for target in 'CONNMARK --save-mark' 'DSCP --set-dscp 8' 'TCPMSS --clamp-mss-to-pmtu' 'CHECKSUM --checksum-fill' \\
    'CLASSIFY --set-class 1:20'; do
    iptables-nft -t mangle -A POSTROUTING -p tcp --tcp-flags SYN,RST SYN -j $target
done
iptables-nft -t nat -A PREROUTING -d 198.51.100.0/24 -j NETMAP --to 172.30.0.0/24
iptables-nft -t mangle -S; iptables-nft -t raw -S; iptables-nft -t nat -S
ip6tables-nft -A INPUT -p tcp --dport 80 -j REJECT --reject-with tcp-reset; ip6tables-nft -S";

/// A server that sees for whom its connections were, as a sidecar of a service mesh does.
const SERVER: &str = "
cat >/server <<'END'
import socket
listening = socket.socket()
listening.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
listening.bind(('0.0.0.0', 15001))
listening.listen()
with open('/ready', 'w') as ready:
    ready.write('listening\\n')
while True:
    connection, client = listening.accept()
    connection.sendall(('for %s:%d, of %s\\n' % (*connection.getsockname(), client[0])).encode())
    connection.close()
END
cat >/client <<'END'
import socket, sys
print(socket.create_connection((sys.argv[1], 80), 10).makefile().read(), end='')
END
mkfifo /ready; python3 /server & read -r _ </ready
ip rule add fwmark 1 lookup 100
ip route add local 0.0.0.0/0 dev lo table 100
";

const PROXIES: &str = "
nft -f - <<'END'
table ip mesh {
    chain divert {
        type filter hook prerouting priority mangle
        socket transparent 1 meta mark set 1 accept
        iifname \"outside\" tcp dport 80 tproxy to :15001 meta mark set 1 accept
    }
}
END
inside python3 /client 203.0.113.9
nft flush ruleset
iptables-nft -t mangle -A PREROUTING -i outside -p tcp --dport 80 -j TPROXY --on-port 15001 --tproxy-mark 1
inside python3 /client 203.0.113.10
iptables-nft -t mangle -F";

/// What `script` prints in a privileged pod, with its exit code.
fn privileged(node: &Node, script: &str) -> Result<Outcome> {
    let privileged = json!({"linux": {"security_context": {"privileged": true}}});
    let pod = node.pod(privileged.clone())?;
    let server = if script == PROXIES { SERVER } else { "" };
    let script = format!("({INNER}{server}{script}) 2>&1; echo ended with $?; exec sleep 1000000");
    let container = serve(&pod, &script, privileged, "ended with")?;
    let seen = printed(&container)?;
    ensure!(seen.ends_with("ended with 0\n"), "{seen}");
    pod.remove()?;
    Ok(Outcome::text(seen))
}
