//! Copies that the store makes by itself: in one request, or of a large object in parts.

use std::sync::Arc;

use aws_sdk_s3::types::{CompletedPart, MetadataDirective, TaggingDirective};

use super::write::{begin, check_size, complete, copied_at_once, named, take_back};
use super::{Answer, Contents, Entry, Expected, Facts, Outcome};
use crate::error::{Code, Result};
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::Purpose;
use crate::store::runtime::{asked, wait};
use crate::store::s3::request::Bucket;
use crate::text::percent_encoded;

/// The outcome of a copy within the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copied {
    /// The copy is there, or something else than was expected.
    Done(Outcome),
    /// The original is another one than was listed.
    Changed,
    /// The store does not copy it, for this reason: it has to be read and written.
    Refused(String),
}

impl Contents {
    /// Has the store copy an object of `from`, as it was listed, under the same key here.
    ///
    /// # Errors
    /// Those of the store.
    pub fn copy(&self, from: &Contents, entry: &Entry, expected: &Expected) -> Result<Copied> {
        let copied = match entry.size_bytes <= copied_at_once() {
            true => {
                let (own, from) = (Arc::clone(&self.bucket), Arc::clone(&from.bucket));
                let (entry, expected) = (entry.clone(), expected.clone());
                wait(async move { whole(&own, &from, &entry, &expected).await })?
            }
            false => return self.copy_parts(from, entry, expected),
        };
        told(copied)
    }

    fn copy_parts(&self, from: &Contents, entry: &Entry, expected: &Expected) -> Result<Copied> {
        let part_bytes = copied_at_once();
        check_size(&entry.key, entry.size_bytes, part_bytes)?;
        let facts = match from.facts(entry)? {
            Answer::There(facts) => facts,
            Answer::Gone | Answer::Changed => return Ok(Copied::Changed),
            Answer::Refused(why) => return Ok(Copied::Refused(why)),
        };
        let (own, other) = (Arc::clone(&self.bucket), Arc::clone(&from.bucket));
        let id = asked!(key = entry.key => begin(&own, &key, &facts))?;
        let (own, key) = (Arc::clone(&self.bucket), entry.key.clone());
        let (entry, expected, upload) = (entry.clone(), expected.clone(), id.clone());
        let copied = wait(async move {
            let mut parts = Vec::new();
            let mut at = 0;
            while at < entry.size_bytes {
                let length = part_bytes.min(entry.size_bytes - at);
                let number = i32::try_from(parts.len() + 1).unwrap_or(i32::MAX);
                let place = (at, length);
                parts.push(part(&own, &other, &entry, (&upload, number), place).await?);
                at += length;
            }
            complete(&own, (&entry.key, &upload), parts, &expected).await
        })?;
        // An upload that the store may still be completing is not taken back.
        if copied.as_ref().is_err_and(|e| !e.is_ambiguous) {
            take_back(&self.bucket, &key, &id);
        }
        told(copied)
    }

    /// Reads the metadata of an object as it was listed, with its tags.
    ///
    /// # Errors
    /// Those of the store that do not concern this object alone.
    pub fn facts(&self, entry: &Entry) -> Result<Answer<Facts>> {
        let known = Facts {
            etag: entry.tag.clone(),
            ..Facts::default()
        };
        let piece = match self.read(&entry.key, (0, 1), Some(&known))? {
            Answer::There(piece) => piece,
            Answer::Gone => return Ok(Answer::Gone),
            Answer::Changed => return Ok(Answer::Changed),
            Answer::Refused(why) => return Ok(Answer::Refused(why)),
        };
        let mut facts = piece.facts;
        if piece.tag_count > 0 {
            match self.tags(&entry.key, &facts)? {
                Answer::There(tags) => facts.tags = tags,
                Answer::Gone => return Ok(Answer::Gone),
                Answer::Changed => return Ok(Answer::Changed),
                Answer::Refused(why) => return Ok(Answer::Refused(why)),
            }
        }
        Ok(Answer::There(facts))
    }
}

/// Tells what became of a copy.
fn told(copied: Answered<String>) -> Result<Copied> {
    match copied {
        Ok(tag) => Ok(Copied::Done(Outcome::Stored(tag))),
        // The condition on the original and that on the place have the same answer.
        Err(failure) if matches!(failure.kind, Kind::Taken | Kind::Absent) => Ok(Copied::Changed),
        Err(failure) if is_refusal(&failure) => Ok(Copied::Refused(failure.error.to_string())),
        Err(failure) => Err(failure.error),
    }
}

/// Whether the store does not make this copy, though it may let the object be read and written.
fn is_refusal(failure: &Failure) -> bool {
    let code = failure.error.code();
    failure.kind == Kind::Final && matches!(code, Code::Unreachable | Code::Denied)
}

fn source(from: &Bucket, key: &str) -> String {
    let full = percent_encoded(from.full(key).as_bytes(), b"/");
    format!("{}/{full}", from.bucket)
}

async fn whole(
    own: &Bucket,
    from: &Bucket,
    entry: &Entry,
    expected: &Expected,
) -> Answered<String> {
    let (absent, tag) = expected.headers();
    let doing = format!("copy object \"{}\"", entry.key);
    own.run_as(Purpose::Creating, &doing, |client| {
        let request = client
            .copy_object()
            .bucket(&own.bucket)
            .key(own.full(&entry.key))
            .copy_source(source(from, &entry.key))
            .copy_source_if_match(&entry.tag)
            .set_if_none_match(absent.clone())
            .set_if_match(tag.clone())
            .metadata_directive(MetadataDirective::Copy)
            .tagging_directive(TaggingDirective::Copy);
        async move {
            let answer = request.send().await?;
            named(answer.copy_object_result().and_then(|r| r.e_tag()))
        }
    })
    .await
}

async fn part(
    own: &Bucket,
    from: &Bucket,
    entry: &Entry,
    (id, number): (&str, i32),
    (at, length): (u64, u64),
) -> Answered<CompletedPart> {
    let doing = format!("copy part {number} of object \"{}\"", entry.key);
    own.run_as(Purpose::Plain, &doing, |client| {
        let request = client
            .upload_part_copy()
            .bucket(&own.bucket)
            .key(own.full(&entry.key))
            .upload_id(id)
            .part_number(number)
            .copy_source(source(from, &entry.key))
            .copy_source_range(format!("bytes={at}-{}", at + length - 1))
            .copy_source_if_match(&entry.tag);
        async move {
            let answer = request.send().await?;
            let tag = named(answer.copy_part_result().and_then(|r| r.e_tag()))?;
            let part = CompletedPart::builder().part_number(number).e_tag(tag);
            Ok(part.build())
        }
    })
    .await
}
