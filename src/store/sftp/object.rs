//! Reading: an object that is opened when it is read first, and stays open where not too many are.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::failure::{Answered, Kind};
use super::place::Place;
use super::session::{Open, Session};
use crate::err;
use crate::error::Result;
use crate::store::ahead::Ahead;
use crate::store::runtime::asked;
use crate::store::{Key, Object};

/// So much is on its way together, whatever is wanted.
const TOGETHER_BYTES: u64 = 4 << 20;

/// An object open for reading.
pub(super) struct SftpObject {
    remote: Arc<Remote>,
    ahead: Ahead,
}

struct Remote {
    place: Arc<Place>,
    key: Key,
    size_bytes: u64,
    open: Mutex<Option<Arc<Open>>>,
}

impl SftpObject {
    pub(super) fn new(place: &Arc<Place>, key: &Key, size_bytes: u64) -> SftpObject {
        SftpObject {
            remote: Arc::new(Remote {
                place: Arc::clone(place),
                key: key.clone(),
                size_bytes,
                open: Mutex::new(None),
            }),
            ahead: Ahead::new(size_bytes, 0, Bytes::new()),
        }
    }
}

impl Object for SftpObject {
    fn size_bytes(&self) -> u64 {
        self.ahead.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let fetch =
            |offset: u64, bytes: u64| asked!(remote = self.remote => remote.fetch(offset, bytes));
        let key = &self.remote.key;
        self.ahead.read_at(key, buffer, offset, fetch)
    }

    fn settle(&self) -> Result<()> {
        asked!(remote = self.remote => remote.settle())
    }
}

impl Remote {
    async fn fetch(&self, offset: u64, bytes: u64) -> Answered<Bytes> {
        let mut all = Vec::new();
        let mut done = 0;
        while done < bytes {
            let length = TOGETHER_BYTES.min(bytes - done);
            let at = offset + done;
            let piece = self
                .place
                .link
                .run(&format!("read object \"{}\"", self.key), |session| {
                    self.fetch_over(session, at, length)
                })
                .await?;
            match all.is_empty() {
                true => all = piece,
                false => all.extend_from_slice(&piece),
            }
            done += length;
        }
        Ok(all.into())
    }

    async fn fetch_over(
        &self,
        session: Arc<Session>,
        offset: u64,
        bytes: u64,
    ) -> Answered<Vec<u8>> {
        let open = self.opened(&session).await?;
        let read = session.read(&open, offset, bytes).await;
        read.map_err(|failure| match failure.kind {
            Kind::End => err!(Damaged, "object \"{}\" ends too early", self.key).into(),
            _ => failure,
        })
    }

    async fn opened(&self, session: &Arc<Session>) -> Answered<Arc<Open>> {
        let known = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.clone()
        };
        if let Some(open) = known.filter(|open| open.is_of(session)) {
            return Ok(open);
        }
        let path = self.place.path(self.key.as_str());
        let opening = async {
            match session.open_to_keep(&path).await? {
                Some(open) => Ok((open, true)),
                None => Ok((session.open_to_read(&path).await?, false)),
            }
        };
        let (opened, looked) = tokio::join!(opening, session.look(&path));
        let opened: Answered<(Open, bool)> = opened;
        let (open, is_kept) = opened.map_err(|failure| match failure.kind {
            Kind::Absent => {
                err!(Damaged, "object \"{}\" is gone while it is read", self.key).into()
            }
            _ => failure,
        })?;
        // Over another connection it may be another file.
        if looked.is_ok_and(|f| f.size_bytes != self.size_bytes) {
            return Err(err!(Damaged, "object \"{}\" changed while it was read", self.key).into());
        }
        let open = Arc::new(open);
        if is_kept {
            let mut kept = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some(Arc::clone(&open));
        }
        Ok(open)
    }

    /// Makes sure that the object survives a power cut, also when another program wrote it.
    async fn settle(&self) -> Answered<()> {
        let directory = self.place.path(self.key.parent().unwrap_or_default());
        let directory = directory.as_str();
        self.place
            .link
            .run(
                &format!("sync object \"{}\"", self.key),
                |session| async move {
                    let open = self.opened(&session).await?;
                    session.settle(&open).await?;
                    session.settle_names(directory).await
                },
            )
            .await
    }
}
