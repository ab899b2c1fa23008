//! Listings by the index: what is where, without touching the mount or a disk.
//!
//! What always holds: one question is about one part of one directory, so nothing waits in the daemon for a reader who
//! takes their time; what is there throughout is told once.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{AskError, Question, ask};
use crate::fs::{Fs, Seen, SeenKind};
use crate::index::{Kind, SlotSet};

/// A name or path, whatever its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Name {
    /// UTF-8.
    Text(String),
    /// Something else.
    Bytes(Vec<u8>),
}

impl From<Vec<u8>> for Name {
    fn from(bytes: Vec<u8>) -> Name {
        String::from_utf8(bytes).map_or_else(|e| Name::Bytes(e.into_bytes()), Name::Text)
    }
}

impl Name {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Text(text) => text.as_bytes(),
            Name::Bytes(bytes) => bytes,
        }
    }
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ListedKind {
    File,
    Directory,
    Symlink,
    Other,
}

/// Something that the index has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    /// The path in the mount.
    pub path: Name,
    /// What it is.
    pub kind: ListedKind,
    /// The backings: a file's own; all that have a directory.
    pub slots: Vec<u8>,
    /// Backings with older copies of a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<u8>,
    /// Somebody has it open.
    #[serde(default, skip_serializing_if = "is_false")]
    pub open: bool,
    /// It's being written, and nobody else sees it yet.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unpublished: bool,
    /// Why it's there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn slots(slots: SlotSet) -> Vec<u8> {
    slots.iter().map(|slot| slot.0).collect()
}

impl Listed {
    fn of(seen: Seen) -> Listed {
        let kind = match seen.kind {
            SeenKind::Directory(_) => ListedKind::Directory,
            SeenKind::File(Kind::File) => ListedKind::File,
            SeenKind::File(Kind::Symlink) => ListedKind::Symlink,
            SeenKind::File(_) => ListedKind::Other,
        };
        Listed {
            path: seen.path.into(),
            kind,
            slots: slots(seen.slots),
            shadows: slots(seen.shadows),
            open: seen.is_open,
            unpublished: seen.is_hidden,
            placement: seen.placement,
        }
    }
}

/// A part of a listing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Page {
    /// What is in it: of a directory its entries, of anything else that itself.
    pub entries: Vec<Listed>,
    /// Where to go on, if that wasn't all.
    pub next: Option<u32>,
}

/// What a listing is to have.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Wanted {
    /// Directories, and only those files of which there are older copies.
    pub shadowed_only: bool,
    /// Why each file is where it is.
    pub placement: bool,
}

/// A part of what is at a path; `None` where nothing is.
pub(super) fn page(fs: &Fs, path: &[u8], from: u32, wanted: Wanted) -> Option<Page> {
    let found = fs.seen(path, wanted.placement)?;
    let SeenKind::Directory(dir) = found.kind else {
        return Some(Page { entries: vec![Listed::of(found)], next: None });
    };
    let (seen, next) = fs.seen_in(dir, path, from, wanted.placement);
    let is_wanted = |seen: &Seen| {
        !wanted.shadowed_only || matches!(seen.kind, SeenKind::Directory(_)) || !seen.shadows.is_empty()
    };
    Some(Page { entries: seen.into_iter().filter(is_wanted).map(Listed::of).collect(), next })
}

/// Asks the daemon of a mount for all that is at a path, and below if that's `recursive`, until `act` says that it wants
/// no more. An error if nothing is at the path; directories that go meanwhile are passed over.
pub fn each_listed(
    device: (u32, u32),
    path: &[u8],
    recursive: bool,
    wanted: Wanted,
    mut act: impl FnMut(Listed) -> ControlFlow<()>,
) -> Result<(), AskError> {
    let mut todo = vec![Name::from(path.to_vec())];
    let mut first = true;
    while let Some(path) = todo.pop() {
        let mut from = Some(0);
        while let Some(at) = from {
            let page = match ask::<Page>(device, &Question::List { path: path.clone(), from: at, wanted }) {
                Err(AskError::Refused(_)) if !first => break,
                page => page?,
            };
            first = false;
            for listed in page.entries {
                if recursive && listed.kind == ListedKind::Directory {
                    todo.push(listed.path.clone());
                }
                if act(listed).is_break() {
                    return Ok(());
                }
            }
            from = page.next;
        }
    }
    Ok(())
}
