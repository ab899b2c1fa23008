//! Names that clients have chosen, in the log and on terminals.
//!
//! What always holds: what is printed is one line, and nothing that a terminal obeys.

/// The name or path as text, its control characters escaped.
pub(crate) fn printable(name: impl AsRef<[u8]>) -> String {
    let text = String::from_utf8_lossy(name.as_ref());
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // And marks that turn what follows round, which can make one name look like another.
        if c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_line() {
        assert_eq!(printable("a/käse 文.pt"), "a/käse 文.pt");
        assert_eq!(printable(b"a\nERROR all is lost\x1b[2J"), "a\\u{a}ERROR all is lost\\u{1b}[2J");
        assert_eq!(printable(b"\xff"), "\u{fffd}");
    }
}
