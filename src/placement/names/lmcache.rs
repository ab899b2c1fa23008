//! Names that LMCache gives its files: the in-process backends' keys and the multi-process server's.
//!
//! In-process (`CacheEngineKey.to_string`, lmcache/utils.py):
//! `[{format}@]{model}@{world_size}@{rank}@{hash}[@{dtype}][@{layer}][@{tag}%{value}]*`. Releases up to 0.3.12
//! began with the format and had no dtype. The server's `kv_rank` (v1/distributed/api.py) is four bytes in
//! hexadecimal: world size, rank, world size on this server, rank on this server.

use super::text::{decimal, is_decimal, is_hex, is_signed_hex, rsplit_once};
use super::{Client, NameInfo, Rank};

/// Reads a `.pt` file's name, the extension taken off.
pub(super) fn local_disk(stem: &[u8]) -> Option<NameInfo> {
    Some(NameInfo::new(Client::LmcacheLocalDisk, Some(key(stem)?)))
}

/// Reads the name of a `.data` file, the extension taken off: the server's, or else of the `fs://` remote.
pub(super) fn data(stem: &[u8]) -> Option<NameInfo> {
    match mp_key(stem) {
        Some(rank) => Some(NameInfo::new(Client::LmcacheMp, Some(rank))),
        None => Some(NameInfo::new(Client::LmcacheFs, Some(key(stem)?))),
    }
}

/// Takes off the extensions of `gds_path`: those of its data files and of the metadata beside them.
pub(super) fn gds_stem(name: &[u8]) -> Option<&[u8]> {
    let name = name.strip_suffix(b".metadata").unwrap_or(name);
    name.strip_suffix(b".kvcache.safetensors").or_else(|| name.strip_suffix(b".weka1"))
}

/// Reads a `gds_path` name without its extension: a key, URL-quoted.
pub(super) fn gds(quoted: &[u8]) -> Option<NameInfo> {
    // A name can't be longer than NAME_MAX; unquoting only makes it shorter.
    let mut unquoted = [0; 255];
    let stem = unquote(quoted, &mut unquoted)?;
    Some(NameInfo::new(Client::LmcacheGds, Some(key(stem)?)))
}

/// Reads `{model}_{kv_rank}_{group}_{64 hex}[@{salt}]`, a name of `nixl_store_dynamic` without its `.bin`.
pub(super) fn mp_nixl(stem: &[u8]) -> Option<NameInfo> {
    let unsalted = match rsplit_once(stem, b'@') {
        Some((before, _)) if ends_with_hash(before) => before,
        _ => stem,
    };
    if !ends_with_hash(unsalted) {
        return None;
    }
    let mut fields = unsalted.rsplitn(4, |&b| b == b'_').skip(1);
    let (group, kv_rank, model) = (fields.next()?, fields.next()?, fields.next()?);
    if !is_hex(group) || model.is_empty() {
        return None;
    }
    Some(NameInfo::new(Client::LmcacheMpNixl, Some(local_rank(kv_rank)?)))
}

/// Whether this ends in an underscore and the 64 hexadecimal digits of a chunk's hash.
fn ends_with_hash(text: &[u8]) -> bool {
    rsplit_once(text, b'_').is_some_and(|(_, hash)| hash.len() == 64 && is_hex(hash))
}

/// Reads `obj_{index}_{4 hex}`, a file of a static NIXL pool without its `.bin`.
pub(super) fn nixl_pool(stem: &[u8]) -> Option<NameInfo> {
    let (index, unique) = rsplit_once(stem.strip_prefix(b"obj_")?, b'_')?;
    let fits = is_decimal(index) && unique.len() == 4 && is_hex(unique);
    fits.then(|| NameInfo::new(Client::LmcacheNixlPool, None))
}

/// Reads `{model}_{world_size}_{rank}_{hash}_{dtype}`, a whole name of the in-process NIXL storage.
pub(super) fn nixl(name: &[u8]) -> Option<NameInfo> {
    let (rest, last) = rsplit_once(name, b'_')?;
    let rest = match is_dtype(last) {
        true => rest,
        // The dtypes of eight-bit floats have an underscore of their own.
        false => rest.strip_suffix(b"_fp8").filter(|_| is_fp8_kind(last))?,
    };
    let mut fields = rest.rsplitn(4, |&b| b == b'_');
    let (hash, rank, world, model) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if !is_signed_hex(hash) || model.is_empty() {
        return None;
    }
    Some(NameInfo::new(Client::LmcacheNixl, Some(Rank::new(decimal(rank)?, decimal(world)?)?)))
}

/// Reads a key of the in-process backends.
fn key(stem: &[u8]) -> Option<Rank> {
    // A model's name may hold an at sign, so the first place where all that follows fits is the right one.
    let mut at = stem.iter().enumerate().filter(|(_, b)| **b == b'@').map(|(at, _)| at);
    at.find_map(|at| if at == 0 { None } else { key_after_model(&stem[at + 1..]) })
}

/// Reads `{world_size}@{rank}@{hash}…` to the end of a key.
fn key_after_model(text: &[u8]) -> Option<Rank> {
    let mut fields = text.split(|&b| b == b'@').peekable();
    let (world, rank) = (decimal(fields.next()?)?, decimal(fields.next()?)?);
    if !is_signed_hex(fields.next()?) {
        return None;
    }
    fields.next_if(|field| is_dtype(field));
    fields.next_if(|field| is_decimal(field));
    if !fields.all(|tag| tag.iter().skip(1).any(|&b| b == b'%')) {
        return None;
    }
    Rank::new(rank, world)
}

/// Reads a key of the multi-process server: `{model}@0x{kv_rank}[@{group}]@{hash}[@{salt}]`.
fn mp_key(stem: &[u8]) -> Option<Rank> {
    let mut fields = stem.split(|&b| b == b'@').peekable();
    if fields.next()?.is_empty() {
        return None;
    }
    // The model's name should hold no at sign; if one does, the rank is still the first field of its form.
    let rank = fields.by_ref().find_map(|field| local_rank(field.strip_prefix(b"0x")?))?;
    let is_hash = |field: &[u8]| (8..=64).contains(&field.len()) && is_hex(field);
    let first = fields.next()?;
    let grouped = is_hex(first) && fields.next_if(|field| is_hash(field)).is_some();
    // What may be left is the salt.
    ((grouped || is_hash(first)) && fields.count() <= 1).then_some(rank)
}

/// The rank on this server, from the eight digits of a `kv_rank`.
fn local_rank(kv_rank: &[u8]) -> Option<Rank> {
    if kv_rank.len() != 8 || !is_hex(kv_rank) {
        return None;
    }
    let value = u32::from_str_radix(std::str::from_utf8(kv_rank).ok()?, 16).ok()?;
    let [world, rank, local_world, local_rank] = value.to_be_bytes();
    Rank::new(u32::from(rank), u32::from(world))?;
    Rank::new(u32::from(local_rank), u32::from(local_world))
}

/// Whether this is one of the names that LMCache has for element types (lmcache/utils.py).
fn is_dtype(text: &[u8]) -> bool {
    match text {
        b"half" | b"bfloat16" | b"float" | b"double" | b"bool" => true,
        _ => {
            let int = text.strip_prefix(b"u").unwrap_or(text).strip_prefix(b"int");
            int.is_some_and(is_decimal) || text.strip_prefix(b"fp8_").is_some_and(is_fp8_kind)
        }
    }
}

/// Whether this is what follows `fp8_`, for instance `e4m3fn`.
fn is_fp8_kind(text: &[u8]) -> bool {
    text.starts_with(b"e") && text.iter().all(u8::is_ascii_alphanumeric)
}

/// Undoes Python's `urllib.parse.quote`; `None` when the result is longer than the buffer.
fn unquote<'a>(mut quoted: &[u8], buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    while let Some((&first, mut rest)) = quoted.split_first() {
        let mut byte = first;
        if first == b'%'
            && let Some((&[high, low], after)) = rest.split_first_chunk()
            && let (Some(high), Some(low)) = ((high as char).to_digit(16), (low as char).to_digit(16))
        {
            byte = (high << 4 | low) as u8;
            rest = after;
        }
        *buffer.get_mut(length)? = byte;
        length += 1;
        quoted = rest;
    }
    Some(&buffer[..length])
}
