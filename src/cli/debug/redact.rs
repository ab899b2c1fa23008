//! Text without what is private in it.
//!
//! What always holds: a word stays only if kvfs's own documentation has it, or if it's a number; names of this machine
//! and its users never do. What goes is replaced by a hash: the same for the same word in one bundle, and another in the
//! next.

use std::collections::HashSet;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Where the words come from that kvfs itself uses.
const OURS: &[&str] = &[
    include_str!("../../../README.md"),
    include_str!("../../../docs/DESIGN.md"),
    include_str!("../../../docs/CONFIGURATION.md"),
    include_str!("../../../docs/RELIABILITY.md"),
    include_str!("../../../docs/RETENTION.md"),
    include_str!("../../../docs/BACKINGS.md"),
    include_str!("../../../docs/SECURITY.md"),
    include_str!("../../../docs/DIRECT.md"),
    include_str!("words.txt"),
];

/// Parts of paths that every system has.
const EVERYWHERE: &[&str] = &[
    "",
    "proc",
    "sys",
    "dev",
    "run",
    "etc",
    "usr",
    "var",
    "bin",
    "sbin",
    "lib",
    "log",
    "mnt",
    "tmp",
    "fs",
    "module",
    "fuse",
    "kvfs",
    "self",
    "parameters",
    "connections",
    "kernel",
    "local",
    "kvfs.log",
];

/// What decides.
pub(super) struct Redactor {
    words: HashSet<String>,
    private: HashSet<String>,
    seed: u64,
}

impl Redactor {
    /// For this machine.
    pub(super) fn new() -> Redactor {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let domain = std::fs::read_to_string("/proc/sys/kernel/domainname").unwrap_or_default();
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        // 1000 and more are people (login.defs(5), UID_MIN).
        let people = users.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, uid) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
            (uid >= 1000 && name != "nobody").then_some(name)
        });
        let names = host.trim().split('.').chain(domain.trim().split('.')).chain(people);
        Redactor::with(names, xxh3_64_with_seed(uuid::Uuid::new_v4().as_bytes(), 0))
    }

    fn with<'a>(private: impl IntoIterator<Item = &'a str>, seed: u64) -> Redactor {
        let word = |c: char| !c.is_ascii_alphanumeric();
        let words = OURS.iter().flat_map(|text| text.split(word)).filter(|word| !word.is_empty());
        let lower = |word: &str| word.to_ascii_lowercase();
        Redactor {
            words: words.map(lower).collect(),
            private: private
                .into_iter()
                .filter(|name| !name.is_empty() && *name != "(none)")
                .map(lower)
                .collect(),
            seed,
        }
    }

    fn hash(&self, text: &str) -> String {
        format!("#{:08x}", xxh3_64_with_seed(text.as_bytes(), self.seed) as u32)
    }

    /// The text without what is private.
    pub(super) fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for line in text.split_inclusive('\n') {
            for chunk in line.split_inclusive(char::is_whitespace) {
                let word = chunk.trim_end_matches(char::is_whitespace);
                self.chunk(word, &mut out);
                out.push_str(&chunk[word.len()..]);
            }
        }
        out
    }

    /// All strings of it.
    pub(super) fn json(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(all) => all.iter_mut().for_each(|value| self.json(value)),
            Value::Object(all) => all.values_mut().for_each(|value| self.json(value)),
            _ => {}
        }
    }

    /// What is between spaces: with what stands around it as it is, and the middle kept, or replaced as a whole.
    fn chunk(&self, chunk: &str, out: &mut String) {
        let around = |c: char| "()[]{}<>,;:\"'`!?".contains(c);
        let middle = chunk.trim_matches(around).trim_end_matches('.');
        let at = if middle.is_empty() { 0 } else { chunk.find(middle).unwrap_or(0) };
        out.push_str(&chunk[..at]);
        if middle.contains('/') && !self.is_kept(middle) {
            // Which paths are below which can be seen still.
            let part = |part: &str| {
                if EVERYWHERE.contains(&part) && !self.is_private(part) {
                    part.to_owned()
                } else {
                    self.hash(part)
                }
            };
            out.push_str(&middle.split('/').map(part).collect::<Vec<_>>().join("/"));
        } else if self.is_kept(middle) {
            out.push_str(middle);
        } else if let Some((version, of)) = middle.split_once('-').filter(|(version, _)| is_version(version))
        {
            // A kernel's release: who built it may be in it.
            out.push_str(version);
            out.push('-');
            out.push_str(&if self.is_kept(of) { of.to_owned() } else { self.hash(of) });
        } else {
            out.push_str(&self.hash(middle));
        }
        out.push_str(&chunk[at + middle.len()..]);
    }

    fn is_private(&self, word: &str) -> bool {
        self.private.contains(&word.to_ascii_lowercase())
    }

    /// Whether all of it is words of ours and numbers.
    fn is_kept(&self, middle: &str) -> bool {
        if is_time(middle) || is_version(middle) || middle == crate::fuse::FS_TYPE {
            return true;
        }
        // An address, or a name with an extension.
        let dotted = middle.contains('.') && !is_number(middle);
        if dotted || middle.contains('@') || !middle.is_ascii() {
            return false;
        }
        let parts = middle.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '%');
        parts.filter(|part| !part.is_empty()).all(|part| {
            is_number(part) || (self.words.contains(&part.to_ascii_lowercase()) && !self.is_private(part))
        })
    }
}

/// `2026-11-22T13:04:55.633755Z`
fn is_time(text: &str) -> bool {
    text.len() >= 19
        && text.as_bytes()[10] == b'T'
        && text.bytes().all(|b| b.is_ascii_digit() || b"-:.TZ+".contains(&b))
}

/// `0.1.0`, `6.18.5`: not as long as an address.
fn is_version(text: &str) -> bool {
    let mut parts = text.split('.');
    let small = |part: &str| (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    parts.clone().count() <= 3 && parts.all(small)
}

/// With a unit, perhaps.
fn is_number(text: &str) -> bool {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let units = ["", "%", "s", "ms", "us", "ns", "B", "K", "M", "G", "T", "KiB", "MiB", "GiB", "TiB", "kB"];
    (1..=13).contains(&number.len())
        && number.starts_with(|c: char| c.is_ascii_digit())
        && number.matches('.').count() <= 1
        && units.contains(&unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stays_and_names_go() {
        let redactor = Redactor::with(["cache", "srv7"], 1);
        let line = "2026-11-22T13:04:55.633755Z  INFO kvfs::cli::mount: mounted at /mnt/kv-alice\n";
        let out = redactor.text(line);
        assert!(
            out.starts_with("2026-11-22T13:04:55.633755Z  INFO kvfs::cli::mount: mounted at /mnt/#"),
            "{out}"
        );
        assert!(!out.contains("alice") && out.ends_with('\n'), "{out}");
        let name = "meta-llama-Llama-3.1-8B@8@0@657a@bfloat16.pt";
        let out = redactor.text(&format!("backing 2: removed {name}, which was never closed"));
        assert!(
            out.starts_with("backing 2: removed #") && out.ends_with(", which was never closed"),
            "{out}"
        );
        for private in [
            "10.0.0.7",
            "fe80::1ff:fe23:4567:890a",
            "alice",
            "alice@example.org",
            "srv7",
            "Cache",
            "secret.txt",
            "käse",
        ] {
            let out = redactor.text(private);
            assert!(!out.contains(private) && out.contains('#'), "{private}: {out}");
        }
        assert!(redactor.text("6.18.5-zanzibar").starts_with("6.18.5-#"));
        for kept in ["12.5 ms", "4096 B", "kvfs 0.1.0", "--min-free 2G", "backing 3: EIO"] {
            assert_eq!(redactor.text(kept), kept);
        }
    }

    #[test]
    fn the_same_word_is_the_same_in_one_bundle_only() {
        let (one, two) = (Redactor::with([], 1), Redactor::with([], 2));
        assert_eq!(one.text("/x/alice"), one.text("/x/alice"));
        assert_ne!(one.text("alice"), two.text("alice"));
        let mut value = serde_json::json!({"path": "/srv/alice", "files": 3, "list": ["bob"]});
        one.json(&mut value);
        let text = value.to_string();
        assert!(!text.contains("alice") && !text.contains("bob") && text.contains("\"files\":3"), "{text}");
    }
}
