//! The names of the index, packed one after another: no allocation per name, and freed room is used again.
//!
//! What always holds: a name lies in whole granules of 8 bytes, one byte of length in front, and never
//! crosses a block; so a name is known by one `u32`, enough for 32 GiB of names. KV-cache names are all
//! about as long as each other, so a freed name's room is kept for the next one of its size class.

const GRANULE: usize = 8;
/// Blocks are mapped one at a time, so that growing never copies names.
const BLOCK: usize = 1 << 20;
const GRANULES_PER_BLOCK: usize = BLOCK / GRANULE;
/// One length byte and 255 bytes of name are 32 granules.
const CLASSES: usize = 256 / GRANULE + 1;

/// Where a name lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NameRef(u32);

impl NameRef {
    /// No name.
    pub(super) const NONE: NameRef = NameRef(u32::MAX);
}

/// The arena of names.
pub(super) struct Names {
    blocks: Vec<Box<[u8]>>,
    /// Granules used of the last block.
    used: usize,
    /// Freed names by size in granules.
    free: [Vec<u32>; CLASSES],
}

impl Default for Names {
    fn default() -> Self {
        Names { blocks: Vec::new(), used: 0, free: [const { Vec::new() }; CLASSES] }
    }
}

impl Names {
    /// Stores a name of at most 255 bytes. `None` when all 32 GiB are in use.
    pub(super) fn add(&mut self, name: &[u8]) -> Option<NameRef> {
        debug_assert!(name.len() <= 255);
        let class = class(name.len());
        let at = match self.free[class].pop() {
            Some(at) => at,
            None => self.grow(class)?,
        };
        let (block, offset) = locate(at);
        let room = &mut self.blocks[block][offset..];
        room[0] = name.len() as u8;
        room[1..=name.len()].copy_from_slice(name);
        Some(NameRef(at))
    }

    /// The name's bytes.
    pub(super) fn get(&self, name: NameRef) -> &[u8] {
        let (block, offset) = locate(name.0);
        let room = &self.blocks[block][offset..];
        &room[1..=usize::from(room[0])]
    }

    /// Gives the name's room back.
    pub(super) fn remove(&mut self, name: NameRef) {
        let class = class(self.get(name).len());
        self.free[class].push(name.0);
    }

    fn grow(&mut self, granules: usize) -> Option<u32> {
        if self.blocks.is_empty() || self.used + granules > GRANULES_PER_BLOCK {
            if self.blocks.len() >= u32::MAX as usize / GRANULES_PER_BLOCK {
                return None;
            }
            self.blocks.push(vec![0; BLOCK].into_boxed_slice());
            self.used = 0;
        }
        let at = (self.blocks.len() - 1) * GRANULES_PER_BLOCK + self.used;
        self.used += granules;
        Some(at as u32)
    }
}

fn class(len: usize) -> usize {
    (len + 1).div_ceil(GRANULE)
}

fn locate(at: u32) -> (usize, usize) {
    let at = at as usize;
    (at / GRANULES_PER_BLOCK, at % GRANULES_PER_BLOCK * GRANULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_names_of_every_length_and_reuses_room() {
        let mut names = Names::default();
        let all: Vec<Vec<u8>> = (1..=255).map(|len| vec![len as u8; len]).collect();
        let refs: Vec<NameRef> = all.iter().map(|name| names.add(name).unwrap()).collect();
        for (name, at) in all.iter().zip(&refs) {
            assert_eq!(names.get(*at), name);
        }
        let before = names.used;
        for at in &refs {
            names.remove(*at);
        }
        for name in &all {
            let at = names.add(name).unwrap();
            assert_eq!(names.get(at), name);
        }
        assert_eq!(names.used, before, "the freed room was used again");
    }

    #[test]
    fn a_name_never_crosses_a_block() {
        let mut names = Names::default();
        let refs: Vec<NameRef> = (0..2 * BLOCK / 256).map(|_| names.add(&[b'x'; 250]).unwrap()).collect();
        assert!(names.blocks.len() > 1);
        assert!(refs.iter().all(|at| names.get(*at) == [b'x'; 250]));
    }
}
