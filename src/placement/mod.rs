//! Where a new file goes: the policies, and the evidence about who is asking.
//!
//! A policy is asked once per file, at CREATE, and its answer is kept with the file. It never touches a
//! backing: it sees names, the caller's ids and a list of [`Candidate`]s, so every rule can be tested
//! without a mount. What always holds: a backing that isn't usable is never chosen, a usable one is found
//! whenever there is one, and *not knowing* who asks never means "the first backing".

mod by_gpu;
mod decision;
mod evidence;
pub mod gpu;
mod hash;
mod most_free;
pub mod names;
mod nearest;
pub mod pci;
pub mod process;
pub mod rendezvous;
mod round_robin;
mod sysfs;
pub mod topology;

#[cfg(test)]
mod properties;

#[cfg(test)]
mod fixture;

pub use by_gpu::ByGpu;
pub use decision::{Basis, Decision, Detail, Ordinal, Reason};
pub use evidence::{Evidence, EvidenceConfig, GpuFound, GpuMap, GpuMapError};
pub use hash::Hash;
pub use most_free::MostFree;
pub use nearest::Nearest;
pub use round_robin::RoundRobin;

use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

/// A backing as placement sees it.
///
/// Policies are given all backings in the order of the `--backing` list, the unusable ones too: the list's
/// length is the modulus of `by_gpu`, and must not change because a drive is full for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the `--backing` list, counted from 0.
    pub slot: u8,
    /// What the backing is known by when the list is reordered.
    pub id: Uuid,
    /// Its capacity in bytes. Only the proportions matter.
    pub weight: u64,
    /// What new files may still use of it, in bytes: what's free, less the reserve and less what files that
    /// are being written are expected to need.
    pub free: u64,
    /// The number of the device that its file system is on (`st_dev`).
    pub device: u64,
    /// Whether it takes new files: not draining, read-only, failed or below its reserve.
    pub usable: bool,
}

/// Who asks for a file to be created, as the FUSE request header says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asker {
    /// The calling *thread's* id in the daemon's pid namespace; 0 when the caller isn't visible from there.
    pub tid: u32,
    /// The caller's user id.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
}

/// What is to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path relative to the mount root: no leading slash, raw bytes, not necessarily UTF-8.
    pub path: &'a [u8],
}

impl<'a> Target<'a> {
    /// The last component.
    pub fn name(&self) -> &'a [u8] {
        self.components().next().unwrap_or_default()
    }

    /// The components from the last to the first: the name, its parent directory, and so on.
    pub fn components(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.path.rsplit(|&b| b == b'/')
    }
}

/// A rule that says on which backing a new file goes.
pub trait Policy: Send + Sync {
    /// The name by which the policy is chosen on the command line.
    fn name(&self) -> &'static str;

    /// Chooses the backing for `target`; `None` when no backing is usable.
    ///
    /// `backings` is every backing, in the order of the `--backing` list.
    fn choose(&self, asker: &Asker, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision>;

    /// What the rule says of a name when the process that created it is no longer known, for people.
    fn explain(&self, target: &Target<'_>, backings: &[Candidate]) -> String {
        match self.choose(&Asker::default(), target, backings) {
            Some(decision) => format!("{}, from the name alone: {}", self.name(), decision.detail),
            None => format!("{}: no backing takes new files", self.name()),
        }
    }
}

type MakePolicy = fn(&Arc<Evidence>) -> Box<dyn Policy>;

/// The policies there are, by name, with what makes one.
const POLICIES: &[(&str, MakePolicy)] = &[
    (by_gpu::NAME, |evidence| Box::new(ByGpu::new(evidence.clone()))),
    (hash::NAME, |_| Box::new(Hash)),
    (round_robin::NAME, |_| Box::new(RoundRobin::new())),
    (most_free::NAME, |_| Box::new(MostFree)),
    (nearest::NAME, |evidence| Box::new(Nearest::new(evidence.clone()))),
];

/// All policies, ready: the mount has one, and a directory may have another.
pub struct Policies {
    all: Vec<Box<dyn Policy>>,
    mounts_own: usize,
    evidence: Arc<Evidence>,
}

impl Policies {
    /// Makes them; they share what is known of who asks. `name` is the mount's own.
    ///
    /// # Errors
    /// [`UnknownPolicy`] when there is none of that name.
    pub fn new(name: &str, evidence: Arc<Evidence>) -> Result<Self, UnknownPolicy> {
        let named = POLICIES.iter().position(|(known, _)| *known == name);
        let mounts_own = named.ok_or_else(|| UnknownPolicy::new(name))?;
        Ok(Self { all: POLICIES.iter().map(|(_, make)| make(&evidence)).collect(), mounts_own, evidence })
    }

    /// The processes that ask.
    pub fn processes(&self) -> &Arc<process::Processes> {
        self.evidence.processes()
    }

    /// The mount's own policy.
    pub fn mounts_own(&self) -> &dyn Policy {
        &*self.all[self.mounts_own]
    }

    /// The policy called `name`.
    ///
    /// # Errors
    /// [`UnknownPolicy`] when there is none of that name; its message lists those there are.
    pub fn get(&self, name: &str) -> Result<&dyn Policy, UnknownPolicy> {
        let found = self.all.iter().find(|policy| policy.name() == name);
        found.map(|policy| &**policy).ok_or_else(|| UnknownPolicy::new(name))
    }
}

/// Whether there is a policy called `name`.
///
/// # Errors
/// [`UnknownPolicy`] when there is none of that name; its message lists those there are.
pub fn check_name(name: &str) -> Result<(), UnknownPolicy> {
    if POLICIES.iter().any(|(known, _)| *known == name) { Ok(()) } else { Err(UnknownPolicy::new(name)) }
}

/// A policy name that no policy has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown placement policy {value:?}: the policies are {known}{}", .nearest.map_or(String::new(), |n| format!("; did you mean {n:?}?")))]
pub struct UnknownPolicy {
    /// What was asked for.
    pub value: String,
    /// The policies there are, as a list for people.
    pub known: String,
    /// The policy whose name is closest to `value`, if one is close at all.
    pub nearest: Option<&'static str>,
}

impl UnknownPolicy {
    fn new(value: &str) -> Self {
        let names = || POLICIES.iter().map(|(name, _)| *name);
        let nearest = names()
            .map(|name| (edit_distance(value, name), name))
            .min()
            .filter(|(distance, name)| *distance <= name.len() / 2)
            .map(|(_, name)| name);
        Self { value: value.to_owned(), known: names().collect::<Vec<_>>().join(", "), nearest }
    }
}

/// The Levenshtein distance, ignoring ASCII case.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_found_by_its_own_name() {
        let policies = Policies::new("hash", Arc::default()).unwrap();
        assert_eq!(policies.mounts_own().name(), "hash");
        for (name, _) in POLICIES {
            assert_eq!(policies.get(name).map(|p| p.name()).as_ref(), Ok(name));
        }
    }

    #[test]
    fn an_unknown_policy_is_named_with_the_nearest_one() {
        let message = |value| match check_name(value) {
            Ok(()) => panic!("{value} is a policy"),
            Err(e) => e.to_string(),
        };
        assert_eq!(
            message("by-gpu"),
            r#"unknown placement policy "by-gpu": the policies are by_gpu, hash, round-robin, most-free, nearest; did you mean "by_gpu"?"#
        );
        assert!(message("HASHED").ends_with(r#"did you mean "hash"?"#));
        assert!(message("round_robin").ends_with(r#"did you mean "round-robin"?"#));
        assert!(message("mostfree").ends_with(r#"did you mean "most-free"?"#));
        for value in ["something else", ""] {
            let message = message(value);
            assert!(message.ends_with("are by_gpu, hash, round-robin, most-free, nearest"), "{message}");
        }
    }

    #[test]
    fn components_are_counted_from_the_name() {
        let target = Target { path: b"a/b/c" };
        assert_eq!(target.name(), b"c");
        assert_eq!(target.components().collect::<Vec<_>>(), [b"c", b"b", b"a"]);
        assert_eq!(Target { path: b"" }.name(), b"");
    }
}
