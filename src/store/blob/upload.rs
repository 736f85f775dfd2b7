//! Writing: one conditional request for an object that fits into one, parts and a conditional end for a larger one.
//!
//! The commit point is the one request that names the object: Azure's Put Blob or Put Block List with `If-None-Match: *`, Google's upload or
//! last part with `ifGenerationMatch=0`. An attempt of it may get no answer, and a later one the answer that the name is taken. Then the mark
//! that the upload left on the object tells whose it is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::object::{self, Head, fetch};
use super::request::{Answer, Place};
use super::{azure, google};
use crate::config::BlobService;
use crate::err;
use crate::error::{Code, Result};
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::Purpose;
use crate::store::parts::{Broken, give_up, write_by_take};
use crate::store::runtime::{asked, runtime, wait};
use crate::store::{Key, NewObject, Published};

/// A part of a large object. Google wants multiples of 256 KiB.
const PART_BYTES: usize = 8 << 20;
/// A segment of 16 MiB is one request, however badly it compresses.
const SEGMENT_BYTES: usize = 20 << 20;
/// So much of its end is read back of an object that the service has not confirmed.
const TAIL_BYTES: usize = 64 << 10;
/// How long taking back an upload may hold up whoever gave it up; the service forgets it after a week.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many bytes of an object one request takes.
fn whole_max(key: &str) -> usize {
    match key.split('/').any(|part| part == "wal") {
        true => SEGMENT_BYTES,
        false => PART_BYTES,
    }
}

/// How many requests store an object of this length, each tried once.
pub fn put_requests(key: &str, size_bytes: u64) -> u64 {
    match size_bytes <= whole_max(key) as u64 {
        true => 1,
        // One more names it, or opens it.
        false => size_bytes.div_ceil(PART_BYTES as u64) + 1,
    }
}

/// An object being written.
pub(super) struct Upload {
    place: Arc<Place>,
    key: Key,
    mark: String,
    /// Bytes that no request has taken yet.
    buffer: Vec<u8>,
    parts: Option<Parts>,
    /// The service said before the end that the name is taken.
    is_taken: bool,
    /// Error of a part, which is missing from then on.
    broken: Broken,
    size: u64,
    /// CRC-32C of all bytes.
    sum: u32,
    /// The last of them that one request took.
    end: Bytes,
}

impl Upload {
    pub(super) fn new(place: &Arc<Place>, key: &Key) -> Upload {
        Upload {
            mark: format!("{:016x}{:016x}", place.random.draw(), place.random.draw()),
            place: Arc::clone(place),
            key: key.clone(),
            buffer: Vec::new(),
            parts: None,
            is_taken: false,
            broken: Broken::default(),
            size: 0,
            sum: 0,
            end: Bytes::new(),
        }
    }

    /// Takes bytes, and sends a part once there are more than one request takes. Nothing comes behind a part that was not sent.
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.broken.check(&self.key)?;
        self.size += bytes.len() as u64;
        if self.is_taken {
            return Ok(());
        }
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.buffer.extend_from_slice(bytes);
        let drained = self.drain();
        self.broken.note(drained)
    }

    /// Something always remains for the last request.
    fn drain(&mut self) -> Result<()> {
        while self.parts.is_some() && self.buffer.len() > PART_BYTES
            || self.buffer.len() > whole_max(self.key.as_str())
        {
            if self.parts.is_none() {
                match Parts::begin(&self.place, &self.key, &self.mark) {
                    Ok(parts) => self.parts = Some(parts),
                    Err(failure) if failure.kind == Kind::Taken => {
                        self.is_taken = true;
                        self.buffer = Vec::new();
                        return Ok(());
                    }
                    Err(failure) => return Err(failure.error),
                }
            }
            let rest = self.buffer.split_off(PART_BYTES.min(self.buffer.len()));
            let part = Bytes::from(std::mem::replace(&mut self.buffer, rest));
            if let Some(parts) = &mut self.parts {
                parts.send(part, None)?;
            }
        }
        Ok(())
    }

    /// Sends the request that names the object; whether the service has confirmed all bytes.
    fn send_last(&mut self) -> Answered<bool> {
        let rest = Bytes::from(std::mem::take(&mut self.buffer));
        self.end = rest.clone();
        let (size, sum) = (self.size, self.sum);
        match self.parts.take() {
            Some(parts) => parts.complete(rest, size, sum),
            None => {
                let (place, key) = (Arc::clone(&self.place), self.key.clone());
                let mark = self.mark.clone();
                wait(async move { put(&place, &key, &mark, rest, sum).await })?
            }
        }
    }

    fn read_back(&self) -> Result<()> {
        let last = self.end.len().min(TAIL_BYTES);
        let wanted = self.end.slice(self.end.len() - last..);
        let from = self.size - last as u64;
        let (place, key) = (Arc::clone(&self.place), self.key.clone());
        let piece =
            wait(async move { fetch(&place, key.as_str(), from, last.max(1) as u64).await })?;
        let is_it = piece?.is_some_and(|p| p.size_bytes == self.size && p.bytes == wanted);
        match is_it {
            true => Ok(()),
            false => Err(err!(ReadBack, "object \"{}\" does not read back as it was written", self.key)
                .hint("Nothing is acknowledged. Something in the store or on the way to it changes objects: see \"pitr repo check\".")),
        }
    }

    /// Returns whether this upload took the name, when an attempt without an answer may have done so.
    fn whose(&self) -> Result<Published> {
        let found = asked!(own = self.place, key = self.key => object::head(&own, key.as_str()))?;
        match found {
            Some(Head {
                mark: Some(mark), ..
            }) if mark == self.mark => {
                self.read_back()?;
                Ok(Published::Created)
            }
            Some(_) => Ok(Published::Exists),
            // An upload that the service gave up answers like one that it completed.
            None => Err(err!(
                Unreachable,
                "the store ended the upload of object \"{}\", and does not have it",
                self.key
            )
            .hint("Nothing is acknowledged. The next attempt begins the object anew.")),
        }
    }
}

write_by_take!(Upload);

impl NewObject for Upload {
    fn publish(mut self: Box<Self>) -> Result<Published> {
        self.broken.check(&self.key)?;
        if self.is_taken {
            return Ok(Published::Exists);
        }
        match self.send_last() {
            Ok(true) => Ok(Published::Created),
            Ok(false) => self.read_back().map(|()| Published::Created),
            // The answer to an earlier attempt was lost: perhaps that one is what took the name.
            Err(failure) if failure.kind == Kind::Taken && failure.is_ambiguous => self.whose(),
            Err(failure) if failure.kind == Kind::Taken => Ok(Published::Exists),
            Err(failure) => Err(failure.error),
        }
    }
}

async fn put(place: &Place, key: &Key, mark: &str, body: Bytes, sum: u32) -> Answered<bool> {
    let doing = format!("write object \"{key}\"");
    let size = body.len() as u64;
    match &place.client.service {
        BlobService::Azure { .. } => {
            let ask = azure::put(place, key.as_str(), mark, body);
            let read = |answer: Answer| created(&answer).map(|()| azure::confirms(&answer, &ask));
            place.run_as(Purpose::Creating, &doing, &ask, read).await
        }
        BlobService::Google => {
            let ask = google::put(place, key.as_str(), mark, &body, sum);
            let read = |answer: Answer| confirmed(&answer, size, sum);
            place.run_as(Purpose::Creating, &doing, &ask, read).await
        }
    }
}

/// A page of somebody in between names no object.
fn created(answer: &Answer) -> Answered<()> {
    match answer.status == 201 && answer.header("etag").is_some() {
        true => Ok(()),
        false => Err(Failure::again("the store's answer names no stored object")),
    }
}

/// Whether Google has received these bytes; none where it does not say a checksum.
fn confirmed(answer: &Answer, size: u64, sum: u32) -> Answered<bool> {
    let head = google::facts(answer)?;
    match (head.meta.size_bytes == size, head.sum) {
        (true, Some(theirs)) if theirs == sum => Ok(true),
        (true, None) => Ok(false),
        _ => Err(Failure::new(
            Kind::Final,
            err!(ReadBack, "the store has other bytes than were sent")
                .hint("Nothing is acknowledged. Something in the store or on the way to it changes objects: see \"pitr repo check\"."),
        )),
    }
}

/// An upload in parts: one is on its way while the next one is filled.
struct Parts {
    place: Arc<Place>,
    key: Key,
    mark: String,
    /// Google's address of the upload.
    session: String,
    /// Azure's names of the parts.
    ids: Vec<String>,
    /// Bytes that were handed on.
    sent: u64,
    is_confirmed: bool,
    flying: Option<JoinHandle<Answered<bool>>>,
    is_over: bool,
}

impl Parts {
    fn begin(place: &Arc<Place>, key: &Key, mark: &str) -> Answered<Parts> {
        let session = match &place.client.service {
            BlobService::Azure { .. } => String::new(),
            BlobService::Google => {
                let (place, key, mark) = (Arc::clone(place), key.clone(), mark.to_owned());
                wait(async move {
                    let ask = google::begin(&place, key.as_str(), &mark);
                    let doing = format!("begin object \"{key}\"");
                    let read = |answer: Answer| google::session(&place, &answer);
                    place.run_as(Purpose::Creating, &doing, &ask, read).await
                })??
            }
        };
        Ok(Parts {
            place: Arc::clone(place),
            key: key.clone(),
            mark: mark.to_owned(),
            session,
            ids: Vec::new(),
            sent: 0,
            is_confirmed: true,
            flying: None,
            is_over: false,
        })
    }

    /// Sends the next part, when the one before it has arrived.
    fn send(&mut self, body: Bytes, whole: Option<(u64, u32)>) -> Answered<()> {
        self.land()?;
        let (place, key, from) = (Arc::clone(&self.place), self.key.clone(), self.sent);
        self.sent += body.len() as u64;
        self.flying = Some(match &self.place.client.service {
            BlobService::Azure { .. } => {
                let id = azure::block_id(&self.mark, self.ids.len());
                self.ids.push(id.clone());
                if self.ids.len() > azure::BLOCKS_MAX {
                    return Err(err!(Refused, "object \"{key}\" is too large for the store").into());
                }
                runtime()?.spawn(async move { block(&place, &key, &id, body).await })
            }
            BlobService::Google => {
                let session = self.session.clone();
                runtime()?
                    .spawn(async move { chunk(&place, &key, &session, from, body, whole).await })
            }
        });
        Ok(())
    }

    /// Waits for the part that is on its way.
    fn land(&mut self) -> Answered<()> {
        if let Some(flying) = self.flying.take() {
            let landed = wait(flying)?;
            let landed = landed.map_err(|_| err!(Internal, "a part ended without an answer"))?;
            self.is_confirmed &= landed?;
        }
        Ok(())
    }

    /// Sends the last part, and names the object; whether all bytes are confirmed.
    fn complete(mut self, rest: Bytes, size: u64, sum: u32) -> Answered<bool> {
        let named = match &self.place.client.service {
            BlobService::Google => {
                // The part before is confirmed with the whole.
                self.land()?;
                self.is_confirmed = true;
                self.send(rest, Some((size, sum)))?;
                self.land()
            }
            BlobService::Azure { .. } => {
                self.send(rest, None)?;
                self.land()?;
                let (place, key) = (Arc::clone(&self.place), self.key.clone());
                let (mark, ids) = (self.mark.clone(), std::mem::take(&mut self.ids));
                wait(async move { commit(&place, &key, &mark, &ids).await })?
            }
        };
        // An upload that the service may still be completing is not taken back.
        self.is_over = match &named {
            Ok(()) => true,
            Err(failure) => failure.is_ambiguous,
        };
        named?;
        Ok(self.is_confirmed)
    }
}

impl Drop for Parts {
    /// Blocks of Azure have no upload that could be taken back: they are forgotten after a week.
    fn drop(&mut self) {
        let flying = self.flying.take();
        if self.is_over || (self.session.is_empty() && flying.is_none()) {
            return;
        }
        let (place, session) = (Arc::clone(&self.place), std::mem::take(&mut self.session));
        let _ = wait(async move {
            give_up(flying).await;
            if !session.is_empty() {
                let ask = google::cancel(&session);
                let taken_back = place.run("take back an upload", &ask, |_| Ok(()));
                let _ = tokio::time::timeout(PATIENCE, taken_back).await;
            }
        });
    }
}

async fn block(place: &Place, key: &Key, id: &str, body: Bytes) -> Answered<bool> {
    let doing = format!("write a part of object \"{key}\"");
    let ask = azure::block(place, key.as_str(), id, body);
    let read = |answer: Answer| match answer.status {
        201 => Ok(azure::confirms(&answer, &ask)),
        _ => Err(Failure::again("the store's answer names no part")),
    };
    place.run(&doing, &ask, read).await
}

async fn commit(place: &Place, key: &Key, mark: &str, ids: &[String]) -> Answered<()> {
    let doing = format!("complete object \"{key}\"");
    let ask = azure::commit(place, key.as_str(), mark, ids);
    let read = |answer: Answer| created(&answer);
    let done = place.run_as(Purpose::Completing, &doing, &ask, read).await;
    match done {
        // Blocks are gone when the blob was made, by an attempt of ours or by somebody else: whose it is tells its mark.
        Err(failure) if failure.is_upload_gone => match object::head(place, key.as_str()).await? {
            None => Err(failure),
            Some(_) => Err(Failure {
                kind: Kind::Taken,
                is_ambiguous: true,
                ..failure
            }),
        },
        other => other,
    }
}

/// Sends bytes from an offset until all of them are stored. Bytes that are sent once more, because an answer was lost, are passed over by the
/// service. `whole` is length and checksum of the object that ends with these bytes.
async fn chunk(
    place: &Place,
    key: &Key,
    session: &str,
    from: u64,
    body: Bytes,
    whole: Option<(u64, u32)>,
) -> Answered<bool> {
    let doing = format!("write a part of object \"{key}\"");
    let end = from + body.len() as u64;
    let purpose = match whole {
        None => Purpose::Creating,
        Some(_) => Purpose::Completing,
    };
    let (mut at, mut was_tried, mut is_asked) = (from, false, false);
    loop {
        let ask = match is_asked {
            true => google::progress(session, whole.map_or(end, |(size, _)| size)),
            false => {
                let rest = body.slice(usize::try_from(at - from).unwrap_or(body.len())..);
                google::part(session, at, rest, whole.map(|(size, _)| size))
            }
        };
        let read = |answer: Answer| match (answer.status, whole) {
            (308, _) => match google::stored(&answer)? {
                // All bytes are no object yet: only another answer says that one was made of them.
                stored if stored >= end && is_asked => {
                    Err(Failure::again("the store does not end the upload"))
                }
                stored => Ok(Taken::UpTo(stored)),
            },
            (_, Some((size, sum))) => confirmed(&answer, size, sum).map(Taken::Object),
            (_, None) => Err(Failure::again("the store ends an upload before its end")),
        };
        let taken = match place.run_as(purpose, &doing, &ask, read).await {
            // An attempt without an answer may have ended the upload.
            Err(failure) if failure.is_upload_gone && (failure.is_ambiguous || was_tried) => {
                return Err(Failure {
                    kind: Kind::Taken,
                    is_ambiguous: true,
                    ..failure
                });
            }
            // The answer to one that never was.
            Err(failure) if failure.kind == Kind::Absent => {
                return Err(Failure {
                    kind: Kind::Final,
                    error: failure.error.with_code(Code::Unreachable),
                    ..failure
                });
            }
            other => other?,
        };
        match taken {
            Taken::Object(is_confirmed) => return Ok(is_confirmed),
            Taken::UpTo(stored) if stored >= end && whole.is_none() => return Ok(true),
            Taken::UpTo(stored) if stored >= end => (is_asked, was_tried) = (true, true),
            Taken::UpTo(stored) if stored > at => {
                (at, is_asked, was_tried) = (stored, false, true);
            }
            Taken::UpTo(stored) => {
                return Err(Failure::new(
                    Kind::Final,
                    err!(
                        Unreachable,
                        "could not {doing}: the store keeps {stored} bytes of {end}"
                    ),
                ));
            }
        }
    }
}

/// The state of an upload at Google.
enum Taken {
    /// Bytes up to an offset.
    UpTo(u64),
    /// The object; whether it said that it is ours.
    Object(bool),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_objects_take_requests_for_their_parts() {
        let mib = |n: u64| n << 20;
        for (key, size, requests) in [
            ("clusters/a/7/packs/b/000000", mib(8), 1),
            ("clusters/a/7/packs/b/000000", mib(8) + 1, 3),
            ("clusters/a/7/wal/00000001/00000000/x", mib(16), 1),
        ] {
            assert_eq!(put_requests(key, size), requests, "{key} {size}");
        }
    }
}
