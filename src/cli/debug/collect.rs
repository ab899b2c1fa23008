//! What a bundle holds.
//!
//! What always holds: nothing touches the mount, and of the daemon only its control socket is asked, which has a
//! deadline: a mount that hangs can be told of, too.

use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use super::redact::Redactor;
use crate::backing::mountinfo::Mount;
use crate::cli::doctor;
use crate::control::{Question, Status, ask};

/// How much of the log's end is taken.
const LOG_BYTES: u64 = 512 << 10;
const LOG_LINES: &str = "2000";

/// A file of the bundle.
pub(super) struct Entry {
    pub(super) name: &'static str,
    /// What it is.
    pub(super) what: &'static str,
    pub(super) text: String,
}

/// All that can be had.
pub(super) fn collect(mount: &Mount) -> Vec<Entry> {
    let redactor = Redactor::new();
    let entry = |name, what, text: &str| Entry { name, what, text: redactor.text(text) };
    let asked = ask::<Status>(mount.device, &Question::Status);
    let (status, text) = match asked {
        Ok(status) => {
            let text = serde_json::to_value(&status).map(|mut value| {
                redactor.json(&mut value);
                format!("{value:#}\n")
            });
            (Some(status), text.unwrap_or_else(|e| e.to_string()))
        }
        Err(e) => (None, redactor.text(&format!("the daemon doesn't answer: {e}\n"))),
    };
    let mut doctor = doctor::report();
    redactor.json(&mut doctor);
    vec![
        Entry { name: "README.txt", what: "what is in it", text: README.into() },
        entry("version.txt", "this kvfs", &format!("kvfs {}\n", crate::version::described())),
        Entry { name: "status.json", what: "what the mount says of itself", text },
        Entry { name: "doctor.json", what: "what this machine can do", text: format!("{doctor:#}\n") },
        entry("options.txt", "the command that mounted", &options(status.as_ref())),
        entry("kernel.txt", "the kernel, its memory, FUSE's parameters, this connection", &kernel(mount)),
        entry(
            "mounts.txt",
            "the mount, and the file systems of its backings",
            &mounts(mount, status.as_ref()),
        ),
        entry("daemon.txt", "the daemon's process: memory, threads, limits", &daemon(status.as_ref())),
        entry("log.txt", "the end of the log", &log(status.as_ref())),
    ]
}

const README: &str = "\
A support bundle of kvfs. Every word in it that kvfs's own documentation doesn't have is replaced by a hash (#0123abcd),
but for plain numbers: names of files and directories, of users and hosts, addresses. The same word has the same hash
here, and another one in another bundle. A name that is made of nothing but such words or digits isn't told from text.
";

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| format!("{e}\n"))
}

fn options(status: Option<&Status>) -> String {
    let Some(status) = status else { return "not known: the daemon doesn't answer\n".into() };
    let words = std::fs::read(format!("/proc/{}/cmdline", status.pid)).unwrap_or_default();
    let words = words.split(|b| *b == 0).map(String::from_utf8_lossy);
    // One a line: a path with spaces stays one.
    words.skip(1).collect::<Vec<_>>().join("\n").replace(',', " , ") + "\n"
}

fn kernel(mount: &Mount) -> String {
    let mut text = String::new();
    let connection = format!("/sys/fs/fuse/connections/{}", mount.device.1);
    let one = ["/proc/sys/kernel/osrelease", "/proc/sys/fs/nr_open", "/proc/sys/fs/file-nr", "/proc/loadavg"];
    for path in one {
        let _ = write!(text, "{path}: {}", read(path));
    }
    for dir in ["/sys/module/fuse/parameters", "/proc/sys/fs/fuse", &connection] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            // Writing to `abort` aborts, and reading tells nothing.
            if entry.file_name() != "abort" {
                let _ = write!(text, "{}: {}", entry.path().display(), read(entry.path()));
            }
        }
    }
    let _ = writeln!(text, "processors: {}", std::thread::available_parallelism().map_or(0, usize::from));
    text + &lines(
        &read("/proc/meminfo"),
        &["MemTotal", "MemFree", "MemAvailable", "Cached", "Dirty", "Writeback"],
    )
}

/// The lines that begin with one of these words.
fn lines(text: &str, wanted: &[&str]) -> String {
    let is_wanted = |line: &&str| wanted.iter().any(|word| line.split(':').next() == Some(word));
    text.lines().filter(is_wanted).map(|line| format!("{line}\n")).collect()
}

fn mounts(mount: &Mount, status: Option<&Status>) -> String {
    let all = read("/proc/self/mountinfo");
    let point = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
    let mut text = String::new();
    for line in all.lines().filter(|line| Path::new(&point(line)) == mount.point) {
        let _ = writeln!(text, "mount: {line}");
    }
    for backing in status.map(|status| &status.backings).into_iter().flatten() {
        let line = all
            .lines()
            .filter(|line| backing.path.starts_with(point(line)))
            .max_by_key(|line| point(line).len());
        let _ = writeln!(text, "backing {}: {}", backing.slot, line.unwrap_or("not there"));
    }
    text
}

fn daemon(status: Option<&Status>) -> String {
    let Some(status) = status else { return "not known: the daemon doesn't answer\n".into() };
    let proc = format!("/proc/{}", status.pid);
    let wanted = [
        "State",
        "FDSize",
        "VmPeak",
        "VmSize",
        "VmHWM",
        "VmRSS",
        "Threads",
        "CapEff",
        "NoNewPrivs",
        "Seccomp",
    ];
    let fds = std::fs::read_dir(format!("{proc}/fd")).map_or(0, Iterator::count);
    format!(
        "{}descriptors: {fds}\n{}",
        lines(&read(format!("{proc}/status")), &wanted),
        read(format!("{proc}/limits"))
    )
}

fn log(status: Option<&Status>) -> String {
    let to = status.map_or("/var/log/kvfs.log", |status| status.log.as_str());
    if to.starts_with("the journal") {
        let mut journal = Command::new("journalctl");
        journal.args(["-t", "kvfs", "-n", LOG_LINES, "--no-hostname", "--no-pager", "-o", "short-iso"]);
        return match journal.output() {
            Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
            Err(e) => format!("journalctl: {e}\n"),
        };
    }
    if !to.starts_with('/') {
        return format!("the log goes to {to}\n");
    }
    tail(Path::new(to)).unwrap_or_else(|e| format!("{to}: {e}\n"))
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(LOG_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may have lost its beginning.
    let at = if from > 0 { text.find('\n').map_or(0, |at| at + 1) } else { 0 };
    Ok(text[at..].to_owned())
}
