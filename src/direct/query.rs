//! QUERY: what the mount can do, and how it sees the caller and the file.

use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;

use super::abi::{self, Path, Query, Why, feature};
use super::engine::Engine;
use super::{Asked, Direct, Target};
use crate::index::Slot;

/// What one call may move, all its ops together: at a drive's 7 GB/s a client can't be killed for 0.15 s.
pub(super) const MAX_IO: u64 = 1 << 30;

/// Bytes of an op from which on more brings little (bench/direct).
const OPTIMAL_IO: u32 = 4 << 20;

impl Direct {
    pub(super) fn query(&self, query: &Query, asked: &Asked, tgid: u32) -> Result<Query, Errno> {
        let (host, host_why) = match &self.host {
            Ok(engine) => (engine.path(), Why::Best),
            Err(_) => (Path::None, Why::NoIoUring),
        };
        let mut answer = Query {
            abi: query.abi.min(abi::VERSION),
            features: self.features(),
            max_batch_ops: abi::BATCH_MAX as u32,
            max_buffers: self.options.buffers,
            max_io_bytes: MAX_IO,
            max_buffer_bytes: self.options.buffer_bytes,
            optimal_io: OPTIMAL_IO,
            backing_id: abi::NO_BACKING,
            path_host: host as u32,
            host_reason: host_why.code(),
            numa_node: -1,
            seen_tgid: tgid,
            session: self.session,
            ..Query::default()
        };
        match asked.target {
            Target::Dir(_) => {
                // What fits every backing.
                let align = self.fs.backings().iter().map(|b| b.dio_align).max().unwrap_or(0);
                (answer.dio_off_align, answer.dio_mem_align) = (align, align);
                let backings = self.fs.backings();
                let best = backings.iter().map(|b| self.gpus.path(b.slot));
                let (path, why) =
                    best.min_by_key(|(path, _)| *path as u32).unwrap_or((Path::None, Why::NoGpu));
                (answer.path_gpu, answer.gpu_reason) = (path as u32, why.code());
            }
            Target::File(fh) => {
                self.query_file(&mut answer, self.fs.slot_of(fh).map_err(|e| e.errno())?);
                if tgid != 0 {
                    answer.file_token = self.token(tgid, asked.caller.uid, fh)?;
                }
            }
        }
        Ok(answer)
    }

    fn token(&self, tgid: u32, uid: u32, fh: u64) -> Result<u64, Errno> {
        // Without a look at the process: at worst it's that of one which has just ended, and good for nothing.
        if let Some(token) = self.tokens.known(tgid, fh) {
            return Ok(token);
        }
        let owner = self.owners.enter(tgid, uid)?;
        self.tokens.of(&owner, fh)
    }

    fn query_file(&self, answer: &mut Query, slot: Slot) {
        let backings = self.fs.backings();
        let Some(backing) = backings.get(slot) else { return };
        answer.backing_id = u32::from(slot.0);
        (answer.dio_off_align, answer.dio_mem_align) = (backing.dio_align, backing.dio_align);
        if backing.dio_align == 0 && answer.path_host == Path::UringHost as u32 {
            answer.host_reason = Why::NoDirectIo.code();
        }
        let (path, why) = self.gpus.path(slot);
        (answer.path_gpu, answer.gpu_reason) = (path as u32, why.code());
        answer.numa_node = self.numa_nodes.get(slot.index()).map_or(-1, |node| node.load(Relaxed));
    }

    fn features(&self) -> u64 {
        let mut features = feature::BATCH | feature::LOOKUP_PREFIX | self.gpus.features();
        if self.host.is_ok() {
            features |= feature::MEMFD;
        }
        if self.sent.is_bound() {
            features |= feature::FD_SOCKET;
        }
        if self.options.locate {
            features |= feature::LOCATE;
        }
        features
    }
}

/// The NUMA node that a block device hangs on; -1 if it isn't known.
pub(super) fn numa_node(device: u64) -> i32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // The disk itself, or a partition of it.
    ["device/numa_node", "device/device/numa_node", "../device/numa_node", "../device/device/numa_node"]
        .iter()
        .find_map(|place| {
            let path = format!("/sys/dev/block/{major}:{minor}/{place}");
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        })
        .unwrap_or(-1)
}
