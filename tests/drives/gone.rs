//! A volume that's unmounted while the mount uses it.

use std::process::Command;

use super::{LEN, Load, Server, check, put, read_errno};
use crate::common::lab::run;
use crate::common::{FsKind, sys};

#[test]
fn unmounted_under_load_and_mounted_again() {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let server = Server::new(kind);
        server.fill();
        let load = Load::start(server.mount.point(), 3);
        let open = sys::open(server.kept(1, 3), libc::O_RDWR, 0).unwrap();
        run(Command::new("umount").arg("-l").arg(&server.volumes[1]));
        let gone = server.until(1, "gone");
        assert!(gone["health"]["advice"].as_str().unwrap().contains("mount it again"), "{gone:#}");
        assert_eq!(read_errno(&server.kept(1, 0)), Some(libc::EIO));
        server.new_files_go_elsewhere(1);
        (0..3).for_each(|rank| load.goes_on(rank));
        server.others_are_as_before(1);
        assert_eq!(server.logged(&["WARN", "it was unmounted"]), 1, "{}", server.mount.story());
        assert_eq!(server.logged(&["WARN"]), 1, "no line for each request:\n{}", server.mount.story());
        // The empty directory that stood below it is not taken for the drive.
        put(&server.volumes[1].join("kv/by hand"), 1, 10);
        server.set_rw(1).fault(52, &["can't be used again", "marker"]);
        assert_eq!(std::fs::read_dir(server.backing(1)).unwrap().count(), 1, "nothing is put there");
        std::fs::remove_dir_all(server.backing(1)).unwrap();
        drop(open);
        server.attach(1, &server.volumes[1]);
        server.until(1, "rw");
        check(&server.kept(1, 0), 10, LEN);
        check(&server.kept(1, 3), 13, LEN);
        (0..3).for_each(|rank| load.goes_on(rank));
        for other in [0, 2] {
            assert_eq!(load.errors(other), [] as [i32; 0], "clients of the others met nothing");
        }
        assert!(load.errors(1).iter().all(|e| *e == libc::EIO), "{:?}", load.errors(1));
    }
}
