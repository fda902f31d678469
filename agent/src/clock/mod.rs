//! Keeps the guest's wall clock at the host's. The guest's clock counts the TSC, the host's is disciplined by
//! NTP or set by its administrator, so that the two drift apart by seconds a day.
//!
//! The agent measures the difference every [`INTERVAL`] by the host's clock that KVM offers as a PTP device
//! ([`host`]), decides what to do ([`correction`], pure) and has the kernel do it ([`adjust`]). If KVM
//! offers no clock, the engine measures by the calls ReadClock and CorrectClock instead, which end here, too.
//! Only PID 1 of a guest does this; an agent that runs standalone never changes a clock.

mod adjust;
mod correction;
mod host;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_settime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

use self::adjust::apply;
pub use self::correction::Measurement;
use self::correction::{Occasion, decide};
use self::host::HostClock;
use crate::error::Error;
use crate::{async_fd, report};

/// Time between two measurements. A guest that stood still while its host was suspended is right again after
/// this time; a drift of 500 ppm, the most that NTP corrects, amounts to 5 ms.
const INTERVAL: Duration = Duration::from_secs(10);

/// The guest's wall clock.
pub struct Clock {
    /// Notified by [`Clock::set`].
    was_set: Notify,
    /// Whether the host's clock cannot be read in the guest.
    is_lost: watch::Sender<bool>,
}

impl Clock {
    /// The clock, which the task that is started here keeps at the host's once it has been set.
    pub fn start() -> Arc<Self> {
        let clock = Arc::new(Self {
            was_set: Notify::new(),
            is_lost: watch::Sender::new(false),
        });
        let task = Arc::clone(&clock);
        tokio::spawn(async move {
            if let Err(error) = task.follow().await {
                // No device: usual on a host whose own clock source is not the TSC.
                if error.kind() != io::ErrorKind::NotFound {
                    report::to_console(&format!(
                        "following the host's clock is left to the engine: {error}"
                    ));
                }
            }
            task.is_lost.send_replace(true);
        });
        clock
    }

    /// Sets the clock to `since_epoch`, which the host read a moment ago. The exact time follows at once.
    pub fn set(&self, since_epoch: Duration) -> Result<(), Error> {
        let time = Timespec::try_from(since_epoch).map_err(|_| Error::BadRequest {
            what: format!("realtime_ns: {since_epoch:?} since the epoch does not fit a timespec"),
        })?;
        clock_settime(ClockId::Realtime, time).map_err(Error::system("setting the clock"))?;
        self.was_set.notify_one();
        Ok(())
    }

    /// Waits until the host's clock cannot be read in the guest.
    pub async fn lost(&self) {
        // Fails only if the sender is dropped, which `self` owns.
        let _ = self.is_lost.subscribe().wait_for(|is_lost| *is_lost).await;
    }

    /// Corrects the clock by what the engine has measured.
    pub fn correct(&self, measured: Measurement) -> Result<(), Error> {
        apply(decide(measured, Occasion::Running)).map_err(Error::system("correcting the clock"))
    }

    /// Measures and corrects for ever; returns the error of the device.
    async fn follow(&self) -> io::Result<()> {
        self.was_set.notified().await;
        let host = HostClock::open()?;
        let timer = timer()?;
        let mut occasion = Occasion::Setup;
        loop {
            apply(decide(host.measure()?, occasion))?;
            occasion = tokio::select! {
                expired = expiry(&timer) => expired.map(|()| Occasion::Running)?,
                () = self.was_set.notified() => Occasion::Setup,
            };
        }
    }
}

/// A timer that expires every [`INTERVAL`]. A timerfd, because the event loop's own timer wakes the vCPU
/// several times for a wait of seconds.
fn timer() -> io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    let interval = Timespec::try_from(INTERVAL).map_err(io::Error::other)?;
    let times = Itimerspec {
        it_interval: interval,
        it_value: interval,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
    async_fd::register_for(timer, Interest::READABLE)
}

async fn expiry(timer: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = timer.readable().await?;
        let mut count = [0; 8];
        if let Ok(read) = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut count)?)) {
            return read.map(drop);
        }
    }
}
