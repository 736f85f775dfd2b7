//! Whether a server can keep what a repository promises: tried on two small files under a temporary name, which are removed again.

use std::sync::Arc;

use super::SftpStore;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::store::runtime::wait;
use crate::store::{Key, Published, Store as _, get, put};

/// As long as the longest names of objects: a filesystem that cuts names shows it here.
const NAME: &str =
    "probe-0123456789abcdef0123456789abcdef-000000010000000A000000FE.00000028.backup";

const HINT: &str = "No repository was created. A repository needs OpenSSH's sftp-server on a filesystem of POSIX semantics, such as ext4 or xfs.";

impl SftpStore {
    /// Tries the server. The extensions that it must have are asked for whenever it is connected to.
    ///
    /// # Errors
    /// `Refused` when it cannot keep a repository; what it says when it cannot be tried.
    pub fn probe(&self, nonce: u64) -> Result<()> {
        self.try_directory()?;
        let (aside, name) = self.aside(nonce)?;
        let tried = aside.try_objects();
        let cleared = self.discard(&name);
        tried?;
        cleared.map(drop)
    }

    /// A server that does not sync directories keeps content, and forgets its name.
    fn try_directory(&self) -> Result<()> {
        let place = Arc::clone(&self.place);
        let settled = wait(async move { place.settle_deletions("").await })?;
        settled.map_err(|failure| match failure.error.code() {
            Code::Unreachable | Code::NoRepository => failure.error,
            _ => refused(
                "does not sync directories: names of objects could be gone after a power cut",
            )
            .source(failure.error),
        })
    }

    fn try_objects(&self) -> Result<()> {
        let key = Key::new(NAME)?;
        let published = [put(self, &key, b"one"), put(self, &key, b"two")];
        let [first, second] = published.map(|p| p.map_err(failed));
        if first? != Published::Created || second? != Published::Exists {
            return Err(refused(
                "replaces files instead of refusing a name that is taken",
            ));
        }
        if get(self, &key, 100)?.as_deref() != Some(b"one") {
            return Err(refused("does not give back what was written"));
        }
        if self.head(&Key::new(NAME.to_uppercase())?)?.is_some() {
            return Err(refused("does not tell upper from lower case in names"));
        }
        match self.list("")?.as_slice() {
            [only] if only.name == NAME && !only.is_prefix => Ok(()),
            _ => Err(refused("changes names")),
        }
    }
}

/// A lack of rights or room, or a connection that broke, says nothing about what the server can do.
fn failed(error: Error) -> Error {
    match error.code() {
        Code::Io => error.with_code(Code::Refused).hint(HINT),
        _ => error,
    }
}

fn refused(what: &str) -> Error {
    err!(Refused, "the SFTP server, or its filesystem, {what}").hint(HINT)
}
