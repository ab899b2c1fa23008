//! The Python package's own tests: on an ordinary directory, and on real mounts of each kind.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;

use common::{Lab, Passthrough};

/// Runs the tests of `packaging/python/tests` with these variables; returns what they said.
fn unittest(scratch: &Path, variables: &[(&str, &Path)]) -> String {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/python");
    let mut command = Command::new("python3");
    command.args(["-B", "-m", "unittest", "discover", "-v", "-s", "tests"]).current_dir(&package);
    command.env("PYTHONPATH", package.join("src")).env("TMPDIR", scratch);
    command
        .env_remove("KVFS_TEST_MOUNT")
        .env_remove("KVFS_TEST_LOCATE")
        .env_remove("KVFS_TEST_KVFS")
        .envs(variables.iter().copied());
    let out = command.output().expect("run python3");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "the tests of the Python package failed:\n{said}");
    said
}

#[test]
fn on_an_ordinary_directory() {
    let lab = Lab::new();
    let said = unittest(&lab.root(), &[]);
    assert!(said.contains("KVFS_TEST_MOUNT isn't set"), "{said}");
}

#[test]
fn on_a_mount() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(3)).passthrough(mode).arg("--allow-locate").start();
        let said =
            unittest(&lab.root(), &[("KVFS_TEST_MOUNT", mount.point()), ("KVFS_TEST_LOCATE", mount.point())]);
        assert!(!said.contains("KVFS_TEST_MOUNT isn't set"), "{said}");
        let counts = &mount.status()["direct"]["counts"];
        for count in ["bytes_read", "bytes_written"] {
            assert!(counts[count].as_u64() > Some(1 << 20), "the fast path moved {count}: {counts}");
        }
    }
}

#[test]
fn on_a_mount_that_is_sent_descriptors() {
    let lab = Lab::new();
    let (go, told) = channel::<PathBuf>();
    let scratch = lab.root();
    let mount = std::thread::scope(|threads| {
        // Before the capability is dropped: the client keeps it.
        let client =
            threads.spawn(move || unittest(&scratch, &[("KVFS_TEST_MOUNT", &told.recv().expect("a mount"))]));
        common::caps::start_without_ptrace();
        let mount = lab.mount(&lab.dirs(2)).start();
        while mount.status()["direct"]["fd_socket"] != true {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        go.send(mount.point().to_path_buf()).expect("the client waits");
        client.join().expect("the tests of the package");
        mount
    });
    assert!(mount.status()["direct"]["counts"]["refused"].as_u64() > Some(0), "no descriptor by its number");
}

#[test]
fn on_a_mount_whose_daemon_dies() {
    // With what clients have kept, and as if there were no room for it.
    for keep in [true, false] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(2)).supervised().arg("--allow-locate");
        let mount = if keep { mount } else { mount.env("KVFS_TEST_KEEP_NO_BUFFERS", "1") };
        let mount = mount.start();
        let program = Path::new(common::cli::BINARY);
        let (point, scratch) = (mount.point(), lab.root());
        let variables =
            [("KVFS_TEST_MOUNT", point), ("KVFS_TEST_LOCATE", point), ("KVFS_TEST_KVFS", program)];
        let said = unittest(&scratch, &variables);
        assert!(said.contains("test_for_a_while"), "{said}");
        assert!(mount.status()["supervised"]["daemons"].as_u64() > Some(10));
    }
}

#[test]
fn on_a_mount_without_the_fast_path() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).arg("--direct=off").start();
    let said = unittest(&lab.root(), &[("KVFS_TEST_PLAIN", mount.point())]);
    assert!(said.contains("OK"), "{said}");
}
