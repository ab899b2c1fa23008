//! Metrics as Prometheus reads them: its text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Families, Value};

/// What an HTTP answer calls it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes all families.
pub fn encode(families: &Families) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write(&mut out, families);
    out
}

fn write(out: &mut String, families: &Families) -> std::fmt::Result {
    for family in &families.0 {
        let name = &family.name;
        writeln!(out, "# HELP {name} {}", family.help.replace('\\', "\\\\").replace('\n', "\\n"))?;
        writeln!(out, "# TYPE {name} {}", family.kind.name())?;
        for sample in &family.samples {
            match &sample.value {
                Value::Value(value) => line(out, name, &sample.labels, None, *value)?,
                Value::Histogram(histogram) => {
                    let bucket = format!("{name}_bucket");
                    for (edge, below) in histogram.cumulative() {
                        line(out, &bucket, &sample.labels, Some(edge), below as f64)?;
                    }
                    line(out, &format!("{name}_sum"), &sample.labels, None, histogram.sum)?;
                    line(out, &format!("{name}_count"), &sample.labels, None, histogram.count as f64)?;
                }
            }
        }
    }
    Ok(())
}

fn line(
    out: &mut String,
    name: &str,
    labels: &BTreeMap<String, String>,
    edge: Option<f64>,
    value: f64,
) -> std::fmt::Result {
    out.push_str(name);
    let mut before = '{';
    for (label, value) in labels {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        write!(out, "{before}{label}=\"{value}\"")?;
        before = ',';
    }
    match edge {
        Some(edge) if edge.is_infinite() => write!(out, "{before}le=\"+Inf\"}}")?,
        Some(edge) => write!(out, "{before}le=\"{edge}\"}}")?,
        None if before == ',' => out.push('}'),
        None => {}
    }
    // `Display` of a float that is whole has no point.
    writeln!(out, " {value}")
}
