//! Whether an object store can keep what a repository promises: tried on a few small objects under a temporary prefix.
//!
//! Stores were found that answer 200 to a conditional creation and overwrite, and one that lets two who create at the same time win.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use bytes::Bytes;

use super::headers::{Condition, dressed_put};
use super::multipart::Multipart;
use super::object::{Part, fetch};
use super::request::Bucket;
use super::upload::{mark_of, put};
use super::{S3Store, checksum, listing};
use crate::durable::TEMPORARY_PREFIX;
use crate::err;
use crate::error::{Code, Result};
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::runtime::{asked, wait};
use crate::store::{Key, Store as _};

/// How many create the same object at once, and how often that is tried.
const CREATORS: usize = 16;
const ROUNDS: usize = 4;

/// The findings about a store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Weaknesses of the store, as clauses.
    pub weaknesses: Vec<String>,
    /// Whether these credentials may delete; none where that was not answered.
    pub may_delete: Option<bool>,
}

/// How a store treats a name that is taken.
#[derive(Debug, PartialEq, Eq)]
enum Creation {
    /// It refuses it.
    Kept,
    /// It does this instead.
    Broken(String),
    /// It does not show at once what is there.
    Late(&'static str),
}

impl S3Store {
    /// A store of its own inside this one, below a temporary prefix: nobody takes what is there for objects of the repository, and the
    /// janitor takes away what is left of it.
    pub fn aside(&self, nonce: u64) -> S3Store {
        self.trial_at(&format!("{TEMPORARY_PREFIX}probe.{nonce:016x}"), nonce)
    }

    /// As [`S3Store::aside`], below a folder of this store: a policy may allow creation there alone.
    pub fn aside_below(&self, folder: &str, nonce: u64) -> S3Store {
        self.trial_at(
            &format!("{folder}/{TEMPORARY_PREFIX}probe.{nonce:016x}"),
            nonce,
        )
    }

    fn trial_at(&self, place: &str, nonce: u64) -> S3Store {
        let link = Arc::clone(&self.bucket.link);
        // The prefix of a store has its slash at the end, or is empty.
        let prefix = format!("{}{place}", self.bucket.prefix);
        S3Store::within(link, &self.bucket.bucket, &prefix, nonce, true)
    }

    /// Writes over an object of a trial, without the condition under which everything else is written; whether the bucket keeps the former one as
    /// a version.
    ///
    /// # Errors
    /// `Denied` where objects cannot be replaced; what the store says.
    pub fn replace(&self, key: &Key) -> Result<bool> {
        const CONTENT: &[u8] = b"replaced";
        let (bucket, key) = (Arc::clone(&self.bucket), key.clone());
        let doing = format!("replace object \"{key}\" of a trial");
        Ok(wait(async move {
            let mark = format!("{:016x}", bucket.random.draw());
            let (bucket, key, mark) = (&bucket, &key, &mark);
            bucket
                .run(&doing, |client| async move {
                    let request = client.put_object().bucket(&bucket.bucket);
                    let request = request
                        .key(bucket.full(key))
                        .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                        .checksum_crc32_c(checksum::checksum(CONTENT))
                        .body(ByteStream::from_static(CONTENT));
                    let stored = dressed_put(request, bucket, key, mark)?.send().await?;
                    let version = stored.version_id().unwrap_or_default();
                    // The only version is called so where they are suspended.
                    Ok(!version.is_empty() && version != "null")
                })
                .await
        })??)
    }

    /// Takes away everything in this place; `false` when the store refuses.
    ///
    /// # Errors
    /// Other answers than a refusal.
    pub fn clear(&self) -> Result<bool> {
        let bucket = Arc::clone(&self.bucket);
        match wait(async move { listing::clear(&bucket).await })? {
            Ok(()) => Ok(true),
            Err(failure) if failure.error.code() == Code::Denied => Ok(false),
            Err(failure) => Err(failure.error),
        }
    }

    /// Tries the store.
    ///
    /// # Errors
    /// `Refused` when it does not keep an object that is there, unless `unsafe_overwrite` is set; what it says when it cannot be tried.
    pub fn probe(&self, nonce: u64) -> Result<Found> {
        let aside = self.aside(nonce);
        let tried = aside.try_creation();
        let sums = aside.compares_sums()?;
        let may_delete = aside.clear();
        let creation = tried?;
        let mut found = Found::default();
        match (creation, self.bucket.link.settings.unsafe_overwrite) {
            (Creation::Late(how), _) => {
                return Err(err!(Refused, "the store of \"{}\" {how}", self.bucket.place).hint(
                    "What such a store calls absent may be there, and recovery would end too early. Use a store that shows at once what it holds: no setting accepts another.",
                ));
            }
            (Creation::Kept, false) => {}
            (Creation::Kept, true) => found.weaknesses.push(
                "keeps what is there: unsafe_overwrite = true is not needed, and weakens it".to_owned(),
            ),
            (Creation::Broken(how), true) => found.weaknesses.push(format!(
                "{how}: with unsafe_overwrite = true each name is looked at first, and two writers at the same time can still lose WAL"
            )),
            (Creation::Broken(how), false) => {
                return Err(err!(Refused, "the store of \"{}\" {how}", self.bucket.place).hint(
                    "Archived WAL could be replaced by other bytes unnoticed. Use a store that honours If-None-Match, such as Amazon S3. With unsafe_overwrite = true in the repository's section pitr looks before it writes, which two writers at the same time get past.",
                ));
            }
        }
        self.bucket.link.sums.found(sums);
        if sums == Some(false) {
            found.weaknesses.push(
                "does not compare checksums: the end of each object is read back, and what is damaged before it on its way is found only when it is read".to_owned(),
            );
        }
        found.may_delete = may_delete.ok();
        if found.may_delete == Some(true) && !aside.list("")?.is_empty() {
            found.weaknesses.push(
                "still shows what was deleted: plans may count on it, until it is read".to_owned(),
            );
        }
        Ok(found)
    }

    fn try_creation(&self) -> Result<Creation> {
        let small = asked!(bucket = self.bucket => one_after_the_other(&bucket))?;
        if small != Creation::Kept {
            return Ok(small);
        }
        for round in 0..ROUNDS {
            let raced = asked!(bucket = self.bucket => at_the_same_time(&bucket, round))?;
            if raced != Creation::Kept {
                return Ok(raced);
            }
        }
        self.in_parts()
    }

    /// An upload in parts must not complete over a name that is taken.
    fn in_parts(&self) -> Result<Creation> {
        let key = Key::new("once")?;
        let mut upload = Multipart::begin(&self.bucket, &key, "probe", Condition::Absent)?;
        upload.send(Bytes::from_static(b"parts"))?;
        match upload.complete() {
            Ok(_) => Ok(Creation::Broken(
                "replaces an object by one that was uploaded in parts".to_owned(),
            )),
            Err(failure) if failure.kind == Kind::Taken => Ok(Creation::Kept),
            Err(failure) => Err(failure.error),
        }
    }

    /// Whether bytes are refused that do not have the checksum sent with them; none where that was not found out.
    fn compares_sums(&self) -> Result<Option<bool>> {
        let bucket = Arc::clone(&self.bucket);
        wait(async move { checksum::ask(&bucket).await })
    }
}

/// Creates an object whose content is its mark; `false` when the name is another's.
async fn create(bucket: &Bucket, key: &Key, mark: &str) -> Answered<bool> {
    let content = Bytes::from(mark.to_owned());
    match put(bucket, key, mark, content, Condition::Absent).await {
        Ok(_) => Ok(true),
        // The answer to an attempt that created it may have been lost.
        Err(failure) if failure.kind == Kind::Taken && failure.is_ambiguous => {
            Ok(mark_of(bucket, key).await?.as_deref() == Some(mark))
        }
        Err(failure) if failure.kind == Kind::Taken => Ok(false),
        Err(failure) => Err(failure),
    }
}

async fn one_after_the_other(bucket: &Bucket) -> Answered<Creation> {
    let key = Key::new("once")?;
    if !create(bucket, &key, "first").await? {
        return Ok(Creation::Broken(
            "calls a name taken that nobody has used".to_owned(),
        ));
    }
    if create(bucket, &key, "second").await? {
        return Ok(Creation::Broken(
            "replaces objects instead of refusing a name that is taken".to_owned(),
        ));
    }
    let kept = fetch(bucket, key.as_str(), Part::Last(64)).await?;
    let listed = listing::list(bucket, "").await?;
    if kept.is_some() && !listed.iter().any(|l| l.name == key.as_str()) {
        return Ok(Creation::Late("lists late what was created"));
    }
    Ok(match kept {
        Some(piece) if piece.bytes.as_ref() == b"first" => Creation::Kept,
        Some(_) => Creation::Broken(
            "refuses a name that is taken, and replaces it all the same".to_owned(),
        ),
        None => Creation::Late("does not show what was just created"),
    })
}

async fn at_the_same_time(bucket: &Arc<Bucket>, round: usize) -> Answered<Creation> {
    let key = Key::new(format!("race-{round}"))?;
    let creators: Vec<_> = (0..CREATORS)
        .map(|n| {
            let (bucket, key) = (Arc::clone(bucket), key.clone());
            tokio::spawn(async move { create(&bucket, &key, &format!("creator-{n}")).await })
        })
        .collect();
    let mut winners = 0;
    for creator in creators {
        let won = creator
            .await
            .map_err(|_| Failure::again("a creator panicked"))?;
        winners += usize::from(won?);
    }
    Ok(match winners {
        1 => Creation::Kept,
        n => Creation::Broken(format!(
            "lets {n} of {CREATORS} who create an object at the same time win"
        )),
    })
}
