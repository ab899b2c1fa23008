//! The few lexical rules that the grammars of names share, on raw bytes.

/// Whether these are one or more hexadecimal digits in lower case, as Python's `hex()` writes them.
pub(super) fn is_hex(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether this is [`is_hex`], perhaps after a minus: Python's hash of a prompt may be negative.
pub(super) fn is_signed_hex(text: &[u8]) -> bool {
    is_hex(text.strip_prefix(b"-").unwrap_or(text))
}

/// Whether these are one or more decimal digits.
pub(super) fn is_decimal(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// A decimal number without sign that fits.
pub(super) fn decimal(text: &[u8]) -> Option<u32> {
    if !is_decimal(text) {
        return None;
    }
    text.iter().try_fold(0_u32, |n, b| n.checked_mul(10)?.checked_add(u32::from(b - b'0')))
}

/// Takes off the decimal digits at the end; `None` when there is none.
pub(super) fn strip_digits(text: &[u8]) -> Option<&[u8]> {
    let kept = text.iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |at| at + 1);
    (kept < text.len()).then(|| &text[..kept])
}

/// Splits at the last `separator`.
pub(super) fn rsplit_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().rposition(|&b| b == separator)?;
    Some((&text[..at], &text[at + 1..]))
}
