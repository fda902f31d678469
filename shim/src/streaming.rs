//! containerd's Streaming service, over which CRI sends standard streams with `io_type = "streaming"`. Nacre
//! refuses it: a FIFO is spliced to the guest, while such a stream would be copied into messages by containerd
//! and by the shim, which run on the same host. Without this service CRI would only report that it is missing.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nacre_pod::Error;
use ttrpc::asynchronous::{ServerStream, Service, TtrpcContext};

use crate::proto::streaming_ttrpc::{Streaming, create_streaming};
use crate::status::status_of;

const REFUSED: &str = "io_type = \"streaming\": Nacre uses FIFOs; remove io_type from the runtime's section of \
    containerd's configuration";

/// The method table for a ttrpc server.
pub fn services() -> HashMap<String, Service> {
    create_streaming(Arc::new(Refuse))
}

struct Refuse;

#[async_trait]
impl Streaming for Refuse {
    async fn stream(&self, _: &TtrpcContext, _: ServerStream<Any, Any>) -> ttrpc::Result<()> {
        Err(status_of(Error::NotImplemented(REFUSED)))
    }
}
