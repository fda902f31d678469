//! Lists of CPUs, as in `linux.resources.cpu.cpus` and `process.execCPUAffinity`: "0-3,7" ("List format" of
//! cpuset(7)). Pure.

/// CPU numbers must be below this: a `cpu_set_t` has 1024 bits.
pub const MAX_CPUS: usize = 1024;

/// The CPU numbers in `text`, ascending and each once. None if it is not a list of CPUs, or an empty one. As
/// with runc, there may be spaces around numbers, and empty elements.
#[must_use]
pub fn parse(text: &str) -> Option<Vec<usize>> {
    let mut is_listed = [false; MAX_CPUS];
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last {
            return None;
        }
        is_listed.get_mut(first..=last)?.fill(true);
    }
    let cpus = is_listed.iter().enumerate().filter(|(_, is_listed)| **is_listed);
    let cpus: Vec<usize> = cpus.map(|(cpu, _)| cpu).collect();
    Some(cpus).filter(|cpus| !cpus.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_parsed_or_refused() {
        for (text, want) in [
            ("0", Some(vec![0])),
            ("0-2,5", Some(vec![0, 1, 2, 5])),
            (" 5 , 1 - 2, 2\n", Some(vec![1, 2, 5])),
            ("1,,2", Some(vec![1, 2])),
            ("1023", Some(vec![1023])),
            ("", None),
            (",", None),
            ("1024", None),
            ("0-1024", None),
            ("3-1", None),
            ("1-", None),
            ("-1", None),
            ("a", None),
            ("1 2", None),
            ("0-99999999999999999999999", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(parse(text), want, "{text:?}");
        }
        let long = "0-1023,".repeat(1000);
        assert_eq!(parse(&long).map(|cpus| cpus.len()), Some(MAX_CPUS));
    }
}
