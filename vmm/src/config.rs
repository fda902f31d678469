//! The configuration of one VM, made from the shim's `Configure` or from the command line, validated once and
//! then passed by reference. It never opens a file; what is already open is in [`crate::machine::Resources`].

use nacre_protocol::control::Configure;

/// Most vCPUs of a guest; equals CONFIG_NR_CPUS of the guest kernel.
pub const MAX_VCPUS: u8 = 32;
/// Most guest memory in MiB: 1 TiB.
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;

/// What the VM consists of. [`Config::validate`] checks the ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the pod, for messages only.
    pub pod: String,
    /// Guest memory in MiB: 1..=[`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// vCPUs that are online at boot: 1..=[`MAX_VCPUS`].
    pub vcpus: u8,
    /// vCPUs that are present: [`Config::vcpus`]..=[`MAX_VCPUS`].
    pub max_vcpus: u8,
    /// Appended to the kernel command line: printable ASCII.
    pub extra_cmdline: String,
    /// The console's output besides its ring.
    pub console: ConsoleOutput,
    /// The guest is to be saved: the threads of its vCPUs may read their state.
    pub can_be_saved: bool,
}

/// Where the guest's console output goes besides its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleOutput {
    /// Nowhere else; the kernel prints warnings and errors only.
    RingOnly,
    /// To standard error, line by line, with all kernel messages.
    Stderr,
    /// To standard error, line by line; the kernel prints warnings and errors only.
    QuietStderr,
    /// To standard output, byte by byte, with all kernel messages; standard input goes to the guest.
    Terminal,
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of vCPUs is out of range.
    #[error("vcpus = {0}: must be 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// The number of vCPUs that are present is out of range.
    #[error("max_vcpus = {max}: must be {vcpus} (vcpus) to {MAX_VCPUS}")]
    MaxVcpus {
        /// vCPUs that are present.
        max: u8,
        /// vCPUs that are online at boot.
        vcpus: u8,
    },
    /// The memory size is out of range.
    #[error("memory_mib = {0}: must be 1 to {MAX_MEMORY_MIB}")]
    Memory(u32),
    /// The additional kernel parameters contain this character.
    #[error("kernel_params: {0:?} is not printable ASCII")]
    CommandLine(char),
}

impl Config {
    /// Returns the configuration if all fields are in range.
    ///
    /// # Errors
    /// [`Error`] with the first field out of range and its value.
    pub fn validate(self) -> Result<Self, Error> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Error::Vcpus(self.vcpus));
        }
        if !(self.vcpus..=MAX_VCPUS).contains(&self.max_vcpus) {
            return Err(Error::MaxVcpus {
                max: self.max_vcpus,
                vcpus: self.vcpus,
            });
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

impl TryFrom<&Configure> for Config {
    type Error = Error;

    fn try_from(configure: &Configure) -> Result<Self, Error> {
        let console = if configure.console_to_stderr {
            ConsoleOutput::Stderr
        } else {
            ConsoleOutput::RingOnly
        };
        Self {
            pod: configure.pod.clone(),
            memory_mib: configure.memory_mib,
            vcpus: configure.vcpus,
            max_vcpus: configure.max_vcpus,
            extra_cmdline: configure.extra_cmdline.clone(),
            console,
            can_be_saved: false,
        }
        .validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            pod: "p".to_owned(),
            memory_mib: 512,
            vcpus: 1,
            max_vcpus: MAX_VCPUS,
            extra_cmdline: String::new(),
            console: ConsoleOutput::RingOnly,
            can_be_saved: false,
        }
    }

    #[test]
    fn a_valid_configuration_is_accepted() {
        assert_eq!(config().validate(), Ok(config()));
        assert_eq!(config().memory_bytes(), 512 << 20);
    }

    #[test]
    fn numbers_of_vcpus_out_of_range_are_refused() {
        for (vcpus, max_vcpus, expected) in [
            (0, 1, Err(Error::Vcpus(0))),
            (MAX_VCPUS + 1, MAX_VCPUS + 1, Err(Error::Vcpus(MAX_VCPUS + 1))),
            (1, 0, Err(Error::MaxVcpus { max: 0, vcpus: 1 })),
            (4, 3, Err(Error::MaxVcpus { max: 3, vcpus: 4 })),
            (
                1,
                MAX_VCPUS + 1,
                Err(Error::MaxVcpus {
                    max: MAX_VCPUS + 1,
                    vcpus: 1,
                }),
            ),
            (1, 1, Ok(())),
            (4, MAX_VCPUS, Ok(())),
            (MAX_VCPUS, MAX_VCPUS, Ok(())),
        ] {
            let config = Config {
                vcpus,
                max_vcpus,
                ..config()
            };
            assert_eq!(config.validate().map(drop), expected, "{vcpus} of {max_vcpus}");
        }
    }

    #[test]
    fn memory_sizes_out_of_range_are_refused() {
        for (memory_mib, valid) in [
            (0, false),
            (1, true),
            (MAX_MEMORY_MIB, true),
            (MAX_MEMORY_MIB + 1, false),
        ] {
            let config = Config {
                memory_mib,
                ..config()
            };
            assert_eq!(config.validate().is_ok(), valid, "{memory_mib}");
        }
        let error = Config {
            memory_mib: 0,
            ..config()
        };
        let error = error.validate().unwrap_err().to_string();
        assert!(error.contains("memory_mib = 0"), "{error}");
    }

    #[test]
    fn kernel_parameters_must_be_printable_ascii() {
        for bad in ["a\nb", "a\0b", "\u{e4}"] {
            let config = Config {
                extra_cmdline: bad.to_owned(),
                ..config()
            };
            assert!(config.validate().is_err(), "{bad:?}");
        }
    }
}
