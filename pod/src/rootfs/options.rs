//! Mount options of a snapshotter's mounts, in mount(8)'s notation, as `detached` needs them. Pure.

use crate::mount::{Extent, IdMap, IdRange};

/// Mount options in mount(8)'s notation, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bind a directory or file.
    pub bind: bool,
    /// What the host applies to a bind mount.
    pub extent: Extent,
    /// The id map of the image's files, as containerd passes it for a container with a user namespace.
    pub id_map: Option<IdMap>,
    /// Options for the file system itself: keys, with a value if there was a "=".
    pub values: Vec<(String, Option<String>)>,
}

impl Options {
    /// Parses the options of one mount.
    ///
    /// # Errors
    /// Why an option cannot be applied.
    pub fn parse(options: &[String]) -> Result<Self, String> {
        let mut parsed = Self::default();
        let (mut uids, mut gids) = (Vec::new(), Vec::new());
        for option in options {
            match option.as_str() {
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.extent.recursive) = (true, true),
                "ro" => parsed.extent.read_only = true,
                // Every mount made here has these attributes, or the guest applies them instead of the host.
                "rw" | "nosuid" | "nodev" | "private" | "rprivate" | "suid" | "dev" | "exec" => {}
                "relatime" | "noatime" | "nodiratime" | "strictatime" | "noexec" => {}
                "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                    return Err(format!(
                        "propagation {option:?} of a rootfs mount is not supported"
                    ));
                }
                option => match option.split_once('=') {
                    Some(("uidmap", ranges)) => uids = id_ranges(option, ranges)?,
                    Some(("gidmap", ranges)) => gids = id_ranges(option, ranges)?,
                    Some((key, value)) => parsed.values.push((key.into(), Some(value.into()))),
                    None => parsed.values.push((option.into(), None)),
                },
            }
        }
        parsed.id_map = match (uids.is_empty(), gids.is_empty()) {
            (true, true) => None,
            (false, false) => Some(IdMap { uids, gids }),
            _ => return Err("expected both uidmap and gidmap, got one of them".into()),
        };
        Ok(parsed)
    }
}

/// The ranges in `text`, as "0:100000:65536,…", of the mount option `option`.
fn id_ranges(option: &str, text: &str) -> Result<Vec<IdRange>, String> {
    let range = |text: &str| -> Option<IdRange> {
        let numbers: Vec<u32> = text
            .split(':')
            .map(|number| number.parse().ok())
            .collect::<Option<_>>()?;
        let [container, host, size] = numbers[..] else {
            return None;
        };
        Some(IdRange {
            container,
            host,
            size,
        })
    };
    let ranges = text.split(',').map(range).collect::<Option<Vec<_>>>();
    ranges.ok_or_else(|| format!("option {option:?}: expected ranges such as 0:100000:65536"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn options_are_parsed() {
        let options = Options::parse(&strings(&["rbind", "ro", "index=off", "volatile"])).unwrap();
        assert!(options.bind && options.extent.recursive && options.extent.read_only);
        assert_eq!(
            options.values,
            [("index".into(), Some("off".into())), ("volatile".into(), None)]
        );
        assert!(
            Options::parse(&strings(&["rshared"]))
                .unwrap_err()
                .contains("rshared")
        );
    }

    #[test]
    fn id_maps_have_ranges_of_both_kinds() {
        let options = Options::parse(&strings(&["uidmap=0:1000:5,7:9:1", "gidmap=0:0:4294967295"])).unwrap();
        let range = |container, host, size| IdRange {
            container,
            host,
            size,
        };
        let map = options.id_map.unwrap();
        assert_eq!(map.uids, [range(0, 1000, 5), range(7, 9, 1)]);
        assert_eq!(map.gids, [range(0, 0, u32::MAX)]);
        assert!(options.values.is_empty());
        for (options, named) in [
            (&["uidmap=0:1000:5"][..], "both"),
            (&["uidmap=0:1000", "gidmap=0:0:1"], "uidmap=0:1000"),
            (&["uidmap=", "gidmap=0:0:1"], "uidmap="),
            (&["uidmap=0:-1:5", "gidmap=0:0:1"], "0:-1:5"),
        ] {
            let error = Options::parse(&strings(options)).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
