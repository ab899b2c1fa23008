//! Several writers, five times what there is room for: no ENOSPC, no short write, nothing wrong in what's left,
//! and the reserve is there at every moment.

use std::path::{Path, PathBuf};

use super::run::{Watch, evict, mount, number, store, until};
use crate::common::process::Process;
use crate::common::{FsKind, Lab, Passthrough, lab, ranked, sys};

const WRITERS: usize = 4;
const CHUNK: usize = 4 << 20;
const VOLUME: u64 = 320;
/// XFS has its log in the rest: a bit more than 100 MiB of each volume can be used.
const RESERVE: u64 = 128 << 20;
const FILES: usize = 5 * 3 * (120 << 20) / CHUNK / WRITERS;

/// What one of them writes is a third of what there is room for.
const GENERATIONS: usize = 16;

/// Blocks that all differ, made fast: file, block and position.
fn content(writer: usize, i: usize) -> Vec<u8> {
    let words = (0..CHUNK as u64 / 8).map(|at| (writer as u64) << 56 | (i as u64) << 32 | at);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Two of four writers are LMCache's, whose files only they can find.
fn name(writer: usize, i: usize) -> String {
    if writer.is_multiple_of(2) { ranked(writer, writer << 16 | i) } else { format!("{writer}-{i}.bin") }
}

fn written_by(name: &str) -> (usize, usize) {
    let number = |text: &str| text.parse().unwrap();
    match name.strip_suffix(".bin").and_then(|name| name.split_once('-')) {
        Some((writer, i)) => (number(writer), number(i)),
        None => {
            let hash = u64::from_str_radix(name.split('@').nth(3).unwrap(), 16).unwrap();
            let n = hash as usize - 0x657a_aba7_09c5_0000;
            (n >> 16, n & 0xffff)
        }
    }
}

fn writer(point: PathBuf, writer: usize, files: std::ops::Range<usize>) -> Process {
    Process::start(move |say| {
        for i in files {
            if let Err(e) = store(&point.join(name(writer, i)), &content(writer, i)) {
                say(&e);
                return;
            }
        }
        say("");
    })
}

/// What every writer had to complain about.
fn complaints(writers: Vec<Process>) -> Vec<String> {
    let mut all = Vec::new();
    for mut writer in writers {
        all.push(writer.hear());
        writer.finish();
    }
    all.retain(|complaint| !complaint.is_empty());
    all
}

fn all_right(dir: &Path) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let (writer, i) = written_by(&path.file_name().unwrap().to_string_lossy());
        assert!(std::fs::read(&path).unwrap() == content(writer, i), "{} has other bytes", path.display());
        files += 1;
    }
    files
}

/// What eviction down to the low mark leaves of a volume that is empty now, by docs/RETENTION.md.
fn least_kept(volume: &Path, reserve: u64) -> u64 {
    let st = sys::statvfs(volume).unwrap();
    let allowed = (st.f_blocks - (st.f_bfree - st.f_bavail)) * st.f_frsize - reserve;
    let typical = CHUNK as u64;
    let end = (allowed / 10).max(8 * typical).min(allowed / 2);
    // Files that are being written count with what they will need, and the last one to go may have more than is
    // missing.
    let more = (WRITERS as u64 + 1) * typical;
    st.f_bavail * st.f_frsize - reserve - end - more
}

fn fill(kind: FsKind, mode: Passthrough, placement: &str, rule: &str) {
    let lab = Lab::new();
    let volumes: Vec<_> = (0..3).map(|_| lab.volume(kind, VOLUME)).collect();
    let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let reserve = RESERVE.to_string();
    // What isn't used by the volume's own log and tables may be 180 MiB on ext4: that much more is reserved.
    let reserve = if kind == FsKind::Xfs { reserve } else { (RESERVE + (60 << 20)).to_string() };
    let args = ["--min-free", &reserve, "--placement", placement];
    let mount = mount(&lab, &backings, rule, &args).passthrough(mode).start();
    let least_left: u64 = volumes.iter().map(|volume| least_kept(volume, reserve.parse().unwrap())).sum();
    let watch = Watch::new(&volumes);
    let faults = if rule == "lru" {
        let writers = (0..WRITERS).map(|w| writer(mount.point().into(), w, 0..FILES)).collect();
        complaints(writers)
    } else {
        // Generations: what one has written is of no use to the next. All write as LMCache does.
        let mut faults = Vec::new();
        for generation in 0..GENERATIONS {
            let files = generation * FILES / GENERATIONS..(generation + 1) * FILES / GENERATIONS;
            let writers = (0..WRITERS).map(|w| writer(mount.point().into(), 2 * w, files.clone())).collect();
            faults.extend(complaints(writers));
        }
        faults
    };
    let least = watch.least();
    assert_eq!(faults, Vec::<String>::new(), "{}", mount.story());
    // XFS keeps room ready behind the end of a file that is written piece by piece, until it's closed.
    let ready = if kind == FsKind::Xfs && mode == Passthrough::Off { (WRITERS * CHUNK) as u64 } else { 0 };
    let reserve = reserve.parse::<u64>().unwrap() - ready;
    assert!(least.iter().all(|free| *free >= reserve), "the reserve of {reserve} is kept: {least:?}");
    // What is under way ends.
    evict(&mount, &[]).code(0);
    let left = all_right(mount.point());
    let on_backings: usize = backings.iter().map(|backing| lab::names(backing).len()).sum();
    assert_eq!(on_backings, left, "nothing else is left on the backings");
    let bytes = (left * CHUNK) as u64;
    assert!(bytes >= least_left, "no more goes than has to: {bytes} bytes are left, of {least_left}");
    assert_eq!(number(&mount, "refused"), 0);
    let evicted = number(&mount, "evicted_lru") + number(&mount, "evicted_orphans");
    assert_eq!(evicted as usize + left, WRITERS * FILES, "every file is there or was evicted");
    if rule == "orphans" {
        assert_eq!(number(&mount, "evicted_lru"), 0);
    }
    let again = mount.restart();
    assert_eq!(all_right(again.point()), left, "after a restart");
}

#[test]
fn lru_xfs_by_gpu() {
    fill(FsKind::Xfs, Passthrough::Auto, "by_gpu", "lru");
}

#[test]
fn lru_ext4_hash_through_the_daemon() {
    fill(FsKind::Ext4, Passthrough::Off, "hash", "lru");
}

#[test]
fn generations_xfs_hash_through_the_daemon() {
    fill(FsKind::Xfs, Passthrough::Off, "hash", "orphans");
}

#[test]
fn generations_ext4_by_gpu() {
    fill(FsKind::Ext4, Passthrough::Auto, "by_gpu", "orphans");
}

#[test]
fn a_closed_file_takes_no_more_than_its_size() {
    let lab = Lab::new();
    let volume = lab.volume(FsKind::Xfs, VOLUME);
    let backing = volume.join("kv");
    let mount = mount(&lab, std::slice::from_ref(&backing), "lru", &[]).passthrough(Passthrough::Off).start();
    // In pieces, as the kernel sends them to the daemon: XFS keeps room ready for more.
    let fd = sys::create(mount.path("f")).unwrap();
    content(0, 0).chunks(1 << 20).for_each(|piece| assert_eq!(sys::write(&fd, piece), Ok(piece.len())));
    drop(fd);
    until(&mount, "room behind the end given back", |_| {
        sys::stat(backing.join("f")).unwrap().st_blocks * 512 == CHUNK as i64
    });
}
