//! One request: tried until it is answered, for a time that is bounded.
//!
//! The client of the vendor tries nothing again by itself. Here it is known that an attempt without an answer may have taken effect, and a
//! later "taken" is judged by that.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;

use super::attempt::Attempt;
use super::certificate;
use super::client::{Connected, Link};
use super::failure::{Answered, Failure, Kind};
use super::markers::Markers;
use crate::config::S3Settings;
use crate::pg::time::TimestampTz;
use crate::store::{life, runtime};

/// The longest pause after the first failure; doubled by each one that follows.
pub(in crate::store) const PAUSE: Duration = Duration::from_millis(200);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// So long an upload in parts may take to be completed: the store puts the parts together, which S3 says can take minutes.
const COMPLETION: Duration = Duration::from_secs(300);

/// The special purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Purpose {
    /// Nothing.
    Plain,
    /// It names an object if the name is free.
    Creating,
    /// The same, after parts; one attempt may take longer than others are tried.
    Completing,
}

/// The properties that requests of one store have in common.
pub(super) struct Bucket {
    pub(super) link: Arc<Link>,
    pub(super) bucket: String,
    /// With its slash at the end, or empty.
    pub(super) prefix: String,
    /// As the operator knows it.
    pub(super) place: String,
    /// Random, for pauses and for the marks of uploads.
    pub(super) random: AtomicU64,
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
        self.pause(Duration::ZERO, &mut time).await;
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
            let pause = match tried.next(&failure.kind, self.next_random()) {
                Next::Fail => {
                    let failure = self.identified(failure).await;
                    return Err(self.told(doing, failure, &tried));
                }
                Next::Renew(region) => match self.renew(region, &connected, &mut time).await? {
                    true => Duration::ZERO,
                    false => return Err(self.told(doing, failure, &tried)),
                },
                Next::Now => Duration::ZERO,
                Next::Pause(pause) => pause,
            };
            if failure.is_throttled {
                self.link.calm.keep(pause, Instant::now());
            }
            if !self.pause(pause, &mut time).await {
                return Err(self.told(doing, failure, &tried));
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

    /// Waits, and then for as long as the store wants less of everybody; whether there was time for it.
    async fn pause(&self, pause: Duration, time: &mut Time) -> bool {
        let mut pause = pause;
        loop {
            if time.left() <= pause {
                return false;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
                time.spend(pause);
            }
            pause = self.link.calm.left(Instant::now());
            if pause.is_zero() {
                return true;
            }
            // The throttled request goes first, and the others not together.
            pause += part(PAUSE, self.next_random());
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

    fn told(&self, doing: &str, failure: Failure, tried: &Tried) -> Failure {
        let times = match tried.again {
            0 | 1 => String::new(),
            n => format!(", tried {n} times"),
        };
        Failure {
            error: failure
                .error
                .context(format!("could not {doing} in \"{}\"{times}", self.place)),
            is_ambiguous: tried.again > 0,
            ..failure
        }
    }

    /// A key as the store knows it.
    pub(super) fn full(&self, key: impl std::fmt::Display) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The next number of a sequence that looks random (splitmix64).
    pub(super) fn next_random(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        mixed(self.random.fetch_add(STEP, Ordering::Relaxed))
    }
}

/// Mixes the bits of a counter (splitmix64).
pub(in crate::store) fn mixed(seed: u64) -> u64 {
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Anything up to `most`, so that those who failed together do not come back together.
pub(in crate::store) fn part(most: Duration, random: u64) -> Duration {
    let micros = most.as_micros().saturating_mul(u128::from(random)) >> 64;
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// How long a request is tried.
pub(in crate::store) struct Time {
    /// So long nothing may come or go in one attempt.
    pub(in crate::store) stall: Duration,
    /// Time left for all attempts and the pauses between them. Time in which bytes come or go is not taken from it.
    budget: Duration,
    /// When the whole process must be done, however it gets on.
    pub(in crate::store) last: Option<Instant>,
    purpose: Purpose,
}

impl Time {
    pub(in crate::store) fn of(settings: &S3Settings, purpose: Purpose) -> Time {
        let stall = settings.stall_timeout;
        Time {
            stall: match purpose {
                Purpose::Completing => stall.max(COMPLETION),
                Purpose::Plain | Purpose::Creating => stall,
            },
            budget: settings.retry_budget,
            last: runtime::end(),
            purpose,
        }
    }

    pub(in crate::store) fn spend(&mut self, time: Duration) {
        self.budget = self.budget.saturating_sub(time);
    }

    /// Returns the time that is left.
    pub(in crate::store) fn left(&self) -> Duration {
        let whole = |last: Instant| last.saturating_duration_since(Instant::now());
        self.last
            .map_or(self.budget, |last| whole(last).min(self.budget))
    }

    /// How long an attempt may be silent. The first is not cut short by a small budget.
    pub(in crate::store) fn of_attempt(&self, is_first: bool) -> Duration {
        match is_first || self.purpose == Purpose::Completing {
            true => self.stall,
            false => self.left().min(self.stall),
        }
    }
}

/// An attempt that was given up. One that was cut short says less than the failure before it.
pub(in crate::store) fn given_up(
    attempt: &Attempt,
    is_cut: bool,
    before: Option<Failure>,
) -> Failure {
    match before {
        Some(before) if is_cut => Failure {
            kind: Kind::Again,
            ..before
        },
        _ => Failure::again(attempt.given_up()),
    }
}

/// The repairs and repetitions that a request has had so far.
#[derive(Debug, Default)]
pub(in crate::store) struct Tried {
    pub(in crate::store) again: u32,
    renewed: bool,
    skewed: bool,
    moved: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum Next {
    Fail,
    Now,
    Renew(Option<String>),
    Pause(Duration),
}

impl Tried {
    pub(in crate::store) fn next(&mut self, kind: &Kind, random: u64) -> Next {
        match kind {
            Kind::Again => {
                let most = PAUSE.saturating_mul(1 << self.again.min(10));
                self.again += 1;
                Next::Pause(part(most.min(PAUSE_MAX), random))
            }
            Kind::Expired | Kind::Wordless if !std::mem::replace(&mut self.renewed, true) => {
                Next::Renew(None)
            }
            Kind::Skewed if !std::mem::replace(&mut self.skewed, true) => Next::Now,
            Kind::Elsewhere(region) if !std::mem::replace(&mut self.moved, true) => {
                Next::Renew(Some(region.clone()))
            }
            _ => Next::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::s3::S3Store;

    #[test]
    fn pauses_are_drawn_below_a_ceiling_that_grows_and_ends() {
        let pauses = |random: u64| {
            let mut tried = Tried::default();
            let next = || match tried.next(&Kind::Again, random) {
                Next::Pause(pause) => pause,
                other => panic!("{other:?}"),
            };
            std::iter::repeat_with(next).take(20).collect::<Vec<_>>()
        };
        let (middle, last) = (pauses(1 << 63), pauses(u64::MAX));
        for (n, ceiling) in [(0, PAUSE), (3, PAUSE * 8), (19, PAUSE_MAX)] {
            assert_eq!(middle[n], ceiling / 2);
            assert_eq!(last[n], ceiling - Duration::from_micros(1));
        }
        assert!(pauses(0).iter().all(Duration::is_zero));
    }

    #[test]
    fn no_two_pauses_are_alike() {
        let settings = crate::config::S3Settings {
            endpoint: Some("http://127.0.0.1:1".into()),
            ..Default::default()
        };
        let store = S3Store::open("bucket", "", &settings, 7).unwrap();
        let draw = || part(PAUSE_MAX, store.bucket.next_random());
        let mut drawn: Vec<_> = std::iter::repeat_with(draw).take(100).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert!(drawn.len() > 95, "{drawn:?}");
        assert!(drawn[0] < PAUSE_MAX / 10 && drawn[drawn.len() - 1] > PAUSE_MAX / 10 * 9);
    }

    #[test]
    fn all_attempts_end_with_the_budget_but_the_first_is_whole() {
        let seconds = Duration::from_secs;
        let time = |budget, last: Option<u64>, purpose| Time {
            stall: seconds(1000),
            budget: seconds(budget),
            last: last.map(|s| Instant::now() + seconds(s)),
            purpose,
        };
        assert_eq!(
            time(10, None, Purpose::Plain).of_attempt(true),
            seconds(1000)
        );
        assert_eq!(
            time(10, None, Purpose::Plain).of_attempt(false),
            seconds(10)
        );
        let completing = time(10, None, Purpose::Completing);
        assert_eq!(completing.of_attempt(false), seconds(1000));
        let ends = time(900, Some(20), Purpose::Creating);
        assert!(ends.of_attempt(false) <= seconds(20) && ends.left() <= seconds(20));
        let mut spent = time(10, None, Purpose::Plain);
        spent.spend(seconds(7));
        assert_eq!(spent.left(), seconds(3));
        spent.spend(seconds(7));
        assert_eq!(
            (spent.left(), spent.of_attempt(false)),
            (Duration::ZERO, Duration::ZERO)
        );
    }

    #[test]
    fn an_attempt_that_was_cut_short_does_not_hide_the_cause() {
        let cause = || Some(Failure::again("SlowDown"));
        let told = |is_cut, before| {
            given_up(&Attempt::new(&Arc::default()), is_cut, before)
                .error
                .to_string()
        };
        assert_eq!(told(true, cause()), "SlowDown");
        for (is_cut, before) in [(false, cause()), (true, None)] {
            assert!(told(is_cut, before).starts_with("no whole answer within "));
        }
    }

    #[test]
    fn what_is_tried_once_is_not_tried_twice() {
        for kind in [
            Kind::Expired,
            Kind::Wordless,
            Kind::Skewed,
            Kind::Elsewhere("eu-west-1".into()),
        ] {
            let mut tried = Tried::default();
            assert_ne!(tried.next(&kind, 0), Next::Fail, "{kind:?}");
            assert_eq!(tried.next(&kind, 0), Next::Fail, "{kind:?}");
        }
        assert_eq!(Tried::default().next(&Kind::Final, 0), Next::Fail);
    }
}
