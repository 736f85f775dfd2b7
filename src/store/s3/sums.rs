//! Whether a store compares the checksums that are sent to it. One that only sends them back confirms nothing by that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;

use super::client::wait;
use super::listing;
use super::request::Bucket;
use crate::durable::TEMPORARY_PREFIX;

/// What is known of it, in this process.
pub(super) struct Sums(AtomicU8);

/// Nothing was written yet.
const FRESH: u8 = 0;
/// One object was written, and read back.
const ASK: u8 = 1;
const COMPARED: u8 = 2;
const IGNORED: u8 = 3;

impl Sums {
    /// Amazon's own servers document it.
    pub(super) fn of(is_amazon: bool) -> Sums {
        Sums(AtomicU8::new(if is_amazon { COMPARED } else { FRESH }))
    }

    pub(super) fn found(&self, compares: Option<bool>) {
        if let Some(compares) = compares {
            let state = if compares { COMPARED } else { IGNORED };
            self.0.store(state, Ordering::Relaxed);
        }
    }
}

/// Whether the checksum in an answer counts. To find out takes a request, as much as reading an object's end: it is worth it for who
/// writes a second object.
pub(super) fn are_compared(bucket: &Arc<Bucket>) -> bool {
    let sums = &bucket.link.sums;
    match sums.0.load(Ordering::Relaxed) {
        COMPARED => true,
        IGNORED => false,
        FRESH => {
            sums.0.store(ASK, Ordering::Relaxed);
            false
        }
        _ => {
            let asked = Arc::clone(bucket);
            let found = wait(async move { ask(&asked).await }).ok().flatten();
            sums.found(found);
            found == Some(true)
        }
    }
}

/// Sends bytes with the checksum of others; none when the answer does not tell.
pub(super) async fn ask(bucket: &Bucket) -> Option<bool> {
    let key = format!("{TEMPORARY_PREFIX}probe.{:016x}/sum", bucket.next_random());
    let request = bucket.link.client().put_object().bucket(&bucket.bucket);
    let sent = request
        .key(bucket.full(&key))
        // A policy may forbid all other ways to create.
        .if_none_match("*")
        .checksum_crc32_c("AAAAAA==")
        .body(ByteStream::from_static(b"other bytes"))
        .send();
    // Once: a refusal looks like damage on the way, which would be tried again.
    let answer = tokio::time::timeout(bucket.link.settings.stall_timeout, sent).await;
    match answer.ok()? {
        Ok(stored) if stored.e_tag().is_some_and(|tag| !tag.is_empty()) => {
            // Who may not delete leaves it to the janitor.
            let _ = listing::delete(bucket, &key).await;
            Some(false)
        }
        Ok(_) => None,
        Err(error) => match error.as_service_error()?.code()? {
            "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "InvalidRequest" => {
                Some(true)
            }
            _ => None,
        },
    }
}
