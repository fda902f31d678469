//! A process's standard streams: pipes in the guest, copied to and from the host's streams. Pipes, since a process
//! may open /dev/stdout anew, which fails on a socket; or the terminal that it has in their place. Input is spliced; output is read and written, since a spliced
//! page is a vsock packet of its own, and each packet an exit of the VM. Nothing is buffered beyond the pipe and one
//! such piece: a reader that does not read stops the writer. Used for a container's init and for execs; never interprets a byte.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nacre_protocol::agent::Stdio;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::dial::{Dialer, Dialing};
use crate::error::Error;
use crate::watched;

/// Most bytes moved by one call; a pipe's capacity.
const CHUNK: usize = 64 * 1024;

/// The process's ends, to be given to it: standard input, output, error.
pub struct Ends(pub [OwnedFd; 3]);

/// The host's streams on their way.
pub struct Dialed([Option<Dialing>; 3]);

/// The agent's ends of the pipes.
pub struct Pipes([Option<OwnedFd>; 3]);

/// The agent's ends and the host's streams, not yet copied.
pub struct Streams {
    input: Option<Pair>,
    is_terminal: bool,
    outputs: [Option<Pair>; 2],
}

struct Pair {
    from: AsyncFd<OwnedFd>,
    to: AsyncFd<OwnedFd>,
}

/// Standard input while it is copied.
pub struct Input {
    closing: watch::Sender<bool>,
    copying: JoinHandle<()>,
}

impl Input {
    /// No more input after what has arrived.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// No more input: there is no reader.
    pub fn abort(&self) {
        self.copying.abort();
    }
}

/// Begins to dial the wanted streams.
pub fn dial(dialer: &Dialer, ports: &Stdio) -> Result<Dialed, Error> {
    let start = |port: u32| (port != 0).then(|| dialer.start(port)).transpose();
    Ok(Dialed([
        start(ports.stdin_port)?,
        start(ports.stdout_port)?,
        start(ports.stderr_port)?,
    ]))
}

/// Makes the pipes of the wanted streams, owned by `uid`; `/dev/null` for a stream that is not wanted.
pub fn pipes(dialed: &Dialed, uid: u32) -> Result<(Ends, Pipes), Error> {
    let [input, output, error] = &dialed.0;
    let (stdin, input) = match input {
        Some(_) => {
            let (read, write) = make_pipe(uid)?;
            (read.0, Some(write.0))
        }
        None => (null()?, None),
    };
    let (stdout, output) = output_pipe(output.is_some(), uid)?;
    let (stderr, error) = output_pipe(error.is_some(), uid)?;
    Ok((Ends([stdin, stdout, stderr]), Pipes([input, output, error])))
}

fn output_pipe(wanted: bool, uid: u32) -> Result<(OwnedFd, Option<OwnedFd>), Error> {
    if !wanted {
        return Ok((null()?, None));
    }
    let (read, write) = make_pipe(uid)?;
    Ok((write.0, Some(read.0)))
}

impl Dialed {
    /// Waits for the streams, and puts `pipes` between them and the process.
    pub async fn with_pipes(self, pipes: Pipes) -> Result<Streams, Error> {
        let [input, output, error] = self.0;
        let [stdin, stdout, stderr] = pipes.0;
        let input = pair(input, stdin).await?;
        let outputs = [pair(output, stdout).await?, pair(error, stderr).await?];
        Ok(Streams {
            input: input.map(|(stream, pipe)| Pair {
                from: stream,
                to: pipe,
            }),
            is_terminal: false,
            outputs: outputs.map(|pair| {
                pair.map(|(stream, pipe)| Pair {
                    from: pipe,
                    to: stream,
                })
            }),
        })
    }

    /// Waits for the streams, and puts the terminal whose master is `master` between them and the process.
    pub async fn with_terminal(self, master: &OwnedFd) -> Result<Streams, Error> {
        let again = || master.try_clone().map_err(Error::system("sharing a terminal"));
        let [input, output, _] = self.0;
        let input = pair(input, Some(again()?)).await?;
        let output = pair(output, Some(again()?)).await?;
        Ok(Streams {
            input: input.map(|(stream, master)| Pair {
                from: stream,
                to: master,
            }),
            is_terminal: true,
            outputs: [
                output.map(|(stream, master)| Pair {
                    from: master,
                    to: stream,
                }),
                None,
            ],
        })
    }
}

type Watched = AsyncFd<OwnedFd>;

/// The host's stream and the agent's end of what it is copied to or from; both are there or none.
async fn pair(dialing: Option<Dialing>, end: Option<OwnedFd>) -> Result<Option<(Watched, Watched)>, Error> {
    match (dialing, end) {
        (Some(dialing), Some(end)) => Ok(Some((dialing.finish().await?, watched(end)?))),
        _ => Ok(None),
    }
}

struct ReadEnd(OwnedFd);
struct WriteEnd(OwnedFd);

fn make_pipe(uid: u32) -> Result<(ReadEnd, WriteEnd), Error> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("making a pipe"))?;
    rustix::fs::fchown(&read, Some(rustix::fs::Uid::from_raw(uid)), None)
        .map_err(Error::system("giving a pipe to the process's user"))?;
    Ok((ReadEnd(read), WriteEnd(write)))
}

/// The agent's end of a pipe, for the event loop. The process's end stays as it is: the flag belongs to the end.
fn watched(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, Error> {
    fcntl_setfl(&fd, OFlags::NONBLOCK).map_err(Error::system("making a pipe non-blocking"))?;
    watched::watch(fd).map_err(Error::system("watching a pipe"))
}

fn null() -> Result<OwnedFd, Error> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from)
        .map_err(Error::file("opening", "/dev/null"))
}

impl Streams {
    /// Copies until the streams' ends.
    pub fn start(self) -> Option<Input> {
        for pair in self.outputs.into_iter().flatten() {
            // An error is the host's end closed, or the process's: the same end for the other side.
            tokio::spawn(async move { pair.copy().await });
        }
        let pair = self.input?;
        let (closing, closed) = watch::channel(false);
        let is_terminal = self.is_terminal;
        let copying = tokio::spawn(async move {
            if is_terminal {
                // Its end is a character; nothing is to be told of another.
                let _ = pair.copy().await;
            } else {
                copy_input(pair, closed).await;
            }
        });
        Some(Input { closing, copying })
    }
}

async fn copy_input(pair: Pair, mut closing: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            moved = pair.step() => if !matches!(moved, Ok(1..)) { return },
            // The sender goes with the container: an end too.
            _ = closing.wait_for(|closing| *closing) => break,
        }
    }
    while is_ready(&pair.from, PollFlags::IN) && matches!(pair.step().await, Ok(1..)) {}
}

impl Pair {
    /// Copies until the end, in pieces as large as the pipe holds.
    async fn copy(&self) -> io::Result<()> {
        let mut piece = vec![0; CHUNK];
        loop {
            let mut source = self.from.readable().await?;
            let length = match rustix::io::read(&self.from, &mut piece) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(rustix::io::Errno::AGAIN) => {
                    source.clear_ready();
                    continue;
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.write_all(piece.get(..length).unwrap_or_default()).await?;
        }
    }

    async fn write_all(&self, mut piece: &[u8]) -> io::Result<()> {
        while !piece.is_empty() {
            let mut sink = self.to.writable().await?;
            match rustix::io::write(&self.to, piece) {
                Ok(written) => piece = piece.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::AGAIN) => sink.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until something can be moved and moves it; 0 at the end. Nothing is lost where it is not awaited to its
    /// end.
    async fn step(&self) -> io::Result<usize> {
        loop {
            let mut source = self.from.readable().await?;
            let mut sink = self.to.writable().await?;
            match splice(
                &self.from,
                None,
                &self.to,
                None,
                CHUNK,
                SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
            ) {
                Err(rustix::io::Errno::AGAIN) => {}
                Err(rustix::io::Errno::INTR) => continue,
                result => return result.map_err(io::Error::from),
            }
            // Either side may be the one that is not ready.
            let (readable, writable) = (
                is_ready(&self.from, PollFlags::IN),
                is_ready(&self.to, PollFlags::OUT),
            );
            if !readable {
                source.clear_ready();
            }
            if !writable {
                sink.clear_ready();
            }
            if readable && writable {
                tokio::task::yield_now().await;
            }
        }
    }
}

fn is_ready(fd: &AsyncFd<OwnedFd>, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, events)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn host(port: u32) -> (tempfile::TempDir, Dialer, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(port.to_string())).unwrap();
        let dialer = Dialer::Unix(directory.path().to_owned());
        (directory, dialer, listener)
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }

    async fn connected(ports: Stdio, dialer: &Dialer) -> ([File; 3], Option<Input>) {
        let dialed = dial(dialer, &ports).unwrap();
        let (ends, pipes) = pipes(&dialed, 0).unwrap();
        (
            ends.0.map(File::from),
            dialed.with_pipes(pipes).await.unwrap().start(),
        )
    }

    #[test]
    fn output_arrives_and_ends() {
        run(async {
            let (_directory, dialer, listener) = host(5);
            let (mut ends, input) = connected(
                Stdio {
                    stdout_port: 5,
                    ..Stdio::new()
                },
                &dialer,
            )
            .await;
            assert!(input.is_none());
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
                got
            });
            ends[1].write_all(b"hello").unwrap();
            drop(ends);
            while !reader.is_finished() {
                tokio::task::yield_now().await;
            }
            assert_eq!(reader.join().unwrap(), b"hello");
        });
    }

    #[test]
    fn a_reader_that_does_not_read_stops_the_writer() {
        run(async {
            let (_directory, dialer, listener) = host(5);
            let (mut ends, _) = connected(
                Stdio {
                    stdout_port: 5,
                    ..Stdio::new()
                },
                &dialer,
            )
            .await;
            let mut host = listener.accept().unwrap().0;
            fcntl_setfl(&ends[1], OFlags::NONBLOCK).unwrap();
            let mut sent = 0_usize;
            let mut idle = 0;
            while idle < 1000 {
                match ends[1].write(&[7; 4096]) {
                    Ok(length) => (sent, idle) = (sent + length, 0),
                    Err(_) => idle += 1,
                }
                tokio::task::yield_now().await;
            }
            assert!(sent < 4 << 20, "{sent} bytes went to nobody");
            drop(ends);
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                host.read_to_end(&mut got).unwrap();
                got.len()
            });
            while !reader.is_finished() {
                tokio::task::yield_now().await;
            }
            assert_eq!(reader.join().unwrap(), sent);
        });
    }

    async fn input_of(closing: impl FnOnce(&mut UnixStream, &Input)) -> Vec<u8> {
        let (_directory, dialer, listener) = host(3);
        let (ends, input) = connected(
            Stdio {
                stdin_port: 3,
                ..Stdio::new()
            },
            &dialer,
        )
        .await;
        let mut host = listener.accept().unwrap().0;
        let bytes: Vec<u8> = (0..150_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let writer = std::thread::spawn(move || {
            host.write_all(&bytes).unwrap();
            (host, bytes)
        });
        let reader = std::thread::spawn(move || {
            let [mut stdin, _, _] = ends;
            let mut got = Vec::new();
            stdin.read_to_end(&mut got).unwrap();
            got
        });
        while !writer.is_finished() {
            tokio::task::yield_now().await;
        }
        let (mut host, bytes) = writer.join().unwrap();
        closing(&mut host, input.as_ref().unwrap());
        while !reader.is_finished() {
            tokio::task::yield_now().await;
        }
        let got = reader.join().unwrap();
        assert_eq!(got, bytes);
        got
    }

    #[test]
    fn input_ends_with_the_hosts_stream() {
        run(async {
            input_of(|host, _| host.shutdown(std::net::Shutdown::Write).unwrap()).await;
        });
    }

    #[test]
    fn input_ends_after_close_with_all_that_was_sent() {
        run(async {
            input_of(|_, input| input.close()).await;
        });
    }
}
