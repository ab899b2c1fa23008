//! Metrics as they're told: families of samples with labels.
//!
//! What always holds: a family is there though it has no sample yet; its name and labels are those of
//! docs/METRICS.md, which a test compares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Histogram;

/// What the numbers of a family mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Counts up from the daemon's start.
    Counter,
    /// As it is now.
    Gauge,
    /// How long things took.
    Histogram,
}

impl Kind {
    /// Its name: `counter`, `gauge` or `histogram`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Metrics of one name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Family {
    /// The name, with its unit.
    pub name: String,
    /// What its numbers mean.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The same in words.
    pub help: String,
    /// The numbers.
    pub samples: Vec<Sample>,
}

/// One number, or histogram.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// What tells it from others of the name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it is.
    #[serde(flatten)]
    pub value: Value,
}

/// A sample's value.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// A number.
    Value(f64),
    /// How long things took.
    Histogram(Histogram),
}

/// All families, in the order in which they're told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Families(pub Vec<Family>);

impl Families {
    fn family(&mut self, kind: Kind, name: &str, help: &str) -> Filling<'_> {
        let (name, help) = (name.to_owned(), help.to_owned());
        self.0.push(Family { name, kind, help, samples: Vec::new() });
        Filling(&mut self.0)
    }

    /// A new family of counters.
    pub fn counter(&mut self, name: &str, help: &str) -> Filling<'_> {
        self.family(Kind::Counter, name, help)
    }

    /// A new family of gauges.
    pub fn gauge(&mut self, name: &str, help: &str) -> Filling<'_> {
        self.family(Kind::Gauge, name, help)
    }

    /// A new family of histograms.
    pub fn histogram(&mut self, name: &str, help: &str) -> Filling<'_> {
        self.family(Kind::Histogram, name, help)
    }

    /// The samples of a family; none where there is no such family.
    pub fn samples(&self, name: &str) -> &[Sample] {
        self.0.iter().find(|family| family.name == name).map_or(&[], |family| &family.samples)
    }

    /// The sum of a family's numbers with these labels, perhaps among others.
    pub fn total(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let numbers =
            self.samples(name).iter().filter(|sample| sample.has(labels)).map(|sample| match &sample.value {
                Value::Value(number) => *number,
                Value::Histogram(histogram) => histogram.count as f64,
            });
        numbers.sum()
    }

    /// The histograms of a family with these labels, together.
    pub fn histograms(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        let with = self.samples(name).iter().filter(|sample| sample.has(labels));
        with.fold(Histogram::default(), |sum, sample| match &sample.value {
            Value::Histogram(histogram) => sum.plus(histogram),
            Value::Value(_) => sum,
        })
    }
}

impl Sample {
    /// Whether it has these labels.
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.get(*name).is_some_and(|own| own == value))
    }
}

/// The family that was begun last, as it's filled.
pub struct Filling<'a>(&'a mut Vec<Family>);

impl Filling<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: Value) -> &mut Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        if let Some(family) = self.0.last_mut() {
            family.samples.push(Sample { labels, value });
        }
        self
    }

    /// A number, without labels.
    pub fn is(&mut self, value: f64) -> &mut Self {
        self.with(&[], value)
    }

    /// A number.
    pub fn with(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.add(labels, Value::Value(value))
    }

    /// A histogram.
    pub fn took(&mut self, labels: &[(&str, &str)], histogram: Histogram) -> &mut Self {
        self.add(labels, Value::Histogram(histogram))
    }
}
