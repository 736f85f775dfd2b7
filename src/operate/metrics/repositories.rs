//! Metrics of repositories: whether they answer, their room, their clocks and who can read them.

use super::compat::WALG_STORAGE_UP;
use super::exposition::{Exposition, families};
use super::{counted, flag, number, seconds};
use crate::config::{self, Settings};
use crate::operate::counters::{self, Counters};
use crate::operate::info::Info;
use crate::operate::repository_state::RepositoryState;
use crate::operate::session::Session;
use crate::store::Room;

families! {
    REPO_UP: Gauge "pitr_repo_up" "Whether the repository answers.";
    REPO_FREE: Gauge "pitr_repo_free_bytes" "Room on the filesystem of a repository in a directory or on an SFTP server.";
    REPO_SIZE: Gauge "pitr_repo_fs_bytes" "Size of the filesystem of a repository in a directory.";
    CLOCK: Gauge "pitr_repo_clock_offset_seconds" "How far the clock of the store is ahead of this host's.";
    RECIPIENTS: Gauge "pitr_key_recipients" "Recipients that can read an encrypted repository; of its epochs, in the one that has the fewest.";
    KEY_VERIFIED: Gauge "pitr_key_last_verified_timestamp_seconds"
        "Last time that pitr verify read an encrypted repository as a whole with a key of this host.";
}

/// Room and clock of each repository that tells them, by its name.
#[derive(Default)]
pub(super) struct Stores {
    pub rooms: Vec<(String, Room)>,
    pub clocks: Vec<(String, f64)>,
    /// Repositories that do not answer.
    pub away: Vec<String>,
}

/// Adds them, and returns those that conditions are made of.
pub(super) fn add(
    all: &mut Exposition,
    session: &Session,
    (settings, counters, walg): (&Settings, &Counters, bool),
    info: Option<&Info>,
) -> Stores {
    let mut stores = Stores::default();
    for configured in &settings.repositories {
        let labels = [("repo", configured.name.as_str())];
        let state = state((session, settings), configured, info);
        let up = flag(state.is_some());
        all.add(&REPO_UP, &labels, up);
        if walg {
            all.add(&WALG_STORAGE_UP, &labels, up);
        }
        let verified = counters.last(counters::KEY, &configured.name);
        all.add_known(&KEY_VERIFIED, &labels, verified.map(seconds));
        let Some(state) = state else {
            stores.away.push(configured.name.clone());
            continue;
        };
        // A filesystem that tells no size tells no room.
        if let Some(room) = state.room.filter(|room| room.total_bytes > 0) {
            all.add(&REPO_FREE, &labels, number(room.free_bytes));
            all.add(&REPO_SIZE, &labels, number(room.total_bytes));
            stores.rooms.push((configured.name.clone(), room));
        }
        let clock = state.clock_offset_s;
        let own = clock.map(|offset| (configured.name.clone(), offset));
        stores.clocks.extend(own);
        all.add_known(&CLOCK, &labels, clock);
        all.add_known(&RECIPIENTS, &labels, state.recipients.map(counted));
    }
    stores
}

/// The state of a repository; none where it does not answer. One that the look opened is not opened again, and one that was away is not waited for
/// once more.
fn state(
    (session, settings): (&Session, &Settings),
    configured: &config::Repository,
    info: Option<&Info>,
) -> Option<RepositoryState> {
    let clusters = info.map(|i| i.clusters.as_slice()).unwrap_or_default();
    let mut read = clusters.iter();
    let read = read.find(|c| c.repository_name == configured.name);
    if let Some(state) = read.and_then(|c| c.repository_state) {
        return Some(state);
    }
    let lags = clusters.iter().flat_map(|c| &c.repositories);
    let mut seen = lags.filter(|lag| lag.name == configured.name).peekable();
    if seen.peek().is_some() && seen.all(|lag| lag.away.is_some()) {
        return None;
    }
    let repository = session.open_or_give_up(configured, settings).ok()?;
    Some(RepositoryState::look(session, configured, &repository))
}
