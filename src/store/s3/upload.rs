//! Writing: one conditional request for what fits into one, parts and a conditional completion for what does not.
//!
//! The commit point is the one request that names the object: `PutObject` or `CompleteMultipartUpload`, with `If-None-Match: *`. When an
//! attempt of it got no answer and a later one is told that the name is taken, a mark that the upload left on the object tells whether it
//! was this upload that took it.

use std::io::{self, Write};
use std::sync::Arc;

use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockMode, ServerSideEncryption, StorageClass};
use bytes::Bytes;

use super::client::wait;
use super::failure::{Answered, Failure, Kind, shown};
use super::multipart::Multipart;
use super::object::{Part, read};
use super::request::{Bucket, Purpose};
use super::sums;
use crate::config::{LockMode, ObjectLock, Sse};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::store::{Key, NewObject, Published};

/// A part of a multipart upload; the least that stores accept is 5 MiB.
pub(super) const PART_BYTES: usize = 8 << 20;
/// A segment of 16 MiB is one request, however badly it compresses: its frame and index come on top.
const SEGMENT_BYTES: usize = 20 << 20;
/// So much of its end is read back of an object that the store has not confirmed.
const TAIL_BYTES: usize = 64 << 10;
/// The mark of an upload, as metadata of the object.
const MARK: &str = "pitr-upload";

/// What must hold for a request to name an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// The name is free.
    Absent,
    /// Nothing, for a store that knows no conditions.
    None,
}

impl Condition {
    /// The one that the settings ask for.
    pub(super) fn of(bucket: &Bucket) -> Condition {
        match bucket.link.settings.unsafe_overwrite {
            true => Condition::None,
            false => Condition::Absent,
        }
    }

    /// As the header `If-None-Match`.
    pub(super) fn header(self) -> Option<String> {
        (self == Condition::Absent).then(|| "*".to_owned())
    }
}

/// An object being written.
pub(super) struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    mark: String,
    /// What no request has taken yet.
    buffer: Vec<u8>,
    /// What one request may take before there are several.
    whole_max: usize,
    multipart: Option<Multipart>,
    /// What went wrong with a part, which is missing from then on.
    broken: Option<(Code, String)>,
    /// How many bytes were written.
    size: u64,
    /// The last of them that one request took.
    end: Bytes,
}

impl Upload {
    pub(super) fn new(bucket: &Arc<Bucket>, key: &Key) -> Upload {
        Upload {
            mark: format!("{:016x}{:016x}", bucket.next_random(), bucket.next_random()),
            bucket: Arc::clone(bucket),
            key: key.clone(),
            buffer: Vec::new(),
            whole_max: match Sort::of(key) {
                Sort::Wal => SEGMENT_BYTES,
                Sort::Pack | Sort::Other => PART_BYTES,
            },
            multipart: None,
            broken: None,
            size: 0,
            end: Bytes::new(),
        }
    }

    /// Takes bytes, and sends a part once there are more than one request takes. Nothing comes behind a part that was not sent: whoever
    /// passes over an error, as a writer does that is flushed when it is dropped, would else publish an object with a hole.
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.check_whole()?;
        self.buffer.extend_from_slice(bytes);
        self.size += bytes.len() as u64;
        let drained = self.drain();
        if let Err(e) = &drained {
            self.broken = Some((e.code(), e.to_string()));
        }
        drained
    }

    fn check_whole(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some((code, why)) => Err(Error::new(
                *code,
                format!("a part of object \"{}\" is not stored: {why}", self.key),
            )),
        }
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

    /// The request that names the object. Where the store's checksums confirm nothing, length and end of the object are read back.
    fn commit(&mut self) -> Answered<()> {
        match self.send_last()? {
            Confirmed::Yes if self.bucket.is_trial || sums::are_compared(&self.bucket) => Ok(()),
            _ => Ok(self.read_back()?),
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

    /// What became of the name, when an attempt without an answer may have taken it, which no checksum then confirms.
    fn whose(&self) -> Result<Published> {
        let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
        let found = wait(async move { mark_of(&bucket, &key).await })??;
        if found.as_ref() != Some(&self.mark) {
            return Ok(Published::Exists);
        }
        self.read_back()?;
        Ok(Published::Created)
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

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NewObject for Upload {
    fn publish(mut self: Box<Self>) -> Result<Published> {
        self.check_whole()?;
        if self.bucket.link.settings.unsafe_overwrite {
            return self.publish_unsafely();
        }
        match self.commit() {
            Ok(()) => Ok(Published::Created),
            // The answer to an earlier attempt was lost: perhaps that one is what took the name.
            Err(failure) if failure.kind == Kind::Taken && failure.is_ambiguous => self.whose(),
            Err(failure) if failure.kind == Kind::Taken => Ok(Published::Exists),
            Err(failure) => Err(failure.error),
        }
    }
}

/// The mark on an object; none where another program wrote it, or it is gone.
pub(super) async fn mark_of(bucket: &Bucket, key: &Key) -> Answered<Option<String>> {
    let head = bucket
        .run(&format!("look at object \"{key}\""), |client| async move {
            let request = client.head_object().bucket(&bucket.bucket);
            Ok(request.key(bucket.full(key)).send().await?)
        })
        .await?;
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
    bucket.link.limit.pass(body.len()).await;
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
                        .metadata(MARK, mark)
                        .content_length(length)
                        // Said beside the checksum itself: of a locked object stores want to be told.
                        .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                        .checksum_crc32_c(&sum)
                        .body(ByteStream::from(body));
                    let request = request.set_if_none_match(condition.header());
                    let request = dressed_put(request, bucket, key)?;
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

/// Whether the store has said a checksum of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmed {
    /// By the checksum of what was sent.
    Yes,
    /// It answered no checksum.
    No,
}

/// What the store says it received must be what was sent.
pub(super) fn check_sum(answered: Option<&str>, sent: &str) -> Answered<Confirmed> {
    match answered {
        Some(other) if other != sent => Err(Failure::new(
            Kind::Final,
            err!(
                ReadBack,
                "the store holds other bytes than were sent (CRC-32C {}, not {sent})",
                shown(other)
            ),
        )),
        Some(_) => Ok(Confirmed::Yes),
        None => Ok(Confirmed::No),
    }
}

/// CRC-32C as it stands in a header: base64 of four bytes, the highest first.
pub(super) fn checksum(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(crc32c::crc32c(bytes)) << 4;
    let mut text: String = (0..6)
        .rev()
        .map(|n| char::from(DIGITS[usize::try_from(bits >> (6 * n) & 63).unwrap_or(0)]))
        .collect();
    text.push_str("==");
    text
}

/// What kind of object a key is of: it decides on storage class, lock and size of requests, never on what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Wal,
    Pack,
    Other,
}

impl Sort {
    fn of(key: &Key) -> Sort {
        let has = |part: &str| parts(key).any(|p| p == part);
        if has("wal") || has("conflicts") {
            Sort::Wal
        } else if has("packs") || has("layers") {
            Sort::Pack
        } else {
            Sort::Other
        }
    }
}

/// Whether an object is to be deleted long before a lock would end: increments, and what says that something is in use.
fn is_short_lived(key: &Key) -> bool {
    parts(key).any(|p| p == "open" || p == "events")
}

/// The parts of a key that tell what the object is: a cluster may have any name, "events", too.
fn parts(key: &Key) -> impl Iterator<Item = &str> {
    let parts = key.as_str().split('/');
    let is_clusters = parts.clone().next() == Some("clusters");
    parts.skip(if is_clusters { 3 } else { 0 })
}

/// Storage class, encryption by the store, and lock of an object.
#[derive(Default)]
struct Dress {
    class: Option<StorageClass>,
    sse: Option<ServerSideEncryption>,
    kms_key: Option<String>,
    lock: Option<(ObjectLockMode, aws_sdk_s3::primitives::DateTime)>,
}

fn dress(bucket: &Bucket, key: &Key) -> Result<Dress> {
    let settings = &bucket.link.settings;
    let encrypted = Dress {
        sse: settings.sse.map(|sse| match sse {
            Sse::S3 => ServerSideEncryption::Aes256,
            Sse::Kms => ServerSideEncryption::AwsKms,
        }),
        kms_key: settings.sse_kms_key_id.clone(),
        ..Dress::default()
    };
    if bucket.is_trial {
        return Ok(encrypted);
    }
    let class = match Sort::of(key) {
        Sort::Wal => &settings.storage_class.wal,
        Sort::Pack => &settings.storage_class.packs,
        Sort::Other => &settings.storage_class.manifests,
    };
    let lock = settings.object_lock.filter(|_| !is_short_lived(key));
    Ok(Dress {
        class: class.as_deref().map(StorageClass::from),
        lock: lock.map(|lock| locked(bucket, lock)).transpose()?,
        ..encrypted
    })
}

/// A lock counts from the store's clock, which has answered before: the marker is read first. Nobody can lift one that is too long, and
/// one that is missing protects nothing.
fn locked(
    bucket: &Bucket,
    lock: ObjectLock,
) -> Result<(ObjectLockMode, aws_sdk_s3::primitives::DateTime)> {
    let mode = match lock.mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    };
    let wrong = |what: &str| {
        err!(Unreachable, "objects cannot be locked in \"{}\": {what}", bucket.place).hint(
            "Nothing was stored. A lock counts from the date in the store's answers: correct the clock that is wrong, or the proxy that takes the date away.",
        )
    };
    let clock = &bucket.link.clock;
    let until = clock.after(lock.period);
    let until = until.ok_or_else(|| wrong("its answers have no date"))?;
    match clock.is_far_off() {
        true => Err(wrong("its clock is more than a day from this host's")),
        false => Ok((mode, until)),
    }
}

fn dressed_put(
    request: PutObjectFluentBuilder,
    bucket: &Bucket,
    key: &Key,
) -> Result<PutObjectFluentBuilder> {
    let dress = dress(bucket, key)?;
    let (mode, until) = dress.lock.unzip();
    Ok(request
        .set_storage_class(dress.class)
        .set_server_side_encryption(dress.sse)
        .set_ssekms_key_id(dress.kms_key)
        .set_object_lock_mode(mode)
        .set_object_lock_retain_until_date(until))
}

pub(super) fn dressed_multipart(
    request: CreateMultipartUploadFluentBuilder,
    bucket: &Bucket,
    key: &Key,
    mark: &str,
) -> Result<CreateMultipartUploadFluentBuilder> {
    let dress = dress(bucket, key)?;
    let (mode, until) = dress.lock.unzip();
    Ok(request
        .metadata(MARK, mark)
        .set_storage_class(dress.class)
        .set_server_side_encryption(dress.sse)
        .set_ssekms_key_id(dress.kms_key)
        .set_object_lock_mode(mode)
        .set_object_lock_retain_until_date(until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_stand_as_the_protocol_wants_them() {
        // Of "123456789" it is e3069283: RFC 3720 and every table of checksums.
        assert_eq!(checksum(b"123456789"), "4waSgw==");
        assert_eq!(checksum(b""), "AAAAAA==");
        assert_eq!(check_sum(None, "x").unwrap(), Confirmed::No);
        assert_eq!(check_sum(Some("x"), "x").unwrap(), Confirmed::Yes);
        assert!(check_sum(Some("y"), "x").is_err());
    }

    #[test]
    fn kinds_are_told_by_the_key() {
        let sort = |k: &str| Sort::of(&Key::new(k).unwrap());
        assert_eq!(sort("clusters/a/7/wal/00000001/00000000/x"), Sort::Wal);
        assert_eq!(sort("clusters/a/7/packs/b/000000"), Sort::Pack);
        assert_eq!(sort("clusters/a/7/backups/b/manifest"), Sort::Other);
        assert!(is_short_lived(
            &Key::new("clusters/a/7/events/b/begin").unwrap()
        ));
        assert!(!is_short_lived(
            &Key::new("clusters/a/7/backups/b/manifest").unwrap()
        ));
        // A cluster may be called like a kind.
        assert_eq!(sort("clusters/wal/7/packs/b/000000"), Sort::Pack);
        assert!(!is_short_lived(
            &Key::new("clusters/events/7/wal/00000001/00000000/x").unwrap()
        ));
    }
}
