//! Checks of the host's kernel and cgroups. Called by `nacre doctor`.

use std::fs;
use std::path::Path;

use nacre_protocol::mountinfo::cgroup2_mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, OpenTreeFlags, fsopen, open_tree};

use super::Check;

/// The oldest kernel with everything that Nacre uses; cgroup.kill, the newest of it, came with 5.14.
const OLDEST_KERNEL: (u32, u32) = (5, 14);
const UPGRADE: &str = "boot a host kernel of version 5.14 or later (Debian 12 has 6.1)";

/// The settings of transparent huge pages. shmem_enabled does not matter: guest memory is anonymous.
const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// How many inotify instances a user of the host may have.
const INOTIFY_INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
/// Enough for a full node: kubelet's default of 110 pods, each with an instance, besides everything else of root.
const ENOUGH_INSTANCES: u32 = 1024;

/// The group's checks.
pub fn checks() -> Vec<Check> {
    let mut checks = vec![
        root(),
        kernel(),
        file_opening(),
        mounting(),
        overlay(),
        huge_pages(Path::new(THP)),
        inotify(&fs::read_to_string(INOTIFY_INSTANCES).unwrap_or_default()),
    ];
    checks.extend(cgroups());
    checks
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("user", "root")
    } else {
        Check::failed(
            "user",
            "not root: other checks may fail only because of this",
            "run nacre doctor as root (sudo)",
        )
    }
}

fn kernel() -> Check {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    match version(&release) {
        Some(found) if found >= OLDEST_KERNEL => Check::ok("kernel", release),
        _ => Check::failed("kernel", release, UPGRADE),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn file_opening() -> Check {
    match openat2(
        CWD,
        "/",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    ) {
        Ok(_) => Check::ok("openat2", "available"),
        Err(error) => Check::failed("openat2", format!("openat2(2): {error}"), fix_for(error)),
    }
}

fn mounting() -> Check {
    let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tried = open_tree(CWD, "/", tree).and_then(|_| fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC));
    match tried {
        Ok(_) => Check::ok("mount API", "open_tree and fsopen are available"),
        Err(error) => Check::failed(
            "mount API",
            format!("open_tree(2) or fsopen(2): {error}"),
            fix_for(error),
        ),
    }
}

fn fix_for(error: Errno) -> &'static str {
    match error {
        Errno::PERM | Errno::ACCESS => {
            "run nacre doctor as root, and outside of a container that forbids the system call"
        }
        _ => UPGRADE,
    }
}

fn overlay() -> Check {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some("overlay"))
    {
        return Check::ok("overlayfs", "supported by the kernel");
    }
    Check::warning(
        "overlayfs",
        "not supported by the kernel, or its module is not loaded",
        "modprobe overlay, or use another snapshotter (ctr run --snapshotter native)",
    )
}

/// The VMM asks for huge pages by madvise(2), which "always" and "madvise" grant. Since Linux 6.8 each size
/// of huge page has a setting of its own, which may be "inherit".
fn huge_pages(settings: &Path) -> Check {
    let selected = |file: &str| selected(&fs::read_to_string(settings.join(file)).ok()?);
    let Some(of_all_sizes) = selected("enabled") else {
        return slow_boot(
            "the kernel has no transparent huge pages",
            "boot a host kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        );
    };
    let file = "hugepages-2048kB/enabled";
    let (file, setting) = match selected(file) {
        Some(own) if own != "inherit" => (file, own),
        _ => ("enabled", of_all_sizes),
    };
    if setting == "never" {
        let path = settings.join(file);
        let fix = format!(
            "echo madvise > {}, and in the host's boot configuration",
            path.display()
        );
        return slow_boot(format!("{} is \"never\"", path.display()), fix);
    }
    Check::ok("huge pages", format!("transparent huge pages: {setting}"))
}

fn slow_boot(found: impl Into<String>, fix: impl Into<String>) -> Check {
    let fix = format!(
        "pods run, but a boot has about 9,800 page faults instead of 28 and takes longer;\n{}",
        fix.into()
    );
    Check::warning("huge pages", found, fix)
}

/// The selected word of a setting in sysfs: `always [madvise] never` has "madvise".
fn selected(setting: &str) -> Option<String> {
    let (_, rest) = setting.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Each pod with a ConfigMap, Secret or service account's token takes one of root's instances.
fn inotify(limit: &str) -> Check {
    let limit = limit.trim();
    match limit.parse::<u32>() {
        Ok(instances) if instances >= ENOUGH_INSTANCES => {
            Check::ok("inotify", format!("{instances} instances per user"))
        }
        _ => Check::warning(
            "inotify",
            format!("fs.inotify.max_user_instances is {limit:?}"),
            "pods run, but each Kubernetes pod takes an instance of root's, and programs of the host, or updates of\n\
             ConfigMaps in pods, may find none left;\n\
             sysctl fs.inotify.max_user_instances=8192, and a line in /etc/sysctl.d",
        ),
    }
}

fn cgroups() -> Vec<Check> {
    let mounts = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) => mounts,
        Err(error) => {
            return vec![Check::failed(
                "cgroup2",
                format!("reading /proc/self/mountinfo: {error}"),
                "mount -t proc proc /proc",
            )];
        }
    };
    let Some(mount) = cgroup2_mount(&mounts) else {
        let fix = "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1";
        return vec![Check::failed("cgroup2", "not mounted", fix)];
    };
    let shown = mount.display().to_string();
    vec![
        Check::ok("cgroup2", format!("mounted at {shown}")),
        kill(&mount),
        controllers(&mount),
    ]
}

/// Looks for cgroup.kill in any child of the root cgroup, which itself does not have the file.
fn kill(mount: &Path) -> Check {
    let child = fs::read_dir(mount)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("cgroup.procs").exists());
    match child {
        None => Check::skipped("cgroup.kill", "the root cgroup has no child to look at"),
        Some(child) if child.join("cgroup.kill").exists() => Check::ok("cgroup.kill", "available"),
        Some(_) => Check::failed("cgroup.kill", "not available", UPGRADE),
    }
}

fn controllers(mount: &Path) -> Check {
    let file = mount.join("cgroup.controllers");
    let found = match fs::read_to_string(&file) {
        Ok(found) => found,
        Err(error) => {
            return Check::failed(
                "controllers",
                format!("reading {}: {error}", file.display()),
                UPGRADE,
            );
        }
    };
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|wanted| !found.split_whitespace().any(|c| c == *wanted))
        .collect();
    if missing.is_empty() {
        return Check::ok("controllers", found.trim());
    }
    Check::warning(
        "controllers",
        format!("cgroup2 lacks {} (hybrid cgroup hierarchy)", missing.join(", ")),
        "pods run, and limits apply inside of the guest, but the VM itself is not limited on the host;\n\
         boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_parsed_and_compared() {
        assert_eq!(version("6.1.0-50-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.10-rc1"), Some((5, 10)));
        assert_eq!(version("weird"), None);
        assert!(version("5.9.1") < Some(OLDEST_KERNEL) && version("5.14.0") >= Some(OLDEST_KERNEL));
    }

    #[test]
    fn few_inotify_instances_are_a_warning() {
        use super::super::Status;
        assert_eq!(inotify("1024\n").status, Status::Ok);
        for few in ["128\n", "", "none"] {
            let check = inotify(few);
            assert_eq!(check.status, Status::Warning, "{few}");
            assert!(check.found.contains(few.trim()) && check.fix.unwrap().contains("=8192"));
        }
    }

    #[test]
    fn missing_controllers_are_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.controllers"), "cpu io pids\n").unwrap();
        let check = controllers(directory.path());
        assert!(
            check.status == super::super::Status::Warning && check.found.contains("lacks memory"),
            "{check:?}"
        );
        fs::write(
            directory.path().join("cgroup.controllers"),
            "cpuset cpu io memory pids\n",
        )
        .unwrap();
        assert_eq!(controllers(directory.path()).status, super::super::Status::Ok);
    }

    #[test]
    fn huge_pages_that_are_never_given_are_a_warning() {
        use super::super::Status;
        // The setting of all sizes, that of 2 MiB, and whether a VM gets huge pages.
        for (all, own, given) in [
            ("[always] madvise never", None, true),
            ("always [madvise] never", None, true),
            ("always madvise [never]", None, false),
            (
                "always madvise [never]",
                Some("always [inherit] madvise never"),
                false,
            ),
            (
                "always [madvise] never",
                Some("always inherit madvise [never]"),
                false,
            ),
            (
                "always madvise [never]",
                Some("always inherit [madvise] never"),
                true,
            ),
        ] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("enabled"), format!("{all}\n")).unwrap();
            if let Some(own) = own {
                fs::create_dir(directory.path().join("hugepages-2048kB")).unwrap();
                fs::write(directory.path().join("hugepages-2048kB/enabled"), own).unwrap();
            }
            let check = huge_pages(directory.path());
            assert_eq!(check.status == Status::Ok, given, "{all}, {own:?}: {check:?}");
            assert_eq!(
                check.status == Status::Warning,
                !given,
                "{all}, {own:?}: {check:?}"
            );
            assert_eq!(
                check.fix.is_some_and(|fix| fix.contains("echo madvise >")),
                !given
            );
        }
        let check = huge_pages(Path::new("/no/such/directory"));
        assert!(
            check
                .fix
                .is_some_and(|fix| fix.contains("CONFIG_TRANSPARENT_HUGEPAGE"))
        );
    }
}
