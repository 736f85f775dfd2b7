//! A text that must not be shown, and a file that others must not read.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::roots::is_roots;
use crate::error::{Code, Error, Result};

/// Requires that nobody else can read a file with a secret, or put another one there: `kind` says what file it is.
///
/// # Errors
/// With this code, when others may read it, or it belongs to neither this user nor root.
pub fn check_closed(code: Code, kind: &str, path: &Path, metadata: &Metadata) -> Result<()> {
    let shown = path.display();
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let what = format!("{kind} \"{shown}\" is open to other users: its mode is {mode:04o}");
        return Err(Error::new(code, what).hint(format!("Take the right away: chmod 600 {shown}")));
    }
    let (own, owner) = (rustix::process::geteuid().as_raw(), metadata.uid());
    if owner != own && own != 0 && !is_roots(metadata) {
        let what = format!("{kind} \"{shown}\" belongs to user {owner}, not to user {own} or root");
        return Err(Error::new(code, what));
    }
    Ok(())
}

/// A text that may hold a password: no `Debug`, no `Display`, no `Serialize`, so that it cannot slip into a message or a log.
///
/// ```compile_fail
/// let s = pitr::config::Secret::new("password=x".into());
/// format!("{s:?}");
/// ```
/// ```compile_fail
/// let s = pitr::config::Secret::new("password=x".into());
/// format!("{s}");
/// ```
/// ```compile_fail
/// let s = pitr::config::Secret::new("password=x".into());
/// serde_json::to_string(&s);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text in.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself, for the one place that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
