//! The client library on real mounts: every byte that it moves is compared with plain reads and writes.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::fd::AsFd;

use common::{Lab, Mount, Passthrough, pattern};
use kvfs::client::{Access, Batch, Call, Error, File, HostBuffer, Mount as Client, OpError, Pages};
use nix::errno::Errno as Os;
use rustix::io::Errno;

const MIB: usize = 1 << 20;

fn mounted(lab: &Lab, arg: &str) -> Mount {
    lab.mount(&lab.dirs(3)).arg(arg).start()
}

fn buffer(client: &Client, len: usize) -> (HostBuffer, kvfs::client::Registered) {
    let buffer = HostBuffer::new(len, Pages::Ordinary).unwrap();
    let registered = client.register(&buffer, Access::Both).unwrap();
    (buffer, registered)
}

fn bytes(buffer: &HostBuffer, offset: usize, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    buffer.copy_out(offset, &mut out);
    out
}

#[test]
fn only_a_kvfs_mount_is_taken_for_one() {
    let lab = Lab::new();
    assert!(matches!(Client::open(lab.root()), Err(Error::NotFuse { .. })));
    assert!(matches!(Client::open(lab.path("absent")), Err(Error::Open { .. })));
    let off = lab.mount(&lab.dirs(2)).arg("--direct=off").start();
    assert!(matches!(Client::open(off.point()), Err(Error::NotKvfs { .. })));
    drop(off);

    let mount = mounted(&lab, "--direct=host");
    let client = Client::open(mount.point()).unwrap();
    let facts = client.facts();
    assert!(facts.abilities.host && facts.abilities.batch && facts.abilities.lookup_prefix);
    assert!(facts.host.possible() && !facts.gpu.possible());
    assert_eq!((facts.seen_as, facts.token, facts.backing), (Some(std::process::id()), None, None));
    assert_eq!(client.query().unwrap().session, facts.session);
}

#[test]
fn what_is_written_one_way_is_read_the_other() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(3)).passthrough(mode).start();
        let client = Client::open(mount.point()).unwrap();
        let (buffer, registered) = buffer(&client, 4 * MIB);
        let data = pattern(1, 3 * MIB + 1236);
        buffer.copy_in(0, &data);

        let file = File::create(mount.path("chunk")).unwrap();
        assert_eq!(file.write(0, &registered, 0, data.len() as u64).unwrap(), data.len() as u64);
        assert!(fs::read(mount.path("chunk")).unwrap() == data, "a plain read of what the fast path wrote");

        // Odd offsets and lengths; beyond the end; at the end.
        fs::write(mount.path("plain"), &data).unwrap();
        let plain = File::open(mount.path("plain")).unwrap();
        for (off, len) in
            [(0, data.len()), (4096, MIB), (777, 12_345), (data.len() - 5, 100), (data.len(), 9)]
        {
            buffer.copy_in(0, &vec![0xA5; 4 * MIB]);
            let want = &data[off..data.len().min(off + len)];
            let got = plain.read(off as u64, &registered, 4096, len as u64).unwrap();
            assert_eq!(got as usize, want.len(), "{len} bytes at {off}");
            assert!(bytes(&buffer, 4096, want.len()) == want, "{len} bytes at {off}");
            assert_eq!(bytes(&buffer, 4096 + want.len(), 8), [0xA5; 8], "nothing beyond them was touched");
        }
        assert!(mount.status()["direct"]["counts"]["bytes_read"].as_u64().unwrap() > data.len() as u64);
    }
}

#[test]
fn a_batch_spans_files_and_calls() {
    const N: usize = 300;
    let lab = Lab::new();
    let mount = mounted(&lab, "--direct=host");
    let client = Client::open(mount.point()).unwrap();
    let (input, from) = buffer(&client, N * 8192);
    let (output, to) = buffer(&client, N * 8192);
    let data = pattern(7, N * 8192);
    input.copy_in(0, &data);
    let files: Vec<_> = (0..N).map(|i| File::create(mount.path(format!("f{i}"))).unwrap()).collect();

    let mut batch = Batch::new();
    for (i, file) in files.iter().enumerate() {
        batch.write(file, 0, &from, i as u64 * 8192, 8192);
    }
    assert!(batch.submit(&client).iter().all(|result| *result == Ok(8192)));
    for i in 0..N {
        assert!(fs::read(mount.path(format!("f{i}"))).unwrap() == data[i * 8192..][..8192], "file {i}");
    }

    // One that can't be read among those that can.
    let write_only = File::with(&mount.path("f5"), fs::File::options().write(true)).unwrap();
    let mut batch = Batch::new();
    for (i, file) in files.iter().enumerate() {
        batch.read(if i == 5 { &write_only } else { file }, 0, &to, i as u64 * 8192, 8192);
    }
    let results = batch.submit(&client);
    assert_eq!(results.iter().filter(|result| **result == Ok(8192)).count(), N - 1);
    assert_eq!(results[5], Err(OpError::Os(Errno::BADF)));
    for i in (0..N).filter(|i| *i != 5) {
        assert!(bytes(&output, i * 8192, 8192) == data[i * 8192..][..8192], "file {i}");
    }
    assert_eq!(bytes(&output, 5 * 8192, 8192), [0; 8192]);
}

#[test]
fn refusals_are_told_apart() {
    let lab = Lab::new();
    let mount = mounted(&lab, "--direct-buffers=2");
    let client = Client::open(mount.point()).unwrap();
    let memory = HostBuffer::new(8192, Pages::Ordinary).unwrap();
    let read_only = client.register(&memory, Access::Read).unwrap();
    let file = File::create(mount.path("f")).unwrap();
    let failure = |result: Result<u64, Error>| match result {
        Err(Error::Failed { error: OpError::Os(errno), .. }) => errno,
        other => panic!("{other:?}"),
    };
    assert_eq!(failure(file.write(0, &read_only, 0, 10)), Errno::ACCESS);
    assert_eq!(failure(file.read(0, &read_only, 8000, 193)), Errno::RANGE);
    assert_eq!(failure(file.read(0, &read_only, u64::MAX, 2)), Errno::RANGE);
    let second = client.register(&memory, Access::Both).unwrap();
    match client.register(&memory, Access::Both) {
        Err(Error::Unregistrable { errno: Errno::DQUOT, .. }) => {}
        other => panic!("{other:?}"),
    }
    second.unregister().unwrap();
    drop(client.register(&memory, Access::Both).unwrap());
    assert_eq!(mount.status()["direct"]["buffers"].as_u64(), Some(1));
    match file.locate() {
        Err(Error::Refused { call: Call::Locate, errno: Errno::PERM }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_located_file_is_that_file() {
    let lab = Lab::new();
    let mount = mounted(&lab, "--allow-locate");
    fs::write(mount.path("here"), b"123").unwrap();
    let located = File::open(mount.path("here")).unwrap().locate().unwrap();
    assert_eq!(located.path, mount.backings()[mount.holder("here")].join("here"));
    assert_eq!((located.backing as usize, located.size), (mount.holder("here"), 3));
    let stat = rustix::fs::stat(&located.path).unwrap();
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    assert_eq!((located.inode, located.device), (stat.st_ino, device));
}

#[test]
fn a_prefix_ends_at_the_first_gap() {
    let lab = Lab::new();
    let mount = mounted(&lab, "--direct=host");
    let client = Client::open(mount.point()).unwrap();
    fs::create_dir(mount.path("dir")).unwrap();
    // More than one call takes: names of 100 bytes.
    let names: Vec<String> = (0..200).map(|i| format!("{i:0100}")).collect();
    for name in &names {
        fs::write(mount.path("dir").join(name), name).unwrap();
    }
    let dir = fs::File::open(mount.path("dir")).unwrap();
    let found = |names: &[String]| client.lookup_prefix(dir.as_fd(), names, false).unwrap().found;
    assert_eq!(found(&names), 200);
    assert_eq!(client.lookup_prefix(&dir, &names, true).unwrap().found, 200);
    fs::remove_file(mount.path("dir").join(&names[150])).unwrap();
    assert_eq!(found(&names), 150);
    fs::remove_file(mount.path("dir").join(&names[0])).unwrap();
    assert_eq!(found(&names), 0);
    assert_eq!(found(&[]), 0);
    let below: Vec<String> = names[1..9].iter().map(|name| format!("dir/{name}")).collect();
    assert_eq!(client.lookup_prefix(&client, &below, false).unwrap().found, 8);
    let wrong =
        client.lookup_prefix(fs::File::open(mount.path("dir").join(&names[1])).unwrap(), &names, false);
    assert!(matches!(wrong, Err(Error::Refused { errno: Errno::NOTDIR, .. })), "{wrong:?}");
}

#[test]
fn a_daemon_that_may_not_take_descriptors_is_sent_them() {
    let lab = Lab::new();
    common::caps::start_without_ptrace();
    for point in ["mnt".to_owned(), "long".repeat(40)] {
        let mount = lab.mount(&lab.dirs(2)).at(lab.dir(&point)).start();
        let client = Client::open(mount.point()).unwrap();
        while !client.query().unwrap().abilities.socket {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let (buffer, registered) = buffer(&client, 8192);
        fs::write(mount.path("f"), pattern(3, 8192)).unwrap();
        let file = File::open(mount.path("f")).unwrap();
        assert_eq!(file.read(0, &registered, 0, 8192).unwrap(), 8192);
        assert!(bytes(&buffer, 0, 8192) == pattern(3, 8192));
        assert_eq!(mount.status()["direct"]["counts"]["refused"].as_u64(), Some(1), "not by its number");
    }
}

#[test]
fn a_child_can_not_use_its_parents_buffers() {
    let lab = Lab::new();
    let mount = mounted(&lab, "--direct=host");
    let client = Client::open(mount.point()).unwrap();
    let (_buffer, registered) = buffer(&client, 4096);
    fs::write(mount.path("f"), [1; 4096]).unwrap();
    let file = File::open(mount.path("f")).unwrap();
    assert_eq!(file.read(0, &registered, 0, 4096).unwrap(), 4096);
    // SAFETY: the child only makes calls that allocate nothing that a lock of another thread could guard, and
    // leaves by `_exit`.
    let child = match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            let refused = match file.read(0, &registered, 0, 4096) {
                Err(Error::Failed { error: OpError::Os(errno), .. }) | Err(Error::Refused { errno, .. }) => {
                    errno
                }
                _ => Errno::NOTRECOVERABLE,
            };
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(if refused == Errno::PERM { 0 } else { 1 }) }
        }
    };
    let status = nix::sys::wait::waitpid(child, None);
    assert_eq!(status, Ok(nix::sys::wait::WaitStatus::Exited(child, 0)), "{:?}", Os::last());
    assert_eq!(file.read(0, &registered, 0, 4096).unwrap(), 4096);
}
