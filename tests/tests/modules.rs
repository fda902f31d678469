//! The modules at the top of a crate use each other in one direction: none reaches itself by what it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates without a circle.
const CRATES: [&str; 6] = ["agent", "ctl", "pod", "protocol", "shim", "vmm"];

/// Where each module at the top is used: its name, and the file that names it.
type Uses = BTreeMap<String, BTreeSet<(String, PathBuf)>>;

/// The modules that a line of code names by "crate::", alone or in a list.
fn modules(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or_default();
    let names = |path: &'static str| code.split(path).skip(1);
    let end = |c: char| !c.is_alphanumeric() && c != '_';
    let lists = names("crate::{").flat_map(|list| list.split('}').next().unwrap_or_default().split(", "));
    let paths = lists.chain(names("crate::"));
    paths
        .filter_map(|path| path.split(end).next())
        .filter(|name| !name.is_empty())
        .collect()
}

fn add_uses(directory: &Path, module: Option<&str>, uses: &mut Uses) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = module.unwrap_or(name);
        if ["tests", "main", "lib"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            add_uses(&path, Some(module), uses);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let used = code.lines().flat_map(modules).filter(|used| *used != module);
        let used = used.map(|used| (used.to_owned(), path.clone()));
        uses.entry(module.to_owned()).or_default().extend(used);
    }
}

/// The files by which `from` reaches `to`; None if it does not.
fn path(uses: &Uses, from: &str, to: &str, seen: &mut BTreeSet<String>) -> Option<Vec<PathBuf>> {
    uses.get(from)?.iter().find_map(|(used, file)| {
        let rest = if used == to {
            Some(Vec::new())
        } else {
            seen.insert(used.clone())
                .then(|| path(uses, used, to, seen))
                .flatten()
        };
        rest.map(|rest| [vec![file.clone()], rest].concat())
    })
}

#[test]
fn no_module_at_the_top_of_a_crate_reaches_itself() {
    for name in CRATES {
        let mut uses = Uses::new();
        add_uses(&Path::new("..").join(name).join("src"), None, &mut uses);
        assert!(uses.len() > 3, "{uses:?}");
        for module in uses.keys() {
            let circle = path(&uses, module, module, &mut BTreeSet::new());
            assert_eq!(circle, None, "{name}: {module} reaches itself by these files");
        }
    }
}
