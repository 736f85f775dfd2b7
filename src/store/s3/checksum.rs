//! The checksum that goes with a body, and what the store's answer to it is worth.

use std::sync::Arc;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;

use super::client::wait;
use super::failure::{Answered, Failure, Kind, shown};
use super::listing;
use super::request::Bucket;
use crate::durable::TEMPORARY_PREFIX;
use crate::err;

/// Whether the store has said a checksum of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmed {
    /// By the checksum of what was sent.
    Yes,
    /// It answered no checksum.
    No,
}

/// Requires that the checksum in the store's answer is that of the sent bytes.
pub(super) fn check_sum(answered: Option<&str>, sent: &str) -> Answered<Confirmed> {
    match answered {
        Some(other) if other != sent => Err(Failure::new(
            Kind::Final,
            err!(
                ReadBack,
                "the store holds other bytes than were sent (CRC-32C {}, not {sent})",
                shown(other)
            ),
        )),
        Some(_) => Ok(Confirmed::Yes),
        None => Ok(Confirmed::No),
    }
}

/// CRC-32C as it stands in a header: base64 of four bytes, the highest first.
pub(super) fn checksum(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(crc32c::crc32c(bytes)) << 4;
    let mut text: String = (0..6)
        .rev()
        .map(|n| char::from(DIGITS[usize::try_from(bits >> (6 * n) & 63).unwrap_or(0)]))
        .collect();
    text.push_str("==");
    text
}

/// Whether the checksum in an answer counts. To find out takes a request, as much as reading an object's end.
pub(super) fn counts(bucket: &Arc<Bucket>) -> bool {
    let sums = &bucket.link.sums;
    sums.are_compared().unwrap_or_else(|| {
        let asked = Arc::clone(bucket);
        let found = wait(async move { ask(&asked).await }).ok().flatten();
        sums.found(found);
        found == Some(true)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_stand_as_the_protocol_wants_them() {
        // The checksum of "123456789" is e3069283: RFC 3720 and every table of checksums.
        assert_eq!(checksum(b"123456789"), "4waSgw==");
        assert_eq!(checksum(b""), "AAAAAA==");
        assert_eq!(check_sum(None, "x").unwrap(), Confirmed::No);
        assert_eq!(check_sum(Some("x"), "x").unwrap(), Confirmed::Yes);
        assert!(check_sum(Some("y"), "x").is_err());
    }
}
