//! systemd's watchdog (`WatchdogSec=`): the word that this daemon lives.
//!
//! What always holds: it's said as long as a thread that has nothing else to do can come past all that a request of a
//! name needs of the daemon, and so not where that is deadlocked. Drives don't count: one that hangs is no fault of
//! the daemon's.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::keeper::Notify;

/// Comes back if the daemon can still serve.
type Check = Box<dyn Fn() + Send + Sync>;

/// Says it, from the start on; what it looks at there is a little later.
#[derive(Clone, Default)]
pub struct Watchdog(Arc<OnceLock<Check>>);

impl Watchdog {
    /// Starts saying it, if systemd wants to hear.
    pub fn start() -> io::Result<Watchdog> {
        let watchdog = Watchdog::default();
        let variable = |name: &str| std::env::var(name).ok();
        let Some(every) = every(variable, std::process::id(), std::os::unix::process::parent_id()) else {
            return Ok(watchdog);
        };
        let Some(notify) = Notify::systemd()? else { return Ok(watchdog) };
        let looks = watchdog.clone();
        std::thread::Builder::new().name("kvfs-watchdog".into()).spawn(move || {
            loop {
                if let Some(check) = looks.0.get() {
                    check();
                }
                notify.lives();
                std::thread::sleep(every);
            }
        })?;
        Ok(watchdog)
    }

    /// What has to come back before it's said.
    pub fn looks_at(&self, check: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(check));
    }
}

/// How often to say it: twice in the time that systemd allows (sd_watchdog_enabled(3)). By the parent that systemd
/// knows, too, for the daemon that it starts.
fn every(variable: impl Fn(&str) -> Option<String>, own: u32, parent: u32) -> Option<Duration> {
    let microseconds: u64 = variable("WATCHDOG_USEC")?.parse().ok().filter(|n| *n > 0)?;
    let is_ours = |pid: String| pid.parse().is_ok_and(|pid: u32| pid == own || pid == parent);
    let is_meant = variable("WATCHDOG_PID").is_none_or(is_ours);
    is_meant.then(|| Duration::from_micros(microseconds / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_twice_as_often_as_it_has_to_be() {
        let with = |usec: &str, pid: &str| {
            let (usec, pid) = (usec.to_owned(), pid.to_owned());
            let variable = move |name: &str| {
                let value = if name == "WATCHDOG_USEC" { &usec } else { &pid };
                (!value.is_empty()).then(|| value.clone())
            };
            every(variable, 7, 6)
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(with("2000000", "7"), second);
        assert_eq!(with("2000000", "6"), second, "the parent is what systemd knows");
        assert_eq!(with("2000000", ""), second);
        for (usec, pid) in [("2000000", "8"), ("", "7"), ("0", "7"), ("soon", "7"), ("2000000", "x")] {
            assert_eq!(with(usec, pid), None, "{usec} {pid}");
        }
    }
}
