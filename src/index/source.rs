//! What a scan reads: a backing, and what decides which of its files are taken.
//!
//! What always holds: a sieve is asked by one thread per backing at once; what it keeps out isn't in the index, so no client sees it.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::Slot;

/// What decides whether a file is read at all. Several readers may ask at once.
pub trait Sieve: std::fmt::Debug + Sync {
    /// A directory is about to be read; what this returns comes with each of its files.
    fn enter(&self, dir: &OwnedFd) -> Passed;
    /// Whether this file of it stays out.
    fn keeps_out(&self, dir: &OwnedFd, passed: Passed, name: &[u8], ino: u64) -> bool;
}

/// What a [`Sieve`] knows of a directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Its inode number.
    pub ino: u64,
    /// Its files have to be asked about.
    pub ask: bool,
    /// Something in it may have been made or removed lately.
    pub recent: bool,
}

/// One backing to read.
#[derive(Debug)]
pub struct Source<'a> {
    /// Which backing it is.
    pub slot: Slot,
    /// The directory to start from.
    pub root: BorrowedFd<'a>,
    /// Reserved names (kvfs's own): not part of the tree.
    pub is_reserved: fn(&[u8]) -> bool,
    /// Those of them that work which was cut off has left: they are reported.
    pub is_leftover: fn(&[u8]) -> bool,
    /// Why a file found there is there (`placement::Reason::code`).
    pub reason: u8,
    /// What decides about its files, if all of them aren't to be read.
    pub sieve: Option<&'a dyn Sieve>,
}
