//! `kvfs bench`: measures drives, and a mount that is there beside other ways to the same drives.

mod direct;
mod drives;
mod picture;
mod samples;
mod ways;

use std::io::Write;
use std::path::PathBuf;

use super::Failure;
use samples::Row;

/// Measure drives, or a mount
#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// One's own drives, and a mount over them beside them
    Drives(drives::DrivesArgs),
    /// The ioctl fast path beside plain reads and writes of the same files
    Direct(direct::DirectArgs),
}

/// How results are shown.
#[derive(Debug, clap::Args)]
struct Output {
    /// Write JSON: one object per line
    #[arg(long)]
    json: bool,

    /// Draw the rates into this file (SVG)
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,
}

impl Output {
    /// Draws all of it, if that's wanted.
    fn draw(&self, rows: &[Row]) -> Result<(), Failure> {
        let Some(path) = &self.picture else { return Ok(()) };
        std::fs::write(path, picture::draw(rows))
            .map_err(|e| Failure::other(format!("--picture {}: {e}", path.display())))
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.what {
        What::Drives(args) => drives::run(args),
        What::Direct(args) => direct::run(args),
    }
}

/// Shows a comparison.
fn output(how: &Output, rows: &[Row]) -> Result<(), Failure> {
    rows.iter().try_for_each(|row| show(row, how.json)).map_err(Failure::other)
}

fn show(row: &Row, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(row)?);
    }
    let rate = if row.size == 0 { String::new() } else { format!("{:.2} GB/s", row.rate / 1e9) };
    writeln!(
        out,
        "{:<22} {:<28} {:>9.1} us  p99 {:>9.1} us  {rate:>11}  {:>5.2} x",
        row.title(),
        row.way,
        row.p50_us,
        row.p99_us,
        row.ratio
    )
}
