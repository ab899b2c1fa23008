//! From the bytes of an ioctl to a command.
//!
//! What always holds: any bytes are answered with a command or an errno; a command is well-formed (its
//! reserved fields are zero, its lengths don't overflow, its lists are complete), whatever the file, the
//! caller or the daemon's state then make of it.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::abi::{self, Batch, Locate, Op, Prefix, Query, RegBuf, UnregBuf, kind, nr};
use super::engine::Direction;

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum Command<'a> {
    Query(Query),
    Register(Box<RegBuf>),
    Unregister(UnregBuf),
    /// READ or WRITE.
    Transfer(Op),
    Submit(Batch, Vec<Op>),
    Locate,
    LookupPrefix(Prefix, Vec<&'a [u8]>),
}

/// Whether a command asks which names there are.
pub(crate) fn looks_names_up(cmd: u32) -> bool {
    (cmd >> 8) as u8 == abi::MAGIC && cmd & 0xff == u32::from(nr::LOOKUP_PREFIX)
}

/// Reads the argument of the ioctl `cmd`; `out` is how many bytes the caller takes back.
///
/// `ENOTTY`: not one of ours. `EINVAL`: malformed. `E2BIG`: of a later version, with something set that this
/// one doesn't know. `EOPNOTSUPP`: a kind of buffer that is reserved.
pub(crate) fn decode(cmd: u32, data: &[u8], out: u32) -> Result<Command<'_>, Errno> {
    if (cmd >> 8) as u8 != abi::MAGIC || cmd & 0xff > u32::from(nr::LOOKUP_PREFIX) {
        return Err(Errno::NOTTY);
    }
    let nr = cmd as u8;
    // The direction too: with another, the kernel sends or takes nothing.
    if cmd != abi::command(nr, data.len()) || out as usize != data.len() {
        return Err(Errno::INVAL);
    }
    match nr {
        nr::QUERY => {
            let query: Query = fixed(data)?;
            if query.abi == 0 || query.flags != 0 || query.rsvd != [0; 4] {
                return Err(Errno::INVAL);
            }
            Ok(Command::Query(query))
        }
        nr::REGISTER => Ok(Command::Register(Box::new(register(fixed(data)?)?))),
        nr::UNREGISTER => {
            let unreg: UnregBuf = fixed(data)?;
            if unreg.flags & !abi::UNREG_NOWAIT != 0 || unreg.rsvd0 != 0 || unreg.rsvd != [0; 2] {
                return Err(Errno::INVAL);
            }
            Ok(Command::Unregister(unreg))
        }
        nr::READ | nr::WRITE => {
            let op: Op = fixed(data)?;
            let own = if nr == nr::READ { abi::OP_READ } else { abi::OP_WRITE };
            if op.opcode != own || op.flags != 0 {
                return Err(Errno::INVAL);
            }
            Ok(Command::Transfer(op))
        }
        nr::SUBMIT => {
            let (batch, rest) = Batch::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
            let whole = rest.len().is_multiple_of(size_of::<Op>());
            let ops = rest.len() / size_of::<Op>();
            if batch.flags != 0 || batch.rsvd != [0; 2] || !whole {
                return Err(Errno::INVAL);
            }
            if batch.nr_ops as usize != ops || !(1..=abi::BATCH_MAX).contains(&ops) {
                return Err(Errno::INVAL);
            }
            let ops = rest.chunks_exact(size_of::<Op>()).map(Op::read_from_bytes);
            Ok(Command::Submit(batch, ops.collect::<Result<_, _>>().map_err(|_| Errno::INVAL)?))
        }
        nr::LOCATE => {
            let locate: Locate = fixed(data)?;
            if locate.flags != 0 || locate.rsvd0 != 0 || locate.rsvd != [0; 4] {
                return Err(Errno::INVAL);
            }
            Ok(Command::Locate)
        }
        _ => {
            let (prefix, names) = Prefix::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
            Ok(Command::LookupPrefix(prefix, self::names(&prefix, names)?))
        }
    }
}

/// An argument of a fixed size, of this version or of a later one.
fn fixed<T: FromBytes>(data: &[u8]) -> Result<T, Errno> {
    let (value, later) = T::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
    if later.iter().any(|byte| *byte != 0) {
        return Err(Errno::TOOBIG);
    }
    Ok(value)
}

fn register(reg: RegBuf) -> Result<RegBuf, Errno> {
    let allowed = abi::BUF_RD | abi::BUF_WR;
    let end = reg.offset.checked_add(reg.length).ok_or(Errno::INVAL)?;
    let plain = reg.rsvd == [0; 4] && reg.parent_id == 0 && reg.parent_off == 0;
    if !plain || reg.length == 0 || reg.flags == 0 || reg.flags & !allowed != 0 {
        return Err(Errno::INVAL);
    }
    let no_handle = reg.handle == [0; 64];
    let no_gpu = reg.gpu_uuid == [0; 16];
    let of_caller = reg.fd_method == abi::FD_OF_CALLER && reg.fd >= 0 && reg.fd_token == 0;
    let sent = reg.fd_method == abi::FD_SENT && reg.fd == -1 && reg.fd_token != 0;
    let no_fd = reg.fd_method == abi::FD_NONE && reg.fd == -1 && reg.fd_token == 0;
    let well_formed = match reg.kind {
        kind::MEMFD => {
            let aligned = reg.offset.is_multiple_of(super::host::PAGE);
            (of_caller || sent) && no_handle && no_gpu && reg.alloc_size == 0 && aligned
        }
        kind::CUDA_IPC | kind::HIP_IPC => no_fd && !no_handle && !no_gpu && end <= reg.alloc_size,
        kind::CUDA_VMM_FD => (of_caller || sent) && no_handle && !no_gpu && end <= reg.alloc_size,
        kind::CUDA_FABRIC => return Err(Errno::OPNOTSUPP),
        kind::DAEMON_ALLOC => no_fd && no_handle && !no_gpu && reg.alloc_size == 0 && reg.offset == 0,
        _ => false,
    };
    if well_formed { Ok(reg) } else { Err(Errno::INVAL) }
}

fn names<'a>(prefix: &Prefix, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>, Errno> {
    let known = abi::PREFIX_READAHEAD;
    if prefix.flags & !known != 0 || prefix.rsvd0 != 0 || prefix.rsvd != [0; 2] {
        return Err(Errno::INVAL);
    }
    if prefix.names_len as usize != bytes.len() {
        return Err(Errno::INVAL);
    }
    let mut names = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let name = CStr::from_bytes_until_nul(rest).map_err(|_| Errno::INVAL)?.to_bytes();
        if name.is_empty() {
            return Err(Errno::INVAL);
        }
        names.push(name);
        rest = &rest[name.len() + 1..];
    }
    if names.len() != prefix.nr_names as usize { Err(Errno::INVAL) } else { Ok(names) }
}

/// The direction of an op, if it's well-formed by itself.
pub(crate) fn direction(op: &Op) -> Result<Direction, Errno> {
    let end = op.file_off.checked_add(op.length).ok_or(Errno::INVAL)?;
    if op.flags != 0 || end > i64::MAX as u64 {
        return Err(Errno::INVAL);
    }
    match op.opcode {
        abi::OP_READ => Ok(Direction::Read),
        abi::OP_WRITE => Ok(Direction::Write),
        _ => Err(Errno::INVAL),
    }
}

#[cfg(test)]
mod tests;
