//! The part of YAML that the files in `deploy/` use: block mappings and sequences, flow collections on one line, plain
//! and double-quoted scalars, comments on lines of their own. Everything else is refused.

use serde_json::{Map, Value};

/// A line with content: its indentation and its text.
type Line<'t> = (usize, &'t str);

/// Parses a document. Scalars are strings, whatever they look like.
pub fn parse(text: &str) -> Result<Value, String> {
    let lines: Vec<Line<'_>> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(|line| (line.len() - line.trim_start_matches(' ').len(), line.trim()))
        .collect();
    if text.contains('\t') {
        return Err("a tab".to_owned());
    }
    let mut rest = &lines[..];
    let value = block(&mut rest, 0)?;
    match rest.first() {
        None => Ok(value),
        Some((indentation, line)) => Err(format!("indented by {indentation}: {line:?}")),
    }
}

/// Takes the lines of a mapping or sequence that is indented by `at`.
fn block<'t>(lines: &mut &[Line<'t>], at: usize) -> Result<Value, String> {
    match lines.first() {
        Some((_, line)) if line.starts_with("- ") => sequence(lines, at),
        _ => mapping(lines, at, None),
    }
}

fn sequence(lines: &mut &[Line<'_>], at: usize) -> Result<Value, String> {
    let mut items = Vec::new();
    while let Some((line, rest)) =
        next(lines, at).and_then(|line| Some((line.strip_prefix("- ")?, &lines[1..])))
    {
        *lines = rest;
        // An item is a mapping whose first key is on the line of the dash, two further to the right.
        items.push(match key(line) {
            Some(_) => mapping(lines, at + 2, Some(line))?,
            None => flow(line)?,
        });
    }
    Ok(Value::Array(items))
}

/// Takes the lines of a mapping; `first` is a line of it that was taken.
fn mapping(lines: &mut &[Line<'_>], at: usize, first: Option<&str>) -> Result<Value, String> {
    let mut map = Map::new();
    let mut taken = first;
    while let Some(line) = taken.take().or_else(|| {
        let line = next(lines, at)?;
        *lines = &lines[1..];
        Some(line)
    }) {
        let (name, value) = key(line).ok_or_else(|| format!("no key in {line:?}"))?;
        let value = match (value, lines.first()) {
            ("", Some((deeper, _))) if *deeper > at => block(lines, *deeper)?,
            ("", _) => Value::Null,
            (value, _) => flow(value)?,
        };
        if map.insert(name.to_owned(), value).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(Value::Object(map))
}

/// The next line, if it is indented by `at`.
fn next<'t>(lines: &[Line<'t>], at: usize) -> Option<&'t str> {
    let (indentation, line) = lines.first()?;
    (*indentation == at).then_some(*line)
}

/// The key that a line begins with, and what follows it.
fn key(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    let value = value.strip_prefix(' ').or(value.is_empty().then_some(""))?;
    is_name.then_some((name, value.trim()))
}

/// A value on one line.
fn flow(text: &str) -> Result<Value, String> {
    let (value, rest) = flow_value(text)?;
    match rest.trim() {
        "" => Ok(value),
        rest => Err(format!("{rest:?} follows a value in {text:?}")),
    }
}

fn flow_value(text: &str) -> Result<(Value, &str), String> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('[') {
        let mut items = Vec::new();
        let rest = flow_items(rest, ']', |rest| {
            let (item, rest) = flow_value(rest)?;
            items.push(item);
            Ok(rest)
        })?;
        return Ok((Value::Array(items), rest));
    }
    if let Some(rest) = text.strip_prefix('{') {
        let mut map = Map::new();
        let rest = flow_items(rest, '}', |rest| {
            let (name, rest) = rest
                .split_once(": ")
                .ok_or_else(|| format!("no key in {rest:?}"))?;
            let (value, rest) = flow_value(rest)?;
            map.insert(name.trim().to_owned(), value);
            Ok(rest)
        })?;
        return Ok((Value::Object(map), rest));
    }
    if let Some(rest) = text.strip_prefix('"') {
        let (quoted, rest) = rest
            .split_once('"')
            .ok_or_else(|| format!("no end of {text:?}"))?;
        if quoted.contains('\\') {
            return Err(format!("an escape in {quoted:?}"));
        }
        return Ok((Value::from(quoted), rest));
    }
    let end = text.find([',', ']', '}']).unwrap_or(text.len());
    let (plain, rest) = text.split_at(end);
    if plain.is_empty() || plain.contains(": ") || plain.contains(" #") || "&*!|>%@`'".contains(&plain[..1]) {
        return Err(format!("not a plain scalar: {plain:?}"));
    }
    Ok((Value::from(plain.trim()), rest))
}

/// Calls `item` for each item up to `end`; returns what follows it.
fn flow_items<'t>(
    text: &'t str,
    end: char,
    mut item: impl FnMut(&'t str) -> Result<&'t str, String>,
) -> Result<&'t str, String> {
    let mut rest = text.trim_start();
    loop {
        if let Some(rest) = rest.strip_prefix(end) {
            return Ok(rest);
        }
        rest = item(rest)?.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(rest) => rest.trim_start(),
            None if rest.starts_with(end) => rest,
            None => return Err(format!("no end of {text:?}")),
        };
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let parsed = parse("a:\n  - b: [x, \"y z\"]\n    c: {d: e}\n  - f\ng: h\n# i\n").unwrap();
    let expected = serde_json::json!({"a": [{"b": ["x", "y z"], "c": {"d": "e"}}, "f"], "g": "h"});
    assert_eq!(parsed, expected);
    for wrong in [
        "a",
        "a: [x",
        "a: {b}",
        "a: \"x",
        "a: x: y",
        "a: b\n  c: d",
        "a:\n    b: c\n  d: e",
        "a: 1\na: 2",
        "a:\n\tb: c",
        "a: |\n  b",
        "a: b # c",
        "a:b",
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}
