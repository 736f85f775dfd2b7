//! Moves to colder storage classes: by a tag on which a rule of the bucket acts, or by a copy of an object onto itself.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, MetadataDirective, ObjectAttributes, ObjectPart,
    ServerSideEncryption, Tag, Tagging, TaggingDirective,
};

use super::checksum;
use super::headers::MARK;
use super::object::Lock;
use super::request::Bucket;
use crate::config::{Sse, StorageClass};
use crate::err;
use crate::error::Code;
use crate::store::http::failure::{Answered, Failure, Kind, shown};

/// The tag that names the class to which a rule of the bucket moves an object.
pub const TAG: &str = "pitr-tier";
/// An object has no more tags.
const TAGS_MAX: usize = 10;
/// No more parts of an object are asked for; pitr makes fewer.
const PARTS_MAX: i32 = 1000;
/// The store copies no larger object in one request.
const COPY_BYTES_MAX: i64 = 5 << 30;

/// The outcome of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// It is moved, or tagged and will be.
    Now,
    /// It was tagged before, and a rule of the bucket has not moved it yet.
    Waits,
    /// It is not there any more.
    Gone,
}

fn absent_is_gone(result: Answered<Moved>) -> Answered<Moved> {
    match result {
        Err(failure) if failure.kind == Kind::Absent => Ok(Moved::Gone),
        other => other,
    }
}

/// Tags an object with its class; other tags stay.
pub(super) async fn tag(bucket: &Bucket, key: &str, class: StorageClass) -> Answered<Moved> {
    absent_is_gone(tag_present(bucket, key, class).await)
}

async fn tag_present(bucket: &Bucket, key: &str, class: StorageClass) -> Answered<Moved> {
    let doing = format!("read the tags of object \"{key}\"");
    let mut tags = bucket
        .run(&doing, |client| async move {
            let request = client.get_object_tagging().bucket(&bucket.bucket);
            let answer = request.key(bucket.full(key)).send().await?;
            Ok(answer.tag_set().to_vec())
        })
        .await?;
    let is_own = |tag: &Tag| tag.key() == TAG;
    if tags
        .iter()
        .any(|tag| is_own(tag) && tag.value() == class.name())
    {
        return Ok(Moved::Waits);
    }
    tags.retain(|tag| !is_own(tag));
    if tags.len() >= TAGS_MAX {
        let full = err!(
            Refused,
            "object \"{key}\" has {TAGS_MAX} tags of somebody else"
        );
        return Err(full
            .hint("Nothing was changed. Take one of them away.")
            .into());
    }
    tags.push(made(Tag::builder().key(TAG).value(class.name()).build())?);
    let tags = made(Tagging::builder().set_tag_set(Some(tags)).build())?;
    let doing = format!("tag object \"{key}\"");
    bucket
        .run(&doing, |client| {
            let request = client.put_object_tagging().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key)).tagging(tags.clone());
            async move { Ok(request.send().await.map(|_| Moved::Now)?) }
        })
        .await
}

fn made<T>(built: Result<T, impl std::fmt::Display>) -> Answered<T> {
    built.map_err(|e| err!(Internal, "a request could not be made: {e}").into())
}

/// Has the store copy an object onto itself in another class, if it is still the same, and compares the two.
pub(super) async fn copy(bucket: &Bucket, key: &str, class: StorageClass) -> Answered<Moved> {
    absent_is_gone(copy_present(bucket, key, class).await)
}

async fn copy_present(bucket: &Bucket, key: &str, class: StorageClass) -> Answered<Moved> {
    // A byte is asked for: to a request for the head alone "not found" does not say what was not found.
    let doing = format!("read object \"{key}\"");
    let now = bucket.link.clock.unix_seconds();
    let there = bucket
        .run(&doing, |client| async move {
            let request = client.get_object().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key)).range("bytes=0-0");
            Ok(request.send().await?)
        })
        .await?;
    if let Some(lock) = Lock::of(&there) {
        lock.check(now)?;
    }
    let before = head(bucket, key).await?;
    check_same(&there, &before, key)?;
    if before
        .content_length()
        .is_none_or(|size| size >= COPY_BYTES_MAX)
    {
        let large = err!(
            Refused,
            "object \"{key}\" is too large to be copied in one request"
        );
        return Err(large.into());
    }
    let sum = match whole_sum(&before) {
        Some(sum) => Some(sum),
        None => sum_of_parts(bucket, key, &before).await,
    };
    let tag = before.e_tag().unwrap_or_default();
    copied(bucket, key, class, tag).await?;
    let after = head(bucket, key).await?;
    compare((&before, sum.as_deref()), &after, class, key)?;
    Ok(Moved::Now)
}

/// The checksum of all bytes, where the store says that: of an object of several parts it says the checksum of their checksums.
fn whole_sum(head: &HeadObjectOutput) -> Option<String> {
    let sum = head.checksum_crc32_c()?;
    (!sum.contains('-')).then(|| sum.to_owned())
}

/// The checksum of all bytes, from those of the parts; none where the store does not tell them.
async fn sum_of_parts(bucket: &Bucket, key: &str, head: &HeadObjectOutput) -> Option<String> {
    let told = bucket
        .run(
            &format!("look at the parts of object \"{key}\""),
            |client| async move {
                let request = client.get_object_attributes().bucket(&bucket.bucket);
                let request = request.key(bucket.full(key)).max_parts(PARTS_MAX);
                let request = request.object_attributes(ObjectAttributes::ObjectParts);
                Ok(request.send().await?)
            },
        )
        .await;
    // Few stores know the request, and a right of its own belongs to it: the copy is then compared by the rest.
    let told = told.ok()?;
    let parts = told
        .object_parts()
        .filter(|p| p.is_truncated() != Some(true))?
        .parts();
    let one = |part: &ObjectPart| {
        let length = part.size().and_then(|n| usize::try_from(n).ok())?;
        Some((part.checksum_crc32_c()?.to_owned(), length))
    };
    let parts = parts.iter().map(one).collect::<Option<Vec<_>>>()?;
    let length: usize = parts.iter().map(|(_, length)| length).sum();
    let is_whole = i64::try_from(length).ok() == head.content_length() && !parts.is_empty();
    let sums = parts.iter().map(|(sum, length)| (sum.as_str(), *length));
    checksum::joined(sums).filter(|_| is_whole)
}

async fn head(bucket: &Bucket, key: &str) -> Answered<HeadObjectOutput> {
    bucket
        .run(&format!("look at object \"{key}\""), |client| async move {
            let request = client.head_object().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key));
            Ok(request.checksum_mode(ChecksumMode::Enabled).send().await?)
        })
        .await
}

fn check_same(there: &GetObjectOutput, head: &HeadObjectOutput, key: &str) -> Answered<()> {
    let tag = there.e_tag().filter(|tag| !tag.is_empty());
    match tag.is_some() && tag == head.e_tag() {
        true => Ok(()),
        false => Err(changed(key)),
    }
}

fn changed(key: &str) -> Failure {
    err!(Conflict, "object \"{key}\" changes while it is moved").into()
}

/// Copies while the object has this tag: an answer that was lost is told by the comparison behind it.
async fn copied(bucket: &Bucket, key: &str, class: StorageClass, tag: &str) -> Answered<()> {
    let settings = &bucket.link.settings;
    let sse = settings.sse.map(|sse| match sse {
        Sse::S3 => ServerSideEncryption::Aes256,
        Sse::Kms => ServerSideEncryption::AwsKms,
    });
    let full = bucket.full(key);
    let copied = bucket
        .run(&format!("copy object \"{key}\" onto itself"), |client| {
            let request = client
                .copy_object()
                .bucket(&bucket.bucket)
                .key(&full)
                .copy_source(format!("{}/{full}", bucket.bucket))
                .copy_source_if_match(tag)
                .if_match(tag)
                .metadata_directive(MetadataDirective::Copy)
                .tagging_directive(TaggingDirective::Copy)
                .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                .storage_class(class.name().into())
                .set_server_side_encryption(sse.clone())
                .set_ssekms_key_id(settings.sse_kms_key_id.clone());
            async move {
                let answer = request.send().await?;
                let tag = answer.copy_object_result().and_then(|r| r.e_tag());
                match tag.is_some_and(|tag| !tag.is_empty()) {
                    true => Ok(()),
                    false => Err(Failure::again("the store's answer names no copy")),
                }
            }
        })
        .await;
    match copied {
        // An attempt before it took effect; or somebody else wrote, which the comparison shows.
        Err(failure) if failure.is_ambiguous && failure.error.code() == Code::Unreachable => Ok(()),
        other => other,
    }
}

/// Requires that a copy is the object that it was made of, in the class that it was to move to.
fn compare(
    (before, sum): (&HeadObjectOutput, Option<&str>),
    after: &HeadObjectOutput,
    class: StorageClass,
    key: &str,
) -> Answered<()> {
    let mark = |head: &HeadObjectOutput| head.metadata().and_then(|m| m.get(MARK)).cloned();
    let sums = sum.map(str::to_owned).zip(whole_sum(after));
    let is_same = before.content_length() == after.content_length()
        && mark(before) == mark(after)
        && sums.is_none_or(|(one, other)| one == other);
    let in_class = after.storage_class().map(|class| class.as_str());
    match (is_same, in_class == Some(class.name())) {
        (true, true) => Ok(()),
        (true, false) => Err(err!(
            Unreachable,
            "object \"{key}\" is still in class {}",
            shown(in_class.unwrap_or("STANDARD"))
        )
        .into()),
        (false, _) => Err(
            err!(ReadBack, "the copy of object \"{key}\" is another one")
                .hint("Move nothing more to another class in this store, and run pitr verify.")
                .into(),
        ),
    }
}
