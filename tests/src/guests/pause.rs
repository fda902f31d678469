//! A guest that is paused and resumed while it writes files and reads them back, and returns what its test
//! sends over vsock: nothing may be lost, changed or reordered, and the guest ends as if nothing had
//! happened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::fs::Advice;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::vm::DEADLINE;
use super::vsock::Conversation;
use super::workload::{self, Parameters};
use super::{Build, Guest, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[
    test("1,000 pauses during I/O", |build| pause(build, 1)),
    test("1,000 pauses during I/O, 2 vCPUs", |build| pause(build, 2)),
];

/// Writes files and returns frames until the test closes the connection.
pub const WORKLOAD: Workload = Workload {
    name: "pause",
    run: serve,
};

/// How often a guest is paused and resumed.
const COUNT: u32 = 1000;
/// How long that may take.
const PAUSES_DEADLINE: Duration = Duration::from_secs(240);
/// Bytes of a file that the guest writes.
pub(super) const FILE_BYTES: usize = 16 * 1024;
/// How many frames may be under way at once: few, so that files are written as often as frames return.
const WINDOW: usize = 4;
/// Most bytes of a frame's content.
const MAX_CONTENT: u64 = 4096;

/// What the guest has done.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// Files written, read back and removed.
    files: u64,
    /// Frames returned.
    frames: u64,
}

fn pause(build: &Build, vcpus: u32) -> Result<()> {
    let (vcpus, count) = (vcpus.to_string(), COUNT.to_string());
    during_io(build, &["--vcpus", &vcpus, "--pause-resume", &count], |guest| {
        guest.wait_for(&format!("paused and resumed {count} times"), PAUSES_DEADLINE)
    })
}

/// Boots a guest with `arguments` and calls `disturb` while the guest does I/O, all of which must succeed.
/// Prints what `disturb` returns.
pub(super) fn during_io(
    build: &Build,
    arguments: &[&str],
    disturb: impl FnOnce(&mut Guest) -> Result<String>,
) -> Result<()> {
    let mut guest = build.boot(&Options {
        workload: WORKLOAD.name,
        arguments,
        ..Options::default()
    })?;
    let stream = guest.connect()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (under_way, arrived) = sync_channel(WINDOW);
    let sent = send(stream.try_clone()?, under_way, Arc::clone(&stop));
    let returned = receive(stream, arrived);
    let line = disturb(&mut guest);
    stop.store(true, Ordering::Relaxed);
    let line = line?;
    println!("        {line}");
    let (sent, returned) = (join(sent)?, join(returned)?);
    ensure!(sent == returned, "{sent} frames were sent, {returned} returned");
    let report: Report = serde_json::from_value(guest.finish(DEADLINE)?)?;
    println!("        {report:?}");
    ensure!(report.frames == sent, "{sent} frames were sent; {report:?}");
    ensure!(report.files > 1 && sent > 1, "the guest did next to nothing");
    Ok(())
}

/// Sends frames until `stop`, then closes the stream for writing; returns how many. `under_way` has one entry
/// per frame that has not returned, and limits their number.
fn send(mut stream: UnixStream, under_way: SyncSender<()>, stop: Arc<AtomicBool>) -> JoinHandle<Result<u64>> {
    std::thread::spawn(move || {
        let mut frames = 0;
        while !stop.load(Ordering::Relaxed) && under_way.send(()).is_ok() {
            write_frame(&mut stream, frames).with_context(|| format!("sending frame {frames}"))?;
            frames += 1;
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(frames)
    })
}

/// Checks frames until the guest closes the stream; returns how many.
fn receive(stream: UnixStream, under_way: Receiver<()>) -> JoinHandle<Result<u64>> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut frames = 0;
        while read_frame(&mut reader, frames)? {
            frames += 1;
            under_way.recv()?;
        }
        Ok(frames)
    })
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

fn serve(_: &Parameters) -> Result<Value> {
    let stream = Conversation::accept()?;
    let stop = Arc::new(AtomicBool::new(false));
    let files = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || write_files(&stop))
    };
    let frames = return_frames(&stream.stream);
    stop.store(true, Ordering::Relaxed);
    drop(stream);
    Ok(serde_json::to_value(Report {
        files: join(files)?,
        frames: frames?,
    })?)
}

/// Returns frames until the test closes the stream for writing.
fn return_frames(stream: &File) -> Result<u64> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut frames = 0;
    while read_frame(&mut reader, frames)? {
        write_frame(&mut writer, frames)?;
        frames += 1;
    }
    Ok(frames)
}

/// Writes files, reads them back and removes them, until `stop`. The guest's page cache drops each file
/// before it is read. (The host may have no O_DIRECT: tmpfs has none.)
fn write_files(stop: &AtomicBool) -> Result<u64> {
    let mut files = 0;
    let mut found = vec![0; FILE_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let path = Path::new(workload::SHARED).join(format!("file-{files}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("creating {}", path.display()))?;
        let written = content(files, FILE_BYTES);
        file.write_all_at(&written, 0)
            .with_context(|| format!("writing {}", path.display()))?;
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        file.read_exact_at(&mut found, 0)
            .with_context(|| format!("reading {}", path.display()))?;
        ensure!(found == written, "{} has changed", path.display());
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        files += 1;
    }
    Ok(files)
}

/// A frame is its number, the length of its content (8 bytes each, little-endian), and its content, which
/// follows from the number.
fn write_frame(stream: &mut impl Write, number: u64) -> io::Result<()> {
    let content = frame_content(number);
    let mut frame = number.to_le_bytes().to_vec();
    frame.extend(u64::try_from(content.len()).unwrap_or_default().to_le_bytes());
    frame.extend(content);
    stream.write_all(&frame)
}

/// Reads a frame, which must be frame `number`; false at the end of the stream.
fn read_frame(stream: &mut impl Read, number: u64) -> Result<bool> {
    let mut field = [0; 8];
    let first = stream.read(&mut field)?;
    if first == 0 {
        return Ok(false);
    }
    stream.read_exact(&mut field[first..])?;
    let found = u64::from_le_bytes(field);
    ensure!(found == number, "expected frame {number}, got {found}");
    stream.read_exact(&mut field)?;
    let expected = frame_content(number);
    ensure!(
        usize::try_from(u64::from_le_bytes(field))? == expected.len(),
        "frame {number} has another length"
    );
    let mut content = vec![0; expected.len()];
    stream
        .read_exact(&mut content)
        .with_context(|| format!("frame {number} is incomplete"))?;
    ensure!(content == expected, "the content of frame {number} has changed");
    Ok(true)
}

fn frame_content(number: u64) -> Vec<u8> {
    let length = 1 + number.wrapping_mul(37) % MAX_CONTENT;
    content(number, usize::try_from(length).unwrap_or_default())
}

/// `length` bytes that differ between numbers and between pages: a window of a fixed random text.
pub(super) fn content(number: u64, length: usize) -> Vec<u8> {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    const PERIOD: usize = 65_521;
    let text = TEXT.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        (0..PERIOD + FILE_BYTES).map(|_| next()).collect()
    });
    let start = usize::try_from(number).unwrap_or_default() % PERIOD;
    text[start..start + length].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(numbers: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in numbers {
            write_frame(&mut bytes, *number).unwrap();
        }
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<u64> {
        let mut reader = bytes;
        let mut frames = 0;
        while read_frame(&mut reader, frames)? {
            frames += 1;
        }
        Ok(frames)
    }

    #[test]
    fn lost_changed_and_reordered_frames_are_found() {
        let bytes = frames(&[0, 1, 2, 3]);
        assert_eq!(read_all(&bytes).unwrap(), 4);
        assert!(read_all(&frames(&[0, 2])).is_err());
        assert!(read_all(&frames(&[1, 0])).is_err());
        assert!(read_all(&frames(&[0, 0])).is_err());
        assert!(read_all(&bytes[..bytes.len() - 1]).is_err());
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(read_all(&changed).is_err());
        assert_ne!(content(1, 100), content(2, 100));
        assert_eq!(content(u64::MAX, FILE_BYTES).len(), FILE_BYTES);
    }
}
