//! Writing: a file under a temporary name, synced by the server, then linked to its own name, which fails when that is taken.
//!
//! One piece is on its way while the next one is filled. Pieces have positions: one that got no answer is sent again, over another connection.
//! Before that the file is read back: a server that was started again may have lost what it had taken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::failure::{Answered, Failure, Kind};
use super::place::Place;
use super::session::{Open, Session};
use crate::err;
use crate::error::{Code, Result};
use crate::store::parts::{Broken, give_up, write_by_take};
use crate::store::runtime::{asked, runtime, wait};
use crate::store::{Key, NewObject, Published};

/// So much is on its way together.
const PIECE_BYTES: usize = 1 << 20;
/// So much is read back at once.
const BACK_BYTES: u64 = 1 << 20;
/// How long removing an unfinished file may hold up whoever gave it up; the janitor finds what is left.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a small object is written anew because the answer to its sync was lost.
const RENEWALS: usize = 3;

/// An object being written.
pub(super) struct Upload {
    file: Arc<Unfinished>,
    /// Bytes that are not on their way yet.
    buffer: Vec<u8>,
    flying: Option<JoinHandle<Answered<()>>>,
    /// Error of a piece, which is missing from then on.
    broken: Broken,
}

/// A file under a temporary name.
struct Unfinished {
    place: Arc<Place>,
    key: Key,
    /// Below the root of the place.
    temporary: String,
    open: Mutex<Option<Arc<Open>>>,
    taken: Mutex<Taken>,
    /// A sync was asked for.
    is_settling: AtomicBool,
    /// The answer to it was lost.
    is_unknown: AtomicBool,
}

/// The bytes that the server has taken.
#[derive(Default)]
struct Taken {
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Upload {
    /// Begins an object.
    pub(super) fn begin(place: &Arc<Place>, key: &Key) -> Result<Upload> {
        let temporary = place.temporary(&stem(key));
        let temporary = match key.parent() {
            Some(parent) => format!("{parent}/{temporary}"),
            None => temporary,
        };
        let file = Arc::new(Unfinished {
            place: Arc::clone(place),
            key: key.clone(),
            temporary,
            open: Mutex::new(None),
            taken: Mutex::default(),
            is_settling: AtomicBool::new(false),
            is_unknown: AtomicBool::new(false),
        });
        asked!(creating = file => creating.create())?;
        Ok(Upload {
            file,
            buffer: Vec::new(),
            flying: None,
            broken: Broken::default(),
        })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.broken.check(&self.file.key)?;
        self.buffer.extend_from_slice(bytes);
        let mut sent = Ok(());
        while sent.is_ok() && self.buffer.len() >= PIECE_BYTES {
            let rest = self.buffer.split_off(PIECE_BYTES);
            let piece = std::mem::replace(&mut self.buffer, rest);
            sent = self.send(piece);
        }
        self.broken.note(sent)
    }

    /// Sends a piece, when the one before it has arrived.
    fn send(&mut self, piece: Vec<u8>) -> Result<()> {
        self.land()?;
        let file = Arc::clone(&self.file);
        self.flying = Some(runtime()?.spawn(async move { file.write(piece).await }));
        Ok(())
    }

    /// Sends the rest, and publishes the object.
    fn finish(&mut self, rest: Vec<u8>) -> Result<Published> {
        if !rest.is_empty() {
            self.send(rest)?;
        }
        self.land()?;
        let file = Arc::clone(&self.file);
        Ok(wait(async move {
            file.settle().await?;
            file.name().await
        })??)
    }

    fn land(&mut self) -> Result<()> {
        if let Some(flying) = self.flying.take() {
            let landed = wait(flying)?;
            landed.map_err(|_| err!(Internal, "a piece ended without an answer"))??;
        }
        Ok(())
    }
}

fn lost_name() -> Failure {
    let what = err!(
        Unreachable,
        "the server has lost the name of the object before it was durable"
    );
    Failure::new(Kind::Final, what)
}

/// Names that are too long for a temporary one are cut: the random number behind it tells them apart.
fn stem(key: &Key) -> String {
    key.name().chars().take(100).collect()
}

write_by_take!(Upload);

impl NewObject for Upload {
    fn publish(mut self: Box<Self>) -> Result<Published> {
        self.broken.check(&self.file.key)?;
        let rest = std::mem::take(&mut self.buffer);
        let is_small = self.flying.is_none() && self.file.taken().0 == 0;
        let mut renewals = 0..RENEWALS;
        loop {
            let published = self.finish(rest.clone());
            let is_unknown = self.file.is_unknown.load(Ordering::Relaxed);
            if !is_small || !is_unknown || renewals.next().is_none() {
                return published;
            }
            // A file of its own, with a sync of its own, proves what the first one cannot.
            let (place, key) = (Arc::clone(&self.file.place), self.file.key.clone());
            *self = Upload::begin(&place, &key)?;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let flying = self.flying.take();
        let file = Arc::clone(&self.file);
        // Nobody connects anew for that.
        let Some(session) = file.place.link.current() else {
            return;
        };
        let _ = wait(async move {
            give_up(flying).await;
            file.close();
            let path = file.place.path(&file.temporary);
            tokio::time::timeout(PATIENCE, session.remove(&path)).await
        });
    }
}

impl Unfinished {
    fn doing(&self) -> String {
        format!("write object \"{}\"", self.key)
    }

    /// Creates the file, and its directories where they are missing.
    async fn create(&self) -> Answered<()> {
        let directory = self.key.parent().unwrap_or_default();
        let path = self.place.path(&self.temporary);
        let (path, place) = (path.as_str(), &self.place);
        self.place
            .link
            .run(&self.doing(), |session| async move {
                place.last(&session, directory).await?;
                // The one of an attempt whose answer was lost.
                let mut created = session.create(path).await;
                if let Err(failure) = &created {
                    match failure.kind {
                        // A janitor has removed the directory, which was empty.
                        Kind::Absent => {
                            place.forget();
                            place.last(&session, directory).await?;
                        }
                        Kind::Failed => {
                            let _ = session.remove(path).await;
                        }
                        _ => {}
                    }
                    if matches!(failure.kind, Kind::Absent | Kind::Failed) {
                        created = session.create(path).await;
                    }
                }
                match created {
                    Ok(open) => {
                        self.keep(open);
                        Ok(())
                    }
                    Err(failure) => Err(place.explained(&session, failure).await),
                }
            })
            .await
    }

    fn keep(&self, open: Open) -> Arc<Open> {
        let open = Arc::new(open);
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&open));
        open
    }

    fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn taken(&self) -> (u64, blake3::Hash) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        (taken.bytes, taken.hasher.finalize())
    }

    /// The open file; over another connection than before it is opened again, and read back.
    async fn opened(&self, session: &Arc<Session>) -> Answered<Arc<Open>> {
        let known = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.clone()
        };
        if let Some(open) = known.filter(|open| open.is_of(session)) {
            return Ok(open);
        }
        let lost = |how: String| {
            let what = err!(
                Unreachable,
                "the server has lost a part of what it had taken: {how}"
            );
            Failure::new(Kind::Final, what)
        };
        let path = self.place.path(&self.temporary);
        let open = match session.open_again(&path).await {
            Ok(open) => open,
            Err(failure) if failure.kind == Kind::Absent => {
                return Err(lost("the unfinished file is gone".to_owned()));
            }
            Err(failure) => return Err(failure),
        };
        let (bytes, hash) = self.taken();
        let mut hasher = blake3::Hasher::new();
        let mut done = 0;
        while done < bytes {
            let length = BACK_BYTES.min(bytes - done);
            let piece = match session.read(&open, done, length).await {
                Ok(piece) => piece,
                Err(failure) if failure.kind == Kind::End => {
                    return Err(lost("the unfinished file is too short".to_owned()));
                }
                Err(failure) => return Err(failure),
            };
            hasher.update(&piece);
            done += length;
        }
        if hasher.finalize() != hash {
            return Err(lost("the unfinished file has other bytes".to_owned()));
        }
        Ok(self.keep(open))
    }

    async fn write(&self, piece: Vec<u8>) -> Answered<()> {
        let (offset, _) = self.taken();
        let bytes = piece.as_slice();
        self.place
            .link
            .run(&self.doing(), |session| async move {
                let open = self.opened(&session).await?;
                match session.write(&open, offset, bytes).await {
                    Err(failure) => Err(self.place.explained(&session, failure).await),
                    written => written,
                }
            })
            .await?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.bytes += bytes.len() as u64;
        taken.hasher.update(bytes);
        Ok(())
    }

    /// Syncs the file. That is asked once: a server whose disk failed may answer the second time that all is well.
    async fn settle(&self) -> Answered<()> {
        self.place
            .link
            .run(&self.doing(), |session| async move {
                if self.is_settling.load(Ordering::Relaxed) {
                    self.is_unknown.store(true, Ordering::Relaxed);
                    let what = err!(Unreachable, "the answer to a sync was lost: whether the object would survive a power cut is not known");
                    return Err(what.into());
                }
                let open = self.opened(&session).await?;
                self.is_settling.store(true, Ordering::Relaxed);
                match session.settle(&open).await {
                    Err(failure) => Err(self.place.explained(&session, failure).await),
                    settled => settled,
                }
            })
            .await?;
        self.close();
        Ok(())
    }

    /// Gives the file its name, unless that is taken, and makes the name last.
    async fn name(&self) -> Answered<Published> {
        let (temporary, path) = (
            self.place.path(&self.temporary),
            self.place.path(self.key.as_str()),
        );
        let named = self
            .place
            .link
            .run(&self.doing(), |session| {
                let (temporary, path) = (&temporary, &path);
                async move {
                    session.name(temporary, path).await?;
                    Ok(session)
                }
            })
            .await;
        let linked = match named {
            Ok(session) => Some(session),
            Err(failure) if failure.kind == Kind::Again => return Err(failure),
            Err(failure) => {
                let is_taken = self.place.look(&self.key).await?.is_some();
                let is_own =
                    is_taken && failure.is_ambiguous && self.is_own(&temporary, &path).await?;
                match (is_taken, is_own) {
                    (true, true) => None,
                    (true, false) => return Ok(Published::Exists),
                    (false, _) if failure.is_ambiguous && failure.kind == Kind::Absent => {
                        return Err(lost_name());
                    }
                    (false, _) => return Err(self.unnamed(failure).await),
                }
            }
        };
        self.settle_name(&path, linked.as_ref()).await?;
        Ok(Published::Created)
    }

    /// Makes the name last. A server that was lost since it took the name over another connection may have lost the name: then the sync proves
    /// nothing, and the name is looked at behind it.
    async fn settle_name(&self, path: &str, linked: Option<&Arc<Session>>) -> Answered<()> {
        let directory = self.place.path(self.key.parent().unwrap_or_default());
        let directory = directory.as_str();
        self.place
            .link
            .run(&self.doing(), |session| async move {
                session.settle_names(directory).await?;
                if linked.is_some_and(|linked| Arc::ptr_eq(linked, &session)) {
                    return Ok(());
                }
                match session.look(path).await {
                    Ok(_) => Ok(()),
                    Err(failure) if failure.kind == Kind::Absent => Err(lost_name()),
                    Err(failure) => Err(failure),
                }
            })
            .await
    }

    /// Why there is no name, where it is free.
    async fn unnamed(&self, failure: Failure) -> Failure {
        if failure.error.code() == Code::Denied {
            let error = failure.error.hint(
                "The account may not link files in the repository, or its filesystem has no hard links: a repository needs them.",
            );
            return Failure { error, ..failure };
        }
        match self.place.link.current() {
            Some(session) => self.place.explained(&session, failure).await,
            None => failure,
        }
    }

    /// Whether both names are of one file: a date that is set by one of them is read by the other. The protocol tells neither inodes nor
    /// numbers of links.
    async fn is_own(&self, temporary: &str, path: &str) -> Answered<bool> {
        self.place
            .link
            .run(&self.doing(), |session| async move {
                let own = match session.look(temporary).await {
                    Ok(facts) => facts,
                    Err(failure) if failure.kind == Kind::Absent => return Ok(false),
                    Err(failure) => return Err(failure),
                };
                let before = session.look(path).await?;
                let mark = mark(own.accessed, before.accessed);
                session.set_accessed(temporary, mark, own.modified).await?;
                Ok(session.look(path).await?.accessed == mark)
            })
            .await
    }
}

/// A date that neither of two is.
fn mark(one: u32, other: u32) -> u32 {
    (1..=3)
        .map(|n| one.wrapping_sub(n) & 0x7fff_ffff)
        .find(|mark| *mark != one && *mark != other)
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_new() {
        for (one, other) in [(0, 0), (5, 4), (5, 5), (u32::MAX, 1)] {
            let mark = mark(one, other);
            assert!(mark != one && mark != other, "{one} {other}: {mark}");
        }
    }
}
