//! O_APPEND behind a WRITE that has made the file longer: the kernel must not believe the end it knows.

use libc::*;

use super::raw::{Buf, transfer, write_op};
use crate::common::{FsKind, Lab, Passthrough, sys};

fn appends_go_behind(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&[lab.volume(FsKind::Xfs, 512).join("kv")]).passthrough(mode).start();
    let path = mount.path("f");
    let fd = sys::create(&path).unwrap();
    let log = sys::open(&path, O_WRONLY | O_APPEND, 0).unwrap();
    let mut buf = Buf::new(&fd, 65_536);
    let mut model = Vec::new();
    for (round, len) in [4096, 5000, 1, 4096, 3, 65_536, 8192].into_iter().enumerate() {
        let data = vec![round as u8 + 1; len];
        buf.map.put(0, &data);
        assert_eq!(transfer(&fd, write_op(buf.id, 0, model.len() as u64, len)), Ok(len));
        model.extend(data);
        // No stat in between, which would tell the kernel.
        assert_eq!(sys::write(&log, b"appended"), Ok(8));
        model.extend(b"appended");
        let below = std::fs::read(mount.backings()[0].join("f")).unwrap();
        assert_eq!(below.len(), model.len(), "round {round}: nothing was overwritten");
        assert!(below == model, "round {round}");
    }
    assert!(std::fs::read(&path).unwrap() == model);
}

super::both!(appends_go_behind);
