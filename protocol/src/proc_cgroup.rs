//! Reads the text of /proc/PID/cgroup (cgroups(7)). Pure.

/// The cgroup of the process in the cgroup2 hierarchy, as a path relative to that hierarchy's root; empty for the root
/// itself. None if the host has no cgroup2.
#[must_use]
pub fn cgroup2_path(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_found_on_pure_and_hybrid_hosts() {
        for (text, want) in [
            (
                "0::/system.slice/containerd.service\n",
                Some("system.slice/containerd.service"),
            ),
            ("12:memory:/a\n1:name=systemd:/b\n0::/c\n", Some("c")),
            ("0::/\n", Some("")),
            ("1:memory:/a\n", None),
        ] {
            assert_eq!(cgroup2_path(text), want, "{text}");
        }
    }
}
