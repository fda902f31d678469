//! The few commands of QEMU's machine protocol (QMP) that saving a guest takes: a line of JSON each, and a line as
//! the answer, between lines of events.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// How long an answer or an event may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a guest is saved in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Memory and devices in one stream, which is read from its start.
    Stream,
    /// Each page of memory has a fixed place in the file, since QEMU 9.
    Mapped,
}

/// A connection to QEMU.
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to QEMU's `socket`, and asks for events.
    ///
    /// # Errors
    /// If QEMU does not listen there.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut qmp = Self { stream, lines };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "no greeting: {greeting}");
        qmp.call("qmp_capabilities", &json!({}))?;
        let events = json!({"capabilities": [{"capability": "events", "state": true}]});
        qmp.call("migrate-set-capabilities", &events)?;
        Ok(qmp)
    }

    /// Runs a command and returns its answer.
    ///
    /// # Errors
    /// If QEMU refuses it.
    pub fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        writeln!(
            self.stream,
            "{}",
            json!({"execute": command, "arguments": arguments})
        )?;
        loop {
            if let Some(answer) = answer(&self.line()?).with_context(|| command.to_owned())? {
                return Ok(answer);
            }
        }
    }

    /// Saves the guest to `file` in the newest format that this QEMU has, and ends QEMU. The guest is not stopped
    /// before, or it would be when it is restored, too.
    ///
    /// # Errors
    /// If the guest has a device whose state QEMU does not save, or the file can't be written.
    pub fn save(mut self, file: &Path) -> Result<Format> {
        let mapped = json!({"capabilities": [{"capability": "mapped-ram", "state": true}]});
        let file = file.display();
        let (format, uri) = match self.call("migrate-set-capabilities", &mapped) {
            Ok(_) => (Format::Mapped, format!("file:{file}")),
            Err(_) => (Format::Stream, format!("exec:cat > {file}")),
        };
        self.call("migrate", &json!({ "uri": uri }))?;
        let until = Instant::now() + DEADLINE;
        while !is_saved(&self.line()?)? {
            ensure!(Instant::now() < until, "timed out saving the guest");
        }
        self.call("quit", &json!({}))?;
        Ok(format)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line).context("reading from QEMU")?;
        ensure!(count > 0, "QEMU ended");
        serde_json::from_str(&line).with_context(|| line.clone())
    }
}

/// What a line answers to a command; None if it is an event.
fn answer(line: &Value) -> Result<Option<Value>> {
    if let Some(error) = line.get("error") {
        bail!("QEMU refused: {error}");
    }
    Ok(line.get("return").cloned())
}

/// Whether the event says that the guest is saved.
fn is_saved(event: &Value) -> Result<bool> {
    if event["event"] != "MIGRATION" {
        return Ok(false);
    }
    let status = &event["data"]["status"];
    ensure!(status != "failed", "QEMU failed to save the guest");
    Ok(status == "completed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_events() {
        let event = |status: &str| json!({"event": "MIGRATION", "data": {"status": status}});
        assert_eq!(answer(&event("setup")).unwrap(), None);
        assert_eq!(
            answer(&json!({"return": {"a": 1}})).unwrap(),
            Some(json!({"a": 1}))
        );
        let refused = answer(&json!({"error": {"class": "GenericError", "desc": "no"}}));
        assert!(refused.unwrap_err().to_string().contains("\"no\""));
        assert!(!is_saved(&event("active")).unwrap() && is_saved(&event("completed")).unwrap());
        assert!(is_saved(&event("failed")).is_err());
        assert!(!is_saved(&json!({"event": "STOP"})).unwrap());
    }
}
