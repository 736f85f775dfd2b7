//! Locks: until when the store keeps an object, and how that is extended for one that later backups name.

use std::sync::Arc;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};

use super::listing::{Found, Listing};
use super::request::Bucket;
use crate::config::{LockMode, ObjectLock};
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::store::Key;
use crate::store::http::failure::{Answered, Failure};
use crate::store::runtime::{asked, wait};

/// So many objects of a folder are looked at one by one. The last old one tells of all where there are more: locks are extended in the order of
/// names. A young one tells nothing of them: a healed copy, or what somebody put behind them.
const LOOKED_AT_MAX: usize = 32;

/// Extends the locks of an object, or of all below a folder, where less than half of the period is left; returns how many. Objects that are younger
/// than half of the period were locked when they were written.
pub(super) fn extend(bucket: &Arc<Bucket>, place: &str) -> Result<u64> {
    let Some(lock) = bucket.link.settings.object_lock else {
        return Ok(0);
    };
    let (bucket, place) = (Arc::clone(bucket), place.to_owned());
    Ok(wait(
        async move { extend_all(&bucket, &place, lock).await },
    )??)
}

async fn extend_all(bucket: &Bucket, place: &str, lock: ObjectLock) -> Answered<u64> {
    let objects = objects(bucket, place).await?;
    let clock = &bucket.link.clock;
    let (now, due) = (clock.unix_seconds(), clock.after(lock.period / 2));
    let (Some(now), Some(due)) = (now, due) else {
        return Err(err!(Unreachable, "the store's answers have no date").into());
    };
    let half = due.secs() - now;
    let is_old = |object: &Found| object.modified.is_none_or(|at| at.secs() + half <= now);
    let Some(last) = objects.iter().rfind(|object| is_old(object)) else {
        return Ok(0);
    };
    let is_many = objects.len() > LOOKED_AT_MAX;
    if is_many && is_kept(read(bucket, &last.key).await?.as_ref(), due) {
        return Ok(0);
    }
    let mut extended = 0;
    for object in &objects {
        let kept = read(bucket, &object.key).await?;
        if !is_kept(kept.as_ref(), due) {
            let mode = kept.map_or_else(|| configured(lock), |(mode, _)| mode);
            write(bucket, &object.key, mode, lock).await?;
            extended += 1;
        }
    }
    Ok(extended)
}

/// The object of this key, or what lies below it, in the order of names.
async fn objects(bucket: &Bucket, place: &str) -> Answered<Vec<Found>> {
    let mut listing = Listing::of(bucket, place, false);
    let mut objects = Vec::new();
    while let Some(page) = listing.next().await? {
        let is_of = |key: &str| {
            let rest = key.strip_prefix(place);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        objects.extend(page.into_iter().filter(|object| is_of(&object.key)));
    }
    Ok(objects)
}

type Kept = (ObjectLockRetentionMode, DateTime);

fn is_kept(kept: Option<&Kept>, due: DateTime) -> bool {
    kept.is_some_and(|(_, until)| until.secs() >= due.secs())
}

fn configured(lock: ObjectLock) -> ObjectLockRetentionMode {
    match lock.mode {
        LockMode::Governance => ObjectLockRetentionMode::Governance,
        LockMode::Compliance => ObjectLockRetentionMode::Compliance,
    }
}

/// Until when the store keeps an object; none of one that it does not keep.
pub(super) fn until(bucket: &Arc<Bucket>, key: &Key) -> Result<Option<TimestampTz>> {
    let kept = asked!(bucket = bucket, key = key.as_str() => read(&bucket, &key))?;
    Ok(kept.and_then(|(_, until)| TimestampTz::from_unix_seconds(until.secs())))
}

/// Asks for the lock alone: a host that only writes may not look at its backups.
async fn read(bucket: &Bucket, key: &str) -> Answered<Option<Kept>> {
    let doing = format!("look at the lock of object \"{key}\"");
    bucket
        .run(&doing, |client| async move {
            let request = client.get_object_retention().bucket(&bucket.bucket);
            let answer = match request.key(bucket.full(key)).send().await {
                Err(e) if e.code() == Some("NoSuchObjectLockConfiguration") => return Ok(None),
                answer => answer?,
            };
            let retention = answer.retention();
            let mode = retention.and_then(|r| r.mode()).cloned();
            Ok(mode.zip(retention.and_then(|r| r.retain_until_date()).copied()))
        })
        .await
}

/// Lengthens a lock, or sets it: nobody needs a right to bypass for that.
async fn write(
    bucket: &Bucket,
    key: &str,
    mode: ObjectLockRetentionMode,
    lock: ObjectLock,
) -> Answered<()> {
    let until = bucket.link.clock.after(lock.period);
    let retention = ObjectLockRetention::builder().mode(mode);
    let retention = retention.set_retain_until_date(until).build();
    let doing = format!("extend the lock of object \"{key}\"");
    bucket
        .run(&doing, |client| {
            let request = client.put_object_retention().bucket(&bucket.bucket);
            let request = request.key(bucket.full(key)).retention(retention.clone());
            async move {
                let sent = request.send().await.map(|_| ());
                sent.map_err(Failure::from)
            }
        })
        .await
}
