//! `kvfs stats`: what a mount has counted.

use std::io::{self, Write};
use std::path::PathBuf;

use super::Failure;
use super::status::chosen;
use crate::backing::mountinfo::Mount;
use crate::control::{Question, Stats, ask};
use crate::metrics::{Kind, Sample, Value, encode};

/// Show what a mount has counted: operations and their latency, lookups, bytes, placement, evictions
#[derive(Debug, clap::Args)]
pub(super) struct StatsArgs {
    /// Where it's mounted
    mount_point: PathBuf,

    /// Write JSON, with the cells of the histograms
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,

    /// Write what Prometheus would get: for node_exporter's directory of text files, say
    #[arg(long)]
    prometheus: bool,
}

pub(super) fn run(args: &StatsArgs) -> Result<(), Failure> {
    for mount in chosen(Some(&args.mount_point))? {
        let stats = asked(&mount, false)?;
        let mut out = io::stdout().lock();
        let written = match (args.json, args.prometheus) {
            (true, _) => serde_json::to_string(&stats)
                .map_err(io::Error::other)
                .and_then(|text| writeln!(out, "{text}")),
            (_, true) => out.write_all(encode(&stats.metrics).as_bytes()),
            _ => show(&mut out, &stats),
        };
        match written {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                return Err(Failure::other(format!("the counters can't be written: {e}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the daemon of a mount has counted, and how it is, if `status` asks for that.
pub(super) fn asked(mount: &Mount, status: bool) -> Result<Stats, Failure> {
    ask(mount.device, &Question::Stats { status }).map_err(|e| {
        Failure::no_answer(format!(
            "the daemon of {} doesn't say what it has counted ({e}); is it another user's, dead, or of an older version?",
            mount.point.display()
        ))
    })
}

fn show(out: &mut impl Write, stats: &Stats) -> io::Result<()> {
    for family in stats.metrics.0.iter().filter(|family| family.kind == Kind::Histogram) {
        writeln!(
            out,
            "{:<16} {:>7} {:>10} {:>9} {:>9} {:>9}",
            "operation", "backing", "count", "mean", "p50", "p99"
        )?;
        for sample in &family.samples {
            let Value::Histogram(histogram) = &sample.value else { continue };
            let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
            writeln!(
                out,
                "{:<16} {:>7} {:>10} {:>9} {:>9} {:>9}",
                label("op"),
                label("backing"),
                histogram.count,
                time(histogram.mean()),
                time(histogram.quantile(0.5)),
                time(histogram.quantile(0.99))
            )?;
        }
        writeln!(out)?;
    }
    for family in stats.metrics.0.iter().filter(|family| family.kind != Kind::Histogram) {
        for sample in &family.samples {
            let Value::Value(value) = sample.value else { continue };
            let name = family.name.strip_prefix("kvfs_").unwrap_or(&family.name);
            writeln!(out, "{value:>16}  {name}{}", labels(sample))?;
        }
    }
    if let Some(why) = &stats.passthrough_unknown {
        writeln!(out, "\nbytes that the kernel moves by itself aren't among these: {why}")?;
    }
    Ok(())
}

fn labels(sample: &Sample) -> String {
    sample.labels.iter().map(|(name, value)| format!(" {name}={value}")).collect()
}

/// A time in seconds for people.
pub(super) fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".into(),
        Some(s) if s < 999.5e-9 => format!("{:.0} ns", s * 1e9),
        Some(s) if s < 9.95e-6 => format!("{:.1} us", s * 1e6),
        Some(s) if s < 999.5e-6 => format!("{:.0} us", s * 1e6),
        Some(s) if s < 9.95e-3 => format!("{:.1} ms", s * 1e3),
        Some(s) if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        Some(s) => format!("{s:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people() {
        let told = [0.0, 2.5e-7, 1.3e-6, 4.2e-5, 9.96e-3, 0.25, 12.0].map(|s| time(Some(s)));
        assert_eq!(told, ["0 ns", "250 ns", "1.3 us", "42 us", "10 ms", "250 ms", "12.0 s"]);
        assert_eq!(time(None), "-");
    }
}
