//! Reads what UpdateSandbox changes: the resources of a pod that is resized in place. containerd sends its
//! whole record of the sandbox; CRI's resize is the extension `updated-resources` in it, JSON of a type that is
//! not a protobuf message. Called by the Sandbox service. Pure.

use nacre_pod::{Error, SizeHints};
use serde::Deserialize;

use crate::proto::sandbox::UpdateSandboxRequest;

/// The extension's key, and the type of its content.
const KEY: &str = "updated-resources";
const TYPE: &str = "io.containerd.cri.v1/UpdatedResources";

/// CRI's resize; the keys are those of Go's fields.
#[derive(Debug, Deserialize)]
struct UpdatedResources {
    #[serde(rename = "Resources")]
    resources: Option<Resources>,
}

/// `LinuxContainerResources` of CRI, as far as a pod's size follows from it; 0 is "not set".
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    cpu_period: i64,
    cpu_quota: i64,
    memory_limit_in_bytes: i64,
}

/// The pod's new size; None if the request does not resize it.
///
/// # Errors
/// [`Error::Refused`] if the extension can't be read.
pub fn size(request: &UpdateSandboxRequest) -> Result<Option<SizeHints>, Error> {
    let fields = &request.fields;
    let is_updated = |field: &String| field == "extensions" || *field == format!("extensions.{KEY}");
    if !fields.is_empty() && !fields.iter().any(is_updated) {
        return Ok(None);
    }
    let Some(extension) = request.sandbox.extensions.get(KEY) else {
        return Ok(None);
    };
    let refused = |reason: String| Error::Refused(format!("sandbox.extensions[{KEY:?}]: {reason}"));
    if extension.type_url != TYPE {
        return Err(refused(format!(
            "expected type {TYPE}, got {:?}",
            extension.type_url
        )));
    }
    let updated: UpdatedResources =
        serde_json::from_slice(&extension.value).map_err(|error| refused(error.to_string()))?;
    Ok(updated.resources.map(|resources| {
        SizeHints::of_cri(
            resources.memory_limit_in_bytes,
            resources.cpu_quota,
            resources.cpu_period,
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::types::Sandbox;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    fn request(type_url: &str, value: &str, fields: &[&str]) -> UpdateSandboxRequest {
        let extension = Any {
            type_url: type_url.to_owned(),
            value: value.as_bytes().to_vec(),
            ..Default::default()
        };
        let mut sandbox = Sandbox::new();
        sandbox.extensions.insert(KEY.to_owned(), extension);
        UpdateSandboxRequest {
            sandbox: Some(sandbox).into(),
            fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            ..Default::default()
        }
    }

    const RESIZE: &str = r#"{"Overhead":null,"Resources":{"cpu_period":100000,"cpu_quota":200000,
        "memory_limit_in_bytes":2147483648,"oom_score_adj":0}}"#;

    #[test]
    fn a_resize_is_read_from_the_extension() {
        let want = SizeHints {
            memory_limit: Some(2 << 30),
            cpu_quota: Some(200_000),
            cpu_period: Some(100_000),
        };
        for fields in [
            &["extensions"][..],
            &[],
            &["labels", "extensions.updated-resources"],
        ] {
            assert_eq!(size(&request(TYPE, RESIZE, fields)).unwrap(), Some(want));
        }
    }

    #[test]
    fn other_updates_change_no_size() {
        assert_eq!(size(&request(TYPE, RESIZE, &["labels"])).unwrap(), None);
        assert_eq!(size(&UpdateSandboxRequest::new()).unwrap(), None);
        assert_eq!(size(&request(TYPE, r#"{"Resources":null}"#, &[])).unwrap(), None);
    }

    #[test]
    fn an_extension_that_can_t_be_read_is_refused_by_name() {
        for (kind, value) in [
            ("x", RESIZE),
            (TYPE, "{"),
            (TYPE, r#"{"Resources":{"cpu_quota":"1"}}"#),
        ] {
            let error = size(&request(kind, value, &[])).unwrap_err().to_string();
            assert!(
                error.starts_with("sandbox.extensions[\"updated-resources\"]"),
                "{error}"
            );
        }
    }
}
