//! Standard streams over ttrpc, as CRI opens them with `io_type = "streaming"`: bytes both ways within their
//! windows, a client that connects again, and what is refused.

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::protobuf::CodedOutputStream;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nacre_protocol::state;
use ttrpc::Code;
use ttrpc::asynchronous::{Client, ClientStream};

use crate::Case;
use crate::cases;
use crate::pod::{Pod, refused, soon};
use crate::remote::Remote;

cases![
    streams_over_ttrpc_are_byte_exact,
    a_lost_client_of_a_stream_connects_again,
    streams_that_can_t_be_opened_are_refused,
];

const DATA: &str = "containerd.types.transfer.Data";
const WINDOW: &str = "containerd.types.transfer.WindowUpdate";

/// A message whose only field is written by `write`.
fn message(kind: &str, write: impl FnOnce(&mut CodedOutputStream<'_>)) -> Any {
    let mut value = Vec::new();
    let mut output = CodedOutputStream::vec(&mut value);
    write(&mut output);
    output.flush().unwrap();
    drop(output);
    Any {
        type_url: kind.into(),
        value,
        ..Default::default()
    }
}

fn window(update: i32) -> Any {
    message(WINDOW, |output| output.write_int32(1, update).unwrap())
}

/// The bytes in a Data message, or the number in a WindowUpdate.
fn field(message: &Any) -> Result<(Vec<u8>, u64)> {
    use containerd_shim_protos::protobuf::CodedInputStream;
    let mut input = CodedInputStream::from_bytes(&message.value);
    let Some(tag) = input.read_raw_tag_or_eof()? else {
        return Ok((Vec::new(), 0));
    };
    Ok(match tag & 7 {
        0 => (Vec::new(), input.read_uint64()?),
        _ => (input.read_bytes()?, 0),
    })
}

/// Opens stream `id` over a connection of its own, as containerd does.
async fn open(pod: &Pod, id: &str) -> ttrpc::Result<(Client, ClientStream<Any, Any>)> {
    let client = Client::connect(&pod.address).await?;
    let request = ttrpc::Request {
        service: "containerd.services.streaming.v1.Streaming".into(),
        method: "Stream".into(),
        timeout_nano: 20_000_000_000,
        ..Default::default()
    };
    let mut stream = ClientStream::new(client.new_stream(request, true, true).await?);
    let init = message("containerd.services.streaming.v1.StreamInit", |output| {
        output.write_string(1, id).unwrap();
    });
    stream.send(&init).await?;
    // The acknowledgement.
    stream.recv().await?;
    Ok((client, stream))
}

fn address(pod: &Pod, id: &str) -> String {
    format!("ttrpc+{}?streaming_id={id}", pod.address)
}

/// Sends `bytes`, as many at a time as the shim takes, and closes the stream.
async fn send(stream: &mut ClientStream<Any, Any>, mut bytes: &[u8]) -> Result<()> {
    let mut allowed = 0;
    while !bytes.is_empty() {
        if allowed == 0 {
            let message = stream.recv().await?;
            ensure!(message.type_url == WINDOW, "{message}");
            allowed = usize::try_from(field(&message)?.1)?;
        }
        let (now, later) = bytes.split_at(bytes.len().min(allowed).min(32 << 10));
        stream
            .send(&message(DATA, |output| output.write_bytes(1, now).unwrap()))
            .await?;
        allowed -= now.len();
        bytes = later;
    }
    Ok(stream.close_send().await?)
}

/// What comes until `length` bytes have, or to the stream's end.
async fn receive(stream: &mut ClientStream<Any, Any>, length: usize) -> Result<Vec<u8>> {
    const STEP: i32 = 50_000;
    let (mut all, mut allowed) = (Vec::new(), 0);
    while all.len() < length {
        if allowed == 0 {
            stream.send(&window(STEP)).await?;
            allowed = usize::try_from(STEP)?;
        }
        match stream.recv().await {
            Ok(message) => {
                ensure!(message.type_url == DATA, "{message}");
                let (bytes, _) = field(&message)?;
                allowed = allowed.checked_sub(bytes.len()).context("more than the window")?;
                all.extend(bytes);
            }
            Err(ttrpc::Error::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// The FIFOs that the pod has for streams.
fn fifos(pod: &Pod) -> Result<usize> {
    Ok(std::fs::read_dir(state::pod_dir(&pod.key()).join("streams"))?.count())
}

async fn streams_over_ttrpc_are_byte_exact() -> Result<()> {
    let (pod, client) = Pod::start("ttrpc-streams", "", &["cat"]).await?;
    let (_input, mut stdin) = open(&pod, "c-stdin").await?;
    let (_output, mut stdout) = open(&pod, "c-stdout").await?;
    let mut creation = pod.creation();
    creation.stdin = address(&pod, "c-stdin");
    creation.stdout = address(&pod, "c-stdout");
    client.create(soon(), &creation).await?;
    let init = Remote::init(&client, "ttrpc-streams");
    init.start().await?;
    let sent: Vec<u8> = (0..1_u32 << 20).map(|n| n.to_le_bytes()[1]).collect();
    let (written, read) = tokio::join!(send(&mut stdin, &sent), receive(&mut stdout, sent.len()));
    written?;
    let read = read?;
    ensure!(read == sent, "{} bytes came of {}", read.len(), sent.len());
    init.close_stdin().await?;
    ensure!(init.wait().await?.exit_status == 0);
    ensure!(receive(&mut stdout, 1).await?.is_empty(), "no end");
    ensure!(fifos(&pod)? == 0, "{} FIFOs are left", fifos(&pod)?);
    init.delete().await?;
    pod.finish(&client).await
}

async fn a_lost_client_of_a_stream_connects_again() -> Result<()> {
    let (pod, client) = Pod::start("ttrpc-again", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, "ttrpc-again");
    init.start().await?;
    let exec = Remote::exec(&client, "ttrpc-again", "e");
    let lost = open(&pod, "e-stdout").await?;
    let mut request = exec.request(&["print", "written while nobody reads", ""]);
    request.stdout = address(&pod, "e-stdout");
    exec.add(&request).await?;
    drop(lost);
    exec.start().await?;
    ensure!(exec.wait().await?.exit_status == 0);
    let (_again, mut stdout) = open(&pod, "e-stdout").await?;
    let read = receive(&mut stdout, usize::MAX).await?;
    ensure!(read == b"written while nobody reads", "{read:?}");
    exec.delete().await?;
    init.kill(9).await?;
    init.wait().await?;
    init.delete().await?;
    pod.finish(&client).await
}

async fn streams_that_can_t_be_opened_are_refused() -> Result<()> {
    let (pod, client) = Pod::start("ttrpc-refused", "", &["sleep"]).await?;
    for id in ["../c-stdout", "c"] {
        let (_, reason) = refused(open(&pod, id).await.map(drop))?;
        ensure!(
            reason.contains(&format!("stream {id:?}: expected an id")),
            "{reason}"
        );
    }
    let mut creation = pod.creation();
    creation.stdout = address(&pod, "c-stdout");
    let (code, reason) = refused(client.create(soon(), &creation).await)?;
    ensure!(
        code == Code::INVALID_ARGUMENT && reason.contains("this stream is not open"),
        "{reason}"
    );
    let (_connection, mut stdin) = open(&pod, "c-stdin").await?;
    stdin.send(&window(1)).await?;
    let mut answers = [stdin.recv().await, stdin.recv().await];
    let (_, reason) = refused(std::mem::replace(&mut answers[1], Err(ttrpc::Error::Eof)))?;
    ensure!(reason.contains(&format!("expected type {DATA}")), "{reason}");
    creation.stdout.clear();
    client.create(soon(), &creation).await?;
    let init = Remote::init(&client, "ttrpc-refused");
    init.start().await?;
    init.kill(9).await?;
    init.wait().await?;
    init.delete().await?;
    pod.finish(&client).await
}
