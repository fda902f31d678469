//! A process's standard streams: containerd's FIFOs on one side, one vsock stream each on the other. Bytes are spliced,
//! none is held here: a full FIFO stops the copy, then the guest. Opened by the sandbox's create flow; the guest's ends
//! come as connections to the ports given out here.

mod copy;
mod fifo;
mod logger;

use std::fs::File;
use std::os::fd::OwnedFd;

use nacre_protocol::agent::Stdio;
use nacre_protocol::vsock::StreamAddress;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

pub use fifo::Error;
use fifo::{Sink, Source};
pub use logger::LoggedContainer;
use logger::Logger;

/// Where containerd wants a process's streams; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// A FIFO to read.
    pub stdin: String,
    /// A FIFO or a file:// URI to write; a binary:// URI of a program that takes both outputs.
    pub stdout: String,
    /// The same for standard error.
    pub stderr: String,
    /// Whether they are one terminal: there is no standard error then.
    pub terminal: bool,
}

/// A terminal's size, characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The address of a stream that the agent will open, and who waits for it.
pub type Expected = (StreamAddress, oneshot::Sender<OwnedFd>);

/// The streams of one process.
#[derive(Debug)]
pub struct Streams {
    stdin_writer: Option<fifo::Writer>,
    stdin: Option<AbortHandle>,
    outputs: watch::Receiver<usize>,
    tasks: Vec<AbortHandle>,
    addresses: Vec<StreamAddress>,
    /// The FIFOs' other ends.
    _held: Vec<File>,
    _logger: Option<Logger>,
}

impl Streams {
    /// Opens what `paths` name and starts a copy each, which waits for the guest's end. A logging
    /// program gets the names of `container`.
    ///
    /// # Errors
    /// [`Error`] with the path.
    pub fn open(
        paths: &StdioPaths,
        container: LoggedContainer<'_>,
    ) -> Result<(Self, Stdio, Vec<Expected>), Error> {
        let source = fifo::open_source(&paths.stdin)?;
        let (logger, stdout, stderr) = match logger::start(&paths.stdout, container)? {
            Some((logger, pipes)) => (
                Some(logger),
                Some(Sink::Pipe(pipes.stdout)),
                Some(Sink::Pipe(pipes.stderr)),
            ),
            None => {
                let stderr = if paths.terminal { "" } else { &paths.stderr };
                (None, fifo::open_sink(&paths.stdout)?, fifo::open_sink(stderr)?)
            }
        };
        let stderr = stderr.filter(|_| !paths.terminal);
        let sinks = [(stdout, "stdout"), (stderr, "stderr")];
        let mut expected = Vec::new();
        let mut expect = || {
            let (sender, receiver) = oneshot::channel();
            let address = random_address().map_err(Error::Random)?;
            expected.push((address, sender));
            Ok((address.to_bits(), receiver))
        };
        let mut stdio = Stdio::default();
        let mut stdin_writer = None;
        let mut stdin = None;
        if let Some(Source { reader, writer }) = source {
            let (bits, stream) = expect()?;
            stdio.stdin = bits;
            stdin_writer = Some(writer);
            stdin = Some(
                tokio::spawn(async move {
                    let Ok(stream) = stream.await else { return };
                    report("stdin", copy::fifo_to_stream(reader, stream).await);
                })
                .abort_handle(),
            );
        }
        let (left, outputs) = watch::channel(sinks.iter().filter(|(sink, _)| sink.is_some()).count());
        let (mut tasks, mut all_held) = (Vec::new(), Vec::new());
        for (sink, name) in sinks {
            let Some(sink) = sink else { continue };
            let (bits, stream) = expect()?;
            match name {
                "stdout" => stdio.stdout = bits,
                _ => stdio.stderr = bits,
            }
            let sink = match sink {
                Sink::Fifo { writer, held } => {
                    all_held.push(held);
                    Output::Fifo(writer)
                }
                Sink::Pipe(writer) => Output::Fifo(writer),
                Sink::File(file) => Output::File(file),
            };
            let left = Countdown(left.clone());
            tasks.push(
                tokio::spawn(async move {
                    let _left = left;
                    let Ok(stream) = stream.await else { return };
                    report(name, copy_out(stream, sink).await);
                })
                .abort_handle(),
            );
        }
        Ok((
            Self {
                stdin_writer,
                stdin,
                outputs,
                tasks,
                addresses: expected.iter().map(|(address, _)| *address).collect(),
                _held: all_held,
                _logger: logger,
            },
            stdio,
            expected,
        ))
    }

    /// No more will be written to standard input: what is in the FIFO still arrives, then its end.
    pub fn close_stdin(&mut self) {
        self.stdin_writer = None;
    }

    /// The process has ended: what comes on standard input is for nobody.
    pub fn end_stdin(&mut self) {
        self.close_stdin();
        if let Some(task) = self.stdin.take() {
            task.abort();
        }
    }

    /// Their addresses.
    #[must_use]
    pub fn addresses(&self) -> &[StreamAddress] {
        &self.addresses
    }

    /// Becomes 0 when all output has been written.
    #[must_use]
    pub fn outputs_left(&self) -> watch::Receiver<usize> {
        self.outputs.clone()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.end_stdin();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A new address from the kernel's random numbers.
fn random_address() -> std::io::Result<StreamAddress> {
    loop {
        let mut bytes = [0; 8];
        let length = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        // All but one in 32,000 draws are an address.
        if length == bytes.len()
            && let Some(address) = StreamAddress::from_bits(u64::from_le_bytes(bytes))
        {
            return Ok(address);
        }
    }
}

/// Counts one output less when its copy ends, however it ends.
struct Countdown(watch::Sender<usize>);

impl Drop for Countdown {
    fn drop(&mut self) {
        self.0.send_modify(|left| *left = left.saturating_sub(1));
    }
}

enum Output {
    Fifo(OwnedFd),
    File(File),
}

async fn copy_out(stream: OwnedFd, output: Output) -> std::io::Result<()> {
    match output {
        Output::Fifo(fifo) => copy::stream_to_fifo(stream, fifo).await,
        Output::File(file) => copy::stream_to_file(stream, file).await,
    }
}

fn report(name: &str, copied: std::io::Result<()>) {
    if let Err(error) = copied {
        // Ends of this kind are a process that closed its input, or a client that went away.
        crate::log::info(format_args!("{name} ended early: {error}"));
    }
}

#[cfg(test)]
mod tests;
