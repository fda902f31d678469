//! What the caller says about a pod's size, before and while it runs. Pure.

use serde_json::Value;

/// What a pod's size follows from. None and values below 1 are no limit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SizeHints {
    /// Memory of all containers, bytes.
    pub memory_limit: Option<i64>,
    /// CPU time of all containers, microseconds per period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
}

impl SizeHints {
    /// The limits in CRI's `LinuxContainerResources`, in which 0 and -1 are none.
    #[must_use]
    pub fn of_cri(memory_limit: i64, cpu_quota: i64, cpu_period: i64) -> Self {
        let limit = |limit: i64| Some(limit).filter(|limit| *limit > 0);
        Self {
            memory_limit: limit(memory_limit),
            cpu_quota: limit(cpu_quota),
            cpu_period: limit(cpu_period).and_then(|period| period.try_into().ok()),
        }
    }

    /// These limits, and those of `other` where there is none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        // A quota and its period belong together.
        let (cpu_quota, cpu_period) = match self.cpu_quota {
            Some(quota) => (Some(quota), self.cpu_period),
            None => (other.cpu_quota, other.cpu_period),
        };
        Self {
            memory_limit: self.memory_limit.or(other.memory_limit),
            cpu_quota,
            cpu_period,
        }
    }

    /// The limits in `linux.resources`.
    pub fn of_container(resources: &Value) -> Self {
        let cpu = &resources["cpu"];
        Self {
            memory_limit: resources["memory"]["limit"].as_i64(),
            cpu_quota: cpu["quota"].as_i64(),
            cpu_period: cpu["period"].as_u64(),
        }
    }
}
