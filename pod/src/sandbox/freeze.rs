//! Pause and Resume. The sandbox learns of the guest's answer before the caller does.

use super::Sandbox;
use super::progress::explained;
use super::queue::Event;
use crate::container::{self, Reply, answer};
use crate::error::Error;
use crate::log;
use crate::process_id::ProcessKey;

impl Sandbox {
    pub(super) fn pause(&mut self, id: &str, reply: Reply<()>) {
        self.begin_freeze(id, container::Event::PauseCalled, "paused", reply);
    }

    pub(super) fn resume(&mut self, id: &str, reply: Reply<()>) {
        self.begin_freeze(id, container::Event::ResumeCalled, "resumed", reply);
    }

    fn begin_freeze(&mut self, id: &str, event: container::Event, wanted: &'static str, reply: Reply<()>) {
        if let Err(error) = self.refuse_pause(id, wanted) {
            return answer(reply, Err(error));
        }
        let refused = match self.container(id) {
            Ok(container) => container.refuse(wanted),
            Err(error) => return answer(reply, Err(error)),
        };
        match (self.feed(id, event), self.containers.get_mut(id)) {
            (Ok(()), Some(container)) => container.freezing = Some(reply),
            (Ok(()), None) | (Err(_), _) => answer(reply, Err(refused)),
        }
    }

    /// Asks the guest to freeze the container's processes, or to thaw them.
    pub(super) fn ask_freezer(&mut self, id: &str, freeze: bool) {
        let (guest, mut progress) = (self.guest(), self.progress.subscribe());
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let key = container.init.key.clone();
        self.queue.send_result(async move {
            let id = &key.name.container;
            let result = match guest {
                Ok(guest) if freeze => {
                    explained(guest.pause(id).await, "pause container", &mut progress).await
                }
                Ok(guest) => explained(guest.resume(id).await, "resume container", &mut progress).await,
                Err(error) => Err(error),
            };
            Event::FreezeAnswered(key, result)
        });
    }

    pub(super) fn freeze_answered(&mut self, init: &ProcessKey, result: Result<(), Error>) {
        let event = match &result {
            Ok(()) => container::Event::FreezeDone,
            Err(error) => {
                log::error(format_args!("{}: {error}", init.name));
                container::Event::FreezeFailed
            }
        };
        self.advance(init, event);
        let reply = self
            .container_of_key(init)
            .and_then(|container| container.freezing.take());
        if let Some(reply) = reply {
            answer(reply, result);
        }
    }
}
