//! The one place that makes the ioctls.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::{Call, Error};
use crate::direct::abi::{self, nr};

impl Call {
    fn nr(self) -> u8 {
        match self {
            Call::Query => nr::QUERY,
            Call::Register => nr::REGISTER,
            Call::Unregister => nr::UNREGISTER,
            Call::Read => nr::READ,
            Call::Write => nr::WRITE,
            Call::Submit => nr::SUBMIT,
            Call::Locate => nr::LOCATE,
            Call::LookupPrefix => nr::LOOKUP_PREFIX,
        }
    }
}

/// Makes a call; `argument` holds the answer afterwards, also when the call fails.
pub(super) fn raw(fd: impl AsFd, call: Call, argument: &mut [u8]) -> Result<(), Errno> {
    debug_assert!(argument.len() <= abi::MAX_SIZE, "the size has 13 bits");
    let command = abi::command(call.nr(), argument.len());
    // SAFETY: the command holds the argument's length, and the kernel reads and writes no more than that for
    // a FUSE file; other files answer ENOTTY to a number that isn't theirs.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), command.into(), argument.as_mut_ptr()) };
    if done < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(())
}

/// Makes a call with one structure.
pub(super) fn call<T>(fd: impl AsFd, call: Call, argument: &mut T) -> Result<(), Error>
where
    T: FromBytes + IntoBytes + Immutable,
{
    raw(fd, call, argument.as_mut_bytes()).map_err(|errno| Error::Refused { call, errno })
}
