//! A pod's network beside runc's veth: throughput of TCP both ways, and the latency of small requests on one
//! connection. A pod of each runtime serves, the host is the client. Only in a lab with CRI
//! (`tests/lab/run --cri`).

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::cri::node::{Node, prepare_cgroup};
use nacre_tests::cri::pod::Pod;
use serde_json::Value;

use crate::results::{Measure, Results};
use crate::statistics::{median, percentile};

/// Bytes that one transfer has.
const TRANSFER: usize = 64 << 20;
/// Round trips of one byte that one round has.
const ROUND_TRIPS: usize = 1000;

/// What a container of the pod serves: a sink that answers the number of bytes, a source, an echo.
const SERVERS: &str =
    "nc -ll -p 9 -e wc -c & nc -ll -p 19 -e head -c 67108864 /dev/zero & nc -ll -p 7 -e cat &
    for port in 9 19 7; do until netstat -ltn | grep -q \":$port .*LISTEN\"; do usleep 10000; done; done
    echo up; exec sleep 1000000";

/// One round's figures of a pod.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// MiB/s from the host to the pod.
    to_pod: f64,
    /// MiB/s from the pod to the host.
    from_pod: f64,
    /// Microseconds, half of the round trips took less.
    p50: f64,
    /// Microseconds, 99 in 100 round trips took less.
    p99: f64,
}

/// Measures `count` rounds with a pod of each runtime, in turns, and adds four rows.
///
/// # Errors
/// If containerd has no CRI, a pod fails, or bytes are lost.
pub fn measure(count: usize, results: &mut Results) -> Result<()> {
    prepare_cgroup()?;
    let nacre = Node::new(Runtime::Nacre, "nacre")?;
    let runc = Node::new(Runtime::Runc, "runc")?;
    let pods = [nacre.pod(Value::Null)?, runc.pod(Value::Null)?];
    let mut servers = Vec::new();
    for pod in &pods {
        let server = pod.start(SERVERS, Value::Null)?;
        server.prints("up")?;
        servers.push(server);
    }
    let mut rounds = Vec::with_capacity(count);
    // The first round warms up.
    for number in 0..=count {
        let mut pair = [Round::default(); 2];
        for turn in 0..2 {
            let index = (number + turn) % 2;
            pair[index] = round(&pods[index])?;
        }
        if number > 0 {
            eprintln!(
                "network {number:2} of {count}: nacre {:?}, runc {:?}",
                pair[0], pair[1]
            );
            rounds.push(pair);
        }
    }
    drop(servers);
    for pod in pods {
        pod.remove()?;
    }
    report(&rounds, results);
    Ok(())
}

fn report(rounds: &[[Round; 2]], results: &mut Results) {
    type Pick = fn(&Round) -> f64;
    let rows: [(&str, &'static str, &str, Pick); 4] = [
        ("tcp_to_pod", "MiB/s", "TCP, host to pod", |round| round.to_pod),
        ("tcp_from_pod", "MiB/s", "TCP, pod to host", |round| {
            round.from_pod
        }),
        ("tcp_round_trip_p50", "us", "one byte there and back", |round| {
            round.p50
        }),
        ("tcp_round_trip_p99", "us", "one byte there and back", |round| {
            round.p99
        }),
    ];
    for (name, unit, what, pick) in rows {
        let of = |index: usize| -> Vec<f64> { rounds.iter().map(|pair| pick(&pair[index])).collect() };
        let ratios: Vec<f64> = rounds
            .iter()
            .map(|[nacre, runc]| pick(nacre) / pick(runc))
            .collect();
        results.add(Measure {
            name: name.to_owned(),
            unit,
            nacre: median(&of(0)),
            peer: Some(median(&of(1))),
            peer_name: Some("runc"),
            ratio: Some(median(&ratios)),
            note: format!(
                "{what}, through bridge and veth; medians of {} rounds",
                rounds.len()
            ),
            ..Measure::default()
        });
    }
}

fn round(pod: &Pod<'_>) -> Result<Round> {
    let [address, _] = pod.addresses()?;
    let connect = |port: u16| {
        let stream =
            TcpStream::connect((address.as_str(), port)).with_context(|| format!("{address}:{port}"))?;
        stream.set_nodelay(true)?;
        anyhow::Ok(stream)
    };
    let to_pod = throughput(|| {
        let mut stream = connect(9)?;
        let piece = vec![0; 1 << 18];
        for _ in 0..TRANSFER / piece.len() {
            stream.write_all(&piece)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut counted = String::new();
        stream.read_to_string(&mut counted)?;
        Ok(counted.trim().parse()?)
    })?;
    let from_pod = throughput(|| {
        let mut stream = connect(19)?;
        let (mut buffer, mut total) = (vec![0; 1 << 18], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(total),
                length => total += length,
            }
        }
    })?;
    let mut echo = connect(7)?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let sent = Instant::now();
        echo.write_all(b"x")?;
        echo.read_exact(&mut [0])?;
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Round {
        to_pod,
        from_pod,
        p50: median(&times),
        p99: percentile(&times, 99.0),
    })
}

/// MiB/s of a transfer that returns how many bytes arrived.
fn throughput(transfer: impl FnOnce() -> Result<usize>) -> Result<f64> {
    let started = Instant::now();
    let arrived = transfer()?;
    ensure!(arrived == TRANSFER, "{arrived} of {TRANSFER} bytes arrived");
    Ok(TRANSFER as f64 / started.elapsed().as_secs_f64() / f64::from(1 << 20))
}
