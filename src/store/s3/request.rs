//! One request: tried until it is answered, for a time that is bounded.
//!
//! The client of the vendor tries nothing again by itself. Here it is known that an attempt without an answer may have taken effect, and a
//! later "taken" is judged by that.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;

use super::certificate;
use super::client::{Connected, Link};
use super::markers::Markers;
use crate::pg::time::TimestampTz;
use crate::store::http::attempt::Attempt;
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::{Next, Purpose, Random, Time, Tried, given_up};
use crate::store::life;

/// The properties that requests of one store have in common.
pub(super) struct Bucket {
    pub(super) link: Arc<Link>,
    pub(super) bucket: String,
    /// With its slash at the end, or empty.
    pub(super) prefix: String,
    /// As the operator knows it.
    pub(super) place: String,
    /// Random, for pauses and for the marks of uploads.
    pub(super) random: Random,
    /// The objects that were deleted in a bucket that keeps versions.
    pub(super) markers: Markers,
    /// Whether objects written here are removed again: they are neither locked nor in a class that is paid for longer.
    pub(super) is_trial: bool,
}

impl Bucket {
    /// Runs a request until it is answered or its time is over. An answer that is no success is a [`Failure`], which says whether an
    /// attempt before it may have taken effect.
    pub(super) async fn run<T, F, Fut>(&self, doing: &str, request: F) -> Answered<T>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Answered<T>>,
    {
        let plain = self.run_as(Purpose::Plain, doing, request).await;
        plain.map_err(Failure::without_condition)
    }

    /// As [`Bucket::run`], of a request that may say that a name is taken.
    pub(super) async fn run_as<T, F, Fut>(
        &self,
        purpose: Purpose,
        doing: &str,
        request: F,
    ) -> Answered<T>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Answered<T>>,
    {
        let mut time = Time::of(&self.link.settings, purpose);
        let mut tried = Tried::default();
        let mut before: Option<Failure> = None;
        let (calm, random) = (&self.link.calm, &self.random);
        time.pause(Duration::ZERO, calm, random).await;
        loop {
            let connected = self.link.connected();
            let silence = time.of_attempt(before.is_none());
            let attempt = Attempt::new(&self.link.secrets);
            let request = Box::pin(request(connected.client.clone()));
            let answer = attempt.run(silence, time.last, request);
            let failure = match answer.await {
                Some(Ok(done)) => {
                    life::sign();
                    return Ok(done);
                }
                Some(Err(failure)) => failure,
                None => {
                    self.link.reconnect(&connected);
                    given_up(&attempt, attempt.quiet() < time.stall, before.take())
                }
            };
            time.spend(attempt.idle());
            // A failure that requires another try is as good as silence.
            if !matches!(failure.kind, Kind::Again) {
                life::sign();
            }
            let failure = self.judged(failure, &tried);
            let pause = match tried.next(&failure.kind, random.draw()) {
                Next::Fail => {
                    let failure = self.identified(failure).await;
                    return Err(tried.told(doing, &self.place, failure));
                }
                Next::Renew(region) => match self.renew(region, &connected, &mut time).await? {
                    true => Duration::ZERO,
                    false => return Err(tried.told(doing, &self.place, failure)),
                },
                Next::Now => Duration::ZERO,
                Next::Pause(pause) => pause,
            };
            if failure.is_throttled {
                calm.keep(pause, Instant::now());
            }
            if !time.pause(pause, calm, random).await {
                return Err(tried.told(doing, &self.place, failure));
            }
            before = Some(failure);
        }
    }

    /// A refusal without a word is final once fresh credentials have met it.
    fn judged(&self, failure: Failure, tried: &Tried) -> Failure {
        if failure.kind != Kind::Wordless || !(tried.renewed || self.link.is_refused()) {
            return failure;
        }
        if tried.renewed {
            self.link.note_refused();
        }
        Failure {
            kind: Kind::Final,
            ..failure
        }
    }

    /// Begins anew with fresh credentials or in another region; whether there was time for it.
    async fn renew(
        &self,
        region: Option<String>,
        used: &Connected,
        time: &mut Time,
    ) -> Answered<bool> {
        let begun = Instant::now();
        let renewed = tokio::time::timeout(time.left(), self.link.renew(region, used)).await;
        time.spend(begun.elapsed());
        renewed.map_or(Ok(false), |done| Ok(done.map(|()| true)?))
    }

    /// The server that is connected to, where the configuration names one.
    fn url(&self) -> Option<String> {
        let settings = &self.link.settings;
        let host = settings.endpoint.as_deref()?;
        Some(match (settings.path_style, host.split_once("://")) {
            (false, Some((scheme, host))) => format!("{scheme}://{}.{host}", self.bucket),
            _ => host.to_owned(),
        })
    }

    /// The last moment at which the server's certificate is valid; none for a store that the configuration does not name, and without TLS.
    pub(super) async fn certificate_end(&self) -> Option<TimestampTz> {
        certificate::end(&self.url()?).await
    }

    /// Adds to a certificate that was not believed whose it is.
    async fn identified(&self, failure: Failure) -> Failure {
        let Some(url) = self.url().filter(|_| failure.kind == Kind::Untrusted) else {
            return failure;
        };
        match certificate::shown(&url).await {
            Some(shown) => Failure {
                error: failure.error.context(shown),
                ..failure
            },
            None => failure,
        }
    }

    /// A key as the store knows it.
    pub(super) fn full(&self, key: impl std::fmt::Display) -> String {
        format!("{}{key}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use crate::store::http::retry::{PAUSE, part};
    use crate::store::s3::S3Store;

    #[test]
    fn no_two_pauses_are_alike() {
        let settings = crate::config::S3Settings {
            endpoint: Some("http://127.0.0.1:1".into()),
            ..Default::default()
        };
        let store = S3Store::open("bucket", "", &settings, 7).unwrap();
        let draw = || part(PAUSE, store.bucket.random.draw());
        let mut drawn: Vec<_> = std::iter::repeat_with(draw).take(100).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert!(drawn.len() > 95, "{drawn:?}");
        assert!(drawn[0] < PAUSE / 10 && drawn[drawn.len() - 1] > PAUSE / 10 * 9);
    }
}
