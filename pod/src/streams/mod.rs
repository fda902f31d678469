//! A process's standard streams: what the caller names (FIFOs, files, a logging program) on one side, one
//! vsock stream each on the other. Bytes are spliced and never buffered here: a full FIFO stops the copy, and
//! that stops the guest. Opened by Create and Exec; the guest's ends come later, as connections to the
//! addresses that were drawn here.

mod copy;
mod expected;
mod fifo;
mod logger;
mod read_out;
mod written;

use std::os::fd::OwnedFd;

use nacre_protocol::agent::Stdio;
use nacre_protocol::vsock::StreamAddress;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

pub use expected::ExpectedStreams;
pub use fifo::Error;
use fifo::{Sink, Source};
pub use logger::LoggedContainer;
use logger::Logger;
pub use written::Outputs;
use written::{OutputCopy, outputs};

/// Where the caller wants a process's streams; empty for a stream that is not wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// A FIFO to read from.
    pub stdin: String,
    /// A FIFO or file:// URI to write to, or the binary:// URI of a logging program, which gets both outputs.
    pub stdout: String,
    /// A FIFO or file:// URI to write to.
    pub stderr: String,
    /// The process has a terminal: stdin and stdout are its two directions, and there is no standard error.
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

/// The streams of one process. Dropping them ends all copying.
#[derive(Debug)]
pub struct Streams {
    stdin_writer: Option<fifo::Writer>,
    stdin: Option<AbortHandle>,
    outputs: Outputs,
    copies: Vec<AbortHandle>,
    addresses: Vec<StreamAddress>,
    _logger: Option<Logger>,
}

/// What [`Streams::open`] returns.
#[derive(Debug)]
pub struct Opened {
    /// The streams.
    pub streams: Streams,
    /// Their addresses, for the agent.
    pub stdio: Stdio,
    /// Their addresses, for whoever gets the guest's connections.
    pub expected: Vec<Expected>,
}

/// The host's ends.
struct HostEnds {
    stdin: Option<Source>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    logger: Option<Logger>,
}

impl HostEnds {
    fn open(paths: &StdioPaths, container: LoggedContainer<'_>) -> Result<Self, Error> {
        let stdin = fifo::open_source(&paths.stdin)?;
        let (logger, stdout, stderr) = match logger::start(&paths.stdout, container)? {
            Some((logger, pipes)) => {
                let pipe = |end| Some(Sink::Pipe(end));
                (Some(logger), pipe(pipes.stdout), pipe(pipes.stderr))
            }
            None => {
                let stderr = if paths.terminal { "" } else { &paths.stderr };
                (None, fifo::open_sink(&paths.stdout)?, fifo::open_sink(stderr)?)
            }
        };
        Ok(Self {
            stdin,
            stdout,
            stderr: stderr.filter(|_| !paths.terminal),
            logger,
        })
    }
}

impl Streams {
    /// Opens what `paths` name and starts a copy each, which waits for the guest's end. A logging program
    /// gets the names of `container`.
    ///
    /// # Errors
    /// [`Error`] with the path.
    pub fn open(paths: &StdioPaths, container: LoggedContainer<'_>) -> Result<Opened, Error> {
        let ends = HostEnds::open(paths, container)?;
        let (copies, outputs) = outputs();
        let mut streams = Self {
            stdin_writer: None,
            stdin: None,
            outputs,
            copies: Vec::new(),
            addresses: Vec::new(),
            _logger: ends.logger,
        };
        let mut stdio = Stdio::default();
        let mut expected = Vec::new();
        if let Some(Source { reader, writer }) = ends.stdin {
            let stream = streams.expect(&mut stdio.stdin, &mut expected)?;
            streams.stdin_writer = Some(writer);
            streams.stdin = Some(copy_in(reader, stream));
        }
        if let Some(sink) = ends.stdout {
            let stream = streams.expect(&mut stdio.stdout, &mut expected)?;
            streams.start_output("stdout", sink, stream, copies.begin());
        }
        if let Some(sink) = ends.stderr {
            let stream = streams.expect(&mut stdio.stderr, &mut expected)?;
            streams.start_output("stderr", sink, stream, copies.begin());
        }
        Ok(Opened {
            streams,
            stdio,
            expected,
        })
    }

    /// Draws an address for a stream of the guest; `bits` is for the agent's message. The stream comes to the
    /// receiver.
    fn expect(
        &mut self,
        bits: &mut u64,
        expected: &mut Vec<Expected>,
    ) -> Result<oneshot::Receiver<OwnedFd>, Error> {
        let address = random_address().map_err(Error::Random)?;
        let (sender, receiver) = oneshot::channel();
        *bits = address.to_bits();
        self.addresses.push(address);
        expected.push((address, sender));
        Ok(receiver)
    }

    fn start_output(
        &mut self,
        name: &'static str,
        sink: Sink,
        stream: oneshot::Receiver<OwnedFd>,
        copy: OutputCopy,
    ) {
        let copying = tokio::spawn(async move {
            let Ok(stream) = stream.await else { return };
            let moved = || copy.moved();
            let (copied, reader) = match sink {
                Sink::Fifo { writer, reader } => copy::stream_to_fifo(stream, writer, reader, moved).await,
                Sink::Pipe(pipe) => (copy::stream_to_pipe(stream, pipe, moved).await, None),
                Sink::File(file) => (copy::stream_to_file(stream, file, moved).await, None),
            };
            log_early_end(name, copied);
            drop(copy);
            if let Some(_reader) = reader {
                // Held until the streams are dropped, for a reader that comes later.
                std::future::pending().await
            }
        });
        self.copies.push(copying.abort_handle());
    }

    /// Closes standard input after what has been written to its FIFO.
    pub fn close_stdin(&mut self) {
        self.stdin_writer = None;
    }

    /// Closes standard input at once: the process has exited.
    pub fn end_stdin(&mut self) {
        self.close_stdin();
        if let Some(task) = self.stdin.take() {
            task.abort();
        }
    }

    /// The addresses of the guest's ends.
    #[must_use]
    pub fn addresses(&self) -> &[StreamAddress] {
        &self.addresses
    }

    /// How far the outputs are written.
    #[must_use]
    pub fn outputs(&self) -> Outputs {
        self.outputs.clone()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.end_stdin();
        for task in &self.copies {
            task.abort();
        }
    }
}

/// A new address from the kernel's random numbers.
///
/// # Errors
/// As getrandom(2).
pub fn random_address() -> std::io::Result<StreamAddress> {
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

fn copy_in(fifo: OwnedFd, stream: oneshot::Receiver<OwnedFd>) -> AbortHandle {
    let copying = tokio::spawn(async move {
        let Ok(stream) = stream.await else { return };
        log_early_end("stdin", copy::fifo_to_stream(fifo, stream).await);
    });
    copying.abort_handle()
}

fn log_early_end(name: &str, copied: std::io::Result<()>) {
    if let Err(error) = copied {
        // Usually the process closed its input, or the reader of its output has gone.
        crate::log::info(format_args!("{name} ended early: {error}"));
    }
}

#[cfg(test)]
mod tests;
