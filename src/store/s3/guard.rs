//! The traffic between client and store: bodies are watched on their way, and signatures are remembered. An answer may
//! not be longer than this client asks for, and a list must be complete.

use aws_sdk_s3::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeDeserializationInterceptorContextMut,
    BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use http_body_util::Limited;

use crate::store::http::attempt::{Attempt, Watched, Way};

/// The client collects every answer but an object's bytes before it looks at it. The longest that is asked for is a page of 1000 keys.
const ANSWER_MAX: usize = 8 << 20;

/// Looks at every answer before and after it is read.
#[derive(Debug)]
pub(super) struct Guard;

impl Intercept for Guard {
    fn name(&self) -> &'static str {
        "Guard"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        if let Some(attempt) = Attempt::current()
            && let Some(authorization) = request.headers().get("authorization")
        {
            attempt.is_signed(authorization);
        }
        Watched::watch(request.body_mut(), Way::ToStore);
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        if let Some(attempt) = Attempt::current() {
            attempt.is_heard();
        }
        if response.status().is_success() {
            Watched::watch(response.body_mut(), Way::FromStore);
        }
        // Whoever reads an object counts its bytes; an error instead of it is collected.
        if operation(config) == "GetObject" && response.status().is_success() {
            return Ok(());
        }
        let body = std::mem::replace(response.body_mut(), SdkBody::taken());
        *response.body_mut() = SdkBody::from_body_1_x(Limited::new(body, ANSWER_MAX));
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_list = matches!(
            operation(config),
            "ListObjectsV2" | "ListObjectVersions" | "ListMultipartUploads"
        );
        let response = context.response();
        match response.body().bytes() {
            Some(bytes) if is_list && response.status().is_success() && !is_whole(bytes) => {
                Err("the list breaks off".into())
            }
            _ => Ok(()),
        }
    }
}

fn operation(config: &ConfigBag) -> &str {
    config.load::<Metadata>().map_or("", Metadata::name)
}

/// The client's reader takes a document that ends in its middle for a shorter one.
fn is_whole(document: &[u8]) -> bool {
    let document = document.trim_ascii_end();
    let last = document.iter().rposition(|byte| *byte == b'<');
    let closes = last.is_some_and(|at| document.get(at + 1) == Some(&b'/'));
    closes && document.ends_with(b"Result>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_ends_with_the_end_of_its_first_element() {
        for whole in [
            "<ListBucketResult></ListBucketResult>\n",
            "<a:ListBucketResult></a:ListBucketResult>",
        ] {
            assert!(is_whole(whole.as_bytes()), "{whole}");
        }
        for cut in [
            "",
            "<ListBucketResult>",
            "<ListBucketResult/>",
            "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents>",
            "<ListBucketResult></ListBucketResul",
        ] {
            assert!(!is_whole(cut.as_bytes()), "{cut}");
        }
    }
}
