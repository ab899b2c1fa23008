//! The names of the index, packed one after another: no allocation per name, and freed room is used again.
//!
//! What always holds: a name lies in whole granules of 8 bytes, one byte of length in front, and never
//! crosses a block; so a name is known by one `u32`, enough for 32 GiB of names. KV-cache names are all
//! about as long as each other, so a freed name's room is kept for the next one of its size class. A block that
//! somebody else has filled can be adopted: the threads of a scan write names where they stay.

const GRANULE: usize = 8;
/// Blocks are mapped one at a time, so that growing never copies names.
const BLOCK: usize = 1 << 20;
const GRANULES_PER_BLOCK: usize = BLOCK / GRANULE;
/// One length byte and 255 bytes of name are 32 granules.
const CLASSES: usize = 256 / GRANULE + 1;

/// Where a name lies: in which granule of the arena, or of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NameRef(u32);

impl NameRef {
    /// No name.
    pub(super) const NONE: NameRef = NameRef(u32::MAX);

    /// Where a name of a block lies in the arena that has adopted it; `self` is where the block begins.
    pub(super) fn within(self, block: NameRef) -> NameRef {
        NameRef(self.0 + block.0)
    }
}

/// Room for some ten thousand names.
#[derive(Default)]
pub(super) struct Block {
    bytes: Box<[u8]>,
    /// Granules.
    used: usize,
}

impl Block {
    pub(super) fn new() -> Block {
        Block { bytes: vec![0; BLOCK].into_boxed_slice(), used: 0 }
    }

    /// Empties it, to be filled again, even when it was adopted.
    pub(super) fn reuse(&mut self) {
        match self.bytes.len() {
            0 => *self = Block::new(),
            _ => self.used = 0,
        }
    }

    /// Stores a name of at most 255 bytes. `None` when it has no room.
    pub(super) fn add(&mut self, name: &[u8]) -> Option<NameRef> {
        let at = self.take(class(name.len()))?;
        self.put(at, name);
        Some(NameRef(at as u32))
    }

    /// The name's bytes.
    pub(super) fn get(&self, name: NameRef) -> &[u8] {
        let room = &self.bytes[name.0 as usize * GRANULE..];
        &room[1..=usize::from(room[0])]
    }

    fn take(&mut self, granules: usize) -> Option<usize> {
        let at = self.used;
        (at + granules <= self.bytes.len() / GRANULE).then(|| {
            self.used += granules;
            at
        })
    }

    fn put(&mut self, at: usize, name: &[u8]) {
        debug_assert!(name.len() <= 255);
        let room = &mut self.bytes[at * GRANULE..][..=name.len()];
        room[0] = name.len() as u8;
        room[1..].copy_from_slice(name);
    }
}

/// The arena of names.
pub(super) struct Names {
    blocks: Vec<Block>,
    /// The block that is being filled.
    filling: usize,
    /// Freed names by size in granules.
    free: [Vec<u32>; CLASSES],
}

impl Default for Names {
    fn default() -> Self {
        Names { blocks: Vec::new(), filling: 0, free: [const { Vec::new() }; CLASSES] }
    }
}

impl Names {
    /// Stores a name of at most 255 bytes. `None` when all 32 GiB are in use.
    pub(super) fn add(&mut self, name: &[u8]) -> Option<NameRef> {
        let class = class(name.len());
        let at = match self.free[class].pop() {
            Some(at) => at,
            None => self.grow(class)?,
        };
        let (block, at_granule) = locate(at);
        self.blocks[block].put(at_granule, name);
        Some(NameRef(at))
    }

    /// Takes the names of a block over, and its room: where the block begins. `None` where it's less than half
    /// full, or the arena is full: then the names are to be added one by one.
    pub(super) fn adopt(&mut self, block: &mut Block) -> Option<NameRef> {
        if block.used < GRANULES_PER_BLOCK / 2 {
            return None;
        }
        let first = self.room_for_a_block()?;
        self.blocks.push(std::mem::take(block));
        Some(NameRef(first))
    }

    /// The name's bytes.
    pub(super) fn get(&self, name: NameRef) -> &[u8] {
        let (block, at) = locate(name.0);
        self.blocks[block].get(NameRef(at as u32))
    }

    /// Gives the name's room back.
    pub(super) fn remove(&mut self, name: NameRef) {
        let class = class(self.get(name).len());
        self.free[class].push(name.0);
    }

    /// Where the next block begins.
    fn room_for_a_block(&self) -> Option<u32> {
        let blocks = self.blocks.len();
        (blocks < u32::MAX as usize / GRANULES_PER_BLOCK).then_some((blocks * GRANULES_PER_BLOCK) as u32)
    }

    fn grow(&mut self, granules: usize) -> Option<u32> {
        if let Some(at) = self.blocks.get_mut(self.filling).and_then(|block| block.take(granules)) {
            return Some((self.filling * GRANULES_PER_BLOCK + at) as u32);
        }
        let first = self.room_for_a_block()?;
        self.filling = self.blocks.len();
        self.blocks.push(Block::new());
        self.blocks[self.filling].take(granules).map(|at| first + at as u32)
    }
}

fn class(len: usize) -> usize {
    (len + 1).div_ceil(GRANULE)
}

/// The block, and the granule in it.
fn locate(at: u32) -> (usize, usize) {
    let at = at as usize;
    (at / GRANULES_PER_BLOCK, at % GRANULES_PER_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(names: &Names) -> usize {
        names.blocks.iter().map(|block| block.used).sum()
    }

    #[test]
    fn keeps_names_of_every_length_and_reuses_room() {
        let mut names = Names::default();
        let all: Vec<Vec<u8>> = (1..=255).map(|len| vec![len as u8; len]).collect();
        let refs: Vec<NameRef> = all.iter().map(|name| names.add(name).unwrap()).collect();
        for (name, at) in all.iter().zip(&refs) {
            assert_eq!(names.get(*at), name);
        }
        let before = used(&names);
        for at in &refs {
            names.remove(*at);
        }
        for name in &all {
            let at = names.add(name).unwrap();
            assert_eq!(names.get(at), name);
        }
        assert_eq!(used(&names), before, "the freed room was used again");
    }

    #[test]
    fn a_block_is_adopted_as_it_was_filled() {
        let mut names = Names::default();
        let before = names.add(b"before").unwrap();
        let mut block = Block::new();
        let refs: Vec<NameRef> = (0u32..).map_while(|n| block.add(n.to_string().as_bytes())).collect();
        assert_eq!(refs.len(), GRANULES_PER_BLOCK);
        let first = names.adopt(&mut block).unwrap();
        for (n, at) in refs.iter().enumerate() {
            assert_eq!(names.get(first.within(*at)), n.to_string().as_bytes());
        }
        assert_eq!(names.get(before), b"before");
        let after = names.add(b"after").unwrap();
        assert_eq!(names.blocks.len(), 2, "the one that isn't full is filled on");
        assert_eq!(names.get(after), b"after");
        block.reuse();
        let at = block.add(b"few").unwrap();
        assert_eq!(block.get(at), b"few");
        assert_eq!(names.adopt(&mut block), None, "those are copied");
    }

    #[test]
    fn a_name_never_crosses_a_block() {
        let mut names = Names::default();
        let refs: Vec<NameRef> = (0..2 * BLOCK / 256).map(|_| names.add(&[b'x'; 250]).unwrap()).collect();
        assert!(names.blocks.len() > 1);
        assert!(refs.iter().all(|at| names.get(*at) == [b'x'; 250]));
    }
}
