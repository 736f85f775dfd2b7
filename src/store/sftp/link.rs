//! The connection to a server: one for all repositories of a process that are configured alike, made anew when it breaks.
//!
//! A request is tried until it is answered, for a time that is bounded. An attempt without an answer may have taken effect.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::failure::{Answered, Failure, Kind};
use super::session::Session;
use crate::config::SftpSettings;
use crate::error::{Code, Error};
use crate::store::{life, runtime};

/// The pause after the first failure; doubled by each one that follows.
const PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The host and account that ssh connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) user: Option<String>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

/// The state that all users of one server with one set of settings share.
pub(super) struct Link {
    server: Server,
    settings: SftpSettings,
    current: Mutex<Option<Arc<Session>>>,
    /// Held by the one who connects; the last failure of that, for those who waited meanwhile.
    connecting: tokio::sync::Mutex<Option<Refusal>>,
}

struct Refusal {
    at: Instant,
    kind: Kind,
    code: Code,
    text: String,
    hint: Option<String>,
}

impl Link {
    /// Returns the link for these settings, made where there is none yet. Nothing is asked of the server.
    pub(super) fn open(server: Server, settings: &SftpSettings) -> Arc<Link> {
        static LINKS: Mutex<Vec<Arc<Link>>> = Mutex::new(Vec::new());
        let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |l: &&Arc<Link>| l.server == server && l.settings == *settings;
        if let Some(link) = links.iter().find(known) {
            return Arc::clone(link);
        }
        let link = Arc::new(Link {
            server,
            settings: settings.clone(),
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(None),
        });
        links.push(Arc::clone(&link));
        link
    }

    /// The connection there is, if there is one.
    pub(super) fn current(&self) -> Option<Arc<Session>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Runs a request until it is answered or its time is over; `doing` is for messages. A failure says whether an attempt before it may
    /// have taken effect.
    pub(super) async fn run<T, F, Fut>(&self, doing: &str, request: F) -> Answered<T>
    where
        F: Fn(Arc<Session>) -> Fut,
        Fut: Future<Output = Answered<T>>,
    {
        let mut budget = self.settings.retry_budget;
        let mut tried: u32 = 0;
        loop {
            let begun = Instant::now();
            let (failure, spent) = match self.session(begun).await {
                Err(failure) => (failure, begun.elapsed()),
                Ok(session) => match session.watch(request(Arc::clone(&session))).await {
                    Ok(done) => {
                        life::sign();
                        return Ok(done);
                    }
                    Err(failure) if failure.kind == Kind::Again => {
                        let quiet = session.quiet_since(begun);
                        self.give_up(&session);
                        (session.explained(failure).await, quiet)
                    }
                    Err(failure) => {
                        life::sign();
                        (failure, Duration::ZERO)
                    }
                },
            };
            budget = budget.saturating_sub(spent);
            let is_again = failure.kind == Kind::Again;
            let pause = PAUSE.saturating_mul(1 << tried.min(8)).min(PAUSE_MAX);
            let is_last = !is_again || left(budget) <= pause;
            tried += u32::from(is_again);
            if is_last {
                return Err(self.told(doing, failure, tried));
            }
            tokio::time::sleep(pause).await;
            budget = budget.saturating_sub(pause);
        }
    }

    /// The connection, made where there is none.
    async fn session(&self, begun: Instant) -> Answered<Arc<Session>> {
        if let Some(session) = self.current() {
            return Ok(session);
        }
        let mut refused = self.connecting.lock().await;
        if let Some(session) = self.current() {
            return Ok(session);
        }
        // Somebody else has just tried in vain: all of those who waited need not.
        if let Some(refusal) = refused.as_ref().filter(|r| r.at > begun) {
            let error = Error::new(refusal.code, refusal.text.clone());
            let error = match &refusal.hint {
                Some(hint) => error.hint(hint.clone()),
                None => error,
            };
            return Err(Failure::new(refusal.kind, error));
        }
        match Session::connect(&self.server, &self.settings).await {
            Ok(session) => {
                life::sign();
                let session = Arc::new(session);
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                *current = Some(Arc::clone(&session));
                Ok(session)
            }
            Err(failure) => {
                *refused = Some(Refusal {
                    at: Instant::now(),
                    kind: failure.kind,
                    code: failure.error.code(),
                    text: failure.error.to_string(),
                    hint: failure.error.hint_text().map(str::to_owned),
                });
                Err(failure)
            }
        }
    }

    /// Nobody uses a connection any more that got no answer.
    fn give_up(&self, used: &Arc<Session>) {
        used.end();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(c, used)) {
            *current = None;
        }
    }

    fn told(&self, doing: &str, failure: Failure, tried: u32) -> Failure {
        let times = match tried {
            0 | 1 => String::new(),
            n => format!(", tried {n} times"),
        };
        // The caller judges a name that is absent or taken.
        let is_ambiguous = tried > u32::from(failure.kind == Kind::Again);
        let host = &self.server.host;
        Failure {
            is_ambiguous,
            ..failure.context(format!("could not {doing} on \"{host}\"{times}"))
        }
    }
}

/// The time that is left of a budget, and of this process.
fn left(budget: Duration) -> Duration {
    let process = runtime::end().map(|end| end.saturating_duration_since(Instant::now()));
    process.map_or(budget, |left| left.min(budget))
}
