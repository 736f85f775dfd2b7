//! Storage classes whose objects must be thawed, which takes hours, before they can be read: a tier or a rule of the bucket moves objects there.

use std::time::Duration;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{GlacierJobParameters, ObjectStorageClass, RestoreRequest, Tier};

use super::listing::{Listing, check_count};
use super::object::{Part, fetch};
use super::request::Bucket;
use crate::config::StorageClass;
use crate::err;
use crate::error::Code;
use crate::pg::time::TimestampTz;
use crate::store::http::failure::{Answered, Failure, Kind};

/// An object in a class from which it must be thawed, or in which the store may have archived it by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    pub key: String,
    /// Its stored length.
    pub size_bytes: u64,
    pub class: StorageClass,
}

/// Whether an archived object can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thaw {
    /// Nobody has asked for it.
    Frozen,
    /// The store is at it.
    Thawing,
    /// It can be read until then; none where the store does not say.
    Thawed(Option<TimestampTz>),
}

/// How fast the store thaws, and how dear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// Minutes.
    Expedited,
    /// Hours.
    Standard,
    /// Half a day or two days.
    Bulk,
}

impl Speed {
    /// How long the store says that it takes at most, by class; none where a class has no such speed.
    pub fn takes(self, class: StorageClass) -> Option<Duration> {
        // The store does not say which of its two archives an object of the tiering class is in.
        let is_deep = class == StorageClass::DeepArchive || tiers_itself(class);
        let minutes = match (self, is_deep) {
            (Speed::Expedited, true) => return None,
            (Speed::Expedited, false) => 5,
            (Speed::Standard, false) => 5 * 60,
            (Speed::Standard, true) | (Speed::Bulk, false) => 12 * 60,
            (Speed::Bulk, true) => 48 * 60,
        };
        Some(Duration::from_secs(60 * minutes))
    }
}

/// Whether the store archives objects of a class by itself, where the bucket is configured so: only a look at each tells.
pub fn tiers_itself(class: StorageClass) -> bool {
    class == StorageClass::IntelligentTiering
}

/// Lists what is below `prefix` in such a class, thawed or not, and what the store may have archived by itself.
pub(super) async fn archived(bucket: &Bucket, prefix: &str) -> Answered<Vec<Archived>> {
    let mut listing = Listing::of(bucket, &format!("{prefix}/"), false);
    let mut cold = Vec::new();
    while let Some(page) = listing.next().await? {
        for object in page {
            if let Some(class) = object.class.as_ref().and_then(cold_class) {
                cold.push(Archived {
                    size_bytes: object.size_bytes(),
                    key: object.key,
                    class,
                });
            }
        }
        check_count(&cold)?;
    }
    Ok(cold)
}

fn cold_class(class: &ObjectStorageClass) -> Option<StorageClass> {
    StorageClass::named(class.as_str()).filter(|class| class.is_archive() || tiers_itself(*class))
}

/// Whether an object cannot be read. A thawed object is still in its class.
pub(super) async fn is_frozen(bucket: &Bucket, key: &str) -> Answered<bool> {
    match fetch(bucket, key, Part::From(0, 1)).await {
        Ok(_) => Ok(false),
        Err(failure) if failure.error.code() == Code::Damaged => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// Asks how far an archived object is.
pub(super) async fn state(bucket: &Bucket, key: &str) -> Answered<Thaw> {
    let doing = format!("look whether object \"{key}\" is thawed");
    bucket
        .run(&doing, |client| async move {
            let request = client.head_object().bucket(&bucket.bucket);
            let answer = request.key(bucket.full(key)).send().await?;
            let is_asked = answer.restore().map(read_state);
            Ok(match (is_asked, answer.storage_class()) {
                // The store takes back for good what it archived by itself.
                (Some(Thaw::Thawed(_)) | None, _) if answer.archive_status().is_some() => {
                    Thaw::Frozen
                }
                (Some(state), _) => state,
                (None, Some(class)) if is_archive(class.as_str()) => Thaw::Frozen,
                // It has left the class meanwhile.
                (None, _) => Thaw::Thawed(None),
            })
        })
        .await
}

fn is_archive(class: &str) -> bool {
    StorageClass::named(class).is_some_and(StorageClass::is_archive)
}

/// Reads `x-amz-restore`: `ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"`.
fn read_state(said: &str) -> Thaw {
    if said.contains("ongoing-request=\"true\"") {
        return Thaw::Thawing;
    }
    let date = said.split_once("expiry-date=\"").map(|(_, rest)| rest);
    let date = date.and_then(|rest| rest.split('"').next());
    let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
    Thaw::Thawed(date.and_then(|date| TimestampTz::from_unix_seconds(date.secs())))
}

/// Asks the store to thaw an object, for so many days where its class wants a number; `false` when it was at it already.
pub(super) async fn thaw(
    bucket: &Bucket,
    key: &str,
    days: Option<u32>,
    speed: Speed,
) -> Answered<bool> {
    let days = days.map(|days| i32::try_from(days).unwrap_or(i32::MAX));
    let tier = match speed {
        Speed::Expedited => Tier::Expedited,
        Speed::Standard => Tier::Standard,
        Speed::Bulk => Tier::Bulk,
    };
    let doing = format!("have object \"{key}\" thawed");
    bucket
        .run(&doing, |client| {
            let tier = GlacierJobParameters::builder().tier(tier.clone()).build();
            let request = client.restore_object().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key));
            async move {
                let wanted = RestoreRequest::builder()
                    .set_days(days)
                    .glacier_job_parameters(tier.map_err(broken)?)
                    .build();
                match request.restore_request(wanted).send().await {
                    Ok(_) => Ok(true),
                    Err(e) if e.code() == Some("RestoreAlreadyInProgress") => Ok(false),
                    Err(e) if e.code() == Some("GlacierExpeditedRetrievalNotAvailable") => {
                        Err(no_room())
                    }
                    Err(e) => Err(Failure::from(e)),
                }
            }
        })
        .await
}

fn broken(e: impl std::fmt::Display) -> Failure {
    err!(Internal, "a request could not be made: {e}").into()
}

fn no_room() -> Failure {
    let error = err!(Unreachable, "the store thaws nothing within minutes now");
    Failure::new(
        Kind::Final,
        error.hint("Ask again later, or take --speed standard: hours."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_thaw_is_read_as_the_store_says_it() {
        assert_eq!(read_state("ongoing-request=\"true\""), Thaw::Thawing);
        let done = "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2012 00:00:00 GMT\"";
        let until = TimestampTz::from_unix_seconds(1_356_048_000);
        assert_eq!(read_state(done), Thaw::Thawed(until));
        assert_eq!(read_state("ongoing-request=\"false\""), Thaw::Thawed(None));
    }

    #[test]
    fn how_long_it_takes_hangs_on_speed_and_class() {
        use StorageClass::{DeepArchive, Glacier};
        let hours = |speed: Speed, class| speed.takes(class).map(|d| d.as_secs() / 3600);
        assert_eq!(hours(Speed::Expedited, Glacier), Some(0));
        assert_eq!(hours(Speed::Expedited, DeepArchive), None);
        assert_eq!(hours(Speed::Standard, Glacier), Some(5));
        assert_eq!(hours(Speed::Standard, DeepArchive), Some(12));
        assert_eq!(hours(Speed::Bulk, Glacier), Some(12));
        assert_eq!(hours(Speed::Bulk, DeepArchive), Some(48));
    }
}
