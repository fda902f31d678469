//! The calls that set up the guest: Setup, the first one, and ConfigureNetwork for links that come later.

use nacre_protocol::agent::{self, Network, SetupRequest, SetupResponse};
use nacre_protocol::text::printable;

use super::{CallError, Guest, context};
use crate::guest_text::MAX_NAME;
use crate::mount::{IdMap, IdRange};
use crate::pod_spec::PodSpec;

impl Guest {
    /// The first call: compares the builds, and sets the guest's clock and host name, the pod's user namespace, network
    /// and sysctls.
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

fn id_range(range: IdRange) -> agent::IdRange {
    agent::IdRange {
        container: range.container,
        host: range.host,
        size: range.size,
        ..Default::default()
    }
}
