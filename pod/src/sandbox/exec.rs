//! A process beside init: Exec makes it known and opens its streams, so that whatever containerd writes or closes before
//! Start is not lost; Start is one call to the guest.

use serde_json::Value;

use super::{Sandbox, log_ignored_fields};
use crate::bundle;
use crate::container::TaskState;
use crate::container::{Exec, ExecRequest};
use crate::container::{Process, Reply, answer};
use crate::error::Error;
use crate::event::TaskEvent;

impl Sandbox {
    pub(super) fn exec(&mut self, request: ExecRequest, reply: Reply<()>) {
        let name = request.name.clone();
        let added = self.add_exec(request);
        match &added {
            Ok(()) => self.events.publish(&TaskEvent::ExecAdded {
                id: &name.container,
                exec: &name.exec,
            }),
            Err(error) => {
                crate::log::error(format_args!("exec {} in {}: {error}", name.exec, name.container))
            }
        }
        answer(reply, added);
    }

    fn add_exec(&mut self, request: ExecRequest) -> Result<(), Error> {
        let name = request.name;
        let container = self.container(&name.container)?;
        if name.exec.is_empty() {
            return Err(Error::InvalidId(name.exec));
        }
        if container.execs.contains_key(&name.exec) {
            return Err(Error::Exists(name));
        }
        if !container.accepts_exec() {
            return Err(container.refuse("given a process"));
        }
        let checked = bundle::process(&request.process);
        let (mut spec, ignored) = checked.map_err(|error| Error::Refused(error.to_string()))?;
        log_ignored_fields(&name, &ignored);
        // As under containerd's own shims: the call says whether there is a terminal.
        spec.insert("terminal".into(), request.paths.terminal.into());
        let (streams, stdio) = self.open_streams(&request.paths, &name.container)?;
        let tag = self.tag(name.clone());
        let exec = Exec {
            process: Process::new(tag, TaskState::Created, request.paths, streams),
            spec,
            stdio,
            size: None,
        };
        self.container_mut(&name.container)?.execs.insert(name.exec, exec);
        Ok(())
    }
}

/// As the guest gets it.
pub(super) fn for_guest(exec: &mut Exec) -> Vec<u8> {
    let mut process = std::mem::take(&mut exec.spec);
    if let Some(size) = exec.size.take() {
        let size = serde_json::json!({"width": size.width, "height": size.height});
        process.insert("consoleSize".into(), size);
    }
    Value::Object(process).to_string().into_bytes()
}
