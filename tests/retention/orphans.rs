//! Who is judged to be gone, and who isn't: with `--evict orphans` only files go whose only reader has ended.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use super::run::{MIB, absent, evict_bytes, living, mount, names, number, passing, put, set, used_ago};
use crate::common::{FsKind, Lab, Mount, ranked, sys};

const RECORD: &str = "user.kvfs.creator";

fn name(i: usize) -> String {
    ranked(0, i)
}

fn start(lab: &Lab, evict: &str) -> (Mount, std::path::PathBuf) {
    let backing = lab.volume(FsKind::Ext4, 96).join("kv");
    (mount(lab, std::slice::from_ref(&backing), evict, &[]).start(), backing)
}

/// Evicts whatever may go.
fn evict_all(mount: &Mount) {
    evict_bytes(mount, 1 << 30);
}

#[test]
fn files_of_ended_processes_go_and_no_others() {
    let lab = Lab::new();
    let (mount, _) = start(&lab, "orphans");
    passing(|| put(&mount.path(name(0)), 1, MIB));
    let client = living(|| put(&mount.path(name(1)), 1, MIB));
    put(&mount.path(name(2)), 1, MIB);
    passing(|| put(&mount.path("not only its creator can find this"), 1, MIB));
    evict_all(&mount);
    let found = "not only its creator can find this".to_owned();
    assert_eq!(names(mount.point()), set([name(1), name(2), found.clone()]));
    client.kill();
    evict_all(&mount);
    assert_eq!(names(mount.point()), set([name(2), found]));
    assert_eq!(number(&mount, "evicted_orphans"), 2);
}

#[test]
fn a_thread_that_ends_is_no_process_that_ends() {
    let lab = Lab::new();
    let (mount, _) = start(&lab, "orphans");
    let path = mount.path(name(0));
    std::thread::scope(|scope| scope.spawn(|| put(&path, 1, MIB)).join().unwrap());
    let client = living(|| {
        let path = mount.path(name(1));
        std::thread::spawn(move || put(&path, 1, MIB)).join().unwrap();
    });
    evict_all(&mount);
    assert_eq!(names(mount.point()), set([name(0), name(1)]));
    client.kill();
    evict_all(&mount);
    assert_eq!(names(mount.point()), set([name(0)]));
}

#[test]
fn a_zombie_has_no_memory() {
    let lab = Lab::new();
    let (mount, _) = start(&lab, "orphans");
    let mut client = living(|| put(&mount.path(name(0)), 1, MIB));
    client.shoot();
    // Its end of the pipe is closed when it's a zombie.
    assert_eq!(client.hear(), "");
    evict_all(&mount);
    absent("a file of a zombie", sys::lstat(mount.path(name(0))));
}

#[test]
fn a_later_mount_judges_by_the_record() {
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Tmpfs] {
        let lab = Lab::new();
        let backing = lab.volume(kind, if kind == FsKind::Xfs { 320 } else { 96 }).join("kv");
        let mount = mount(&lab, std::slice::from_ref(&backing), "orphans", &[]).start();
        passing(|| put(&mount.path(name(0)), 1, MIB));
        let client = living(|| put(&mount.path(name(1)), 1, MIB));
        let record = String::from_utf8(sys::getxattr(backing.join(name(1)), RECORD).unwrap()).unwrap();
        assert_eq!(sys::listxattr(mount.path(name(1))), Ok(vec![]), "clients don't see the record");
        let mount = mount.restart();
        evict_all(&mount);
        assert_eq!(names(mount.point()), set([name(1)]), "{kind:?}");
        let mount = mount.restart();
        client.kill();
        evict_all(&mount);
        assert_eq!(names(mount.point()), set::<_, &str>([]), "{kind:?}: {record}");
    }
}

/// A process that the daemon takes for an inference engine.
struct Client(Child);

impl Client {
    fn start() -> Client {
        let mut command = Command::new("sleep");
        command.arg0("python3 a client of the test").arg("1000");
        sys::die_with_parent(&mut command);
        Client(command.spawn().unwrap())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn record(path: &Path, text: &str) {
    std::fs::write(path, vec![1; MIB as usize]).unwrap();
    if !text.is_empty() {
        sys::setxattr(path, RECORD, text.as_bytes(), 0).unwrap();
    }
}

#[test]
fn records_of_all_kinds() {
    let lab = Lab::new();
    // Older than all files: it may know any that has no record.
    let _client = Client::start();
    sys::tick();
    let backing = lab.volume(FsKind::Ext4, 96).join("kv");
    std::fs::create_dir(&backing).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let namespace: u64 = link.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    let (boot, me) = (boot.trim(), std::process::id());
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap();
    let put = |i: usize, text: &str| record(&backing.join(name(i)), text);
    put(0, &format!("1 {boot} {namespace} {me} {start}"));
    put(1, &format!("1 {boot} {namespace} {me} 1"));
    put(2, &format!("1 another-boot {namespace} {me} {start}"));
    put(3, &format!("1 {boot} {} {me} 1", namespace - 1));
    put(4, &format!("1 {boot} {namespace} {} 1", i32::MAX));
    put(5, "garbage");
    put(6, "");
    put(7, "");
    used_ago(&backing.join(name(7)), 20 * 365 * 86400);
    let mount = mount(&lab, &[backing], "orphans", &[]).start();
    evict_all(&mount);
    let sees_all = namespace == 0xEFFF_FFFC;
    // The living, those of another pid namespace, and those without a record that somebody may know.
    let mut left = set([0, 3, 5, 6].map(name));
    if !sees_all {
        left.insert(name(7));
    }
    assert_eq!(names(mount.point()), left);
}

#[test]
fn files_that_two_processes_have_written_are_nobodys_orphans() {
    let lab = Lab::new();
    let (mount, backing) = start(&lab, "orphans");
    let first = living(|| (0..3).for_each(|i| put(&mount.path(name(i)), 1, MIB)));
    let second = living(|| put(&mount.path(name(0)), 2, MIB));
    first.kill();
    evict_all(&mount);
    assert_eq!(names(mount.point()), set([name(0)]), "the second, who lives, has written it too");
    // The first was gone when the third wrote.
    passing(|| put(&mount.path(name(5)), 1, MIB));
    let third = living(|| put(&mount.path(name(5)), 3, MIB));
    let mount = mount.restart();
    evict_all(&mount);
    assert_eq!(names(mount.point()), set([name(0), name(5)]), "also by a later mount");
    assert!(sys::getxattr(backing.join(name(0)), RECORD).is_err());
    third.kill();
    evict_all(&mount);
    assert_eq!(names(mount.point()), set([name(0)]));
    drop(second);
}

#[test]
fn what_is_renamed_keeps_its_creator() {
    let lab = Lab::new();
    let (mount, _) = start(&lab, "orphans");
    passing(|| {
        put(&mount.path("tmp"), 1, MIB);
        sys::rename(mount.path("tmp"), mount.path(name(0))).unwrap();
        put(&mount.path(name(1)), 1, MIB);
        sys::rename(mount.path(name(1)), mount.path(name(2))).unwrap();
    });
    evict_all(&mount);
    // Who has written under another name publishes for others: nothing is known of the creator.
    assert_eq!(names(mount.point()), set([name(0)]));
}
