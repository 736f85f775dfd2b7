//! Writing: one conditional request for an object that fits into one, parts and a conditional completion for a larger
//! one.
//!
//! The commit point is the one request that names the object: `PutObject` or `CompleteMultipartUpload`, with
//! `If-None-Match: *`. An attempt of it may get no answer, and a later one the answer that the name is taken. Then a
//! mark that the upload left on the object tells whether this upload took the name.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use bytes::Bytes;

use super::checksum::{self, Confirmed, check_sum, checksum};
use super::client::wait;
use super::headers::{self, Condition, MARK, Sort, dressed_put};
use super::listing;
use super::multipart::Multipart;
use super::object::{Part, head, read};
use super::request::Bucket;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::Purpose;
use crate::store::parts::{Broken, write_by_take};
use crate::store::{Key, NewObject, Published};

/// A part of a multipart upload; the least that stores accept is 5 MiB.
pub(super) const PART_BYTES: usize = 8 << 20;
/// A segment of 16 MiB is one request, however badly it compresses: its frame and index come on top.
const SEGMENT_BYTES: usize = 20 << 20;
/// So much of its end is read back of an object that the store has not confirmed.
const TAIL_BYTES: usize = 64 << 10;
/// No tombstone is longer: what is shorter might be one.
const TOMBSTONE_MAX: u64 = 512;

/// An object being written.
pub(super) struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    mark: String,
    /// Bytes that no request has taken yet.
    buffer: Vec<u8>,
    /// Bytes that one request may take; a larger object takes several.
    whole_max: usize,
    multipart: Option<Multipart>,
    /// Error of a part, which is missing from then on.
    broken: Broken,
    /// How many bytes were written.
    size: u64,
    /// The last of them that one request took.
    end: Bytes,
}

/// How many bytes of an object one request takes; a larger one goes in parts.
fn whole_max(key: &Key) -> usize {
    match Sort::of(key) {
        Sort::Wal => SEGMENT_BYTES,
        Sort::Pack | Sort::Other => PART_BYTES,
    }
}

/// How many requests store an object of this length, each tried once.
pub fn put_requests(key: &str, size_bytes: u64) -> u64 {
    let whole = Key::new(key).map_or(PART_BYTES, |key| whole_max(&key));
    match size_bytes <= whole as u64 {
        true => 1,
        // The first opens the upload, and the last completes it.
        false => size_bytes.div_ceil(PART_BYTES as u64) + 2,
    }
}

impl Upload {
    pub(super) fn new(bucket: &Arc<Bucket>, key: &Key) -> Upload {
        Upload {
            mark: format!("{:016x}{:016x}", bucket.random.draw(), bucket.random.draw()),
            bucket: Arc::clone(bucket),
            key: key.clone(),
            buffer: Vec::new(),
            whole_max: whole_max(key),
            multipart: None,
            broken: Broken::default(),
            size: 0,
            end: Bytes::new(),
        }
    }

    /// Takes bytes, and sends a part once there are more than one request takes. Nothing comes behind a part that was not sent.
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.broken.check(&self.key)?;
        self.buffer.extend_from_slice(bytes);
        self.size += bytes.len() as u64;
        let drained = self.drain();
        self.broken.note(drained)
    }

    fn drain(&mut self) -> Result<()> {
        while self.multipart.is_some() && self.buffer.len() >= PART_BYTES
            || self.buffer.len() > self.whole_max
        {
            let rest = self.buffer.split_off(PART_BYTES.min(self.buffer.len()));
            let part = Bytes::from(std::mem::replace(&mut self.buffer, rest));
            let multipart = match &mut self.multipart {
                Some(multipart) => multipart,
                None => self.multipart.insert(Multipart::begin(
                    &self.bucket,
                    &self.key,
                    &self.mark,
                    Condition::of(&self.bucket),
                )?),
            };
            multipart.send(part)?;
        }
        Ok(())
    }

    /// Sends the request that names the object. If the store's checksums confirm nothing, length and end of the object
    /// are read back.
    fn commit(&mut self) -> Answered<()> {
        let is_confirmed = self.send_last()? == Confirmed::Yes;
        if is_confirmed && (self.bucket.is_trial || checksum::counts(&self.bucket)) {
            return Ok(());
        }
        match self.read_back() {
            // A host that only writes may not read everything back: then it is worth a request whether the store compares checksums.
            Err(e) if e.code() == Code::Denied => {
                match is_confirmed && checksum::counts(&self.bucket) {
                    true => Ok(()),
                    false => Err(unread(e).into()),
                }
            }
            read => Ok(read?),
        }
    }

    fn send_last(&mut self) -> Answered<Confirmed> {
        let rest = Bytes::from(std::mem::take(&mut self.buffer));
        self.end = rest.clone();
        match self.multipart.take() {
            Some(mut multipart) => {
                if !rest.is_empty() {
                    multipart.send(rest)?;
                }
                multipart.complete()
            }
            None => {
                let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
                let (mark, condition) = (self.mark.clone(), Condition::of(&bucket));
                wait(async move { put(&bucket, &key, &mark, rest, condition).await })?
            }
        }
    }

    /// The object must have the size of what was written, and its end.
    fn read_back(&self) -> Result<()> {
        let end = &self.end;
        let last = end.len().min(TAIL_BYTES);
        let asked = Part::Last(last.max(1) as u64);
        let piece = read(&self.bucket, &self.key, asked)?;
        let is_it = piece.is_some_and(|piece| {
            piece.meta.size_bytes == self.size
                && end.get(end.len() - last..)
                    == piece.bytes.get(piece.bytes.len().saturating_sub(last)..)
        });
        match is_it {
            true => Ok(()),
            false => Err(err!(ReadBack, "object \"{}\" does not read back as it was written", self.key)
                .hint("Nothing is acknowledged. Something in the store or on the way to it changes objects: see \"pitr repo check\".")),
        }
    }

    /// Returns whether this upload took the name, when an attempt without an answer may have done so. No checksum
    /// confirms the object then.
    fn whose(&self) -> Result<Published> {
        let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
        let found = match wait(async move { mark_of(&bucket, &key).await })? {
            Err(failure) if failure.error.code() == Code::Denied => {
                return self.listed(failure.error);
            }
            found => found?,
        };
        if found.as_ref() != Some(&self.mark) {
            return Ok(Published::Exists);
        }
        self.read_back()?;
        Ok(Published::Created)
    }

    /// As [`Upload::whose`], for a host that may not look at parts of backups, its own neither. Their ids are reserved by the process that writes
    /// them: nobody else stores a pack or a layer there, and a janitor that gave the id up puts a tombstone in the place of the root. So an object
    /// of the length that was sent is the one that was sent, and the store has compared its checksum.
    fn listed(&self, denied: Error) -> Result<Published> {
        let is_tombstone = self.size <= TOMBSTONE_MAX && Sort::of(&self.key) == Sort::Other;
        if !headers::is_of_backup(&self.key)
            || is_tombstone
            || self.bucket.link.settings.unsafe_overwrite
        {
            return Err(denied);
        }
        // The first object of a process is not worth the question; this one is.
        if !checksum::counts(&self.bucket) && !checksum::counts(&self.bucket) {
            return Err(unread(denied));
        }
        let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
        let length = wait(async move { listing::length(&bucket, key.as_str()).await })??;
        match length {
            Some(length) if length == self.size => Ok(Published::Created),
            Some(_) => Ok(Published::Exists),
            None => Err(denied),
        }
    }

    /// For a store that overwrites: the name is looked at before. After it was written the mark comes first: the length and end of another
    /// writer's object would look like damage.
    fn publish_unsafely(mut self) -> Result<Published> {
        if read(&self.bucket, &self.key, Part::From(0, 1))?.is_some() {
            return Ok(Published::Exists);
        }
        match self.send_last() {
            Ok(_) => {}
            Err(failure) if failure.kind == Kind::Taken => {}
            Err(failure) => return Err(failure.error),
        }
        self.whose()
    }
}

write_by_take!(Upload);

impl NewObject for Upload {
    fn publish(mut self: Box<Self>) -> Result<Published> {
        self.broken.check(&self.key)?;
        if self.bucket.link.settings.unsafe_overwrite {
            return self.publish_unsafely();
        }
        match self.commit() {
            Ok(()) => Ok(Published::Created),
            // The answer to an earlier attempt was lost: perhaps that one is what took the name.
            Err(failure) if failure.kind == Kind::Taken && failure.is_ambiguous => {
                match (self.whose(), failure.is_unreadable) {
                    (Err(_), true) => Err(failure.error),
                    (whose, _) => whose,
                }
            }
            Err(failure) if failure.kind == Kind::Taken => Ok(Published::Exists),
            Err(failure) => Err(failure.error),
        }
    }
}

/// Says why a host that only writes is asked to read.
fn unread(denied: Error) -> Error {
    denied
        .context("the store confirms no checksum of what it holds, and this host may not read it back")
        .hint("Nothing is acknowledged: where a store compares no checksums, the end of each object is read back.\nTake the statement NeverReadBackups out of this host's policy (s3:GetObject): with keys that only write it still cannot read the content. Or use a store that compares checksums, as \"pitr repo check\" tells.")
}

/// The mark on an object; none where another program wrote it, or it is gone.
pub(super) async fn mark_of(bucket: &Bucket, key: &Key) -> Answered<Option<String>> {
    let head = head(bucket, key.as_str()).await?;
    Ok(head.metadata().and_then(|m| m.get(MARK)).cloned())
}

pub(super) async fn put(
    bucket: &Bucket,
    key: &Key,
    mark: &str,
    body: Bytes,
    condition: Condition,
) -> Answered<Confirmed> {
    let sum = checksum(&body);
    let length = i64::try_from(body.len()).unwrap_or(i64::MAX);
    bucket
        .run_as(
            Purpose::Creating,
            &format!("write object \"{key}\""),
            |client| {
                let (body, sum) = (body.clone(), sum.clone());
                async move {
                    let request = client
                        .put_object()
                        .bucket(&bucket.bucket)
                        .key(bucket.full(key))
                        .content_length(length)
                        // The algorithm stands beside the checksum itself: stores require it for a locked object.
                        .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                        .checksum_crc32_c(&sum)
                        .body(ByteStream::from(body));
                    let request = request.set_if_none_match(condition.header());
                    let request = dressed_put(request, bucket, key, mark)?;
                    let answer = match bucket.link.sums.go_unsigned() {
                        true => {
                            let sent = request.customize().disable_payload_signing().send();
                            let sums = &bucket.link.sums;
                            sent.await.map_err(|e| sums.of_unsigned(e.into()))?
                        }
                        false => request.send().await?,
                    };
                    // An error in the body of a success has none.
                    if answer.e_tag().is_none_or(str::is_empty) {
                        return Err(Failure::again("the store's answer names no stored object"));
                    }
                    check_sum(answer.checksum_crc32_c(), &sum)
                }
            },
        )
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_objects_take_requests_for_their_parts() {
        let mib = |n: u64| n << 20;
        for (key, size, requests) in [
            ("clusters/a/7/packs/b/000000", 0, 1),
            ("clusters/a/7/packs/b/000000", mib(8), 1),
            ("clusters/a/7/packs/b/000000", mib(8) + 1, 4),
            ("clusters/a/7/packs/b/000000", mib(64), 10),
            ("clusters/a/7/wal/00000001/00000000/x", mib(16), 1),
        ] {
            assert_eq!(put_requests(key, size), requests, "{key} {size}");
        }
    }
}
