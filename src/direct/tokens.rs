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
use super::survival::{Book, KeptToken};
use crate::shares::{Share, Shares};

/// What a token stands for.
struct Token {
    owner: Arc<Owner>,
    fh: u64,
    _share: Share,
    _kept: Option<KeptToken>,
}

#[derive(Default)]
struct Tables {
    by_token: HashMap<u64, Token>,
    by_file: HashMap<u64, Vec<(u32, u64)>>,
}

/// Tokens that there may be: a process can have one for each file that it inherited.
const MOST: usize = 1 << 20;

/// All tokens of a mount.
pub(super) struct Tokens(Mutex<Tables>, Arc<Shares>, Arc<Book>);

impl Tokens {
    /// None yet; they're kept by `book`.
    pub(super) fn new(book: Arc<Book>) -> Tokens {
        Tokens(Mutex::default(), Shares::new("tokens", MOST), book)
    }

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
            && let Some(known) = tables.by_token.get(token)
            && Arc::ptr_eq(&known.owner, owner)
        {
            return Ok(*token);
        }
        let share = self.1.take(owner.uid).ok_or(Errno::DQUOT)?;
        let token = random().map_err(|_| Errno::IO)?;
        let kept = self.2.keep_token(owner, token, fh);
        tables.insert(token, Token { owner: owner.clone(), fh, _share: share, _kept: kept });
        Ok(token)
    }

    /// Enters one that was there before, whatever its user has by now.
    pub(super) fn enter_again(&self, owner: Arc<Owner>, token: u64, fh: u64, kept: KeptToken) {
        let share = self.1.taken(owner.uid);
        self.0.lock().insert(token, Token { owner, fh, _share: share, _kept: Some(kept) });
    }

    /// The open file of the owner's token.
    pub(super) fn file(&self, owner: &Arc<Owner>, token: u64) -> Option<u64> {
        let tables = self.0.lock();
        let token = tables.by_token.get(&token)?;
        Arc::ptr_eq(&token.owner, owner).then_some(token.fh)
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
        by_token.retain(|number, token| {
            let keep = !Arc::ptr_eq(&token.owner, owner);
            if !keep && let Some(of) = by_file.get_mut(&token.fh) {
                of.retain(|(_, t)| t != number);
                if of.is_empty() {
                    by_file.remove(&token.fh);
                }
            }
            keep
        });
    }
}

impl Tables {
    fn insert(&mut self, number: u64, token: Token) {
        self.by_file.entry(token.fh).or_default().push((token.owner.tgid, number));
        self.by_token.insert(number, token);
    }
}
