//! The behaviours, by subject. Each is a short function in an empty directory; [`sys`] has what they share.
//! They know nothing of containers.

mod copies;
mod directories;
mod limits;
mod links;
mod locks;
mod maps;
mod modes;
mod names;
mod opening;
mod owners;
mod rename;
mod sparse;
mod special;
mod sys;
mod times;
mod unlinked;
mod waiting;
mod xattrs;

use super::Behaviour;

/// All behaviours, in groups.
pub fn all() -> Vec<&'static Behaviour> {
    [
        names::BEHAVIOURS,
        links::BEHAVIOURS,
        times::BEHAVIOURS,
        waiting::BEHAVIOURS,
        modes::BEHAVIOURS,
        owners::BEHAVIOURS,
        rename::BEHAVIOURS,
        unlinked::BEHAVIOURS,
        sparse::BEHAVIOURS,
        opening::BEHAVIOURS,
        xattrs::BEHAVIOURS,
        locks::BEHAVIOURS,
        maps::BEHAVIOURS,
        limits::BEHAVIOURS,
        directories::BEHAVIOURS,
        copies::BEHAVIOURS,
        special::BEHAVIOURS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_least_150_behaviours_with_unique_names_of_one_line() {
        let mut names: Vec<&str> = all().iter().map(|behaviour| behaviour.name).collect();
        assert!(names.len() >= 150, "{}", names.len());
        assert!(
            names
                .iter()
                .all(|name| !name.contains(':') && !name.contains('\n'))
        );
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }
}
