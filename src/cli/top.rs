//! `kvfs top`: a mount as it is at work, again and again.
//!
//! What always holds: the mount itself is never touched, nor a drive, so a hung one hangs nobody who watches; a terminal
//! is left as it was, whatever ends the command but SIGKILL.

mod sample;
mod screen;
mod view;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Failure;
use super::status::chosen;
use crate::backing::mountinfo::{Mount, mounted_at};
use sample::Sample;
use screen::{Event, Screen};
use view::{Sort, View};

/// Watch a mount: drives, operations, and who writes. Keys: q, s (sort), p (pause)
#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// Where it's mounted
    mount_point: PathBuf,

    /// Write one block of text after another instead of drawing on the terminal: the default where output is no terminal
    #[arg(short, long)]
    batch: bool,

    /// End after so many [default: never]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,

    /// Seconds from one to the next, 0.1 to 3600
    #[arg(short, long, default_value = "2", value_name = "SECONDS", value_parser = delay)]
    delay: Duration,

    /// What processes are sorted by: files, bytes, or pid
    #[arg(short, long, default_value = "files", value_name = "WHAT")]
    sort: Sort,
}

fn delay(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds @ 0.1..=3600.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0.1 to 3600".into()),
    }
}

pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    let Some(mount) = chosen(Some(&args.mount_point))?.pop() else { return Ok(()) };
    let first = Sample::take(&mount)?;
    let shown = if args.batch || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        blocks(args, &mount, first)
    } else {
        let screen =
            Screen::open().map_err(|e| Failure::other(format!("the terminal can't be used: {e}")))?;
        draw(args, &mount, first, screen)
    };
    match shown {
        Err(Trouble::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Trouble::Write(e)) => Err(Failure::other(format!("what is seen can't be written: {e}"))),
        Err(Trouble::Gone(failure)) => Err(failure),
        Ok(()) => Ok(()),
    }
}

/// Why it ends.
enum Trouble {
    Write(io::Error),
    Gone(Failure),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Trouble {
        Trouble::Write(e)
    }
}

/// The next sample. A daemon that doesn't answer may be about to be replaced: that's none, as long as it's mounted.
fn next(mount: &Mount) -> Result<Result<Sample, Failure>, Trouble> {
    match Sample::take(mount) {
        Ok(sample) => Ok(Ok(sample)),
        Err(failure) => match mounted_at(&mount.point) {
            Ok(Some(there)) if there.device == mount.device => Ok(Err(failure)),
            _ => Err(Trouble::Gone(failure)),
        },
    }
}

fn blocks(args: &TopArgs, mount: &Mount, first: Sample) -> Result<(), Trouble> {
    let mut before = first;
    let mut left = args.iterations;
    while left != Some(0) {
        std::thread::sleep(args.delay);
        match next(mount)? {
            Ok(now) => {
                let mut out = io::stdout().lock();
                View { before: &before, now: &now, sort: args.sort }
                    .lines()
                    .iter()
                    .try_for_each(|line| writeln!(out, "{line}"))?;
                writeln!(out)?;
                out.flush()?;
                before = now;
            }
            Err(failure) => eprintln!("kvfs: {failure}"),
        }
        left = left.map(|n| n - 1);
    }
    Ok(())
}

fn draw(args: &TopArgs, mount: &Mount, first: Sample, mut screen: Screen) -> Result<(), Trouble> {
    let (mut before, mut now, mut sort, mut paused) = (first, None::<Sample>, args.sort, false);
    let mut left = args.iterations;
    let mut due = Instant::now() + args.delay;
    let mut trouble = None;
    loop {
        let mut lines = match &now {
            Some(now) => View { before: &before, now, sort }.lines(),
            None => vec![format!(
                "kvfs top  {}  (counting for {:.1} s)",
                mount.point.display(),
                args.delay.as_secs_f64()
            )],
        };
        let state = match (&trouble, paused) {
            (Some(failure), _) => format!("{failure}"),
            (None, true) => "paused".into(),
            (None, false) => String::new(),
        };
        lines.push(String::new());
        lines.push(format!("q quit   s sort: {}   p pause   {state}", sort.name()));
        screen.draw(&lines)?;
        if left == Some(0) {
            return Ok(());
        }
        match screen.wait((!paused).then_some(due))? {
            Event::Key(b'q' | b'Q' | 0x03) | Event::End => return Ok(()),
            Event::Key(b's') => sort = sort.next(),
            Event::Key(b'p' | b' ') => paused = !paused,
            Event::Key(_) | Event::Resized => {}
            Event::Due => {
                due = Instant::now() + args.delay;
                match next(mount)? {
                    Ok(sample) => {
                        before = now.replace(sample).unwrap_or(before);
                        trouble = None;
                    }
                    Err(failure) => trouble = Some(failure),
                }
                left = left.map(|n| n - 1);
            }
        }
    }
}
