//! Who made a file, and whether they are still there.
//!
//! Where only its creator can find a file, the file is of no use once that process is gone. What always
//! holds: a process counts as gone only when that is certain (another boot, or its id with its start time
//! isn't there any more); one that can't be judged counts as undecided. The record goes with the file, in an
//! extended attribute, so that a mount judges the files of the mounts before it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::index::CreatorCode;
use crate::placement::process::Processes;

/// The attribute that the record is kept in.
pub const CREATOR_XATTR: &str = "user.kvfs.creator";

/// The first pid namespace of a system (`PROC_PID_INIT_INO`, include/linux/proc_ns.h): who is in it sees
/// every process.
const INIT_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A process, for all time: boot, pid namespace, id and start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    boot: String,
    namespace: u64,
    pid: u32,
    /// In clock ticks since the boot (field 22 of /proc/PID/stat).
    start: u64,
}

impl Record {
    /// As it's kept with the file.
    pub fn encode(&self) -> String {
        format!("1 {} {} {} {}", self.boot, self.namespace, self.pid, self.start)
    }

    /// Reads it back. `None` for anything that isn't one.
    pub fn decode(text: &[u8]) -> Option<Record> {
        let mut fields = std::str::from_utf8(text).ok()?.split(' ');
        if fields.next()? != "1" {
            return None;
        }
        let boot = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (namespace, pid, start) = (number()?, number()?, number()?);
        Some(Record { boot, namespace, pid: u32::try_from(pid).ok()?, start })
    }
}

/// A living process that made files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    start: u64,
}

/// All processes that made files which only they can find.
pub struct Creators {
    proc: PathBuf,
    processes: Arc<Processes>,
    boot: String,
    namespace: u64,
    /// By code, from [`FIRST`] on.
    living: Mutex<Vec<Option<Process>>>,
}

/// It doesn't matter who made the file.
pub(super) const ANYONE: CreatorCode = CreatorCode(0);
/// The only process that could find the file is gone.
pub(super) const GONE: CreatorCode = CreatorCode(1);
/// Only one process can find the file; whether it's still there isn't known.
pub(super) const UNDECIDED: CreatorCode = CreatorCode(2);
/// From here on: processes that are there.
const FIRST: u8 = 3;

impl Creators {
    /// With processes looked up in this `/proc`.
    pub fn new(proc: impl Into<PathBuf>, processes: Arc<Processes>) -> Creators {
        let proc = proc.into();
        let boot = fs::read_to_string(proc.join("sys/kernel/random/boot_id")).unwrap_or_default();
        let namespace = fs::read_link(proc.join("self/ns/pid"))
            .ok()
            .and_then(|link| link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok());
        Creators {
            proc,
            processes,
            boot: boot.trim().to_owned(),
            namespace: namespace.unwrap_or(0),
            living: Mutex::default(),
        }
    }

    /// The process that a thread belongs to, with the record to be kept; undecided and without one where it
    /// can't be seen.
    pub fn of_thread(&self, tid: u32) -> (CreatorCode, Option<Record>) {
        let Some(process) = self.process_of(tid) else { return (UNDECIDED, None) };
        let Process { pid, start } = process;
        let record = Record { boot: self.boot.clone(), namespace: self.namespace, pid, start };
        (self.code_of(process), Some(record))
    }

    /// Who made a file with this record: gone, undecided, or a living process.
    pub fn of_record(&self, record: &Record) -> CreatorCode {
        if self.boot.is_empty() {
            return UNDECIDED;
        }
        if record.boot != self.boot {
            return GONE;
        }
        if record.namespace != self.namespace {
            return UNDECIDED;
        }
        let process = Process { pid: record.pid, start: record.start };
        if self.is_there(process) { self.code_of(process) } else { GONE }
    }

    /// Codes whose processes have ended since they were asked about. Their files are to be given to [`GONE`],
    /// and then the codes back, by [`Creators::free`].
    pub fn ended(&self) -> Vec<CreatorCode> {
        self.processes.forget_dead();
        let living = self.living.lock().clone();
        let gone = |(n, process): (usize, &Option<Process>)| {
            process.filter(|process| !self.is_there(*process)).map(|_| CreatorCode(FIRST + n as u8))
        };
        living.iter().enumerate().filter_map(gone).collect()
    }

    /// The code may be another process's.
    pub fn free(&self, code: CreatorCode) {
        let n = usize::from(code.0.saturating_sub(FIRST));
        if let Some(process) = self.living.lock().get_mut(n) {
            *process = None;
        }
    }

    /// Whether the code stands for a process that was there when it was last asked about.
    pub fn is_living(code: CreatorCode) -> bool {
        code.0 >= FIRST
    }

    /// When the oldest process began that might be a client, in seconds of uptime; `None` when none is there.
    ///
    /// A file without a record can only be known by a process that is older than the file. An error when this
    /// process can't see all others.
    pub fn oldest_client(&self) -> Result<Option<f64>, Unseen> {
        if self.namespace != INIT_PID_NAMESPACE {
            return Err(Unseen);
        }
        let entries = fs::read_dir(&self.proc).map_err(|_| Unseen)?;
        let mut oldest: Option<u64> = None;
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(cmdline) = fs::read(entry.path().join("cmdline")) else { continue };
            if may_be_client(&cmdline)
                && let Some(start) = start_of(&self.proc, pid)
            {
                oldest = Some(oldest.map_or(start, |known| known.min(start)));
            }
        }
        // _SC_CLK_TCK: what the kernel counts start times in.
        Ok(oldest.map(|ticks| ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    fn code_of(&self, process: Process) -> CreatorCode {
        let mut living = self.living.lock();
        if let Some(n) = living.iter().position(|known| *known == Some(process)) {
            return CreatorCode(FIRST + n as u8);
        }
        let n = living.iter().position(Option::is_none).unwrap_or(living.len());
        if n > usize::from(u8::MAX - FIRST) {
            return UNDECIDED;
        }
        if n == living.len() {
            living.push(None);
        }
        living[n] = Some(process);
        CreatorCode(FIRST + n as u8)
    }

    fn process_of(&self, tid: u32) -> Option<Process> {
        let process = self.processes.of(tid)?;
        Some(Process { pid: process.pid, start: process.start })
    }

    fn is_there(&self, process: Process) -> bool {
        self.processes.is_alive(process.pid, process.start)
    }
}

/// This process can't see all others, so it can't tell who isn't there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unseen;

/// When a process began, in clock ticks since the boot.
fn start_of(proc: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read(proc.join(pid.to_string()).join("stat")).ok()?;
    // The name, in parentheses, may have anything in it.
    let after = stat.iter().rposition(|b| *b == b')')?;
    std::str::from_utf8(&stat[after + 1..]).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether a process with these arguments might have KV-cache files in its memory.
fn may_be_client(cmdline: &[u8]) -> bool {
    let text = String::from_utf8_lossy(cmdline).to_ascii_lowercase();
    ["lmcache", "vllm", "sglang", "python"].iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_proc(proc: &str) -> Creators {
        Creators::new(proc, Arc::new(Processes::new(proc)))
    }

    #[test]
    fn records_come_back() {
        let record = Record { boot: "b-1".into(), namespace: 7, pid: 42, start: 99 };
        assert_eq!(Record::decode(record.encode().as_bytes()), Some(record));
        for bad in [&b""[..], b"1 b", b"2 b 1 2 3", b"1 b 1 2 x", b"\xff", b"1 b 1 99999999999 3"] {
            assert_eq!(Record::decode(bad), None);
        }
    }

    #[test]
    fn a_process_is_known_until_it_ends() {
        let creators = with_proc("/proc");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (code, record) = creators.of_thread(child.id());
        let record = record.unwrap();
        assert!(Creators::is_living(code));
        assert_eq!(creators.of_record(&record), code);
        assert_eq!(creators.of_thread(child.id()).0, code, "one code a process");
        assert!(creators.ended().is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(creators.ended(), [code]);
        assert_eq!(creators.of_record(&record), GONE);
        creators.free(code);
        assert!(creators.ended().is_empty());
        let me = creators.of_thread(std::process::id()).0;
        assert_eq!(me, code, "a code that was given back is used again");
    }

    #[test]
    fn what_cannot_be_judged_is_undecided() {
        let creators = with_proc("/proc");
        assert_eq!(creators.of_thread(0), (UNDECIDED, None));
        let (_, record) = creators.of_thread(std::process::id());
        let mine = record.unwrap();
        assert_eq!(creators.of_record(&Record { namespace: 1, ..mine.clone() }), UNDECIDED);
        assert_eq!(creators.of_record(&Record { boot: "another".into(), ..mine.clone() }), GONE);
        assert_eq!(
            creators.of_record(&Record { start: mine.start + 1, ..mine }),
            GONE,
            "its id is another's"
        );
        assert_eq!(with_proc("/nonexistent").of_record(&Record::decode(b"1 b 1 2 3").unwrap()), UNDECIDED);
    }

    #[test]
    fn there_is_room_for_252_processes() {
        let creators = with_proc("/nonexistent");
        let codes: Vec<_> = (0..300).map(|pid| creators.code_of(Process { pid, start: 1 })).collect();
        assert_eq!(codes[252], CreatorCode(255));
        assert!(codes[253..].iter().all(|code| *code == UNDECIDED));
    }

    #[test]
    fn clients_are_known_by_their_arguments() {
        for client in [&b"VLLM::Worker_TP3"[..], b"/usr/bin/python3.11\0-m\0x", b"sglang::scheduler_TP0"] {
            assert!(may_be_client(client));
        }
        assert!(!may_be_client(b"/usr/sbin/sshd\0"));
    }
}
