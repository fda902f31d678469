//! What the guest asks for: the agent is asked for the guest's need of memory, one question at a time, and the
//! VM grows and shrinks by the answers. A guest that is taken over may answer anything.

use std::time::{Duration, Instant};

use super::super::Sandbox;
use super::super::queue::Event;
use super::Change;
use super::job::plugged_memory;
use crate::guest::CallError;
use crate::log;

/// The least time between two changes that the guest asks for and that are no growth. Growth ends at the
/// ceiling, so the two together bound what a hostile guest can cause.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most refusals of the guest that are logged in a VM's life.
const MAX_LOGGED: u32 = 8;
/// The pauses after refusals are 1, 2, 4 s, and so on up to this power of 2.
const MAX_SHIFT: u32 = 8;

/// The state of the questions.
#[derive(Debug, Default)]
pub(super) struct Demands {
    /// The agent is asked, or will be after a refusal.
    is_followed: bool,
    /// The agent has refused, and is not asked again yet.
    is_refused: bool,
    /// How often it has refused.
    refusals: u32,
    /// When a change that the guest asked for began.
    last: Option<Instant>,
}

impl Demands {
    /// The agent has refused to answer: how long it is not asked.
    fn refused(&mut self) -> Duration {
        self.is_refused = true;
        let shift = self.refusals.min(MAX_SHIFT);
        self.refusals = self.refusals.saturating_add(1);
        Duration::from_secs(1 << shift)
    }
}

impl Sandbox {
    /// The agent may be asked again.
    pub(in super::super) fn follow_memory_again(&mut self) {
        if let Some(sizing) = &mut self.sizing
            && std::mem::take(&mut sizing.demands.is_refused)
        {
            sizing.demands.is_followed = false;
        }
        self.follow_memory();
    }

    /// Asks the agent for the need of memory, if the VM may get more or has more than it must.
    pub(in super::super) fn follow_memory(&mut self) {
        let Ok(guest) = self.guest() else { return };
        let Some(sizing) = &mut self.sizing else { return };
        let target = sizing.target(&sizing.needed, sizing.given.memory_mib);
        let is_fixed =
            target.ceiling_mib == target.memory_mib && target.memory_mib == sizing.given.memory_mib;
        if sizing.demands.is_followed || is_fixed {
            return;
        }
        sizing.demands.is_followed = true;
        sizing.given.ceiling_mib = target.ceiling_mib;
        let memory = plugged_memory(sizing.needed.vm(), &sizing.given);
        self.queue
            .send_result(async move { Event::MemoryWanted(guest.wait_memory(memory).await) });
    }

    /// The guest needs another amount of memory.
    pub(in super::super) fn memory_wanted(&mut self, wanted: Result<u32, CallError>) {
        let Some(sizing) = &mut self.sizing else { return };
        let plugged_mib = match wanted {
            Ok(plugged_mib) => plugged_mib,
            // The VM has ended. This call has no deadline.
            Err(CallError::Lost(_) | CallError::TimedOut) => return,
            Err(CallError::Answer(code, message)) => {
                let again = sizing.demands.refused();
                if sizing.demands.refusals <= MAX_LOGGED {
                    log::warn(format_args!(
                        "the pod's memory does not grow for {} s: {code:?}: {message}",
                        again.as_secs()
                    ));
                }
                return self.queue.send_after(again, Event::MemoryFollowed);
            }
        };
        sizing.demands.is_followed = false;
        let wanted_mib = sizing.needed.vm().boot_mib.saturating_add(plugged_mib);
        let to = sizing.target(&sizing.needed, wanted_mib);
        let now = Instant::now();
        let is_recent = |last: Instant| now.saturating_duration_since(last) < INTERVAL;
        let grows = to.memory_mib > sizing.given.memory_mib;
        if !grows && (to == sizing.given || sizing.demands.last.is_some_and(is_recent)) {
            return self.queue.send_after(INTERVAL, Event::MemoryFollowed);
        }
        sizing.demands.last = Some(now);
        self.change_size(Change::Demand(plugged_mib));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_after_refusals_grow_up_to_a_bound() {
        let mut demands = Demands::default();
        let pauses: Vec<u64> = (0..10).map(|_| demands.refused().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
        demands.refusals = u32::MAX;
        assert_eq!(demands.refused().as_secs(), 256);
    }
}
