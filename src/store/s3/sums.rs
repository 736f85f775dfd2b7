//! Whether a store compares the checksums that are sent to it. One that only sends them back confirms nothing by that.
//!
//! Where it does, and TLS keeps a body on its way, the body's SHA-256 is left out of the signature, which covers the checksum: it would be a third
//! look at the same bytes, and takes more of the processor than compressing them where there are no instructions for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;

use super::client::wait;
use super::failure::{Failure, Kind};
use super::listing;
use super::request::Bucket;
use crate::durable::TEMPORARY_PREFIX;

/// What is known of it, in this process.
pub(super) struct Sums {
    state: AtomicU8,
    /// Bodies are signed: nothing else keeps them on their way, or the store wants it.
    is_signing: AtomicBool,
}

/// Nothing was written yet.
const FRESH: u8 = 0;
/// One object was written, and read back.
const ASK: u8 = 1;
const COMPARED: u8 = 2;
const IGNORED: u8 = 3;

impl Sums {
    /// Of a store at `endpoint`. Amazon's own servers, which are behind none, document that they compare.
    pub(super) fn of(endpoint: Option<&str>) -> Sums {
        let (state, is_tls) = match endpoint {
            None => (COMPARED, true),
            Some(endpoint) => (FRESH, endpoint.starts_with("https://")),
        };
        Sums {
            state: AtomicU8::new(state),
            is_signing: AtomicBool::new(!is_tls),
        }
    }

    /// Whether a body goes without its hash in the signature.
    pub(super) fn go_unsigned(&self) -> bool {
        !self.is_signing.load(Ordering::Relaxed) && self.state.load(Ordering::Relaxed) == COMPARED
    }

    /// What an unsigned body came to. Not every store takes one, and a policy may forbid it: after a refusal all are signed, and this one is
    /// tried again.
    pub(super) fn of_unsigned(&self, failure: Failure) -> Failure {
        if failure.kind != Kind::Final {
            return failure;
        }
        self.is_signing.store(true, Ordering::Relaxed);
        Failure {
            kind: Kind::Again,
            ..failure
        }
    }

    pub(super) fn found(&self, compares: Option<bool>) {
        if let Some(compares) = compares {
            let state = if compares { COMPARED } else { IGNORED };
            self.state.store(state, Ordering::Relaxed);
        }
    }
}

/// Whether the checksum in an answer counts. To find out takes a request, as much as reading an object's end: it is worth it for who
/// writes a second object.
pub(super) fn are_compared(bucket: &Arc<Bucket>) -> bool {
    let sums = &bucket.link.sums;
    match sums.state.load(Ordering::Relaxed) {
        COMPARED => true,
        IGNORED => false,
        FRESH => {
            sums.state.store(ASK, Ordering::Relaxed);
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
        .checksum_algorithm(ChecksumAlgorithm::Crc32C)
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
