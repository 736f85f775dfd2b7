//! Gives the fork of a timeline to the server whose copy of a segment was refused (decision 0019).
//!
//! The refused copy is stored first, as the first segment of its life, and then the event that makes that life the one which is followed: at no
//! time is a life followed that has no segment.

use super::push::read_back;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::repo::container::{Codec, Container, ContainerWriter, Kind, Section, tag};
use crate::repo::event::{self, CLUSTER, Event, Writer};
use crate::repo::healed;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::{Life, RESOLVE, UNRESOLVE};
use crate::repo::repository::Repository;
use crate::store::{Key, Published};
use crate::wal::link::{Before, Link};

/// Sections that a segment has besides its identity, each with whether it is compressed.
const SECTIONS: [(u8, bool); 7] = [
    (tag::SUMMARY, false),
    (tag::FRAGMENTS, false),
    (tag::XIDS, true),
    (tag::EVENTS, true),
    (tag::BLOCKS, true),
    (tag::DAMAGE, true),
    (tag::LINK, false),
];

/// A fork, and the copy that gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The first segment of which two servers have different content.
    pub segment: SegmentName,
    /// The end of the refused copy's key: 16 hexadecimal digits.
    pub copy: String,
}

/// The state of a fork in a repository.
pub enum State {
    /// The copy is the one that is followed: nothing is to be resolved here.
    Followed,
    /// The copy was refused here.
    Refused(Box<Container>),
    /// The copy is not here, and another one is followed.
    Other,
    /// Nothing of the segment is here.
    Absent,
}

/// Looks what a repository has of a fork; `layout` with the lives that it knows.
///
/// # Errors
/// `Damaged` when the copy is; what the store says.
pub fn look(repository: &Repository, layout: &ClusterLayout, fork: &Fork) -> Result<State> {
    let store = repository.store();
    let followed = healed::container(store, &layout.segment(fork.segment))?;
    let is_any = followed.is_some();
    if let Some(Ok(followed)) = followed
        && hash_of(repository, &followed)?.starts_with(&fork.copy)
    {
        return Ok(State::Followed);
    }
    let key = refused_key(layout, fork)?;
    match store.open(&key)? {
        Some(object) => {
            let container = Container::open_under(&key, object)
                .map_err(|e| e.context(format!("read object \"{key}\"")))?;
            Ok(State::Refused(Box::new(container)))
        }
        None if is_any => Ok(State::Other),
        None => Ok(State::Absent),
    }
}

fn refused_key(layout: &ClusterLayout, fork: &Fork) -> Result<Key> {
    let name = WalFileName::Segment(fork.segment);
    Key::new(format!("{}/{name}-{}", layout.conflicts(), fork.copy))
}

/// The hash by which copies are named: keyed in an encrypted repository.
fn hash_of(repository: &Repository, container: &Container) -> Result<String> {
    let hash = match container.is_opaque() {
        true => container.identity().hash,
        false => repository.store().public_hash(&container.identity().hash)?,
    };
    Ok(blake3::Hash::from_bytes(hash).to_hex().to_string())
}

/// Requires that the copy can begin a life here: it is what its key says, and continues the segment before it. Returns a warning where that is not
/// known.
///
/// # Errors
/// `Refused` when it does not continue that one: the two servers parted earlier. `Key` when the copy cannot be read. `Damaged`.
pub fn check(
    repository: &Repository,
    layout: &ClusterLayout,
    fork: &Fork,
    refused: &Container,
) -> Result<Option<String>> {
    let name = fork.segment;
    if refused.is_opaque() {
        return Err(err!(Key, "the refused copy of \"{name}\" cannot be read with the configured keys")
            .hint("Nothing was changed. Run the command with a key file that can read the repository: the copy becomes the first segment of its life."));
    }
    let identity = refused.identity();
    let is_own = refused.is_stored_as(Kind::Segment, name, layout.system_identifier())
        && hash_of(repository, refused)?.starts_with(&fork.copy);
    if !is_own {
        return Err(err!(
            Damaged,
            "the refused copy of \"{name}\" is not what its key says"
        ));
    }
    let size = SegmentSize::new(identity.segment_size_bytes)?;
    let unknown = || {
        format!(
            "whether the copy continues the WAL before \"{name}\" is not known: its server did not have that segment any more"
        )
    };
    let Before::Known(timeline, mark) = Link::read(refused)?.before else {
        return Ok(Some(unknown()));
    };
    let Some(before) = name.before(timeline, size) else {
        return Ok(Some(unknown()));
    };
    let Some(object) = repository.store().open(&layout.segment(before))? else {
        return Ok(Some(format!(
            "segment \"{before}\", right before the fork, is not in the repository"
        )));
    };
    match Link::read(&Container::open(object)?)?.own {
        None => Ok(Some(unknown())),
        Some(own) if own == mark => Ok(None),
        Some(_) => Err(err!(
            Refused,
            "the copy does not continue segment \"{before}\": the two servers parted earlier"
        )
        .hint("Nothing was changed. Resolve the first segment of the timeline that pitr wal conflicts shows; where none before this one was refused, give the server a new timeline: docs/restore.md, \"When two servers wrote one timeline\".")),
    }
}

/// Makes the life of a refused copy the one that is followed: stores the copy as its first segment, then the event. Returns the event's name.
///
/// # Errors
/// Those of [`check`]; what the store says.
pub fn resolve(
    repository: &Repository,
    layout: &ClusterLayout,
    (fork, reason): (&Fork, Option<&str>),
    refused: &Container,
    writer: &Writer<'_>,
) -> Result<String> {
    let mut event = Event {
        segment: Some(fork.segment.to_string()),
        copy: Some(fork.copy.clone()),
        timeline: Some(fork.segment.timeline.get()),
        reason: reason.map(str::to_owned),
        ..writer.event(RESOLVE, CLUSTER)
    };
    // The newest decides, whatever the clocks of two hosts say.
    let newest = layout.lives().iter().map(|l| l.time).max();
    if let Some(newest) = newest.filter(|newest| *newest >= event.time) {
        event.time = newest.saturating_add(std::time::Duration::from_micros(1));
    }
    let life = Life {
        event: String::new(),
        segment: fork.segment,
        copy: fork.copy.clone(),
        time: event.time,
        reason: None,
    };
    let then = layout.clone().with_lives(layout.lives().with(life));
    store_first(repository, &then.segment(fork.segment), refused)?;
    writer.record(repository.store(), layout, &event)
}

/// Ends a resolution. Returns the event's name.
///
/// # Errors
/// Errors of the store.
pub fn undo(
    repository: &Repository,
    layout: &ClusterLayout,
    (life, reason): (&Life, Option<&str>),
    writer: &Writer<'_>,
) -> Result<String> {
    let event = Event {
        segment: Some(life.segment.to_string()),
        copy: Some(life.copy.clone()),
        timeline: Some(life.segment.timeline.get()),
        reason: reason.map(str::to_owned),
        ends: Some(life.event.clone()),
        ..writer.event(UNRESOLVE, CLUSTER)
    };
    event::record(repository.store(), layout, &event, (writer.random)())
}

/// Stores a refused copy under the key of a segment.
fn store_first(repository: &Repository, key: &Key, refused: &Container) -> Result<()> {
    let failed = |e| Error::from_io(format!("write object \"{key}\""), e);
    let store = repository.store();
    let writer =
        ContainerWriter::new(store.create(key)?, Kind::Segment, Codec::Lz4).map_err(failed)?;
    // Its index says nothing of the records, and is to be made anew by a newer program.
    let mut writer = writer.undecoded(refused.is_undecoded());
    refused.read_body(&mut |piece| writer.write(piece).map_err(failed))?;
    let mut sections = Vec::new();
    for (tag, compress) in SECTIONS {
        let bytes = refused.section(tag)?;
        sections.extend(bytes.map(|bytes| Section {
            tag,
            bytes,
            compress,
        }));
    }
    let facts = Link::read(refused)?.facts(&|mark| store.public_hash(mark))?;
    let identity = refused.identity();
    let mut object = writer.complete(identity, sections).map_err(failed)?;
    object.describe(facts, None);
    match object.publish()? {
        Published::Created => read_back(repository, key, identity),
        Published::Exists => {
            let object = store.open(key)?;
            let object =
                object.ok_or_else(|| err!(Unreachable, "object \"{key}\" came and went"))?;
            let container = Container::open(object)?;
            match container.is(identity) {
                true => container.object().settle(),
                false => Err(Error::new(
                    Code::Conflict,
                    format!("object \"{key}\" holds another copy"),
                )),
            }
        }
    }
}
