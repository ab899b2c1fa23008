//! What a process says about itself: the title that vLLM and SGLang give to each of their processes.
//!
//! Both overwrite their command line with a title that holds the worker's ranks, and with it their
//! environment: the title is all that is left to see (`setproctitle`; vLLM v1/executor/multiproc_executor.py,
//! SGLang srt/managers/scheduler.py). What always holds: a process id that was given to another process
//! never inherits what was read of the first, the cache's lock isn't held while /proc is read, and anything
//! that can't be read is simply not known.

use lru::LruCache;
use parking_lot::Mutex;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What kind of process a [`Title`] belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// vLLM's `Worker`: it serves one GPU.
    VllmWorker,
    /// vLLM's `EngineCore`: it serves one GPU if its replica has only one, and else writes for several.
    VllmEngine,
    /// SGLang's `scheduler`: it serves one GPU.
    SglangScheduler,
}

/// The title of a process that says something about GPUs. Ranks are counted from 0; one that the title
/// doesn't mention belongs to a dimension of size one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Title {
    /// What kind of process it is.
    pub kind: Kind,
    /// Which data-parallel replica (`DP`).
    pub dp: Option<u32>,
    /// Which pipeline stage (`PP`).
    pub pp: Option<u32>,
    /// Which prefill-context-parallel rank (`PCP`; vLLM only).
    pub pcp: Option<u32>,
    /// Which tensor-parallel rank (`TP`).
    pub tp: Option<u32>,
}

impl Title {
    /// Reads a process title such as `VLLM::Worker_DP1_TP3` or `sglang::scheduler_TP0`.
    ///
    /// `None` for every other process, and for one of these whose title has no rank: that belongs to a
    /// server with a single GPU per replica and a single replica, and says nothing of which GPU it is.
    pub fn parse(title: &[u8]) -> Option<Self> {
        let at = title.windows(2).rposition(|w| w == b"::")?;
        // VLLM_PROCESS_NAME_PREFIX replaces the `VLLM`, with anything.
        let (prefix, name) = (&title[..at], &title[at + 2..]);
        let mut fields = name.split(|&b| b == b'_');
        let kind = match fields.next()? {
            b"Worker" => Kind::VllmWorker,
            b"EngineCore" => Kind::VllmEngine,
            b"scheduler" if prefix == b"sglang" => Kind::SglangScheduler,
            _ => return None,
        };
        let mut read = Self { kind, dp: None, pp: None, pcp: None, tp: None };
        let mut qualified = false;
        for field in fields {
            let letters = field.iter().take_while(|b| b.is_ascii_alphabetic()).count();
            let (dimension, number) = field.split_at(letters);
            // `MOE_DP1` and `ATTN_CP1` are other dimensions than `DP1` and `CP1`.
            let of_its_own = !std::mem::replace(&mut qualified, number.is_empty());
            let place = match dimension {
                b"DP" => &mut read.dp,
                b"PP" => &mut read.pp,
                b"PCP" => &mut read.pcp,
                b"TP" => &mut read.tp,
                // `DCP`, `EP` and the like divide the workers that the others count already.
                _ => continue,
            };
            if of_its_own && !number.is_empty() {
                *place = Some(std::str::from_utf8(number).ok()?.parse().ok()?);
            }
        }
        let says_something = read.dp.or(read.pp).or(read.pcp).or(read.tp).is_some();
        says_something.then_some(read)
    }
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::VllmWorker => "vLLM worker",
            Kind::VllmEngine => "vLLM engine",
            Kind::SglangScheduler => "SGLang scheduler",
        })?;
        for (name, rank) in [("DP", self.dp), ("PP", self.pp), ("PCP", self.pcp), ("TP", self.tp)] {
            if let Some(rank) = rank {
                write!(f, ", {name} {rank}")?;
            }
        }
        Ok(())
    }
}

/// The titles of the processes that ask, read from a `/proc` and remembered.
#[derive(Debug)]
pub struct Titles {
    proc_root: PathBuf,
    seen: Mutex<LruCache<u32, Seen>>,
}

/// What was read of a thread id.
#[derive(Debug, Clone, Copy)]
struct Seen {
    incarnation: Incarnation,
    title: Option<Title>,
    at: Instant,
}

/// Which of the processes that had an id in turn: the inode of its directory in `/proc`.
///
/// The kernel makes a new inode, with a new number and time, for each process it gives an id to, and finds
/// the old one again only while that process lives. It may make a second one for the same process when
/// memory is short, which costs one more reading. One `stat` asks for it; the start time in
/// `/proc/<tid>/stat` needs three system calls, and the kernel to sum up all threads of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Incarnation {
    inode: u64,
    made: (i64, i64),
}

impl Titles {
    /// As many threads as a server's inference processes have.
    const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

    /// A process may set its title after it has asked for the first time, and set it again.
    const TRUSTED_FOR: Duration = Duration::from_secs(1);

    /// Titles as read from this directory, `/proc` except in tests.
    pub fn new(proc_root: impl Into<PathBuf>) -> Self {
        Self { proc_root: proc_root.into(), seen: Mutex::new(LruCache::new(Self::REMEMBERED)) }
    }

    /// The title of the process that has the thread `tid`; `None` when it has none that says something, is
    /// gone, or can't be seen.
    pub fn of(&self, tid: u32) -> Option<Title> {
        if tid == 0 {
            return None;
        }
        let process = self.proc_root.join(tid.to_string());
        let incarnation = incarnation_of(&process).ok()?;
        let seen = self.seen.lock().get(&tid).copied();
        if let Some(seen) = seen
            && seen.incarnation == incarnation
            && seen.at.elapsed() < Self::TRUSTED_FOR
        {
            return seen.title;
        }
        let title = first_argument(&process, Title::parse).ok()?;
        // The id may have changed hands between the two readings: then the title is the new owner's.
        if incarnation_of(&process).ok()? != incarnation {
            return None;
        }
        self.seen.lock().put(tid, Seen { incarnation, title, at: Instant::now() });
        title
    }
}

fn incarnation_of(process: &Path) -> io::Result<Incarnation> {
    let metadata = fs::metadata(process)?;
    Ok(Incarnation { inode: metadata.ino(), made: (metadata.ctime(), metadata.ctime_nsec()) })
}

/// Reads the first argument of the command line, which is where a title is written to.
fn first_argument<T>(process: &Path, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    // Longer than any title with a rank; the rest of a long command line isn't looked at.
    let mut buffer = [0; 256];
    let length = File::open(process.join("cmdline"))?.read(&mut buffer)?;
    let first = buffer[..length].split(|&b| b == 0).next().unwrap_or_default();
    Ok(read(first.trim_ascii_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn title(kind: Kind, ranks: [Option<u32>; 4]) -> Option<Title> {
        let [dp, pp, pcp, tp] = ranks;
        Some(Title { kind, dp, pp, pcp, tp })
    }

    #[test]
    fn titles_of_the_clients() {
        use Kind::{SglangScheduler, VllmEngine, VllmWorker};
        let cases = [
            ("VLLM::Worker_TP3", title(VllmWorker, [None, None, None, Some(3)])),
            ("VLLM::Worker_DP1_TP3", title(VllmWorker, [Some(1), None, None, Some(3)])),
            (
                "VLLM::Worker_DP1_PP2_PCP0_TP3_DCP1_EP7",
                title(VllmWorker, [Some(1), Some(2), Some(0), Some(3)]),
            ),
            ("VLLM::Worker_DP2_EP2", title(VllmWorker, [Some(2), None, None, None])),
            ("VLLM::EngineCore_DP5", title(VllmEngine, [Some(5), None, None, None])),
            ("my::own prefix_TP7::Worker_TP3", title(VllmWorker, [None, None, None, Some(3)])),
            ("sglang::scheduler_TP3", title(SglangScheduler, [None, None, None, Some(3)])),
            ("sglang::scheduler_DP1_PP0_TP5_EP5", title(SglangScheduler, [Some(1), Some(0), None, Some(5)])),
            (
                "sglang::scheduler_DP1_ATTN_CP1_MOE_DP3_TP5",
                title(SglangScheduler, [Some(1), None, None, Some(5)]),
            ),
        ];
        for (text, wanted) in cases {
            assert_eq!(Title::parse(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn other_processes_say_nothing() {
        for text in [
            "",
            "::",
            "VLLM::Worker",
            "VLLM::EngineCore",
            "VLLM::APIServer_1",
            "VLLM::DPCoordinator",
            "sglang::scheduler",
            "sglang::detokenizer_TP1",
            "other::scheduler_TP1",
            "ray::Worker.run_TP1",
            "ray::RayWorkerWrapper_TP1",
            "lmcache server",
            "/usr/bin/python3",
            "Worker_TP3",
            "VLLM::Worker_TP",
            "VLLM::Worker_TP4294967296",
            "VLLM::Worker_TP-1",
            "VLLM::Worker_TP3x",
        ] {
            assert_eq!(Title::parse(text.as_bytes()), None, "{text}");
        }
    }

    /// A `/proc` in which processes come and go.
    struct FakeProc(TempDir);

    impl FakeProc {
        fn new() -> Self {
            Self(TempDir::new().expect("a temporary directory"))
        }

        fn start(&self, tid: u32, command_line: &[u8]) {
            fs::create_dir(self.0.path().join(tid.to_string())).expect("a new directory");
            self.retitle(tid, command_line);
        }

        fn retitle(&self, tid: u32, command_line: &[u8]) {
            fs::write(self.0.path().join(tid.to_string()).join("cmdline"), command_line).expect("a new file");
        }

        fn end(&self, tid: u32) {
            fs::remove_dir_all(self.0.path().join(tid.to_string())).expect("the process was started");
        }

        fn titles(&self) -> Titles {
            Titles::new(self.0.path())
        }
    }

    fn tp(titles: &Titles, tid: u32) -> Option<u32> {
        titles.of(tid)?.tp
    }

    #[test]
    fn a_title_ends_where_setproctitle_padded_it() {
        let processes = FakeProc::new();
        let titles = processes.titles();
        processes.start(11, b"VLLM::Worker_TP3\0\0\0\0\0\0");
        processes.start(12, b"VLLM::Worker_TP2   ");
        processes.start(13, b"python3\0-c\0VLLM::Worker_TP1\0");
        processes.start(14, b"");
        processes.start(15, &[b"x".repeat(5000).as_slice(), b"::Worker_TP1"].concat());
        let got: Vec<_> = (11..16).map(|tid| tp(&titles, tid)).collect();
        assert_eq!(got, [Some(3), Some(2), None, None, None]);
    }

    #[test]
    fn a_reused_id_inherits_nothing() {
        let processes = FakeProc::new();
        let titles = processes.titles();
        processes.start(7, b"VLLM::Worker_TP3\0");
        assert_eq!(tp(&titles, 7), Some(3));
        processes.end(7);
        assert_eq!(tp(&titles, 7), None);
        // Further apart than the clock that stamps inodes ticks.
        std::thread::sleep(Duration::from_millis(20));
        processes.start(7, b"/bin/cp\0a\0b\0");
        assert_eq!(tp(&titles, 7), None);
        processes.end(7);
        std::thread::sleep(Duration::from_millis(20));
        processes.start(7, b"sglang::scheduler_TP5\0");
        assert_eq!(tp(&titles, 7), Some(5));
    }

    #[test]
    fn a_title_is_remembered_and_after_a_while_read_again() {
        let processes = FakeProc::new();
        let titles = processes.titles();
        processes.start(7, b"python3\0");
        assert_eq!(tp(&titles, 7), None);
        processes.retitle(7, b"VLLM::Worker_TP3\0");
        assert_eq!(tp(&titles, 7), None, "read again at once");
        if let Some(seen) = titles.seen.lock().get_mut(&7) {
            seen.at = seen.at.checked_sub(Titles::TRUSTED_FOR).expect("the machine has run for a second");
        }
        assert_eq!(tp(&titles, 7), Some(3));
    }

    #[test]
    fn nobody_is_asked_about_an_invisible_caller() {
        let processes = FakeProc::new();
        processes.start(0, b"VLLM::Worker_TP3\0");
        assert_eq!(tp(&processes.titles(), 0), None);
        assert_eq!(tp(&Titles::new("/nonexistent"), 1), None);
    }

    #[test]
    fn the_real_proc_knows_this_process() {
        let me = Path::new("/proc").join(std::process::id().to_string());
        assert_eq!(incarnation_of(&me).ok(), incarnation_of(&me).ok());
        assert!(first_argument(&me, |argument| !argument.is_empty()).expect("it's our own"));
        assert_eq!(Titles::new("/proc").of(std::process::id()), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(title in "(VLLM|sglang|:|\\PC){0,3}::(Worker|scheduler)(_|DP|PCP|TP|[0-9]|\\PC){0,12}") {
            Title::parse(title.as_bytes());
        }
    }
}
