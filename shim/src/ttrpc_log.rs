//! Passes on to the shim's log what the ttrpc library logs about the connections with containerd and the
//! agent. Installed by the daemon. The library's trace lines, which have whole messages, are never formatted.

use nacre_pod::log as own;

struct TtrpcLog;

/// Takes the lines of the library from now on.
pub fn install() {
    // Fails if a logger is installed already: nothing else of this program installs one.
    if log::set_logger(&TtrpcLog).is_ok() {
        log::set_max_level(if own::logs_debug() {
            log::LevelFilter::Debug
        } else {
            log::LevelFilter::Warn
        });
    }
}

impl log::Log for TtrpcLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        let file = record.file_static().unwrap_or("ttrpc");
        let site = (file, record.line().unwrap_or(0), 0);
        own::log(
            level(record.level()),
            site,
            format_args!("ttrpc: {}", record.args()),
        );
    }

    fn flush(&self) {}
}

/// A connection or a call that fails in the library is no failure of the shim.
fn level(level: log::Level) -> own::Level {
    match level {
        log::Level::Error | log::Level::Warn => own::Level::Warning,
        log::Level::Info | log::Level::Debug | log::Level::Trace => own::Level::Debug,
    }
}
