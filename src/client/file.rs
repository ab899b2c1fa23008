//! Open files of a mount.
//!
//! What always holds: a [`File`] is an ordinary open file, with the token that names it in transfers issued on
//! others; the token is good as long as it's open. One that a daemon after a crash doesn't know is asked for again
//! by who uses it.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::*};

use rustix::io::Errno;

use super::batch::TRIES;
use super::call::call;
use super::error::{Call, Error, OpError};
use super::mount::{Facts, query};
use super::registered::Registered;
use crate::direct::abi;

/// Where a file really is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Its path as the daemon sees it. Open it, then compare `device` and `inode` with `fstat`.
    pub path: PathBuf,
    /// The slot of its backing.
    pub backing: u32,
    /// Major and minor number of the backing's device.
    pub device: (u32, u32),
    /// The number of the file there.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// What direct I/O on it must be a multiple of.
    pub align: u32,
    /// `statfs.f_type` of the backing.
    pub fs_magic: u32,
}

/// An open file of a mount.
#[derive(Debug)]
pub struct File {
    file: std::fs::File,
    token: AtomicU64,
}

impl File {
    /// Opens a file for reading.
    pub fn open(path: impl AsRef<Path>) -> Result<File, Error> {
        Self::with(path.as_ref(), std::fs::File::options().read(true))
    }

    /// Makes a file, or empties it, for reading and writing.
    pub fn create(path: impl AsRef<Path>) -> Result<File, Error> {
        Self::with(path.as_ref(), std::fs::File::options().read(true).write(true).create(true).truncate(true))
    }

    /// Opens a file as `options` say.
    pub fn with(path: &Path, options: &std::fs::OpenOptions) -> Result<File, Error> {
        let open = options.open(path);
        Self::try_from(open.map_err(|source| Error::Open { path: path.to_owned(), source })?)
    }

    /// Its name in transfers that are issued on another file.
    pub fn token(&self) -> u64 {
        self.token.load(Acquire)
    }

    /// The mount doesn't know `token`, which was the file's: asks for another. False if it's still the same.
    pub(super) fn renew(&self, token: u64) -> bool {
        match query(self) {
            Ok(Facts { token: Some(new), .. }) => {
                self.token.store(new, Release);
                new != token
            }
            _ => false,
        }
    }

    /// What the mount says of it.
    pub fn query(&self) -> Result<Facts, Error> {
        query(self)
    }

    /// The ordinary file, for everything else.
    pub fn std(&self) -> &std::fs::File {
        &self.file
    }

    /// From the file at `file_off` to the buffer at `buf_off`: bytes moved, fewer than `len` only at the end of
    /// the file.
    pub fn read(&self, file_off: u64, buffer: &Registered, buf_off: u64, len: u64) -> Result<u64, Error> {
        self.transfer(Call::Read, abi::OP_READ, file_off, buffer, buf_off, len)
    }

    /// From the buffer at `buf_off` to the file at `file_off`: always `len` bytes. One that fails may have
    /// written a part.
    pub fn write(&self, file_off: u64, buffer: &Registered, buf_off: u64, len: u64) -> Result<u64, Error> {
        self.transfer(Call::Write, abi::OP_WRITE, file_off, buffer, buf_off, len)
    }

    fn transfer(
        &self,
        which: Call,
        opcode: u32,
        file_off: u64,
        buffer: &Registered,
        buf_off: u64,
        length: u64,
    ) -> Result<u64, Error> {
        let mut op = abi::Op { opcode, buf_id: buffer.id(), buf_off, file_off, length, ..Default::default() };
        call(self, which, &mut op)?;
        let mut result = OpError::of(op.result);
        // A daemon after a crash may not know the buffer any more.
        for _ in 0..TRIES {
            if result != Err(OpError::Os(Errno::NOENT)) || !buffer.renew(op.buf_id) {
                break;
            }
            op.buf_id = buffer.id();
            call(self, which, &mut op)?;
            result = OpError::of(op.result);
        }
        result.map_err(|error| Error::Failed { call: which, error })
    }

    /// Where it really is, if the mount was made with `--allow-locate`.
    pub fn locate(&self) -> Result<Located, Error> {
        let mut l = abi::Locate::default();
        call(self, Call::Locate, &mut l)?;
        let path = l.path.get(..l.path_len as usize);
        let path = path.ok_or(Error::Refused { call: Call::Locate, errno: Errno::NAMETOOLONG })?;
        Ok(Located {
            path: std::ffi::OsString::from_vec(path.to_vec()).into(),
            backing: l.backing_id,
            device: (l.dev_major, l.dev_minor),
            inode: l.ino,
            size: l.size,
            align: l.dio_off_align,
            fs_magic: l.fs_magic,
        })
    }
}

impl TryFrom<std::fs::File> for File {
    type Error = Error;

    /// An open file that is in a mount; not a directory.
    fn try_from(file: std::fs::File) -> Result<File, Error> {
        let token = query(&file)?.token;
        let token = token.ok_or(Error::Refused { call: Call::Query, errno: Errno::ISDIR })?;
        Ok(File { file, token: AtomicU64::new(token) })
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
