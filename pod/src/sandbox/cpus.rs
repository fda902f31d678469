//! The host's CPUs of a running pod's VM (`linux.resources.cpu.cpus` in an update). As at Create, they are those
//! of the container that the VM was started for; other containers of the pod can't choose any.

use nacre_protocol::cpu_list;
use serde_json::Value;

use super::Sandbox;
use crate::error::Error;
use crate::log;

const FIELD: &str = "linux.resources.cpu.cpus";

impl Sandbox {
    /// Takes the CPUs out of `resources`, an update of container `id`, because the guest's CPUs have other
    /// numbers, and lets the VM run on them, if it is that container's.
    ///
    /// # Errors
    /// [`Error::Refused`] if the host has none of them.
    pub(super) fn update_cpus(&mut self, id: &str, resources: &mut Value) -> Result<(), Error> {
        let Some(text) = take_cpus(resources) else {
            return Ok(());
        };
        if !self.owns_vm(id) {
            log::warn(format_args!(
                "{id}: {FIELD} is ignored: the CPUs of the pod's VM are those of the pod's first container"
            ));
            return Ok(());
        }
        let refused = |reason: &dyn std::fmt::Display| Error::Refused(format!("{FIELD}: {text:?}: {reason}"));
        let cpus = cpu_list::parse(&text).ok_or_else(|| refused(&"expected a list of CPUs, as \"0-3,7\""))?;
        if let Some(vm) = &self.vm {
            vm.set_cpus(&cpus).map_err(|error| refused(&error))?;
        }
        self.spec.cpus = cpus;
        Ok(())
    }
}

/// Removes `cpu.cpus`; None if there are none.
fn take_cpus(resources: &mut Value) -> Option<String> {
    let cpus = resources.get_mut("cpu")?.as_object_mut()?.remove("cpus")?;
    cpus.as_str().filter(|cpus| !cpus.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_guest_gets_no_cpus_of_the_host() {
        for (resources, cpus, rest) in [
            (
                json!({"cpu": {"cpus": "1-2", "shares": 5}}),
                Some("1-2"),
                json!({"cpu": {"shares": 5}}),
            ),
            (json!({"cpu": {"cpus": ""}}), None, json!({"cpu": {}})),
            (json!({"pids": {"limit": 1}}), None, json!({"pids": {"limit": 1}})),
        ] {
            let mut given = resources;
            assert_eq!(take_cpus(&mut given).as_deref(), cpus);
            assert_eq!(given, rest);
        }
    }
}
