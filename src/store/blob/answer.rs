//! The meaning of an answer that is no success.
//!
//! "Absent" is only the service's own word for an object. A container that is not there, a refusal, a proxy's page and silence are errors.

use std::error::Error as StdError;

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::Value;

use super::request::Answer;
use crate::config::BlobService;
use crate::error::{Code, Error};
use crate::pg::time::TimestampTz;
use crate::store::http::failure::{Answered, Failure, Kind, chain, shown};

/// The messages of an error and its causes, each once.
pub(super) fn causes(error: &(dyn StdError + 'static)) -> String {
    chain(error)
}

/// No answer came: no connection, one that broke, or one to somebody who cannot say that he is the service.
pub(super) fn without_answer(error: &(dyn StdError + 'static)) -> Failure {
    let is_untrusted = crate::error::causes(error).any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(rustls::Error::InvalidCertificate(_))
        )
    });
    match is_untrusted {
        false => Failure::again(chain(error)),
        true => Failure::new(
            Kind::Untrusted,
            Error::new(Code::Unreachable, chain(error)).hint(
                "The server does not prove that it is the store. Set ca_file in the repository's section to the certificates of whoever issued its own, or correct endpoint.",
            ),
        ),
    }
}

/// Converts the service's answer.
pub(super) fn failure(service: &BlobService, answer: &Answer) -> Failure {
    let (name, message) = match service {
        BlobService::Azure { .. } => azure_words(answer),
        BlobService::Google => google_words(answer),
    };
    let (kind, code) = match service {
        BlobService::Azure { .. } => azure(answer.status, &name),
        BlobService::Google => google(answer.status, &name, &message),
    };
    let mut text = format!("the store answered {}", answer.status);
    match (name.as_str(), message.as_str()) {
        ("", "") => {
            let body = String::from_utf8_lossy(&answer.body);
            let begin: String = body.trim().chars().take(200).collect();
            if !begin.is_empty() {
                text.push_str(&format!(": \"{}\"", shown(&begin)));
            }
        }
        ("", message) => text.push_str(&format!(": {}", shown(message))),
        (name, "") => text.push_str(&format!(" {}", shown(name))),
        (name, message) => text.push_str(&format!(" {}: {}", shown(name), shown(message))),
    }
    let error = Error::new(code, text);
    let error = match (name.as_str(), code) {
        ("BlobArchived" | "BlobBeingRehydrated", _) => error.frozen().hint(
            "Move it back to a tier that can be read at once, with Azure's own tools. pitr moves nothing between tiers there.",
        ),
        (_, Code::Denied) => error.hint(
            "The credentials do not let this be done. docs/stores.md lists the rights that pitr needs.",
        ),
        (_, Code::NoRepository) => {
            error.hint("pitr makes no containers and buckets: create it, or correct url.")
        }
        _ => error,
    };
    Failure {
        is_throttled: matches!(answer.status, 429 | 503) || name.ends_with("ateLimitExceeded"),
        is_upload_gone: is_upload_gone(service, answer.status, &name),
        ..Failure::new(kind, error)
    }
}

fn is_upload_gone(service: &BlobService, status: u16, name: &str) -> bool {
    match service {
        BlobService::Azure { .. } => name == "InvalidBlockList",
        BlobService::Google => matches!(status, 404 | 410),
    }
}

fn azure(status: u16, name: &str) -> (Kind, Code) {
    match (status, name) {
        (404, "BlobNotFound") => (Kind::Absent, Code::NotFound),
        (_, "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled") => {
            (Kind::Final, Code::NoRepository)
        }
        (412, "ConditionNotMet" | "TargetConditionNotMet") | (409, "BlobAlreadyExists") => {
            (Kind::Taken, Code::Conflict)
        }
        (416, _) => (Kind::Range, Code::Damaged),
        (_, "Md5Mismatch" | "Crc64Mismatch") => (Kind::Again, Code::ReadBack),
        (_, "BlobArchived" | "BlobBeingRehydrated") => (Kind::Final, Code::Damaged),
        (_, "BlobImmutableDueToPolicy" | "BlobImmutableDueToLegalHold") => {
            (Kind::Final, Code::Locked)
        }
        (401, _) | (403, "AuthenticationFailed" | "InvalidAuthenticationInfo") => {
            (Kind::Expired, Code::Denied)
        }
        (403 | 405, _) | (_, "SnapshotsPresent") => (Kind::Final, Code::Denied),
        (409, name) if name.starts_with("Lease") => (Kind::Final, Code::Denied),
        (501, _) => (Kind::Final, Code::Unreachable),
        (408 | 409 | 425 | 429 | 500..=599, _) => (Kind::Again, Code::Unreachable),
        // The answer of a proxy, or of an unknown program: it does not say that no object is there.
        _ => (Kind::Final, Code::Unreachable),
    }
}

fn google(status: u16, name: &str, message: &str) -> (Kind, Code) {
    match (status, name) {
        // The answer does not say what is not there: the caller asks a listing.
        (404 | 410, _) => (Kind::Absent, Code::NotFound),
        (412, _) => (Kind::Taken, Code::Conflict),
        (416, _) => (Kind::Range, Code::Damaged),
        (_, "retentionPolicyNotMet" | "objectUnderActiveHold") => (Kind::Final, Code::Locked),
        (403, "rateLimitExceeded" | "userRateLimitExceeded") => (Kind::Again, Code::Unreachable),
        (_, "quotaExceeded") => (Kind::Final, Code::Full),
        (400, _) if message.contains("match") && message.to_lowercase().contains("crc32c") => {
            (Kind::Again, Code::ReadBack)
        }
        (401, _) => (Kind::Expired, Code::Denied),
        (403 | 405, _) => (Kind::Final, Code::Denied),
        (501, _) => (Kind::Final, Code::Unreachable),
        (408 | 409 | 425 | 429 | 500..=599, _) => (Kind::Again, Code::Unreachable),
        _ => (Kind::Final, Code::Unreachable),
    }
}

/// The code in the head, for an answer to a HEAD has no body; the message in the document.
fn azure_words(answer: &Answer) -> (String, String) {
    let body = String::from_utf8_lossy(&answer.body);
    let element = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    let code = answer.header("x-ms-error-code").map(str::to_owned);
    let message = element("Message").unwrap_or_default();
    let message = message.lines().next().unwrap_or_default().to_owned();
    (
        code.or_else(|| element("Code")).unwrap_or_default(),
        message,
    )
}

fn google_words(answer: &Answer) -> (String, String) {
    let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let error = &document["error"];
    (text(&error["errors"][0]["reason"]), text(&error["message"]))
}

/// A date as heads of answers have it.
pub(super) fn http_date(text: Option<&str>) -> Answered<TimestampTz> {
    date(text, DateTimeFormat::HttpDate)
}

/// A date as documents have it.
pub(super) fn document_date(text: Option<&str>) -> Answered<TimestampTz> {
    date(text, DateTimeFormat::DateTime)
}

/// A missing date is not guessed, for what is old is deleted.
fn date(text: Option<&str>, format: DateTimeFormat) -> Answered<TimestampTz> {
    text.and_then(|text| DateTime::from_str(text, format).ok())
        .and_then(|time| TimestampTz::from_unix_seconds(time.secs()))
        .ok_or_else(|| Failure::again("the store's answer has no date"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::http::HeaderMap;

    fn answer(status: u16, code: Option<&'static str>, body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(code) = code {
            headers.insert("x-ms-error-code", code.parse().unwrap());
        }
        Answer {
            status,
            headers,
            body: body.as_bytes().into(),
        }
    }

    #[test]
    fn only_the_service_itself_calls_an_object_absent() {
        use Code::{
            Conflict, Damaged, Denied, Locked, NoRepository, NotFound, ReadBack, Unreachable,
        };
        use Kind::{Absent, Again, Expired, Final, Taken};
        let azure = BlobService::Azure {
            account: "a".into(),
        };
        for (status, code, kind, means) in [
            (404, Some("BlobNotFound"), Absent, NotFound),
            (404, Some("ContainerNotFound"), Final, NoRepository),
            (404, None, Final, Unreachable),
            (409, Some("BlobAlreadyExists"), Taken, Conflict),
            (412, Some("ConditionNotMet"), Taken, Conflict),
            (412, None, Final, Unreachable),
            (403, Some("AuthenticationFailed"), Expired, Denied),
            (403, Some("AuthorizationFailure"), Final, Denied),
            (400, Some("Md5Mismatch"), Again, ReadBack),
            (409, Some("BlobArchived"), Final, Damaged),
            (409, Some("BlobImmutableDueToPolicy"), Final, Locked),
            (503, Some("ServerBusy"), Again, Unreachable),
            (301, None, Final, Unreachable),
        ] {
            let failure = failure(&azure, &answer(status, code, ""));
            assert_eq!(
                (&failure.kind, failure.error.code()),
                (&kind, means),
                "{status} {code:?}"
            );
        }
    }

    #[test]
    fn reasons_of_google_are_told_apart() {
        let body = |reason: &str| -> &'static str {
            let text = format!(
                "{{\"error\": {{\"code\": 403, \"message\": \"no\", \"errors\": [{{\"reason\": \"{reason}\"}}]}}}}"
            );
            Box::leak(text.into_boxed_str())
        };
        for (status, reason, kind, means) in [
            (404, "notFound", Kind::Absent, Code::NotFound),
            (403, "forbidden", Kind::Final, Code::Denied),
            (403, "retentionPolicyNotMet", Kind::Final, Code::Locked),
            (403, "rateLimitExceeded", Kind::Again, Code::Unreachable),
            (401, "authError", Kind::Expired, Code::Denied),
            (412, "conditionNotMet", Kind::Taken, Code::Conflict),
        ] {
            let failure = failure(&BlobService::Google, &answer(status, None, body(reason)));
            assert_eq!(
                (&failure.kind, failure.error.code()),
                (&kind, means),
                "{reason}"
            );
            assert!(failure.error.to_string().contains(reason));
        }
        let page = answer(502, None, "<html>bad gateway</html>");
        let failure = failure(&BlobService::Google, &page);
        assert!(failure.error.to_string().contains("bad gateway"));
    }
}
