//! The pause container of a pod: the container that CRI makes first and deletes last. It stands for the pod's
//! VM and has no process, no root file system and no streams; the guest does not know it. This module answers
//! its calls: it goes through the states of any container, and a signal ends it as it ends the pause program.

use super::queue::Event;
use super::{Sandbox, failed};
use crate::container::{self, Reply, TaskState, answer};
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::{CgroupFiles, SIGKILL};
use crate::hooks::Point;
use crate::pod_spec::Lifetime;
use crate::process_id::ProcessId;
use crate::{cgroup_files, clock};

const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;
/// The highest signal number of Linux.
const MAX_SIGNAL: u32 = 64;

impl Sandbox {
    /// True for the pod's pause container.
    pub(super) fn is_pause(&self, id: &str) -> bool {
        self.spec.lifetime == Lifetime::PauseContainer && id == self.identity.id
    }

    /// An error if `id` is the pause container, which can't be `wanted`.
    pub(super) fn refuse_pause(&self, id: &str, wanted: &'static str) -> Result<(), Error> {
        if self.is_pause(id) {
            let id = id.to_owned();
            return Err(Error::PauseContainer { id, wanted });
        }
        Ok(())
    }

    /// Starts the pause container: its hooks run, and nothing else.
    pub(super) fn start_pause(&self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let (key, pid, hooks) = (container.init.key.clone(), container.pid, container.hooks.clone());
        self.queue.send_result(async move {
            hooks.run_all(Point::Poststart, pid).await;
            Event::Started(key, Ok(None))
        });
    }

    /// Sends `signal` to the pause container. SIGKILL, SIGTERM and SIGINT end it, any other is ignored.
    pub(super) fn kill_pause(&mut self, id: &str, signal: u32, reply: Reply<()>) {
        let sent = self.end_pause(id, signal);
        answer(reply, sent);
    }

    fn end_pause(&mut self, id: &str, signal: u32) -> Result<(), Error> {
        let name = ProcessId::init(id);
        let (container, _) = self.find(&name)?;
        match Self::state_of(container, &name) {
            TaskState::Created | TaskState::Starting | TaskState::Running => {}
            TaskState::Creating => return Err(self.refuse_process(&name, "killed")),
            TaskState::Exiting | TaskState::Stopped => return Err(Error::Finished(name)),
        }
        let status = match signal {
            SIGKILL => 128 + SIGKILL,
            SIGINT | SIGTERM => 0,
            0..=MAX_SIGNAL => return Ok(()),
            other => {
                let expected = format!("signal: expected a number in 0..={MAX_SIGNAL}, got {other}");
                return Err(Error::Refused(expected));
            }
        };
        let exit = Exit {
            status,
            at_ns: clock::realtime_ns(),
            oom_kills: 0,
        };
        let key = container.init.key.clone();
        self.close_pause_streams(id);
        self.advance(&key, container::Event::Exited(String::new(), exit));
        Ok(())
    }

    /// Nobody writes to the pause container's outputs: closes them.
    fn close_pause_streams(&mut self, id: &str) {
        let addresses = match self.containers.get(id) {
            Some(container) => container.init.streams.addresses().to_vec(),
            None => return,
        };
        for address in addresses {
            self.expected_streams.remove(&address);
        }
    }

    /// True if `id` is the pod's own, which no container has: the Sandbox API made the pod.
    pub(super) fn is_pod_without_pause(&self, id: &str) -> bool {
        self.spec.lifetime == Lifetime::SandboxApi
            && id == self.identity.id
            && !self.containers.contains_key(id)
    }

    /// Answers the counters of the pause container, or of the pod's id if there is none: the sums over the
    /// pod's containers, as the guest counts them.
    /// Those of the Sandbox API are this host's ([`PodCall::Stats`](super::PodCall)); `nacre overhead` is the
    /// difference between the two.
    pub(super) fn pod_stats(&self, reply: Reply<CgroupFiles>) {
        let guest = match self.guest() {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        let is_counted = |state| matches!(state, TaskState::Starting | TaskState::Running);
        let counted = self
            .containers
            .iter()
            .filter(|(id, container)| !self.is_pause(id) && is_counted(container.lifecycle.init().state));
        let ids: Vec<String> = counted.map(|(id, _)| id.clone()).collect();
        tokio::spawn(async move {
            let mut sum = CgroupFiles::default();
            for id in ids {
                match guest.stats(&id).await {
                    Ok(files) => sum = cgroup_files::sum(&sum, &files),
                    // Most likely it has exited since.
                    Err(error) => crate::log::info(failed(
                        "read counters of the pod",
                        format_args!("{id}: {}", error.into_error("read counters")),
                        None,
                    )),
                }
            }
            answer(reply, Ok(sum));
        });
    }
}
