//! The stores over HTTP have this in common: attempts and their repetition, failures, and secrets that stay hidden.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::path::Path;

use crate::config::secret;
use crate::durable::TEMPORARY_PREFIX;
use crate::err;
use crate::error::{Code, Result};
use failure::{Answered, Failure};

pub(super) mod attempt;
pub(super) mod calm;
pub(super) mod failure;
pub(super) mod retry;
pub(super) mod secrets;

/// So many bytes that came are a sign of life. Who waits five seconds for one takes less than 3 KiB a second for silence, as an attempt does.
pub(in crate::store) const SIGN_BYTES: usize = 16 << 10;

/// The longest credentials file.
const CREDENTIALS_LIMIT_BYTES: u64 = 1 << 20;

/// Reads a configured credentials file: we may read it, and nobody else.
///
/// # Errors
/// `Config` when it cannot be read or is open to others.
pub(in crate::store) fn credentials_file(path: &Path) -> Result<(String, Metadata)> {
    let shown = path.display();
    let failed = |e| {
        err!(Config, "there are no credentials: could not read credentials file \"{shown}\"")
            .source(e)
            .hint(format!(
                "Name the file where it is, and let it belong to the user that runs pitr, for archiving the server's: chown postgres {shown}"
            ))
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    secret::check_closed(Code::Config, "credentials file", path, &metadata)?;
    Ok((credentials_text(file).map_err(failed)?, metadata))
}

/// The text of a file with credentials.
pub(in crate::store) fn credentials_text(file: File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(CREDENTIALS_LIMIT_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a key lies where trials and unfinished writes do.
pub(in crate::store) fn is_temporary(key: &str) -> bool {
    key.split('/')
        .any(|part| part.starts_with(TEMPORARY_PREFIX))
}

/// The range that an answer says it has: begin, end and size. It says none with the whole object, which is fine if that is all there is.
pub(in crate::store) fn answered_range(
    header: Option<&str>,
    length: impl FnOnce() -> Answered<u64>,
) -> Answered<(u64, u64, u64)> {
    let Some(text) = header else {
        return length().map(|length| (0, length, length));
    };
    range_of(text).ok_or_else(|| Failure::again("the range in the answer cannot be understood"))
}

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
