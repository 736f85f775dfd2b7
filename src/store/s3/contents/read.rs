//! Reading: pieces of one version of an object.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::facts::Facts;
use super::{Contents, is_of_object};
use crate::error::Result;
use crate::store::http::answered_range;
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::Purpose;
use crate::store::s3::client::wait;
use crate::store::s3::object::{collect, length_of};
use crate::store::s3::request::Bucket;

/// A piece of an object.
#[derive(Debug, Clone)]
pub struct Piece {
    pub bytes: Bytes,
    /// Length of the whole.
    pub size_bytes: u64,
    /// Metadata of the whole, without tags.
    pub facts: Facts,
    /// How many tags it has, as far as the store tells.
    pub tag_count: u32,
}

/// The store's answer about one object.
#[derive(Debug)]
pub enum Answer<T> {
    /// It is there.
    There(T),
    /// It is there no more.
    Gone,
    /// Another version is there by now.
    Changed,
    /// It cannot be read, for this reason.
    Refused(String),
}

impl Contents {
    /// Reads at most `length` bytes from `offset`; of the version of `known`, where one is given.
    ///
    /// # Errors
    /// Those of the store that do not concern this object alone.
    pub fn read(
        &self,
        key: &str,
        (offset, length): (u64, u64),
        known: Option<&Facts>,
    ) -> Result<Answer<Piece>> {
        let (bucket, key) = (Arc::clone(&self.bucket), key.to_owned());
        let known = known.cloned();
        let read = wait(async move {
            let part = (offset, length);
            match piece(&bucket, &key, part, known.as_ref()).await {
                // Nothing can be asked of an empty object, but all of it.
                Err(failure) if failure.kind == Kind::Range && offset == 0 => {
                    piece(&bucket, &key, (0, 0), known.as_ref()).await
                }
                other => other,
            }
        })?;
        answer(read)
    }

    /// Reads the tags of an object.
    ///
    /// # Errors
    /// Those of the store that do not concern this object alone.
    pub fn tags(&self, key: &str, facts: &Facts) -> Result<Answer<BTreeMap<String, String>>> {
        let (bucket, key) = (Arc::clone(&self.bucket), key.to_owned());
        let version = facts.version_id.clone();
        let read = wait(async move {
            let doing = format!("read the tags of object \"{key}\"");
            let answer = bucket.run(&doing, |client| {
                let request = client.get_object_tagging().bucket(&bucket.bucket);
                let request = request.key(bucket.full(&key));
                let request = request.set_version_id(version.clone());
                async move { Ok(request.send().await?) }
            });
            let answer = answer.await?;
            let tag = |tag: &aws_sdk_s3::types::Tag| (tag.key().to_owned(), tag.value().to_owned());
            Ok(answer.tag_set().iter().map(tag).collect())
        })?;
        answer(read)
    }
}

/// Tells what an answer says about the object.
fn answer<T>(answered: Answered<T>) -> Result<Answer<T>> {
    match answered {
        Ok(there) => Ok(Answer::There(there)),
        Err(failure) if failure.kind == Kind::Absent => Ok(Answer::Gone),
        Err(failure) if failure.kind == Kind::Taken => Ok(Answer::Changed),
        Err(failure) if is_of_object(&failure) => Ok(Answer::Refused(failure.error.to_string())),
        Err(failure) => Err(failure.error),
    }
}

async fn piece(
    bucket: &Bucket,
    key: &str,
    (offset, length): (u64, u64),
    known: Option<&Facts>,
) -> Answered<Piece> {
    let last = offset.saturating_add(length.saturating_sub(1));
    let range = (length > 0).then(|| format!("bytes={offset}-{last}"));
    let doing = format!("read object \"{key}\"");
    let (version, tag) = match known {
        None => (None, None),
        Some(known) => (known.version_id.clone(), Some(known.etag.clone())),
    };
    // As a condition is set, "it does not hold" is an answer.
    bucket
        .run_as(Purpose::Plain, &doing, |client| {
            let request = client.get_object().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key)).set_range(range.clone());
            let request = request.set_version_id(version.clone());
            let request = request.set_if_match(tag.clone());
            async move {
                let answer = request.send().await?;
                if answer.e_tag().is_none_or(str::is_empty) {
                    return Err(Failure::again("the store's answer names no object"));
                }
                let whole = length_of(answer.content_length())?;
                let (begin, end, size) = answered_range(answer.content_range(), || Ok(whole))?;
                let expected = size.min(offset.saturating_add(length));
                let is_asked = begin == offset && (length == 0 || end == expected);
                if !is_asked || end < begin || (length > 0 && end - begin > length) {
                    return Err(Failure::again(
                        "the store sends another range than was asked for",
                    ));
                }
                let facts = Facts::of(&answer);
                let tag_count = answer.tag_count().and_then(|n| u32::try_from(n).ok());
                Ok(Piece {
                    bytes: collect(answer.body, end - begin).await?,
                    size_bytes: size,
                    facts,
                    tag_count: tag_count.unwrap_or(0),
                })
            }
        })
        .await
}
