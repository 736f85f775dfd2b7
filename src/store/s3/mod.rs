//! A store in a bucket of an object store that speaks S3.
//!
//! Creating is one conditional request, so that nothing is ever replaced; a store that ignores the condition is found by `pitr init` and
//! `pitr repo check` and refused. Decisions: `docs/decisions/0011-s3.md`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::{Deleted, Frozen, Irregular, Key, Listed, Meta, NewObject, Object, Shown, Store};
use crate::config::S3Settings;
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;

mod attempt;
mod calm;
mod certificate;
mod checksum;
mod class;
mod client;
mod clock;
mod credential_process;
mod failure;
mod guard;
mod headers;
mod lifecycle;
mod listing;
mod markers;
mod multipart;
mod object;
pub mod probe;
mod profile;
mod request;
mod secrets;
mod sums;
mod upload;
mod version;

use client::{Link, wait};
use markers::Markers;
use object::{Part, S3Object, read};
use request::Bucket;
pub use request::end_at;
use upload::Upload;

/// Pages of a listing that wait for who goes through them.
const LISTED_AHEAD: usize = 4;
/// Clocks that differ by more than this are reported.
const CLOCK_MAX_SECONDS: u64 = 60;

/// A bucket, and a prefix in it, as a store.
pub struct S3Store {
    bucket: Arc<Bucket>,
}

impl S3Store {
    /// Opens a place; nothing is asked of the store yet. `nonce` is random.
    ///
    /// # Errors
    /// `Config` for settings that cannot be used.
    pub fn open(bucket: &str, prefix: &str, settings: &S3Settings, nonce: u64) -> Result<S3Store> {
        let link = Link::open(settings)?;
        Ok(S3Store::within(link, bucket, prefix, nonce, false))
    }

    fn within(link: Arc<Link>, bucket: &str, prefix: &str, nonce: u64, is_trial: bool) -> S3Store {
        let (place, prefix) = match prefix {
            "" => (format!("s3://{bucket}"), String::new()),
            prefix => (format!("s3://{bucket}/{prefix}"), format!("{prefix}/")),
        };
        S3Store {
            bucket: Arc::new(Bucket {
                link,
                bucket: bucket.to_owned(),
                prefix,
                place,
                random: AtomicU64::new(nonce),
                markers: Markers::default(),
                is_trial,
            }),
        }
    }

    /// The first key in this place, where there is any; what trials and unfinished writes left does not count.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn first_key(&self) -> Result<Option<String>> {
        let bucket = Arc::clone(&self.bucket);
        Ok(wait(async move { listing::first_key(&bucket).await })??)
    }

    /// Returns the bucket's harmful rules for objects in this place: rules that delete them, or move them to a class
    /// from which they must be thawed.
    ///
    /// # Errors
    /// Errors of the store; many know no such rules, or do not tell everybody.
    pub fn harmful_rules(&self) -> Result<Vec<String>> {
        let bucket = Arc::clone(&self.bucket);
        Ok(wait(async move { lifecycle::harmful(&bucket).await })??)
    }
}

/// By how many seconds a store's clock is ahead of `now`, or behind where that is negative, if it is more than a minute. Requests go through all the
/// same: the client learns the difference from an answer.
///
/// # Errors
/// Errors of the store.
pub fn clock_differs(store: &dyn Store, now: impl Fn() -> TimestampTz) -> Result<Option<i64>> {
    let Some(theirs) = store.clock()? else {
        return Ok(None);
    };
    let seconds = theirs.0.saturating_sub(now().0) / 1_000_000;
    Ok(Some(seconds).filter(|s| s.unsigned_abs() > CLOCK_MAX_SECONDS))
}

/// The difference in words.
pub fn shown_difference(seconds: i64) -> String {
    let side = if seconds > 0 { "ahead of" } else { "behind" };
    format!("{} s {side} this host's", seconds.unsigned_abs())
}

impl Store for S3Store {
    fn location(&self) -> String {
        self.bucket.place.clone()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let object = S3Object::open(&self.bucket, key)?;
        Ok(object.map(|object| Box::new(object) as Box<dyn Object>))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        Ok(Box::new(Upload::new(&self.bucket, key)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let (bucket, prefix) = (Arc::clone(&self.bucket), prefix.to_owned());
        Ok(wait(async move { listing::list(&bucket, &prefix).await })??)
    }

    fn objects(&self, see: &mut dyn FnMut(Shown<'_>)) -> Result<()> {
        let bucket = Arc::clone(&self.bucket);
        let (send, pages) = std::sync::mpsc::sync_channel(LISTED_AHEAD);
        let listed =
            std::thread::spawn(move || wait(async move { listing::all(&bucket, &send).await }));
        for object in pages.into_iter().flatten() {
            let (key, meta, class): listing::Whole = object;
            see(Shown {
                key: &key,
                meta,
                class: class.as_deref(),
            });
        }
        let listed = listed.join();
        Ok(listed.map_err(|_| err!(Internal, "the thread that lists panicked"))???)
    }

    /// By reading a byte: to a request for the head alone "not found" is answered without saying what was not found.
    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        Ok(read(&self.bucket, key, Part::From(0, 1))?.map(|piece| piece.meta))
    }

    fn deleted(&self, key: &Key) -> Result<Option<Deleted>> {
        if !self.bucket.markers.hold(key.as_str()) {
            return Ok(None);
        }
        let (bucket, key) = (Arc::clone(&self.bucket), key.as_str().to_owned());
        Ok(Some(wait(async move {
            version::deleted(&bucket, &key).await
        })??))
    }

    fn frozen(&self, prefix: &str, names: Option<[&str; 2]>) -> Result<Option<Frozen>> {
        let (bucket, prefix) = (Arc::clone(&self.bucket), prefix.to_owned());
        let names = names.map(|names| names.map(str::to_owned));
        Ok(wait(async move {
            class::frozen(&bucket, &prefix, names.as_ref()).await
        })??)
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        // Deleting what is not there is answered like deleting what was, and a locked object is only hidden by it.
        let Some(piece) = read(&self.bucket, key, Part::From(0, 1))? else {
            return Ok(false);
        };
        piece.check_lock(self.bucket.link.clock.unix_seconds())?;
        let (bucket, key) = (Arc::clone(&self.bucket), key.as_str().to_owned());
        wait(async move { listing::delete(&bucket, &key).await })??;
        Ok(true)
    }

    fn irregular(&self) -> Result<Vec<Irregular>> {
        let bucket = Arc::clone(&self.bucket);
        Ok(wait(async move { listing::irregular(&bucket).await })??)
    }

    fn discard(&self, unfinished: &str) -> Result<bool> {
        let (bucket, unfinished) = (Arc::clone(&self.bucket), unfinished.to_owned());
        Ok(wait(async move {
            listing::discard(&bucket, &unfinished).await
        })??)
    }

    fn clock(&self) -> Result<Option<TimestampTz>> {
        // Any answer is dated; an old date is not what the clock says now.
        let bucket = Arc::clone(&self.bucket);
        wait(async move { listing::touch(&bucket).await })??;
        let seconds = self.bucket.link.clock.unix_seconds();
        Ok(seconds.and_then(TimestampTz::from_unix_seconds))
    }

    /// By the checksum in its answer, where the store is known to compare checksums, else by reading the object's end.
    fn is_confirming(&self) -> bool {
        true
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
