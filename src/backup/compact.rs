//! Compaction: the same backup once more, from what the repository holds, without the packs of which little is visible.
//!
//! The server is never asked. The new root stands beside the old one, which expires: its content, positions and times are those of the old
//! one, so that a restore from either gives the same bytes. It is an incremental whose interval is empty (decision 0029).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::attempt::Attempt;
use super::incremental::{self, scanned};
use super::{RootOfCluster, incremental::base, reservation, turn};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::repo::claim::Claim;
use crate::repo::container::{Codec, Container, ContainerWriter, Kind};
use crate::repo::deletion;
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::outline::Outline;
use crate::repo::root::{BackupKind, BackupRoot, ClusterContent, PackRef};
use crate::snapshot::filekey::{ClusterNaming, Naming};
use crate::snapshot::flatten::flatten;
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::reader::Snapshot;
use crate::snapshot::repack::repack;
use crate::snapshot::writer::{self, SnapshotWriter, Written};
use crate::store::Published;
use crate::ticking::ticking;

/// A shard with so many layers gets a single one.
const LAYERS: usize = 2;

/// Limits of a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A pack is stored again when at most this share of it is visible, in percent; at 100 every pack is.
    pub visible_percent: u8,
    /// The most visible bytes that are stored again.
    pub max_bytes: Option<u64>,
}

/// How the packs are written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub codec: FrameCodec,
    /// Cores that compress.
    pub jobs: usize,
    /// How long to wait for a backup of the cluster that runs.
    pub wait: Duration,
}

/// Chooses packs by their indexes, those of which the least is visible first.
pub fn choose(packs: &[PackRef], limits: Limits) -> BTreeSet<usize> {
    let mut by_share: Vec<(u128, usize, u64)> = (0..)
        .zip(packs)
        .map(|(at, pack)| (visible_permille(pack), at, pack.live_bytes))
        .filter(|(share, ..)| *share <= u128::from(limits.visible_percent) * 10)
        .collect();
    by_share.sort_unstable();
    let mut left = limits.max_bytes.unwrap_or(u64::MAX);
    let mut chosen = BTreeSet::new();
    for (_, at, bytes) in by_share {
        if let Some(rest) = left.checked_sub(bytes) {
            left = rest;
            chosen.insert(at);
        }
    }
    chosen
}

/// Returns the visible share of a pack. If no root gives the pack's length, everything counts as visible.
fn visible_permille(pack: &PackRef) -> u128 {
    let all = pack.all_bytes.unwrap_or(pack.live_bytes).max(1);
    (u128::from(pack.live_bytes) * 1000 / u128::from(all)).min(1000)
}

/// Stores the packs of `origin` that were chosen once more, and commits the new root.
///
/// # Errors
/// `Locked` while a backup of the cluster runs; `Conflict` when the backup is no longer the one that was chosen; `Key` without the private half
/// of an encrypted repository; `Damaged`; `Interrupted`; what the store says. Nothing is visible then.
pub fn run(
    (repository, layout): (&Repository, &ClusterLayout),
    origin: &BackupRoot,
    packs: &BTreeSet<usize>,
    options: &Options,
    host: &Host,
) -> Result<BackupRoot> {
    let store = repository.store();
    let begun = Instant::now();
    loop {
        let left = options.wait.saturating_sub(begun.elapsed());
        turn::wait((store, layout), left, host, &mut || Ok(()))?;
        let mut kept = Claim::take(
            (store, layout),
            Writer::of(host),
            &origin.head.id,
            "prior",
            None,
        )?;
        let done = Compaction {
            repository,
            layout,
            origin,
            packs,
            options,
            host,
        }
        .run(&mut kept);
        kept.release(host.progress.as_ref());
        if let Some(root) = done? {
            return Ok(root);
        }
        turn::stand_back(host);
    }
}

struct Compaction<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    origin: &'a BackupRoot,
    packs: &'a BTreeSet<usize>,
    options: &'a Options,
    host: &'a Host,
}

impl Compaction<'_> {
    /// `None`, and nothing is stored, where a backup was begun at the same time.
    fn run(&self, kept: &mut Claim<'_>) -> Result<Option<BackupRoot>> {
        let (store, host) = (self.repository.store(), self.host);
        self.check_origin()?;
        let kind = BackupKind::Incremental;
        let id = reservation::reserve(store, self.layout, kind, None, host)?;
        let content = &self.origin.content;
        let start = Some((content.start_timeline, content.start_lsn));
        let place = (store, &**self.layout);
        let mut claim = Claim::take(place, Writer::of(host), &id, "backup", start)?;
        let is_alone = turn::is_alone(store, self.layout, &id, host);
        if !matches!(is_alone, Ok(true)) {
            claim.release(host.progress.as_ref());
            return is_alone.map(|_| None);
        }
        host.progress.note(&format!(
            "backup \"{}\" is stored as \"{id}\", without the packs that are given up: {}",
            self.origin.head.id,
            self.packs.len()
        ));
        let mut attempt = Attempt::new(place, &id, host);
        let written = self.write(&mut attempt, (&mut claim, kept));
        if written.is_err() {
            attempt.discard(&claim, false);
        }
        claim.release(host.progress.as_ref());
        written.map(Some)
    }

    /// Requires that the backup that was chosen is still there, unmarked and undamaged, now that it is claimed.
    fn check_origin(&self) -> Result<()> {
        let (store, id) = (self.repository.store(), &self.origin.head.id);
        let events = event::read_all(store, self.layout, &id.to_string())?;
        let is_clean = !event::is_marked(&events) && event::damage(&events).is_empty();
        let root = BackupRoot::read(store, self.layout, id)?;
        let is_same = root.is_some_and(|root| root.head.nonce == self.origin.head.nonce);
        match is_clean && is_same {
            true => Ok(()),
            false => Err(err!(
                Conflict,
                "backup \"{id}\" is marked for deletion, damaged, or gone by now"
            )
            .hint("Nothing was stored. Look again: pitr repo compact --dry-run")),
        }
    }

    fn write(
        &self,
        attempt: &mut Attempt<'_>,
        (claim, kept): (&mut Claim<'_>, &mut Claim<'_>),
    ) -> Result<BackupRoot> {
        let (store, host) = (self.repository.store(), self.host);
        let id = claim.id().clone();
        let mut tick = || {
            host.check_stop()?;
            claim.keep()?;
            kept.keep()
        };
        let written = self.copy(&id, &mut tick)?;
        let root = self.root(attempt, written, &mut tick)?;
        self.copy_server_manifest(&root)?;
        attempt.extend_locks(&root.map, &mut tick)?;
        let place = (store, &**self.layout);
        let progress = host.progress.as_ref();
        deletion::wait(place, host.clock.as_ref(), progress, &mut tick)?;
        tick()?;
        self.copy_trimmed(&id)?;
        claim.check()?;
        kept.check()?;
        let commit = RootOfCluster {
            store,
            layout: self.layout,
            root: &root,
        };
        attempt.commit(&commit, Some(&self.origin.head.id))?;
        let completed = Outline::of(&root).map(|root| Writer::of(host).completed(&root));
        attempt.record_completed(completed);
        Ok(root)
    }

    fn copy(&self, id: &BackupId, tick: &mut dyn FnMut() -> Result<()>) -> Result<Written> {
        let (store, host) = (self.repository.store(), self.host);
        let open = || Snapshot::open(store, self.layout, self.origin);
        let snapshot = ticking(tick, open)?.spooling(&host.scratch);
        let (codec, jobs) = (self.options.codec, self.options.jobs);
        let mut options = writer::Options::new(codec, jobs, host.scratch.clone());
        let place = (store, &**self.layout);
        host.progress.phase("write the map", None);
        let flat = flatten(&snapshot, place, id, LAYERS, options.shard_files, tick)?;
        (options.prior, options.layers) = (flat.shards, flat.layers);
        let bytes = self.packs.iter().filter_map(|at| snapshot.packs().get(*at));
        let bytes = bytes.map(|pack| pack.live_bytes).sum();
        host.progress.phase("store again", Some(bytes));
        let mut written = std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, store, self.layout, id, &options);
            repack(&snapshot, self.packs, &writer, &mut |bytes| {
                host.progress.advance(bytes);
                tick()
            })?;
            writer.finish()
        })?;
        written.stored_bytes += flat.stored_bytes;
        Ok(written)
    }

    /// The root: that of the origin, with another id, another map, and the age of its content. The whole map is walked.
    fn root(
        &self,
        attempt: &Attempt<'_>,
        written: Written,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<BackupRoot> {
        let origin = self.origin;
        let (old, content) = (&origin.head, &origin.content);
        let times = (old.start_time, old.stop_time);
        let own = attempt.head_and_map(&old.label, Some(&old.id), times, written);
        let place = (self.repository.store(), &**self.layout);
        let naming = Naming::Cluster(ClusterNaming::from(content));
        let (mut head, map) = incremental::complete(place, (old, &origin.map), own, naming, tick)?;
        // They speak of the content, which stays as it is.
        head.features.clone_from(&old.features);
        let is_same = (head.file_count, head.size_bytes) == (old.file_count, old.size_bytes);
        let is_given_up = |at: &usize| {
            let part = origin.map.packs.get(*at).map(|pack| &pack.key);
            !map.packs.iter().any(|pack| Some(&pack.key) == part)
        };
        if !is_same || !self.packs.iter().all(is_given_up) {
            return Err(err!(
                Internal,
                "the map of \"{}\" does not show what that of \"{}\" does",
                head.id,
                old.id
            ));
        }
        Ok(BackupRoot {
            head,
            map,
            content: ClusterContent {
                whole_scan_time: scanned(origin),
                oldest_content: Some(base(origin)),
                // The list names the backup that it was made with, which keeps it.
                relations: None,
                ..content.clone()
            },
        })
    }

    /// Records that WAL behind the origin was let go on purpose: the hole is known after the origin has expired, too. No deletion runs by now,
    /// and one to come keeps the WAL behind the claimed origin.
    fn copy_trimmed(&self, id: &BackupId) -> Result<()> {
        let store = self.repository.store();
        let events = event::read_all(store, self.layout, &self.origin.head.id.to_string())?;
        let writer = Writer::of(self.host);
        for old in event::standing(&events, event::TRIMMED, "") {
            let trimmed = Event {
                segment: old.event.segment.clone(),
                ..writer.event(event::TRIMMED, &id.to_string())
            };
            writer.record(store, self.layout, &trimmed)?;
        }
        Ok(())
    }

    /// Stores PostgreSQL's own manifest under the new id, which a sealed object is bound to.
    fn copy_server_manifest(&self, root: &BackupRoot) -> Result<()> {
        let Some(hash) = &self.origin.content.server_manifest else {
            return Ok(());
        };
        let store = self.repository.store();
        let key = self.layout.server_manifest(&self.origin.head.id);
        let object = store.open(&key)?;
        let object = object.ok_or_else(|| err!(Damaged, "object \"{key}\" is missing"))?;
        let container = Container::open_under(&key, object)?;
        let target = self.layout.server_manifest(&root.head.id);
        let failed = |e| Error::from_io(format!("write object \"{target}\""), e);
        let object = store.create(&target)?;
        let mut writer =
            ContainerWriter::new(object, Kind::ServerManifest, Codec::Lz4).map_err(failed)?;
        let mut hasher = blake3::Hasher::new();
        container.read_body(&mut |piece| {
            hasher.update(piece);
            writer.write(piece).map_err(failed)
        })?;
        if hasher.finalize().to_hex().as_str() != hash {
            return Err(err!(
                Damaged,
                "object \"{key}\" is not the one of its backup"
            ));
        }
        let object = writer.complete(container.identity(), Vec::new());
        match object.map_err(failed)?.publish()? {
            Published::Created => Ok(()),
            Published::Exists => Err(err!(Conflict, "object \"{target}\" exists already")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(number: u32, live: u64, all: Option<u64>) -> PackRef {
        incremental::rewrite::tests::pack(number, 1, live, all.map(|all| (all, all)))
    }

    fn limits(visible_percent: u8, max_bytes: Option<u64>) -> Limits {
        Limits {
            visible_percent,
            max_bytes,
        }
    }

    #[test]
    fn the_least_visible_packs_are_chosen_within_the_limits() {
        let packs = [
            pack(0, 100, None),
            pack(1, 50, Some(100)),
            pack(2, 10, Some(100)),
            pack(3, 51, Some(100)),
            pack(4, 1, Some(100)),
        ];
        assert_eq!(choose(&packs, limits(50, None)), BTreeSet::from([1, 2, 4]));
        assert_eq!(choose(&packs, limits(50, Some(11))), BTreeSet::from([2, 4]));
        assert_eq!(choose(&packs, limits(50, Some(0))), BTreeSet::new());
        assert_eq!(choose(&packs, limits(100, None)).len(), 5);
        assert_eq!(choose(&[], limits(100, None)), BTreeSet::new());
    }

    proptest! {
        #[test]
        fn no_limit_is_passed(
            shape in proptest::collection::vec((1_u64..1000, 1_u64..=100), 0..30), percent in 1_u8..=100, most in 0_u64..20_000
        ) {
            let packs: Vec<_> = shape
                .iter()
                .map(|(all, share)| pack(0, (all * share).div_ceil(100), Some(*all)))
                .collect();
            let chosen = choose(&packs, limits(percent, Some(most)));
            let bytes: u64 = chosen.iter().map(|at| packs[*at].live_bytes).sum();
            prop_assert!(bytes <= most);
            for at in &chosen {
                let pack = &packs[*at];
                prop_assert!(pack.live_bytes * 1000 / pack.all_bytes.unwrap() <= u64::from(percent) * 10);
            }
        }
    }
}
