//! Telling one who looks on.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, UNIX_EPOCH};

use globset::{GlobBuilder, GlobMatcher};

use super::{Answered, Event, Filter, TRACER, Told};
use crate::control::{Name, Parts};

/// How often it's looked whether somebody is there still.
const TICK: Duration = Duration::from_millis(500);

/// The pattern of a filter.
fn pattern(text: &str) -> Result<GlobMatcher, String> {
    let text = text.trim_start_matches('/');
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher())
        .map_err(|e| format!("{text:?} is no pattern for paths: {}", e.kind()))
}

/// Whether this is a pattern for paths, or what's wrong with it.
pub fn check_pattern(text: &str) -> Result<(), String> {
    pattern(text).map(drop)
}

/// Tells what happens until nobody listens.
pub fn follow(filter: Filter, parts: &mut Parts<'_>) -> io::Result<()> {
    let path = filter.path.as_deref().map(pattern).transpose().map_err(io::Error::other)?;
    let backing = filter.backing;
    let listening = TRACER
        .listen(filter)
        .ok_or_else(|| io::Error::other("as many as may look on at a time do so already"))?;
    parts.part(&Told::Begins)?;
    parts.flush()?;
    let mut last = 0;
    loop {
        let answered = match listening.queue.recv_timeout(TICK) {
            Ok(answered) => Some(answered),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let idle = answered.is_none();
        for answered in answered.into_iter().chain(listening.queue.try_iter().take(256)) {
            let event = event(&answered);
            let bytes = answered.begun.path.as_deref().unwrap_or_default();
            let fits = path.as_ref().is_none_or(|path| path.is_match(as_path(bytes)));
            if fits && (backing.is_none() || backing == event.backing) {
                parts.part(&Told::Event(event))?;
            }
        }
        let lost = listening.lost.load(Relaxed);
        if lost > last {
            parts.part(&Told::Lost(lost - last))?;
            last = lost;
        }
        parts.flush()?;
        if idle && parts.is_over() {
            return Ok(());
        }
    }
}

fn as_path(bytes: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn event(answered: &Answered) -> Event {
    let begun = &answered.begun;
    Event {
        at_us: answered.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64),
        op: begun.op.to_owned(),
        path: begun.path.clone().map(Name::from),
        to: begun.to.clone().map(Name::from),
        pid: begun.pid,
        comm: begun.comm.clone(),
        backing: answered.slot.map(|slot| slot.0),
        errno: answered.errno,
        took_us: answered.took.as_micros() as u64,
    }
}
