//! The same under Nacre and under runc, from ctr's start to its end: they take turns, and who is first in a pair changes.

use std::time::Instant;

use anyhow::{Context as _, Result};
use nacre_tests::containerd::Runtime;

use crate::containers::{Running, exec_true, id, run_true};
use crate::results::{Measure, Results};
use crate::statistics::{median, percentile};

/// What was timed, and seconds of each pair: Nacre, runc.
pub struct Pairs {
    /// In `results.json`.
    pub name: &'static str,
    /// What was run.
    pub command: &'static str,
    wanted: &'static str,
    /// Nacre's seconds and runc's.
    pub times: Vec<(f64, f64)>,
}

/// `count` containers under each, started and ended.
pub fn starts(count: usize) -> Result<Pairs> {
    let times = alternate("start", count, |runtime, number| {
        run_true(runtime, &id(runtime.word(), number))
    })?;
    Ok(Pairs {
        name: "ctr run --rm true",
        command: "ctr run --rm busybox true",
        wanted: "wanted: at most 2.0",
        times,
    })
}

/// `count` commands in a container of each.
pub fn execs(count: usize) -> Result<Pairs> {
    let running = |runtime| Running::start(runtime, &id(runtime.word(), 0), "echo up; exec sleep 1000000");
    let (nacre, runc) = (running(Runtime::Nacre)?, running(Runtime::Runc)?);
    let times = alternate("exec", count, |runtime, number| {
        let container = match runtime {
            Runtime::Nacre => &nacre,
            Runtime::Runc => &runc,
        };
        exec_true(container.id(), &format!("exec-{number}"))
    });
    nacre.end()?;
    runc.end()?;
    Ok(Pairs {
        name: "exec",
        command: "ctr task exec true",
        wanted: "wanted: at most 1.0",
        times: times?,
    })
}

/// Runs one pair to warm up, then `count` that count.
fn alternate(
    word: &str,
    count: usize,
    run: impl Fn(Runtime, usize) -> Result<()>,
) -> Result<Vec<(f64, f64)>> {
    let time = |runtime: Runtime, number| -> Result<f64> {
        let started = Instant::now();
        run(runtime, number).with_context(|| format!("{word} under {}", runtime.word()))?;
        Ok(started.elapsed().as_secs_f64())
    };
    let pair = |number: usize| -> Result<(f64, f64)> {
        if number.is_multiple_of(2) {
            let nacre = time(Runtime::Nacre, number)?;
            Ok((nacre, time(Runtime::Runc, number)?))
        } else {
            let runc = time(Runtime::Runc, number)?;
            Ok((time(Runtime::Nacre, number)?, runc))
        }
    };
    eprintln!("warming up: one {word} each");
    pair(0)?;
    let mut pairs = Vec::with_capacity(count);
    for number in 1..=count {
        let (nacre, runc) = pair(number)?;
        eprintln!(
            "{word} {number:2} of {count}: nacre {:7.0} ms, runc {:7.0} ms, ratio {:.2}",
            nacre * 1e3,
            runc * 1e3,
            nacre / runc
        );
        pairs.push((nacre, runc));
    }
    Ok(pairs)
}

impl Pairs {
    /// Ratios of the pairs.
    pub fn ratios(&self) -> Vec<f64> {
        self.times.iter().map(|(nacre, runc)| nacre / runc).collect()
    }

    /// Adds the medians, and the ratio's median and spread.
    pub fn report(&self, results: &mut Results) {
        let side = |pick: fn(&(f64, f64)) -> f64| -> Vec<f64> {
            self.times.iter().map(|pair| pick(pair) * 1e3).collect()
        };
        let (nacre, runc, ratios) = (side(|pair| pair.0), side(|pair| pair.1), self.ratios());
        results.add(Measure {
            name: self.name.to_owned(),
            unit: "ms",
            nacre: median(&nacre),
            peer: Some(median(&runc)),
            peer_name: Some("runc"),
            ratio: Some(median(&ratios)),
            note: format!(
                "medians of {} alternating pairs; ratio: median of the pairs' ratios, p10..p90 {:.2}..{:.2}; {}",
                self.times.len(),
                percentile(&ratios, 10.0),
                percentile(&ratios, 90.0),
                self.wanted
            ),
        });
        for (name, percent) in [("p10", 10.0), ("p90", 90.0)] {
            results.add(Measure {
                name: format!("{}, {name}", self.name),
                unit: "ms",
                nacre: percentile(&nacre, percent),
                peer: Some(percentile(&runc, percent)),
                peer_name: Some("runc"),
                ratio: Some(percentile(&ratios, percent)),
                note: "ratio: of the pairs' ratios".to_owned(),
            });
        }
    }
}
