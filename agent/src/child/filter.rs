//! Seccomp filters as the kernel takes them. The agent compiles one before it forks the first process that
//! has it: libseccomp takes milliseconds for a profile of hundreds of system calls. A container's processes
//! and other containers with the same profile then share it. Children of the agent load it.
#![allow(unsafe_code, reason = "seccomp(2) has no safe wrapper")]

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::sync::{Arc, Mutex, PoisonError};

use libc::{c_ulong, c_ushort, sock_filter, sock_fprog};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};
use rustix::fs::{MemfdFlags, memfd_create};

use super::seccomp::compile;
use crate::error::Error;

/// Most profiles whose filters are kept: a pod has few.
const MAX_PROFILES: usize = 8;

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    program: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: c_ulong,
}

/// The filters of the latest profiles.
#[derive(Debug, Default)]
pub struct Filters(Mutex<Vec<(LinuxSeccomp, Arc<Filter>)>>);

impl Filters {
    /// The filter of `profile`.
    ///
    /// # Errors
    /// The step of compiling it that failed, and why.
    pub fn get(&self, profile: LinuxSeccomp) -> Result<Arc<Filter>, Error> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, filter)) = all.iter().find(|(known, _)| *known == profile) {
            return Ok(Arc::clone(filter));
        }
        let compiled = Filter::new(&profile).map_err(|reason| Error::Runtime(format!("seccomp: {reason}")));
        let filter = Arc::new(compiled?);
        if all.len() >= MAX_PROFILES {
            all.remove(0);
        }
        all.push((profile, Arc::clone(&filter)));
        Ok(filter)
    }
}

impl Filter {
    fn new(profile: &LinuxSeccomp) -> Result<Self, String> {
        let context = compile(profile)?;
        let failed = |error: io::Error| format!("compiling the filter: {error}");
        let file = memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let mut file = File::from(file);
        let exported = context.export_bpf(&file);
        exported.map_err(|error| format!("compiling the filter: {error}"))?;
        let mut bytes = Vec::new();
        let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
        read.map_err(failed)?;
        Ok(Self {
            program: bytes.chunks_exact(8).filter_map(instruction).collect(),
            flags: flags(profile),
        })
    }

    /// Loads it for the calling process.
    ///
    /// # Errors
    /// The errno of seccomp(2).
    pub fn load(&self) -> io::Result<()> {
        let program = sock_fprog {
            len: c_ushort::try_from(self.program.len()).map_err(io::Error::other)?,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads the program, whose length the structure has; both outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                self.flags,
                &raw const program,
            )
        };
        match result {
            0 => Ok(()),
            // With TSYNC, the id of a thread that has another filter. The caller has one thread.
            1.. => Err(io::ErrorKind::Other.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// `struct sock_filter` from its bytes.
fn instruction(bytes: &[u8]) -> Option<sock_filter> {
    let (code, rest) = bytes.split_first_chunk()?;
    let ([jt, jf], rest) = rest.split_first_chunk()?;
    Some(sock_filter {
        code: u16::from_ne_bytes(*code),
        jt: *jt,
        jf: *jf,
        k: u32::from_ne_bytes(*rest.first_chunk()?),
    })
}

fn flags(profile: &LinuxSeccomp) -> c_ulong {
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        }
    };
    let flags = profile.flags().iter().flatten();
    flags.map(flag).fold(0, |all, flag| all | flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn profile(call: &str) -> LinuxSeccomp {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": [call], "action": "SCMP_ACT_ERRNO"}]});
        serde_json::from_value(profile).unwrap()
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let filters = Filters::default();
        let first = filters.get(profile("mkdir")).unwrap();
        assert_eq!(first.flags, libc::SECCOMP_FILTER_FLAG_LOG);
        // It begins with a load of the architecture.
        assert_eq!((first.program[0].code, first.program[0].k), (0x20, 4));
        let other = filters.get(profile("rmdir")).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        assert!(Arc::ptr_eq(&first, &filters.get(profile("mkdir")).unwrap()));
        for call in ["read", "write", "open", "close", "stat", "fstat", "lstat"] {
            filters.get(profile(call)).unwrap();
        }
        assert!(!Arc::ptr_eq(&first, &filters.get(profile("mkdir")).unwrap()));
    }
}
