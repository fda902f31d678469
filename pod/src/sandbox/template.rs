//! The template from which the pod's VM continues, if there is one that fits; if not, another process makes one
//! for the next pods ([`crate::template`]). The VMM decides whether it can use it.

use nacre_protocol::config::Config;

use super::Sandbox;
use super::progress::Progress;
use crate::log;
use crate::size::{Host, VmSize};
use crate::template::maker::{self, Waiting};
use crate::template::{Absent, Kind, MAX_MEMORY_MIB, Store, Template, TemplateId};

/// What a pod has to do with templates.
#[derive(Debug, Default)]
pub(super) struct PodTemplate {
    /// The one that the VMM gets with its configuration.
    pub(super) opened: Option<Template>,
    /// The VM may continue from the template with this key and id.
    used: Option<(String, TemplateId)>,
    /// Makes a template once the pod has started.
    maker: Option<Waiting>,
}

impl Sandbox {
    /// Looks for a template from which a VM of `size` can continue, and returns what the VM has at first. If no pod
    /// of its kind has started before, one is made once this one has.
    pub(super) fn find_template(&mut self, config: &Config, size: VmSize, host: Host) -> VmSize {
        let found = kind_of(config, size, host)
            .and_then(|(kind, in_template)| Ok((self.open_template(config, &kind)?, in_template)));
        match found {
            Ok((template, in_template)) => {
                self.recorder.origin(format!("template {}", template.key));
                self.template.used = Some((template.key.clone(), template.id));
                self.template.opened = Some(template);
                in_template
            }
            Err(absent) => {
                self.recorder.origin(format!("boot: {absent}"));
                size
            }
        }
    }

    fn open_template(&mut self, config: &Config, kind: &Kind) -> Result<Template, Absent> {
        let store = Store::default();
        let opened = kind.key().map_err(unreadable).and_then(|key| store.open(&key));
        if matches!(opened, Err(Absent::None | Absent::Unusable { .. })) {
            match maker::prepare(&store, kind, config.boot_deadline) {
                Ok(waiting) => self.template.maker = Some(waiting),
                Err(error) => log::warn(format_args!("starting a process that makes a template: {error}")),
            }
        }
        opened
    }

    /// The VMM boots the guest, since it can't use the template. Another VMM can if `is_transient`.
    pub(super) fn template_refused(&mut self, reason: &str, is_transient: bool) {
        // A VMM that was taken over may send this at any time, and as often as it likes.
        if !matches!(*self.progress.borrow(), Progress::Starting) {
            return;
        }
        let Some((key, id)) = self.template.used.take() else {
            return;
        };
        let now = if is_transient { " now" } else { "" };
        log::warn(format_args!(
            "the guest boots, since template {key} can't be used{now}: {reason}"
        ));
        self.recorder
            .origin(format!("boot: template {key} can't be used{now}: {reason}"));
        if is_transient {
            return;
        }
        // The next pod has another one made: this one's shim may be in the pod's cgroup by now.
        if let Err(error) = Store::default().remove_same(&key, id) {
            log::warn(format_args!("removing template {key}: {error}"));
        }
    }

    /// The VM has ended by itself. If its agent has never been ready, the next pods boot.
    pub(super) fn template_failed(&mut self, reason: &str) {
        let is_ready = matches!(*self.progress.borrow(), Progress::Ready(_));
        let Some((key, id)) = self.template.used.take().filter(|_| !is_ready && !self.closing) else {
            return;
        };
        log::warn(format_args!("a guest did not continue from template {key}"));
        let store = Store::default();
        let removed = store.remove_same(&key, id).and_then(|was_there| {
            let reason = format!("a guest did not continue from the template of this kind of pod: {reason}");
            if was_there {
                store.record_failure(&key, &reason)
            } else {
                Ok(())
            }
        });
        if let Err(error) = removed {
            log::warn(format_args!("removing template {key}: {error}"));
        }
    }

    /// The pod has started, or never will: if there is to be a template of its kind, it is made now.
    pub(super) fn make_template(&mut self) {
        self.template.maker = None;
    }
}

/// What a VM of `size` can continue from, and its size then, if there are templates for such VMs.
fn kind_of(config: &Config, size: VmSize, host: Host) -> Result<(Kind, VmSize), Absent> {
    if !config.templates {
        return Err(Absent::Off);
    }
    if config.console_to_log {
        return Err(Absent::Logged);
    }
    let in_template = size
        .in_template(config, host)
        .ok_or(Absent::Large(size.boot_mib))?;
    if in_template.boot_mib > MAX_MEMORY_MIB {
        return Err(Absent::Large(in_template.boot_mib));
    }
    let kind = Kind::of(config, in_template).map_err(unreadable)?;
    Ok((kind, in_template))
}

fn unreadable(error: std::io::Error) -> Absent {
    Absent::Unreadable(error.to_string())
}
