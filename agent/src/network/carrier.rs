//! Waits until links can send: the driver of a device that was just attached reports its carrier a little
//! later, and until then the kernel drops what is sent. Asks again at each change of a link; never polls.

use std::time::Duration;

use nacre_netlink::{Socket, link};
use nacre_protocol::agent::Link;

use super::MAX_LINKS;
use crate::error::Error;
use crate::kernel_reports::KernelReports;

/// How long the links together may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Waits until those of `links` that are up have a carrier. `changes` reports what has changed since the links
/// were set up.
pub async fn wait_for_carriers(changes: &KernelReports, links: &[Link]) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(listing)?;
    let waiting = async {
        loop {
            let Some(name) = without_carrier(&mut socket, links)? else {
                return Ok(());
            };
            let changed = changes.next().await;
            changed.map_err(|error| Error::Network(format!("link {name}: {error}")))?;
        }
    };
    match tokio::time::timeout(DEADLINE, waiting).await {
        Ok(result) => result,
        Err(_elapsed) => {
            let name = without_carrier(&mut socket, links)?.unwrap_or_default();
            let seconds = DEADLINE.as_secs();
            Err(Error::Network(format!(
                "link {name}: no carrier within {seconds} s"
            )))
        }
    }
}

/// The first of `links` that is up without a carrier.
fn without_carrier(socket: &mut Socket, links: &[Link]) -> Result<Option<String>, Error> {
    let present = socket.dump(link::list(), MAX_LINKS, link::parse);
    let present = present.map_err(listing)?;
    let lacks = |wanted: &&Link| {
        let mut found = present.iter().filter(|found| found.name == wanted.name);
        wanted.up && found.any(|found| !found.has_carrier())
    };
    Ok(links.iter().find(lacks).map(|link| link.name.clone()))
}

fn listing(error: nacre_netlink::Error) -> Error {
    Error::Network(format!("listing the guest's links: {error}"))
}
