//! What the worker's threads do: one segment each, from the first repository that has it whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::archive::fetch;
use crate::archive::prefetched::{Purpose, Store};
use crate::config;
use crate::error::Code;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::repo;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;

/// How long a repository is taken for the one that it was.
const SESSION: Duration = Duration::from_secs(10);
/// For how long one that could not be opened is left alone while another can be. An object store that is away is tried for 40 seconds: once for
/// each segment would be the pace of the recovery. What only that one has, whoever asks for it asks there.
const LEFT_ALONE: Duration = Duration::from_secs(300);

/// What became of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It waits to be asked for.
    Fetched,
    /// It could not be had: whoever asks for it finds out why.
    NotHad,
    /// The disk takes no more.
    NoRoom,
    /// A repository is another one than before.
    Stranger,
}

/// Fetches segments, from several threads.
pub(super) struct Fetcher {
    store: Arc<Store>,
    places: Vec<config::Repository>,
    layout: ClusterLayout,
    size: SegmentSize,
    nonce: AtomicU64,
    known: Mutex<Known>,
}

/// What is known of the repositories.
struct Known {
    session: Option<Arc<Session>>,
    /// Which each of them was when it was opened first.
    uuids: Vec<Option<String>>,
    /// Since when each of them is left alone.
    away: Vec<Option<Instant>>,
}

/// Repositories, open, in their order; `None` is one that could not be opened.
struct Session {
    repositories: Vec<Option<Repository>>,
    begun: Instant,
}

impl Fetcher {
    pub(super) fn new(
        store: Arc<Store>,
        places: Vec<config::Repository>,
        layout: ClusterLayout,
        purpose: &Purpose,
        nonce: u64,
    ) -> Fetcher {
        Fetcher {
            store,
            known: Mutex::new(Known {
                session: None,
                uuids: vec![None; places.len()],
                away: vec![None; places.len()],
            }),
            places,
            layout,
            size: purpose.size,
            nonce: AtomicU64::new(nonce),
        }
    }

    /// Fetches one segment.
    pub(super) fn fetch(&self, name: SegmentName) -> Outcome {
        // First of all: whoever asks for it meanwhile sees that it is on its way.
        let Ok(mut coming) = self.begin(name) else {
            return Outcome::NoRoom;
        };
        let Some(session) = self.session() else {
            return Outcome::Stranger;
        };
        for repository in session.repositories.iter().flatten() {
            let copied = fetch::copy(name, self.size, repository, &self.layout, &mut |piece| {
                coming.write(piece)
            });
            match copied {
                Ok(true) => {
                    return match coming.finish() {
                        Ok(()) => Outcome::Fetched,
                        Err(_) => Outcome::NoRoom,
                    };
                }
                Ok(false) => {}
                Err(e) if e.code() == Code::TargetWrite => return Outcome::NoRoom,
                // Another repository may have a whole copy.
                Err(_) => {
                    let Ok(again) = self.begin(name) else {
                        return Outcome::NoRoom;
                    };
                    coming = again;
                    self.forget();
                }
            }
        }
        Outcome::NotHad
    }

    fn begin(&self, name: SegmentName) -> crate::error::Result<crate::archive::prefetched::Coming> {
        self.store.begin(name, self.random())
    }

    /// Names of temporary files need differ only within this process.
    fn random(&self) -> u64 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    /// The repositories, opened anew from time to time; `None` when one is not what it was.
    fn session(&self) -> Option<Arc<Session>> {
        let mut known = self.known.lock().ok()?;
        if let Some(session) = known
            .session
            .as_ref()
            .filter(|s| s.begun.elapsed() < SESSION)
        {
            return Some(Arc::clone(session));
        }
        known.session = None;
        let mut repositories = Vec::new();
        for (at, place) in self.places.iter().enumerate() {
            let is_left_alone = known.away.get(at).copied().flatten();
            let opened = match is_left_alone.filter(|since| since.elapsed() < LEFT_ALONE) {
                Some(_) => None,
                None => self.open(place),
            };
            if let (Some(repository), Some(uuid)) = (&opened, known.uuids.get_mut(at)) {
                let found = &repository.marker().uuid;
                if uuid.get_or_insert_with(|| found.clone()) != found {
                    return None;
                }
            }
            repositories.push(opened);
        }
        let session = Arc::new(Session {
            repositories,
            begun: Instant::now(),
        });
        known.leave_alone(&session.repositories);
        if session.repositories.iter().any(Option::is_some) {
            known.session = Some(Arc::clone(&session));
        }
        Some(session)
    }

    fn open(&self, place: &config::Repository) -> Option<Repository> {
        let repository = repo::open(place, self.random()).ok()?;
        repository.require(&self.layout).ok()?;
        Some(repository)
    }

    /// The next segment is fetched from repositories opened anew.
    fn forget(&self) {
        if let Ok(mut known) = self.known.lock() {
            known.session = None;
        }
    }
}

impl Known {
    /// Where one can be read, those that cannot are left alone; where none can, all are asked again for the next segment.
    fn leave_alone(&mut self, repositories: &[Option<Repository>]) {
        let is_any_there = repositories.iter().any(Option::is_some);
        for (away, repository) in self.away.iter_mut().zip(repositories) {
            *away = match repository {
                None if is_any_there => {
                    let running = away.filter(|since| since.elapsed() < LEFT_ALONE);
                    running.or_else(|| Some(Instant::now()))
                }
                _ => None,
            };
        }
    }
}
