//! What is logged, changeable at run time.
//!
//! What always holds: a filter that can't be is refused, and the one before stays. A daemon begins with what `KVFS_LOG`
//! says: one that takes over after a crash does so, too.

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::reload::{Handle, Layer};
use tracing_subscriber::{EnvFilter, Registry};

/// What is logged when nobody says anything.
const DEFAULT: &str = "info,fuser=error";

/// The variable that says it when a daemon starts.
const VARIABLE: &str = "KVFS_LOG";

static HANDLE: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// What decides about each line, as the environment has it.
pub(crate) fn filter() -> Layer<EnvFilter, Registry> {
    let said = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = said.and_then(|text| parse(&text).map_err(|why| eprintln!("kvfs: {VARIABLE}: {why}")).ok());
    let filter = filter.unwrap_or_else(|| EnvFilter::new(DEFAULT));
    let (layer, handle) = Layer::new(filter);
    let _ = HANDLE.set(handle);
    layer
}

/// A level alone is meant for kvfs: its library for FUSE has nothing to say that isn't said of it.
fn parse(text: &str) -> Result<EnvFilter, String> {
    // The library takes nothing for a level, too.
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let whole = if is_level(text) { format!("{text},fuser=error") } else { text.to_owned() };
    let refused = |why: &str| {
        format!(
            "{text:?} is nothing to log by ({why}); a level (error, warn, info, debug, trace, off), or filters such as info,kvfs::fs=debug"
        )
    };
    // A mistyped level would be taken for the name of a module, and all else be silent.
    let is_module = |word: &str| ["kvfs", "fuser"].contains(&word.split("::").next().unwrap_or_default());
    let is_known = |word: &str| word.contains(['=', '[']) || is_module(word) || is_level(word);
    if let Some(word) = text.split(',').map(str::trim).find(|word| !is_known(word)) {
        return Err(refused(&format!("{word:?} is no level and none of kvfs's modules")));
    }
    EnvFilter::try_new(&whole).map_err(|e| refused(&e.to_string()))
}

/// What is logged now; with a filter: from now on.
pub(crate) fn log_by(text: Option<&str>) -> Result<String, String> {
    let handle = HANDLE.get().ok_or("nothing is logged here")?;
    if let Some(text) = text {
        let filter = parse(text)?;
        let said = filter.to_string();
        handle.reload(filter).map_err(|e| format!("what is logged can't be changed: {e}"))?;
        tracing::info!("logging by {said} from now on");
    }
    handle.with_current(ToString::to_string).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters() {
        assert!(parse("debug").unwrap().to_string().contains("fuser=error"));
        for good in
            ["off", "WARN", "info,kvfs::fs=trace", "kvfs::fuse=debug", "kvfs::fs", "warn,io_uring=info"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["lod", "", "info,", "info,debgu", "kvfsfs"] {
            let message = parse(bad).unwrap_err();
            assert!(message.contains("is no level"), "{message}");
        }
        let message = parse("kvfs=loud").unwrap_err();
        assert!(message.contains("\"kvfs=loud\"") && message.contains("info,kvfs::fs=debug"), "{message}");
    }
}
