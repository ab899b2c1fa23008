//! Bytes in passthrough, as the kernel counts them: what clients have read and written, to the byte, whatever call they
//! did it by; of this mount alone.
//!
//! Some kernels let nobody attach anything to their functions. There these tests only see that this is said: `tests/passthrough_bytes/vm`
//! runs them on another kernel, in a virtual machine.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use common::{Builder, FsKind, Lab, Mount, Passthrough, cli, pattern, ranked, sys, user};
use kvfs::index::Slot;
use kvfs::metrics::passthrough::{Device, PassthroughBytes, Unavailable, device_of};
use kvfs::sandbox::{self, SandboxMode};

const RW: i32 = libc::O_RDWR | libc::O_CREAT;
const PAGE: usize = 4096;

fn device(path: &Path) -> Device {
    device_of(File::open(path).unwrap()).unwrap()
}

/// The mount's backings with their file systems.
fn drives(mount: &Mount) -> Vec<(Slot, Device)> {
    mount.backings().iter().enumerate().map(|(n, path)| (Slot(n as u8), device(path))).collect()
}

/// Whether this kernel lets nobody count. With KVFS_TEST_PASSTHROUGH_BYTES=required it has to.
fn refused() -> bool {
    match PassthroughBytes::attach((0, 1), &[]) {
        Ok(_) => false,
        Err(error @ Unavailable::NotPermitted)
            if std::env::var_os("KVFS_TEST_PASSTHROUGH_BYTES").is_none_or(|word| word != "required") =>
        {
            eprintln!("nothing was proved on this kernel: {error}");
            true
        }
        Err(error) => panic!("{error}"),
    }
}

/// A count of a mount, and what it said when it was asked before.
struct Count {
    bytes: PassthroughBytes,
    before: Vec<(u64, u64)>,
}

impl Count {
    fn of(mount: &Mount) -> Count {
        let bytes = PassthroughBytes::attach((0, mount.minor), &drives(mount)).unwrap();
        let before = vec![(0, 0); mount.backings().len()];
        Count { bytes, before }
    }

    /// Bytes read and written since the last time, for each drive.
    fn since(&mut self) -> Vec<(u64, u64)> {
        let now: Vec<_> = self.bytes.read().iter().map(|passed| (passed.read, passed.written)).collect();
        let since = now.iter().zip(&self.before).map(|(now, was)| (now.0 - was.0, now.1 - was.1)).collect();
        self.before = now;
        since
    }
}

/// A mount of two drives, one of ext4 and one of XFS.
fn two_drives(lab: &Lab) -> Builder {
    let backings = [lab.volume(FsKind::Ext4, 64), lab.volume(FsKind::Xfs, 320)];
    lab.mount(&backings).passthrough(Passthrough::Auto)
}

#[test]
fn plain_calls_count_to_the_byte_at_their_drive() {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    let mut count = Count::of(&mount);
    for drive in 0..2 {
        let mine = |read, written| {
            let mut all = vec![(0, 0); 2];
            all[drive] = (read, written);
            all
        };
        let name = ranked(drive, 1);
        let file = sys::open(mount.path(&name), RW, 0o644).unwrap();
        assert_eq!(count.since(), mine(0, 0), "an open moves nothing");
        assert_eq!(sys::pwrite(&file, &pattern(1, 12345), 0), Ok(12345));
        assert_eq!(mount.holder(&name), drive);
        assert_eq!(count.since(), mine(0, 12345));
        assert_eq!(sys::pread(&file, 10000, 1).unwrap().len(), 10000);
        assert_eq!(count.since(), mine(10000, 0));
        assert_eq!(sys::pread(&file, 10000, 12000).unwrap().len(), 345, "up to the end");
        assert_eq!(sys::pread(&file, 10000, 20000).unwrap().len(), 0, "behind the end");
        assert_eq!(count.since(), mine(345, 0));
        assert_eq!(sys::lseek(&file, 0, libc::SEEK_SET), Ok(0));
        assert_eq!(sys::readv(&file, &[1, 2, 3]).unwrap().len(), 6);
        assert_eq!(sys::writev(&file, &[b"ab", b"c"]), Ok(3));
        assert_eq!(count.since(), mine(6, 3));
        assert!(sys::pwrite(&file, b"x", -1).is_err());
        let reading = sys::open(mount.path(&name), libc::O_RDONLY, 0).unwrap();
        assert!(sys::write(&reading, b"x").is_err());
        sys::fsync(&file).unwrap();
        sys::ftruncate(&file, 5000).unwrap();
        assert_eq!(count.since(), mine(0, 0), "what fails, and what isn't data");
    }
    assert!(count.bytes.uncounted().is_some());
}

#[test]
fn direct_calls_count() {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    let mut count = Count::of(&mount);
    let file = sys::open(mount.path(ranked(1, 1)), RW | libc::O_DIRECT, 0o644).unwrap();
    assert_eq!(sys::pwrite_at_skew(&file, &pattern(2, 5 * PAGE), 0, 0), Ok(5 * PAGE));
    assert_eq!(count.since(), [(0, 0), (0, 5 * PAGE as u64)]);
    assert_eq!(sys::pread_at_skew(&file, 8 * PAGE, PAGE as i64, 0).unwrap().len(), 4 * PAGE);
    assert_eq!(count.since(), [(0, 0), (4 * PAGE as u64, 0)]);
}

#[test]
fn splices_count_once() {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    let outside = sys::create(lab.path("outside")).unwrap();
    assert_eq!(sys::pwrite(&outside, &pattern(3, 20000), 0), Ok(20000));
    let mut count = Count::of(&mount);
    for flags in [0, libc::O_DIRECT] {
        let file = sys::open(mount.path(ranked(0, 1)), RW | flags, 0o644).unwrap();
        let (rx, tx) = sys::pipe().unwrap();
        assert_eq!(sys::splice(&outside, Some(0), &tx, None, 3 * PAGE), Ok(3 * PAGE));
        assert_eq!(count.since(), [(0, 0); 2]);
        assert_eq!(sys::splice(&rx, None, &file, Some(0), 3 * PAGE), Ok(3 * PAGE));
        assert_eq!(count.since(), [(0, 3 * PAGE as u64), (0, 0)], "written by a splice, flags {flags:o}");
        assert_eq!(sys::splice(&file, Some(0), &tx, None, 2 * PAGE), Ok(2 * PAGE));
        assert_eq!(count.since(), [(2 * PAGE as u64, 0), (0, 0)], "read by a splice, flags {flags:o}");
        assert_eq!(sys::sendfile(&outside, &file, 0, PAGE), Ok(PAGE));
        assert_eq!(count.since(), [(PAGE as u64, 0), (0, 0)], "read by sendfile, flags {flags:o}");
        assert_eq!(sys::sendfile(&file, &outside, 0, PAGE), Ok(PAGE));
        assert_eq!(count.since(), [(0, PAGE as u64), (0, 0)], "written by sendfile, flags {flags:o}");
    }
}

/// One fio run over a file of 16 MiB; what it says it has read and written.
fn fio(lab: &Lab, file: &Path, words: &[&str]) -> (u64, u64) {
    let report = lab.path("fio.json");
    let mut command = Command::new("fio");
    command.args(["--name=count", "--size=16m", "--bs=4k", "--thread", "--output-format=json"]);
    command.args(["--fallocate=none", "--iodepth=16", "--randseed=7"]).args(words);
    command.arg(format!("--filename={}", file.display())).arg(format!("--output={}", report.display()));
    cli::finish(command).code(0);
    let text = std::fs::read_to_string(&report).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let moved = |way: &str| json["jobs"][0][way]["io_bytes"].as_u64().unwrap();
    (moved("read"), moved("write"))
}

/// Requests that are completed later: their calls return before anything was moved.
fn fio_counts(engine: &str, direct: &str) {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    let mut count = Count::of(&mount);
    for drive in 0..2 {
        let file = mount.path(ranked(drive, 1));
        // The first run makes the file longer as it goes, the second one writes over what's there.
        for rw in ["write", "randwrite", "randread", "randrw"] {
            let moved = fio(&lab, &file, &[&format!("--rw={rw}"), engine, direct]);
            assert_eq!(moved.0 + moved.1, 16 << 20, "{engine} {direct} {rw}");
            let mut want = vec![(0, 0); 2];
            want[drive] = moved;
            let (got, missed) = (count.since(), count.bytes.uncounted().unwrap());
            assert!(got == want || missed > 0, "{engine} {direct} {rw}: {got:?}, not {want:?}");
            let short = |got: u64, want: u64| want - got.min(want);
            let lost = short(got[drive].0, moved.0) + short(got[drive].1, moved.1);
            assert!(
                lost <= missed * 4096,
                "{engine} {direct} {rw}: {lost} bytes short, {missed} calls missed"
            );
        }
    }
}

#[test]
fn libaio_buffered_counts() {
    fio_counts("--ioengine=libaio", "--direct=0");
}

#[test]
fn libaio_direct_counts() {
    fio_counts("--ioengine=libaio", "--direct=1");
}

#[test]
fn io_uring_buffered_counts() {
    fio_counts("--ioengine=io_uring", "--direct=0");
}

#[test]
fn io_uring_direct_counts() {
    fio_counts("--ioengine=io_uring", "--direct=1");
}

#[test]
fn threads_on_all_processors_count_together() {
    if refused() {
        return;
    }
    const CALLS: u64 = 20000;
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    std::fs::write(mount.path(ranked(0, 1)), pattern(5, PAGE)).unwrap();
    let mut count = Count::of(&mount);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let file = sys::open(mount.path(ranked(0, 1)), libc::O_RDONLY, 0).unwrap();
                for _ in 0..CALLS {
                    assert_eq!(sys::pread(&file, PAGE, 0).unwrap().len(), PAGE);
                }
            });
        }
    });
    let (read, missed) = (count.since()[0].0, count.bytes.uncounted().unwrap());
    let all = 8 * CALLS * PAGE as u64;
    println!("{} of {} calls counted, {missed} missed", read / PAGE as u64, 8 * CALLS);
    assert!(read <= all && all - read <= missed * PAGE as u64, "{read} of {all}, {missed} calls missed");
}

#[test]
fn what_others_move_does_not_count() {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    let others = [lab.dir("one"), lab.dir("two")];
    let other = lab.mount(&others).at(lab.dir("other")).passthrough(Passthrough::Auto).start();
    let beside = lab.mount(&[lab.dir("three")]).at(lab.dir("beside")).passthrough(Passthrough::Off).start();
    let layers = ["lower", "upper", "work", "merged"].map(|name| lab.dir(name).display().to_string());
    std::fs::write(lab.path("lower/file"), "overlay").unwrap();
    let options = format!("lowerdir={},upperdir={},workdir={}", layers[0], layers[1], layers[2]);
    common::lab::run(Command::new("mount").args(["-t", "overlay", "-o", &options, "none", &layers[3]]));
    let mut count = Count::of(&mount);
    let mut count_other = Count::of(&other);
    let mut count_beside = Count::of(&beside);
    for path in [other.path("file"), beside.path("file"), lab.path("merged/file"), lab.path("raw")] {
        std::fs::write(&path, pattern(6, 10000)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap().len(), 10000);
    }
    assert_eq!(count.since(), [(0, 0); 2]);
    let moved = count_other.since();
    assert!(
        moved.iter().all(|passed| passed.1 <= 10000) && moved[0].1 + moved.get(1).map_or(0, |p| p.1) == 10000
    );
    assert_eq!(count_beside.since(), [(0, 0)], "what goes through the daemon isn't passed through");
    // Nor what the drive's owner does beside the mount.
    std::fs::write(mount.backings()[0].join("beside"), pattern(7, 10000)).unwrap();
    assert_eq!(count.since(), [(0, 0); 2]);
}

#[test]
fn mappings_do_not_count() {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    let file = sys::open(mount.path(ranked(0, 1)), RW, 0o644).unwrap();
    assert_eq!(sys::pwrite(&file, &pattern(8, 4 * PAGE), 0), Ok(4 * PAGE));
    let mut count = Count::of(&mount);
    let mut map =
        sys::Map::new(&file, 4 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED).unwrap();
    assert_eq!(map.get(0, 4 * PAGE), pattern(8, 4 * PAGE));
    map.put(0, &pattern(9, PAGE));
    map.sync().unwrap();
    assert_eq!(count.since(), [(0, 0); 2]);
}

#[test]
fn backings_on_one_file_system_count_together_and_new_ones_from_when_they_are_named() {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.volume(FsKind::Ext4, 64), lab.volume(FsKind::Ext4, 64));
    let backings = [one.join("a"), two.join("b"), one.join("c")];
    backings.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let mount = lab.mount(&backings).passthrough(Passthrough::Auto).start();
    let drives = drives(&mount);
    let bytes = PassthroughBytes::attach((0, mount.minor), &[drives[0], drives[2]]).unwrap();
    let says = || -> Vec<_> {
        let all = bytes.read();
        all.into_iter().map(|p| (p.slots.iter().map(|s| s.0).collect::<Vec<_>>(), p.written)).collect()
    };
    assert_eq!(says(), [(vec![0, 2], 0)]);
    for drive in 0..3 {
        let name = ranked(drive, 1);
        std::fs::write(mount.path(&name), pattern(10, 100 << drive)).unwrap();
        assert_eq!(mount.holder(&name), drive);
    }
    assert_eq!(says(), [(vec![0, 2], 500), (vec![], 200)], "the one that wasn't named is among the others");
    bytes.add(drives[1].0, drives[1].1);
    bytes.add(drives[1].0, drives[1].1);
    std::fs::write(mount.path(ranked(1, 2)), pattern(11, 1000)).unwrap();
    assert_eq!(says(), [(vec![0, 2], 500), (vec![1], 1000), (vec![], 200)]);
}

/// Reading needs nothing of what the daemon gives up; attaching needs what root's daemon keeps.
#[test]
fn a_sandboxed_process_reads_on() {
    if refused() {
        return;
    }
    let lab = Lab::new();
    let mount = two_drives(&lab).start();
    let text = user::in_child(|| {
        sandbox::drop_capabilities();
        let mut count = Count::of(&mount);
        let entered = sandbox::enter(SandboxMode::Auto);
        let again = PassthroughBytes::attach((0, mount.minor), &[]).err();
        let file = sys::open(mount.path(ranked(0, 1)), RW, 0o644).unwrap();
        assert_eq!(sys::pwrite(&file, &pattern(12, 777), 0), Ok(777));
        let refused = matches!(again, Some(Unavailable::NotPermitted));
        format!("{entered} {refused} {:?} {}", count.since(), count.bytes.uncounted().is_some())
    });
    assert_eq!(text, "on true [(0, 777), (0, 0)] true");
}

#[test]
fn ordinary_users_are_told_what_they_lack() {
    let error = user::as_user(user::NOBODY, user::NOBODY, || PassthroughBytes::attach((0, 1), &[]).err());
    let error = error.unwrap();
    assert!(matches!(error, Unavailable::NotPermitted), "{error:?}");
    assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
}

#[test]
fn nothing_stays_open() {
    if refused() {
        return;
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let bytes = PassthroughBytes::attach((0, 1), &[(Slot(0), (8, 1))]).unwrap();
    assert!(open() > before);
    assert_eq!(bytes.read().len(), 1);
    drop(bytes);
    assert_eq!(open(), before);
}
