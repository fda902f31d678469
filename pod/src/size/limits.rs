//! The limits of a container, or of a pod, that its VM's size follows from: `memory.limit`, `cpu.quota` and
//! `cpu.period` of the OCI specification's `linux.resources`. Pure.

use serde_json::Value;

use super::{Host, SizeHints};

/// The kernel's period for a quota that comes without one, microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// The limits. None: never set.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; -1 for no limit.
    memory: Option<i64>,
    /// Microseconds per period; -1 for no limit.
    quota: Option<i64>,
    /// Microseconds.
    period: Option<u64>,
}

impl From<SizeHints> for Limits {
    fn from(hints: SizeHints) -> Self {
        let given = |value: &i64| *value != 0;
        Self {
            memory: hints.memory_limit.filter(given),
            quota: hints.cpu_quota.filter(given),
            period: hints.cpu_period.filter(|period| *period != 0),
        }
    }
}

impl Limits {
    /// The limits in `resources`, a `linux.resources` object.
    #[must_use]
    pub fn of(resources: &Value) -> Self {
        Self::default().updated(resources)
    }

    /// These limits after an update by `resources`, which leaves a limit as it is if it has none, or 0.
    #[must_use]
    pub fn updated(self, resources: &Value) -> Self {
        let (memory, cpu) = (&resources["memory"], &resources["cpu"]);
        let given = |value: &i64| *value != 0;
        Self {
            memory: memory["limit"].as_i64().filter(given).or(self.memory),
            quota: cpu["quota"].as_i64().filter(given).or(self.quota),
            period: cpu["period"]
                .as_u64()
                .filter(|period| *period != 0)
                .or(self.period),
        }
    }

    /// What these limits mean on `host`: as many bytes as it has are no limit.
    pub(super) fn on(self, host: Host) -> Self {
        let is_limit =
            |bytes: &i64| u64::try_from(*bytes).is_ok_and(|bytes| bytes >> 20 < host.memory_mib.into());
        Self {
            memory: self.memory.filter(is_limit),
            ..self
        }
    }

    /// The memory limit in bytes.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        self.memory.and_then(|bytes| u64::try_from(bytes).ok())
    }

    /// The CPU limit in thousandths of a CPU, rounded up.
    #[must_use]
    pub fn millicpus(&self) -> Option<u64> {
        let quota = u64::try_from(self.quota?).ok()?;
        Some(
            quota
                .saturating_mul(1000)
                .div_ceil(self.period.unwrap_or(DEFAULT_PERIOD)),
        )
    }

    /// The vCPUs that the CPU limit needs.
    pub(super) fn cpus(&self) -> Option<u8> {
        self.millicpus().map(vcpus)
    }
}

/// The vCPUs that `millicpus` need.
pub(super) fn vcpus(millicpus: u64) -> u8 {
    u8::try_from(millicpus.div_ceil(1000)).unwrap_or(u8::MAX).max(1)
}
