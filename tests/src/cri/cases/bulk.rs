//! Much data over the pod's network, both ways at once, while processes are executed in the pod.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::network::HOST;
use crate::containerd::ctr::{DEADLINE, output};
use crate::cri::node::{Node, text};
use crate::cri::{Case, calls};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[
    calls("network: 8 MiB each way while 10 execs run", |node| {
        bulk(node, 8 << 20, 10)
    }),
    calls("network: 1 GiB each way while 50 execs run", |node| {
        bulk(node, 1 << 30, 50)
    })
    .long(),
];

/// Moves `size` bytes to the pod and as many from it, at once, while so many execs run, five at a time.
fn bulk(node: &Node, size: usize, execs: u32) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let (listener, back) = (TcpListener::bind((HOST[0], 0))?, TcpListener::bind((HOST[0], 0))?);
    let (to, from) = (listener.local_addr()?.port(), back.local_addr()?.port());
    let receive = std::thread::spawn(move || receive_pattern(&listener));
    let send = std::thread::spawn(move || send_pattern(&back, size));
    let both = format!(
        "(yes 0123456789 | head -c {size} | nc {host} {to}) &
        nc {host} {from} </dev/null | md5sum; wait",
        host = HOST[0]
    );
    let started = Instant::now();
    let mover = pod.start(&both, Value::Null)?;
    let mut printed = String::new();
    for first in (0..execs).step_by(5) {
        printed.push_str(&five_execs(node, &container.id, first)?);
    }
    send.join().ok().context("a thread panicked")??;
    let (total, intact) = receive.join().ok().context("a thread panicked")??;
    let seconds = started.elapsed().as_secs_f64();
    node.figure(&format!("{} MiB each way in {seconds:.0} s", size >> 20));
    let received = mover.ended()?.stdout;
    pod.remove()?;
    let mut pattern = Command::new("sh");
    pattern.args(["-c", &format!("yes 0123456789 | head -c {size} | md5sum")]);
    ensure!(
        received == output(pattern)?.success()?,
        "the pod received {received}"
    );
    Ok(Outcome::text(format!(
        "{total} bytes, intact: {intact}\n{printed}"
    )))
}

/// A whole number of lines of `yes 0123456789`.
fn pattern() -> Vec<u8> {
    b"0123456789\n".repeat(4096)
}

/// The number of bytes that come, and whether they are those of `yes 0123456789`.
fn receive_pattern(listener: &TcpListener) -> Result<(usize, bool)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let pattern = pattern();
    let (mut total, mut intact) = (0, true);
    let mut buffer = vec![0; pattern.len()];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match stream.read(buffer.get_mut(filled..).unwrap_or_default())? {
                0 => break,
                length => filled += length,
            }
        }
        intact &= buffer.get(..filled) == pattern.get(..filled);
        total += filled;
        if filled < buffer.len() {
            return Ok((total, intact));
        }
    }
}

fn send_pattern(listener: &TcpListener, size: usize) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let pattern = pattern();
    let mut left = size;
    while left > 0 {
        let now = left.min(pattern.len());
        stream.write_all(pattern.get(..now).unwrap_or_default())?;
        left -= now;
    }
    Ok(())
}

/// Runs the execs `first` to `first + 4` at once; returns what they print, in order.
fn five_execs(node: &Node, container: &str, first: u32) -> Result<String> {
    let printed: Result<Vec<String>> = std::thread::scope(|scope| {
        let running: Vec<_> = (first..first + 5)
            .map(|number| {
                scope.spawn(move || -> Result<String> {
                    let request = json!({"container_id": container, "cmd": ["echo", number.to_string()]});
                    text(&node.again()?.call("ExecSync", request)?, "/stdout")
                })
            })
            .collect();
        let ended = running
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread panicked")?);
        ended.collect()
    });
    Ok(printed?.concat())
}
