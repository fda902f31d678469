//! How virtiofsd's library is configured. Used by [`super::tree`].

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs};

/// Attributes `trusted.NAME` of the guest are `user.nacre.trusted.NAME` on the host, where `trusted` needs
/// CAP_SYS_ADMIN, which the VMM does not have. The guest's kernel gives them to its own CAP_SYS_ADMIN only, and nobody
/// in the guest gets at `user.nacre` by that name. The host's own `trusted` attributes are not shown.
const TRUSTED: &str = ":map:trusted.:user.nacre.:";

/// The library's file server for `root`. `proc_self_fd` is a descriptor of /proc/self/fd. The guest gets
/// ENFILE beyond `max_open_files`.
///
/// # Errors
/// If `root` is not UTF-8 or the library can't start.
pub fn files(
    root: PathBuf,
    proc_self_fd: File,
    max_open_files: u64,
) -> Result<PassthroughFs, Box<dyn Error + Send + Sync>> {
    let root_dir = root
        .into_os_string()
        .into_string()
        .map_err(|root| format!("{}: not UTF-8", root.display()))?;
    let config = Config {
        // [`super::subtree::guest_entry`] replaces the library's timeouts.
        entry_timeout: Duration::ZERO,
        attr_timeout: Duration::ZERO,
        cache_policy: CachePolicy::Auto,
        // Each write reaches the host before write(2) returns in the guest.
        writeback: false,
        root_dir,
        xattr: true,
        xattrmap: Some(XattrMap::try_from(TRUSTED)?),
        proc_sfd_rawfd: Some(proc_self_fd),
        announce_submounts: true,
        // open_by_handle_at can open files outside of the tree.
        inode_file_handles: InodeFileHandlesMode::Never,
        readdirplus: true,
        killpriv_v2: true,
        // The guest's kernel has checked O_NOATIME, and the worker has CAP_FOWNER, which it needs here.
        clean_noatime: false,
        posix_acl: NegotiationMode::Auto,
        guest_fd_limit: max_open_files,
        ..Config::default()
    };
    Ok(PassthroughFs::new(config)?)
}
