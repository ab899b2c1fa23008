//! Names of SGLang's HiCache `file` and `nixl` backends (srt/mem_cache/hicache_storage.py and
//! srt/mem_cache/storage/nixl/): `{64 hex}[.{pool}]_{model}[_{tp}_{tp_size}][_{pp_size}_{pp}]`, then
//! `[_cp{r}_{s}][_tp{}_dcp{}_{}_page{}]`, then `.bin`, `_k`, `_v` or `_{pool}`.
//!
//! A model's name may end in numbers too. A pair of them is only taken for a rank and a size if the rank is
//! less than the size; models with multi-head latent attention have no such pair, and neither has the
//! `unified` key scheme (`{64 hex}_ukv1-…`).

use super::text::{decimal, is_decimal, is_hex, rsplit_once};
use super::{Client, NameInfo, Rank};

/// Whether `.tmp` after this makes one of SGLang's temporary names: `.{32 hex}.tmp`.
pub(super) fn is_temporary(stem: &[u8]) -> bool {
    stem.len() == 33 && stem[0] == b'.' && is_hex(&stem[1..])
}

/// Reads a name of the `file` backend, `.bin` taken off.
pub(super) fn file(stem: &[u8]) -> Option<NameInfo> {
    Some(NameInfo::new(Client::SglangFile, rank(after_hash(stem)?)))
}

/// Reads a name of the `nixl` backend, which has no extension but a part: `_k`, `_v` or a pool's name.
pub(super) fn nixl(name: &[u8]) -> Option<NameInfo> {
    let mut fields = Fields(after_hash(name)?);
    let part = fields.pop()?;
    // Without a part it would be a number, and the name no name of SGLang's.
    if is_decimal(part) {
        return None;
    }
    Some(NameInfo::new(Client::SglangNixl, rank(fields.0)))
}

/// What follows the page's hash, its pool and the underscore.
fn after_hash(name: &[u8]) -> Option<&[u8]> {
    let (hash, rest) = name.split_at_checked(64)?;
    if !matches!(rest.first(), Some(b'_' | b'.')) || !is_hex(hash) {
        return None;
    }
    let underscore = rest.iter().position(|&b| b == b'_')?;
    Some(&rest[underscore + 1..])
}

/// The rank at the end of `{model}[_{tp}_{tp_size}][_{pp_size}_{pp}][_cp…][_tp…_page…]`.
fn rank(text: &[u8]) -> Option<Rank> {
    let mut fields = Fields(text);
    if fields.is_numbered(0, b"page") {
        fields.drop(4);
    }
    if fields.is_numbered(1, b"cp") {
        fields.drop(2);
    }
    let last = fields.pop_pair()?;
    let before = fields.pop_pair();
    if let (Some((tp, tp_size)), (pp_size, pp)) = (before, last)
        && tp < tp_size
        && pp < pp_size
    {
        return Rank::new(pp.checked_mul(tp_size)?.checked_add(tp)?, tp_size.checked_mul(pp_size)?);
    }
    Rank::new(last.0, last.1)
}

/// The fields of a name between underscores, taken from the end. The first one is the model's: never taken.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn pop(&mut self) -> Option<&'a [u8]> {
        let (rest, field) = rsplit_once(self.0, b'_').filter(|(rest, _)| !rest.is_empty())?;
        self.0 = rest;
        Some(field)
    }

    /// Whether the field with `after` fields behind it is `word` and a decimal number.
    fn is_numbered(&self, after: usize, word: &[u8]) -> bool {
        let field = self.0.rsplit(|&b| b == b'_').nth(after);
        field.and_then(|field| field.strip_prefix(word)).is_some_and(is_decimal)
    }

    fn drop(&mut self, count: usize) {
        for _ in 0..count {
            self.pop();
        }
    }

    /// The two numbers at the end, in their order; leaves everything in place when there aren't two.
    fn pop_pair(&mut self) -> Option<(u32, u32)> {
        let before = self.0;
        let pair = (|| {
            let last = decimal(self.pop()?)?;
            Some((decimal(self.pop()?)?, last))
        })();
        if pair.is_none() {
            self.0 = before;
        }
        pair
    }
}
