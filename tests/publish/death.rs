//! A writer that is killed leaves nothing; one that exits has closed its files.

use super::{NEW, Writer, hidden, number, on_close, shown, unpublished};
use crate::common::user::NOBODY;
use crate::common::{Lab, Mount, Passthrough, sys};

/// In both modes, with a writer that is root and one that isn't.
fn everybody(test: impl Fn(&Mount, u32)) {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = on_close(&lab, mode).start();
        sys::chmod(mount.point(), 0o777).unwrap();
        for uid in [0, NOBODY] {
            test(&mount, uid);
            unpublished(&mount, 0);
        }
    }
}

fn writing(mount: &Mount, uid: u32) -> Writer {
    let mut writer = Writer::as_user(uid, &mount.path("f"), NEW);
    writer.does('w');
    writer
}

/// The writer has ended: the file has never been there.
#[track_caller]
fn gone(mount: &Mount, before: u64) {
    unpublished(mount, 0);
    hidden(&mount.path("f"));
    assert!(mount.holders("f").is_empty(), "{}", mount.story());
    assert_eq!(number(mount, "dropped"), before + 1);
}

#[test]
fn by_a_signal() {
    everybody(|mount, uid| {
        for how in ["SIGKILL", "SIGABRT", "SIGSEGV"] {
            let before = number(mount, "dropped");
            let mut writer = writing(mount, uid);
            match how {
                "SIGKILL" => writer.process.kill(),
                "SIGABRT" => drop(writer.order('A')),
                _ => drop(writer.order('S')),
            }
            gone(mount, before);
        }
    });
}

#[test]
fn by_exit() {
    everybody(|mount, uid| {
        for how in ['0', '1', 'T'] {
            let before = number(mount, "dropped");
            let mut writer = writing(mount, uid);
            assert_eq!(writer.order(how), "", "it ends");
            unpublished(mount, 0);
            shown(&mount.path("f"), b"some");
            assert_eq!(number(mount, "dropped"), before, "{how}");
            sys::unlink(mount.path("f")).unwrap();
        }
    });
}

#[test]
fn under_another_name() {
    everybody(|mount, uid| {
        let before = number(mount, "dropped");
        let mut writer = writing(mount, uid);
        writer.does('r');
        writer.process.kill();
        gone(mount, before);
        assert!(mount.holders("f.renamed").is_empty());
    });
}

#[test]
fn one_of_two_who_share_a_descriptor() {
    everybody(|mount, uid| {
        let before = number(mount, "dropped");
        let mut writer = writing(mount, uid);
        writer.does('f');
        writer.does('c');
        hidden(&mount.path("f"));
        // Its child dies with it, by SIGKILL.
        writer.finish();
        gone(mount, before);
    });
}

#[test]
fn after_the_other_one_has_synced_and_closed_it() {
    everybody(|mount, uid| {
        let before = number(mount, "dropped");
        let mut writer = writing(mount, uid);
        writer.does('f');
        writer.does('s');
        writer.does('c');
        writer.finish();
        unpublished(mount, 0);
        shown(&mount.path("f"), b"some");
        assert_eq!(number(mount, "dropped"), before);
        sys::unlink(mount.path("f")).unwrap();
    });
}

#[test]
fn synced_but_never_closed() {
    everybody(|mount, uid| {
        let before = number(mount, "dropped");
        let mut writer = writing(mount, uid);
        writer.does('s');
        writer.process.kill();
        gone(mount, before);
    });
}

#[test]
fn while_it_writes_another_time() {
    everybody(|mount, uid| {
        std::fs::write(mount.path("f"), "whole").unwrap();
        sys::chmod(mount.path("f"), 0o666).unwrap();
        // Not cut off: what was there is whole as far as anybody knows.
        let mut writer = Writer::as_user(uid, &mount.path("f"), libc::O_RDWR);
        writer.does('w');
        writer.process.kill();
        shown(&mount.path("f"), b"somee");
        let before = number(mount, "dropped");
        let mut writer = Writer::as_user(uid, &mount.path("f"), libc::O_RDWR | libc::O_TRUNC);
        writer.does('w');
        writer.process.kill();
        gone(mount, before);
    });
}
