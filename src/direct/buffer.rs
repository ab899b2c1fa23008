//! Registered buffers: whose they are, what may be done with them, and when their memory goes.
//!
//! What always holds: an id is random (56 bits) and never 0; only the process that registered a buffer can use or
//! drop it; its memory goes after the last op that uses it, never before; a user's buffers stay within the
//! quota, whatever ends them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::abi::{BUF_RD, BUF_WR};
use super::engine::Direction;
use super::gpu::GpuBuffer;
use super::host::HostBuffer;
use super::owner::Owner;
use super::survival::KeptBuffer;

/// Buffers of all users: a process can have 65530 mappings (vm.max_map_count), and the daemon needs some itself.
const MOST: u32 = 32768;

/// Where a buffer's bytes are.
pub(crate) enum Memory {
    /// In a mapping of the daemon.
    Host(HostBuffer),
    /// On a GPU, in the reach of its worker process.
    Gpu(GpuBuffer),
}

/// How much of what one user may register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    /// Buffers.
    pub(crate) buffers: u32,
    /// Bytes in all of them.
    pub(crate) bytes: u64,
}

/// A registered buffer.
pub(crate) struct Buffer {
    pub(crate) id: u64,
    pub(crate) owner: Arc<Owner>,
    /// The open file that it goes with, if it isn't a directory.
    pub(crate) file: Option<u64>,
    /// `KVFS_BUF_RD` and `KVFS_BUF_WR`.
    pub(crate) flags: u32,
    /// In bytes.
    pub(crate) length: u64,
    pub(crate) memory: Memory,
    state: Mutex<State>,
    /// Behind the memory: dropped after it.
    _room: Room,
    gone: Gone,
    /// Behind what tells that it's gone: until that was answered it's to be known.
    kept: OnceLock<KeptBuffer>,
}

#[derive(Default)]
struct State {
    uses: usize,
    closing: bool,
}

/// A buffer's part of its user's quota.
struct Room {
    table: Arc<Shared>,
    uid: u32,
    length: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.table.give_back(self.uid, self.length);
    }
}

/// Told when the buffer, its memory and its part of the quota are gone.
#[derive(Default)]
struct Gone(Mutex<Vec<Box<dyn FnOnce() + Send>>>);

impl Drop for Gone {
    fn drop(&mut self) {
        for tell in std::mem::take(self.0.get_mut()) {
            tell();
        }
    }
}

/// A buffer in use by an op.
pub(crate) struct Use(Arc<Buffer>);

impl Use {
    /// The buffer.
    pub(crate) fn memory(&self) -> &Memory {
        &self.0.memory
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.state.lock().uses -= 1;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.get() {
            kept.ended();
        }
    }
}

impl Buffer {
    /// It's kept for a daemon after this one.
    pub(super) fn set_kept(&self, kept: KeptBuffer) {
        let _ = self.kept.set(kept);
    }

    /// Takes it into use for an op, if the op is within it and allowed.
    pub(crate) fn take(self: &Arc<Buffer>, direction: Direction, off: u64, len: u64) -> Result<Use, Errno> {
        let needed = match direction {
            Direction::Read => BUF_RD,
            Direction::Write => BUF_WR,
        };
        if self.flags & needed == 0 {
            return Err(Errno::ACCESS);
        }
        match off.checked_add(len) {
            Some(end) if end <= self.length => {}
            _ => return Err(Errno::RANGE),
        }
        let mut state = self.state.lock();
        if state.closing {
            return Err(Errno::NOENT);
        }
        state.uses += 1;
        Ok(Use(self.clone()))
    }
}

struct Shared {
    quota: Quota,
    /// By user: buffers, and bytes. Counted until the memory is gone.
    used: Mutex<HashMap<u32, (u32, u64)>>,
}

impl Shared {
    fn give_back(&self, uid: u32, length: u64) {
        let mut used = self.used.lock();
        if let Some((buffers, bytes)) = used.get_mut(&uid) {
            *buffers -= 1;
            *bytes -= length;
            if *buffers == 0 {
                used.remove(&uid);
            }
        }
    }
}

/// Room for one buffer in its user's quota, taken before its memory is.
pub(crate) struct Reserved {
    shared: Option<Arc<Shared>>,
    owner: Arc<Owner>,
    length: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.give_back(self.owner.uid, self.length);
        }
    }
}

/// All buffers of a mount.
pub(crate) struct Buffers {
    shared: Arc<Shared>,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    by_id: HashMap<u64, Arc<Buffer>>,
    /// Those that go with an open file: every close asks.
    by_file: HashMap<u64, Vec<u64>>,
}

impl Buffers {
    pub(crate) fn new(quota: Quota) -> Buffers {
        let shared = Arc::new(Shared { quota, used: Mutex::default() });
        Buffers { shared, tables: Mutex::default() }
    }

    /// Takes room for a buffer. `EDQUOT` when its user has no more, or as many as all may still have.
    pub(crate) fn reserve(&self, owner: &Arc<Owner>, length: u64) -> Result<Reserved, Errno> {
        let mut used = self.shared.used.lock();
        let (buffers, bytes) = used.get(&owner.uid).copied().unwrap_or_default();
        let all: u32 = used.values().map(|(buffers, _)| *buffers).sum();
        let most = self.shared.quota.buffers.min(MOST.saturating_sub(all));
        let bytes = bytes.checked_add(length).filter(|b| *b <= self.shared.quota.bytes);
        let Some(bytes) = bytes.filter(|_| buffers < most) else {
            return Err(Errno::DQUOT);
        };
        used.insert(owner.uid, (buffers + 1, bytes));
        Ok(Reserved { shared: Some(self.shared.clone()), owner: owner.clone(), length })
    }

    /// Room for a buffer that was there before, whatever its user has by now.
    pub(super) fn reserve_again(&self, owner: &Arc<Owner>, length: u64) -> Reserved {
        let mut used = self.shared.used.lock();
        let (buffers, bytes) = used.entry(owner.uid).or_default();
        *buffers += 1;
        *bytes = bytes.saturating_add(length);
        Reserved { shared: Some(self.shared.clone()), owner: owner.clone(), length }
    }

    /// Enters a buffer, and says its id.
    pub(crate) fn enter(
        &self,
        room: Reserved,
        file: Option<u64>,
        flags: u32,
        memory: Memory,
    ) -> std::io::Result<Arc<Buffer>> {
        let mut tables = self.tables.lock();
        let id = loop {
            // As many bits as what is kept can be told by (`supervise::Tag`).
            let id = random()? >> 8;
            if id != 0 && !tables.by_id.contains_key(&id) {
                break id;
            }
        };
        Ok(self.enter_as(&mut tables, id, room, file, flags, memory))
    }

    /// Enters one that was there before under its id.
    pub(super) fn enter_again(
        &self,
        id: u64,
        room: Reserved,
        file: Option<u64>,
        flags: u32,
        memory: Memory,
    ) -> Arc<Buffer> {
        self.enter_as(&mut self.tables.lock(), id, room, file, flags, memory)
    }

    fn enter_as(
        &self,
        tables: &mut Tables,
        id: u64,
        mut room: Reserved,
        file: Option<u64>,
        flags: u32,
        memory: Memory,
    ) -> Arc<Buffer> {
        let (owner, length) = (room.owner.clone(), room.length);
        let table = room.shared.take().unwrap_or_else(|| self.shared.clone());
        let room = Room { table, uid: owner.uid, length };
        let (state, gone, kept) = Default::default();
        let buffer = Buffer { id, owner, file, flags, length, memory, state, _room: room, gone, kept };
        let buffer = Arc::new(buffer);
        tables.by_id.insert(id, buffer.clone());
        if let Some(file) = file {
            tables.by_file.entry(file).or_default().push(id);
        }
        buffer
    }

    /// A buffer, whoever's it is.
    pub(crate) fn find(&self, id: u64) -> Option<Arc<Buffer>> {
        self.tables.lock().by_id.get(&id).cloned()
    }

    /// Drops a buffer: it takes no more ops, and its memory goes when the last has ended. `then` is told
    /// when all of it is gone; or at once, and nothing happens: `NOENT` if it's going already, `BUSY` if ops are
    /// under way and `wait` is off. `request` is the number of the one that asked for it, if any.
    pub(crate) fn remove(
        &self,
        buffer: Arc<Buffer>,
        wait: bool,
        request: u64,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let mut state = buffer.state.lock();
        if state.closing || (state.uses > 0 && !wait) {
            let errno = if state.closing { Errno::NOENT } else { Errno::BUSY };
            drop(state);
            return then(Err(errno));
        }
        state.closing = true;
        drop(state);
        if let Some(kept) = buffer.kept.get() {
            kept.ends(request);
        }
        buffer.gone.0.lock().push(Box::new(|| then(Ok(()))));
        self.tables.lock().remove(&buffer);
    }

    /// Drops all for which `which` holds, without waiting.
    pub(crate) fn remove_all(&self, which: impl Fn(&Buffer) -> bool) -> usize {
        let gone: Vec<_> = self.tables.lock().by_id.values().filter(|b| which(b)).cloned().collect();
        let count = gone.len();
        for buffer in gone {
            self.remove(buffer, true, 0, |_| {});
        }
        count
    }

    /// An open file was closed: those that go with it are dropped, without waiting.
    pub(crate) fn closed(&self, file: u64) {
        let gone: Vec<_> = {
            let tables = self.tables.lock();
            let Some(ids) = tables.by_file.get(&file) else { return };
            ids.iter().filter_map(|id| tables.by_id.get(id)).cloned().collect()
        };
        for buffer in gone {
            self.remove(buffer, true, 0, |_| {});
        }
    }

    /// How many there are, and their bytes.
    pub(crate) fn count(&self) -> (u64, u64) {
        let tables = self.tables.lock();
        (tables.by_id.len() as u64, tables.by_id.values().map(|b| b.length).sum())
    }
}

impl Tables {
    fn remove(&mut self, buffer: &Buffer) {
        self.by_id.remove(&buffer.id);
        if let Some(file) = buffer.file
            && let Some(ids) = self.by_file.get_mut(&file)
        {
            ids.retain(|id| *id != buffer.id);
            if ids.is_empty() {
                self.by_file.remove(&file);
            }
        }
    }
}

/// A random number that isn't 0.
pub(crate) fn random() -> std::io::Result<u64> {
    loop {
        let mut bytes = [0u8; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        match u64::from_ne_bytes(bytes) {
            0 => {}
            n => return Ok(n),
        }
    }
}
