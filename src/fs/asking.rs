//! Who makes files: told to the metrics, and warned of where what they store can't be found again.
//!
//! What always holds: a process is looked at when it's new, or was silent for a moment; nothing of it is asked for
//! every file but its name's grammar, as long as it isn't judged.

use super::Fs;
use crate::index::Slot;
use crate::placement::process::{HashSeed, Process};
use crate::placement::{Decision, Target, names};

impl Fs {
    /// A thread has created a file at this path.
    pub(super) fn note_created(&self, tid: u32, path: &[u8], decision: &Decision) {
        self.metrics.created(Slot(decision.slot), decision.reason.code());
        let processes = self.policies.processes();
        let who = || {
            let pid = processes.of(tid)?.pid;
            Some((pid, processes.name(pid).unwrap_or_default()))
        };
        self.metrics.writers.wrote(tid, decision.slot, decision.detail.gpu(), who);
        if let Some(client) = names::seeded_by_python(&Target { path })
            && let Some(process) = processes.of(tid)
        {
            self.judge_names(&process, client);
        }
    }

    /// A process gives names that depend on the seed of Python's hash.
    fn judge_names(&self, process: &Process, client: names::Client) {
        if self.metrics.random_names.knows((process.pid, process.start)) {
            return;
        }
        let how = match process.hash_seed() {
            Some((HashSeed::Unset, whose)) => format!("isn't set{}", of(process.pid, whose)),
            // vLLM takes the word for a seed like any other.
            Some((HashSeed::Random, whose)) if client.uses_pythons_hash() => {
                format!("says \"random\"{}", of(process.pid, whose))
            }
            _ => return,
        };
        let name = self.policies.processes().name(process.pid).unwrap_or_default();
        let name = crate::printable::printable(name.as_bytes());
        let command = format!("{client} {name}");
        let warning = || {
            format!(
                "process {} ({name}) names its files by hashes that no other process repeats ({client}: PYTHONHASHSEED {how}): what it stores is never found after it has ended; start it with PYTHONHASHSEED=0",
                process.pid
            )
        };
        if self.metrics.random_names.found((process.pid, process.start), &command, warning) {
            tracing::warn!("{}", warning());
        }
    }
}

/// Whose environment says so, where it isn't the process's own.
fn of(pid: u32, whose: u32) -> String {
    if pid == whose {
        String::new()
    } else {
        format!(" for process {whose}, from which it has its environment")
    }
}
