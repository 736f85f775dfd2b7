//! Reading: ranges of an object, its end first, and what follows a piece that was read before it is asked for.

use std::sync::Arc;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ObjectLockLegalHoldStatus, ObjectLockMode};
use bytes::Bytes;

use super::request::Bucket;
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::store::ahead::{AHEAD_MAX, Ahead, TAIL_BYTES};
use crate::store::http::failure::{Answered, Failure, Kind, shown};
use crate::store::http::{SIGN_BYTES, answered_range};
use crate::store::runtime::{asked, wait};
use crate::store::{Key, Meta, Object, life};

/// A piece of an object, and what the answer says about the whole.
pub(super) struct Piece {
    offset: u64,
    pub(super) bytes: Bytes,
    pub(super) meta: Meta,
    lock: Option<Lock>,
}

/// The mode of an object on which a legal hold lies.
const HELD: &str = "legal hold";

/// Until when the store keeps an object, whoever deletes it.
pub(super) struct Lock {
    /// Seconds since 1970; none while it is held without a date.
    until: Option<i64>,
    mode: String,
}

impl Lock {
    pub(super) fn of(answer: &GetObjectOutput) -> Option<Lock> {
        let held = answer.object_lock_legal_hold_status();
        let until = answer.object_lock_retain_until_date();
        Lock::read(held, until, answer.object_lock_mode())
    }

    fn of_head(answer: &HeadObjectOutput) -> Option<Lock> {
        let held = answer.object_lock_legal_hold_status();
        let until = answer.object_lock_retain_until_date();
        Lock::read(held, until, answer.object_lock_mode())
    }

    fn read(
        held: Option<&ObjectLockLegalHoldStatus>,
        until: Option<&DateTime>,
        mode: Option<&ObjectLockMode>,
    ) -> Option<Lock> {
        if held == Some(&ObjectLockLegalHoldStatus::On) {
            let mode = HELD.to_owned();
            return Some(Lock { until: None, mode });
        }
        let until = Some(until?.secs());
        let mode = mode.map_or("locked", |m| m.as_str());
        Some(Lock {
            until,
            mode: shown(&mode.to_lowercase()),
        })
    }
}

impl Lock {
    /// Requires that it is over at this time, in seconds since 1970.
    ///
    /// # Errors
    /// `Locked`, saying until when.
    pub(super) fn check(&self, now: Option<i64>) -> Result<()> {
        let until = match (self.until, now) {
            (Some(until), Some(now)) if until <= now => return Ok(()),
            (Some(until), _) => TimestampTz::from_unix_seconds(until),
            (None, _) => None,
        };
        let until = until.map_or_else(|| "for good".to_owned(), |t| format!("until {t}"));
        Err(err!(Locked, "kept by the store {until} ({})", self.mode))
    }
}

impl Piece {
    /// Whether a legal hold lies on the object.
    pub(super) fn is_held(&self) -> bool {
        self.lock.as_ref().is_some_and(|lock| lock.mode == HELD)
    }

    /// Whether it shows that the bucket locks objects, also where its own lock is over.
    pub(super) fn has_lock(&self) -> bool {
        self.lock.is_some()
    }

    /// The end of the object's retention; none of one that has none.
    ///
    /// # Errors
    /// `Locked` under a legal hold, which has no end.
    pub(super) fn kept_until(&self) -> Result<Option<TimestampTz>> {
        let Some(lock) = &self.lock else {
            return Ok(None);
        };
        match lock.until {
            Some(until) => Ok(TimestampTz::from_unix_seconds(until)),
            None => lock.check(None).map(|()| None),
        }
    }

    /// Requires that the object is not locked at this time, in seconds since 1970.
    ///
    /// # Errors
    /// `Locked`, saying until when.
    pub(super) fn check_lock(&self, now: Option<i64>) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.check(now))
    }
}

/// The part of an object to read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// The last bytes, or all where there are fewer.
    Last(u64),
    /// From an offset, so many; all of them must be there.
    From(u64, u64),
}

impl Part {
    fn header(self) -> String {
        match self {
            Part::Last(bytes) => format!("bytes=-{bytes}"),
            Part::From(offset, bytes) => {
                format!(
                    "bytes={offset}-{}",
                    offset.saturating_add(bytes.saturating_sub(1))
                )
            }
        }
    }
}

/// Reads a part of an object; `None` is the store's own word that there is no such object.
pub(super) async fn fetch(bucket: &Bucket, key: &str, part: Part) -> Answered<Option<Piece>> {
    let doing = format!("read object \"{key}\"");
    let fetched = bucket
        .run(&doing, |client| async move {
            let request = client.get_object().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key));
            let answer = request.range(part.header()).send().await;
            let answer = answer.inspect_err(|e| bucket.markers.see(key, e))?;
            // An error, or somebody's page, in the body of a success has none.
            if answer.e_tag().is_none_or(str::is_empty) {
                return Err(Failure::again("the store's answer names no object"));
            }
            check_encoding(answer.content_encoding())?;
            let whole = || length_of(answer.content_length());
            let (offset, end, size) = answered_range(answer.content_range(), whole)?;
            check(part, offset, end, size)?;
            let modified = time(answer.last_modified())?;
            let lock = Lock::of(&answer);
            let bytes = collect(answer.body, end - offset).await?;
            Ok(Piece {
                offset,
                bytes,
                meta: Meta {
                    size_bytes: size,
                    modified,
                },
                lock,
            })
        })
        .await;
    match fetched {
        Ok(piece) => Ok(Some(piece)),
        Err(failure) if failure.kind == Kind::Absent => Ok(None),
        // Nothing can be asked of an empty object.
        Err(failure) if failure.kind == Kind::Range => empty(bucket, key, part, failure).await,
        Err(failure) => Err(failure),
    }
}

/// Reads a byte of an object, for what the answer says about the whole. One that must be thawed first is there: its head says the rest.
pub(super) async fn look(bucket: &Bucket, key: &str) -> Answered<Option<Piece>> {
    match fetch(bucket, key, Part::From(0, 1)).await {
        Err(failure) if failure.error.is_frozen() => head_of_frozen(bucket, key).await.map(Some),
        other => other,
    }
}

/// Asks for the head of an object.
pub(super) async fn head(bucket: &Bucket, key: &str) -> Answered<HeadObjectOutput> {
    bucket
        .run(&format!("look at object \"{key}\""), |client| async move {
            let request = client.head_object().bucket(&bucket.bucket);
            Ok(request.key(bucket.full(key)).send().await?)
        })
        .await
}

async fn head_of_frozen(bucket: &Bucket, key: &str) -> Answered<Piece> {
    let head = head(bucket, key).await?;
    Ok(Piece {
        offset: 0,
        bytes: Bytes::new(),
        meta: Meta {
            size_bytes: length_of(head.content_length())?,
            modified: time(head.last_modified())?,
        },
        lock: Lock::of_head(&head),
    })
}

/// A range was refused: of an empty object that is no error.
async fn empty(
    bucket: &Bucket,
    key: &str,
    part: Part,
    refused: Failure,
) -> Answered<Option<Piece>> {
    let head = head(bucket, key).await?;
    let wanted = match part {
        Part::Last(_) => 0,
        Part::From(offset, bytes) => offset.saturating_add(bytes),
    };
    if head.content_length() != Some(0) || wanted > 1 {
        return Err(refused);
    }
    let meta = Meta {
        size_bytes: 0,
        modified: time(head.last_modified())?,
    };
    Ok(Some(Piece {
        offset: 0,
        bytes: Bytes::new(),
        meta,
        lock: None,
    }))
}

/// The length in an answer.
pub(super) fn length_of(header: Option<i64>) -> Answered<u64> {
    let length = header.and_then(|n| u64::try_from(n).ok());
    length.ok_or_else(|| Failure::again("the answer has no length"))
}

/// Refuses an answer in an unknown encoding. Something on the way may compress the answer, or a program that copied the
/// object gave it the header. Nothing tells these two apart, so the header says nothing about what is stored.
fn check_encoding(encoding: Option<&str>) -> Answered<()> {
    // "aws-chunked" is how it once was sent, which some stores keep.
    let is_plain = |name: &str| ["", "identity", "aws-chunked"].contains(&name.trim());
    let encoding = encoding.unwrap_or_default().to_ascii_lowercase();
    match encoding.split(',').all(is_plain) {
        true => Ok(()),
        false => Err(Failure::new(
            Kind::Final,
            err!(Unreachable, "the answer is encoded as \"{}\", which says nothing about what is stored", shown(&encoding))
                .hint("Something between this host and the store compresses what passes, or whoever copied the object gave it this Content-Encoding: pitr gives none. Have the endpoint deliver objects as they were written."),
        )),
    }
}

/// An answer about another range than the one asked for is none.
fn check(part: Part, offset: u64, end: u64, size: u64) -> Answered<()> {
    let is_right = offset <= end
        && end <= size
        && match part {
            Part::Last(bytes) => end == size && end - offset == size.min(bytes),
            // A byte may be asked of an object that is empty: some stores answer it whole.
            Part::From(0, 0 | 1) if size == 0 => true,
            Part::From(from, bytes) => offset == from && end - offset == bytes,
        };
    match is_right {
        true => Ok(()),
        // The object ends inside the range, which is not the store's fault.
        false if matches!(part, Part::From(from, _) if from == offset && end == size) => {
            Err(Failure::new(Kind::Final, err!(Damaged, "the object ends at byte {size}")))
        }
        false => Err(Failure::new(
            Kind::Final,
            err!(Unreachable, "the store ignores ranges: asked for {}, it sends bytes {offset} to {end} of {size}", part.header())
                .hint("A proxy or a store that cannot read parts of objects is no place for a repository."),
        )),
    }
}

/// Exactly `length` bytes; a body that ends before is a broken connection.
pub(super) async fn collect(mut body: ByteStream, length: u64) -> Answered<Bytes> {
    let length = usize::try_from(length).map_err(|_| Failure::again("the answer is too long"))?;
    let mut bytes =
        Vec::with_capacity(length.min(usize::try_from(AHEAD_MAX).unwrap_or(usize::MAX)));
    let mut unsigned = 0;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|e| {
            Failure::again(format!(
                "the answer broke off after {} of {length} bytes: {e}",
                bytes.len()
            ))
        })?;
        if bytes.len() + piece.len() > length {
            return Err(Failure::again(format!(
                "the answer is longer than its {length} bytes"
            )));
        }
        bytes.extend_from_slice(&piece);
        // A byte now and then is none (`attempt`).
        unsigned += piece.len();
        if unsigned >= SIGN_BYTES {
            unsigned = 0;
            life::sign();
        }
    }
    match bytes.len() == length {
        true => {
            life::sign();
            Ok(bytes.into())
        }
        false => Err(Failure::again(format!(
            "the answer broke off after {} of {length} bytes",
            bytes.len()
        ))),
    }
}

/// A date of the store; a missing one is not guessed, for what is old is deleted.
pub(super) fn time(time: Option<&DateTime>) -> Answered<TimestampTz> {
    time.and_then(|t| TimestampTz::from_unix_seconds(t.secs()))
        .ok_or_else(|| Failure::again("the store's answer has no date"))
}

/// An object open for reading.
pub(super) struct S3Object {
    bucket: Arc<Bucket>,
    key: Key,
    meta: Meta,
    ahead: Ahead,
}

impl S3Object {
    /// Opens an object by reading its end.
    pub(super) fn open(bucket: &Arc<Bucket>, key: &Key) -> Result<Option<S3Object>> {
        let tail = read(bucket, key, Part::Last(TAIL_BYTES))?;
        Ok(tail.map(|tail| S3Object {
            bucket: Arc::clone(bucket),
            key: key.clone(),
            meta: tail.meta,
            ahead: Ahead::new(tail.meta.size_bytes, tail.offset, tail.bytes),
        }))
    }

    /// All of a range, which must be that of the same object.
    fn fetch(&self, offset: u64, bytes: u64) -> Result<Bytes> {
        let key = &self.key;
        let Some(piece) = read(&self.bucket, key, Part::From(offset, bytes))? else {
            return Err(err!(Damaged, "object \"{key}\" is gone while it is read"));
        };
        match piece.meta.size_bytes == self.size_bytes() {
            true => Ok(piece.bytes),
            false => Err(err!(Damaged, "object \"{key}\" changed while it was read")),
        }
    }
}

/// Waits for [`look`].
pub(super) fn glance(bucket: &Arc<Bucket>, key: &Key) -> Result<Option<Piece>> {
    asked!(bucket = bucket, key = key => look(&bucket, key.as_str()))
}

/// Waits for [`fetch`].
pub(super) fn read(bucket: &Arc<Bucket>, key: &Key, part: Part) -> Result<Option<Piece>> {
    let (bucket, key) = (Arc::clone(bucket), key.clone());
    Ok(wait(
        async move { fetch(&bucket, key.as_str(), part).await },
    )??)
}

impl Object for S3Object {
    fn size_bytes(&self) -> u64 {
        self.ahead.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let fetch = |offset, bytes| self.fetch(offset, bytes);
        self.ahead.read_at(&self.key, buffer, offset, fetch)
    }

    /// The store acknowledges only what is durable.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn meta(&self) -> Option<Meta> {
        Some(self.meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::store::http::range_of;

    #[test]
    fn ranges_of_answers_are_read_and_checked() {
        assert_eq!(range_of("bytes 0-9/100"), Some((0, 10, 100)));
        for wrong in [
            "bytes */100",
            "bytes 0-9/*",
            "0-9/100",
            "bytes 0-18446744073709551615/1",
            "",
        ] {
            assert_eq!(range_of(wrong), None, "{wrong}");
        }
        assert!(check(Part::Last(10), 90, 100, 100).is_ok());
        assert!(check(Part::Last(10), 0, 5, 5).is_ok());
        assert!(check(Part::From(10, 5), 10, 15, 100).is_ok());
        assert!(check(Part::From(0, 1), 0, 0, 0).is_ok());
        assert!(check(Part::From(0, 2), 0, 0, 0).is_err());
        for (part, offset, end, size, code) in [
            (Part::Last(10), 0, 100, 100, Code::Unreachable),
            (Part::Last(10), 80, 90, 100, Code::Unreachable),
            (Part::From(10, 5), 0, 5, 100, Code::Unreachable),
            (Part::From(10, 5), 15, 10, 100, Code::Unreachable),
            (Part::From(10, 5), 10, 12, 12, Code::Damaged),
        ] {
            let failure = check(part, offset, end, size).unwrap_err();
            assert_eq!(failure.error.code(), code, "{part:?} {offset}-{end}/{size}");
        }
    }

    #[test]
    fn an_answer_that_is_encoded_is_none_about_the_object() {
        for plain in [
            None,
            Some(""),
            Some("identity"),
            Some("aws-chunked"),
            Some("AWS-Chunked, identity"),
        ] {
            assert!(check_encoding(plain).is_ok(), "{plain:?}");
        }
        for other in ["gzip", "aws-chunked,gzip", "br", "x\n"] {
            let failure = check_encoding(Some(other)).unwrap_err();
            assert_eq!(
                (failure.kind, failure.error.code()),
                (Kind::Final, Code::Unreachable),
                "{other}"
            );
        }
    }
}
