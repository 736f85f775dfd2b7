//! The headers of the request that creates an object: that the name must be free, storage class, encryption by the
//! store, and lock.

use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption, StorageClass};

use super::request::Bucket;
use crate::config::{LockMode, ObjectLock, Sse};
use crate::err;
use crate::error::Result;
use crate::store::Key;

/// The mark of an upload, as metadata of the object.
pub(super) const MARK: &str = "pitr-upload";

/// The condition under which a request may name an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// The name is free.
    Absent,
    /// Nothing, for a store that knows no conditions.
    None,
}

impl Condition {
    /// The one that the settings ask for.
    pub(super) fn of(bucket: &Bucket) -> Condition {
        match bucket.link.settings.unsafe_overwrite {
            true => Condition::None,
            false => Condition::Absent,
        }
    }

    /// As the header `If-None-Match`.
    pub(super) fn header(self) -> Option<String> {
        (self == Condition::Absent).then(|| "*".to_owned())
    }
}

/// The sort of object that a key belongs to. It decides on storage class, lock and size of requests, never on the
/// stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Wal,
    Pack,
    Other,
}

impl Sort {
    pub(super) fn of(key: &Key) -> Sort {
        let has = |part: &str| parts(key).any(|p| p == part);
        if has("wal") || has("conflicts") {
            Sort::Wal
        } else if has("packs") || has("layers") {
            Sort::Pack
        } else {
            Sort::Other
        }
    }
}

/// Whether an object is to be deleted long before a lock would end: increments, and what says that something is in use.
fn is_short_lived(key: &Key) -> bool {
    parts(key).any(|p| p == "open" || p == "events")
}

/// Whether a key lies below the id of a backup, which one process reserves.
pub(super) fn is_of_backup(key: &Key) -> bool {
    matches!(parts(key).next(), Some("backups" | "layers" | "packs"))
}

/// The parts of a key that tell what the object is: a cluster, and other content, may have any name, "events", too.
fn parts(key: &Key) -> impl Iterator<Item = &str> {
    let parts = key.as_str().split('/');
    let is_scope = matches!(parts.clone().next(), Some("clusters" | "aux"));
    parts.skip(if is_scope { 3 } else { 0 })
}

/// Storage class, encryption by the store, and lock of an object.
#[derive(Default)]
struct Dress {
    class: Option<StorageClass>,
    sse: Option<ServerSideEncryption>,
    kms_key: Option<String>,
    lock: Option<(ObjectLockMode, DateTime)>,
}

fn dress(bucket: &Bucket, key: &Key) -> Result<Dress> {
    let settings = &bucket.link.settings;
    let encrypted = Dress {
        sse: settings.sse.map(|sse| match sse {
            Sse::S3 => ServerSideEncryption::Aes256,
            Sse::Kms => ServerSideEncryption::AwsKms,
        }),
        kms_key: settings.sse_kms_key_id.clone(),
        ..Dress::default()
    };
    if bucket.is_trial {
        return Ok(encrypted);
    }
    let class = match Sort::of(key) {
        Sort::Wal => &settings.storage_class.wal,
        Sort::Pack => &settings.storage_class.packs,
        Sort::Other => &settings.storage_class.manifests,
    };
    let lock = settings.object_lock.filter(|_| !is_short_lived(key));
    Ok(Dress {
        class: class.as_deref().map(StorageClass::from),
        lock: lock.map(|lock| locked(bucket, lock)).transpose()?,
        ..encrypted
    })
}

/// A lock counts from the store's clock, which has answered before: the marker is read first. Nobody can lift one that is too long, and
/// one that is missing protects nothing.
fn locked(bucket: &Bucket, lock: ObjectLock) -> Result<(ObjectLockMode, DateTime)> {
    let mode = match lock.mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    };
    let wrong = |what: &str| {
        err!(Unreachable, "objects cannot be locked in \"{}\": {what}", bucket.place).hint(
            "Nothing was stored. A lock counts from the date in the store's answers: correct the clock that is wrong, or the proxy that takes the date away.",
        )
    };
    let clock = &bucket.link.clock;
    let until = clock.after(lock.period);
    let until = until.ok_or_else(|| wrong("its answers have no date"))?;
    match clock.is_far_off() {
        true => Err(wrong("its clock is more than a day from this host's")),
        false => Ok((mode, until)),
    }
}

/// The request with all of that, and the mark. The two kinds of request have the same setters, and no trait in common.
macro_rules! dressed {
    ($name:ident, $request:ty) => {
        pub(super) fn $name(
            request: $request,
            bucket: &Bucket,
            key: &Key,
            mark: &str,
        ) -> Result<$request> {
            let dress = dress(bucket, key)?;
            let (mode, until) = dress.lock.unzip();
            Ok(request
                .metadata(MARK, mark)
                .set_storage_class(dress.class)
                .set_server_side_encryption(dress.sse)
                .set_ssekms_key_id(dress.kms_key)
                .set_object_lock_mode(mode)
                .set_object_lock_retain_until_date(until))
        }
    };
}

dressed!(dressed_put, PutObjectFluentBuilder);
dressed!(dressed_multipart, CreateMultipartUploadFluentBuilder);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_the_key() {
        let sort = |k: &str| Sort::of(&Key::new(k).unwrap());
        assert_eq!(sort("clusters/a/7/wal/00000001/00000000/x"), Sort::Wal);
        assert_eq!(sort("clusters/a/7/packs/b/000000"), Sort::Pack);
        assert_eq!(sort("clusters/a/7/backups/b/manifest"), Sort::Other);
        assert!(is_short_lived(
            &Key::new("clusters/a/7/events/b/begin").unwrap()
        ));
        assert!(!is_short_lived(
            &Key::new("clusters/a/7/backups/b/manifest").unwrap()
        ));
        // A cluster may be called like a kind.
        assert_eq!(sort("clusters/wal/7/packs/b/000000"), Sort::Pack);
        assert!(!is_short_lived(
            &Key::new("clusters/events/7/wal/00000001/00000000/x").unwrap()
        ));
        // So may a directory, a data set, and a set.
        for name in ["events", "open", "wal", "packs", "conflicts"] {
            let of = |rest: &str| format!("aux/files/{name}/{rest}");
            assert_eq!(sort(&of("packs/b/000000")), Sort::Pack, "{name}");
            assert_eq!(sort(&of("backups/b/manifest")), Sort::Other, "{name}");
            let is_short = |rest: &str| is_short_lived(&Key::new(of(rest)).unwrap());
            assert!(!is_short("packs/b/000000"), "{name}");
            assert!(!is_short("backups/b/manifest"), "{name}");
            assert!(is_short("events/b/begin"), "{name}");
        }
    }
}
