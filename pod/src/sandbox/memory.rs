//! Processes that the guest's kernel killed for want of memory: containerd hears of each time before it hears of an end
//! that came of it.

use super::{Event, Sandbox};
use crate::event::TaskEvent;
use crate::guest::CallError;
use crate::process_id::ProcessKey;

/// Most often that containerd is told of one container: a guest may kill without end, and the events that wait for a
/// containerd that is away are few.
const MAX_EVENTS: u32 = 256;

impl Sandbox {
    /// Learns of kills in the container of the init `tag`, one after the other.
    pub(super) fn watch_memory(&self, tag: &ProcessKey, known: u64) {
        let Ok(guest) = self.guest() else { return };
        let (tag, queue) = (tag.clone(), self.queue.clone());
        tokio::spawn(async move {
            match guest.wait_oom(&tag.name.container, known).await {
                Ok(kills) if kills > known => {
                    // The owner is gone only with the shim.
                    let _ = queue.send(Event::OutOfMemory(tag, kills)).await;
                }
                Ok(kills) => crate::log::error(format_args!(
                    "{}: the agent counts {kills} kills after {known}; it is not asked again",
                    tag.name
                )),
                // The container is gone, or the VM.
                Err(CallError::Answer(ttrpc::Code::NOT_FOUND, _) | CallError::Lost(_)) => {}
                Err(CallError::Answer(code, message)) => {
                    crate::log::warn(format_args!(
                        "watching memory of {}: {code:?}: {message}",
                        tag.name
                    ));
                }
            }
        });
    }

    pub(super) fn out_of_memory(&mut self, tag: &ProcessKey, kills: u64) {
        self.count_kills(&tag.name.container, kills);
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        if container.init.end().is_some() || container.oom_events >= MAX_EVENTS {
            return;
        }
        let known = container.oom_kills;
        self.watch_memory(tag, known);
    }

    /// Tells containerd where `kills` is news.
    pub(super) fn count_kills(&mut self, id: &str, kills: u64) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if kills <= container.oom_kills || container.init.end().is_some() {
            return;
        }
        container.oom_kills = kills;
        container.oom_events = container.oom_events.saturating_add(1);
        if container.oom_events <= MAX_EVENTS {
            self.events.publish(&TaskEvent::OutOfMemory { id });
        }
        if container.oom_events == MAX_EVENTS {
            crate::log::warn(format_args!(
                "{id}: {MAX_EVENTS} times out of memory; no more of it is told"
            ));
        }
    }
}
