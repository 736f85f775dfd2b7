//! The checksum that goes with a body, and what the store's answer to it is worth.

use std::sync::Arc;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;

use super::client::wait;
use super::listing;
use super::request::Bucket;
use crate::durable::TEMPORARY_PREFIX;
use crate::err;
use crate::store::http::failure::{Answered, Failure, Kind, shown};

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

/// The digits of base64.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// CRC-32C as it stands in a header: base64 of four bytes, the highest first.
pub(super) fn checksum(bytes: &[u8]) -> String {
    encoded(crc32c::crc32c(bytes))
}

fn encoded(sum: u32) -> String {
    let bits = u64::from(sum) << 4;
    let mut text: String = (0..6)
        .rev()
        .map(|n| char::from(DIGITS[usize::try_from(bits >> (6 * n) & 63).unwrap_or(0)]))
        .collect();
    text.push_str("==");
    text
}

fn decoded(text: &str) -> Option<u32> {
    let digits = text.strip_suffix("==").filter(|digits| digits.len() == 6)?;
    let bits = digits.bytes().try_fold(0_u64, |bits, digit| {
        let value = DIGITS.iter().position(|d| *d == digit)?;
        Some(bits << 6 | u64::try_from(value).ok()?)
    });
    u32::try_from(bits? >> 4).ok()
}

/// The checksum of an object from those of its parts, each with its length.
pub(super) fn joined<'a>(parts: impl Iterator<Item = (&'a str, usize)>) -> Option<String> {
    let mut whole = 0;
    for (sum, length) in parts {
        whole = crc32c::crc32c_combine(whole, decoded(sum)?, length);
    }
    Some(encoded(whole))
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
    let key = format!("{TEMPORARY_PREFIX}probe.{:016x}/sum", bucket.random.draw());
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
            // A policy that allows no objects but certain ones: each is read back, and this is not asked for every one.
            "AccessDenied" => Some(false),
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

    #[test]
    fn the_checksum_of_the_whole_follows_from_those_of_the_parts() {
        let bytes: Vec<u8> = (0..100_000_u32)
            .map(|n| n.wrapping_mul(n).to_le_bytes()[1])
            .collect();
        for cuts in [vec![], vec![1], vec![40_000, 99_999]] {
            let ends = cuts.iter().copied().chain([bytes.len()]);
            let begins = [0].into_iter().chain(cuts.iter().copied());
            let parts: Vec<&[u8]> = begins.zip(ends).map(|(a, b)| &bytes[a..b]).collect();
            let sums: Vec<_> = parts.iter().map(|p| (checksum(p), p.len())).collect();
            let told = sums.iter().map(|(sum, length)| (sum.as_str(), *length));
            assert_eq!(joined(told), Some(checksum(&bytes)));
        }
        assert_eq!(joined([("x", 1)].into_iter()), None);
        assert_eq!(decoded(&encoded(0xDEAD_BEEF)), Some(0xDEAD_BEEF));
    }
}
