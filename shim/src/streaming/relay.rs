//! Copies between a stream's messages and its FIFO. The reader of a stream tells how many bytes it takes, so
//! that at most a window of bytes is held here. A stream ends with its data or when the client closes it; if the
//! client's connection is lost, the FIFO stays for the next one.

use std::io;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nacre_pod::Error;
use tokio::net::unix::pipe;
use ttrpc::asynchronous::{SSReceiver, SSSender};

use super::fifos::Fifo;
use super::unpack;
use crate::messages::any;
use crate::proto::transfer::{Data, WindowUpdate};
use crate::status::status_of;

/// The most bytes of input that are on their way or held here.
const WINDOW: usize = 64 << 10;
/// The most bytes of a message, as containerd's own.
const LARGEST: usize = 32 << 10;

/// Sends what the process writes, until its end.
pub async fn output(
    fifo: &Fifo,
    sender: &SSSender<Any>,
    receiver: &mut SSReceiver<Any>,
) -> ttrpc::Result<()> {
    let reader = pipe::OpenOptions::new()
        .open_receiver(fifo.path())
        .map_err(|error| failed(fifo, &error))?;
    let mut buffer = vec![0; LARGEST];
    let mut window: usize = 0;
    // An open FIFO is ready when a process has written to it or closed it. If the process did so before the
    // FIFO was opened here, only reading it tells.
    let mut is_unknown = !fifo.is_new;
    loop {
        let length = window.min(buffer.len());
        let part = buffer.get_mut(..length).unwrap_or_default();
        let read = tokio::select! {
            message = receiver.recv() => {
                let Some(message) = message? else { break };
                let update = unpack::<WindowUpdate>(&message).map_err(status_of)?.update;
                let more = usize::try_from(update).map_err(|_| refused("a window below 0"))?;
                window = window.saturating_add(more);
                continue;
            }
            read = read(&reader, part, &mut is_unknown), if length > 0 => read,
        };
        match read.map_err(|error| failed(fifo, &error))? {
            0 => break,
            count => {
                window -= count;
                let data = Data {
                    data: buffer.get(..count).unwrap_or_default().to_vec(),
                    ..Default::default()
                };
                sender.send(&any(&data)).await?;
            }
        }
    }
    fifo.remove();
    Ok(())
}

/// Waits until bytes can be read, and reads them; 0 at their end.
async fn read(reader: &pipe::Receiver, buffer: &mut [u8], is_unknown: &mut bool) -> io::Result<usize> {
    if std::mem::take(is_unknown) {
        match rustix::io::read(reader, &mut *buffer) {
            Err(rustix::io::Errno::AGAIN) => {}
            read => return Ok(read?),
        }
    }
    loop {
        reader.readable().await?;
        match reader.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Writes what the client sends, until it closes the stream.
pub async fn input(fifo: &Fifo, sender: &SSSender<Any>, receiver: &mut SSReceiver<Any>) -> ttrpc::Result<()> {
    // Opened for reading, too: what arrives before the process opens the FIFO waits in it.
    let writer = pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(fifo.path())
        .map_err(|error| failed(fifo, &error))?;
    let mut pending: Vec<u8> = Vec::new();
    grant(sender, WINDOW).await?;
    loop {
        tokio::select! {
            message = receiver.recv() => {
                let Some(message) = message? else { break };
                let data = unpack::<Data>(&message).map_err(status_of)?.data;
                if pending.len() + data.len() > WINDOW {
                    return Err(refused("more data than the window allows"));
                }
                pending.extend(data);
            }
            written = write(&writer, &pending), if !pending.is_empty() => {
                let count = written.map_err(|error| failed(fifo, &error))?;
                pending.drain(..count);
                grant(sender, count).await?;
            }
        }
    }
    let last = write_only(fifo);
    // The process's own reader is the only one now: without it nothing is waited for.
    drop(writer);
    fifo.remove();
    let last = last.map_err(|error| failed(fifo, &error))?;
    while !pending.is_empty() {
        match write(&last, &pending).await {
            Ok(count) => drop(pending.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(failed(fifo, &error)),
        }
    }
    Ok(())
}

fn write_only(fifo: &Fifo) -> io::Result<pipe::Sender> {
    pipe::OpenOptions::new().open_sender(fifo.path())
}

/// Waits until bytes can be written, and writes some.
async fn write(writer: &pipe::Sender, data: &[u8]) -> io::Result<usize> {
    loop {
        writer.writable().await?;
        match writer.try_write(data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return written,
        }
    }
}

/// Lets the client send `count` more bytes.
async fn grant(sender: &SSSender<Any>, count: usize) -> ttrpc::Result<()> {
    let update = WindowUpdate {
        update: i32::try_from(count).unwrap_or(i32::MAX),
        ..Default::default()
    };
    sender.send(&any(&update)).await
}

fn refused(reason: &str) -> ttrpc::Error {
    status_of(Error::Refused(format!("stream: {reason}")))
}

fn failed(fifo: &Fifo, error: &io::Error) -> ttrpc::Error {
    status_of(Error::Refused(format!(
        "stream {}: {error}",
        fifo.path().display()
    )))
}
