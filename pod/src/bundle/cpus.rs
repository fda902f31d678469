//! The host's CPUs as a spec names them: "0-3,7".

/// CPUs are numbered below this.
pub const MAX: usize = 1024;

/// The numbers that `text` names, ascending; None where it is no such list, or names none.
pub fn parse(text: &str) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MAX {
            return None;
        }
        found.extend(first..=last);
        found.sort_unstable();
        found.dedup();
    }
    Some(found).filter(|found| !found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (text, want) in [
            ("0", Some(vec![0])),
            ("0-2,5", Some(vec![0, 1, 2, 5])),
            (" 5 , 1 - 2, 2", Some(vec![1, 2, 5])),
            ("1023", Some(vec![1023])),
            ("", None),
            (",", None),
            ("1024", None),
            ("3-1", None),
            ("1-", None),
            ("-1", None),
            ("a", None),
            ("0-99999999999999999999999", None),
        ] {
            assert_eq!(parse(text), want, "{text:?}");
        }
        let long = "0-1023,".repeat(1000);
        assert_eq!(parse(&long).map(|found| found.len()), Some(MAX));
    }
}
