//! Pause and Resume.

use std::future::Future;

use super::{Event, Sandbox};
use crate::container::{Freeze, FreezeInput, TaskState};
use crate::container::{Reply, answer};
use crate::error::Error;
use crate::event::TaskEvent;
use crate::guest::{CallError, Guest};
use crate::process_id::ProcessKey;

impl Sandbox {
    pub(super) fn pause(&mut self, id: &str, reply: Reply<()>) {
        match self.begin_freeze(id, FreezeInput::Pause, "paused") {
            Ok((guest, tag)) => {
                let id = id.to_owned();
                self.freeze(
                    tag,
                    reply,
                    "pause container",
                    async move { guest.pause(&id).await },
                );
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn resume(&mut self, id: &str, reply: Reply<()>) {
        match self.begin_freeze(id, FreezeInput::Resume, "resumed") {
            Ok((guest, tag)) => {
                let id = id.to_owned();
                self.freeze(
                    tag,
                    reply,
                    "resume container",
                    async move { guest.resume(&id).await },
                );
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn begin_freeze(
        &mut self,
        id: &str,
        input: FreezeInput,
        wanted: &'static str,
    ) -> Result<(Guest, ProcessKey), Error> {
        let guest = self.guest();
        let container = self.container_mut(id)?;
        if !container.is_running() || container.freeze.next(input).is_none() {
            return Err(container.refuse(wanted));
        }
        let guest = guest?;
        container.freeze(input);
        Ok((guest, container.init.tag.clone()))
    }

    /// Asks the guest; the owner hears of it before containerd does.
    fn freeze(
        &self,
        tag: ProcessKey,
        reply: Reply<()>,
        step: &'static str,
        question: impl Future<Output = Result<(), CallError>> + Send + 'static,
    ) {
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let result = question.await.map_err(|error| error.into_error(step));
            // The owner is gone only with the shim.
            let _ = queue.send(Event::Froze(tag, result, reply)).await;
        });
    }

    pub(super) fn froze(&mut self, tag: &ProcessKey, result: Result<(), Error>, reply: Reply<()>) {
        let id = &tag.name.container;
        if let Some(container) = self.container_of_key(tag) {
            container.freeze(if result.is_ok() {
                FreezeInput::Done
            } else {
                FreezeInput::Failed
            });
            let runs = container.init.state == TaskState::Running;
            match container.freeze {
                Freeze::Frozen if result.is_ok() && runs => self.events.publish(&TaskEvent::Paused { id }),
                Freeze::Thawed if result.is_ok() && runs => self.events.publish(&TaskEvent::Resumed { id }),
                Freeze::Thawed | Freeze::Freezing | Freeze::Frozen | Freeze::Thawing => {}
            }
        }
        if let Err(error) = &result {
            crate::log::error(format_args!("{id}: {error}"));
        }
        answer(reply, result);
    }
}
