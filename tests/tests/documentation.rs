//! The links between the Markdown files of this repository: each names a file that exists, and a heading in it.

use std::fs;
use std::path::{Path, PathBuf};

/// The Markdown files at the top and in `docs`.
fn pages() -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for directory in [top.clone(), top.join("docs"), top.join("docs/decisions")] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The targets of the inline links `[text](target)`, without those to other sites.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1);
    let targets = targets.filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.contains("://")).collect()
}

/// The anchors that GitHub makes from the headings.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_names_a_file_and_a_heading_that_exist() {
    let (mut broken, mut checked) = (Vec::new(), 0);
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for link in links(&page) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.with_file_name(file),
            };
            let exists = match fs::read_to_string(&target) {
                Ok(text) => anchor.is_empty() || anchors(&text).iter().any(|found| found == anchor),
                // A directory, or a file that is not text.
                Err(_) => anchor.is_empty() && target.exists(),
            };
            if !exists {
                broken.push(format!("{}: {link}", path.display()));
            }
            checked += 1;
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(checked > 50, "only {checked} links were found");
}

/// All Rust sources of the workspace, one after the other.
fn sources() -> String {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crates = [
        "agent", "ctl", "netlink", "pod", "protocol", "shim", "tests", "vmm",
    ];
    let mut directories: Vec<PathBuf> = crates.iter().map(|name| top.join(name)).collect();
    let mut text = String::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}

/// The parts of `page` between two of `quote`.
fn quoted(page: &str, quote: char) -> impl Iterator<Item = &str> {
    page.split(quote).skip(1).step_by(2)
}

#[test]
fn every_test_that_is_said_to_show_a_boundary_exists() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let (page, sources) = (fs::read_to_string(page).unwrap(), sources());
    let is_test = |word: &&str| {
        let is_name = word
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte));
        is_name && word.matches('_').count() > 1
    };
    let functions = quoted(&page, '`')
        .filter(is_test)
        .map(|name| format!("fn {name}("));
    let rows = quoted(&page, '"').map(|name| format!("\"{name}\""));
    let (mut missing, mut checked) = (Vec::new(), 0);
    for name in functions.chain(rows) {
        if !sources.contains(&name) {
            missing.push(name);
        }
        checked += 1;
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(checked > 30, "only {checked} names were found");
}
