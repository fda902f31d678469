//! The calls that set up the guest: Setup, the first one, and ConfigureNetwork for links that come later.

use nacre_protocol::agent::{self, Network, SetupRequest, SetupResponse};
use nacre_protocol::text::printable;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{CallError, Guest, context};
use crate::guest_text::MAX_NAME;
use crate::mount::{IdMap, IdRange};
use crate::pod_spec::PodSpec;

/// How many random bytes the guest gets. getrandom(2) gives up to 256 at once, and never fewer.
const ENTROPY: usize = 64;

impl Guest {
    /// The first call: compares the builds, seeds the guest's random number generator, and sets its clock and
    /// host name, the pod's user namespace, network and sysctls.
    ///
    /// # Errors
    /// [`CallError`], with FAILED_PRECONDITION if the builds differ.
    pub async fn setup(
        &self,
        hostname: &str,
        network: Network,
        spec: &PodSpec,
    ) -> Result<SetupResponse, CallError> {
        let IdMap { uids, gids } = spec.users.clone().unwrap_or_default();
        let request = SetupRequest {
            build_id: nacre_protocol::BUILD_ID.to_owned(),
            realtime_ns: crate::clock::realtime_ns(),
            hostname: hostname.to_owned(),
            network: Some(network).into(),
            sysctls: spec.sysctls.clone().into_iter().collect(),
            uids: uids.into_iter().map(id_range).collect(),
            gids: gids.into_iter().map(id_range).collect(),
            entropy: entropy()?,
            ..Default::default()
        };
        let mut response = self
            .within_deadline(self.client.setup(context(), &request))
            .await?;
        for text in [&mut response.build_id, &mut response.kernel_release] {
            *text = printable(text, MAX_NAME);
        }
        Ok(response)
    }

    /// Sets up links that were attached to the VM after [`Guest::setup`].
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn configure_network(&self, network: &Network) -> Result<(), CallError> {
        self.within_deadline(self.client.configure_network(context(), network))
            .await?;
        Ok(())
    }
}

/// Random bytes of the host.
fn entropy() -> Result<Vec<u8>, CallError> {
    let mut bytes = vec![0; ENTROPY];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(ENTROPY) => Ok(bytes),
        drawn => Err(CallError::Lost(format!("drawing random bytes: {drawn:?}"))),
    }
}

fn id_range(range: IdRange) -> agent::IdRange {
    agent::IdRange {
        container: range.container,
        host: range.host,
        size: range.size,
        ..Default::default()
    }
}
