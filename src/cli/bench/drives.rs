//! `kvfs bench drives`: one's own drives, and a mount over them beside them.
//!
//! What always holds: what is written has no name, so it's gone when this ends, in whatever way; and it leaves more than
//! the reserve free.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::samples::{Row, Way, compare, sizes};
use super::ways::Scratch;
use super::{Output, output};
use crate::backing::mountinfo::named;
use crate::backing::{MinFree, parse_bytes};
use crate::cli::Failure;
use crate::client::{HostBuffer, Pages};
use crate::control::{Question, Status, ask};
use crate::fuse::FS_TYPE;

/// Measure drives, one after the other in turns: O_DIRECT writes and reads of one file each, from one thread. Writes
/// files without names, of a bounded size, and only where the reserve stays free
#[derive(Debug, clap::Args)]
pub(super) struct DrivesArgs {
    /// Directories on the drives; of a kvfs mount its backings are measured, and the mount beside them
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,

    /// Sizes of a read or write, with K or M
    #[arg(long, default_value = "64K,1M,8M", value_delimiter = ',', value_name = "SIZES")]
    size: Vec<String>,

    /// Bytes of the file on each drive
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    file_size: String,

    /// Rounds of each comparison [default: as many as move 4 GiB, 50 to 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    #[command(flatten)]
    output: Output,
}

/// A directory that is measured.
struct Place {
    name: String,
    dir: PathBuf,
    /// What must stay free, in bytes.
    reserve: u64,
    /// It's a mount, whose file may be on any of its backings.
    is_mount: bool,
}

pub(super) fn run(args: &DrivesArgs) -> Result<(), Failure> {
    let sizes = sizes(&args.size)?;
    let largest = sizes.iter().copied().max().unwrap_or(1 << 20);
    let wanted = parse_bytes(&args.file_size).map_err(|e| Failure::bad_value(format!("--file-size: {e}")))?;
    let file_size = wanted.max(1).next_multiple_of(largest);
    let mut places = Vec::new();
    for dir in &args.dirs {
        add(dir, &mut places)?;
    }
    check_room(&places, file_size)?;
    let buffer = HostBuffer::new(largest as usize, Pages::Ordinary).map_err(Failure::other)?;
    let noise: Vec<u8> =
        (0..largest / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    buffer.copy_in(0, &noise);
    let scratch = places
        .iter()
        .map(|place| Scratch::unnamed(place.name.clone(), &place.dir, file_size, &buffer))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::other)?;
    for cached in scratch.iter().filter(|scratch| !scratch.is_direct) {
        eprintln!("kvfs: {}: there is no direct I/O, so this measures memory", cached.name);
    }
    let mut rows: Vec<Row> = Vec::new();
    for size in sizes {
        let rounds =
            args.rounds.map_or(((4 << 30) / size).clamp(50, 1000) as usize, |rounds| rounds as usize);
        for what in ["write", "read"] {
            let buffer = &buffer;
            let way = |scratch| -> Way<'_> {
                let scratch: &Scratch = scratch;
                let act = move |round| {
                    let offset = round as u64 * size % file_size;
                    if what == "write" {
                        scratch.write(buffer, offset, size)
                    } else {
                        scratch.read(buffer, offset, size)
                    }
                };
                (scratch.name.clone(), Box::new(act))
            };
            let mut ways: Vec<Way<'_>> = scratch.iter().map(way).collect();
            let measured = compare(what, size, 1, rounds, &mut ways).map_err(Failure::other)?;
            output(&args.output, &measured)?;
            rows.extend(measured);
        }
    }
    args.output.draw(&rows)
}

/// A directory, or a mount's backings and the mount.
fn add(dir: &Path, places: &mut Vec<Place>) -> Result<(), Failure> {
    let mount = named(dir).map_err(Failure::other)?.filter(|mount| mount.fs_type == FS_TYPE);
    let Some(mount) = mount else {
        let room = room(dir)?;
        let name = dir.display().to_string();
        places.push(Place {
            name,
            dir: dir.to_owned(),
            reserve: MinFree::Default.of(room.0),
            is_mount: false,
        });
        return Ok(());
    };
    let status: Status = ask(mount.device, &Question::Status).map_err(|e| {
        Failure::no_answer(format!("the daemon of {} doesn't answer ({e})", mount.point.display()))
    })?;
    for backing in status.backings.iter().filter(|backing| backing.health.is_none()) {
        let (name, dir) = (backing.path.display().to_string(), backing.path.clone());
        places.push(Place { name, dir, reserve: backing.min_free, is_mount: false });
    }
    // Which of its backings takes its file isn't known: `check_room` looks at each.
    places.push(Place {
        name: mount.point.display().to_string(),
        dir: mount.point,
        reserve: 0,
        is_mount: true,
    });
    Ok(())
}

/// The size and what is free for the caller, in bytes.
fn room(dir: &Path) -> Result<(u64, u64), Failure> {
    let vfs = rustix::fs::statvfs(dir).map_err(|e| Failure::other(format!("{}: {e}", dir.display())))?;
    Ok((vfs.f_blocks * vfs.f_frsize, vfs.f_bavail * vfs.f_frsize))
}

/// Refuses to fill a drive into its reserve. Directories on one file system fill the same one.
fn check_room(places: &[Place], file_size: u64) -> Result<(), Failure> {
    let mut needed = HashMap::<u64, u64>::new();
    let mounts = places.iter().filter(|place| place.is_mount).count() as u64;
    // A mount has what its backings have.
    for place in places.iter().filter(|place| !place.is_mount) {
        let meta = std::fs::metadata(&place.dir)
            .map_err(|e| Failure::other(format!("{}: {e}", place.dir.display())))?;
        let all = needed.entry(meta.dev()).or_insert(mounts * file_size);
        *all += file_size;
        let free = room(&place.dir)?.1;
        if free.saturating_sub(place.reserve) < *all {
            return Err(Failure::other(format!(
                "{}: {free} bytes are free, which isn't {all} for the files that are measured and {} that must stay free; make room, or choose a smaller --file-size",
                place.dir.display(),
                place.reserve
            )));
        }
    }
    Ok(())
}
