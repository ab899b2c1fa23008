//! Finds out, in a process of its own, how data can move between each backing and GPU memory.
//!
//! What always holds: the process that asks waits no longer than the deadline, whatever the libraries do; what
//! was found out by then counts. cuFile counts as usable only where 4 MiB came back from GPU memory as they
//! went there, with its compatibility mode off. The file for that is gone afterwards, also after a kill.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cuda::Cuda;
use super::cufile::{self, Cufile, Kind};
use super::device::{Address, Device, OpenError};
use super::executable::Executable;
use super::hip::Hip;
use crate::backing::RESERVED_PREFIX;
use crate::direct::abi::{Path, Why};
use crate::direct::engine::Direction;

/// What a probe may take. cuFile's driver opens in well under a second where it opens at all.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Written and read back, in bytes.
const SAMPLE: usize = 4 << 20;

/// What is known of a backing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// How data moves.
    pub(crate) path: Path,
    /// Why not in a better way.
    pub(crate) why: Why,
    /// The same for people: what was said.
    pub(crate) detail: String,
}

impl Finding {
    pub(crate) fn new(path: Path, why: Why, detail: impl Into<String>) -> Finding {
        Finding { path, why, detail: detail.into() }
    }
}

/// A line of the child's output.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    /// The driver's answer: its GPUs, or why there are none.
    Gpus(Result<Vec<Uuid>, String>),
    /// What became of a directory, by its place in the arguments.
    Dir(usize, Finding),
}

/// What was found out.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    /// The GPUs that can be used; by number of the argument below.
    pub(crate) gpus: Vec<Uuid>,
    /// By directory.
    pub(crate) dirs: Vec<Finding>,
}

/// Probes; waits for it up to `deadline`.
pub(crate) fn run(executable: &Executable, hip: bool, dirs: &[PathBuf], deadline: Duration) -> Findings {
    let mut gpus = None;
    let mut found: Vec<Option<Finding>> = vec![None; dirs.len()];
    let name = Uuid::new_v4().simple().to_string();
    let mut args = vec!["probe-cufile".into(), "--name".into(), name.clone().into()];
    if hip {
        args.push("--hip".into());
    }
    args.push("--".into());
    args.extend(dirs.iter().map(|dir| dir.clone().into_os_string()));
    let child =
        executable.command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let late = match child {
        Ok(mut child) => {
            let late = listen(&mut child, Instant::now() + deadline, |line| match line {
                Line::Gpus(answer) => gpus = Some(answer),
                Line::Dir(n, finding) => {
                    if let Some(place) = found.get_mut(n) {
                        *place = Some(finding);
                    }
                }
            });
            end(child);
            late
        }
        Err(e) => {
            gpus = Some(Err(format!("the probe can't be started: {e}")));
            false
        }
    };
    for dir in dirs {
        let _ = fs::remove_file(scratch(dir, &name));
    }
    let missing = if late { Why::ProbeDeadline } else { Why::Worker };
    let unknown =
        if late { format!("it took longer than {deadline:?}") } else { "the probe has died".into() };
    let (gpus, otherwise) = match gpus {
        Some(Ok(gpus)) => (gpus, Finding::new(Path::Bounce, missing, unknown)),
        Some(Err(message)) => (Vec::new(), Finding::new(Path::None, Why::NoGpu, message)),
        None => (Vec::new(), Finding::new(Path::None, missing, unknown)),
    };
    Findings { gpus, dirs: found.into_iter().map(|f| f.unwrap_or_else(|| otherwise.clone())).collect() }
}

/// Hands over the child's lines until it ends; whether it didn't in time.
fn listen(child: &mut Child, deadline: Instant, mut heard: impl FnMut(Line)) -> bool {
    let Some(out) = child.stdout.take() else { return false };
    let (send, lines) = channel();
    // It ends with the child: nobody else has the other end of the pipe.
    let reader = std::thread::Builder::new().name("kvfs-probe-out".into()).spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    if reader.is_err() {
        return false;
    }
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => {
                // Whatever else is printed there, by a library or a test, isn't ours.
                let ours = text.find('{').map_or("", |at| &text[at..]);
                if let Ok(line) = serde_json::from_str(ours) {
                    heard(line);
                }
            }
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Ends a child and reaps it, this one alone. One that can't die (a kernel module holds it) is left to a thread.
pub(super) fn end(mut child: Child) {
    let _ = child.kill();
    for _ in 0..50 {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            _ => return,
        }
    }
    let _ = std::thread::Builder::new().name("kvfs-reaper".into()).spawn(move || child.wait());
}

/// The file that a directory is tried with.
fn scratch(dir: &FilePath, name: &str) -> PathBuf {
    dir.join(format!("{}{name}", String::from_utf8_lossy(RESERVED_PREFIX)))
}

/// The child: tries, and says what it finds on standard output, a line as soon as it's known.
///
/// # Safety
/// The process has no other thread yet.
pub(crate) unsafe fn child(name: &str, hip: bool, dirs: &[PathBuf]) -> io::Result<()> {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // SAFETY: the caller's promise.
    unsafe { cufile::prepare_environment() };
    let (gpus, device) = match open(hip) {
        Ok(opened) => opened,
        Err(e) => return say(&Line::Gpus(Err(e.to_string()))),
    };
    say(&Line::Gpus(Ok(gpus)))?;
    let kind = if hip { Kind::Hipfile } else { Kind::Cufile };
    let mut trial = None;
    for (n, dir) in dirs.iter().enumerate() {
        // The library is started when the first directory could use it.
        let finding = try_dir(dir, name, |file| {
            let trial = trial.get_or_insert_with(|| Trial::new(&*device, kind));
            trial.as_ref().map_err(Clone::clone)?.with(&*device, file)
        });
        say(&Line::Dir(
            n,
            finding.unwrap_or_else(|| Finding::new(best(kind), Why::Best, "4 MiB came back whole")),
        ))?;
    }
    if let Some(Ok(trial)) = trial {
        trial.close();
    }
    Ok(())
}

fn best(kind: Kind) -> Path {
    match kind {
        Kind::Cufile => Path::CufileStaged,
        Kind::Hipfile => Path::Hipfile,
    }
}

fn say(line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    out.flush()
}

fn open(hip: bool) -> Result<(Vec<Uuid>, Box<dyn Device>), OpenError> {
    // NO_DEVICE in both.
    let none = |call| OpenError::Fault(super::device::Fault { call, code: 100 });
    if hip {
        let hip = Hip::load()?;
        let uuids = hip.uuids()?;
        let first = *uuids.first().ok_or(none("hipGetDeviceCount"))?;
        return Ok((uuids, Box::new(hip.open(first)?)));
    }
    let cuda = Cuda::load()?;
    let uuids = cuda.uuids()?;
    let first = *uuids.first().ok_or(none("cuDeviceGetCount"))?;
    Ok((uuids, Box::new(cuda.open(first)?)))
}

/// Tries a directory; none if nothing is better.
fn try_dir(
    dir: &FilePath,
    name: &str,
    with_cufile: impl FnOnce(&File) -> Result<(), (Why, String)>,
) -> Option<Finding> {
    // cuFile opens files by their path as well, so it has to be the real one.
    let path = match dir.canonicalize() {
        Ok(dir) => scratch(&dir, name),
        Err(e) => return Some(Finding::new(Path::None, Why::Unreadable, e.to_string())),
    };
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path)
    };
    let finding = match open(libc::O_DIRECT) {
        Ok(file) => with_cufile(&file).err().map(|(why, detail)| Finding::new(Path::Bounce, why, detail)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Some(Finding::new(Path::Bounce, Why::NoDirectIo, "the file system refuses O_DIRECT"))
        }
        // One that can only be read is copied from: it's the worker's cuFile that would write here.
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Some(Finding::new(Path::Bounce, Why::Unreadable, e.to_string()))
        }
        Err(e) => Some(Finding::new(Path::None, Why::Unreadable, e.to_string())),
    };
    let _ = fs::remove_file(&path);
    finding
}

/// The library, and GPU memory to try it with.
struct Trial {
    cufile: Cufile,
    sample: Address,
}

impl Trial {
    fn new(device: &dyn Device, kind: Kind) -> Result<Trial, (Why, String)> {
        let cufile = Cufile::open(kind).map_err(|e| (e.why(), e.to_string()))?;
        let sample = device.alloc(SAMPLE as u64).map_err(|e| (Why::NoGpu, e.to_string()))?;
        cufile.register_memory(sample, SAMPLE as u64).map_err(|e| (e.why(), e.to_string()))?;
        Ok(Trial { cufile, sample })
    }

    /// Writes to the file from GPU memory and reads it back.
    fn with(&self, device: &dyn Device, file: &File) -> Result<(), (Why, String)> {
        let refused = |e: cufile::OpenError| (e.why(), e.to_string());
        let handle = self.cufile.register(file.as_fd()).map_err(refused)?;
        let outcome = self.there_and_back(device, handle);
        self.cufile.deregister(handle);
        outcome
    }

    fn there_and_back(&self, device: &dyn Device, file: cufile::FileHandle) -> Result<(), (Why, String)> {
        let moved = |what: &str, result: Result<usize, i32>| match result {
            Ok(SAMPLE) => Ok(()),
            Ok(n) => Err((cufile::why(0), format!("{what} moved {n} bytes of {SAMPLE}"))),
            Err(code) => Err((cufile::why(code), format!("{what} failed with {code}"))),
        };
        let on_gpu = |e: super::device::Fault| (Why::NoGpu, e.to_string());
        // Something that no file holds by chance.
        let sent: Vec<u8> = (0..SAMPLE as u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        let mut back = vec![0; SAMPLE];
        let stream = device.stream().map_err(on_gpu)?;
        // SAFETY: the memory stays until the stream was waited for.
        unsafe { device.to_device(self.sample, sent.as_ptr(), SAMPLE, stream) }.map_err(on_gpu)?;
        device.sync(stream).map_err(on_gpu)?;
        moved("a write", self.cufile.transfer(Direction::Write, file, self.sample, 0, SAMPLE, 0))?;
        device.clear(self.sample, SAMPLE as u64).map_err(on_gpu)?;
        moved("a read", self.cufile.transfer(Direction::Read, file, self.sample, 0, SAMPLE, 0))?;
        // SAFETY: the memory stays until the stream was waited for.
        unsafe { device.to_host(back.as_mut_ptr(), self.sample, SAMPLE, stream) }.map_err(on_gpu)?;
        device.sync(stream).map_err(on_gpu)?;
        if back == sent {
            Ok(())
        } else {
            Err((cufile::why(0), "other bytes came back than were written".into()))
        }
    }

    fn close(&self) {
        let _ = self.cufile.deregister_memory(self.sample);
        self.cufile.close();
    }
}
