//! A recipient's key file that AWS KMS encrypted, and decrypts when something is to be opened.
//!
//! Whoever exchanges the wrapped file chooses the key: it is looked at as the program of a key command is.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::key_command;
use crate::config::{Kms, trust};
use crate::err;
use crate::error::Result;
#[cfg(feature = "program")]
use crate::store::kms::{decrypt, encrypt};

/// No ciphertext of a KMS is longer.
const WRAPPED_BYTES: u64 = 8 << 10;

/// Returns the key file that is wrapped in a file; once in a process.
///
/// # Errors
/// `Key` when the file may not be read, or the KMS does not decrypt it.
pub fn secret(kms: &Kms, wrapped: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let id = kms.key_id.iter().cloned();
    let words = id.chain([wrapped.display().to_string()]).collect();
    key_command::once(words, || decrypt(kms, read(wrapped)?))
}

/// Returns a key file as the KMS encrypts it.
///
/// # Errors
/// `Key`.
pub fn wrap(key_id: &str, plain: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let kms = Kms {
        key_id: Some(key_id.to_owned()),
        ..Kms::default()
    };
    encrypt(&kms, plain).map(Zeroizing::new)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let real = trust::closed_path(path).map_err(|why| {
        err!(Key, "the wrapped key \"{shown}\" {why}").hint(
            "Nothing was opened: it decides which key is used. Let it and the directories above belong to root, and let nobody else write them: chown root FILE; chmod go-w FILE",
        )
    })?;
    let mut wrapped = Vec::new();
    let file = File::open(real).and_then(|file| file.take(WRAPPED_BYTES).read_to_end(&mut wrapped));
    file.map_err(|e| {
        err!(Key, "the wrapped key \"{shown}\" cannot be read")
            .source(e)
            .hint("Nothing was opened. Let the user of pitr read it: chmod a+r FILE. It is of no use without the KMS.")
    })?;
    Ok(wrapped)
}

/// The small programs have pitr do it, and never come here.
#[cfg(not(feature = "program"))]
fn decrypt(_kms: &Kms, _wrapped: Vec<u8>) -> Result<Zeroizing<Vec<u8>>> {
    Err(err!(Internal, "this program does not reach a KMS"))
}

#[cfg(not(feature = "program"))]
fn encrypt(_kms: &Kms, _plain: &[u8]) -> Result<Vec<u8>> {
    Err(err!(Internal, "this program does not reach a KMS"))
}
