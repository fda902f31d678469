//! OOM kills in the guest: TaskOOM goes out before the TaskExit that follows from it.

use super::Sandbox;
use super::queue::Event;
use crate::event::TaskEvent;
use crate::guest::CallError;
use crate::log;
use crate::process_id::ProcessKey;

/// Most TaskOOM events of one container. A guest can cause any number of kills, and the events that may wait
/// for a containerd that is away are few.
const MAX_EVENTS: u32 = 256;

impl Sandbox {
    /// Asks the agent for OOM kills beyond `known` in the container of the init process `key`; one question
    /// at a time.
    pub(super) fn watch_oom_kills(&self, key: &ProcessKey, known: u64) {
        let Ok(guest) = self.guest() else { return };
        let (key, queue) = (key.clone(), self.queue.clone());
        tokio::spawn(async move {
            match guest.wait_oom(&key.name.container, known).await {
                Ok(kills) if kills > known => queue.send(Event::OutOfMemory(key, kills)).await,
                Ok(kills) => log::error(format_args!(
                    "{}: the agent reports {kills} OOM kills after {known}; it is not asked again",
                    key.name
                )),
                // The container was deleted, or the VM has ended; this call has no deadline.
                Err(
                    CallError::Answer(ttrpc::Code::NOT_FOUND, _) | CallError::Lost(_) | CallError::TimedOut,
                ) => {}
                Err(CallError::Answer(code, message)) => {
                    log::warn(format_args!(
                        "waiting for OOM kills of {}: {code:?}: {message}",
                        key.name
                    ));
                }
            }
        });
    }

    pub(super) fn out_of_memory(&mut self, key: &ProcessKey, kills: u64) {
        if self.container_of_key(key).is_none() {
            return;
        }
        self.count_oom_kills(&key.name.container, kills);
        let Some(container) = self.container_of_key(key) else {
            return;
        };
        if container.lifecycle.init().end().is_some() || container.oom_events >= MAX_EVENTS {
            return;
        }
        let known = container.oom_kills;
        self.watch_oom_kills(key, known);
    }

    /// Publishes TaskOOM if the container has had more than the known number of kills.
    pub(super) fn count_oom_kills(&mut self, id: &str, kills: u64) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if kills <= container.oom_kills || container.lifecycle.init().end().is_some() {
            return;
        }
        container.oom_kills = kills;
        container.oom_events = container.oom_events.saturating_add(1);
        if container.oom_events <= MAX_EVENTS && container.is_published {
            self.events.publish(&TaskEvent::OutOfMemory { id });
        }
        if container.oom_events == MAX_EVENTS {
            log::warn(format_args!(
                "{id}: {MAX_EVENTS} TaskOOM events; no more are published"
            ));
        }
    }
}
