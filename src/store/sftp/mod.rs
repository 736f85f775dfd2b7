//! A store in a directory of an SFTP server, through the system's ssh.
//!
//! Creating is what it is in a directory of this host: a file under a temporary name, synced, linked to its own name, the directory synced. A
//! server that lacks one of these is refused. Decisions: `docs/decisions/0045-sftp.md`.

use std::sync::Arc;

use super::{Irregular, Key, Listed, Meta, NewObject, Object, Room, Store, reserve};
use crate::config::{Location, SftpSettings};
use crate::err;
use crate::error::{Code, Result};
use crate::pg::time::TimestampTz;

mod failure;
mod link;
mod object;
mod place;
pub mod probe;
mod session;
mod ssh;
mod upload;

use super::runtime::{asked, wait};
use link::{Link, Server};
use object::SftpObject;
use place::Place;
pub use ssh::PASSPHRASE_FILE;
use upload::Upload;

/// A disk with less room than this is full: no piece of an object is longer.
const ROOM_BYTES: u64 = 1 << 20;

/// A directory on a server as a store.
pub struct SftpStore {
    place: Arc<Place>,
}

impl SftpStore {
    /// Opens a place; nothing is asked of the server yet. `nonce` is random.
    ///
    /// # Errors
    /// `Internal` for a location of another kind.
    pub fn open(location: &Location, settings: &SftpSettings, nonce: u64) -> Result<SftpStore> {
        let Location::Sftp {
            user,
            host,
            port,
            path,
        } = location
        else {
            return Err(err!(Internal, "\"{location}\" is not on an SFTP server"));
        };
        let server = Server {
            user: user.clone(),
            host: host.clone(),
            port: *port,
        };
        let link = Link::open(server, settings);
        let place = Place::new(link, path.clone(), location.to_string(), nonce);
        Ok(SftpStore {
            place: Arc::new(place),
        })
    }

    /// A store of its own inside this one, and its name, which is a temporary one: nobody takes what is there for objects of the repository,
    /// and the janitor takes away what is left of it.
    ///
    /// # Errors
    /// Errors of the server.
    pub fn aside(&self, nonce: u64) -> Result<(SftpStore, String)> {
        let name = self.place.temporary("check");
        let inner = Place::new(
            Arc::clone(&self.place.link),
            self.place.path(&name),
            format!("{}/{name}", self.place.url),
            nonce,
        );
        let store = SftpStore {
            place: Arc::new(inner),
        };
        store.create_root()?;
        Ok((store, name))
    }

    /// Whether the directory is there.
    ///
    /// # Errors
    /// `Refused` where something else is; errors of the server.
    pub fn is_there(&self) -> Result<bool> {
        asked!(place = self.place => place.is_there())
    }

    /// Names in the directory itself, whatever they are.
    ///
    /// # Errors
    /// Errors of the server.
    pub fn names(&self) -> Result<Vec<String>> {
        let names = asked!(place = self.place => place.names(""))?;
        Ok(names.into_iter().map(|(name, _)| name).collect())
    }

    /// Creates the directory with missing parents (mode 0700), durably.
    ///
    /// # Errors
    /// Errors of the server.
    pub fn create_root(&self) -> Result<()> {
        asked!(place = self.place => place.create())
    }
}

impl Store for SftpStore {
    fn location(&self) -> String {
        self.place.url.clone()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let facts = asked!(place = self.place, looked = key => place.look(&looked))?;
        Ok(facts.map(|facts| -> Box<dyn Object> {
            Box::new(SftpObject::new(&self.place, key, facts.size_bytes))
        }))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        Ok(Box::new(Upload::begin(&self.place, key)?))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        asked!(place = self.place, prefix = prefix => place.list(&prefix))
    }

    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        let facts = asked!(place = self.place, key = key => place.look(&key))?;
        Ok(facts.map(|facts| place::meta(&facts)))
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        asked!(place = self.place, key = key => place.delete(&key))
    }

    fn settle_deletions(&self, prefix: &str) -> Result<()> {
        asked!(place = self.place, prefix = prefix => place.settle_deletions(&prefix))
    }

    fn irregular(&self) -> Result<Vec<Irregular>> {
        asked!(place = self.place => place.irregular())
    }

    fn discard(&self, unfinished: &str) -> Result<bool> {
        asked!(place = self.place, unfinished = unfinished => place.discard(&unfinished))
    }

    fn keep_reserve(&self) -> Result<()> {
        reserve::keep(self)
    }

    fn give_reserve(&self, left: usize) -> Result<bool> {
        reserve::give(self, left)
    }

    fn clock(&self) -> Result<Option<TimestampTz>> {
        let place = Arc::clone(&self.place);
        match wait(async move { place.clock().await })? {
            Ok(time) => Ok(Some(time)),
            // An account that may not write there deletes nothing there, either.
            Err(failure) => match failure.error {
                e if matches!(e.code(), Code::Denied | Code::ReadOnly | Code::Full) => Ok(None),
                e => Err(e),
            },
        }
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn room(&self) -> Result<Option<Room>> {
        let place = Arc::clone(&self.place);
        let disk = wait(async move {
            let doing = "look at free space";
            let root = place.root.as_str();
            let asked = |session: Arc<session::Session>| async move { session.disk(root).await };
            place.link.run(doing, asked).await
        })??;
        Ok(disk.map(|disk| disk.room))
    }
}
