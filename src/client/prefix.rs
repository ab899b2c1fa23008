//! How many of a list of names exist before the first that doesn't: many `stat` calls in one.
//!
//! What always holds: the names are asked in their order, and none after the first that is missing.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::call::raw;
use super::error::{Call, Error};
use super::mount::Mount;
use crate::direct::abi;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Prefix {
    /// How many names exist, up to the first that doesn't.
    pub found: usize,
    /// How many files are being read ahead.
    pub queued: usize,
}

impl Mount {
    /// Asks for `names`, relative to `directory` (an open one of this mount; `self` for the one it was opened
    /// by). With `read_ahead` those found are brought into the page cache, in the background.
    pub fn lookup_prefix<N: AsRef<OsStr>>(
        &self,
        directory: impl AsFd,
        names: &[N],
        read_ahead: bool,
    ) -> Result<Prefix, Error> {
        let mut total = Prefix::default();
        let mut rest = names;
        while !rest.is_empty() {
            let (mut argument, asked) = encode(rest, read_ahead)?;
            raw(&directory, Call::LookupPrefix, &mut argument)
                .map_err(|errno| Error::Refused { call: Call::LookupPrefix, errno })?;
            let (answer, _) = abi::Prefix::read_from_prefix(&argument)
                .map_err(|_| Error::Refused { call: Call::LookupPrefix, errno: Errno::PROTO })?;
            let found = asked.min(answer.found as usize);
            total.found += found;
            total.queued += answer.queued as usize;
            if found < asked {
                break;
            }
            rest = &rest[asked..];
        }
        Ok(total)
    }
}

/// As many names as one call takes, and how many those are: one at least.
fn encode<N: AsRef<OsStr>>(names: &[N], read_ahead: bool) -> Result<(Vec<u8>, usize), Error> {
    let mut argument = vec![0; size_of::<abi::Prefix>()];
    let mut count = 0;
    for name in names {
        let name = name.as_ref().as_bytes();
        let impossible = name.is_empty() || name.contains(&0);
        if argument.len() + name.len() + 1 > abi::MAX_SIZE || impossible {
            if count == 0 || impossible {
                return Err(Error::Name { name: OsStr::from_bytes(name).to_owned() });
            }
            break;
        }
        argument.extend_from_slice(name);
        argument.push(0);
        count += 1;
    }
    let header = abi::Prefix {
        nr_names: count as u32,
        flags: if read_ahead { abi::PREFIX_READAHEAD } else { 0 },
        names_len: (argument.len() - size_of::<abi::Prefix>()) as u32,
        ..Default::default()
    };
    argument[..size_of::<abi::Prefix>()].copy_from_slice(header.as_bytes());
    Ok((argument, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_packed_up_to_the_limit() {
        let names: Vec<String> = (0..200).map(|i| format!("{i:099}")).collect();
        let (argument, count) = encode(&names, true).unwrap();
        assert_eq!(count, (abi::MAX_SIZE - 40) / 100);
        let header = abi::Prefix::read_from_prefix(&argument).unwrap().0;
        assert_eq!((header.nr_names, header.flags), (count as u32, abi::PREFIX_READAHEAD));
        assert_eq!(header.names_len as usize, argument.len() - 40);
        assert_eq!(&argument[40..140], format!("{:099}\0", 0).as_bytes());

        let (argument, count) = encode(&["a", "dir/b"], false).unwrap();
        assert_eq!((count, &argument[40..]), (2, &b"a\0dir/b\0"[..]));
        // The longest that fits, and one more.
        assert_eq!(encode(&["n".repeat(8150)], false).unwrap().0.len(), abi::MAX_SIZE);
        assert!(matches!(encode(&["n".repeat(8151)], false), Err(Error::Name { .. })));
        for bad in ["", "a\0b"] {
            assert!(matches!(encode(&["a", bad], false), Err(Error::Name { .. })), "{bad:?}");
        }
    }
}
