//! What each lie does instead of an answer. A part of [`super::agent`].

use std::io;
use std::time::{Duration, Instant};

use nacre_protocol::agent::{
    ChangeMirrorResponse, ContainerStatsResponse, CreateContainerRequest, CreateContainerResponse, Empty,
    ListPidsResponse, ProcessRef, ReadClockResponse, ResizeResponse, WaitMemoryResponse, WaitOomRequest,
    WaitOomResponse, WaitProcessResponse,
};
use nacre_protocol::vsock::{AGENT_PORT, StreamAddress};

use super::Lie;
use super::agent::Agent;
use super::wire::{Call, Wire, frame};

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(10);
/// A text of about 3.9 MiB: with its frame, less than ttrpc's longest message.
const LONG_TEXT: &str = "\u{1b}[31m\n\u{202e}";
const LONG_COUNT: usize = (39 << 20) / 10 / LONG_TEXT.len();

impl Agent {
    /// Lies about `call`; false if the honest answer is still to be given.
    pub fn lie_about(&mut self, call: &Call) -> io::Result<bool> {
        let (stream, method) = (call.stream, call.method.as_str());
        match self.lie {
            Lie::Connections | Lie::Frames | Lie::LongFrame if method == "StartContainer" => {
                self.serve(call)?;
                self.flood()?;
                Ok(true)
            }
            Lie::Connections | Lie::Frames | Lie::LongFrame => Ok(false),
            Lie::OutOfOrder => {
                for early in (1..200).step_by(2).filter(|early| *early > stream) {
                    self.wire.answer(early, &Empty::new())?;
                }
                for _ in 0..2 {
                    self.serve(call)?;
                }
                Ok(false)
            }
            Lie::Silent => Ok(self.runs),
            Lie::Large => self.answer_at_length(call),
            Lie::WrongAnswers if self.runs => {
                self.wire.answer(stream.wrapping_add(1), &Empty::new())?;
                let garbage = frame(stream, &[0xff; 100]);
                self.wire.send(&garbage)?;
                Ok(true)
            }
            Lie::WrongAnswers => Ok(false),
            Lie::Exits => self.report_exits(call),
            Lie::Streams if method == "CreateContainer" => {
                self.steal_streams(&call.request()?)?;
                let mut response = CreateContainerResponse::new();
                response.pid = 1;
                self.wire.answer(stream, &response)?;
                Ok(true)
            }
            Lie::Streams => Ok(false),
            Lie::Numbers => self.answer_impossible_numbers(call),
            Lie::Hasty => self.answer_hastily(call),
            Lie::Mirror if method == "ChangeMirror" => {
                let mut response = ChangeMirrorResponse::new();
                response.done = u32::MAX;
                response.error = LONG_TEXT.repeat(LONG_COUNT);
                self.wire.answer(stream, &response)?;
                Ok(true)
            }
            Lie::Mirror => Ok(false),
        }
    }

    /// Floods the host from another thread.
    fn flood(&self) -> io::Result<()> {
        let (lie, mut wire) = (self.lie, self.wire.duplicate()?);
        std::thread::spawn(move || {
            let until = Instant::now() + FLOOD;
            let mut port = 0x1_0000_u32;
            let unasked = frame(0xffff_fff1, &[0; 60_000]);
            while Instant::now() < until {
                if lie == Lie::LongFrame {
                    return wire.send(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 2, 0]);
                } else if lie == Lie::Connections {
                    port = port.wrapping_add(1).max(0x1_0000);
                    // Refused by an RST.
                    drop(Wire::dial(None, port));
                } else {
                    wire.send(&unasked)?;
                }
            }
            Ok(())
        });
        Ok(())
    }

    fn answer_at_length(&mut self, call: &Call) -> io::Result<bool> {
        match call.method.as_str() {
            "ListPids" => {
                let mut pids = ListPidsResponse::new();
                pids.pids = (0..1_000_000).map(|pid| pid % 100).collect();
                self.wire.answer(call.stream, &pids)?;
            }
            "ContainerStats" => {
                let mut stats = ContainerStatsResponse::new();
                stats
                    .files
                    .insert("io.stat".to_owned(), b"8:0 rbytes=1\n".repeat(300_000));
                self.wire.answer(call.stream, &stats)?;
            }
            "StartExec" | "UpdateContainer" | "PauseContainer" | "ResizePty" => {
                self.wire.refuse(call.stream, LONG_TEXT.repeat(LONG_COUNT))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The container's init exits when it is waited for, twice, and again when it is killed.
    fn report_exits(&mut self, call: &Call) -> io::Result<bool> {
        if call.method != "WaitProcess" {
            return Ok(false);
        }
        let mut response = WaitProcessResponse::new();
        response.exit_status = u32::MAX;
        response.exited_at_ns = i64::MIN;
        response.oom_kills = u64::MAX;
        for _ in 0..2 {
            self.wire.answer(call.stream, &response)?;
        }
        self.waits.push((call.stream, call.request()?));
        Ok(true)
    }

    /// Connects to each stream from another port, and to the agent's port; then twice to each.
    fn steal_streams(&mut self, request: &CreateContainerRequest) -> io::Result<()> {
        let stdio = &request.stdio;
        let addresses: Vec<StreamAddress> = [stdio.stdin, stdio.stdout, stdio.stderr]
            .into_iter()
            .filter_map(StreamAddress::from_bits)
            .collect();
        for address in &addresses {
            // Each of these is refused.
            drop(Wire::dial(Some(address.guest_port ^ 1), address.host_port));
            drop(Wire::dial(Some(address.guest_port), address.host_port ^ 1));
            drop(Wire::dial(Some(address.host_port), address.guest_port));
        }
        for _ in 0..100 {
            drop(Wire::dial(None, AGENT_PORT));
        }
        let mut init = ProcessRef::new();
        init.container_id.clone_from(&request.container_id);
        self.dial(&init, stdio)?;
        for address in addresses {
            // Refused, too: the streams are taken.
            drop(Wire::dial(None, address.host_port));
        }
        Ok(())
    }

    fn answer_impossible_numbers(&mut self, call: &Call) -> io::Result<bool> {
        match call.method.as_str() {
            "ListPids" => {
                let mut pids = ListPidsResponse::new();
                pids.pids = vec![0, 1, u32::MAX, u32::MAX, 1 << 31];
                self.wire.answer(call.stream, &pids)?;
            }
            "ContainerStats" => {
                let mut stats = ContainerStatsResponse::new();
                for name in [
                    "cpu.stat",
                    "memory.stat",
                    "memory.current",
                    "pids.max",
                    "io.stat",
                    "cpu.pressure",
                ] {
                    let content = "-1 99999999999999999999999 nan\nusage_usec -5\n\u{0}\n8:0 rbytes=-1 =\n";
                    stats.files.insert(name.to_owned(), content.as_bytes().to_vec());
                }
                for number in 0..50_000 {
                    stats.files.insert(
                        format!("hugetlb.{number}kB.current"),
                        b"18446744073709551615\n".to_vec(),
                    );
                }
                self.wire.answer(call.stream, &stats)?;
            }
            "Resize" => {
                let mut response = ResizeResponse::new();
                (response.vcpus, response.plugged_mib) = (u32::MAX, u32::MAX);
                self.wire.answer(call.stream, &response)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn answer_hastily(&mut self, call: &Call) -> io::Result<bool> {
        match call.method.as_str() {
            "WaitOom" => {
                let request: WaitOomRequest = call.request()?;
                let mut response = WaitOomResponse::new();
                response.kills = request.known_kills.wrapping_add(1);
                self.wire.answer(call.stream, &response)?;
            }
            "WaitMemory" => {
                let mut response = WaitMemoryResponse::new();
                response.plugged_mib = if call.stream & 2 == 0 { 0 } else { u32::MAX };
                self.wire.answer(call.stream, &response)?;
            }
            "WaitClockLost" => self.wire.answer(call.stream, &Empty::new())?,
            "ReadClock" => {
                let mut response = ReadClockResponse::new();
                response.realtime_ns = i64::MIN;
                self.wire.answer(call.stream, &response)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
