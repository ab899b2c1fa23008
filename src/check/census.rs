//! What directories hold, by whose names the files have.
//!
//! What always holds: names alone are looked at, unless sizes are wanted: a `stat` of each file costs more than all
//! the rest.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::AsFd;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, StatxFlags, statx};
use serde::Serialize;

use super::look::{Item, in_threads};
use super::{Reading, Root};
use crate::index::Slot;
use crate::placement::Target;
use crate::placement::names::{self, Part};
use crate::printable::printable;
use crate::retention::pair;

/// Names that no grammar fits, of which so many are told.
const EXAMPLES: usize = 5;

/// Files of one client, or of none that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    /// How many.
    pub files: u64,
    /// Their sizes, if that was asked for.
    pub bytes: Option<u64>,
    /// How many are in each directory, by its number.
    pub per_directory: BTreeMap<u8, u64>,
    /// How many of each rank are in each directory, where a name tells one: `ranks[rank][directory]`.
    pub ranks: BTreeMap<u32, BTreeMap<u8, u64>>,
    /// How many are where `by_gpu` would put new ones of their rank, and how many aren't.
    pub in_place: u64,
    /// See there.
    pub elsewhere: u64,
    /// Some of them, where nothing is known of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// What directories hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// By client, as `kvfs` names it; `unknown` for what no grammar fits.
    pub groups: BTreeMap<String, Group>,
    /// Paths that several directories have: the newest copy would be the file.
    pub duplicates: u64,
    /// Data files of LMCache's `gds_path` without metadata: LMCache doesn't find them.
    pub without_metadata: u64,
    /// Metadata without data.
    pub without_data: u64,
    /// Pairs whose two files are in different directories, which works.
    pub apart: u64,
}

/// What a name that no grammar fits is counted as.
pub const UNKNOWN: &str = "unknown";

/// Counts what was read.
pub fn census(roots: &[Root], reading: &Reading, sizes: bool) -> Census {
    let census = Mutex::new(Census::default());
    let Ok(()) = in_threads(
        roots.len(),
        |act| -> Result<(), Infallible> {
            reading.each(act);
            Ok(())
        },
        |item, _| {
            let Item::File { path, slot, others, .. } = item else { return };
            let bytes = if sizes { size(roots, slot, &path) } else { None };
            let info = names::parse(&Target { path: &path });
            let apart = broken(reading, &path, slot);
            let mut census = census.lock();
            census.duplicates += u64::from(!others.is_empty());
            match apart {
                Some(Broken::WithoutMetadata) => census.without_metadata += 1,
                Some(Broken::WithoutData) => census.without_data += 1,
                Some(Broken::Apart) => census.apart += 1,
                None => {}
            }
            let name = info.map_or_else(|| UNKNOWN.into(), |info| info.client.to_string());
            let group = census.groups.entry(name).or_default();
            group.files += 1;
            if let Some(bytes) = bytes {
                *group.bytes.get_or_insert(0) += bytes;
            }
            *group.per_directory.entry(slot.0).or_default() += 1;
            if let Some(rank) = info.and_then(|info| info.telling_rank()) {
                *group.ranks.entry(rank).or_default().entry(slot.0).or_default() += 1;
                let place = u64::from(rank) % roots.len() as u64;
                *(if place == u64::from(slot.0) { &mut group.in_place } else { &mut group.elsewhere }) += 1;
            }
            if info.is_none() && group.examples.len() < EXAMPLES {
                group.examples.push(printable(&path));
            }
        },
    );
    census.into_inner()
}

enum Broken {
    WithoutMetadata,
    WithoutData,
    Apart,
}

/// What's wrong with the pair that a file is one of; told for one of the two, if both are there.
fn broken(reading: &Reading, path: &[u8], slot: Slot) -> Option<Broken> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    let part = names::part(&path[at..])?;
    let (data, metadata) = pair(&path[at..])?;
    let other = |name: &[u8]| reading.slot_of(&[&path[..at], name].concat());
    match part {
        Part::Data => match other(&metadata) {
            None => Some(Broken::WithoutMetadata),
            Some(there) => (there != slot).then_some(Broken::Apart),
        },
        Part::Metadata => other(&data).is_none().then_some(Broken::WithoutData),
    }
}

fn size(roots: &[Root], slot: Slot, path: &[u8]) -> Option<u64> {
    let root = super::root(roots, slot).ok()?;
    let stat = statx(root.dir.as_fd(), path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::SIZE).ok()?;
    Some(stat.stx_size)
}
