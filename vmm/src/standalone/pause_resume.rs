//! Pauses and resumes a guest many times while it works, and measures that (`--pause-resume`). Called by the
//! standalone mode on the main thread, once the guest has connected.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nacre_vmm::machine::{Machine, PauseError};
use nacre_vmm::main_loop::{self, Inputs, StopReason};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// The guest runs until the next of these ticks after it was resumed: long enough for an I/O operation or two,
/// also under emulation, so that a pause finds some in flight.
const TICK: Duration = Duration::from_millis(5);

/// A timer with [`TICK`], and how often to pause. Created before the main thread is confined, which forbids
/// new timers.
pub struct Cycles {
    count: u32,
    timer: TimerFd,
}

impl Cycles {
    /// Prepares `count` cycles.
    pub fn new(count: u32) -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("creating a timer")?;
        let expiration = Expiration::Interval(TimeSpec::from_duration(TICK));
        timer
            .set(expiration, TimerSetTimeFlags::empty())
            .context("setting a timer")?;
        Ok(Self { count, timer })
    }

    /// Pauses and resumes `machine`, which handles `inputs` meanwhile. Prints the durations. Returns the
    /// reason to stop if there is one.
    pub fn run(&self, machine: &mut Machine, inputs: Inputs<'_>) -> anyhow::Result<Option<StopReason>> {
        let (mut pauses, mut resumes) = (Vec::new(), Vec::new());
        let mut stop = None;
        for _ in 0..self.count {
            let started = Instant::now();
            match machine.pause() {
                Ok(()) => {}
                Err(PauseError::Ended) => break,
                Err(error) => return Err(error).context("pausing the guest"),
            }
            let paused = Instant::now();
            match machine.resume() {
                Ok(()) => {}
                Err(PauseError::Ended) => break,
                Err(error) => return Err(error).context("resuming the guest"),
            }
            resumes.push(paused.elapsed());
            pauses.push(paused - started);
            match self.run_until_tick(machine, inputs)? {
                StopReason::Requested => {}
                reason @ (StopReason::VmExited(_) | StopReason::ShimGone(_)) => {
                    stop = Some(reason);
                    break;
                }
            }
        }
        eprintln!(
            "nacre-vmm: paused and resumed {} times: pause {}; resume {}",
            pauses.len(),
            summary(pauses),
            summary(resumes)
        );
        Ok(stop)
    }

    fn run_until_tick(&self, machine: &mut Machine, inputs: Inputs<'_>) -> anyhow::Result<StopReason> {
        match self.timer.wait() {
            // Ticks from before the guest was resumed, or none.
            Ok(()) | Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error).context("reading a timer"),
        }
        let inputs = Inputs {
            stop_request: Some(self.timer.as_fd()),
            ..inputs
        };
        main_loop::run(machine, inputs).context("waiting for the guest")
    }
}

/// Median and maximum in µs.
fn summary(mut durations: Vec<Duration>) -> String {
    durations.sort_unstable();
    let micros = |duration: Option<&Duration>| duration.map_or(0, Duration::as_micros);
    let median = micros(durations.get(durations.len() / 2));
    format!("median {median} µs, maximum {} µs", micros(durations.last()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_median_and_maximum() {
        let durations = [9, 1, 1000, 5, 7].map(Duration::from_micros);
        assert_eq!(summary(durations.to_vec()), "median 7 µs, maximum 1000 µs");
        assert_eq!(summary(Vec::new()), "median 0 µs, maximum 0 µs");
    }
}
