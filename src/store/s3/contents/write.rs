//! Writing: an object with its metadata, in one request or in parts, where what stands in its place is what was expected.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::Contents;
use super::facts::{Facts, described};
use crate::err;
use crate::error::Result;
use crate::fault;
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::Purpose;
use crate::store::runtime::{asked, wait};
use crate::store::s3::checksum::{check_sum, checksum};
use crate::store::s3::multipart::abort;
use crate::store::s3::request::Bucket;

/// Bytes of one request; a larger object goes in parts of them. The least that stores accept of a part is 5 MiB.
const PART_BYTES: u64 = 8 << 20;
/// No object has more parts.
const PARTS_MAX: u64 = 10_000;
/// How long taking an upload back may hold up its end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that are compared at once.
const COMPARED_BYTES: u64 = 4 << 20;

/// The object that is expected under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// None.
    Nothing,
    /// The one with this mark of the store.
    Tag(String),
}

impl Expected {
    pub(super) fn headers(&self) -> (Option<String>, Option<String>) {
        match self {
            Expected::Nothing => (Some("*".to_owned()), None),
            Expected::Tag(tag) => (None, Some(tag.clone())),
        }
    }
}

/// The outcome of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The object is there; the store's mark of it.
    Stored(String),
    /// Another object stands in its place than was expected, and was left there.
    Other,
}

/// An object being written. It appears at the end, or not at all.
pub struct Upload {
    contents: Contents,
    key: String,
    facts: Facts,
    expected: Expected,
    part_bytes: usize,
    buffer: Vec<u8>,
    size_bytes: u64,
    hasher: blake3::Hasher,
    /// The id of an upload in parts.
    id: Option<String>,
    parts: Vec<CompletedPart>,
}

impl Contents {
    /// Begins an object of this length.
    pub fn upload(&self, key: &str, facts: &Facts, size_bytes: u64, expected: Expected) -> Upload {
        let needed = size_bytes.div_ceil(PARTS_MAX);
        Upload {
            contents: self.clone(),
            key: key.to_owned(),
            facts: facts.clone(),
            expected,
            part_bytes: usize::try_from(needed.max(PART_BYTES)).unwrap_or(usize::MAX),
            buffer: Vec::new(),
            size_bytes: 0,
            hasher: blake3::Hasher::new(),
            id: None,
            parts: Vec::new(),
        }
    }

    /// Whether an object has this length and content.
    ///
    /// # Errors
    /// Those of the store.
    pub fn has(
        &self,
        key: &str,
        (size_bytes, hash): (u64, blake3::Hash),
    ) -> Result<Option<String>> {
        let mut hasher = blake3::Hasher::new();
        let (mut at, mut known) = (0, None::<Facts>);
        loop {
            let asked = (at, COMPARED_BYTES);
            let super::Answer::There(piece) = self.read(key, asked, known.as_ref())? else {
                return Ok(None);
            };
            if piece.size_bytes != size_bytes {
                return Ok(None);
            }
            hasher.update(&piece.bytes);
            at += piece.bytes.len() as u64;
            let tag = known.get_or_insert(piece.facts).etag.clone();
            if at >= size_bytes {
                return Ok((hasher.finalize() == hash).then_some(tag));
            }
        }
    }
}

impl Upload {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// Those of the store.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.buffer.len() == self.part_bytes {
                self.send_part()?;
            }
            let room = (self.part_bytes - self.buffer.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn send_part(&mut self) -> Result<()> {
        let bucket = Arc::clone(&self.contents.bucket);
        let id = match &self.id {
            Some(id) => id.clone(),
            None => {
                let (key, facts) = (self.key.clone(), self.facts.clone());
                let id = asked!(begun = bucket => begin(&begun, &key, &facts))?;
                self.id.insert(id).clone()
            }
        };
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        let key = self.key.clone();
        let number = i32::try_from(self.parts.len() + 1).unwrap_or(i32::MAX);
        let sent = wait(async move { part(&bucket, (&key, &id), number, body).await })?;
        self.parts.push(sent?);
        Ok(())
    }

    /// Names the object.
    ///
    /// # Errors
    /// Those of the store.
    pub fn finish(mut self) -> Result<Outcome> {
        if self.id.is_some() && !self.buffer.is_empty() {
            self.send_part()?;
        }
        let (bucket, key) = (Arc::clone(&self.contents.bucket), self.key.clone());
        let expected = self.expected.clone();
        let named = match self.id.clone() {
            Some(id) => {
                let parts = std::mem::take(&mut self.parts);
                wait(async move { complete(&bucket, (&key, &id), parts, &expected).await })?
            }
            None => {
                let (facts, body) = (
                    self.facts.clone(),
                    Bytes::from(std::mem::take(&mut self.buffer)),
                );
                wait(async move { put(&bucket, &key, (&facts, &expected), body).await })?
            }
        };
        let is_ambiguous = |failure: &Failure| failure.is_ambiguous || failure.is_unreadable;
        match named {
            Ok(tag) => {
                self.id = None;
                Ok(Outcome::Stored(tag))
            }
            // The answer to an earlier attempt was lost: perhaps that one took effect.
            Err(failure) if failure.kind == Kind::Taken && is_ambiguous(&failure) => {
                let content = (self.size_bytes, self.hasher.finalize());
                Ok(match self.contents.has(&self.key, content)? {
                    Some(tag) => {
                        self.id = None;
                        Outcome::Stored(tag)
                    }
                    None => Outcome::Other,
                })
            }
            Err(failure) if failure.kind == Kind::Taken => Ok(Outcome::Other),
            Err(failure) => Err(failure.error),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            take_back(&self.contents.bucket, &self.key, &id);
        }
    }
}

/// Takes an upload back. One that cannot be taken back is left to the rules of the bucket.
pub(super) fn take_back(bucket: &Arc<Bucket>, key: &str, id: &str) {
    let (bucket, key, id) = (Arc::clone(bucket), key.to_owned(), id.to_owned());
    let _ = wait(async move { tokio::time::timeout(PATIENCE, abort(&bucket, &key, &id)).await });
}

/// A date as a request has it; one that cannot be read is left out.
fn expires(facts: &Facts) -> Option<DateTime> {
    DateTime::from_str(facts.expires.as_ref()?, DateTimeFormat::HttpDate).ok()
}

pub(super) async fn begin(bucket: &Bucket, key: &str, facts: &Facts) -> Answered<String> {
    bucket
        .run(&format!("begin object \"{key}\""), |client| {
            let request = client.create_multipart_upload().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key));
            let request = described!(request, facts);
            async move {
                let answer = request.send().await?;
                let id = answer.upload_id().filter(|id| !id.is_empty());
                id.map(str::to_owned)
                    .ok_or_else(|| Failure::again("the store's answer names no upload"))
            }
        })
        .await
}

async fn part(
    bucket: &Bucket,
    (key, id): (&str, &str),
    number: i32,
    body: Bytes,
) -> Answered<CompletedPart> {
    let sum = checksum(&body);
    let doing = format!("write part {number} of object \"{key}\"");
    bucket
        .run(&doing, |client| {
            let request = client.upload_part().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key)).upload_id(id);
            let request = request
                .part_number(number)
                .content_length(i64::try_from(body.len()).unwrap_or(i64::MAX))
                .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                .checksum_crc32_c(&sum)
                .body(ByteStream::from(body.clone()));
            let sum = &sum;
            async move {
                let answer = request.send().await?;
                check_sum(answer.checksum_crc32_c(), sum)?;
                let tag = answer.e_tag().filter(|tag| !tag.is_empty());
                let tag = tag.ok_or_else(|| Failure::again("the store's answer names no part"))?;
                let part = CompletedPart::builder().part_number(number).e_tag(tag);
                Ok(part.build())
            }
        })
        .await
}

pub(super) async fn complete(
    bucket: &Bucket,
    (key, id): (&str, &str),
    parts: Vec<CompletedPart>,
    expected: &Expected,
) -> Answered<String> {
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts));
    let parts = parts.build();
    let (absent, tag) = expected.headers();
    let doing = format!("complete object \"{key}\"");
    let completed = bucket
        .run_as(Purpose::Completing, &doing, |client| {
            let request = client.complete_multipart_upload().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key)).upload_id(id);
            let request = request
                .multipart_upload(parts.clone())
                .set_if_none_match(absent.clone())
                .set_if_match(tag.clone());
            async move { named(request.send().await?.e_tag()) }
        })
        .await;
    match completed {
        // An attempt without an answer completed it.
        Err(failure) if failure.is_ambiguous && failure.is_upload_gone => Err(Failure {
            kind: Kind::Taken,
            ..failure
        }),
        other => other,
    }
}

async fn put(
    bucket: &Bucket,
    key: &str,
    (facts, expected): (&Facts, &Expected),
    body: Bytes,
) -> Answered<String> {
    let sum = checksum(&body);
    let (absent, tag) = expected.headers();
    bucket
        .run_as(
            Purpose::Creating,
            &format!("write object \"{key}\""),
            |client| {
                let request = client.put_object().bucket(&bucket.bucket);
                let request = described!(request.key(bucket.full(key)), facts)
                    .content_length(i64::try_from(body.len()).unwrap_or(i64::MAX))
                    .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                    .checksum_crc32_c(&sum)
                    .set_if_none_match(absent.clone())
                    .set_if_match(tag.clone())
                    .body(ByteStream::from(body.clone()));
                let sum = &sum;
                async move {
                    let answer = request.send().await?;
                    check_sum(answer.checksum_crc32_c(), sum)?;
                    named(answer.e_tag())
                }
            },
        )
        .await
}

/// The mark of a stored object: an error in the body of a success has none.
pub(super) fn named(tag: Option<&str>) -> Answered<String> {
    let tag = tag.filter(|tag| !tag.is_empty()).map(str::to_owned);
    tag.ok_or_else(|| Failure::again("the store's answer names no stored object"))
}

/// The largest object that the store copies in one request, and the largest part.
pub(super) fn copied_at_once() -> u64 {
    const COPIED_BYTES: usize = 5 << 30;
    fault::lowered(COPIED_BYTES) as u64
}

/// Requires that an object is one that parts can make.
pub(super) fn check_size(key: &str, size_bytes: u64, part_bytes: u64) -> Result<()> {
    match size_bytes.div_ceil(part_bytes) <= PARTS_MAX {
        true => Ok(()),
        false => Err(err!(Refused, "object \"{key}\" is too large for the store")),
    }
}
