//! Processes that give their files names which never repeat: what they store is never found again.
//!
//! Python's `hash()` is seeded at random in each process unless `PYTHONHASHSEED` says otherwise. Clients that name files
//! by it find nothing of what a process before has stored. What always holds: a process is judged by the environment
//! that it was started with and by a name that it gave, and by nothing else; each command is warned of once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Commands that are remembered; more are counted and not told.
const MOST: usize = 64;
/// Processes that are remembered, so that each counts once.
const PROCESSES: usize = 4096;

/// What was found.
#[derive(Default)]
pub struct RandomNames {
    processes: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By id and start.
    processes: HashSet<(u32, u64)>,
    commands: HashSet<String>,
    warnings: Vec<String>,
}

impl RandomNames {
    /// The process with this id and start, of this command, gives such names; `warning` says so. Whether it's the
    /// first of that command.
    pub fn found(&self, process: (u32, u64), command: &str, warning: impl FnOnce() -> String) -> bool {
        let mut known = self.known.lock();
        if known.processes.len() >= PROCESSES {
            known.processes.clear();
        }
        if !known.processes.insert(process) {
            return false;
        }
        self.processes.fetch_add(1, Relaxed);
        if known.commands.len() >= MOST || !known.commands.insert(command.to_owned()) {
            return false;
        }
        known.warnings.push(warning());
        true
    }

    /// Whether a process with this id and start was found before.
    pub fn knows(&self, process: (u32, u64)) -> bool {
        self.known.lock().processes.contains(&process)
    }

    /// How many processes there were.
    pub fn processes(&self) -> u64 {
        self.processes.load(Relaxed)
    }

    /// A sentence for each command.
    pub fn warnings(&self) -> Vec<String> {
        self.known.lock().warnings.clone()
    }
}
