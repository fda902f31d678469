//! Exec: makes an exec process known and opens its streams, so that nothing is lost that the caller writes or
//! closes before Start. The guest gets it with Start only.

use nacre_protocol::fault::{self, FaultPoint};
use nacre_protocol::spec;

use super::{Sandbox, log_ignored_fields};
use crate::container::{self, Exec, ExecRequest, Process, Reply, answer};
use crate::error::Error;
use crate::event::TaskEvent;
use crate::log;

impl Sandbox {
    pub(super) fn exec(&mut self, request: ExecRequest, reply: Reply<()>) {
        let name = request.name.clone();
        let added = self.add_exec(request);
        match &added {
            Ok(()) => self.events.publish(&TaskEvent::ExecAdded {
                id: &name.container,
                exec: &name.exec,
            }),
            Err(error) => log::error(format_args!("exec {} in {}: {error}", name.exec, name.container)),
        }
        fault::reach(FaultPoint::ExecAdded);
        answer(reply, added);
    }

    fn add_exec(&mut self, request: ExecRequest) -> Result<(), Error> {
        let name = request.name;
        self.refuse_pause(&name.container, "joined by an exec process")?;
        let container = self.container(&name.container)?;
        if name.exec.is_empty() {
            return Err(Error::InvalidId(name.exec));
        }
        if container.execs.contains_key(&name.exec) {
            return Err(Error::Exists(name));
        }
        if !container.lifecycle.accepts_exec() {
            return Err(container.refuse("joined by an exec process"));
        }
        let (mut spec, ignored) = spec::check_process(&request.process)?.into_parts();
        log_ignored_fields(&name, &ignored);
        // As under containerd's own shims: the call says whether there is a terminal.
        spec["terminal"] = request.paths.terminal.into();
        let (streams, stdio) = self.open_streams(&request.paths, &name.container)?;
        let key = self.new_key(name.clone());
        let exec = Exec {
            process: Process::new(key, request.paths, streams),
            spec,
            stdio,
            size: None,
        };
        // Checked above: the container accepts it.
        let _ = self.feed(&name.container, container::Event::ExecAdded(name.exec.clone()));
        self.container_mut(&name.container)?.execs.insert(name.exec, exec);
        Ok(())
    }
}
