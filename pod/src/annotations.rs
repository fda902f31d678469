//! The annotations by which containerd's and CRI-O's CRI services describe a pod in an OCI spec: whether a
//! container is a pod's sandbox or joins one, the pod's size and its name. The only place that knows their
//! names. Called by the command `start` for every container, by `pod_spec` before the VM starts, and by
//! `bundle` at Create. Pure: reads no file.

use nacre_protocol::spec::{Findings, Refused, quoted, shown};
use serde_json::Value;

use crate::size::SizeHints;

/// All names below start with this.
const PREFIX: &[u8] = b"io.kubernetes.cri";
/// "sandbox" or "container": containerd's name, then CRI-O's. So for the other names.
const CONTAINER_TYPE: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];
const SANDBOX_ID: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
const POD_NAMESPACE: [&str; 2] = [
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri-o.Namespace",
];
const POD_NAME: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"];

/// containerd's sizes: the sums over the pod's containers, each a decimal number; 0 if there is no limit.
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// CRI-O's sizes: the same sums as a `LinuxContainerResources` of CRI, JSON. The second is the older name.
const CRIO_RESOURCES: [&str; 2] = [
    "pod-linux-resources.crio.io",
    "io.kubernetes.cri-o.PodLinuxResources",
];

/// What a container is to its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// No container of CRI: it has a VM of its own.
    Standalone,
    /// The pod's sandbox (pause) container, whose shim and VM the others join.
    Sandbox,
    /// A container of the pod with this sandbox id.
    Member(String),
}

/// The role of the container with this config.json. Text that is not JSON has no annotations; Create reports
/// it.
///
/// # Errors
/// [`Refused`] if the annotations name no role.
pub fn role_in(config_json: &[u8]) -> Result<Role, Refused> {
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: Value,
    }
    // Parsing takes longer than this search, and most specs have no such annotation.
    if !config_json.windows(PREFIX.len()).any(|window| window == PREFIX) {
        return Ok(Role::Standalone);
    }
    match serde_json::from_slice::<Spec>(config_json) {
        Ok(spec) => role(&spec.annotations),
        Err(_) => Ok(Role::Standalone),
    }
}

/// The role that a spec's `annotations` give its container.
///
/// # Errors
/// As [`role_in`].
pub fn role(annotations: &Value) -> Result<Role, Refused> {
    let Some((name, kind)) = first_of(annotations, CONTAINER_TYPE) else {
        return Ok(Role::Standalone);
    };
    match kind {
        "sandbox" => Ok(Role::Sandbox),
        "container" => match first_of(annotations, SANDBOX_ID) {
            Some((_, id)) if !id.is_empty() => Ok(Role::Member(id.to_owned())),
            Some(_) | None => {
                let reason = format!(
                    "missing, but {name} is \"container\": expected the id of the sandbox that it joins"
                );
                Err(Refused::new(path(SANDBOX_ID[0]), reason))
            }
        },
        other => {
            let reason = format!("expected \"sandbox\" or \"container\", got {}", quoted(other));
            Err(Refused::new(path(name), reason))
        }
    }
}

/// The pod's size, as far as `annotations` give it. A value that is not a number is left out; [`check`]
/// refuses it at Create.
pub fn size(annotations: &Value) -> SizeHints {
    let resources: Option<Value> =
        crio_resources(annotations).and_then(|(_, text)| serde_json::from_str(text).ok());
    let limit = |crio: &str, containerd: &str| {
        let given = match &resources {
            Some(resources) => resources[crio].as_i64(),
            None => annotations[containerd]
                .as_str()
                .and_then(|text| text.parse().ok()),
        };
        given.unwrap_or(0)
    };
    SizeHints::of_cri(
        limit("memory_limit_in_bytes", MEMORY),
        limit("cpu_quota", CPU_QUOTA),
        limit("cpu_period", CPU_PERIOD),
    )
}

/// Refuses annotations that name no role, or a size that is not a number.
pub fn check(annotations: &Value, findings: &mut Findings) {
    if let Err(refused) = role(annotations) {
        findings.refused.extend(refused.into_findings());
    }
    for name in [MEMORY, CPU_QUOTA, CPU_PERIOD] {
        let value = &annotations[name];
        let is_number = value.as_str().is_some_and(|text| text.parse::<i64>().is_ok());
        if !value.is_null() && !is_number {
            findings.refuse(
                path(name),
                format!("expected a decimal number, got {}", shown(value)),
            );
        }
    }
    if let Some((name, text)) = crio_resources(annotations)
        && serde_json::from_str::<serde_json::Map<String, Value>>(text).is_err()
    {
        findings.refuse(
            path(name),
            format!("expected a JSON object, got {}", quoted(text)),
        );
    }
}

/// The pod's name in Kubernetes for the log, as "namespace/name".
pub fn pod_name(annotations: &Value) -> Option<String> {
    let (_, namespace) = first_of(annotations, POD_NAMESPACE)?;
    let (_, name) = first_of(annotations, POD_NAME)?;
    Some(format!("{namespace}/{name}"))
}

fn crio_resources(annotations: &Value) -> Option<(&'static str, &str)> {
    first_of(annotations, CRIO_RESOURCES)
}

/// The first annotation of these two names.
fn first_of<'a>(annotations: &'a Value, names: [&'static str; 2]) -> Option<(&'static str, &'a str)> {
    names
        .into_iter()
        .find_map(|name| annotations[name].as_str().map(|text| (name, text)))
}

/// The JSON path of an annotation, for an error.
fn path(name: &str) -> String {
    format!("annotations[{name:?}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusals(annotations: &Value) -> String {
        let mut findings = Findings::default();
        check(annotations, &mut findings);
        findings.refusals()
    }

    #[test]
    fn both_cri_services_name_the_role_of_a_container() {
        for (kind, id) in [
            ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
            (
                "io.kubernetes.cri-o.ContainerType",
                "io.kubernetes.cri-o.SandboxID",
            ),
        ] {
            let read = |annotations: &Value| {
                let text = json!({ "annotations": annotations }).to_string();
                role_in(text.as_bytes()).map_err(|refused| refused.to_string())
            };
            let member = json!({kind: "container", id: "s1"});
            assert_eq!(read(&member), Ok(Role::Member("s1".into())));
            assert_eq!(read(&json!({kind: "sandbox", id: "s1"})), Ok(Role::Sandbox));
            let unknown = read(&json!({kind: "podsandbox", id: "s1"})).unwrap_err();
            assert!(unknown.starts_with(&path(kind)), "{unknown}");
            let alone = read(&json!({kind: "container"})).unwrap_err();
            assert!(
                alone.starts_with(&path("io.kubernetes.cri.sandbox-id")),
                "{alone}"
            );
        }
    }

    #[test]
    fn other_containers_stand_alone() {
        let texts = [
            r#"{"annotations":{}}"#,
            "{}",
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1"}}"#,
            "not json: io.kubernetes.cri.container-type",
            r#"{"annotations":"io.kubernetes.cri.container-type"}"#,
        ];
        for text in texts {
            assert_eq!(role_in(text.as_bytes()).unwrap(), Role::Standalone, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_both_forms() {
        let want = SizeHints {
            memory_limit: Some(629_145_600),
            cpu_quota: Some(150_000),
            cpu_period: Some(100_000),
        };
        let containerd = json!({MEMORY: "629145600", CPU_QUOTA: "150000", CPU_PERIOD: "100000"});
        assert_eq!(size(&containerd), want);
        let resources = r#"{"cpu_period":100000,"cpu_quota":150000,"cpu_shares":102,
            "memory_limit_in_bytes":629145600,"unified":{}}"#;
        for name in CRIO_RESOURCES {
            let crio = json!({name: resources});
            assert_eq!((size(&crio), refusals(&crio)), (want, String::new()));
        }
        // 0 and -1 are "no limit".
        let none = json!({MEMORY: "0", CPU_QUOTA: "-1"});
        assert_eq!(
            (size(&none), refusals(&none)),
            (SizeHints::default(), String::new())
        );
    }

    #[test]
    fn a_size_that_is_not_a_number_is_refused_by_name() {
        for name in [MEMORY, CPU_QUOTA, CPU_PERIOD] {
            for value in [json!("1Gi"), json!(""), json!(5), json!("99999999999999999999")] {
                let annotations = json!({name: value});
                assert!(refusals(&annotations).starts_with(&path(name)), "{annotations}");
                assert_eq!(size(&annotations), SizeHints::default());
            }
        }
        for name in CRIO_RESOURCES {
            let annotations = json!({name: "5"});
            assert!(refusals(&annotations).starts_with(&path(name)), "{annotations}");
        }
        assert_eq!(refusals(&json!(null)), "");
    }

    #[test]
    fn the_pod_s_name_is_its_kubernetes_name() {
        let name = |annotations| pod_name(&annotations);
        let containerd =
            json!({"io.kubernetes.cri.sandbox-namespace": "web", "io.kubernetes.cri.sandbox-name": "a"});
        assert_eq!(name(containerd).as_deref(), Some("web/a"));
        let crio = json!({"io.kubernetes.cri-o.Namespace": "web", "io.kubernetes.cri-o.KubeName": "a"});
        assert_eq!(name(crio).as_deref(), Some("web/a"));
        assert_eq!(name(json!({})), None);
    }
}
