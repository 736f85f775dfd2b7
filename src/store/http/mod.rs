//! The stores over HTTP have this in common: attempts and their repetition, failures, and secrets that stay hidden.

pub(super) mod attempt;
pub(super) mod calm;
pub(super) mod failure;
pub(super) mod retry;
pub(super) mod secrets;

/// So many bytes that came are a sign of life. Who waits five seconds for one takes less than 3 KiB a second for silence, as an attempt does.
pub(in crate::store) const SIGN_BYTES: usize = 16 << 10;

/// `bytes 0-9/100` as begin, end and size.
pub(in crate::store) fn range_of(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((
        first.parse().ok()?,
        last.parse::<u64>().ok()?.checked_add(1)?,
        size.parse().ok()?,
    ))
}
