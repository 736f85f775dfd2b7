//! The answer to ssh, which asks this program for the passphrase of a key.
//!
//! [`crate::store::sftp`] starts ssh so that it runs this program instead of asking at a terminal. A passphrase stands on no command line and in
//! no variable: the variable names its file.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;

use crate::config::Environment;
use crate::config::secret::check_closed;
use crate::error::Code;
use crate::exit::{self, Program};
use crate::store::sftp::PASSPHRASE_FILE;

/// No passphrase is longer.
const LIMIT_BYTES: u64 = 4096;

/// Prints the first line of the file, where ssh asks; returns the status to leave with.
pub(super) fn answer(environment: &Environment) -> Option<u8> {
    let file = environment.get(PASSPHRASE_FILE)?;
    Some(match passphrase(file) {
        Some(passphrase) => {
            let mut out = std::io::stdout().lock();
            match out
                .write_all(&passphrase)
                .and_then(|()| out.write_all(b"\n"))
            {
                Ok(()) => exit::SUCCESS,
                Err(_) => exit::status(Program::Pitr, Code::Io),
            }
        }
        // ssh says that the key cannot be used.
        None => exit::status(Program::Pitr, Code::Config),
    })
}

fn passphrase(file: &OsStr) -> Option<Vec<u8>> {
    let file = Path::new(file);
    let metadata = std::fs::metadata(file).ok()?;
    check_closed(Code::Config, "the passphrase", file, &metadata).ok()?;
    if metadata.len() > LIMIT_BYTES {
        return None;
    }
    let content = std::fs::read(file).ok()?;
    content.split(|b| *b == b'\n').next().map(<[u8]>::to_vec)
}
