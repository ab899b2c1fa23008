//! One file for each topic. A request is counted when it was answered: what is counted is asked for until it's there.

mod counts;
mod documented;
mod http;
mod prometheus;
mod seeds;
mod top;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::common::{Mount, kvfs, ns};

/// What `kvfs stats --json` says.
pub(crate) struct Stats(pub(crate) Value);

impl Stats {
    #[track_caller]
    pub(crate) fn of(mount: &Mount) -> Stats {
        let out = kvfs([Path::new("stats"), Path::new("--json"), mount.point()]).code(0);
        Stats(serde_json::from_str(&out.stdout).unwrap())
    }

    /// The families.
    pub(crate) fn families(&self) -> &[Value] {
        self.0["metrics"].as_array().unwrap()
    }

    fn samples(&self, name: &str) -> &[Value] {
        let family = self.families().iter().find(|family| family["name"] == name);
        family.unwrap_or_else(|| panic!("no {name}"))["samples"].as_array().unwrap()
    }

    /// The sum of the values, or counts, with these labels: `op=read backing=0`.
    #[track_caller]
    pub(crate) fn get(&self, name: &str, labels: &str) -> f64 {
        let has = |sample: &&Value| {
            labels.split_whitespace().all(|label| {
                let (name, value) = label.split_once('=').unwrap();
                sample["labels"][name] == value
            })
        };
        let number = |sample: &Value| {
            sample["value"].as_f64().or_else(|| sample["histogram"]["count"].as_f64()).unwrap()
        };
        self.samples(name).iter().filter(has).map(number).sum()
    }
}

/// Asks until it is so.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + ns::HANG;
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(Instant::now() < deadline, "it never came: {what}");
        std::thread::yield_now();
    }
}

/// Asks until the counter has this value.
#[track_caller]
pub(crate) fn counts(mount: &Mount, name: &str, labels: &str, want: f64) {
    let deadline = Instant::now() + ns::HANG;
    loop {
        let got = Stats::of(mount).get(name, labels);
        if got == want {
            return;
        }
        assert!(Instant::now() < deadline, "{name} {labels}: {got}, not {want}");
    }
}

/// Sends this to a socket, and returns all that comes back.
pub(crate) fn said(mut stream: impl Read + Write, ask: &str) -> String {
    stream.write_all(ask.as_bytes()).unwrap();
    let mut answer = String::new();
    // After an answer to half of what was sent the connection is cut.
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// `GET /metrics`, by a socket.
pub(crate) fn scrape(socket: &Path) -> Option<String> {
    let stream = UnixStream::connect(socket).ok()?;
    let answer = said(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    Some(body.to_owned())
}

/// A number of what was scraped, by all that is before it in its line.
pub(crate) fn number(text: &str, line: &str) -> Option<f64> {
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found.map(|number| number.parse().unwrap())
}
