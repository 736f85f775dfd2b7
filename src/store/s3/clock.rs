//! The object store's clock, by the dates of its answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

/// The date of the last answer, and when it came.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<(i64, Instant)>>);

impl Clock {
    /// Seconds since 1970 by the store's clock; none before its first answer.
    pub(super) fn unix_seconds(&self) -> Option<i64> {
        let (seconds, seen) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let since = i64::try_from(seen.elapsed().as_secs()).ok()?;
        seconds.checked_add(since)
    }

    /// The time after this `period` by the store's clock.
    pub(super) fn after(&self, period: Duration) -> Option<DateTime> {
        let period = i64::try_from(period.as_secs()).ok()?;
        let end = self.unix_seconds()?.checked_add(period)?;
        Some(DateTime::from_secs(end))
    }

    /// Whether it is more than a day from this host's clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "how far the two clocks are apart is what is asked"
    )]
    pub(super) fn is_far_off(&self) -> bool {
        let ours = DateTime::from(std::time::SystemTime::now()).secs();
        self.unix_seconds()
            .is_none_or(|theirs| theirs.abs_diff(ours) > 86_400)
    }

    fn see(&self, date: &str) {
        if let Ok(date) = DateTime::from_str(date, DateTimeFormat::HttpDate) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((date.secs(), Instant::now()));
        }
    }

    pub(super) fn interceptor(self: Arc<Clock>) -> Watch {
        Watch(self)
    }
}

/// Reads the date of every answer.
#[derive(Debug)]
pub(super) struct Watch(Arc<Clock>);

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // An error page may be anybody's, and an answer with an age is an old one.
        let answer = context.response();
        let is_own = answer.status().is_success() && answer.headers().get("age").is_none();
        if is_own && let Some(date) = answer.headers().get("date") {
            self.0.see(date);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_answers_are_read() {
        let clock = Clock::default();
        assert_eq!(clock.unix_seconds(), None);
        clock.see("yesterday");
        assert_eq!(clock.unix_seconds(), None);
        clock.see("Fri, 20 Nov 2026 06:40:49 GMT");
        let now = clock.unix_seconds().unwrap();
        assert!((1_795_156_849..1_795_156_949).contains(&now), "{now}");
        let later = clock.after(Duration::from_secs(1000)).unwrap();
        assert!(later.secs() >= now + 1000);
    }
}
