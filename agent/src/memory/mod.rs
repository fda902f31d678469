//! The guest's memory as it grows and shrinks: finds out when the containers need more than the VM has
//! ([`policy`], pure), sets the limit at which the kernel slows them down until it is plugged in, and waits
//! for plugged memory to be usable. The service calls it; what is plugged in is the engine's decision. Nothing
//! polls for a need: the kernel reports it. Only memory that is not needed any more is looked for by a timer,
//! and only while some is plugged in.

mod high;
mod policy;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nacre_protocol::agent::PluggedMemory;
use nacre_protocol::guest::cgroup_path;
use tokio::sync::watch;
use tokio::time::Instant;

use self::high::High;
use self::policy::Usage;
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::kernel_reports::KernelReports;
use crate::pci;
use crate::pod;

const MEMINFO: &str = "/proc/meminfo";
/// Time between two looks for memory that is not needed any more.
const INTERVAL: Duration = Duration::from_secs(10);
/// How many looks in a row must find it unneeded.
const LOOKS: u32 = 3;
/// How long the kernel may take to make the next block of plugged memory usable.
const ARRIVAL: Duration = Duration::from_secs(20);

/// Memory that the VM has besides that at boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// What it was given, MiB.
    pub plugged_mib: u32,
    /// What it may be given, MiB.
    pub most_mib: u32,
}

impl From<&PluggedMemory> for Given {
    fn from(memory: &PluggedMemory) -> Self {
        Self {
            plugged_mib: memory.mib,
            most_mib: memory.most_mib,
        }
    }
}

/// The guest's memory.
pub struct Memory {
    /// MemTotal before anything was plugged in, KiB.
    total_at_boot: u64,
    /// What the engine said last.
    given: watch::Sender<Given>,
    /// The driver of virtio-mem has its device, which is attached when the VM first gets memory.
    has_device: AtomicBool,
    /// The cgroup of all containers.
    containers: Cgroup,
    /// Its memory.high.
    high: High,
}

impl Memory {
    /// The memory of a guest that has just booted.
    pub fn at_boot() -> Result<Self, Error> {
        let containers = Cgroup::new(Path::new(&cgroup_path("")));
        Ok(Self {
            total_at_boot: total()?,
            given: watch::Sender::default(),
            has_device: AtomicBool::new(false),
            high: High::new(containers.directory().join("memory.high")),
            containers,
        })
    }

    /// Takes note of what the VM has been given, finds the device that plugs it in if it is new, and waits
    /// until the memory is usable, for [`ARRIVAL`] per block at most. Returns the usable memory besides that at boot,
    /// MiB.
    pub async fn give(&self, given: Given) -> Result<u32, Error> {
        if given.plugged_mib > 0 && !self.has_device.load(Ordering::Relaxed) {
            pci::find_attached().await?;
            self.has_device.store(true, Ordering::Relaxed);
        }
        let grows = given.plugged_mib > self.given.borrow().plugged_mib;
        let before = self.plugged_mib(total()?);
        let now = if grows && !has_arrived(before, given.plugged_mib) {
            self.arrival(given).await?
        } else {
            before
        };
        self.given.send_replace(given);
        self.limit(total()?, given).await?;
        Ok(now)
    }

    async fn arrival(&self, given: Given) -> Result<u32, Error> {
        let uevents = uevents()?;
        let mut arrived = 0;
        let mut late = Instant::now() + ARRIVAL;
        loop {
            let total = total()?;
            let now = self.plugged_mib(total);
            // The containers may use each block at once.
            self.limit(total, given).await?;
            if has_arrived(now, given.plugged_mib) {
                return Ok(now);
            }
            if now > arrived {
                arrived = now;
                late = Instant::now() + ARRIVAL;
            }
            match tokio::time::timeout_at(late, uevents.next()).await {
                Ok(next) => drop(next.map_err(receiving)?),
                Err(_late) => return Ok(now),
            }
        }
    }

    /// Waits until the containers need more memory than is plugged in, or much less: the memory besides that
    /// at boot that they need, MiB.
    pub async fn wanted(&self, given: Given) -> Result<u32, Error> {
        self.given.send_replace(given);
        let mut changes = self.given.subscribe();
        let uevents = uevents()?;
        let Some(mut events) = self.containers.memory_events()? else {
            return Err(Error::Runtime("the guest has no memory controller".to_owned()));
        };
        let mut looks = Looks::new(Instant::now());
        loop {
            let given = *changes.borrow_and_update();
            let meminfo = read(MEMINFO)?;
            // First: lowering memory.high reclaims, which the usage then shows.
            self.limit(policy::total(&meminfo), given).await?;
            let usage = self.usage(&meminfo)?;
            if let Some(wanted) = policy::growth(usage, self.total_at_boot, given) {
                return Ok(wanted);
            }
            tokio::select! {
                changed = events.changed() => drop(changed.map_err(receiving)?),
                next = uevents.next() => next.map_err(receiving)?,
                // The sender is owned by `self`.
                _ = changes.changed() => looks = Looks::new(Instant::now()),
                () = until(looks.next, given) => {
                    let wanted = policy::shrinkage(self.usage(&read(MEMINFO)?)?, self.total_at_boot, given);
                    if looks.record(Instant::now(), wanted.is_some())
                        && let Some(wanted) = wanted
                    {
                        return Ok(wanted);
                    }
                }
            }
        }
    }

    /// The usable memory besides that at boot, MiB, if all usable memory is `total` KiB.
    fn plugged_mib(&self, total: u64) -> u32 {
        let plugged = total.saturating_sub(self.total_at_boot);
        u32::try_from(plugged / 1024).unwrap_or(u32::MAX)
    }

    fn usage(&self, meminfo: &str) -> Result<Usage, Error> {
        let file = |name| read(self.containers.directory().join(name));
        Ok(Usage::parse(
            meminfo,
            &file("memory.current")?,
            &file("memory.stat")?,
        ))
    }

    /// Sets the containers' memory.high, if all usable memory is `total` KiB.
    async fn limit(&self, total: u64, given: Given) -> Result<(), Error> {
        self.high.set(policy::high(total, given)).await
    }
}

/// All usable memory, KiB.
fn total() -> Result<u64, Error> {
    Ok(policy::total(&read(MEMINFO)?))
}

/// Whether memory of `mib` MiB is usable if `usable` MiB are. The descriptions of its pages, one part in 64, may
/// be in the memory itself.
fn has_arrived(usable: u32, mib: u32) -> bool {
    usable >= mib.saturating_sub(mib / 64)
}

fn read(file: impl AsRef<Path>) -> Result<String, Error> {
    fs::read_to_string(&file).map_err(Error::file("reading", file.as_ref()))
}

fn uevents() -> Result<KernelReports, Error> {
    // In any other network namespace, a socket receives none of memory.
    let opened =
        pod::in_initial_network(|_| KernelReports::of_devices())?.unwrap_or_else(KernelReports::of_devices);
    opened.map_err(Error::system("opening a socket for the kernel's uevents"))
}

fn receiving(error: io::Error) -> Error {
    Error::system("waiting for the kernel to report memory")(error)
}

/// The looks for memory that is not needed any more.
struct Looks {
    /// When the next one is due. Other events do not postpone it: under load, they never stop.
    next: Instant,
    /// How many in a row have found unneeded memory.
    unneeded: u32,
}

impl Looks {
    /// None so far.
    fn new(now: Instant) -> Self {
        Self {
            next: now + INTERVAL,
            unneeded: 0,
        }
    }

    /// Records what one has found; true if enough in a row have found unneeded memory.
    fn record(&mut self, now: Instant, is_unneeded: bool) -> bool {
        self.next = now + INTERVAL;
        self.unneeded = if is_unneeded {
            self.unneeded.saturating_add(1)
        } else {
            0
        };
        self.unneeded >= LOOKS
    }
}

/// Waits until `time` if memory is plugged in, otherwise for ever.
async fn until(time: Instant, given: Given) {
    if given.plugged_mib == 0 {
        return std::future::pending().await;
    }
    // Nothing ends it early.
    let _ = tokio::time::timeout_at(time, std::future::pending::<()>()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_looks_in_a_row_must_find_unneeded_memory() {
        let mut now = Instant::now();
        let mut looks = Looks::new(now);
        let mut look = |is_unneeded| {
            assert_eq!(looks.next, now + INTERVAL);
            now = looks.next + Duration::from_millis(3);
            looks.record(now, is_unneeded)
        };
        assert_eq!([true, true, false].map(&mut look), [false; 3]);
        assert_eq!([true, true, true].map(&mut look), [false, false, true]);
    }

    /// As the loop that waits for a need does: another event ends each wait early.
    #[test]
    fn events_do_not_postpone_a_look() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let given = Given {
            plugged_mib: 128,
            most_mib: 256,
        };
        let due = Instant::now() + Duration::from_millis(20);
        let mut events = 0_u64;
        runtime.block_on(async {
            loop {
                tokio::select! {
                    biased;
                    () = until(due, given) => break,
                    () = tokio::task::yield_now() => events += 1,
                }
            }
        });
        assert!(events > 0 && Instant::now() >= due);
    }
}
