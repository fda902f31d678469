//! Sums of the counters of several cgroups, in the form of their files. Called by the sandbox for the
//! counters of a pod. Pure. The guest chooses the files' content: what is not a number counts as 0, and the
//! number of lines is bounded.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::guest::CgroupFiles;

/// Most lines of a file, and most files, that are summed.
const MAX_LINES: usize = 256;
/// Longest name in a line, bytes.
const MAX_KEY: usize = 64;

/// Adds two cgroups: each number is the sum, and "max" if one has no limit. Files whose numbers have no sum
/// (pressures, which are shares of time) are left out.
pub fn sum(a: &CgroupFiles, b: &CgroupFiles) -> CgroupFiles {
    let names = a
        .keys()
        .chain(b.keys())
        .filter(|name| !name.ends_with(".pressure"));
    let add = |name: &String| {
        let mut total = BTreeMap::new();
        for files in [a, b] {
            add_lines(&mut total, files.get(name).map_or(&[], Vec::as_slice));
        }
        (name.clone(), text(&total).into_bytes())
    };
    names.take(2 * MAX_LINES).map(add).collect()
}

/// Numbers by the words before them; None is "max".
type Numbers = BTreeMap<(String, String), Option<u64>>;

/// Adds the lines "7", "key 7" and "device key=7 key=7".
fn add_lines(total: &mut Numbers, file: &[u8]) {
    let text = std::str::from_utf8(file).unwrap_or_default();
    for line in text.lines().take(MAX_LINES) {
        let words: Vec<&str> = line.split_whitespace().take(MAX_LINES).collect();
        match words.as_slice() {
            [number] => add(total, "", "", number),
            [key, number] if !number.contains('=') => add(total, key, "", number),
            [device, pairs @ ..] => {
                for (key, number) in pairs.iter().filter_map(|pair| pair.split_once('=')) {
                    add(total, device, key, number);
                }
            }
            [] => {}
        }
    }
}

fn add(total: &mut Numbers, first: &str, second: &str, number: &str) {
    if first.len() > MAX_KEY || second.len() > MAX_KEY {
        return;
    }
    let number = if number == "max" {
        None
    } else {
        Some(number.parse::<u64>().unwrap_or(0))
    };
    let known = total
        .entry((first.to_owned(), second.to_owned()))
        .or_insert(Some(0));
    *known = match (*known, number) {
        (Some(known), Some(number)) => Some(known.saturating_add(number)),
        (None, _) | (_, None) => None,
    };
}

fn text(total: &Numbers) -> String {
    let mut text = String::new();
    let mut device = None;
    for ((first, second), number) in total {
        let number = number.map_or("max".to_owned(), |number| number.to_string());
        let is_next = device == Some(first) && !second.is_empty();
        // Writing to a string never fails.
        let _ = match (first.as_str(), second.as_str()) {
            ("", _) => write!(text, "{number}"),
            (key, "") => writeln!(text, "{key} {number}"),
            (_, key) if is_next => write!(text, " {key}={number}"),
            (name, key) if device.is_some() => write!(text, "\n{name} {key}={number}"),
            (name, key) => write!(text, "{name} {key}={number}"),
        };
        device = Some(first);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> CgroupFiles {
        list.iter()
            .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn numbers_are_added_in_each_form() {
        let a = files(&[
            ("memory.current", "100\n"),
            ("cpu.stat", "usage_usec 5\nuser_usec 3\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2\n8:16 rbytes=5\n"),
            ("memory.max", "max\n"),
            ("cpu.pressure", "some avg10=0.00 total=5\n"),
        ]);
        let b = files(&[
            ("memory.current", "11\n"),
            ("cpu.stat", "usage_usec 7\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20\n"),
            ("memory.max", "5\n"),
            ("pids.current", "2\n"),
        ]);
        let want = files(&[
            ("memory.current", "111"),
            ("cpu.stat", "usage_usec 12\nuser_usec 3\n"),
            ("io.stat", "8:0 rbytes=11 wbytes=22\n8:16 rbytes=5"),
            ("memory.max", "max"),
            ("pids.current", "2"),
        ]);
        assert_eq!(sum(&a, &b), want);
        assert_eq!(sum(&sum(&CgroupFiles::default(), &a), &b), want);
    }

    #[test]
    fn what_a_guest_may_send_is_bounded() {
        let long = "x".repeat(100_000);
        let many: String = (0..100_000).map(|n| format!("k{n} 1\n")).collect();
        let hostile = files(&[
            ("a", &format!("{long} 5\n")),
            ("b", &many),
            ("c", "18446744073709551615\n"),
            ("d", "-1 x\n\n = = =\n"),
        ]);
        let total = sum(&hostile, &hostile);
        assert_eq!(total["a"], b"");
        assert!(total["b"].len() < 10_000);
        assert_eq!(total["c"], b"18446744073709551615");
    }
}
