//! Which life of the cluster a segment belongs to: its link to the segment before, and whether the archive's neighbours are of the same life.
//!
//! The segment before is looked at where the server has it; the archive's own copy would only say what the archive holds already.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::datadir::{DataDirectory, open_at_once};
use super::push::{Checked, Content};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::page::{LONG_HEADER, WalIdentity};
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::repo::container::Container;
use crate::repo::healed;
use crate::repo::layout::{ClusterLayout, Home};
use crate::repo::lives;
use crate::repo::repository::Repository;
use crate::store::Key;
use crate::wal::index::{self, Summary, flag};
use crate::wal::link::{self, Before, Brief, EndBefore, Joined, Link, Mark};

/// The link of a segment that is being archived.
///
/// # Errors
/// Errors of reading the segment.
pub(super) fn link(source: &dyn Content, checked: &Checked<'_>, summary: &Summary) -> Result<Link> {
    let size = checked.wal.segment_size;
    let own = match link::own_end(summary, size) {
        Some(end) => Some(Mark::compute(end, &mut |buffer, at| {
            source.read_at(buffer, at)
        })?),
        None => None,
    };
    let before = match link::end_before(summary, size) {
        EndBefore::Unknown => Before::Unknown,
        EndBefore::Nothing => Before::Nothing,
        EndBefore::At(end) => mark_before(source, checked, summary, end)?,
    };
    Ok(Link { own, before })
}

/// The mark of the segment before, as the server has it.
fn mark_before(
    source: &dyn Content,
    checked: &Checked<'_>,
    summary: &Summary,
    end: u64,
) -> Result<Before> {
    for name in names_before(checked, summary) {
        if let Some((_, mark)) = checked.what.known.filter(|(known, _)| *known == name) {
            return Ok(Before::Known(name.timeline, mark));
        }
        let of = (checked.wal.system_identifier, checked.wal.segment_size);
        let mark = mark_at_hand(name, of, end, &mut |buffer, at| {
            source.read_other(name, buffer, at)
        })?;
        if let Some(mark) = mark {
            return Ok(Before::Known(name.timeline, mark));
        }
    }
    Ok(Before::Unknown)
}

/// The names that the segment before may have.
fn names_before(checked: &Checked<'_>, summary: &Summary) -> Vec<SegmentName> {
    let own = checked.segment.timeline;
    let timelines = match &checked.history {
        Some(history) => {
            let last = checked.wal.start_lsn.0.saturating_sub(1);
            vec![history.holder(Lsn(last))]
        }
        None => {
            let page = TimelineId::new(summary.first_timeline).filter(|t| *t != own);
            std::iter::once(own).chain(page).collect()
        }
    };
    let name = |timeline| checked.segment.before(timeline, checked.wal.segment_size);
    timelines.into_iter().filter_map(name).collect()
}

/// The mark of a segment in a server's pg_wal, whose last WAL ends at `end`; `None` when it is not there any more.
///
/// # Errors
/// None of its own.
pub fn mark_in_server(
    wal: &Path,
    name: SegmentName,
    of: (u64, SegmentSize),
    end: u64,
) -> Result<Option<Mark>> {
    let path = wal.join(name.to_string());
    mark_at_hand(name, of, end, &mut |buffer, at| {
        Ok(read_segment_at(&path, of.1.bytes(), buffer, at))
    })
}

/// The mark of a segment as the server has it, whose last WAL ends at `end`; `None` when it is not at hand. `read` fills a buffer from an offset
/// on, or says that it cannot.
fn mark_at_hand(
    name: SegmentName,
    (system_identifier, size): (u64, SegmentSize),
    end: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> Result<bool>,
) -> Result<Option<Mark>> {
    if !is_at_hand(name, (system_identifier, size), read)? {
        return Ok(None);
    }
    let mut is_read = true;
    let mark = Mark::compute(end, &mut |buffer, at| {
        is_read &= read(buffer, at)?;
        Ok(())
    })?;
    // The server may have recycled it since.
    is_read &= is_at_hand(name, (system_identifier, size), read)?;
    Ok(is_read.then_some(mark))
}

/// Whether the file begins as the segment of this name.
fn is_at_hand(
    name: SegmentName,
    (system_identifier, size): (u64, SegmentSize),
    read: &mut dyn FnMut(&mut [u8], u64) -> Result<bool>,
) -> Result<bool> {
    let mut first = [0; LONG_HEADER];
    Ok(read(&mut first, 0)?
        && WalIdentity::read(&first).is_ok_and(|wal| {
            wal.matches(name).is_ok()
                && wal.system_identifier == system_identifier
                && wal.segment_size == size
        }))
}

/// The relation of a segment to the stored one before it.
pub(super) enum Continued {
    /// It continues that one.
    Yes,
    /// One of the two does not say, or the one before is on its way.
    Unproven,
    /// That one is not stored. With a warning where older ones are.
    Hole(Option<String>),
}

impl Continued {
    /// Returns the warning that should be shown.
    pub(super) fn warning(self) -> Option<String> {
        match self {
            Continued::Yes | Continued::Unproven => None,
            Continued::Hole(warning) => warning,
        }
    }
}

/// Requires that the first segment of a life is the copy that was named when the fork was resolved.
///
/// # Errors
/// `Conflict` for another one.
pub(super) fn check_first(checked: &Checked<'_>, hash: &[u8; 32]) -> Result<()> {
    let life = checked.layout.lives().of(checked.segment);
    let Some(life) = life.filter(|l| l.segment == checked.segment) else {
        return Ok(());
    };
    let offered = checked.repository.store().public_hash(hash)?;
    let offered = blake3::Hash::from_bytes(offered).to_hex();
    match offered.starts_with(&life.copy) {
        true => Ok(()),
        false => Err(err!(
            Conflict,
            "\"pitr wal resolve\" gave the timeline from \"{}\" on to the server of the copy {}, and this one is {}",
            checked.name,
            life.copy,
            offered.get(..16).unwrap_or_default()
        )
        .hint("Nothing was stored, and archiving waits at this file. Stop this server, if it is not the cluster. If it is, see the resolution: pitr wal conflicts; end it: pitr wal resolve --undo EVENT.")),
    }
}

/// Requires that the archive's segment before is the one that the server has.
///
/// # Errors
/// `Conflict` when another server wrote it; what the store says.
pub(super) fn check_before(
    source: &dyn Content,
    checked: &Checked<'_>,
    (summary, link): (&Summary, &Link),
) -> Result<Continued> {
    let (timeline, mark) = match link.before {
        Before::Known(timeline, mark) => (timeline, mark),
        // A segment that pg_resetwal or initdb wrote begins a life.
        Before::Nothing => return Ok(Continued::Unproven),
        Before::Unknown => return check_unknown(checked, summary),
    };
    let Some(name) = checked.segment.before(timeline, checked.wal.segment_size) else {
        return Ok(Continued::Unproven);
    };
    let key = checked.layout.segment(name);
    if let Some(stored) = checked.repository.kept_mark(&key) {
        return match stored == mark || !is_sound(checked, name) {
            true => Ok(Continued::Yes),
            false => Err(other_life(checked, name)),
        };
    }
    if checked.repository.is_in_flight(&key) {
        return Ok(Continued::Yes);
    }
    match stored_link(checked.repository, &key)? {
        Some((stored, is_keyed)) => {
            let mark = as_stored(checked.repository, mark, is_keyed)?;
            match stored.own {
                None => Ok(Continued::Unproven),
                Some(own) if own == mark => Ok(Continued::Yes),
                Some(_) if is_sound(checked, name) => Err(other_life(checked, name)),
                Some(_) => Ok(Continued::Unproven),
            }
        }
        None => {
            let other = in_other_life(checked.repository, &checked.layout, name, Some(mark))?;
            match other.filter(|_| is_sound(checked, name)) {
                Some(key) => Err(decided_against(&checked.name, &key)),
                None => hole_before(source, checked, name).map(Continued::Hole),
            }
        }
    }
}

/// Returns whether the archive's segment before is the one that the server has, as far as can be determined before the
/// segment itself is read. The answers of the store are remembered for [`check_before`], which then asks no more.
///
/// # Errors
/// Errors of the store.
pub(super) fn is_own_before(source: &dyn Content, checked: &Checked<'_>) -> Result<bool> {
    let last = Lsn(checked.wal.start_lsn.0.saturating_sub(1));
    let history = checked.history.as_ref();
    let timeline = history.map_or(checked.segment.timeline, |h| h.holder(last));
    let Some(name) = checked.segment.before(timeline, checked.wal.segment_size) else {
        return Ok(true);
    };
    let key = checked.layout.segment(name);
    // This process stored it, or is about to.
    if checked.repository.kept_mark(&key).is_some() || checked.repository.is_in_flight(&key) {
        return Ok(true);
    }
    is_own(source, checked, name)
}

/// The server does not have the segment before any more. In a life that a resolution chose it is archived there, unless another server wrote it.
fn check_unknown(checked: &Checked<'_>, summary: &Summary) -> Result<Continued> {
    let segment = checked.segment;
    let layout = &checked.layout;
    let Some(before) = segment.before(segment.timeline, checked.wal.segment_size) else {
        return Ok(Continued::Unproven);
    };
    let key = layout.segment(before);
    if checked.repository.is_in_flight(&key) {
        return Ok(Continued::Unproven);
    }
    if let Some(stored) = stored_summary(checked.repository, &key)? {
        return match link::is_contradicted(&stored, summary) {
            true => Err(other_end(checked, before)),
            false => Ok(Continued::Unproven),
        };
    }
    let life = layout.lives().of(segment).filter(|l| l.segment < segment);
    if life.is_none() || checked.repository.store().head(&key)?.is_some() {
        return Ok(Continued::Unproven);
    }
    match in_other_life(checked.repository, layout, before, None)? {
        Some(key) => Err(decided_against(&checked.name, &key)),
        None => Ok(Continued::Unproven),
    }
}

/// Returns the key of a segment in a life of its timeline that is not followed: the one with this mark, or any.
fn in_other_life(
    repository: &Repository,
    layout: &ClusterLayout,
    name: SegmentName,
    mark: Option<Mark>,
) -> Result<Option<Key>> {
    let homes = lives::stored_homes(repository.store(), layout, name.timeline)?;
    let own = layout.home_of(name);
    find_in_other_life(
        repository,
        (&homes, &own),
        name,
        &|_, stored, is_keyed| match mark {
            Some(mark) => Ok(stored.own == Some(as_stored(repository, mark, is_keyed)?)),
            None => Ok(true),
        },
    )
}

/// Finds a segment in a home of its timeline that is not its own, by its link and whether the marks of that are keyed.
fn find_in_other_life(
    repository: &Repository,
    (homes, own): (&[Home], &Home),
    name: SegmentName,
    is_it: &dyn Fn(&Key, &Link, bool) -> Result<bool>,
) -> Result<Option<Key>> {
    // Without a life there is one home only.
    if homes.len() == 1 {
        return Ok(None);
    }
    for home in homes.iter().filter(|home| *home != own) {
        let key = home.segment(name);
        let Some((stored, is_keyed)) = stored_link(repository, &key)? else {
            continue;
        };
        if is_it(&key, &stored, is_keyed)? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Returns whether a timeline left `parent` in a life that is not followed, by the link of its first segment. Such a
/// timeline does not show where the followed life ends. If that segment has no link, its position decides, provided
/// that the timeline is abandoned, as "pitr wal resolve" requires. Without either, the timeline is assumed to have left
/// the followed life.
///
/// # Errors
/// Errors of the store; those of `is_abandoned`.
pub(super) fn is_left_in_other(
    repository: &Repository,
    layout: &ClusterLayout,
    (first, size): (SegmentName, SegmentSize),
    parent: TimelineId,
    is_abandoned: &dyn Fn() -> Result<bool>,
) -> Result<bool> {
    let Some(before) = first.before(parent, size) else {
        return Ok(false);
    };
    // Before anything is read: nearly always there is one life.
    let homes = lives::stored_homes(repository.store(), layout, parent)?;
    if homes.len() == 1 {
        return Ok(false);
    }
    let own = layout.home_of(before);
    let homes = (homes.as_slice(), &own);
    let key = layout.segment(first);
    let Some((link, is_keyed)) = stored_link(repository, &key)? else {
        return Ok(false);
    };
    let found = match link.before {
        Before::Known(timeline, seen) if timeline == parent => {
            let is_it = |_: &Key, stored: &Link, keyed: bool| {
                Ok(keyed == is_keyed && stored.own == Some(seen))
            };
            find_in_other_life(repository, homes, before, &is_it)?
        }
        // The server recycles the segment before once it is promoted.
        Before::Unknown if is_abandoned()? => {
            let first = stored_summary(repository, &key)?.and_then(|s| s.first_record);
            let Some((_, last)) = first else {
                return Ok(false);
            };
            let is_it = |key: &Key, _: &Link, _: bool| {
                let ends = stored_summary(repository, key)?;
                Ok(ends.is_some_and(|s| s.last_begun == Some(last)))
            };
            find_in_other_life(repository, homes, before, &is_it)?
        }
        _ => None,
    };
    Ok(found.is_some())
}

/// The summary of a stored segment; none where it must not or cannot be read.
fn stored_summary(repository: &Repository, key: &Key) -> Result<Option<Summary>> {
    let read = || {
        let stored = healed::container(repository.store(), key)?.transpose()?;
        stored
            .map(|stored| index::read_summary(&stored))
            .transpose()
    };
    match read() {
        Err(e) if e.is_medium() || !is_passing(e.code()) => Ok(None),
        read => read,
    }
}

fn decided_against(name: &dyn std::fmt::Display, before: &Key) -> Error {
    err!(
        Conflict,
        "the segment before \"{}\" is archived as \"{before}\", in a life of the timeline that is not followed",
        name
    )
    .hint("Nothing was stored, and archiving waits at this file: \"pitr wal resolve\" gave the timeline to another server. Stop this server, if it is not the cluster. If it is, see the decision: pitr wal conflicts.")
}

/// Requires that a stored segment continues the one that the server has before it, where it has that one.
///
/// # Errors
/// `Gap` when it does not: recovery would go on with the WAL of another server.
pub(super) fn check_fetched(target: &Path, stored: &Container, name: SegmentName) -> Result<()> {
    let identity = stored.identity();
    let size = SegmentSize::new(identity.segment_size_bytes)?;
    // A link that cannot be read joins nothing; the segment's bytes have a hash of their own.
    let (Ok(link), Ok(summary)) = (Link::read(stored), index::read_summary(stored)) else {
        return Ok(());
    };
    let (Before::Known(timeline, mark), EndBefore::At(end)) =
        (link.before, link::end_before(&summary, size))
    else {
        return Ok(());
    };
    let Some(before) = name.before(timeline, size) else {
        return Ok(());
    };
    let path = DataDirectory::of_wal_file(target)
        .wal()
        .join(before.to_string());
    let of = (identity.system_identifier, size);
    let own = mark_at_hand(before, of, end, &mut |buffer, at| {
        Ok(read_segment_at(&path, size.bytes(), buffer, at))
    })?;
    match own.is_some_and(|own| own != mark) {
        true => Err(not_continued(name, before)),
        false => Ok(()),
    }
}

/// Fills `buffer` from an offset on of a file that has the size of a segment; `false` when it is none, or cannot be read.
pub fn read_segment_at(path: &Path, bytes: u64, buffer: &mut [u8], offset: u64) -> bool {
    open_at_once(path).is_ok_and(|file| {
        let is_whole = file
            .metadata()
            .is_ok_and(|m| m.is_file() && m.len() == bytes);
        is_whole && file.read_exact_at(buffer, offset).is_ok()
    })
}

/// Requires that a stored segment continues the stored one before it.
///
/// # Errors
/// `Gap` when it does not; what the store says.
pub(super) fn check_copied(
    repository: &Repository,
    layout: &ClusterLayout,
    stored: &Container,
    name: SegmentName,
) -> Result<()> {
    let link = Link::read(stored).unwrap_or(Link::NONE);
    if let Some(own) = link.own {
        repository.keep_mark(layout.segment(name), own);
    }
    let Before::Known(timeline, mark) = link.before else {
        return Ok(());
    };
    let size = SegmentSize::new(stored.identity().segment_size_bytes)?;
    let Some(before) = name.before(timeline, size) else {
        return Ok(());
    };
    let key = layout.segment(before);
    let own = match repository.kept_mark(&key) {
        Some(own) => Some(own),
        None => match healed::container(repository.store(), &key)? {
            Some(stored) => stored
                .and_then(|c| Link::read(&c))
                .map_or(None, |link| link.own),
            None => None,
        },
    };
    match own.is_some_and(|own| own != mark) {
        true => Err(not_continued(name, before)),
        false => Ok(()),
    }
}

/// Requires that the stored segment before `name` is the one with this mark, where its link can be read. Returns whether that is proven: `Yes`, or
/// `Unproven`.
///
/// # Errors
/// `Conflict` when it is not; what the store says.
pub fn check_next(
    repository: &Repository,
    layout: &ClusterLayout,
    (name, size): (SegmentName, SegmentSize),
    (before, mark): (SegmentName, Mark),
) -> Result<Joined> {
    if name.before(before.timeline, size) != Some(before) {
        return Ok(Joined::Unproven);
    }
    let key = layout.segment(before);
    let (own, mark) = match repository.kept_mark(&key) {
        Some(own) => (Some(own), mark),
        None => match stored_link(repository, &key)? {
            Some((stored, is_keyed)) => (stored.own, as_stored(repository, mark, is_keyed)?),
            None => {
                return match in_other_life(repository, layout, before, Some(mark))? {
                    Some(key) => Err(decided_against(&name, &key)),
                    None => Ok(Joined::Unproven),
                };
            }
        },
    };
    match own {
        None => Ok(Joined::Unproven),
        Some(own) if own == mark => Ok(Joined::Yes),
        Some(_) => Err(err!(
            Conflict,
            "the archive's segment \"{before}\" is not the one that this server has before \"{name}\": another server wrote it"
        )
        .hint("Nothing was stored. See the two lives of the timeline: pitr wal conflicts.")),
    }
}

fn not_continued(name: SegmentName, before: SegmentName) -> Error {
    err!(
        Gap,
        "the archive's segment \"{name}\" does not continue segment \"{before}\": another server wrote it"
    )
    .hint("Recovery stops, for it would go on with the WAL of another life of the cluster. See \"pitr wal conflicts\" and \"pitr plan\".")
}

/// A mark as the facts of a sealed object have it.
fn as_stored(repository: &Repository, mark: Mark, is_keyed: bool) -> Result<Mark> {
    match is_keyed {
        true => Ok(Mark(repository.store().public_hash(&mark.0)?)),
        false => Ok(mark),
    }
}

/// Whether a stored segment continues the one before it, which has this mark.
///
/// # Errors
/// Errors of the store.
pub fn is_continued(
    repository: &Repository,
    key: &Key,
    (before, mark): (SegmentName, Mark),
) -> Result<Joined> {
    let Some((stored, is_keyed)) = stored_link(repository, key)? else {
        return Ok(Joined::Unproven);
    };
    let own = Brief::from(Link {
        own: Some(as_stored(repository, mark, is_keyed)?),
        before: Before::Unknown,
    });
    Ok(Brief::from(stored).continues(own.own, before.timeline))
}

/// The link of a stored segment, and whether its marks are keyed. A segment that must not or cannot be read joins nothing, and keeps nothing from
/// being archived: a host may have no right to read, and damage is verify's to report.
fn stored_link(repository: &Repository, key: &Key) -> Result<Option<(Link, bool)>> {
    match Link::stored(repository.store(), key) {
        Err(e) if e.is_medium() || !is_passing(e.code()) => Ok(Some((Link::NONE, false))),
        read => read,
    }
}

/// Whether asking again may help.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unreachable | Code::Io | Code::Deadline | Code::Interrupted
    )
}

/// Whether the server's copy of the segment before is sound: a file that has rotted since it was archived tells of no other life.
fn is_sound(checked: &Checked<'_>, name: SegmentName) -> bool {
    if checked.what.known.is_some() {
        return true;
    }
    let path = checked.what.path.with_file_name(name.to_string());
    let decoded = super::backfill::decode(&path, name, false);
    decoded.is_ok_and(|summary| summary.is_some_and(|s| !s.has(flag::DAMAGED)))
}

/// The way out where another life is in the way.
const OTHER_LIFE: &str = "Nothing was stored, and archiving waits at this file. A clone, a machine that was reverted to a snapshot, or a copy that was promoted writes the same timeline. Stop the server that is not the cluster. \"pitr wal conflicts\" shows whether the fork can be given to this one (\"pitr wal resolve\"); docs/restore.md says how the cluster goes on.";

fn other_life(checked: &Checked<'_>, before: SegmentName) -> Error {
    err!(
        Conflict,
        "the archive's segment \"{before}\" is not the one that this server has before \"{}\": another server wrote it",
        checked.name
    )
    .hint(OTHER_LIFE)
}

fn other_end(checked: &Checked<'_>, before: SegmentName) -> Error {
    err!(
        Conflict,
        "the archive's segment \"{before}\" does not end with the record that \"{}\" names as the one before: another server wrote it",
        checked.name
    )
    .hint(OTHER_LIFE)
}

/// Warns of WAL that the archive lacks right before this segment. The stored segment before the gap must be the one
/// that the server has, if the server still has it.
///
/// # Errors
/// `Conflict` when another server wrote it; what the store says.
fn hole_before(
    source: &dyn Content,
    checked: &Checked<'_>,
    name: SegmentName,
) -> Result<Option<String>> {
    let key = checked.layout.segment(name);
    let Some(directory) = key.parent() else {
        return Ok(None);
    };
    // Asked before the archive is: one that is acknowledged between the two is listed.
    let is_waiting =
        DataDirectory::of_wal_file(checked.what.path).is_ready(WalFileName::Segment(name));
    let listed = checked
        .repository
        .store()
        .list(directory)
        .unwrap_or_default();
    let older = listed.iter().filter_map(|l| l.name.parse().ok());
    let Some(last) = older.filter(|older: &SegmentName| *older <= name).max() else {
        return Ok(None);
    };
    if !is_own(source, checked, last)? {
        return Err(other_life(checked, last));
    }
    // Another process brings it, or the server offers it again.
    if is_waiting || last == name {
        return Ok(None);
    }
    Ok(Some(format!(
        "the archive lacks segment \"{name}\", right before this one, and has older ones: nothing behind that gap can be recovered from a backup before it. See \"pitr wal gaps\""
    )))
}

/// Whether a stored segment is the one that the server has, by its mark; also where the server has it no longer, or it cannot be read.
fn is_own(source: &dyn Content, checked: &Checked<'_>, name: SegmentName) -> Result<bool> {
    let key = checked.layout.segment(name);
    let stored = healed::container(checked.repository.store(), &key)?;
    let Some(Ok(stored)) = stored.filter(|s| s.as_ref().is_ok_and(|s| !s.is_opaque())) else {
        return Ok(true);
    };
    let (Ok(link), Ok(summary)) = (Link::read(&stored), index::read_summary(&stored)) else {
        return Ok(true);
    };
    let size = checked.wal.segment_size;
    let (Some(own), Some(end)) = (link.own, link::own_end(&summary, size)) else {
        return Ok(true);
    };
    checked.repository.keep_mark(key, own);
    let of = (checked.wal.system_identifier, size);
    let mark = mark_at_hand(name, of, end, &mut |buffer, at| {
        source.read_other(name, buffer, at)
    })?;
    Ok(mark.is_none_or(|mark| mark == own) || !is_sound(checked, name))
}

/// Looks at the segment after once more, where that costs no request: one that another server stored meanwhile stays, and no reader joins it.
pub(super) fn check_after(checked: &Checked<'_>, of: (&Summary, &Link)) -> Result<Option<String>> {
    if checked.repository.store().is_remote() {
        return Ok(None);
    }
    let next = other_after(checked, of)?;
    Ok(next.map(|next| {
        format!(
            "the archive's segment \"{next}\" was written by another server than \"{}\": recovery ends between them. See \"pitr wal conflicts\"",
            checked.name
        )
    }))
}

/// Requires that the stored segment after continues this one: what is older than the archived WAL is there to lead to it. In a hole of several
/// segments the server's last one before the next stored segment speaks for all of them.
///
/// # Errors
/// `Conflict` when another server wrote it; what the store says.
pub(super) fn require_after(
    source: &dyn Content,
    checked: &Checked<'_>,
    of: (&Summary, &Link),
) -> Result<()> {
    let next = match other_after(checked, of)? {
        None => other_beyond(source, checked)?,
        next => next,
    };
    match next {
        None => Ok(()),
        Some(next) => Err(err!(
            Conflict,
            "the archive's segment \"{next}\" does not continue \"{}\": another server wrote it",
            checked.name
        )
        .hint("It was not stored. The directory is that of another life of the cluster than the archive's: look for the segment on another node. See \"pitr wal conflicts\".")),
    }
}

/// Whether the stored segment after this one says that its writer saw this very one before it.
///
/// # Errors
/// Errors of the store.
pub(super) fn is_seen_after(checked: &Checked<'_>, link: &Link) -> Result<bool> {
    let next = checked.segment.next(checked.wal.segment_size);
    let (Some(own), Some(next)) = (link.own, next) else {
        return Ok(false);
    };
    let key = checked.layout.segment(next);
    // It may have been healed itself a moment ago: then the copy is read. That no copy could be looked for changes nothing about the original.
    let _copies = checked.repository.store().healed_copies(&key);
    let Some((stored, is_keyed)) = stored_link(checked.repository, &key)? else {
        return Ok(false);
    };
    let own = as_stored(checked.repository, own, is_keyed)?;
    Ok(stored.before == Before::Known(checked.segment.timeline, own))
}

/// The first stored segment after this one, where it does not continue the segment that the server has before it.
fn other_beyond(source: &dyn Content, checked: &Checked<'_>) -> Result<Option<SegmentName>> {
    let (repository, layout) = (checked.repository, &checked.layout);
    let key = layout.segment(checked.segment);
    let listed = key
        .parent()
        .map(|directory| repository.store().list(directory));
    let listed = listed.transpose()?.unwrap_or_default();
    let names = listed.iter().filter_map(|l| l.name.parse().ok());
    let Some(next) = names.filter(|n: &SegmentName| *n > checked.segment).min() else {
        return Ok(None);
    };
    let (key, size) = (layout.segment(next), checked.wal.segment_size);
    let Some((stored, is_keyed)) = stored_link(repository, &key)? else {
        return Ok(None);
    };
    let (Before::Known(timeline, seen), Some(summary)) =
        (stored.before, stored_summary(repository, &key)?)
    else {
        return Ok(None);
    };
    let (Some(last), EndBefore::At(end)) = (
        next.before(timeline, size),
        link::end_before(&summary, size),
    ) else {
        return Ok(None);
    };
    let of = (checked.wal.system_identifier, size);
    let own = mark_at_hand(last, of, end, &mut |buffer, at| {
        source.read_other(last, buffer, at)
    })?;
    let own = own
        .map(|own| as_stored(repository, own, is_keyed))
        .transpose()?;
    Ok(own.is_some_and(|own| own != seen).then_some(next))
}

/// The stored segment after, where its link, or without one its first record, says that it continues another one.
pub(super) fn other_after(
    checked: &Checked<'_>,
    (summary, link): (&Summary, &Link),
) -> Result<Option<SegmentName>> {
    let next = checked.segment.next(checked.wal.segment_size);
    let (Some(own), Some(next)) = (link.own, next) else {
        return Ok(None);
    };
    let key = checked.layout.segment(next);
    if checked.repository.is_in_flight(&key) {
        return Ok(None);
    }
    let Some((stored, is_keyed)) = stored_link(checked.repository, &key)? else {
        return Ok(None);
    };
    let is_other = match stored.before {
        Before::Known(timeline, seen) => {
            let own = as_stored(checked.repository, own, is_keyed)?;
            timeline == checked.segment.timeline && seen != own
        }
        Before::Nothing => false,
        Before::Unknown => stored_summary(checked.repository, &key)?
            .is_some_and(|after| link::is_contradicted(summary, &after)),
    };
    Ok(is_other.then_some(next))
}
