//! What the VMM is to run: one value, made from the shim's `Configure` or from the command line, checked once and
//! then passed by reference. It never opens anything; what is already open is in [`crate::machine::Resources`].

use nacre_protocol::control::Configure;

/// Most vCPUs of a guest; the guest kernel is built for as many.
pub const MAX_VCPUS: u8 = 32;
/// Most guest memory, MiB: 1 TiB.
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;

/// What the VMM is to run, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Names the pod in messages.
    pub pod: String,
    /// Guest memory, MiB: 1..=[`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// vCPUs: 1..=[`MAX_VCPUS`].
    pub vcpus: u8,
    /// Appended to the kernel command line: printable ASCII.
    pub extra_cmdline: String,
    /// Where the console goes, beside its ring.
    pub console: ConsoleTo,
}

/// Where the guest's console goes, beside its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleTo {
    /// Nowhere: the kernel says only what went wrong.
    Ring,
    /// Standard error too, line by line, with all of the kernel's messages.
    Stderr,
    /// Standard output, byte by byte, and standard input to the guest: somebody sits there.
    Terminal,
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Shim and VMM are of different builds.
    #[error("the shim is build {shim}, nacre-vmm is build {vmm}")]
    Build {
        /// The shim's.
        shim: String,
        /// Ours.
        vmm: &'static str,
    },
    /// vCPUs out of range.
    #[error("vcpus = {0}: 1 to {MAX_VCPUS} are possible")]
    Vcpus(u8),
    /// Memory out of range.
    #[error("memory_mib = {0}: 1 to {MAX_MEMORY_MIB} are possible")]
    Memory(u32),
    /// A command line that the kernel can't take.
    #[error("kernel_params: {0:?} is not printable ASCII")]
    CommandLine(char),
}

impl Config {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error`] with the field and its value.
    pub fn checked(self) -> Result<Self, Error> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Error::Vcpus(self.vcpus));
        }
        if !(1..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(Error::Memory(self.memory_mib));
        }
        if let Some(bad) = self.extra_cmdline.chars().find(|c| !matches!(c, ' '..='~')) {
            return Err(Error::CommandLine(bad));
        }
        Ok(self)
    }

    /// Guest memory in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }
}

impl TryFrom<Configure> for Config {
    type Error = Error;

    fn try_from(configure: Configure) -> Result<Self, Error> {
        if configure.build_id != nacre_protocol::BUILD_ID {
            return Err(Error::Build {
                shim: configure.build_id,
                vmm: nacre_protocol::BUILD_ID,
            });
        }
        let console = if configure.console_to_stderr {
            ConsoleTo::Stderr
        } else {
            ConsoleTo::Ring
        };
        Self {
            pod: configure.pod,
            memory_mib: configure.memory_mib,
            vcpus: configure.vcpus,
            extra_cmdline: configure.extra_cmdline,
            console,
        }
        .checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configure() -> Configure {
        Configure {
            build_id: nacre_protocol::BUILD_ID.to_owned(),
            pod: "p".to_owned(),
            memory_mib: 512,
            vcpus: 1,
            extra_cmdline: String::new(),
            console_to_stderr: false,
        }
    }

    #[test]
    fn a_good_one_passes() {
        let config = Config::try_from(configure()).unwrap();
        assert_eq!(config.memory_bytes(), 512 << 20);
        assert_eq!(config.console, ConsoleTo::Ring);
    }

    #[test]
    fn another_build_is_refused_naming_both() {
        let error = Config::try_from(Configure {
            build_id: "other".to_owned(),
            ..configure()
        })
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("other") && text.contains(nacre_protocol::BUILD_ID),
            "{text}"
        );
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (vcpus, good) in [(0, false), (1, true), (MAX_VCPUS, true), (MAX_VCPUS + 1, false)] {
            assert_eq!(
                Config::try_from(Configure { vcpus, ..configure() }).is_ok(),
                good,
                "{vcpus}"
            );
        }
        for (memory_mib, good) in [
            (0, false),
            (1, true),
            (MAX_MEMORY_MIB, true),
            (MAX_MEMORY_MIB + 1, false),
        ] {
            assert_eq!(
                Config::try_from(Configure {
                    memory_mib,
                    ..configure()
                })
                .is_ok(),
                good,
                "{memory_mib}"
            );
        }
        let error = Config::try_from(Configure {
            memory_mib: 0,
            ..configure()
        })
        .unwrap_err();
        assert!(error.to_string().contains("memory_mib = 0"), "{error}");
    }

    #[test]
    fn a_command_line_with_control_characters_is_refused() {
        for bad in ["a\nb", "a\0b", "ä"] {
            let extra_cmdline = bad.to_owned();
            assert!(
                Config::try_from(Configure {
                    extra_cmdline,
                    ..configure()
                })
                .is_err(),
                "{bad:?}"
            );
        }
    }
}
