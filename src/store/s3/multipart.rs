//! An object in parts: one part is on its way while the next one is filled. Nothing is visible before the completion.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use tokio::task::JoinHandle;

use super::checksum::{Confirmed, check_sum, checksum};
use super::headers::{Condition, dressed_multipart};
use super::request::Bucket;
use crate::err;
use crate::error::Result;
use crate::store::Key;
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::Purpose;
use crate::store::parts::give_up;
use crate::store::runtime::{asked, runtime, wait};

/// How long taking back an upload may hold up whoever gave it up; the janitor finds what is left.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most parts that the protocol allows.
const PARTS_MAX: i32 = 10_000;

/// An upload in parts; taken back when it is dropped before it was completed.
pub(super) struct Multipart {
    bucket: Arc<Bucket>,
    key: Key,
    id: String,
    condition: Condition,
    done: Vec<CompletedPart>,
    number: i32,
    /// Whether the store has confirmed each part.
    confirmed: Confirmed,
    flying: Option<JoinHandle<Answered<(CompletedPart, Confirmed)>>>,
    is_over: bool,
}

impl Multipart {
    pub(super) fn begin(
        bucket: &Arc<Bucket>,
        key: &Key,
        mark: &str,
        condition: Condition,
    ) -> Result<Multipart> {
        let id = asked!(bucket = bucket, key = key, mark = mark => begin(&bucket, &key, &mark))?;
        Ok(Multipart {
            bucket: Arc::clone(bucket),
            key: key.clone(),
            id,
            condition,
            done: Vec::new(),
            number: 0,
            confirmed: Confirmed::Yes,
            flying: None,
            is_over: false,
        })
    }

    /// Sends the next part, when the one before it has arrived.
    pub(super) fn send(&mut self, body: Bytes) -> Result<()> {
        self.land()?;
        self.number += 1;
        if self.number > PARTS_MAX {
            let key = &self.key;
            return Err(err!(Refused, "object \"{key}\" is too large for the store"));
        }
        let (bucket, key, id) = (Arc::clone(&self.bucket), self.key.clone(), self.id.clone());
        let number = self.number;
        self.flying =
            Some(runtime()?.spawn(async move { part(&bucket, &key, &id, number, body).await }));
        Ok(())
    }

    /// Waits for the part that is on its way.
    fn land(&mut self) -> Result<()> {
        if let Some(flying) = self.flying.take() {
            let landed = wait(flying)?;
            let landed = landed.map_err(|_| err!(Internal, "a part ended without an answer"))?;
            let (part, confirmed) = landed?;
            self.done.push(part);
            if confirmed == Confirmed::No {
                self.confirmed = confirmed;
            }
        }
        Ok(())
    }

    /// Names the object.
    pub(super) fn complete(mut self) -> Answered<Confirmed> {
        self.land()?;
        let (bucket, key, id) = (Arc::clone(&self.bucket), self.key.clone(), self.id.clone());
        let parts = std::mem::take(&mut self.done);
        let condition = self.condition;
        let completed = wait(async move { complete(&bucket, &key, &id, parts, condition).await })?;
        // An upload that the store may still be completing is not taken back; the janitor finds what is left.
        self.is_over = match &completed {
            Ok(()) => true,
            Err(failure) => failure.is_ambiguous && failure.kind != Kind::Taken,
        };
        completed?;
        Ok(self.confirmed)
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let flying = self.flying.take();
        let (bucket, key, id) = (Arc::clone(&self.bucket), self.key.clone(), self.id.clone());
        let _ = wait(async move {
            give_up(flying).await;
            tokio::time::timeout(PATIENCE, abort(&bucket, key.as_str(), &id)).await
        });
    }
}

async fn begin(bucket: &Bucket, key: &Key, mark: &str) -> Answered<String> {
    bucket
        .run(&format!("begin object \"{key}\""), |client| async move {
            let request = client
                .create_multipart_upload()
                .bucket(&bucket.bucket)
                .key(bucket.full(key))
                .checksum_algorithm(ChecksumAlgorithm::Crc32C);
            let answer = dressed_multipart(request, bucket, key, mark)?
                .send()
                .await?;
            let id = answer.upload_id().filter(|id| !id.is_empty());
            id.map(str::to_owned)
                .ok_or_else(|| Failure::again("the store's answer names no upload"))
        })
        .await
}

async fn part(
    bucket: &Bucket,
    key: &Key,
    id: &str,
    number: i32,
    body: Bytes,
) -> Answered<(CompletedPart, Confirmed)> {
    let sum = checksum(&body);
    let length = i64::try_from(body.len()).unwrap_or(i64::MAX);
    bucket
        .run(
            &format!("write part {number} of object \"{key}\""),
            |client| {
                let (body, sum) = (body.clone(), sum.clone());
                async move {
                    let request = client
                        .upload_part()
                        .bucket(&bucket.bucket)
                        .key(bucket.full(key))
                        .upload_id(id)
                        .part_number(number)
                        .content_length(length)
                        .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                        .checksum_crc32_c(&sum)
                        .body(ByteStream::from(body));
                    let answer = match bucket.link.sums.go_unsigned() {
                        true => {
                            let sent = request.customize().disable_payload_signing().send();
                            let sums = &bucket.link.sums;
                            sent.await.map_err(|e| sums.of_unsigned(e.into()))?
                        }
                        false => request.send().await?,
                    };
                    let confirmed = check_sum(answer.checksum_crc32_c(), &sum)?;
                    let tag = answer.e_tag().filter(|tag| !tag.is_empty());
                    let tag =
                        tag.ok_or_else(|| Failure::again("the store's answer names no part"))?;
                    let part = CompletedPart::builder()
                        .part_number(number)
                        .e_tag(tag)
                        .checksum_crc32_c(&sum)
                        .build();
                    Ok((part, confirmed))
                }
            },
        )
        .await
}

async fn complete(
    bucket: &Bucket,
    key: &Key,
    id: &str,
    parts: Vec<CompletedPart>,
    condition: Condition,
) -> Answered<()> {
    let parts = CompletedMultipartUpload::builder()
        .set_parts(Some(parts))
        .build();
    let completed = bucket
        .run_as(
            Purpose::Completing,
            &format!("complete object \"{key}\""),
            |client| {
                let parts = parts.clone();
                async move {
                    let request = client
                        .complete_multipart_upload()
                        .bucket(&bucket.bucket)
                        .key(bucket.full(key))
                        .upload_id(id)
                        .multipart_upload(parts);
                    let sent = request.set_if_none_match(condition.header()).send().await;
                    let answer = sent.map_err(|e| match Failure::from(e) {
                        // Asked again, it would say the same.
                        failure if failure.is_unreadable => Failure {
                            kind: Kind::Final,
                            ..failure
                        },
                        failure => failure,
                    })?;
                    match answer.e_tag().is_none_or(str::is_empty) {
                        true => Err(Failure::again("the store's answer names no stored object")),
                        false => Ok(()),
                    }
                }
            },
        )
        .await;
    match completed {
        // An attempt without an answer has completed it: the upload is gone, and the name is taken.
        Err(failure) if failure.is_ambiguous && failure.is_upload_gone => Err(Failure {
            kind: Kind::Taken,
            ..failure
        }),
        // Some servers complete it, and answer with another document than S3's: whose object it is tells.
        Err(failure) if failure.is_unreadable => Err(Failure {
            kind: Kind::Taken,
            is_ambiguous: true,
            ..failure
        }),
        other => other,
    }
}

/// Takes an upload back; `false` when it is gone already.
pub(super) async fn abort(bucket: &Bucket, key: &str, id: &str) -> Answered<bool> {
    let aborted = bucket
        .run(
            &format!("take back the upload of \"{key}\""),
            |client| async move {
                client
                    .abort_multipart_upload()
                    .bucket(&bucket.bucket)
                    .key(bucket.full(key))
                    .upload_id(id)
                    .send()
                    .await?;
                Ok(())
            },
        )
        .await;
    match aborted {
        Ok(()) => Ok(true),
        Err(failure) if failure.is_upload_gone => Ok(false),
        Err(failure) => Err(failure),
    }
}
