//! The part of the state that clients of the ioctl fast path hold the daemon to: numbers that they were given
//! for buffers and open files, and the session's own.
//!
//! What always holds: what a buffer's record says is the fast path's own and isn't looked into here. A buffer
//! that was unregistered has a record until that was answered, so that it can be answered once more.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use super::state::{State, load, store};

/// Buffers that are kept at most: as many as there may be.
pub(super) const BUFFERS: usize = 1 << 15;
/// Tokens that are kept at most: as many as there may be.
pub(super) const TOKENS: usize = 1 << 20;
/// Bytes that a buffer's record has room for.
pub const RECORD_ROOM: usize = 256;

/// A registered buffer. `id` is the word that counts, or else `ended_by`.
#[repr(C)]
pub(super) struct BufferSlot {
    /// 0: there is no such buffer any more.
    id: AtomicU64,
    /// The request that ended it, and isn't answered; 0: none.
    ended_by: AtomicU64,
    /// The request that made it.
    unique: AtomicU64,
    len: AtomicU64,
    record: [AtomicU64; RECORD_ROOM / 8],
}

impl BufferSlot {
    pub(super) fn is_used(&self) -> bool {
        self.id.load(Acquire) != 0 || self.ended_by.load(Acquire) != 0
    }

    fn read(&self, at: u32) -> BufferRecord {
        BufferRecord {
            at,
            id: self.id.load(Acquire),
            unique: self.unique.load(Relaxed),
            ended_by: self.ended_by.load(Relaxed),
            record: load(&self.record, (self.len.load(Relaxed) as usize).min(RECORD_ROOM)),
        }
    }
}

/// A registered buffer as it's kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferRecord {
    /// Where its record is.
    pub at: u32,
    /// Its number; 0 where it's gone, and only its end is to be answered for.
    pub id: u64,
    /// The request that made it.
    pub unique: u64,
    /// The request that ends it; 0 for none.
    pub ended_by: u64,
    /// What the fast path says of it.
    pub record: Vec<u8>,
}

/// A token. `token` is the word that counts.
#[repr(C)]
pub(super) struct TokenSlot {
    /// 0: free.
    token: AtomicU64,
    fh: AtomicU64,
    /// The process above, the user below.
    whose: AtomicU64,
    incarnation: AtomicU64,
}

impl TokenSlot {
    pub(super) fn is_used(&self) -> bool {
        self.token.load(Acquire) != 0
    }
}

/// A client's number for an open file as it's kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// The number.
    pub token: u64,
    /// The handle that it stands for.
    pub fh: u64,
    /// The process that was given it.
    pub tgid: u32,
    /// The number of its pidfd's inode, which no other process has had since the system's start.
    pub incarnation: u64,
    /// The user that it acted for.
    pub uid: u32,
}

fn used<'a, T>(slots: &'a [T], end: &AtomicU32) -> impl Iterator<Item = (u32, &'a T)> + use<'a, T> {
    let end = (end.load(Acquire) as usize).min(slots.len());
    (0..).zip(&slots[..end])
}

impl State {
    /// The session's number; `new` is what it is from now on, if it has none.
    pub fn session(&self, new: u64) -> u64 {
        match self.header().session.compare_exchange(0, new, AcqRel, Acquire) {
            Ok(_) => new,
            Err(there) => there,
        }
    }

    /// Keeps a buffer. `None` when there's no room: it's not kept.
    pub fn keep_buffer(&self, id: u64, unique: u64, record: &[u8]) -> Option<u32> {
        if record.len() > RECORD_ROOM {
            return None;
        }
        let at = self.buffers.lock().take(BUFFERS)?;
        self.header().buffers_end.fetch_max(at + 1, Release);
        let slot = &self.layout().buffers[at as usize];
        slot.unique.store(unique, Relaxed);
        slot.ended_by.store(0, Relaxed);
        store(&slot.record, record);
        slot.len.store(record.len() as u64, Relaxed);
        slot.id.store(id, Release);
        Some(at)
    }

    /// A request to end the buffer was accepted.
    pub fn buffer_ends(&self, at: u32, unique: u64) {
        if let Some(slot) = self.layout().buffers.get(at as usize) {
            slot.ended_by.store(unique, Release);
        }
    }

    /// The buffer is gone; what ended it is still to be answered.
    pub fn buffer_ended(&self, at: u32) {
        if let Some(slot) = self.layout().buffers.get(at as usize) {
            slot.id.store(0, Release);
        }
    }

    /// Its record is free: nobody waits for an answer any more.
    pub fn drop_buffer(&self, at: u32) {
        if let Some(slot) = self.layout().buffers.get(at as usize) {
            slot.id.store(0, Release);
            slot.ended_by.store(0, Release);
            self.buffers.lock().list.push(at);
        }
    }

    /// All buffers that are kept, and all ends that weren't answered.
    pub fn buffers(&self) -> Vec<BufferRecord> {
        self.buffer_slots().map(|(at, slot)| slot.read(at)).collect()
    }

    /// The buffer that a request has made.
    pub fn buffer_made_by(&self, unique: u64) -> Option<BufferRecord> {
        let mut slots = self.buffer_slots();
        let made = |slot: &BufferSlot| slot.id.load(Acquire) != 0 && slot.unique.load(Relaxed) == unique;
        slots.find(|(_, slot)| made(slot)).map(|(at, slot)| slot.read(at))
    }

    /// Where the record of a buffer is that a request has ended, all of it.
    pub fn buffer_ended_by(&self, unique: u64) -> Option<u32> {
        let ended = |slot: &BufferSlot| {
            unique != 0 && slot.ended_by.load(Acquire) == unique && slot.id.load(Acquire) == 0
        };
        self.buffer_slots().find(|(_, slot)| ended(slot)).map(|(at, _)| at)
    }

    fn buffer_slots(&self) -> impl Iterator<Item = (u32, &BufferSlot)> {
        let slots = used(&self.layout().buffers, &self.header().buffers_end);
        slots.filter(|(_, slot)| slot.is_used())
    }

    /// Keeps a token. `None` when there's no room: it's not kept.
    pub fn keep_token(&self, record: TokenRecord) -> Option<u32> {
        let at = self.tokens.lock().take(TOKENS)?;
        self.header().tokens_end.fetch_max(at + 1, Release);
        let slot = &self.layout().tokens[at as usize];
        slot.fh.store(record.fh, Relaxed);
        slot.whose.store(u64::from(record.tgid) << 32 | u64::from(record.uid), Relaxed);
        slot.incarnation.store(record.incarnation, Relaxed);
        slot.token.store(record.token, Release);
        Some(at)
    }

    /// The token is good for nothing any more.
    pub fn drop_token(&self, at: u32) {
        if let Some(slot) = self.layout().tokens.get(at as usize) {
            slot.token.store(0, Release);
            self.tokens.lock().list.push(at);
        }
    }

    /// All tokens that are kept, with their places.
    pub fn tokens(&self) -> Vec<(u32, TokenRecord)> {
        let slots = used(&self.layout().tokens, &self.header().tokens_end);
        let record = |(at, slot): (u32, &TokenSlot)| {
            let (token, whose) = (slot.token.load(Acquire), slot.whose.load(Relaxed));
            let (fh, incarnation) = (slot.fh.load(Relaxed), slot.incarnation.load(Relaxed));
            (at, TokenRecord { token, fh, tgid: (whose >> 32) as u32, incarnation, uid: whose as u32 })
        };
        slots.filter(|(_, slot)| slot.is_used()).map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn again(state: &State) -> State {
        State::take_over(state.fd().as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn buffers_and_their_ends_are_there_after_a_crash() {
        let state = State::create().unwrap();
        let kept = |n: u64| state.keep_buffer(n, 2 * n, &[n as u8; 9]).unwrap();
        assert_eq!([kept(1), kept(2), kept(3), kept(4)], [0, 1, 2, 3]);
        state.drop_buffer(0);
        state.buffer_ends(1, 70);
        state.buffer_ends(2, 72);
        state.buffer_ended(2);
        assert_eq!(state.keep_buffer(5, 5, &[0; RECORD_ROOM + 1]), None);
        let state = again(&state);
        let record = |at, id, n: u64, ended_by| BufferRecord {
            at,
            id,
            unique: 2 * n,
            ended_by,
            record: vec![n as u8; 9],
        };
        assert_eq!(state.buffers(), [record(1, 2, 2, 70), record(2, 0, 3, 72), record(3, 4, 4, 0)]);
        assert_eq!([4, 6, 8].map(|n| state.buffer_made_by(n).map(|b| b.at)), [Some(1), None, Some(3)]);
        assert_eq!([70, 72, 0].map(|n| state.buffer_ended_by(n)), [None, Some(2), None]);
        state.drop_buffer(2);
        assert_eq!([state.keep_buffer(6, 1, &[]), state.keep_buffer(7, 1, &[])], [Some(2), Some(0)]);
        assert_eq!(state.keep_buffer(8, 1, &[]), Some(4));
    }

    #[test]
    fn tokens_and_the_session_are_there_after_a_crash() {
        let state = State::create().unwrap();
        let record =
            |token| TokenRecord { token, fh: token << 24, tgid: u32::MAX, incarnation: 5, uid: 1000 };
        assert_eq!([1, 2, 3].map(|n| state.keep_token(record(n))), [Some(0), Some(1), Some(2)]);
        state.drop_token(1);
        assert_eq!((state.session(7), state.session(8)), (7, 7));
        let state = again(&state);
        assert_eq!(state.session(9), 7);
        assert_eq!(state.tokens(), [(0, record(1)), (2, record(3))]);
        assert_eq!(state.keep_token(record(4)), Some(1));
    }
}
