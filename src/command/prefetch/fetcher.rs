//! The work of the worker's threads: one segment each, from the first repository that has it whole. A silent repository
//! is passed over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::place::Place;
use crate::archive::fetch;
use crate::archive::prefetched::{Coming, Purpose, Store};
use crate::config;
use crate::error::{Code, Result};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::repo;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::Followed;
use crate::repo::repository::Repository;

/// How long a repository is taken for the one that it was.
const SESSION: Duration = Duration::from_secs(10);
/// For how long a repository that could not be opened is left alone while another can be. An object store that is away
/// is tried for 40 seconds: once for each segment, that would set the pace of the recovery. A segment that only this
/// repository has is left to the `pitr-restore` that the server runs for it.
const LEFT_ALONE: Duration = Duration::from_secs(300);

/// The result for a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It waits to be asked for.
    Fetched,
    /// It could not be had: the `pitr-restore` that is asked for it finds the cause.
    NotHad,
    /// The disk takes no more.
    NoRoom,
    /// A repository is another one than before.
    Stranger,
}

/// Fetches segments, from several threads.
pub(super) struct Fetcher {
    store: Arc<Store>,
    places: Vec<Place>,
    layout: ClusterLayout,
    size: SegmentSize,
    nonce: AtomicU64,
    known: Mutex<Known>,
}

/// The state of the repositories, as the threads know it.
struct Known {
    session: Option<Arc<Session>>,
    /// Which each of them was when it was opened first.
    uuids: Vec<Option<String>>,
    /// Since when each of them is left alone.
    away: Vec<Option<Instant>>,
}

/// Repositories, open, in their order; `None` is one that could not be opened.
struct Session {
    repositories: Vec<Option<Arc<Archive>>>,
    begun: Instant,
}

/// A repository, and where the cluster lies in it.
struct Archive {
    repository: Repository,
    layout: ClusterLayout,
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
            places: places.into_iter().map(Place::new).collect(),
            layout,
            size: purpose.size,
            nonce: AtomicU64::new(nonce),
        }
    }

    /// Fetches one segment.
    pub(super) fn fetch(&self, name: SegmentName) -> Outcome {
        // First of all: whoever asks for it meanwhile sees that it is on its way.
        let Ok(coming) = self.begin(name) else {
            return Outcome::NoRoom;
        };
        let mut coming = Some(coming);
        let Some(session) = self.session() else {
            return Outcome::Stranger;
        };
        for (place, repository) in self.places.iter().zip(&session.repositories) {
            let Some(repository) = repository else {
                continue;
            };
            let begun = coming.take().map_or_else(|| self.begin(name), Ok);
            let Ok(begun) = begun else {
                return Outcome::NoRoom;
            };
            match self.copy(name, begun, place, repository) {
                Some(Ok((true, whole))) => {
                    return match whole.finish() {
                        Ok(()) => Outcome::Fetched,
                        Err(_) => Outcome::NoRoom,
                    };
                }
                Some(Ok((false, begun))) => coming = Some(begun),
                Some(Err(e)) if e.code() == Code::TargetWrite => return Outcome::NoRoom,
                // Another repository may have a whole copy.
                Some(Err(_)) | None => self.forget(),
            }
        }
        Outcome::NotHad
    }

    /// Whether it was there, with what was written of it; `None` when the repository is silent: who hangs there has a file of his own, and
    /// gives none its name.
    fn copy(
        &self,
        name: SegmentName,
        mut coming: Coming,
        place: &Place,
        archive: &Arc<Archive>,
    ) -> Option<Result<(bool, Coming)>> {
        let (size, archive) = (self.size, Arc::clone(archive));
        let beside = self.store.path().to_owned();
        place.ask(move |pieces| {
            let archived = (&archive.repository, &archive.layout);
            let is_there = fetch::copy(name, size, archived, &beside, &mut |piece| {
                pieces.fetch_add(1, Ordering::Relaxed);
                coming.write(piece)
            })?;
            Ok((is_there, coming))
        })
    }

    fn begin(&self, name: SegmentName) -> Result<Coming> {
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
            if let (Some(archive), Some(uuid)) = (&opened, known.uuids.get_mut(at)) {
                let found = &archive.repository.marker().uuid;
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

    fn open(&self, place: &Place) -> Option<Arc<Archive>> {
        let (configured, layout) = (place.configured.clone(), self.layout.clone());
        let nonce = self.random();
        let opened = place.ask(move |_| {
            let repository = repo::open(&configured, nonce).ok()?;
            repository.require_readable(&layout).ok()?;
            let layout = Followed::Resolved.apply(&repository, layout).ok()?;
            Some(Archive { repository, layout })
        });
        opened.flatten().map(Arc::new)
    }

    /// The next segment is fetched from repositories opened anew.
    fn forget(&self) {
        if let Ok(mut known) = self.known.lock() {
            known.session = None;
        }
    }
}

impl Known {
    /// Leaves the unreadable repositories alone if another one can be read. If none can be read, all are asked again
    /// for the next segment.
    fn leave_alone(&mut self, repositories: &[Option<Arc<Archive>>]) {
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
