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
    /// Number of vCPUs: 1..=[`MAX_VCPUS`].
    pub vcpus: u8,
    /// Appended to the kernel command line: printable ASCII.
    pub extra_cmdline: String,
    /// The console's output besides its ring.
    pub console: ConsoleOutput,
}

/// Where the guest's console output goes besides its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleOutput {
    /// Nowhere else; the kernel prints warnings and errors only.
    RingOnly,
    /// To standard error, line by line, with all kernel messages.
    Stderr,
    /// To standard output, byte by byte, with all kernel messages; standard input goes to the guest.
    Terminal,
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Shim and VMM come from different builds.
    #[error("the shim is build {shim}, nacre-vmm is build {vmm}: install both from one build")]
    BuildMismatch {
        /// The shim's build id.
        shim: String,
        /// This program's build id.
        vmm: &'static str,
    },
    /// The number of vCPUs is out of range.
    #[error("vcpus = {0}: must be 1 to {MAX_VCPUS}")]
    Vcpus(u8),
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
            return Err(Error::BuildMismatch {
                shim: configure.build_id,
                vmm: nacre_protocol::BUILD_ID,
            });
        }
        let console = if configure.console_to_stderr {
            ConsoleOutput::Stderr
        } else {
            ConsoleOutput::RingOnly
        };
        Self {
            pod: configure.pod,
            memory_mib: configure.memory_mib,
            vcpus: configure.vcpus,
            extra_cmdline: configure.extra_cmdline,
            console,
        }
        .validate()
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
    fn a_valid_configuration_is_accepted() {
        let config = Config::try_from(configure()).unwrap();
        assert_eq!(config.memory_bytes(), 512 << 20);
        assert_eq!(config.console, ConsoleOutput::RingOnly);
    }

    #[test]
    fn a_shim_of_another_build_is_refused_with_both_build_ids() {
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
    fn values_out_of_range_are_refused_with_field_and_value() {
        for (vcpus, valid) in [(0, false), (1, true), (MAX_VCPUS, true), (MAX_VCPUS + 1, false)] {
            assert_eq!(
                Config::try_from(Configure { vcpus, ..configure() }).is_ok(),
                valid,
                "{vcpus}"
            );
        }
        for (memory_mib, valid) in [
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
                valid,
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
    fn kernel_parameters_must_be_printable_ascii() {
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
