//! Two sides of a behaviour side by side. Pure.

use std::fmt;

use anyhow::Result;

use super::{Behaviour, Seen};

/// What came of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both are the same.
    Equal,
    /// They differ, for the reason that is listed.
    AsListed(&'static str),
    /// They should be the same, or one of them could not be looked at; both sides in words.
    Different(String),
}

/// Compares what was seen under runc and under Nacre. An error on either side is never equal to anything.
pub fn compare(behaviour: &Behaviour, runc: &Result<Seen>, nacre: &Result<Seen>) -> Verdict {
    let same = matches!((runc, nacre), (Ok(runc), Ok(nacre)) if runc == nacre);
    match &behaviour.differs {
        None if same => Verdict::Equal,
        Some(differs) if same => Verdict::Different(format!(
            "equal, though listed as different ({})\n{}",
            differs.because,
            side("both", nacre)
        )),
        Some(differs) if said(nacre).contains(differs.nacre) => Verdict::AsListed(differs.because),
        Some(differs) => Verdict::Different(format!(
            "nacre does not say {:?}\n{}{}",
            differs.nacre,
            side("runc", runc),
            side("nacre", nacre)
        )),
        None => Verdict::Different(side("runc", runc) + &side("nacre", nacre)),
    }
}

fn said(seen: &Result<Seen>) -> String {
    match seen {
        Ok(seen) => format!("{}{}", seen.stdout, seen.stderr),
        Err(error) => format!("{error:#}"),
    }
}

fn side(name: &str, seen: &Result<Seen>) -> String {
    match seen {
        Ok(seen) => format!("{name}: {seen}"),
        Err(error) => format!("{name}: could not be looked at: {error:#}\n"),
    }
}

/// As much of a stream as someone wants to read.
const LINES: usize = 24;
const WIDTH: usize = 300;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exit code {:?}", self.code)?;
        for (stream, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            for line in text.lines().take(LINES) {
                let short: String = line.chars().take(WIDTH).collect();
                writeln!(f, "    {stream}: {short}")?;
            }
            if text.lines().count() > LINES || text.lines().any(|line| line.len() > WIDTH) {
                writeln!(f, "    {stream}: … {} bytes", text.len())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::parity::calls;

    fn verdict(listed: bool, runc: Result<Seen>, nacre: Result<Seen>) -> Verdict {
        let mut behaviour = calls("x", &["y"], |_| Ok(Seen::default()));
        if listed {
            behaviour = behaviour.but("a reason", "word");
        }
        compare(&behaviour, &runc, &nacre)
    }

    #[test]
    fn verdicts() {
        let seen = |text: &str| Ok(Seen::text(text));
        assert_eq!(verdict(false, seen("a"), seen("a")), Verdict::Equal);
        assert_eq!(
            verdict(true, seen("a"), seen("a word")),
            Verdict::AsListed("a reason")
        );
        assert_eq!(
            verdict(true, seen("a"), Err(anyhow!("word"))),
            Verdict::AsListed("a reason")
        );
        for (listed, runc, nacre) in [
            (false, seen("a"), seen("b")),
            (false, Err(anyhow!("e")), Err(anyhow!("e"))),
            (true, seen("a"), seen("b")),
            (true, seen("word"), seen("word")),
        ] {
            assert!(matches!(verdict(listed, runc, nacre), Verdict::Different(_)));
        }
    }
}
