//! A recipient's key, joined from its shares.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use zeroize::Zeroizing;

use super::keys::{NewFile, write};
use super::session::Session;
use crate::err;
use crate::error::Result;
use crate::repo::keyring::{self, ReaderFile};
use crate::seal::share::{self, Share};

/// No file of shares is longer.
const LIMIT_BYTES: usize = 64 << 10;

/// The key file that was written.
#[derive(Debug, Serialize)]
pub struct Written {
    pub file: String,
    /// The recipient whose key it is.
    pub recipient: String,
    /// The only key set that it opens, where it was made with one.
    pub key_set: Option<String>,
    /// The numbers of the shares that were joined.
    pub shares: Vec<u8>,
}

/// Joins shares from files, and from `input` where there is one, into a key file that nobody else may read.
///
/// # Errors
/// `Key` when a share is damaged, open to others or of another set, or there are too few; `Refused` when the file is there.
pub fn join(
    session: &Session,
    files: &[PathBuf],
    input: Option<&mut dyn Read>,
    out: &Path,
) -> Result<Written> {
    keyring::forbid_core_dumps()?;
    let mut shares = Vec::new();
    for path in files {
        shares.extend(read_shares(&session.environment.absolute(path))?);
    }
    if let Some(input) = input {
        let mut text = Zeroizing::new(Vec::with_capacity(LIMIT_BYTES));
        let failed = |e| err!(Key, "could not read shares from standard input").source(e);
        input
            .take(LIMIT_BYTES as u64)
            .read_to_end(&mut text)
            .map_err(failed)?;
        shares.extend(decode("standard input", &text)?);
    }
    let joined = share::join(&shares)?;
    let path = session.environment.absolute(out);
    let key = ReaderFile::new(&joined.recipient, &joined.private, joined.key_set);
    let file = NewFile {
        path: path.clone(),
        content: key.text()?,
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    write(directory, &[file], session)?;
    if ReaderFile::read(&path)?.private(&path)? != joined.private {
        return Err(err!(
            ReadBack,
            "\"{}\" does not hold the key",
            path.display()
        ));
    }
    Ok(Written {
        file: path.display().to_string(),
        recipient: joined.recipient,
        key_set: joined.key_set.map(|id| id.to_string()),
        shares: shares.iter().map(Share::number).collect(),
    })
}

/// Reads the shares in a file that nobody else may read.
pub(super) fn read_shares(path: &Path) -> Result<Vec<Share>> {
    let text = keyring::read_secret("share", path)?;
    decode(&format!("\"{}\"", path.display()), &text)
}

fn decode(name: &str, text: &[u8]) -> Result<Vec<Share>> {
    let shares = match std::str::from_utf8(text) {
        Ok(text) => Share::read_all(text),
        Err(_) => Ok(Vec::new()),
    };
    let shares = shares.map_err(|e| e.context(format!("read {name}")))?;
    match shares.is_empty() {
        true => Err(err!(Key, "{name} holds no share").hint(
            "No key was written. A share begins with the line \"pitr key share, version 1\".",
        )),
        false => Ok(shares),
    }
}
