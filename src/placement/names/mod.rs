//! What a file's name says: which KV-cache client wrote it and which worker's data it holds.
//!
//! Every client has a fixed grammar for its file names, and most of them put the rank of the worker into it.
//! [`parse`] knows the grammars of LMCache 0.5.6 (and the older forms of its keys), SGLang 0.5.23,
//! vLLM 0.33.0 and llm-d-kv-cache 0.8.1. What always holds: names are raw bytes of any length and content,
//! nothing is allocated, nothing panics, and a number is only believed where its grammar fits as a whole.
//!
//! A file is created under its temporary name where the client uses one, so the decoration of temporary
//! names is taken off first.

mod lmcache;
mod sglang;
mod text;
mod vllm;

#[cfg(test)]
mod tests;

use super::Target;
use std::fmt;
use text::{is_hex, strip_digits};

/// The client, and the part of it, that a name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// LMCache's `LocalDiskBackend` (v1/storage_backend/local_disk_backend.py, `_key_to_path`).
    LmcacheLocalDisk,
    /// LMCache's `FSConnector`, the `fs://` remote (v1/storage_backend/connector/fs_connector.py).
    LmcacheFs,
    /// LMCache's `GdsBackend`, `gds_path` (v1/storage_backend/gds_backend.py).
    LmcacheGds,
    /// The `fs`, `fs_native` and `nixl_native` adapters of LMCache's multi-process server
    /// (v1/distributed/l2_adapters/fs_l2_adapter.py).
    LmcacheMp,
    /// The `nixl_store_dynamic` adapter of LMCache's multi-process server
    /// (nixl_store_agents/file_dynamic_nixl_store_agent.py).
    LmcacheMpNixl,
    /// LMCache's in-process NIXL storage without a pool (v1/storage_backend/nixl_storage_backend.py).
    LmcacheNixl,
    /// A file of one of LMCache's static NIXL pools: it holds pages of anything.
    LmcacheNixlPool,
    /// SGLang's HiCache `file` backend (srt/mem_cache/hicache_storage.py).
    SglangFile,
    /// SGLang's HiCache `nixl` backend (srt/mem_cache/storage/nixl/).
    SglangNixl,
    /// vLLM's own fs tier, or rank 0 of llm-d's: the paths are the same (v1/kv_offload/file_mapper.py).
    VllmFs,
    /// A rank other than 0 of llm-d's fs backend (llmd_fs_backend).
    LlmdFs,
}

impl Client {
    /// Whether one process writes the files of all GPUs: what it uses itself says nothing of a file with a rank.
    pub fn writes_for_others(self) -> bool {
        matches!(self, Self::LmcacheMp | Self::LmcacheMpNixl)
    }
}

impl Client {
    /// Whether a name of it that has a negative hash was made with Python's `hash()`: LMCache's default
    /// (`pre_caching_hash_algorithm: builtin`; v1/token_database.py). Digests, which it may use instead, have no sign.
    pub fn uses_pythons_hash(self) -> bool {
        matches!(self, Self::LmcacheLocalDisk | Self::LmcacheFs | Self::LmcacheGds | Self::LmcacheNixl)
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LmcacheLocalDisk => "LMCache local_disk",
            Self::LmcacheFs => "LMCache fs://",
            Self::LmcacheGds => "LMCache gds_path",
            Self::LmcacheMp => "LMCache server fs",
            Self::LmcacheMpNixl => "LMCache server nixl_store_dynamic",
            Self::LmcacheNixl => "LMCache nixl",
            Self::LmcacheNixlPool => "LMCache nixl pool",
            Self::SglangFile => "SGLang file",
            Self::SglangNixl => "SGLang nixl",
            Self::VllmFs => "vLLM fs",
            Self::LlmdFs => "llm-d fs",
        })
    }
}

/// What a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameInfo {
    /// Whose name it is.
    pub client: Client,
    /// The rank of the worker inside its data-parallel replica, counted from 0. Where the client tells the
    /// rank on this server from the rank in the whole job, it's the one on this server.
    ///
    /// As written: in a world of one it is always 0 and says nothing; see [`NameInfo::telling_rank`].
    pub rank: Option<u32>,
    /// The number of workers of one replica, always more than `rank`. LMCache writes 1 for models with
    /// multi-head latent attention however many workers there are (v1/token_database.py).
    pub world: Option<u32>,
}

impl NameInfo {
    fn new(client: Client, rank: Option<Rank>) -> Self {
        Self { client, rank: rank.map(|r| r.rank), world: rank.map(|r| r.world) }
    }

    /// The rank, unless every worker of the client would have written the same one.
    ///
    /// With eight single-GPU replicas all names say "rank 0 of 1".
    pub fn telling_rank(&self) -> Option<u32> {
        self.rank.filter(|_| self.world != Some(1))
    }
}

/// A worker's place among its peers: always `rank < world`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rank {
    rank: u32,
    world: u32,
}

impl Rank {
    fn new(rank: u32, world: u32) -> Option<Self> {
        (rank < world).then_some(Self { rank, world })
    }
}

/// Reads a path by the grammars of the known clients; `None` when it fits none.
///
/// The names come in [`Target`]s since vLLM and llm-d put the rank into a directory's name.
pub fn parse(target: &Target<'_>) -> Option<NameInfo> {
    let name = target.name();
    if let Some(stem) = name.strip_suffix(b".tmp") {
        if sglang::is_temporary(stem) {
            return Some(NameInfo::new(Client::SglangFile, None));
        }
        if let Some(stem) = bin_under_temporary_name(stem) {
            return parse_bin(stem, target);
        }
        // LMCache's `with_suffix(".tmp")`; the plain suffix is accepted as well.
        return lmcache::data(stem.strip_suffix(b".data").unwrap_or(stem));
    }
    let name = undecorated(name);
    if let Some(stem) = name.strip_suffix(b".pt") {
        lmcache::local_disk(stem)
    } else if let Some(stem) = name.strip_suffix(b".data") {
        lmcache::data(stem)
    } else if let Some(stem) = name.strip_suffix(b".bin") {
        parse_bin(stem, target)
    } else if let Some(stem) = lmcache::gds_stem(name) {
        lmcache::gds(stem)
    } else {
        sglang::nixl(name).or_else(|| lmcache::nixl(name))
    }
}

fn parse_bin(stem: &[u8], target: &Target<'_>) -> Option<NameInfo> {
    sglang::file(stem)
        .or_else(|| vllm::block(stem, target))
        .or_else(|| lmcache::nixl_pool(stem))
        .or_else(|| lmcache::mp_nixl(stem))
}

/// The client whose name this is, if it depends on the seed of Python's hash: one of LMCache with a negative hash, which
/// half of those have that `hash()` has made; or any of vLLM, whose first block's hash is made of `PYTHONHASHSEED`, and
/// of random bytes without it (`init_none_hash` in vllm/v1/core/kv_cache_utils.py).
pub fn seeded_by_python(target: &Target<'_>) -> Option<Client> {
    let client = parse(target)?.client;
    let is_seeded = match client {
        Client::VllmFs | Client::LlmdFs => true,
        client => client.uses_pythons_hash() && has_negative_hash(target.name()),
    };
    is_seeded.then_some(client)
}

/// Whether a field of the name is a negative hexadecimal number.
fn has_negative_hash(name: &[u8]) -> bool {
    let mut fields = name.windows(2).enumerate().filter(|(_, two)| matches!(two, [b'@' | b'_' | b'0', b'-']));
    fields.any(|(at, two)| {
        // `gds_path` writes an at sign as %40.
        let begins = two[0] != b'0' || name[..=at].ends_with(b"%40");
        let digits = name[at + 2..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        begins && (8..=16).contains(&digits)
    })
}

/// What a file is hashed by: its name without what changes while it's written, and without what tells its
/// parts apart, so that a file is where its final name says and next to its `.metadata`.
///
/// SGLang's temporary names (`.{uuid}.tmp`) hold nothing of the final name; they are hashed as they are.
pub fn key(name: &[u8]) -> &[u8] {
    let key = match name.strip_suffix(b".tmp") {
        Some(stem) if sglang::is_temporary(stem) => return name,
        Some(stem) => match bin_under_temporary_name(stem) {
            Some(bin) => &stem[..bin.len() + b".bin".len()],
            None => stem,
        },
        None => undecorated(name),
    };
    let key = key.strip_suffix(b".metadata").unwrap_or(key);
    let key = key.strip_suffix(b".data").unwrap_or(key);
    // A name such as `.tmp` or `.data` is left as it is rather than made empty.
    if key.is_empty() { name } else { key }
}

/// Which of the two files of one key a name is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The data, which is written first.
    Data,
    /// The `.metadata` that goes with it.
    Metadata,
}

/// The part that a name is for, of a client that keeps a key in two files: LMCache's `GdsBackend`. Both parts
/// have the same [`key`].
pub fn part(name: &[u8]) -> Option<Part> {
    let name = undecorated(name);
    lmcache::gds_stem(name)?;
    Some(if name.ends_with(b".metadata") { Part::Metadata } else { Part::Data })
}

/// Takes off `.tmp{8 hex}` (LMCache gds), `.tmp.{32 hex}` (LMCache nixl_store_dynamic) or `.tmp.{decimal}`
/// (LMCache nixl_native).
fn undecorated(name: &[u8]) -> &[u8] {
    const LONGEST: usize = ".tmp.".len() + 32;
    let from = name.len().saturating_sub(LONGEST);
    let Some(at) = name[from..].windows(4).rposition(|w| w == b".tmp") else { return name };
    let (stem, tail) = (&name[..from + at], &name[from + at + 4..]);
    let decorated = match tail.strip_prefix(b".") {
        Some(unique) => is_hex(unique) && (unique.len() == 32 || unique.iter().all(u8::is_ascii_digit)),
        None => tail.len() == 8 && is_hex(tail),
    };
    if decorated { stem } else { name }
}

/// `{stem}` of `{stem}.bin_{decimal}` (`.tmp` taken off already): the temporary names of vLLM and llm-d.
fn bin_under_temporary_name(stem: &[u8]) -> Option<&[u8]> {
    strip_digits(stem)?.strip_suffix(b".bin_")
}
