//! Paths of vLLM's fs tier and of llm-d's fs backend (vllm/v1/kv_offload/file_mapper.py):
//! `{root}/{model}_{12 hex}_r{rank}/{3 hex}/{2 hex}_g{group}/{block hash}.bin`.
//!
//! vLLM writes from its scheduler and always says `_r0`, while llm-d's workers write their own ranks. The two
//! can't be told apart by a path, so `_r0` is never taken for a rank.

use super::text::{decimal, is_decimal, is_hex, rsplit_once};
use super::{Client, NameInfo};
use crate::placement::Target;

/// Reads the path of a block whose name without `.bin` (and `_{n}.tmp`) is `stem`.
pub(super) fn block(stem: &[u8], target: &Target<'_>) -> Option<NameInfo> {
    let mut parents = target.components().skip(1);
    let (group, prefix, model) = (parents.next()?, parents.next()?, parents.next()?);
    let (bucket, group) = rsplit_once(group, b'_')?;
    let fits = is_hex(stem)
        && bucket.len() == 2
        && is_hex(bucket)
        && is_decimal(group.strip_prefix(b"g")?)
        && prefix.len() == 3
        && is_hex(prefix);
    let (model, rank) = rsplit_once(model, b'_')?;
    let (_, config) = rsplit_once(model, b'_')?;
    if !fits || config.len() != 12 || !is_hex(config) {
        return None;
    }
    Some(match decimal(rank.strip_prefix(b"r")?)? {
        0 => NameInfo { client: Client::VllmFs, rank: None, world: None },
        rank => NameInfo { client: Client::LlmdFs, rank: Some(rank), world: None },
    })
}
