//! Compares an outcome under runc with that under Nacre. `nacre-parity` and `nacre-cri` call it. Does no I/O.

use std::fmt;

use anyhow::Result;

use super::{AllowedDifference, Outcome};

/// The result of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both outcomes are the same.
    Equal,
    /// They differ and the behaviour allows it, for this reason.
    Allowed(&'static str),
    /// They differ without permission, one of them is an error, or an allowed difference has disappeared; the
    /// text describes both outcomes.
    Different(String),
}

/// Compares the outcomes under runc and under Nacre, which may differ as `allowed` says. An error on either side
/// never counts as equal.
pub fn compare(
    allowed: Option<&AllowedDifference>,
    runc: &Result<Outcome>,
    nacre: &Result<Outcome>,
) -> Verdict {
    let same = matches!((runc, nacre), (Ok(runc), Ok(nacre)) if runc == nacre);
    match allowed {
        None if same => Verdict::Equal,
        Some(allowed) if same => Verdict::Different(format!(
            "equal, although a difference is allowed ({})\n{}",
            allowed.reason,
            side("both", nacre)
        )),
        // Such as a containerd that has gone: its error may contain anything.
        Some(_) if runc.is_err() && nacre.is_err() => {
            Verdict::Different(side("runc", runc) + &side("nacre", nacre))
        }
        Some(allowed) if text_of(nacre).contains(allowed.nacre_output) => Verdict::Allowed(allowed.reason),
        Some(allowed) => Verdict::Different(format!(
            "nacre's output does not contain {:?}\n{}{}",
            allowed.nacre_output,
            side("runc", runc),
            side("nacre", nacre)
        )),
        None => Verdict::Different(side("runc", runc) + &side("nacre", nacre)),
    }
}

/// Everything that the behaviour printed, or its error.
fn text_of(outcome: &Result<Outcome>) -> String {
    match outcome {
        Ok(outcome) => format!("{}{}", outcome.stdout, outcome.stderr),
        Err(error) => format!("{error:#}"),
    }
}

fn side(name: &str, outcome: &Result<Outcome>) -> String {
    match outcome {
        Ok(outcome) => format!("{name}: {outcome}"),
        Err(error) => format!("{name}: failed to run: {error:#}\n"),
    }
}

/// Lines of a stream that are shown of an outcome.
const LINES: usize = 24;
/// Characters that are shown of a line.
const WIDTH: usize = 300;

impl fmt::Display for Outcome {
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

    fn verdict(difference_allowed: bool, runc: Result<Outcome>, nacre: Result<Outcome>) -> Verdict {
        let allowed = AllowedDifference {
            reason: "a reason",
            nacre_output: "word",
        };
        compare(difference_allowed.then_some(&allowed), &runc, &nacre)
    }

    #[test]
    fn only_equal_and_allowed_outcomes_pass() {
        let outcome = |text: &str| Ok(Outcome::text(text));
        assert_eq!(verdict(false, outcome("a"), outcome("a")), Verdict::Equal);
        assert_eq!(
            verdict(true, outcome("a"), outcome("a word")),
            Verdict::Allowed("a reason")
        );
        assert_eq!(
            verdict(true, outcome("a"), Err(anyhow!("word"))),
            Verdict::Allowed("a reason")
        );
        for (difference_allowed, runc, nacre) in [
            (false, outcome("a"), outcome("b")),
            (false, Err(anyhow!("e")), Err(anyhow!("e"))),
            (true, outcome("a"), outcome("b")),
            (true, outcome("word"), outcome("word")),
            (true, Err(anyhow!("word")), Err(anyhow!("word"))),
        ] {
            assert!(matches!(
                verdict(difference_allowed, runc, nacre),
                Verdict::Different(_)
            ));
        }
    }
}
