//! The markers that hide what was deleted in a bucket that keeps versions: an absence that comes from one is remembered.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::SdkError;

/// So many keys are remembered: who asks does it right behind the absence.
const REMEMBERED: usize = 64;

/// Keys that were answered as absent for the sake of a marker.
#[derive(Default)]
pub(super) struct Markers(Mutex<VecDeque<String>>);

impl Markers {
    /// Looks whether an answer comes from a marker.
    pub(super) fn see<E>(&self, key: &str, error: &SdkError<E, HttpResponse>) {
        let header =
            |answer: &HttpResponse| answer.headers().get("x-amz-delete-marker") == Some("true");
        if error.raw_response().is_some_and(header) {
            let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            keys.truncate(REMEMBERED - 1);
            keys.push_front(key.to_owned());
        }
    }

    /// Whether the last answers about the key came from a marker.
    pub(super) fn hold(&self, key: &str) -> bool {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().any(|k| k == key)
    }
}
