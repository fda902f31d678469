//! From root to the user of a process object: umask, working directory, groups, user, capabilities. Called by
//! the agent's children inside of the container's root; the order is that in which each step still has the
//! privileges that it needs.

use std::path::Path;

use nix::sys::personality::{self, Persona};
use oci_spec::runtime::{LinuxPersonalityDomain, Process, Spec};
use rustix::fs::Mode;
use rustix::thread::{
    Gid, Uid, set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{Failure, Filter, at, capabilities, load_seccomp, runc_text};

/// The umask of a process whose spec has none, as with runc.
const DEFAULT_UMASK: u32 = 0o022;
/// `PER_LINUX32` of linux/personality.h.
const LINUX32: i32 = 8;

/// Changes from root to the process's user, working directory and capabilities. Without noNewPrivileges,
/// `filter` is loaded on the way.
pub fn become_user(process: &Process, spec: &Spec, filter: Option<&Filter>) -> Result<(), Failure> {
    let user = process.user();
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(at("noNewPrivileges"))?;
    }
    set_personality(spec)?;
    rustix::process::umask(Mode::from_raw_mode(user.umask().unwrap_or(DEFAULT_UMASK)));
    // Tried as root and, if that fails, as the process's user: either may be the only one with access.
    let entered = std::env::set_current_dir(process.cwd());
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    set_thread_groups(&groups).map_err(at("additionalGids"))?;
    set_keep_capabilities(true).map_err(at("PR_SET_KEEPCAPS"))?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    set_thread_res_gid(gid, gid, gid).map_err(at("gid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(at("uid"))?;
    capabilities::restore_effective().map_err(at("capabilities"))?;
    if !no_new_privileges {
        // Loading a filter needs CAP_SYS_ADMIN, which may be dropped next.
        load_seccomp(filter)?;
    }
    if let Some(sets) = process.capabilities() {
        capabilities::set(sets).map_err(at("capabilities"))?;
    }
    entered
        .or_else(|_| std::env::set_current_dir(process.cwd()))
        .map_err(|error| {
            let cwd = process.cwd().display();
            Failure::Step(format!("chdir to cwd ({cwd:?}): {}", runc_text(&error)))
        })?;
    check_inside()
}

fn set_personality(spec: &Spec) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let Some(personality) = linux.and_then(|linux| linux.personality().as_ref()) else {
        return Ok(());
    };
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => LINUX32,
    };
    personality::set(Persona::from_bits_retain(domain))
        .map(drop)
        .map_err(at("personality"))
}

/// Refuses a working directory outside the container's root: getcwd(2) returns "(unreachable)…" for it.
fn check_inside() -> Result<(), Failure> {
    let cwd = rustix::process::getcwd(Vec::new()).map_err(at("getcwd"))?;
    if Path::new(&*cwd.to_string_lossy()).is_absolute() {
        return Ok(());
    }
    Err(Failure::Step(
        "process.cwd: the directory is outside the container's root".to_owned(),
    ))
}
