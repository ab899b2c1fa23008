//! Where the log goes.
//!
//! What always holds: a panic anywhere is one line of the log. The level is `info`, or what `KVFS_LOG` says
//! (`KVFS_LOG=debug`, `KVFS_LOG=kvfs::fs=trace`), until `kvfs log` says otherwise.

use std::fs::File;
use std::path::Path;

use tracing::subscriber::Interest;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::Failure;
use crate::config::{LogFormat, LogTo};

/// The journal's socket (sd_journal(3)).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where a mount in the background logs to when nobody said: the journal, where there is one; else root's to
/// `/var/log`, and a user's beside the control socket.
pub(super) fn default_in_background() -> Result<LogTo, Failure> {
    if Path::new(JOURNAL).exists() {
        return Ok(LogTo::Journal);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(LogTo::File("/var/log/kvfs.log".into()));
    }
    let dir = crate::control::runtime_dir().map_err(|e| {
        Failure::other(format!("there is no place for the log ({e}); name one with --log FILE"))
    })?;
    Ok(LogTo::File(dir.join("kvfs.log")))
}

/// For people.
pub(super) fn describe(to: &LogTo) -> String {
    match to {
        LogTo::Stderr => "standard error".into(),
        LogTo::Journal => "the journal (journalctl -t kvfs)".into(),
        LogTo::File(path) => path.display().to_string(),
    }
}

/// Hides that a request was answered which nobody waits for any more: it was said of its drive.
fn no_late_answers<S: tracing::Subscriber>() -> impl Layer<S> {
    let says = |meta: &tracing::Metadata<'_>| meta.target() == "fuser::reply";
    dynamic_filter_fn(move |meta, _| !says(meta) || !crate::fuse::nobody_waits()).with_callsite_filter(
        |meta| match meta.target() {
            // What comes by the crate log has its own target later.
            target if target == "log" || target.starts_with("fuser") => Interest::sometimes(),
            _ => Interest::always(),
        },
    )
}

/// Lines of text, or of JSON.
fn lines<S, W>(format: LogFormat, to: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(to);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    }
}

/// Starts logging.
pub(super) fn start(to: &LogTo, format: LogFormat) -> Result<(), Failure> {
    let registry = tracing_subscriber::registry().with(crate::log::filter()).with(no_late_answers());
    match to {
        LogTo::Stderr => registry.with(lines(format, std::io::stderr)).init(),
        LogTo::Journal if format == LogFormat::Json => {
            return Err(Failure::bad_value(
                "--log-format json: the journal has fields of its own (journalctl -o json shows them); use --log FILE",
            ));
        }
        LogTo::Journal => {
            let journal = tracing_journald::layer().map_err(|e| {
                Failure::bad_value(format!("--log journal: there is no journal here ({e}); use --log FILE"))
            })?;
            registry.with(journal.with_syslog_identifier("kvfs".into())).init();
        }
        LogTo::File(path) => {
            let file = File::options().create(true).append(true).open(path).map_err(|e| {
                Failure::bad_value(format!(
                    "--log {}: {e}; name a file in a directory that can be written",
                    path.display()
                ))
            })?;
            registry.with(lines(format, std::sync::Mutex::new(file))).init();
        }
    }
    std::panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!("panic at {place}: {what}");
    }));
    Ok(())
}
