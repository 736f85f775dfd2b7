//! A text without its secrets.

use super::Found;

/// Puts a mark in place of each secret; `mark` makes that of a value.
pub fn redact(content: &[u8], found: &[Found], mark: &mut dyn FnMut(&[u8]) -> String) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut at = 0;
    for one in found {
        let value = content.get(one.span.clone()).unwrap_or_default();
        out.extend_from_slice(content.get(at..one.span.start).unwrap_or_default());
        out.extend_from_slice(mark(value).as_bytes());
        at = one.span.end;
    }
    out.extend_from_slice(content.get(at..).unwrap_or_default());
    out
}
