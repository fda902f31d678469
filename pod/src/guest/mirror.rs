//! The calls about mirrors; see [`crate::mirror`].

use nacre_protocol::agent::{ChangeMirrorRequest, ChangeMirrorResponse, MirrorOperation, MirrorRef};
use nacre_protocol::text::printable;

use super::{CallError, Guest, context};
use crate::guest_text::MAX_MESSAGE;

impl Guest {
    /// Carries `operations` on a mirror out until one fails, which the reply then names.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn change_mirror(
        &self,
        mirror: u32,
        operations: Vec<MirrorOperation>,
    ) -> Result<ChangeMirrorResponse, CallError> {
        let request = ChangeMirrorRequest {
            mirror,
            operations,
            ..Default::default()
        };
        let call = self.client.change_mirror(context(), &request);
        let mut response = self.within_deadline(call).await?;
        response.error = printable(&response.error, MAX_MESSAGE);
        Ok(response)
    }

    /// Removes a mirror that no container uses.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn remove_mirror(&self, mirror: u32) -> Result<(), CallError> {
        let request = MirrorRef {
            mirror,
            ..Default::default()
        };
        self.within_deadline(self.client.remove_mirror(context(), &request))
            .await?;
        Ok(())
    }
}
