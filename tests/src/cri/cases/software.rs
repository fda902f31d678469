//! Real software from Debian packages: a server in one pod, its own benchmark in another, over the pod network.
//! What was served is compared with runc; rates are printed. The cases need the image of `tests/lab/software`.

use std::fs;
use std::os::unix::fs::chown;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::network::get;
use crate::containerd::Runtime;
use crate::cri::node::{Node, merge};
use crate::cri::pod::{Container, Pod};
use crate::cri::{Case, SOFTWARE, calls};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[
    calls("software: what Docker in a pod needs", docker),
    calls("software: PostgreSQL with pgbench, data on a volume", postgres),
    calls("software: Python's HTTP server", python),
    calls("software: redis with redis-benchmark", redis),
    calls(
        "software: nginx, 10,000 requests with and without keep-alive",
        nginx,
    ),
];

/// A benchmark takes minutes under emulation.
const DEADLINE: Duration = Duration::from_secs(900);

/// So does a database that is made.
const READY: Duration = Duration::from_secs(300);

/// User and group `postgres` of the image.
const POSTGRES: u32 = 106;

/// The image with software, and `more`.
fn software(more: Value) -> Value {
    let mut change = json!({"image": {"image": SOFTWARE}});
    merge(&mut change, more);
    change
}

/// Starts a server, which prints `ready` when it is.
pub fn serve<'p>(pod: &'p Pod<'_>, script: &str, more: Value, ready: &str) -> Result<Container<'p>> {
    let server = pod.start(script, software(more))?;
    match server.prints_within(READY, ready) {
        Ok(()) => Ok(server),
        Err(error) => Err(error.context(format!("{script}: {:?}", server.lines()?))),
    }
}

/// All that `container` has printed.
pub fn printed(container: &Container<'_>) -> Result<String> {
    let lines = container.lines()?;
    Ok(lines.iter().map(|line| format!("{}\n", line.text)).collect())
}

/// Runs the pods of clients. They have runc in each case, so that rates differ by the server's pod alone.
fn clients() -> Result<Node> {
    Node::new(Runtime::Runc, "runc")
}

/// What `script`, which must succeed, prints in a container of `pod`.
fn run(pod: &Pod<'_>, script: &str) -> Result<String> {
    let container = pod.start(script, software(Value::Null))?;
    let outcome = container.ended_within(DEADLINE)?;
    ensure!(outcome.code == Some(0), "{script}: {outcome}");
    container.remove()?;
    Ok(outcome.stdout)
}

fn redis(node: &Node) -> Result<Outcome> {
    let clients = clients()?;
    let (server, client) = (node.pod(Value::Null)?, clients.pod(Value::Null)?);
    let script = "exec redis-server --save '' --protected-mode no --bind 0.0.0.0 '::'";
    let running = serve(&server, script, Value::Null, "Ready to accept connections")?;
    let [address, second] = server.addresses()?;
    let benchmark = format!("redis-benchmark -h {address} -c 10 -n 5000 --csv -t set,get,incr,lpush,lpop");
    for line in run(&client, &benchmark)?.lines().skip(1) {
        let mut fields = line.split(',').map(|field| field.trim_matches('"'));
        let (name, rate) = (
            fields.next().unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        node.figure(&format!("redis {name}: {rate} requests/s"));
    }
    // The benchmark takes from the list as many as it puts there.
    let seen = run(
        &client,
        &format!(
            "redis-cli -h {address} get counter:__rand_int__
            redis-cli -h {address} llen mylist
            redis-cli -h {second} get key:__rand_int__ | wc -c
            redis-cli -h {address} config resetstat"
        ),
    )?;
    running.stop(30)?;
    let ended = running.ended()?;
    ensure!(ended.stdout.contains("Redis is now ready to exit"), "{ended}");
    client.remove()?;
    server.remove()?;
    Ok(Outcome::text(format!("{seen}ended with {:?}", ended.code)))
}

/// Requests per second in what ab prints.
fn rate(printed: &str) -> Result<&str> {
    let line = printed
        .lines()
        .find_map(|line| line.strip_prefix("Requests per second:"));
    line.and_then(|line| line.split_whitespace().next())
        .context("no rate")
}

const NGINX: &str = "
mkdir -p /www; yes 0123456789 | head -c 4096 >/www/page; yes 0123456789 | head -c 3000000 >/www/large
cat >/etc/nginx/test.conf <<'END'
daemon off;
user www-data;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 256; }
http {
    access_log /var/log/nginx/access.log;
    keepalive_requests 1000000;
    server { listen 80; listen [::]:80; root /www; }
}
END
exec nginx -c /etc/nginx/test.conf";

fn nginx(node: &Node) -> Result<Outcome> {
    let clients = clients()?;
    let (server, client) = (node.pod(Value::Null)?, clients.pod(Value::Null)?);
    let running = serve(&server, NGINX, Value::Null, "start worker processes")?;
    let [address, second] = server.addresses()?;
    let mut seen = String::new();
    for (option, name) in [("", "a connection for each request"), ("-k", "keep-alive")] {
        let printed = run(
            &client,
            &format!("ab -q {option} -n 10000 -c 10 http://{address}/page"),
        )?;
        for label in [
            "Complete requests",
            "Failed requests",
            "Keep-Alive requests",
            "HTML transferred",
        ] {
            if let Some(line) = printed.lines().find(|line| line.starts_with(label)) {
                seen.push_str(&format!("{line}\n"));
            }
        }
        node.figure(&format!("nginx, {name}: {} requests/s", rate(&printed)?));
    }
    let large = format!(
        "for a in {address} '[{second}]'; do wget -q -O - http://$a/large | md5sum; done
        yes 0123456789 | head -c 3000000 | md5sum"
    );
    seen.push_str(&run(&client, &large)?);
    seen.push_str(&running.output("cut -d ' ' -f 6-10 /var/log/nginx/access.log | sort | uniq -c")?);
    running.stop(30)?;
    seen.push_str(&format!("ended with {:?}", running.ended()?.code));
    client.remove()?;
    server.remove()?;
    Ok(Outcome::text(seen))
}

fn python(node: &Node) -> Result<Outcome> {
    let clients = clients()?;
    // The server looks up its own name, and the lab reaches no name server.
    let named = json!({"hostname": "python", "dns_config": {"servers": ["127.0.0.1"]}});
    let (server, client) = (node.pod(named)?, clients.pod(Value::Null)?);
    let script = "mkdir /www; cd /www; yes 0123456789 | head -c 3000000 >large; echo hello >page
        exec python3 -u -m http.server --bind :: 8000";
    let _running = serve(&server, script, Value::Null, "Serving HTTP")?;
    let [address, second] = server.addresses()?;
    let printed = run(&client, &format!("ab -q -n 200 -c 5 http://{address}:8000/page"))?;
    node.figure(&format!("Python: {} requests/s", rate(&printed)?));
    let mut seen: String = printed
        .lines()
        .filter(|line| line.starts_with("Complete") || line.starts_with("Failed"))
        .map(|line| format!("{line}\n"))
        .collect();
    let large = format!(
        "for a in {address} '[{second}]'; do wget -q -O - http://$a:8000/large | md5sum; done
        python3 -c \"import urllib.request as u; print(len(u.urlopen('http://{address}:8000/large').read()))\""
    );
    seen.push_str(&run(&client, &large)?);
    client.remove()?;
    server.remove()?;
    Ok(Outcome::text(seen))
}

/// Makes the database if it is not there, and serves it.
const POSTGRES_SERVER: &str = "
[ -e /data/db ] || initdb -D /data/db -U postgres -A trust --locale=C -E UTF8 >/tmp/initdb || exit 1
echo 'host all all all trust' >>/data/db/pg_hba.conf
exec postgres -D /data/db -k /tmp -c 'listen_addresses=*' -c jit=off";

/// What must be true of pgbench's tables after each transaction that was promised, and how many there were.
const POSTGRES_CHECK: &str = "select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts),
    sum(delta) = (select sum(bbalance) from pgbench_branches),
    sum(delta) = (select sum(tbalance) from pgbench_tellers) from pgbench_history";

fn postgres(node: &Node) -> Result<Outcome> {
    let volume = tempfile::tempdir()?;
    chown(volume.path(), Some(POSTGRES), Some(POSTGRES))?;
    let clients = clients()?;
    let (server, client) = (node.pod(Value::Null)?, clients.pod(Value::Null)?);
    let change = json!({
        "mounts": [{"container_path": "/data", "host_path": volume.path()}],
        "linux": {"security_context": {
            "run_as_user": {"value": POSTGRES}, "run_as_group": {"value": POSTGRES},
        }},
    });
    let [address, _] = server.addresses()?;
    let at = format!("-h {address} -U postgres");
    let mut seen = String::new();
    // Each round has a new container; the first was stopped, the second killed.
    for (round, grace) in [(0, 60), (1, 0), (2, 60)] {
        let ready = "database system is ready to accept connections";
        let running = serve(&server, POSTGRES_SERVER, change.clone(), ready)
            .with_context(|| format!("round {round}"))?;
        let recovers = running
            .lines()?
            .iter()
            .any(|line| line.text.contains("automatic recovery"));
        seen.push_str(&format!("round {round}, recovers: {recovers}\n"));
        if round == 0 {
            run(&client, &format!("pgbench {at} -i -q -s 1 postgres"))?;
        }
        let printed = run(&client, &format!("pgbench {at} -n -c 4 -t 100 postgres"))?;
        for line in printed.lines() {
            if line.starts_with("number of transactions actually") || line.starts_with("number of failed") {
                seen.push_str(&format!("{line}\n"));
            } else if let Some(rate) = line.strip_prefix("tps = ") {
                node.figure(&format!("pgbench: {rate} transactions/s"));
            }
        }
        seen.push_str(&run(
            &client,
            &format!("psql {at} -At -c '{POSTGRES_CHECK}' postgres"),
        )?);
        running.stop(grace)?;
        seen.push_str(&format!("ended with {:?}\n", running.ended()?.code));
        running.remove()?;
    }
    client.remove()?;
    server.remove()?;
    ensure!(
        fs::exists(volume.path().join("db/PG_VERSION"))?,
        "no database on the volume"
    );
    Ok(Outcome::text(seen))
}

/// The file system of a container as an overlay on a tmpfs, which can be its upper layer on any node, a bridge, and
/// translation of addresses by nftables and by iptables.
const DOCKER: &str = "set -e
mkdir -p /docker /merged
mount -t tmpfs docker /docker
mkdir /docker/lower /docker/upper /docker/work
echo of the image >/docker/lower/kept; echo of the image >/docker/lower/removed
mount -t overlay -o lowerdir=/docker/lower,upperdir=/docker/upper,workdir=/docker/work overlay /merged
echo changed >>/merged/kept; rm /merged/removed; mkdir /merged/new; mv /merged/new /merged/renamed
ls /merged; cat /merged/kept; stat -c '%F %t %T' /docker/upper/removed; cat /docker/lower/kept
ip link add docker0 type bridge
ip addr add 172.30.0.1/24 dev docker0
ip link set docker0 up
ip netns add inner
ip link add outside type veth peer name eth0 netns inner
ip link set outside master docker0 up
ip netns exec inner ip addr add 172.30.0.2/24 dev eth0
ip netns exec inner ip link set eth0 up
ip netns exec inner ip link set lo up
ip netns exec inner ip route add default via 172.30.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
ip netns exec inner ping -c 1 172.30.0.1 >/dev/null; echo the bridge answers
! ip netns exec inner ping -c 1 -W 1 10.88.0.1 >/dev/null; echo the host cannot answer
nft add table ip docker
nft 'add chain ip docker postrouting { type nat hook postrouting priority srcnat; }'
nft add rule ip docker postrouting ip saddr 172.30.0.0/24 counter masquerade
ip netns exec inner ping -c 1 10.88.0.1 >/dev/null; echo the host answers
nft list table ip docker | sed 's/packets.*bytes [0-9]*/N/'
nft delete table ip docker
iptables-nft -t nat -A POSTROUTING -s 172.30.0.0/24 -j MASQUERADE
iptables-nft -t nat -A PREROUTING -p tcp --dport 8080 -m conntrack --ctstate NEW -j DNAT --to-destination 172.30.0.2:80
iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -t nat -S
mkdir /www; echo hello >/www/page
ip netns exec inner httpd -p 80 -h /www";

fn docker(node: &Node) -> Result<Outcome> {
    let privileged = json!({"linux": {"security_context": {"privileged": true}}});
    let pod = node.pod(privileged.clone())?;
    let script = format!("({DOCKER}); echo ended with $?; exec sleep 1000000");
    let container = serve(&pod, &script, privileged, "ended with")?;
    let mut seen = printed(&container)?;
    let [address, _] = pod.addresses()?;
    let page = get(&format!("{address}:8080"), "page").with_context(|| seen.clone())?;
    seen.push_str(&String::from_utf8_lossy(&page));
    pod.remove()?;
    Ok(Outcome::text(seen))
}
