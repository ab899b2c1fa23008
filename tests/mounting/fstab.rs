//! fstab(5): by mount(8), and by what systemd makes of it.

use std::path::Path;
use std::process::Command;

use super::system::{System, text, tool};
use crate::common::lab::{list, run};
use crate::common::{Errno, cli, ns, sys};

/// A line for this system's mount.
fn line(system: &System, spec: &str, options: &str) -> String {
    format!("{spec} {} kvfs {options},{} 0 0\n", text(&system.point), system.log())
}

#[test]
fn a_line_is_all_it_takes() {
    let system = System::new();
    let requires = format!("x-systemd.requires-mounts-for={}", text(&system.backings[0]));
    let options = format!("defaults,nofail,noauto,user,placement=hash,min-free=10M,{requires},comment=ours");
    system.fstab(&line(&system, &system.spec(), &options));
    tool(&["mount", text(&system.point)]).code(0);
    let daemon = system.daemon();
    assert_eq!(crate::common::mount::status_of(&system.point)["placement"], "hash");
    tool(&["umount", text(&system.point)]).code(0);
    daemon.ended();
}

#[test]
fn mount_all_knows_what_is_mounted() {
    let system = System::new();
    system.fstab(&line(&system, &system.spec(), "placement=hash,supervise=off"));
    for _ in 0..2 {
        // Twice: what is there isn't mounted again.
        let outcome = tool(&["mount", "-a", "-t", "kvfs"]).code(0);
        assert_eq!(outcome.stderr, "");
        assert_eq!(ns::mounts_at(&system.point).len(), 1);
    }
    let daemon = system.daemon();
    tool(&["umount", text(&system.point)]).code(0);
    tool(&["mount", "-a", "-t", "kvfs"]).code(0);
    daemon.ended();
    let _daemon = system.daemon();
    assert_eq!(ns::mounts_at(&system.point).len(), 1);
}

#[test]
fn what_is_absent_is_not_missed_with_nofail() {
    let system = System::new();
    let gone = system.lab.path("gone.toml");
    // A set of which one has gone meanwhile.
    system.lab.mount(&system.backings).start().stop();
    std::fs::rename(&system.backings[1], system.lab.path("elsewhere")).unwrap();
    for spec in [text(&gone), &*system.spec()] {
        for (options, status) in [("nofail", 0), ("defaults", 32)] {
            system.fstab(&line(&system, spec, options));
            let outcome = tool(&["mount", "-a", "-t", "kvfs"]).code(status);
            assert_eq!(outcome.stderr.lines().count(), 1, "{spec} {options}: {}", outcome.stderr);
            system.nothing_mounted();
            run(Command::new("umount").arg("/etc/fstab"));
        }
    }
    // Whatever else is wrong is.
    system.fstab(&line(&system, &system.spec(), "nofail,plcement=hash"));
    tool(&["mount", "-a", "-t", "kvfs"]).code(32);
}

#[test]
fn a_remount_changes_the_kernels_options_alone() {
    let system = System::new();
    let fstab = |options: &str| system.fstab(&line(&system, &system.spec(), options));
    fstab("placement=hash,noatime");
    tool(&["mount", text(&system.point)]).code(0);
    let daemon = system.daemon();
    let file = system.point.join("f");
    std::fs::write(&file, "before").unwrap();
    // By fstab, and without it.
    for words in
        [&["mount", "-o", "remount,ro"][..], &["mount", "--options-source", "mtab", "-o", "remount,ro"]]
    {
        tool(&[words, &[text(&system.point)]].concat()).code(0);
        assert_eq!(sys::create(system.point.join("g")).map(drop), Err(Errno::EROFS));
        assert_eq!(std::fs::read(&file).unwrap(), b"before");
        assert!(system.findmnt("OPTIONS").contains("noatime"), "the others stay");
        tool(&["mount", "-o", "remount,rw", text(&system.point)]).code(0);
        std::fs::write(&file, "before").unwrap();
    }
    run(Command::new("umount").arg("/etc/fstab"));
    fstab("placement=by_gpu,noatime,ro");
    let outcome = tool(&["mount", "-o", "remount", text(&system.point)]).code(32);
    assert!(
        outcome.stderr.contains("--placement: the mount has hash, given was by_gpu"),
        "{}",
        outcome.stderr
    );
    std::fs::write(&file, "nothing has changed").unwrap();
    tool(&["umount", text(&system.point)]).code(0);
    daemon.ended();
    tool(&["mount", "-t", "kvfs", "-o", "remount,ro", &system.spec(), text(&system.point)]).code(32);
}

#[test]
fn systemd_makes_a_mount_unit_of_it() {
    let system = System::new();
    let units = system.lab.dir("units");
    let fstab = system.lab.path("fstab");
    let options =
        "nofail,placement=hash,x-systemd.requires-mounts-for=/nvme0,x-systemd.requires-mounts-for=/nvme1";
    let spec = list(&["/nvme0/kv".into(), "/nvme1/kv".into()]);
    std::fs::write(&fstab, format!("{spec} /mnt/kv kvfs {options} 0 0\n")).unwrap();
    let mut command = Command::new("/usr/lib/systemd/system-generators/systemd-fstab-generator");
    command.args([&units, &units, &units]).env("SYSTEMD_FSTAB", &fstab).env("SYSTEMD_PROC_CMDLINE", "");
    cli::finish(command).code(0);
    let unit = units.join("mnt-kv.mount");
    let text = std::fs::read_to_string(&unit).unwrap();
    for line in ["What=/nvme0/kv,/nvme1/kv", "Where=/mnt/kv", "Type=kvfs", "RequiresMountsFor=/nvme0 /nvme1"]
    {
        assert!(text.lines().any(|there| there == line), "{line} in {text}");
    }
    assert!(!text.contains("Before=local-fs.target"), "nofail: the machine starts without it: {text}");
    assert!(Path::new(&units.join("local-fs.target.wants/mnt-kv.mount")).exists());
    tool(&["systemd-analyze", "verify", "--man=no", unit.to_str().unwrap()]).code(0);
}
