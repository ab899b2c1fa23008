//! Who made a file, and whether they are still there.
//!
//! Where only its creator can find a file, the file is of no use once that process is gone. What always
//! holds: a process counts as gone only when that is certain (another boot, or its id with its start time
//! isn't there any more); one that can't be judged counts as undecided. The record goes with the file, in an
//! extended attribute, so that a mount judges the files of the mounts before it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::index::CreatorCode;
use crate::patience::Patience;
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

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Living(Process),
    /// The process has ended; files may still have the code.
    Ended,
}

/// All processes that made files which only they can find.
pub struct Creators {
    proc: PathBuf,
    processes: Arc<Processes>,
    patience: Patience,
    boot: String,
    namespace: u64,
    /// By code, from [`FIRST`] on.
    places: Mutex<Vec<Place>>,
}

/// Who can find a file that is being written once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writers {
    /// The same process as before.
    Same,
    /// The new one alone.
    Only(CreatorCode, Record),
    /// More than one: it's nobody's orphan as long as this is remembered.
    Several(CreatorCode),
}

/// It doesn't matter who made the file.
pub(super) const ANYONE: CreatorCode = CreatorCode(0);
/// The only process that could find the file is gone.
pub(super) const GONE: CreatorCode = CreatorCode(1);
/// Only one process can find the file; whether it's still there isn't known.
pub(super) const UNDECIDED: CreatorCode = CreatorCode(2);
/// From here on: processes that are there.
const FIRST: u8 = 3;

/// A process that hangs may keep whoever reads its arguments.
const MOMENT: Duration = Duration::from_millis(200);

/// With so many that hang, nobody else is asked.
const MOST_LATE: usize = 16;

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
            patience: Patience::new(MOMENT, MOST_LATE),
            boot: boot.trim().to_owned(),
            namespace: namespace.unwrap_or(0),
            places: Mutex::default(),
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

    /// Who can find a file that a thread opens to write, whose creator was `old` so far; `known` reads the
    /// record that it has.
    pub fn writes(&self, old: CreatorCode, known: impl FnOnce() -> Option<Record>, tid: u32) -> Writers {
        let (writer, record) = self.of_thread(tid);
        let old = match old {
            ANYONE => known().map_or(UNDECIDED, |record| self.of_record(&record)),
            old if old == writer || self.stands_for_somebody(old) => old,
            // It has ended, and nobody has noticed yet.
            old if Creators::is_living(old) => GONE,
            old => old,
        };
        match (old, record) {
            (old, _) if Creators::is_living(old) && old == writer => Writers::Same,
            (GONE, Some(record)) => Writers::Only(writer, record),
            _ => Writers::Several(UNDECIDED),
        }
    }

    /// Whether the code stands for a process that is there now.
    fn stands_for_somebody(&self, code: CreatorCode) -> bool {
        let n = usize::from(code.0).checked_sub(usize::from(FIRST));
        let place = n.and_then(|n| self.places.lock().get(n).copied());
        matches!(place, Some(Place::Living(process)) if self.is_there(process))
    }

    /// The code as a file may get it now: its process may have ended since it was asked for, and the code be
    /// another's. To be called under the index's lock.
    pub fn confirmed(&self, code: CreatorCode, record: Option<&Record>) -> CreatorCode {
        let Some(n) = code.0.checked_sub(FIRST) else { return code };
        let process = record.map(|r| Place::Living(Process { pid: r.pid, start: r.start }));
        let place = self.places.lock().get(usize::from(n)).copied();
        if place.is_some() && place == process { code } else { GONE }
    }

    /// Codes whose processes have ended. No file gets them any more; those that have them are to be given to
    /// `GONE`, and then the codes back, by [`Creators::free`].
    pub fn ended(&self) -> Vec<CreatorCode> {
        self.processes.forget_dead();
        // Processes are looked at without the lock: that may take a while.
        let places = self.places.lock().clone();
        let gone = |place: &Place| matches!(place, Place::Living(process) if !self.is_there(*process));
        let gone: Vec<usize> = (0..places.len()).filter(|n| gone(&places[*n])).collect();
        let mut now = self.places.lock();
        for n in gone {
            if now[n] == places[n] {
                now[n] = Place::Ended;
            }
        }
        let ended = now.iter().enumerate().filter(|(_, place)| **place == Place::Ended);
        ended.map(|(n, _)| CreatorCode(FIRST + n as u8)).collect()
    }

    /// No file has the code any more: it may be another process's.
    pub fn free(&self, code: CreatorCode) {
        let n = usize::from(code.0.saturating_sub(FIRST));
        if let Some(place) = self.places.lock().get_mut(n) {
            *place = Place::Free;
        }
    }

    /// Whether the process that made a file with this record has certainly ended.
    pub fn has_ended(&self, record: &Record) -> bool {
        self.of_record(record) == GONE
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
            if self.may_be_client(pid)
                && let Some(start) = start_of(&self.proc, pid)
            {
                oldest = Some(oldest.map_or(start, |known| known.min(start)));
            }
        }
        // _SC_CLK_TCK: what the kernel counts start times in.
        Ok(oldest.map(|ticks| ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Whether a process might have KV-cache files in its memory. One that can't be asked now might.
    fn may_be_client(&self, pid: u32) -> bool {
        let dir = self.proc.join(pid.to_string());
        let program = match fs::read_link(dir.join("exe")) {
            Ok(program) => program,
            // One of the kernel's threads, or it has ended.
            Err(e) if e.kind() == ErrorKind::NotFound => return false,
            // We mustn't know.
            Err(_) => PathBuf::new(),
        };
        let cmdline = dir.join("cmdline");
        let may_be = move || looks_like_client(&fs::read(cmdline).unwrap_or_default(), &program);
        self.patience.ask(pid, may_be).unwrap_or(true)
    }

    fn code_of(&self, process: Process) -> CreatorCode {
        let mut places = self.places.lock();
        if let Some(n) = places.iter().position(|place| *place == Place::Living(process)) {
            return CreatorCode(FIRST + n as u8);
        }
        let n = places.iter().position(|place| *place == Place::Free).unwrap_or(places.len());
        if n > usize::from(u8::MAX - FIRST) {
            return UNDECIDED;
        }
        if n == places.len() {
            places.push(Place::Free);
        }
        places[n] = Place::Living(process);
        CreatorCode(FIRST + n as u8)
    }

    fn process_of(&self, tid: u32) -> Option<Process> {
        let process = self.processes.of(tid)?;
        Some(Process { pid: process.pid, start: process.start })
    }

    /// A process of which nothing is left but its exit status has no memory any more.
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

/// Whether a process is a client, by its arguments (which an engine's workers
/// replace by a title) and its program.
fn looks_like_client(cmdline: &[u8], program: &Path) -> bool {
    let text = String::from_utf8_lossy(cmdline).to_ascii_lowercase();
    let program = program.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    program.contains("python")
        || ["lmcache", "vllm", "sglang", "python", "ray::"].iter().any(|word| text.contains(word))
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
        assert_eq!(creators.confirmed(code, Some(&record)), code);
        child.kill().unwrap();
        // Nobody waits for it yet: it's a zombie.
        while creators.ended() != [code] {
            std::thread::yield_now();
        }
        assert_eq!(creators.of_record(&record), GONE);
        child.wait().unwrap();
        assert_eq!(creators.ended(), [code], "as long as the code isn't free");
        assert_eq!(creators.confirmed(code, Some(&record)), GONE, "no file gets it any more");
        let (me, mine) = creators.of_thread(std::process::id());
        assert_ne!(me, code);
        creators.free(code);
        assert!(creators.ended().is_empty());
        let other = creators.code_of(Process { pid: 1, start: 0 });
        assert_eq!(other, code, "a code that was given back is used again");
        assert_eq!(creators.confirmed(code, Some(&record)), GONE, "by another process");
        assert_eq!(creators.confirmed(me, mine.as_ref()), me);
        assert_eq!(creators.confirmed(UNDECIDED, None), UNDECIDED);
    }

    #[test]
    fn two_writers_of_one_file() {
        let creators = with_proc("/proc");
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (mine, my_record) = creators.of_thread(std::process::id());
        let (code, record) = creators.of_thread(other.id());
        let unread = || panic!("there's no need to read it");
        let me = std::process::id();
        assert_eq!(creators.writes(mine, unread, me), Writers::Same);
        assert_eq!(creators.writes(code, unread, me), Writers::Several(UNDECIDED));
        assert_eq!(creators.writes(UNDECIDED, unread, me), Writers::Several(UNDECIDED));
        assert_eq!(creators.writes(GONE, unread, me), Writers::Only(mine, my_record.clone().unwrap()));
        assert_eq!(
            creators.writes(GONE, unread, 0),
            Writers::Several(UNDECIDED),
            "a writer that can't be seen"
        );
        assert_eq!(creators.writes(ANYONE, || None, me), Writers::Several(UNDECIDED));
        assert_eq!(creators.writes(ANYONE, || record.clone(), me), Writers::Several(UNDECIDED));
        assert_eq!(creators.writes(ANYONE, || my_record.clone(), me), Writers::Same);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(creators.writes(code, unread, me), Writers::Only(mine, my_record.clone().unwrap()));
        assert_eq!(creators.writes(ANYONE, || record.clone(), me), Writers::Only(mine, my_record.unwrap()));
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
    fn clients_are_known_by_their_arguments_or_their_program() {
        for client in [
            &b"VLLM::Worker_TP3"[..],
            b"/usr/bin/python3.11\0-m\0x",
            b"sglang::scheduler_TP0",
            b"ray::Worker",
        ] {
            assert!(looks_like_client(client, Path::new("/usr/bin/x")));
        }
        assert!(looks_like_client(b"some title", Path::new("/opt/conda/bin/python3.12")));
        assert!(!looks_like_client(b"/usr/sbin/sshd\0", Path::new("/usr/sbin/sshd")));
    }

    /// A `/proc` of our own.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(namespace: u64) -> Fake {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("self/ns")).unwrap();
            fs::create_dir_all(dir.path().join("sys/kernel/random")).unwrap();
            fs::write(dir.path().join("sys/kernel/random/boot_id"), "this-boot\n").unwrap();
            std::os::unix::fs::symlink(format!("pid:[{namespace}]"), dir.path().join("self/ns/pid")).unwrap();
            Fake(dir)
        }

        fn creators(&self) -> Creators {
            Creators::new(self.0.path(), Arc::new(Processes::new(self.0.path())))
        }

        fn process(&self, pid: u32, state: char, start: u64, cmdline: &str) {
            let dir = self.0.path().join(pid.to_string());
            fs::create_dir_all(dir.join(format!("task/{pid}"))).unwrap();
            fs::write(dir.join("cmdline"), cmdline).unwrap();
            self.runs(pid, "/usr/bin/x");
            fs::write(dir.join("status"), format!("Name:\tx\nTgid:\t{pid}\n")).unwrap();
            let fields =
                format!("{pid} (a) b ({state}) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0");
            fs::write(dir.join("stat"), fields).unwrap();
        }

        fn runs(&self, pid: u32, program: &str) {
            let link = self.0.path().join(format!("{pid}/exe"));
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(program, link).unwrap();
        }

        /// Whoever reads the process's arguments waits until what is returned is dropped.
        fn hangs(&self, pid: u32) -> fs::File {
            let cmdline = self.0.path().join(format!("{pid}/cmdline"));
            fs::remove_file(&cmdline).unwrap();
            nix::unistd::mkfifo(&cmdline, nix::sys::stat::Mode::S_IRWXU).unwrap();
            fs::File::options().read(true).write(true).open(&cmdline).unwrap()
        }
    }

    #[test]
    fn the_oldest_client_is_looked_for() {
        let proc = Fake::new(INIT_PID_NAMESPACE);
        proc.process(1, 'S', 1, "/sbin/init");
        assert_eq!(proc.creators().oldest_client(), Ok(None));
        proc.process(20, 'S', 700, "python3\0-m\0lmcache");
        proc.process(21, 'S', 300, "VLLM::EngineCore");
        proc.process(22, 'S', 200, "title");
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(proc.creators().oldest_client(), Ok(Some(300.0 / ticks)));
        proc.runs(22, "/usr/bin/python3");
        assert_eq!(proc.creators().oldest_client(), Ok(Some(200.0 / ticks)));
        proc.process(23, 'S', 100, "/usr/sbin/sshd");
        let hung = proc.hangs(23);
        assert_eq!(proc.creators().oldest_client(), Ok(Some(100.0 / ticks)), "it might be one");
        drop(hung);
        assert_eq!(Fake::new(7).creators().oldest_client(), Err(Unseen), "not all can be seen from here");
    }

    #[test]
    fn records_are_judged_by_boot_namespace_and_start() {
        let proc = Fake::new(99);
        proc.process(20, 'S', 700, "x");
        let creators = proc.creators();
        let judged = |text: &str| creators.of_record(&Record::decode(text.as_bytes()).unwrap());
        assert!(Creators::is_living(judged("1 this-boot 99 20 700")));
        assert_eq!(judged("1 this-boot 99 20 699"), GONE);
        assert_eq!(judged("1 this-boot 99 21 700"), GONE);
        assert_eq!(judged("1 other-boot 99 20 700"), GONE);
        assert_eq!(judged("1 this-boot 98 20 1"), UNDECIDED);
        let (code, record) = creators.of_thread(20);
        assert_eq!(judged(&record.unwrap().encode()), code);
    }
}
