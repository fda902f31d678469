//! Sends the errors that libcontainer logs to the agent, because the errors that it returns often lack the
//! cause. Installed by the helper and inherited by the processes that libcontainer forks; never sends other
//! log levels.

use std::fmt::{Debug, Write as _};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use nacre_protocol::control::Channel;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::FromHelper;
use crate::error::truncate;

/// Longest text of a logged error, in characters.
const MAX_TEXT: usize = 500;

static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// Sends errors that are logged from now on, and the message of a panic, to `socket`.
pub fn install(socket: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
    CHANNEL
        .set(Channel::new(socket))
        .map_err(|_| "the error log was installed twice")?;
    tracing::subscriber::set_global_default(Errors)?;
    std::panic::set_hook(Box::new(|panic| {
        send(&FromHelper::LoggedError(shorten(&panic.to_string())));
        // Not abort: the kernel drops SIGABRT for a container's init, which is PID 1 of its pid namespace.
        std::process::exit(crate::report::FAILED);
    }));
    Ok(())
}

/// Sends the reason why the command cannot be executed.
pub fn send_command_error(text: &str) {
    send(&FromHelper::Command(truncate(text.to_owned())));
}

fn shorten(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn send(message: &FromHelper) {
    if let Some(channel) = CHANNEL.get() {
        // Ignore this error: the agent closes the socket once it has its reply.
        let _ = channel.send(message, &[]);
    }
}

struct Errors;

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        send(&FromHelper::LoggedError(shorten(&text.0)));
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let separator = if self.0.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{separator}{value:?}"),
            name => write!(self.0, "{separator}{name}: {value:?}"),
        };
    }
}
