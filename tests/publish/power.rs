//! The machine loses power: what was fsynced and closed is there, whole; what wasn't is whole or isn't there.
#![cfg(feature = "fault-points")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{NEW, Writer, number, shown};
use crate::common::lab::run;
use crate::common::{Builder, FsKind, Lab, Mount, Passthrough, ns, pattern, sys};

/// A file system in an image.
struct Volume {
    image: PathBuf,
    point: PathBuf,
}

impl Volume {
    fn new(lab: &Lab, kind: FsKind) -> Volume {
        let point = lab.volume(kind, 320);
        Volume { image: point.with_extension("img"), point }
    }

    /// Mounts it anew.
    fn again(&self) {
        ns::unmount_below(&self.point);
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.point));
    }
}

fn boot(lab: &Lab, backings: &[PathBuf], publish: &str, n: u32) -> Builder {
    lab.mount(backings).arg("--publish").arg(publish).env("KVFS_TEST_BOOT_ID", format!("boot-{n}"))
}

/// The mount, its clients and its devices go down at once.
fn crash(mount: Mount, volumes: &[Volume], writers: Vec<Writer>) {
    let point = mount.point().to_path_buf();
    // Everything that isn't on the devices is lost.
    volumes.iter().for_each(|volume| sys::kill_device(&volume.point));
    mount.signal(libc::SIGKILL);
    mount.ended();
    ns::unmount_below(&point);
    writers.into_iter().for_each(|writer| writer.process.kill());
    volumes.iter().for_each(Volume::again);
}

fn store(path: &Path, seed: u64, size: usize, synced: bool) {
    let fd = sys::open(path, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC, 0o644).unwrap();
    assert_eq!(sys::write(&fd, &pattern(seed, size)), Ok(size));
    if synced {
        sys::fsync(&fd).unwrap();
    }
}

fn sync(path: &Path) {
    sys::fsync(&sys::open(path, libc::O_RDONLY, 0).unwrap()).unwrap();
}

#[test]
fn what_was_acknowledged_is_there() {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let lab = Lab::new();
        let volumes = [Volume::new(&lab, kind), Volume::new(&lab, kind)];
        let backings: Vec<_> = volumes.iter().map(|v| v.point.join("kv")).collect();
        let mount = boot(&lab, &backings, "on-close", 1).start();
        sys::mkdir(mount.path("d"), 0o755).unwrap();
        store(&mount.path("synced"), 1, 100_000, true);
        store(&mount.path("d/renamed"), 2, 100_000, true);
        sys::rename(mount.path("d/renamed"), mount.path("renamed")).unwrap();
        store(&mount.path("later"), 3, 100_000, false);
        sync(&mount.path("later"));
        store(&mount.path("empty"), 4, 0, true);
        store(&mount.path("closed"), 5, 100_000, false);
        let dup = sys::open(mount.path("dsync"), NEW | libc::O_DSYNC, 0o644).unwrap();
        assert_eq!(sys::write(&dup, b"dsync"), Ok(5));
        drop(dup);
        store(&mount.path("cut"), 6, 100_000, true);
        store(&mount.path("again"), 6, 100_000, true);
        store(&mount.path("again"), 7, 50_000, true);
        // Put there by somebody else.
        std::fs::write(backings[0].join("foreign"), "foreign").unwrap();
        sync(&backings[0].join("foreign"));
        let mut open = Writer::open(&mount.path("open"), NEW);
        ['w', 's'].iter().for_each(|order| open.does(*order));
        let mut cut = Writer::open(&mount.path("cut"), libc::O_RDWR | libc::O_TRUNC);
        ['w', 's'].iter().for_each(|order| cut.does(*order));
        // All names are on the devices, whether their data is or not.
        for dir in backings.iter().flat_map(|b| [b.clone(), b.join("d")]) {
            let _ = sys::open(&dir, libc::O_DIRECTORY, 0).map(|dir| sys::fsync(&dir));
        }
        crash(mount, &volumes, vec![open, cut]);

        let mount = boot(&lab, &backings, "on-close", 2).start();
        for (name, seed, size) in
            [("synced", 1, 100_000), ("renamed", 2, 100_000), ("later", 3, 100_000), ("again", 7, 50_000)]
        {
            shown(&mount.path(name), &pattern(seed, size));
        }
        shown(&mount.path("empty"), b"");
        shown(&mount.path("dsync"), b"dsync");
        let names: BTreeSet<_> = super::listed(mount.point()).into_iter().collect();
        for name in ["open", "cut", "closed"] {
            assert!(!names.contains(name), "{kind:?}: {name} is torn, and there:\n{}", mount.story());
        }
        assert!(number(&mount, "dropped_at_start") >= 3, "{kind:?}: {}", mount.story());
        assert!(names.contains("foreign"), "{kind:?}: nobody wrote it through kvfs");
        // And another time: nothing more goes.
        crash(mount, &volumes, vec![]);
        let mount = boot(&lab, &backings, "on-close", 3).start();
        assert!(super::listed(mount.point()).contains(&"synced".to_owned()), "{}", mount.story());
    }
}

#[test]
fn a_checkpoint_keeps_what_was_closed_before() {
    let lab = Lab::new();
    let volumes = [Volume::new(&lab, FsKind::Xfs)];
    let backings = [volumes[0].point.join("kv")];
    let mount = boot(&lab, &backings, "on-close", 1).start();
    let list = backings[0].join(".kvfs-unclosed");
    let header = || std::fs::read(&list).unwrap()[..512].to_vec();
    let before = header();
    store(&mount.path("closed"), 1, 100_000, false);
    let mut open = Writer::open(&mount.path("open"), NEW);
    open.does('w');
    let deadline = Instant::now() + ns::HANG;
    while header() == before {
        assert!(Instant::now() < deadline, "no checkpoint");
        std::thread::sleep(Duration::from_millis(50));
    }
    open.does('w');
    crash(mount, &volumes, vec![open]);
    let mount = boot(&lab, &backings, "on-close", 2).start();
    shown(&mount.path("closed"), &pattern(1, 100_000));
    assert_eq!(super::listed(mount.point()), ["closed"]);
    assert_eq!(number(&mount, "dropped_at_start"), 1);
}

#[test]
fn what_was_unmounted_stays_whatever_the_boot() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    let mount = boot(&lab, &backings, "on-close", 1).start();
    (0..20).for_each(|i| store(&mount.path(i.to_string()), i, 1000, false));
    mount.stop();
    let mount = boot(&lab, &backings, "on-close", 2).start();
    assert_eq!((super::listed(mount.point()).len(), number(&mount, "dropped_at_start")), (20, 0));
}

#[test]
fn a_copy_on_another_backing_is_whole() {
    let lab = Lab::new();
    let volumes = [Volume::new(&lab, FsKind::Xfs), Volume::new(&lab, FsKind::Ext4)];
    let backings: Vec<_> = volumes.iter().map(|v| v.point.join("kv")).collect();
    let mount = boot(&lab, &backings, "on-close", 1).arg("--placement").arg("hash").start();
    (0..20).for_each(|i| store(&mount.path(i.to_string()), i, 10_000, false));
    let (point, from) = (mount.point().to_str().unwrap(), backings[0].to_str().unwrap());
    crate::common::kvfs(["backing", "drain", point, from]).code(0);
    let moved: Vec<u64> = (0..20).filter(|i| mount.holder(i.to_string()) == 1).collect();
    assert_eq!(moved.len(), 20);
    crash(mount, &volumes, vec![]);
    let mount = boot(&lab, &backings, "on-close", 2).start();
    // Those that were there before weren't synced.
    let there = super::listed(mount.point());
    assert!(!there.is_empty(), "{}", mount.story());
    for name in there {
        shown(&mount.path(&name), &pattern(name.parse().unwrap(), 10_000));
    }
}

/// Many clients write while the device is copied, as it is at one moment, again and again.
fn storm(kind: FsKind, mode: Passthrough, publish: &str) {
    const CLIENTS: usize = 3;
    let lab = Lab::new();
    // An image is copied at one moment by sharing its blocks, which this file system can.
    let outer = lab.volume(FsKind::Xfs, 2048);
    let (image, point) = (outer.join("image"), lab.dir("drive"));
    std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
    match kind {
        FsKind::Ext4 => run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)),
        _ => run(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(&image)),
    };
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point));
    let mount = boot(&lab, &[point.join("kv")], publish, 1).passthrough(mode).start();
    let (over, synced) = (AtomicBool::new(false), Mutex::new(Vec::<String>::new()));
    // The name says what is in it.
    let size = |n: usize| [0, 3000, 70_000, 400_000][n % 4];
    let mut snapshots = Vec::new();
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            let (mount, over, synced) = (&mount, &over, &synced);
            clients.push(scope.spawn(move || {
                let dir = format!("client{client}");
                sys::mkdir(mount.path(&dir), 0o755).unwrap();
                for n in 0.. {
                    if over.load(Relaxed) || n > 400 {
                        return;
                    }
                    let (name, sync) = (format!("{dir}/{n}"), n % 3 == 0);
                    let path = match n % 2 {
                        0 => mount.path(&name),
                        _ => mount.path(format!("{name}.tmp")),
                    };
                    store(&path, (client * 1000 + n) as u64, size(n), sync);
                    if n % 2 == 1 {
                        sys::rename(&path, mount.path(&name)).unwrap();
                    }
                    // A name is on the device when its directory is.
                    if sync {
                        crate::power::sync(&mount.path(&dir));
                        synced.lock().unwrap().push(name);
                    }
                }
            }));
        }
        for i in 0..6u64 {
            // A random moment of the work, not an event to be waited for.
            std::thread::sleep(Duration::from_millis(60 + 70 * (i * i % 5)));
            let acknowledged = synced.lock().unwrap().clone();
            let copy = outer.join(format!("copy{i}"));
            run(Command::new("cp").arg("--reflink=always").arg(&image).arg(&copy));
            snapshots.push((copy, acknowledged));
        }
        over.store(true, Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    mount.stop();
    ns::unmount_below(&point);
    let mut acknowledged_in_all = 0;
    for (copy, acknowledged) in snapshots {
        run(Command::new("mount").args(["-o", "loop"]).arg(&copy).arg(&point));
        let mount = boot(&lab, &[point.join("kv")], publish, 2).passthrough(mode).start();
        let what = format!("{kind:?} {mode:?} {publish} {}", copy.display());
        for name in &acknowledged {
            assert!(mount.path(name).exists(), "{what}: {name} was acknowledged:\n{}", mount.story());
        }
        acknowledged_in_all += acknowledged.len();
        let (mut served, mut torn) = (0, 0);
        for dir in super::listed(mount.point()) {
            for name in super::listed(&mount.path(&dir)) {
                let client: usize = dir.trim_start_matches("client").parse().unwrap();
                let n: usize = name.trim_end_matches(".tmp").parse().unwrap();
                let path = format!("{dir}/{name}");
                let bytes = std::fs::read(mount.path(&path)).unwrap();
                let whole = bytes == pattern((client * 1000 + n) as u64, size(n));
                torn += usize::from(!whole);
                assert!(whole || publish == "on-create", "{what}: {path} is torn:\n{}", mount.story());
                assert!(whole || !acknowledged.contains(&path), "{what}: {path} was acknowledged");
                served += 1;
            }
        }
        assert_eq!(mount.status()["index"]["files"], served, "{what}: the index is what is there");
        let dropped = number(&mount, "dropped_at_start");
        println!(
            "{what}: {served} served, {} acknowledged, {torn} torn, {dropped} dropped",
            acknowledged.len()
        );
        mount.stop();
        ns::unmount_below(&point);
    }
    assert!(acknowledged_in_all > 0, "nothing was acknowledged");
}

#[test]
fn in_the_midst_of_writing_on_xfs() {
    storm(FsKind::Xfs, Passthrough::Auto, "on-close");
}

#[test]
fn in_the_midst_of_writing_on_ext4() {
    storm(FsKind::Ext4, Passthrough::Auto, "on-close");
}

#[test]
fn in_the_midst_of_writing_through_the_daemon() {
    storm(FsKind::Xfs, Passthrough::Off, "on-close");
}

#[test]
fn in_the_midst_of_writing_without_hiding() {
    storm(FsKind::Xfs, Passthrough::Auto, "on-create");
    storm(FsKind::Ext4, Passthrough::Auto, "on-create");
}
