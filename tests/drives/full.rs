//! A drive without room isn't a sick one.

use super::{LEN, Load, Server, check};
use crate::common::{Errno, FsKind, sys};

#[test]
fn filled_to_the_last_byte_and_emptied() {
    let server = Server::new(FsKind::Xfs);
    server.fill();
    let load = Load::start(server.mount.point(), 3);
    let filler = server.volumes[1].join("filler");
    let fd = sys::create(&filler).unwrap();
    let mut size = 256 << 20;
    let mut at = 0;
    while size >= 4096 {
        match sys::fallocate(&fd, 0, at, size) {
            Ok(()) => at += size,
            Err(Errno::ENOSPC) => size /= 2,
            Err(e) => panic!("fill the drive: {e}"),
        }
    }
    server.until(1, "full");
    server.new_files_go_elsewhere(1);
    (0..4).for_each(|i| check(&server.kept(1, i), 10 + i as u64, LEN));
    (0..3).for_each(|rank| load.goes_on(rank));
    assert_eq!(server.status(1)["health"], serde_json::Value::Null);
    drop(fd);
    sys::unlink(&filler).unwrap();
    server.until(1, "rw");
    (0..3).for_each(|rank| load.goes_on(rank));
    assert_eq!(server.logged(&["WARN"]), 0, "{}", server.mount.story());
}
