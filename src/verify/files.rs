//! The small objects: roots, events, histories, partials, labels, refused copies, what the repository keeps for recipients.

use std::sync::atomic::Ordering;

use super::events::{events, reservations};
use super::wal::Extent;
use super::{About, FindingKind, Work, open_segment, wal};
use crate::err;
use crate::error::Result;
use crate::pg::segment::WalFileName;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::catalog::Manifest;
use crate::repo::container::{Container, Kind};
use crate::repo::id::BackupId;
use crate::repo::layout::{self, ClusterLayout};
use crate::repo::root::BackupRoot;
use crate::repo::scope;
use crate::repo::{epochs, keyring};
use crate::store::Key;
use crate::wal::inventory::HistoryFile;
use crate::wal::survey::Survey;

/// History files, labels and manifests of labels are no larger.
const SMALL_LIMIT_BYTES: u64 = 1 << 20;

pub(super) fn check(work: &Work<'_>, survey: &Survey) -> Result<()> {
    for (id, subject) in &survey.ids {
        if matches!(subject.manifest, Manifest::Unreadable(_)) {
            let key = work.layout.manifest(id);
            let read = BackupRoot::read(work.store, &work.layout, id);
            let about = || About::Backup(id.clone());
            if work.settle(read, key.as_str(), about())?.is_some() {
                let detail = "its positions or its history are not possible";
                work.find(FindingKind::Damaged, key.as_str(), detail, about());
            }
        }
    }
    reservations(work, &survey.catalog)?;
    events(work)?;
    registrations(work)?;
    for (timeline, held) in &survey.timelines {
        work.host.check_stop()?;
        if held.history != HistoryFile::Absent {
            history(work, survey, *timeline)?;
        } else if *timeline != TimelineId::FIRST && !held.is_empty() {
            let key = work.layout.history(*timeline);
            let detail = "the history file is not there, although WAL of the timeline is";
            let about = About::History(*timeline);
            work.find(FindingKind::Missing, key.as_str(), detail, about);
        }
        for partial in &held.partials {
            wal::check_partial(work, *partial)?;
        }
    }
    for segment in survey.increments.keys() {
        open_segment::check(work, survey, *segment)?;
    }
    for label in &survey.labels {
        let key = work.layout.wal_file(*label);
        // The archiver stores one that cannot be read, too.
        small(work, &key, *label, About::Other, |_| Ok(()))?;
    }
    for (offered, key) in &survey.conflicts {
        conflict(work, *offered, key)?;
    }
    for (name, key) in &survey.shadowed {
        shadowed(work, *name, key)?;
    }
    recipients(work)
}

/// Others under the same name: they decide which cluster is meant, and how large its segments are.
fn registrations(work: &Work<'_>) -> Result<()> {
    for other in work.what.repository.clusters(work.layout.name())? {
        let key = other.registration();
        let read = work.what.repository.registration(&other);
        if let Some(None) = work.settle(read, key.as_str(), About::Other)? {
            let readable = work.what.repository.require_readable(&other);
            if readable.is_ok_and(|r| r.is_lost) {
                let detail = "the registration is not there: archiving and backups are refused (A121), and older versions read nothing of the cluster. On its host, with its data directory: pitr init";
                work.find(FindingKind::Missing, key.as_str(), detail, About::Other);
            }
        }
    }
    Ok(())
}

/// Checks the objects that the repository keeps for its recipients. `doctor` looks for forged ones: this check does not
/// need the MAC key.
fn recipients(work: &Work<'_>) -> Result<()> {
    let Some(id) = &work.what.repository.marker().key_set else {
        return Ok(());
    };
    for epoch in epochs::shown(work.store)? {
        for name in keyring::recipient_names(work.store, epoch)? {
            let key = scope::recipient(epoch, &name)?;
            let read = keyring::recipient(work.store, epoch, &name);
            let read = read.and_then(|read| match read {
                Some(other) if other.key_set != *id => Err(err!(
                    Damaged,
                    "object \"{key}\" is of another key set; the recipient can read nothing"
                )),
                other => Ok(other),
            });
            if let Some(Some(_)) = work.settle(read, key.as_str(), About::Other)? {
                work.count(0);
            }
        }
    }
    Ok(())
}

fn history(work: &Work<'_>, survey: &Survey, timeline: TimelineId) -> Result<()> {
    let key = work.layout.history(timeline);
    let name = WalFileName::History(timeline);
    small(work, &key, name, About::History(timeline), |bytes| {
        let history = History::parse(timeline, bytes)?;
        if let Some(parent) = other_parent(&history, survey) {
            work.warn(format!(
                "{key}: timeline {0} descends from another timeline {1} than the archived one: two servers were promoted to that number, and the archive has none of what it continues",
                timeline.decimal(),
                parent.decimal()
            ));
        }
        Ok(())
    })
}

/// Returns the parent when the archived history of its number is another one's: a server that lost the number left it for a higher one.
fn other_parent(history: &History, survey: &Survey) -> Option<TimelineId> {
    let (parent, _) = history.parent()?;
    let HistoryFile::Known(known) = &survey.timelines.get(&parent)?.history else {
        return None;
    };
    let before = history.ancestors().iter().filter(|a| a.timeline != parent);
    let is_same = before
        .map(|a| (a.timeline, a.switch_lsn))
        .eq(known.ancestors().iter().map(|a| (a.timeline, a.switch_lsn)));
    (!is_same).then_some(parent)
}

fn conflict(work: &Work<'_>, offered: WalFileName, key: &Key) -> Result<()> {
    settled(work, key, About::Other, |container| {
        check_identity(container, &work.layout, offered)?;
        let hash = work.store.public_hash(&container.identity().hash)?;
        let own = work.layout.conflict(offered, &hash);
        if own.as_str() != scope::own_key(key) {
            return Err(err!(Damaged, "it holds another copy than its key says"));
        }
        container.read_body(&mut |_| Ok(()))
    })
}

/// A file of a life that is not followed: whole or not, no plan depends on it.
fn shadowed(work: &Work<'_>, name: WalFileName, key: &Key) -> Result<()> {
    settled(work, key, About::Other, |container| {
        if layout::increment_range(key.name()).is_none() {
            check_identity(container, &work.layout, name)?;
        }
        container.read_body(&mut |_| Ok(()))
    })
}

/// Opens an object, has it checked, and settles what was found. One that is gone by now is passed over.
fn settled(
    work: &Work<'_>,
    key: &Key,
    about: About,
    check: impl Fn(&Container) -> Result<()>,
) -> Result<()> {
    let read = open(work, key).and_then(|opened| opened.as_ref().map_or(Ok(()), check));
    work.settle(read, key.as_str(), about).map(drop)
}

/// Opens an object and checks every stored byte; `None` when it is not there any more.
pub(super) fn open(work: &Work<'_>, key: &Key) -> Result<Option<Container>> {
    let Some(object) = work.store.open(key)? else {
        work.warn(format!(
            "\"{key}\" was deleted while the repository was read"
        ));
        work.is_vanishing.store(true, Ordering::Relaxed);
        return Ok(None);
    };
    let container = Container::open_under(key, object)?;
    container.check_stored()?;
    work.count(container.stored_bytes());
    Ok(Some(container))
}

/// Whether the object is the one of its name in this cluster.
pub(super) fn check_identity(
    container: &Container,
    layout: &ClusterLayout,
    name: WalFileName,
) -> Result<()> {
    let identity = container.identity();
    if container.kind() != Kind::of(name)
        || identity.name != name.to_string()
        || identity.timeline != name.timeline().get()
    {
        let shown = identity.name.escape_debug();
        return Err(err!(Damaged, "it holds \"{shown}\""));
    }
    if identity.system_identifier != layout.system_identifier() {
        let identifier = identity.system_identifier;
        return Err(err!(
            Damaged,
            "it belongs to system identifier {identifier}"
        ));
    }
    Ok(())
}

fn small(
    work: &Work<'_>,
    key: &Key,
    name: WalFileName,
    about: About,
    parse: impl Fn(&[u8]) -> Result<()>,
) -> Result<()> {
    settled(work, key, about, |container| {
        check_identity(container, &work.layout, name)?;
        parse(&container.read_small(SMALL_LIMIT_BYTES)?)
    })
}

/// The server's own manifest, as an object; of [`Extent::End`] the content is not read.
pub(super) fn open_server_manifest(
    work: &Work<'_>,
    id: &BackupId,
    extent: Extent,
) -> Result<Option<Container>> {
    let key = work.layout.server_manifest(id);
    let Some(object) = work.store.open(&key)? else {
        return Ok(None);
    };
    let container = Container::open(object)?;
    if extent == Extent::Whole {
        container.check_stored()?;
    }
    let identity = container.identity();
    if container.kind() != Kind::ServerManifest
        || identity.name != "backup_manifest"
        || identity.system_identifier != work.layout.system_identifier()
    {
        return Err(err!(
            Damaged,
            "it holds \"{}\" of system identifier {}",
            identity.name.escape_debug(),
            identity.system_identifier
        ));
    }
    work.count(match extent {
        Extent::Whole => container.stored_bytes(),
        Extent::End => 0,
    });
    Ok(Some(container))
}
