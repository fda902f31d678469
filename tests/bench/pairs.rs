//! `ctr run --rm … true`, from ctr's start to its end: Nacre and runc take turns, and who is first in a pair changes.

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::containers::{NACRE, RUNC, id, run_true};
use crate::results::{Measure, Results};
use crate::statistics::{median, percentile};

/// Seconds of each pair: Nacre, runc.
pub struct Pairs(pub Vec<(f64, f64)>);

/// Runs one pair to warm up, then `count` that count.
pub fn measure(count: usize) -> Result<Pairs> {
    eprintln!("warming up: one container each");
    pair(0)?;
    let mut pairs = Vec::with_capacity(count);
    for number in 1..=count {
        let (nacre, runc) = pair(number)?;
        eprintln!(
            "pair {number:2} of {count}: nacre {:7.0} ms, runc {:7.0} ms, ratio {:.2}",
            nacre * 1e3,
            runc * 1e3,
            nacre / runc
        );
        pairs.push((nacre, runc));
    }
    Ok(Pairs(pairs))
}

fn pair(number: usize) -> Result<(f64, f64)> {
    if number.is_multiple_of(2) {
        let nacre = time(NACRE, "nacre", number)?;
        Ok((nacre, time(RUNC, "runc", number)?))
    } else {
        let runc = time(RUNC, "runc", number)?;
        Ok((time(NACRE, "nacre", number)?, runc))
    }
}

fn time(runtime: &str, word: &str, number: usize) -> Result<f64> {
    std::io::stderr().flush()?;
    let id = id(word, number);
    let started = Instant::now();
    run_true(runtime, &id).with_context(|| format!("ctr run under {runtime}"))?;
    Ok(started.elapsed().as_secs_f64())
}

impl Pairs {
    /// Ratios of the pairs.
    pub fn ratios(&self) -> Vec<f64> {
        self.0.iter().map(|(nacre, runc)| nacre / runc).collect()
    }

    /// Adds the medians, and the ratio's median and spread.
    pub fn report(&self, results: &mut Results) {
        let side =
            |pick: fn(&(f64, f64)) -> f64| self.0.iter().map(|pair| pick(pair) * 1e3).collect::<Vec<f64>>();
        let (nacre, runc, ratios) = (side(|pair| pair.0), side(|pair| pair.1), self.ratios());
        results.add(Measure {
            name: "ctr run --rm true".to_owned(),
            unit: "ms",
            nacre: median(&nacre),
            peer: Some(median(&runc)),
            peer_name: Some("runc"),
            ratio: Some(median(&ratios)),
            note: format!(
                "medians of {} alternating pairs; ratio: median of the pairs' ratios, p10..p90 {:.2}..{:.2}; wanted: at most 2.0",
                self.0.len(),
                percentile(&ratios, 10.0),
                percentile(&ratios, 90.0)
            ),
        });
        for (name, percent) in [("p10", 10.0), ("p90", 90.0)] {
            results.add(Measure {
                name: format!("ctr run --rm true, {name}"),
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
