//! The meaning of an answer that is no success: absent, taken, try again, or an error that an operator has to mend.
//!
//! "Absent" is only the store's own word for a key. A bucket that is not there, a refusal, a proxy's page and silence are errors.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use crate::err;
use crate::error::{Code, Error, causes};
use crate::store::http::failure::{Failure, Kind, chain, shown};

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Failure {
        match &error {
            SdkError::ServiceError(service) => {
                let answer = Answer {
                    status: service.raw().status().as_u16(),
                    code: service.err().code().unwrap_or_default(),
                    message: service.err().message().unwrap_or_default(),
                    region: service.raw().headers().get("x-amz-bucket-region"),
                    date: service.raw().headers().get("date"),
                    body: service.raw().body().bytes().unwrap_or_default(),
                };
                answer.failure()
            }
            SdkError::ResponseError(answer) => Failure::again(format!(
                "the answer ({}) cannot be understood: {}",
                answer.raw().status(),
                chain(&error)
            )),
            // Nothing was sent, and nothing will be.
            SdkError::ConstructionFailure(_) => {
                Failure::new(Kind::Final, Error::new(Code::Config, chain(&error)))
            }
            SdkError::DispatchFailure(failure) if failure.is_user() => {
                Failure::new(Kind::Final, Error::new(Code::Unreachable, chain(&error)))
            }
            _ => without_answer(&error),
        }
    }
}

/// No answer came: no credentials, no connection, one that broke, or one to somebody who cannot say that he is the store.
fn without_answer(error: &(dyn StdError + 'static)) -> Failure {
    for cause in causes(error) {
        if let Some(credentials) = cause.downcast_ref::<CredentialsError>() {
            return credentials_failure(credentials);
        }
        if let Some(rustls::Error::InvalidCertificate(_)) = cause.downcast_ref() {
            return Failure::new(
                Kind::Untrusted,
                Error::new(Code::Unreachable, chain(error)).hint(
                    "The server does not prove that it is the store. Set ca_file in the repository's section to the certificates of whoever issued its own, or correct endpoint.",
                ),
            );
        }
    }
    Failure::again(chain(error))
}

fn credentials_failure(error: &CredentialsError) -> Failure {
    let text = chain(error);
    if let Some(what) = left_out(&text) {
        return Failure::new(
            Kind::Final,
            err!(Config, "the profile takes credentials from {what}, which pitr does not do").hint(
                "Use a profile with keys, or with a role_arn and a source of them; a credentials_file; a web identity; or the role of the container or machine. What is signed in for a person ends when nobody is there to renew it.",
            ),
        );
    }
    match error {
        CredentialsError::ProviderTimedOut(_) => Failure::again(format!(
            "the provider of credentials does not answer: {text}"
        )),
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
            no_credentials(&text)
        }
        _ if text.contains(REFUSED_BY_MACHINE) => no_credentials(&text),
        _ => Failure::again(format!("credentials could not be had: {text}")),
    }
}

/// The client's message if the machine's provider forbids this process to ask it: another minute changes nothing about
/// that.
const REFUSED_BY_MACHINE: &str = "IMDS is disabled or the caller has insufficient permissions";

fn no_credentials(text: &str) -> Failure {
    Failure::new(
        Kind::Final,
        err!(Config, "there are no credentials: {text}").hint(
            "Nothing was asked of the store. Set credentials_file or profile in the repository's section, or give the process AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity, or a role of the machine.",
        ),
    )
}

/// Returns the feature that a profile asks for and this program is built without; the client names its own build for
/// it.
fn left_out(text: &str) -> Option<&'static str> {
    let (_, feature) = text.split_once("following cargo feature(s) enabled: ")?;
    let name = feature.split(['.', ' ', ',']).next()?;
    Some(match name {
        "sso" => "single sign-on (sso_session, sso_start_url)",
        "credentials-login" => "\"aws login\" (login_session)",
        _ => return None,
    })
}

/// The store's code for an object in a class that keeps it from being read.
const FROZEN: &str = "InvalidObjectState";

/// Characters that are shown of a body that cannot be understood.
const EXCERPT_MAX: usize = 200;

/// The store's answer.
struct Answer<'a> {
    status: u16,
    code: &'a str,
    message: &'a str,
    region: Option<&'a str>,
    date: Option<&'a str>,
    body: &'a [u8],
}

impl Answer<'_> {
    fn failure(&self) -> Failure {
        let (kind, code) = self.meaning();
        let error = Error::new(code, self.text(&kind));
        let error = match self.code {
            FROZEN => error.frozen(),
            _ => error,
        };
        let error = match self.hint(code, &kind) {
            Some(hint) => error.hint(hint),
            None => error,
        };
        Failure {
            is_upload_gone: self.code == "NoSuchUpload",
            is_unreadable: (200..=299).contains(&self.status) && self.code.is_empty(),
            is_throttled: matches!(self.status, 429 | 503) || is_throttling(self.code),
            ..Failure::new(kind, error)
        }
    }

    fn meaning(&self) -> (Kind, Code) {
        match (self.status, self.code) {
            (404, "NoSuchKey" | "NoSuchVersion") => (Kind::Absent, Code::NotFound),
            (_, "NoSuchBucket") => (Kind::Final, Code::NoRepository),
            (412, _) | (_, "PreconditionFailed") => (Kind::Taken, Code::Conflict),
            (416, _) => (Kind::Range, Code::Damaged),
            (_, "RequestTimeTooSkewed") => (Kind::Skewed, Code::Denied),
            (_, code) if is_about_credentials(code) => (Kind::Expired, Code::Denied),
            (300..=399, _)
            | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                self.elsewhere()
            }
            (_, "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded")
            | (507, _) => (Kind::Final, Code::Full),
            (_, FROZEN) => (Kind::Final, Code::Damaged),
            // The body was changed on its way; the next one may not be.
            (
                _,
                "BadDigest"
                | "InvalidDigest"
                | "XAmzContentSHA256Mismatch"
                | "XAmzContentChecksumMismatch",
            ) => (Kind::Again, Code::ReadBack),
            (501, _) => (Kind::Final, Code::Unreachable),
            // A success that is none, and every trouble of a server or of what stands before it: 520 to 530 are those of a CDN.
            (200..=299 | 408 | 409 | 425 | 429 | 500..=599, _) => (Kind::Again, Code::Unreachable),
            (_, code) if is_passing(code) || is_throttling(code) => {
                (Kind::Again, Code::Unreachable)
            }
            (401 | 403, "") if self.body.is_empty() => (Kind::Wordless, Code::Denied),
            (400, "") if self.body.is_empty() => (Kind::Wordless, Code::Unreachable),
            (401 | 403 | 405, _) => (Kind::Final, Code::Denied),
            // This answer comes from a bucket, a proxy or an unknown program: it does not say that no object is there.
            _ => (Kind::Final, Code::Unreachable),
        }
    }

    /// Returns the kind for the other region, if the answer names a possible one. Else the error is final; an answer
    /// without a code is a page that is not the store's.
    fn elsewhere(&self) -> (Kind, Code) {
        match self.region {
            Some(region) if is_region(region) => (Kind::Elsewhere(region.to_owned()), Code::Config),
            _ if !self.code.is_empty() => (Kind::Final, Code::Config),
            _ => (Kind::Final, Code::Unreachable),
        }
    }

    fn text(&self, kind: &Kind) -> String {
        let mut text = match (self.code, self.message) {
            (FROZEN, _) => "the store must thaw it before it can be read".to_owned(),
            ("", _) => format!("the store answered {}{}", self.status, self.excerpt()),
            (code, "") => format!("the store answered {} {}", self.status, shown(code)),
            (code, message) => format!(
                "the store answered {} {}: {}",
                self.status,
                shown(code),
                shown(message)
            ),
        };
        match (kind, self.date) {
            (Kind::Elsewhere(region), _) => {
                text.push_str(&format!("; the bucket is in region \"{}\"", shown(region)));
            }
            (Kind::Skewed, Some(date)) => {
                if let Some(seconds) = ahead(date) {
                    text.push_str(&format!("; its clock is {seconds} s ahead of this host's"));
                }
            }
            _ => {}
        }
        text
    }

    /// How a body begins that cannot be understood: whoever sent it is known by that.
    fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(self.body);
        match text.trim() {
            "" => String::new(),
            text => {
                let text = shown(text);
                let begins = text.chars().take(EXCERPT_MAX).collect::<String>();
                format!(", and nothing that can be understood: \"{begins}\"")
            }
        }
    }

    fn hint(&self, code: Code, kind: &Kind) -> Option<&'static str> {
        Some(match (code, kind) {
            (_, Kind::Skewed) => {
                "Correct the clock of this host: requests are signed with its time."
            }
            (_, Kind::Expired) => match self.code {
                "SignatureDoesNotMatch" => {
                    "The secret key is wrong, or something on the way changes requests."
                }
                "InvalidAccessKeyId" | "InvalidToken" => {
                    "The store does not know these credentials. Replace them where they come from: they are read anew when they are refused. \"pitr repo check\" shows what they may do."
                }
                _ => {
                    "Renew the credentials: whoever issues them answers, but with ones that have run out."
                }
            },
            (Code::NoRepository, _) => {
                "Nothing was read or written. Correct the url, or create the bucket; pitr does not create buckets."
            }
            (Code::Config, _) => "Correct region or endpoint in the repository's section.",
            (Code::Full, _) => {
                "Nothing was stored and nothing is lost: PostgreSQL keeps the file and offers it again. Raise the quota; never delete from pg_wal by hand."
            }
            (Code::Damaged, Kind::Final) => {
                "The object is in an archive class: have the store thaw it first, which takes hours (pitr repo thaw --backup ID)."
            }
            (Code::Denied, _) => {
                "Look at the credentials and at the bucket's policy: \"pitr repo check\" shows what they may do. Readers need the right to list (s3:ListBucket): without it an absent object cannot be told from a forbidden one."
            }
            _ if self.status == 501 => {
                "The store does not know what pitr needs. See \"pitr repo check\"."
            }
            _ if (300..=399).contains(&self.status) => {
                "Something between this host and the store answers in its place: a login page, a proxy. Look at endpoint and network."
            }
            _ => return None,
        })
    }
}

/// Whether the credentials are what is refused: run out, replaced or withdrawn. Whoever issues them may have others by now.
fn is_about_credentials(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken"
            | "ExpiredTokenException"
            | "TokenRefreshRequired"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "SignatureDoesNotMatch"
    )
}

/// Whether an error passes, whatever the status it comes with; S3 says some only behind the head of a success.
fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "ConditionalRequestConflict"
            | "InternalError"
            | "OperationAborted"
            | "RequestTimeout"
            | "ServiceUnavailable"
    )
}

/// Whether the store wants to be asked less, whatever the status that comes with it.
fn is_throttling(code: &str) -> bool {
    matches!(
        code,
        "RequestLimitExceeded"
            | "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
    )
}

fn is_region(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=32).contains(&name.len()) && name.bytes().all(is_plain)
}

/// By how many seconds a date is later than this host's time.
#[expect(
    clippy::disallowed_methods,
    reason = "how far the clock of this host is off is what is asked"
)]
fn ahead(date: &str) -> Option<i64> {
    let theirs = DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?;
    let ours = DateTime::from(std::time::SystemTime::now());
    Some(theirs.secs() - ours.secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str) -> Answer<'_> {
        Answer {
            status,
            code,
            message: "",
            region: None,
            date: None,
            body: b"",
        }
    }

    fn meaning(status: u16, code: &str) -> (Kind, Code) {
        let answer = Answer {
            region: Some("eu-west-1"),
            ..answer(status, code)
        };
        let failure = answer.failure();
        (failure.kind, failure.error.code())
    }

    #[test]
    fn only_the_stores_own_word_for_a_key_is_absence() {
        assert_eq!(meaning(404, "NoSuchKey").0, Kind::Absent);
        for (status, code) in [
            (404, ""),
            (410, ""),
            (404, "NoSuchBucket"),
            (404, "NotFound"),
            (403, "AccessDenied"),
            (400, "NoSuchKey"),
            (200, "NoSuchKey"),
            (405, "MethodNotAllowed"),
            (500, "NoSuchKey"),
        ] {
            assert_ne!(meaning(status, code).0, Kind::Absent, "{status} {code}");
        }
        assert_eq!(meaning(404, "NoSuchBucket").1, Code::NoRepository);
        assert_eq!(meaning(404, "").1, Code::Unreachable);
        assert_eq!(meaning(403, "").1, Code::Denied);
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        for (status, code) in [
            (500, "InternalError"),
            (502, ""),
            (503, "SlowDown"),
            (409, "ConditionalRequestConflict"),
            (200, "InternalError"),
            (400, "RequestTimeout"),
            (400, "BadDigest"),
            (429, ""),
            (408, ""),
            (520, ""),
            (522, ""),
            (529, ""),
            (530, ""),
            (598, ""),
            (200, ""),
            (204, "AccessDenied"),
            (200, "ConditionalRequestConflict"),
        ] {
            assert_eq!(meaning(status, code).0, Kind::Again, "{status} {code}");
        }
        assert_eq!(meaning(403, "RequestTimeTooSkewed").0, Kind::Skewed);
        assert_eq!(meaning(400, "ExpiredToken").0, Kind::Expired);
        assert_eq!(
            meaning(301, "PermanentRedirect").0,
            Kind::Elsewhere("eu-west-1".into())
        );
        assert_eq!(meaning(403, "QuotaExceeded"), (Kind::Final, Code::Full));
        for (status, code) in [(501, "NotImplemented"), (400, "InvalidArgument"), (418, "")] {
            let meaning = meaning(status, code);
            assert_eq!(meaning, (Kind::Final, Code::Unreachable), "{status} {code}");
        }
        // An answer to HEAD has no body.
        for (status, code) in [
            (400, Code::Unreachable),
            (401, Code::Denied),
            (403, Code::Denied),
        ] {
            assert_eq!(meaning(status, ""), (Kind::Wordless, code), "{status}");
        }
        for code in [
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "InvalidToken",
        ] {
            assert_eq!(meaning(403, code), (Kind::Expired, Code::Denied), "{code}");
        }
    }

    #[test]
    fn a_store_that_is_asked_too_much_is_told_from_one_that_is_broken() {
        let is_throttled = |status, code| {
            let failure = answer(status, code).failure();
            assert_eq!(failure.kind, Kind::Again, "{status} {code}");
            failure.is_throttled
        };
        for (status, code) in [
            (503, "SlowDown"),
            (503, ""),
            (429, ""),
            (200, "SlowDown"),
            (400, "ThrottlingException"),
        ] {
            assert!(is_throttled(status, code), "{status} {code}");
        }
        for (status, code) in [(500, "InternalError"), (502, ""), (409, "OperationAborted")] {
            assert!(!is_throttled(status, code), "{status} {code}");
        }
    }

    #[test]
    fn only_what_can_be_a_region_is_gone_to() {
        for (status, region, expected) in [
            (302, None, (Kind::Final, Code::Unreachable)),
            (307, Some("evil.example/"), (Kind::Final, Code::Unreachable)),
            (301, Some(""), (Kind::Final, Code::Unreachable)),
            (
                301,
                Some("us-gov-1"),
                (Kind::Elsewhere("us-gov-1".into()), Code::Config),
            ),
        ] {
            let answer = Answer {
                region,
                ..answer(status, "")
            };
            assert_eq!(answer.meaning(), expected, "{status} {region:?}");
        }
        let unsaid = answer(301, "PermanentRedirect");
        assert_eq!(unsaid.meaning(), (Kind::Final, Code::Config));
    }

    #[test]
    fn a_condition_that_was_not_set_says_nothing_about_a_name() {
        let answered = |status| answer(status, "").failure().without_condition();
        let failure = answered(412);
        assert_eq!(
            (failure.kind, failure.error.code()),
            (Kind::Final, Code::Unreachable)
        );
        assert_eq!(answered(503).kind, Kind::Again);
    }

    #[test]
    fn a_certificate_that_proves_nothing_is_found_behind_errors_of_the_system() {
        let wrong = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let inside = std::io::Error::new(std::io::ErrorKind::InvalidData, wrong);
        let failure = without_answer(&std::io::Error::other(inside));
        assert_eq!(
            (failure.kind, failure.error.code()),
            (Kind::Untrusted, Code::Unreachable)
        );
        assert!(
            failure
                .error
                .hint_text()
                .is_some_and(|h| h.contains("ca_file"))
        );
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(without_answer(&broken).kind, Kind::Again);
    }

    #[test]
    fn the_difference_of_the_clocks_is_told() {
        let answer = Answer {
            message: "too far",
            date: Some("Fri, 20 Nov 2020 06:40:49 GMT"),
            ..answer(403, "RequestTimeTooSkewed")
        };
        let text = answer.failure().error.to_string();
        assert!(text.contains("its clock is -"), "{text}");
    }
}
