//! Rehearses a pod's start: Setup, and one container that runs the agent's own program, which exits at once. In the
//! guest that `nacre-vmm --save` lets go on to learn which pages a pod's guest writes at its start. That guest ends
//! with its VMM. Called by `main`; never in a pod's guest.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use nacre_protocol::BUILD_ID;
use nacre_protocol::agent::{
    Agent as _, ContainerRef, CreateContainerRequest, ProcessRef, SetupRequest, Stdio,
};
use nacre_protocol::guest::{MAX_REHEARSAL_REPORT, REHEARSED, SHARED_MOUNT};
use nacre_protocol::vsock::StreamAddress;
use rustix::mount::mount_bind;
use ttrpc::asynchronous::TtrpcContext;

use crate::reaper::realtime_ns;
use crate::service::Service;

/// The path of the container's program, and its `argv[0]`.
pub const PROGRAM: &str = "/nacre-rehearsal";
/// The container's spec: what containerd makes by default, as the engine completes it for the guest.
const SPEC: &str = include_str!("rehearsal.json");
/// The container's id.
const ID: &str = "rehearsal";
/// The container's root.
const ROOT: &str = "/run/nacre/rehearsal";
/// The agent's program.
const AGENT: &str = "/proc/self/exe";
/// Any bytes: nothing that is drawn from them leaves this guest.
const ENTROPY: [u8; 64] = [0x5a; 64];
/// The ports of the container's standard output and error.
const STREAMS: [u32; 2] = [StreamAddress::FIRST_PORT, StreamAddress::FIRST_PORT + 1];

/// Does what a pod's start does, but for its network and its files.
///
/// # Errors
/// The step that failed, and why.
pub async fn run(service: &Service) -> Result<(), String> {
    let context = TtrpcContext {
        mh: ttrpc::MessageHeader::default(),
        metadata: HashMap::new(),
        timeout_nano: 0,
        connection_data: Arc::default(),
    };
    let setup = service.setup(&context, setup());
    setup.await.map_err(at("Setup"))?;
    make_root().map_err(|error| format!("making {ROOT}: {error}"))?;
    let created = service.create_container(&context, container());
    created.await.map_err(at("CreateContainer"))?;
    let container = ContainerRef {
        container_id: ID.to_owned(),
        ..ContainerRef::default()
    };
    let started = service.start_container(&context, container);
    started.await.map_err(at("StartContainer"))?;
    let init = ProcessRef {
        container_id: ID.to_owned(),
        ..ProcessRef::default()
    };
    let exited = service
        .wait_process(&context, init)
        .await
        .map_err(at("WaitProcess"))?;
    match exited.exit_status {
        0 => Ok(()),
        status => Err(format!("the container exited with {status}")),
    }
}

/// The bytes that report `rehearsed` to the VMM.
pub fn report(rehearsed: Result<(), String>) -> Vec<u8> {
    match rehearsed {
        Ok(()) => REHEARSED.to_vec(),
        Err(mut text) => {
            text.truncate(text.floor_char_boundary(MAX_REHEARSAL_REPORT));
            text.into_bytes()
        }
    }
}

/// For `map_err`: the request that failed, and the reason without its code.
fn at(request: &'static str) -> impl FnOnce(ttrpc::Error) -> String {
    move |error| {
        if let ttrpc::Error::RpcStatus(status) = &error {
            return format!("{request}: {}", status.message);
        }
        format!("{request}: {error}")
    }
}

fn setup() -> SetupRequest {
    SetupRequest {
        build_id: BUILD_ID.to_owned(),
        realtime_ns: realtime_ns(),
        hostname: ID.to_owned(),
        entropy: ENTROPY.to_vec(),
        ..SetupRequest::default()
    }
}

fn container() -> CreateContainerRequest {
    let [stdout, stderr] = STREAMS.map(|port| {
        let address = StreamAddress {
            host_port: port,
            guest_port: port,
        };
        address.to_bits()
    });
    CreateContainerRequest {
        container_id: ID.to_owned(),
        spec: SPEC.into(),
        stdio: Some(Stdio {
            stdout,
            stderr,
            ..Stdio::default()
        })
        .into(),
        ..CreateContainerRequest::default()
    }
}

/// Makes the container's root. As at a pod's start, a name of the shared tree is looked up; it has none.
fn make_root() -> std::io::Result<()> {
    let _ = Path::new(SHARED_MOUNT).join(ID).symlink_metadata();
    fs::create_dir(ROOT)?;
    let program = format!("{ROOT}{PROGRAM}");
    fs::write(&program, "")?;
    Ok(mount_bind(AGENT, &program)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec;

    #[test]
    fn the_spec_is_accepted_as_it_is() {
        let prepared = spec::prepare(ID, SPEC.as_bytes(), BTreeMap::new()).unwrap();
        assert!(prepared.ignored.is_empty(), "{:?}", prepared.ignored);
        assert!(!prepared.devices.is_empty());
        let process = prepared.spec.process().clone().unwrap();
        assert_eq!(process.args().as_deref(), Some(&[PROGRAM.to_owned()][..]));
        let root = prepared.spec.root().clone().unwrap();
        assert_eq!(root.path(), Path::new(ROOT));
    }

    #[test]
    fn a_report_is_one_word_or_an_error_of_bounded_length() {
        assert_eq!(report(Ok(())), REHEARSED);
        assert_eq!(report(Err("Setup: refused".to_owned())), b"Setup: refused");
        assert_eq!(report(Err("é".repeat(2000))).len(), MAX_REHEARSAL_REPORT);
    }
}
