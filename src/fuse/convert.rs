//! Between fuser's types and `fs`'s.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, Request, TimeOrNow};

use crate::fs::{Attr, Caller, Error, SetTime, Time};
use crate::index::{Kind, NodeId};

pub(super) fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

pub(super) fn ino(node: NodeId) -> INodeNo {
    INodeNo(node.0)
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() }
}

pub(super) fn errno(e: Error) -> Errno {
    Errno::from_i32(e.errno().raw_os_error())
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

pub(super) fn generation(attr: &Attr) -> Generation {
    Generation(attr.generation)
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: ino(attr.node),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

fn system_time(time: Time) -> SystemTime {
    let after = Duration::from_nanos(u64::from(time.nanos));
    let whole = if time.secs >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time.secs as u64))
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(time.secs.unsigned_abs()))
    };
    whole.and_then(|t| t.checked_add(after)).unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::To(match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(d) => Time { secs: d.as_secs() as i64, nanos: d.subsec_nanos() },
            // For times before 1970 fuser 0.18 takes the nanoseconds away instead of adding them
            // (src/time.rs, system_time_from_time): they are the kernel's own number again here.
            Err(e) => {
                let d = e.duration();
                Time { secs: (d.as_secs() as i64).wrapping_neg(), nanos: d.subsec_nanos() }
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970() {
        let half_a_second_before = SystemTime::UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!(system_time(Time { secs: -1, nanos: 500_000_000 }), half_a_second_before);
        // What fuser makes of (-1 s, 500 ms).
        let fusers = SystemTime::UNIX_EPOCH - Duration::new(1, 500_000_000);
        let set = set_time(TimeOrNow::SpecificTime(fusers));
        assert_eq!(set, SetTime::To(Time { secs: -1, nanos: 500_000_000 }));
        for secs in [i64::MIN, i64::MAX] {
            system_time(Time { secs, nanos: 999_999_999 });
        }
    }
}
