//! Tokens: names of open files for ops that are issued on another file.
//!
//! What always holds: a token is random and never 0; it's good for the process that was given it, and as long
//! as that very open file is open.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::buffer::random;
use super::owner::Owner;
use crate::shares::{Share, Shares};

#[derive(Default)]
struct Tables {
    by_token: HashMap<u64, (Arc<Owner>, u64, Share)>,
    by_file: HashMap<u64, Vec<(u32, u64)>>,
}

/// Tokens that there may be: a process can have one for each file that it inherited.
const MOST: usize = 1 << 20;

/// All tokens of a mount.
pub(super) struct Tokens(Mutex<Tables>, Arc<Shares>);

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens(Mutex::default(), Shares::new("tokens", MOST))
    }
}

impl Tokens {
    /// The token that a process has for an open file already.
    pub(super) fn known(&self, tgid: u32, fh: u64) -> Option<u64> {
        let tables = self.0.lock();
        tables.by_file.get(&fh)?.iter().find(|(of, _)| *of == tgid).map(|(_, token)| *token)
    }

    /// The owner's token for an open file. `EDQUOT` where their user has as many as are left.
    pub(super) fn of(&self, owner: &Arc<Owner>, fh: u64) -> Result<u64, Errno> {
        let mut tables = self.0.lock();
        let known = tables.by_file.get(&fh).and_then(|of| of.iter().find(|(tgid, _)| *tgid == owner.tgid));
        if let Some((_, token)) = known
            && let Some((theirs, ..)) = tables.by_token.get(token)
            && Arc::ptr_eq(theirs, owner)
        {
            return Ok(*token);
        }
        let share = self.1.take(owner.uid).ok_or(Errno::DQUOT)?;
        let token = random().map_err(|_| Errno::IO)?;
        tables.by_token.insert(token, (owner.clone(), fh, share));
        tables.by_file.entry(fh).or_default().push((owner.tgid, token));
        Ok(token)
    }

    /// The open file of the owner's token.
    pub(super) fn file(&self, owner: &Arc<Owner>, token: u64) -> Option<u64> {
        let tables = self.0.lock();
        let (theirs, fh, _) = tables.by_token.get(&token)?;
        Arc::ptr_eq(theirs, owner).then_some(*fh)
    }

    /// The file was closed.
    pub(super) fn closed(&self, fh: u64) {
        let mut tables = self.0.lock();
        for (_, token) in tables.by_file.remove(&fh).unwrap_or_default() {
            tables.by_token.remove(&token);
        }
    }

    /// The process has ended.
    pub(super) fn ended(&self, owner: &Arc<Owner>) {
        let mut tables = self.0.lock();
        let Tables { by_token, by_file } = &mut *tables;
        by_token.retain(|token, (theirs, fh, _)| {
            let keep = !Arc::ptr_eq(theirs, owner);
            if !keep && let Some(of) = by_file.get_mut(fh) {
                of.retain(|(_, t)| t != token);
                if of.is_empty() {
                    by_file.remove(fh);
                }
            }
            keep
        });
    }
}
