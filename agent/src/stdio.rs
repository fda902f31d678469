//! A process's standard streams: pipes in the guest, or the process's terminal, connected to the host's
//! streams. They are pipes and not the sockets themselves because a process may open /dev/stdout, which fails
//! on a socket.
//!
//! Input is spliced. Output is read and written, because each spliced page would become a vsock packet of its
//! own, and each packet costs an exit of the VM. Nothing is buffered beyond the pipe and one chunk: if the
//! host does not read, the writer blocks. Used for a container's init and for exec processes.

use std::fs::File;
use std::os::fd::OwnedFd;

use nacre_protocol::agent::Stdio;
use nacre_protocol::vsock::StreamAddress;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use crate::async_fd;
use crate::copy::Pair;
use crate::dial::{Dialer, Dialing};
use crate::error::Error;

/// The process's ends of its standard input, output and error, in this order.
pub struct Ends(pub [OwnedFd; 3]);

/// The connections to the host for standard input, output and error, still being established; None for a
/// stream that is not wanted.
pub struct Dialed([Option<Dialing>; 3]);

/// The agent's ends of the pipes for standard input, output and error; None for a stream that is not wanted.
pub struct Pipes([Option<OwnedFd>; 3]);

/// A process's streams, connected to the host. Copying begins with [`Streams::start`].
pub struct Streams {
    input: Option<Pair>,
    is_terminal: bool,
    outputs: [Option<Pair>; 2],
}

/// Starts to connect the streams that are wanted: those with an address.
pub fn dial(dialer: &Dialer, addresses: &Stdio) -> Result<Dialed, Error> {
    let start = |bits: u64| match (bits, StreamAddress::from_bits(bits)) {
        (0, _) => Ok(None),
        (_, Some(address)) => dialer.start_stream(address).map(Some),
        (_, None) => Err(Error::BadRequest {
            what: format!("{bits:#x} is not the address of a stream"),
        }),
    };
    Ok(Dialed([
        start(addresses.stdin)?,
        start(addresses.stdout)?,
        start(addresses.stderr)?,
    ]))
}

/// Creates a pipe, owned by `uid`, for each wanted stream. The process gets /dev/null for the others.
pub fn pipes(dialed: &Dialed, uid: u32) -> Result<(Ends, Pipes), Error> {
    let [input, output, error] = &dialed.0;
    let (stdin, input) = match input {
        Some(_) => {
            let (read, write) = make_pipe(uid)?;
            (read.0, Some(write.0))
        }
        None => (open_null()?, None),
    };
    let (stdout, output) = output_pipe(output.is_some(), uid)?;
    let (stderr, error) = output_pipe(error.is_some(), uid)?;
    Ok((Ends([stdin, stdout, stderr]), Pipes([input, output, error])))
}

fn output_pipe(wanted: bool, uid: u32) -> Result<(OwnedFd, Option<OwnedFd>), Error> {
    if !wanted {
        return Ok((open_null()?, None));
    }
    let (read, write) = make_pipe(uid)?;
    Ok((write.0, Some(read.0)))
}

impl Dialed {
    /// Waits until the host's streams are connected, and joins them with the agent's ends of the pipes.
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

    /// Waits until the host's streams are connected, and joins them with the terminal's master. A terminal
    /// has no separate standard error.
    pub async fn with_terminal(self, master: &OwnedFd) -> Result<Streams, Error> {
        let duplicate = || {
            master
                .try_clone()
                .map_err(Error::system("duplicating a terminal's master"))
        };
        let [input, output, _] = self.0;
        let input = pair(input, Some(duplicate()?)).await?;
        let output = pair(output, Some(duplicate()?)).await?;
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

type Registered = AsyncFd<OwnedFd>;

/// The host's stream and the agent's end of the pipe or terminal, in this order; None if the stream is not
/// wanted.
async fn pair(
    dialing: Option<Dialing>,
    end: Option<OwnedFd>,
) -> Result<Option<(Registered, Registered)>, Error> {
    match (dialing, end) {
        (Some(dialing), Some(end)) => Ok(Some((dialing.finish().await?, register(end)?))),
        _ => Ok(None),
    }
}

struct ReadEnd(OwnedFd);
struct WriteEnd(OwnedFd);

fn make_pipe(uid: u32) -> Result<(ReadEnd, WriteEnd), Error> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("creating a pipe"))?;
    rustix::fs::fchown(&read, Some(rustix::fs::Uid::from_raw(uid)), None)
        .map_err(Error::system(format!("changing a pipe's owner to uid {uid}")))?;
    Ok((ReadEnd(read), WriteEnd(write)))
}

/// Makes the agent's end of a pipe or terminal non-blocking and registers it. O_NONBLOCK belongs to the open
/// file description, so the process's end stays blocking.
fn register(fd: OwnedFd) -> Result<Registered, Error> {
    fcntl_setfl(&fd, OFlags::NONBLOCK).map_err(Error::system("making a standard stream non-blocking"))?;
    async_fd::register(fd).map_err(Error::system("registering a standard stream with the event loop"))
}

fn open_null() -> Result<OwnedFd, Error> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from)
        .map_err(Error::file("opening", "/dev/null"))
}

impl Streams {
    /// Starts the tasks that copy each stream until it ends. Returns the handle of the one that copies
    /// standard input, if it is wanted, to stop it when the process has exited.
    pub fn start(self) -> Option<AbortHandle> {
        for pair in self.outputs.into_iter().flatten() {
            // An error means that one side was closed. Dropping the pair closes the other side.
            tokio::spawn(async move { pair.copy().await });
        }
        let pair = self.input?;
        let is_terminal = self.is_terminal;
        let copying = tokio::spawn(async move {
            // Ignore the result: as above. A terminal's end of input is a character, so that nothing is to be
            // done at the end of the host's stream.
            let _ = if is_terminal {
                pair.copy().await
            } else {
                pair.splice().await
            };
        });
        Some(copying.abort_handle())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    /// A directory in which the host listens at `port`, and a dialer for it.
    const STREAM: StreamAddress = StreamAddress {
        host_port: 0x1_0003,
        guest_port: 0x1_0007,
    };

    fn listen() -> (tempfile::TempDir, Dialer, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(STREAM.host_port.to_string())).unwrap();
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

    async fn connect(ports: Stdio, dialer: &Dialer) -> ([File; 3], Option<AbortHandle>) {
        let dialed = dial(dialer, &ports).unwrap();
        let (ends, pipes) = pipes(&dialed, 0).unwrap();
        (
            ends.0.map(File::from),
            dialed.with_pipes(pipes).await.unwrap().start(),
        )
    }

    #[test]
    fn output_reaches_the_host_and_ends_with_the_process() {
        run(async {
            let (_directory, dialer, listener) = listen();
            let (mut ends, input) = connect(
                Stdio {
                    stdout: STREAM.to_bits(),
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
    fn a_host_that_does_not_read_blocks_the_writer() {
        run(async {
            let (_directory, dialer, listener) = listen();
            let (mut ends, _) = connect(
                Stdio {
                    stdout: STREAM.to_bits(),
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
            assert!(sent < 4 << 20, "{sent} bytes were accepted without a reader");
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

    #[test]
    fn input_ends_with_the_hosts_stream() {
        run(async {
            let (_directory, dialer, listener) = listen();
            let (ends, input) = connect(
                Stdio {
                    stdin: STREAM.to_bits(),
                    ..Stdio::new()
                },
                &dialer,
            )
            .await;
            assert!(input.is_some());
            let mut host = listener.accept().unwrap().0;
            let bytes: Vec<u8> = (0..150_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let sent = bytes.clone();
            let writer = std::thread::spawn(move || {
                host.write_all(&sent).unwrap();
                host.shutdown(std::net::Shutdown::Write).unwrap();
                host
            });
            let reader = std::thread::spawn(move || {
                let [mut stdin, _, _] = ends;
                let mut got = Vec::new();
                stdin.read_to_end(&mut got).unwrap();
                got
            });
            while !reader.is_finished() {
                tokio::task::yield_now().await;
            }
            assert!(reader.join().unwrap() == bytes);
            drop(writer.join().unwrap());
        });
    }
}
