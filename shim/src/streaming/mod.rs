//! containerd's Streaming service: CRI sends standard streams over it with `io_type = "streaming"`, instead of by
//! FIFOs. A client opens a stream by its id, then names the stream's address in Create or Exec. Each stream ends
//! in a FIFO in the pod's directory, which the engine opens as any other (`fifos`); bytes are copied between it
//! and messages (`relay`). A client whose connection is lost opens the stream again by the same id.

mod fifos;
mod relay;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message, MessageFull};
use nacre_pod::Error;
use ttrpc::asynchronous::{ServerStream, Service, TtrpcContext};

use crate::messages::any;
use crate::proto::streaming::StreamInit;
use crate::proto::streaming_ttrpc::{Streaming, create_streaming};
use crate::status::status_of;

use fifos::Direction;
pub use fifos::Fifos;

/// The method table for a ttrpc server.
pub fn services(fifos: Fifos) -> HashMap<String, Service> {
    create_streaming(Arc::new(Streams(fifos)))
}

struct Streams(Fifos);

#[async_trait]
impl Streaming for Streams {
    async fn stream(&self, _: &TtrpcContext, stream: ServerStream<Any, Any>) -> ttrpc::Result<()> {
        let (sender, mut receiver) = stream.split();
        let Some(first) = receiver.recv().await? else {
            return Ok(());
        };
        let id = unpack::<StreamInit>(&first).map_err(status_of)?.id;
        let fifo = self.0.open(&id).map_err(status_of)?;
        sender.send(&any(&Empty::new())).await?;
        match fifo.direction {
            Direction::ToProcess => relay::input(&fifo, &sender, &mut receiver).await,
            Direction::FromProcess => relay::output(&fifo, &sender, &mut receiver).await,
        }
    }
}

/// Takes a message of this type out of an Any, whose type URL may have a host before the name.
fn unpack<M: MessageFull>(message: &Any) -> Result<M, Error> {
    let descriptor = M::descriptor();
    let expected = descriptor.full_name();
    if message.type_url.rsplit('/').next() != Some(expected) {
        let reason = format!("stream: expected type {expected}, got {:?}", message.type_url);
        return Err(Error::Refused(reason));
    }
    <M as Message>::parse_from_bytes(&message.value)
        .map_err(|error| Error::Refused(format!("stream: {expected}: {error}")))
}
