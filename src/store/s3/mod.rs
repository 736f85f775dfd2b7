//! A store in a bucket of an object store that speaks S3.
//!
//! Creating is one conditional request, so that nothing is ever replaced; a store that ignores the condition is found by `pitr init` and
//! `pitr repo check` and refused. Decisions: `docs/decisions/0011-s3.md`.

use std::sync::Arc;

use super::http::retry::Random;
use super::runtime::asked;
use super::{Deleted, Frozen, Irregular, Key, Listed, Meta, NewObject, Object, Shown, Store};
use crate::config::{S3Settings, StorageClass, TierBy};
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;

mod certificate;
mod checksum;
pub mod class;
pub(super) mod client;
mod clock;
pub mod contents;
mod credential_process;
mod failure;
mod guard;
mod headers;
mod hold;
pub mod lifecycle;
mod listing;
mod markers;
mod multipart;
mod object;
pub mod probe;
mod profile;
mod remembering;
mod request;
mod retention;
mod sums;
pub mod tiering;
mod upload;
mod version;

use class::{Archived, Speed, Thaw};
use client::{Link, wait};
use markers::Markers;
use object::{S3Object, glance};
pub use profile::usual_files;
use request::Bucket;
use tiering::Moved;
use upload::Upload;
pub use upload::put_requests;

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
                random: Random::new(nonce),
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
        asked!(bucket = self.bucket => listing::first_key(&bucket))
    }

    /// Returns what the rules of the bucket do to objects in this place, and which rules tiers need.
    ///
    /// # Errors
    /// Errors of the store; many know no such rules, or do not tell everybody.
    pub fn rules(&self) -> Result<lifecycle::Rules> {
        asked!(bucket = self.bucket => lifecycle::read(&bucket))
    }

    /// The last moment at which the certificate of the server is valid; none for a store that the configuration does not name, and without TLS.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn certificate_end(&self) -> Result<Option<TimestampTz>> {
        let bucket = Arc::clone(&self.bucket);
        wait(async move { bucket.certificate_end().await })
    }

    /// Lists what is below `prefix` in a class from which it must be thawed, thawed or not, and what the store may have archived by itself.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn archived(&self, prefix: &str) -> Result<Vec<Archived>> {
        let (bucket, prefix) = (Arc::clone(&self.bucket), prefix.to_owned());
        Ok(wait(
            async move { class::archived(&bucket, &prefix).await },
        )??)
    }

    /// Asks how far an archived object is.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn thaw_state(&self, key: &str) -> Result<Thaw> {
        asked!(bucket = self.bucket, key = key => class::state(&bucket, &key))
    }

    /// Asks the store to thaw an object for so many days; `false` when it was at it already. It takes back for good what it archived by itself.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn thaw(&self, object: &Archived, days: u32, speed: Speed) -> Result<bool> {
        let (bucket, key) = (Arc::clone(&self.bucket), object.key.clone());
        let days = Some(days).filter(|_| !class::tiers_itself(object.class));
        Ok(wait(async move {
            class::thaw(&bucket, &key, days, speed).await
        })??)
    }

    /// Moves an object to a colder class, in the way that the configuration says.
    ///
    /// # Errors
    /// `Locked` for one that would have to be copied while the store keeps it; `ReadBack` when a copy is another object; errors of the store.
    pub fn move_to(&self, key: &str, class: StorageClass) -> Result<Moved> {
        let (bucket, key) = (Arc::clone(&self.bucket), key.to_owned());
        Ok(wait(async move {
            match bucket.link.settings.tier_by {
                TierBy::Rules => tiering::tag(&bucket, &key, class).await,
                TierBy::Copy => tiering::copy(&bucket, &key, class).await,
            }
        })??)
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
        asked!(bucket = self.bucket, prefix = prefix => listing::list(&bucket, &prefix))
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
        Ok(glance(&self.bucket, key)?.map(|piece| piece.meta))
    }

    fn deleted(&self, key: &Key) -> Result<Option<Deleted>> {
        if !self.bucket.markers.hold(key.as_str()) {
            return Ok(None);
        }
        asked!(own = self.bucket, key = key.as_str() => version::deleted(&own, &key)).map(Some)
    }

    fn frozen(&self, prefix: &str, wanted: &dyn Fn(&str) -> bool) -> Result<Option<Frozen>> {
        let cold = self.archived(prefix)?.into_iter();
        // A look at each object of a class that tiers itself would hold up every restore.
        let cold = cold.filter(|one| one.class.is_archive());
        let cold: Vec<_> = cold.filter(|one| wanted(&one.key)).collect();
        for one in &cold {
            let (bucket, key) = (Arc::clone(&self.bucket), one.key.clone());
            if wait(async move { class::is_frozen(&bucket, &key).await })?? {
                return Ok(Some(Frozen {
                    key: one.key.clone(),
                    class: one.class.to_string(),
                    count: cold.len(),
                }));
            }
        }
        Ok(None)
    }

    fn has_archive(&self) -> bool {
        let mut tiers = self.bucket.link.settings.tiers.iter();
        tiers.any(|tier| tier.class.is_archive())
    }

    fn extend_locks(&self, place: &str, tick: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        retention::extend(&self.bucket, place, tick)
    }

    fn locked_until(&self, key: &Key) -> Result<Option<TimestampTz>> {
        retention::until(&self.bucket, key)
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        // Deleting what is not there is answered like deleting what was, and a locked object is only hidden by it.
        let Some(piece) = glance(&self.bucket, key)? else {
            return Ok(false);
        };
        piece.check_lock(self.bucket.link.clock.unix_seconds())?;
        asked!(bucket = self.bucket, key = key.as_str() => listing::delete(&bucket, &key))?;
        Ok(true)
    }

    fn is_held(&self, key: &Key) -> Result<bool> {
        // The object of a bucket without locks shows none, and its account need not have the right to ask.
        let piece = glance(&self.bucket, key)?;
        Ok(piece.is_some_and(|piece| piece.has_lock()) && hold::is_on(&self.bucket, key)?)
    }

    fn hide(&self, key: &Key) -> Result<Option<TimestampTz>> {
        // A bucket with locks keeps versions: a deletion that names none puts a marker before them.
        let Some(piece) = glance(&self.bucket, key)? else {
            return Ok(None);
        };
        let Some(until) = piece.kept_until()? else {
            return Ok(None);
        };
        asked!(bucket = self.bucket, key = key.as_str() => listing::delete(&bucket, &key))?;
        Ok(Some(until))
    }

    fn has_holds(&self) -> Result<bool> {
        hold::is_known(&self.bucket)
    }

    fn hold(&self, key: &Key, is_on: bool) -> Result<bool> {
        hold::set(&self.bucket, key, is_on)
    }

    fn irregular(&self) -> Result<Vec<Irregular>> {
        asked!(bucket = self.bucket => listing::irregular(&bucket))
    }

    fn discard(&self, unfinished: &str) -> Result<bool> {
        asked!(bucket = self.bucket, path = unfinished => listing::discard(&bucket, &path))
    }

    fn clock(&self) -> Result<Option<TimestampTz>> {
        // Any answer is dated; an old date is not what the clock says now.
        asked!(bucket = self.bucket => listing::touch(&bucket))?;
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
}
