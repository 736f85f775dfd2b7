//! Locks: until when the store keeps an object, and how that is extended for one that later backups name.

use std::sync::Arc;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
use futures_util::future::try_join_all;

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

/// So many objects are asked for, and extended, side by side.
const AT_ONCE: usize = 16;

/// Extends the locks of an object, or of all below a folder, where less than half of the period is left; returns how many. Objects that are younger
/// than half of the period were locked when they were written. A full backup of a large cluster has tens of thousands of them: `tick` is called between a few.
pub(super) fn extend(
    bucket: &Arc<Bucket>,
    place: &str,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<u64> {
    let Some(lock) = bucket.link.settings.object_lock else {
        return Ok(0);
    };
    let (own, place) = (Arc::clone(bucket), place.to_owned());
    let (due, groups) = wait(async move { groups(&own, &place, lock).await })??;
    let mut extended = 0;
    for keys in groups {
        tick()?;
        let own = Arc::clone(bucket);
        extended += wait(async move { extend_all(&own, &keys, lock, due).await })??;
    }
    Ok(extended)
}

/// Returns until when locks have to last, and the objects to be looked at: those of one group side by side, and one group after the other. The last old object
/// is a group of its own, for it tells of those before it; none where it tells that nothing is to be done.
async fn groups(
    bucket: &Bucket,
    place: &str,
    lock: ObjectLock,
) -> Answered<(DateTime, Vec<Vec<String>>)> {
    let objects = objects(bucket, place).await?;
    let clock = &bucket.link.clock;
    let (now, due) = (clock.unix_seconds(), clock.after(lock.period / 2));
    let (Some(now), Some(due)) = (now, due) else {
        return Err(err!(Unreachable, "the store's answers have no date").into());
    };
    let half = due.secs() - now;
    let is_old = |object: &Found| object.modified.is_none_or(|at| at.secs() + half <= now);
    let Some(last) = objects.iter().rposition(is_old) else {
        return Ok((due, Vec::new()));
    };
    let keys: Vec<String> = objects.into_iter().map(|object| object.key).collect();
    let (before, rest) = keys.split_at(last);
    let (last, behind) = rest.split_at(1);
    if keys.len() > LOOKED_AT_MAX {
        for key in last {
            if is_kept(read(bucket, key).await?.as_ref(), due) {
                return Ok((due, Vec::new()));
            }
        }
    }
    let groups = before.chunks(AT_ONCE).chain([last]);
    let groups = groups.chain(behind.chunks(AT_ONCE));
    Ok((due, groups.map(<[String]>::to_vec).collect()))
}

async fn extend_all(
    bucket: &Bucket,
    keys: &[String],
    lock: ObjectLock,
    due: DateTime,
) -> Answered<u64> {
    let each = keys.iter().map(|key| extend_one(bucket, key, lock, due));
    Ok(try_join_all(each).await?.into_iter().sum())
}

/// Extends the lock of one object; returns 1 where that was due.
async fn extend_one(bucket: &Bucket, key: &str, lock: ObjectLock, due: DateTime) -> Answered<u64> {
    let kept = read(bucket, key).await?;
    if is_kept(kept.as_ref(), due) {
        return Ok(0);
    }
    let mode = kept.map_or_else(|| configured(lock), |(mode, _)| mode);
    write(bucket, key, mode, lock).await?;
    Ok(1)
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
