//! Legal holds: nobody deletes an object on which one lies, until somebody with a right of its own takes it away.

use std::sync::Arc;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{ObjectLockEnabled, ObjectLockLegalHold, ObjectLockLegalHoldStatus};

use super::client::wait;
use super::object::glance;
use super::request::Bucket;
use crate::err;
use crate::error::{Code, Result};
use crate::store::Key;
use crate::store::http::failure::{Answered, Failure, Kind};

/// Whether the bucket has Object Lock. A store that does not know the question answers with something else, or refuses it; one that is asked for a hold
/// all the same could take that for a new object.
pub(super) fn is_known(bucket: &Arc<Bucket>) -> Result<bool> {
    let bucket = Arc::clone(bucket);
    let answer: Answered<bool> = wait(async move {
        bucket
            .run("read the Object Lock of the bucket", |client| {
                let request = client.get_object_lock_configuration();
                let request = request.bucket(&bucket.bucket);
                async move {
                    let answer = match request.send().await.map_err(Failure::from) {
                        // It answers another question: a store that does not know this one.
                        Err(failure) if failure.is_unreadable => return Ok(false),
                        answer => answer?,
                    };
                    let lock = answer.object_lock_configuration();
                    let lock = lock.and_then(|lock| lock.object_lock_enabled());
                    Ok(lock == Some(&ObjectLockEnabled::Enabled))
                }
            })
            .await
    })?;
    match answer {
        Ok(is_on) => Ok(is_on),
        // The store's own word: none is configured, or it has none at all.
        Err(failure)
            if failure.kind == Kind::Final && failure.error.code() == Code::Unreachable =>
        {
            Ok(false)
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Whether a hold lies on an object. The object itself shows it to those alone who may ask for this, too.
pub(super) fn is_on(bucket: &Arc<Bucket>, key: &Key) -> Result<bool> {
    let (asked, name) = (Arc::clone(bucket), key.as_str().to_owned());
    let answer: Answered<bool> = wait(async move {
        let doing = format!("read the legal hold of object \"{name}\"");
        asked
            .run(&doing, |client| {
                let request = client.get_object_legal_hold().bucket(&asked.bucket);
                let request = request.key(asked.full(&name));
                async move {
                    let answer = match request.send().await {
                        Err(e) if e.code() == Some("NoSuchObjectLockConfiguration") => {
                            return Ok(false);
                        }
                        answer => answer.map_err(Failure::from)?,
                    };
                    let hold = answer.legal_hold().and_then(|hold| hold.status());
                    Ok(hold == Some(&ObjectLockLegalHoldStatus::On))
                }
            })
            .await
    })?;
    answer.map_err(|failure| {
        let error = crate::error::Error::from(failure);
        match error.code() {
            Code::Denied => {
                error.hint("Nothing was changed. Give this account s3:GetObjectLegalHold.")
            }
            _ => error,
        }
    })
}

/// Sets the hold of an object or takes it away, and reads that back; `false` where there is no object.
pub(super) fn set(bucket: &Arc<Bucket>, key: &Key, is_on: bool) -> Result<bool> {
    let status = match is_on {
        true => ObjectLockLegalHoldStatus::On,
        false => ObjectLockLegalHoldStatus::Off,
    };
    let hold = ObjectLockLegalHold::builder().status(status).build();
    let (asked, name) = (Arc::clone(bucket), key.as_str().to_owned());
    let answer: Answered<()> = wait(async move {
        let doing = format!("set the legal hold of object \"{name}\"");
        asked
            .run(&doing, |client| {
                let request = client.put_object_legal_hold().bucket(&asked.bucket);
                let request = request.key(asked.full(&name)).legal_hold(hold.clone());
                async move { Ok(request.send().await.map(|_| ())?) }
            })
            .await
    })?;
    match answer {
        Ok(()) => {}
        Err(failure) if failure.kind == Kind::Absent => return Ok(false),
        Err(failure) => return Err(failure.into()),
    }
    let Some(piece) = glance(bucket, key)? else {
        return Ok(false);
    };
    match piece.is_held() == is_on {
        true => Ok(true),
        false => Err(err!(
            ReadBack,
            "the store does not show the legal hold of object \"{key}\" as it was set"
        )
        .hint("An account that sets holds needs s3:GetObjectLegalHold, too.")),
    }
}
