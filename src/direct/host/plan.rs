//! How a transfer is cut: what can go past the page cache, and what can't.
//!
//! What always holds: the pieces of a plan are the transfer, in its order, without gap or overlap; a direct
//! piece is aligned in the file, in memory and in its length.

/// A part of a transfer, done by one request at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// From the transfer's start, in bytes.
    pub(super) at: u64,
    /// In bytes.
    pub(super) len: u64,
    /// Past the page cache.
    pub(super) direct: bool,
}

/// Cuts a transfer of `len` bytes between offset `file_off` and address `memory` into pieces of `most` bytes
/// at most (a multiple of `align`).
pub(super) fn plan(file_off: u64, memory: u64, len: u64, align: u64, most: u64) -> Vec<Piece> {
    // Where file and memory aren't aligned at the same bytes, nothing of it can go directly.
    let (head, body) = if file_off % align == memory % align {
        let head = (file_off.next_multiple_of(align) - file_off).min(len);
        (head, (len - head) / align * align)
    } else {
        (len, 0)
    };
    let mut pieces = Vec::with_capacity(1 + len.div_ceil(most) as usize);
    let mut cut = |from: u64, len: u64, direct| {
        let mut at = from;
        while at < from + len {
            let piece = most.min(from + len - at);
            pieces.push(Piece { at, len: piece, direct });
            at += piece;
        }
    };
    cut(0, head, false);
    cut(head, body, true);
    cut(head + body, len - head - body, false);
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_unaligned_head_and_tail_go_through_the_page_cache() {
        let piece = |at, len, direct| Piece { at, len, direct };
        assert_eq!(plan(0, 0, 8192, 4096, 1 << 20), [piece(0, 8192, true)]);
        assert_eq!(plan(0, 0, 8292, 4096, 1 << 20), [piece(0, 8192, true), piece(8192, 100, false)]);
        assert_eq!(plan(4000, 4000, 200, 512, 1 << 20), [piece(0, 96, false), piece(96, 104, false)]);
        assert_eq!(plan(1, 0, 8192, 512, 1 << 20), [piece(0, 8192, false)]);
        assert_eq!(plan(0, 512, 2048, 512, 1024), [piece(0, 1024, true), piece(1024, 1024, true)]);
    }

    proptest! {
        #[test]
        fn pieces_are_the_transfer(file in 0u64..1 << 40, memory in 0u64..1 << 40, len in 1u64..1 << 24,
                                   align in prop_oneof![Just(512u64), Just(4096)]) {
            let pieces = plan(file, memory, len, align, 1 << 20);
            let mut at = 0;
            for piece in &pieces {
                prop_assert_eq!(piece.at, at);
                prop_assert!(piece.len > 0 && piece.len <= 1 << 20);
                at += piece.len;
                if piece.direct {
                    for value in [file + piece.at, memory + piece.at, piece.len] {
                        prop_assert_eq!(value % align, 0);
                    }
                }
            }
            prop_assert_eq!(at, len);
            // Whatever could go directly does.
            let through_the_cache: u64 = pieces.iter().filter(|p| !p.direct).map(|p| p.len).sum();
            prop_assert!(file % align != memory % align || through_the_cache < 2 * align);
        }
    }
}
