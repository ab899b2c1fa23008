//! `kvfs trace`: operations as they happen.
//!
//! What always holds: what the terminal gets is a line for each operation, and says how many there was no time for.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use super::Failure;
use super::job::{failure, mount_of};
use crate::control::{Name, Question, ask_each};
use crate::fs::Op;
use crate::printable::printable;
use crate::trace::{Event, Filter, Told, check_pattern};

/// Show operations as they happen. What the kernel does by itself (reads and writes in passthrough, names that it
/// knows) isn't seen
#[derive(Debug, clap::Args)]
pub(super) struct TraceArgs {
    /// Where it's mounted
    mount_point: PathBuf,

    /// Only these operations: lookup, open, create, read, write, unlink, rename ... (as in `kvfs status`)
    #[arg(long, value_name = "OP,...", value_delimiter = ',', value_parser = op)]
    op: Vec<String>,

    /// Only paths in the mount that match: `*` stays within a directory, `**` doesn't
    #[arg(long, value_name = "GLOB")]
    path: Option<String>,

    /// Only of this process
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,

    /// Only on this backing, by its number
    #[arg(long, value_name = "N")]
    backing: Option<u8>,

    /// Only what took this long or longer: 10ms, 500us, 2s
    #[arg(long, value_name = "TIME", value_parser = time)]
    slow: Option<Duration>,

    /// Only what failed
    #[arg(long)]
    errors: bool,

    /// End after so many
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,

    /// Write JSON: one object per line
    #[arg(long)]
    json: bool,
}

fn op(text: &str) -> Result<String, String> {
    match Op::names().contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("there are {}", Op::names().join(", "))),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let unit = match &text[at..] {
        "us" => 1e-6,
        "" | "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err("a number with us, ms or s behind it".into()),
    };
    let seconds = text[..at].parse::<f64>().ok().map(|n| n * unit);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "a number with us, ms or s behind it".into())
}

pub(super) fn run(args: &TraceArgs) -> Result<(), Failure> {
    if let Some(pattern) = &args.path {
        check_pattern(pattern).map_err(|e| Failure::bad_value(format!("--path: {e}")))?;
    }
    let mount = mount_of(&args.mount_point)?;
    let filter = Filter {
        ops: args.op.clone(),
        path: args.path.clone(),
        pid: args.pid,
        backing: args.backing,
        slow_us: args.slow.map(|slow| slow.as_micros() as u64),
        errors: args.errors,
    };
    let mut left = args.count;
    if left == Some(0) {
        return Ok(());
    }
    let mut written = Ok(());
    let mut tell = |told: Told| -> io::Result<ControlFlow<()>> {
        let mut out = io::stdout().lock();
        match told {
            Told::Begins if !args.json => {
                eprintln!("kvfs: tracing {}; Ctrl-C ends it", mount.point.display())
            }
            Told::Begins => {}
            Told::Lost(n) if !args.json => writeln!(out, "... {n} more came too quickly to be told")?,
            Told::Lost(n) => writeln!(out, "{{\"lost\":{n}}}")?,
            Told::Event(event) => {
                if args.json {
                    writeln!(out, "{}", serde_json::to_string(&event)?)?;
                } else {
                    writeln!(out, "{}", line(&event))?;
                }
                left = left.map(|left| left - 1);
            }
        }
        Ok(if left == Some(0) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    let asked = ask_each(mount.device, &Question::Trace(filter), |told| match tell(told) {
        Ok(flow) => flow,
        Err(e) => {
            written = Err(e);
            ControlFlow::Break(())
        }
    });
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            return Err(Failure::other(format!("what happens can't be written: {e}")));
        }
        _ => {}
    }
    asked.map_err(|e| failure(&mount, e))
}

/// `12:03:04.123456  create  a/b.pt  [python 4711]  backing 2  OK  0.134 ms`
fn line(event: &Event) -> String {
    let name = |name: &Option<Name>| name.as_ref().map(|name| printable(name.as_bytes()));
    let path = match name(&event.path) {
        Some(path) if path.is_empty() => "/".into(),
        Some(path) => path,
        None => "?".into(),
    };
    let to = name(&event.to).map(|to| format!(" -> {to}")).unwrap_or_default();
    let backing = event.backing.map_or_else(|| "-".into(), |slot| slot.to_string());
    let result = match event.errno {
        0 => "OK".into(),
        errno => errno_name(errno),
    };
    format!(
        "{}  {:<12} {path}{to}  [{} {}]  backing {backing}  {result}  {:.3} ms",
        clock(event.at_us),
        event.op,
        printable(&event.comm),
        event.pid,
        event.took_us as f64 / 1000.0
    )
}

/// The time of day, in UTC.
fn clock(at_us: u64) -> String {
    let since = (UNIX_EPOCH + Duration::from_micros(at_us)).duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{h:02}:{m:02}:{s:02}.{:06}", since.subsec_micros())
}

fn errno_name(errno: i32) -> String {
    match nix::errno::Errno::from_raw(errno) {
        nix::errno::Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(time("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        for bad in ["", "x", "10m", "-1s", "1e400s"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_is_one_line() {
        let event = Event {
            at_us: 43_384_123_456,
            op: "rename".into(),
            path: Some(Name::from(b"a\nb".to_vec())),
            to: Some(Name::from(b"c".to_vec())),
            pid: 7,
            comm: "x\x1b".into(),
            backing: Some(1),
            errno: libc::ENOENT,
            took_us: 134,
        };
        assert_eq!(
            line(&event),
            "12:03:04.123456  rename       a\\u{a}b -> c  [x\\u{1b} 7]  backing 1  ENOENT  0.134 ms"
        );
    }
}
