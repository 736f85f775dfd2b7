//! The resolution of a fork: a timeline is given to the server whose copy was refused, or that decision ends.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failures::Failures;
use super::held::Held;
use super::reading::Reading;
use super::session::Session;
use super::unproven;
use crate::archive::resolve::{self, Fork, State};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::timeline::{History, TimelineId};
use crate::plan::cluster::Tree;
use crate::repo::clock;
use crate::repo::container::Container;
use crate::repo::event::{self, Writer};
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::{Life, Lives};
use crate::wal::inventory::Inventory;

/// Why a decision is not written without the MAC key.
const UNPROVEN: &str = "a decision that nothing proves would not count";

/// A decision about a fork that is shown before it is recorded.
#[derive(Serialize)]
pub struct Resolution {
    /// `resolve` or `unresolve`.
    pub decision: &'static str,
    /// The timeline that forks.
    pub timeline: u32,
    /// The first segment of which two servers have different content.
    pub segment: SegmentName,
    /// The refused copy.
    pub copy: String,
    reason: Option<String>,
    /// Backups that stop behind the fork, whichever server they were taken from.
    pub backups: Vec<String>,
    /// Backups that somebody restores or takes just now.
    pub in_use: Vec<String>,
    /// Consequences that may be unwanted.
    pub warnings: Vec<String>,
    /// The event in each repository.
    pub recorded: Vec<Recorded>,
    confirmed: bool,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
    #[serde(skip)]
    places: Vec<Place>,
    /// The places in which something is to be written, by their number.
    #[serde(skip)]
    changes: Vec<(usize, ClusterLayout)>,
    #[serde(skip)]
    deed: Deed,
}

/// A repository in which a decision stands.
#[derive(Serialize)]
pub struct Recorded {
    pub repository: String,
    /// None where the copy is the one that is followed there anyway.
    pub event: Option<String>,
}

type Place = (Reading, Inventory);

/// The events to write.
enum Deed {
    /// The refused copy becomes the one that is followed.
    Resolve(Box<Container>),
    /// Every decision for this copy ends.
    Undo,
}

/// Looks what follows when the server of a refused copy gets the timeline.
///
/// # Errors
/// `NotFound` when no repository has the copy; `Refused` when something could not be reached any more.
pub fn give(session: &Session, fork: Fork, reason: Option<&str>) -> Result<Resolution> {
    let Held { readings, failures } = Held::read(session)?;
    let mut resolution = resolution(
        session,
        "resolve",
        (fork.clone(), reason),
        readings,
        failures,
    )?;
    let mut refused = None;
    let mut others = Vec::new();
    for (n, (reading, inventory)) in resolution.places.iter().enumerate() {
        let layout = inventory.layout()?;
        match resolve::look(&reading.repository, &layout, &fork)? {
            State::Absent => {}
            State::Other => others.push((n, layout)),
            State::Followed => resolution.recorded.push(Recorded {
                repository: reading.configured.name.clone(),
                event: None,
            }),
            State::Refused(copy) => {
                refused.get_or_insert((copy, reading.repository.marker().key_set.clone()));
                resolution.changes.push((n, layout));
            }
        }
    }
    let Some((refused, key_set)) = refused else {
        return match resolution.recorded.is_empty() {
            true => Err(err!(
                NotFound,
                "no repository has a refused copy {} of \"{}\"",
                fork.copy,
                fork.segment
            )
            .hint("Nothing was changed. See the refused copies: pitr wal conflicts")),
            false => Ok(resolution),
        };
    };
    // A server waits at the first repository that refuses its segment, and the next one has not been offered it.
    for (n, layout) in others {
        let Some((reading, _)) = resolution.places.get(n) else {
            continue;
        };
        match reading.repository.marker().key_set == key_set {
            true => resolution.changes.push((n, layout)),
            false => resolution.warnings.push(format!(
                "repository \"{}\" has other keys, and names the copy otherwise: resolve the fork there by itself, --repository {0}",
                reading.configured.name
            )),
        }
    }
    for (n, layout) in &resolution.changes {
        let Some((reading, inventory)) = resolution.places.get(*n) else {
            continue;
        };
        require_one_history(inventory, fork.segment.timeline)?;
        resolution
            .warnings
            .extend(check_children(inventory, &fork)?);
        let warning = resolve::check(&reading.repository, layout, &fork, &refused)?;
        resolution.warnings.extend(warning);
    }
    resolution.deed = Deed::Resolve(refused);
    Ok(resolution)
}

/// Looks what follows when a decision ends.
///
/// # Errors
/// `NotFound` when no decision has that name; `Refused` when something could not be reached any more.
pub fn take_back(session: &Session, event: &str, reason: Option<&str>) -> Result<Resolution> {
    let Held { readings, failures } = Held::read(session)?;
    let mut all = readings
        .iter()
        .flat_map(|(_, inventory)| inventory.lives.iter());
    let Some(life) = all.find(|l| l.event == event).cloned() else {
        return Err(err!(
            NotFound,
            "no standing decision is called \"{}\"",
            event.escape_debug()
        )
        .hint("Nothing was changed. See the decisions: pitr wal conflicts"));
    };
    drop(all);
    let fork = Fork {
        segment: life.segment,
        copy: life.copy.clone(),
    };
    let asked = (fork.clone(), reason);
    let mut resolution = resolution(session, "unresolve", asked, readings, failures)?;
    for (n, place) in resolution.places.iter().enumerate() {
        let (_, inventory) = place;
        if !inventory.lives.iter().any(|l| is_of(l, &fork)) {
            continue;
        }
        resolution
            .warnings
            .extend(check_children(inventory, &fork)?);
        require_former(place, &fork)?;
        resolution.changes.push((n, inventory.layout()?));
    }
    Ok(resolution)
}

/// Whether a decision is for this copy.
fn is_of(life: &Life, fork: &Fork) -> bool {
    (life.segment, &life.copy) == (fork.segment, &fork.copy)
}

impl Resolution {
    /// Records the decision in every repository that it concerns.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.confirmed = true;
        let writer = Writer::of(&session.host);
        for (n, layout) in &self.changes {
            let Some(place) = self.places.get(*n) else {
                continue;
            };
            let name = place.0.configured.name.clone();
            let proven = require_proof(&place.0, session);
            let event = proven.and_then(|()| self.write(place, layout, &writer));
            let doing = format!("record it in repository \"{name}\"");
            let event = self.failures.note(event, doing);
            self.recorded.extend(event.map(|event| Recorded {
                repository: name,
                event: Some(event),
            }));
        }
        self.failures.first_if(session, self.recorded.is_empty())
    }

    /// Writes the event; returns its name.
    fn write(
        &self,
        (reading, inventory): &Place,
        layout: &ClusterLayout,
        writer: &Writer<'_>,
    ) -> Result<String> {
        let reason = self.reason.as_deref();
        let fork = Fork {
            segment: self.segment,
            copy: self.copy.clone(),
        };
        let refused = match &self.deed {
            Deed::Resolve(refused) => refused,
            Deed::Undo => {
                let mut last = String::new();
                for one in inventory.lives.iter().filter(|l| is_of(l, &fork)) {
                    last = resolve::undo(&reading.repository, layout, (one, reason), writer)?;
                }
                return Ok(last);
            }
        };
        resolve::resolve(
            &reading.repository,
            layout,
            (&fork, reason),
            refused,
            writer,
        )
    }
}

/// Requires that every timeline which descends from this one has the same history of it. Two servers that were promoted to one number have two
/// timelines, and the archive has the history of one: no life of that number leads to the other.
fn require_one_history(inventory: &Inventory, timeline: TimelineId) -> Result<()> {
    let tree = Tree::of(inventory);
    let Some(own) = tree.history(timeline) else {
        return Ok(());
    };
    let points = |h: &History| -> Vec<(TimelineId, Lsn)> {
        let before = h.ancestors().iter().take_while(|a| a.timeline != timeline);
        before.map(|a| (a.timeline, a.switch_lsn)).collect()
    };
    let descends = |h: &&History| h.switch_point(timeline).is_some();
    let mut others = tree
        .timelines()
        .filter_map(|t| tree.history(t))
        .filter(descends);
    match others.find(|h| points(h) != points(own)) {
        None => Ok(()),
        Some(other) => Err(err!(
            Refused,
            "timeline {} descends from another timeline {} than the archived one: two servers were promoted to that number",
            other.timeline().decimal(),
            timeline.decimal()
        )
        .hint("Nothing was changed: the archive has the history of one of the two, and nothing would lead through the other. Give the server that waits a name of its own: pitr adopt --as NAME, or pitr init --cluster NAME, then pitr backup.")),
    }
}

/// Requires that the life which would be followed again still has its first segment: once that was expired, nothing leads into it.
fn require_former((reading, inventory): &Place, fork: &Fork) -> Result<()> {
    let left = inventory.lives.iter().filter(|l| !is_of(l, fork));
    let left = left.fold(Lives::default(), |lives, life| lives.with(life.clone()));
    let layout = inventory.layout()?.with_lives(left);
    let key = layout.segment(fork.segment);
    match reading.repository.store().head(&key)? {
        Some(_) => Ok(()),
        None => Err(err!(
            Refused,
            "what was followed before that decision has been expired: \"{key}\" is not in repository \"{}\"",
            reading.configured.name
        )
        .hint("Nothing was changed. The decision stays: nothing would lead to what the other server wrote.")),
    }
}

/// Requires that no timeline with WAL of its own continues the life that is followed now behind the fork: it could not be reached any more. Returns
/// a warning for one of which that is not so, or not known.
fn check_children(inventory: &Inventory, fork: &Fork) -> Result<Option<String>> {
    let size = inventory.segment_size;
    let parent = fork.segment.timeline;
    let start = fork.segment.number(size)?.start_lsn(size);
    let tree = Tree::of(inventory);
    let abandoned = tree.abandoned(&inventory.decisions);
    let mut doubtful = Vec::new();
    // The newest comes first: it cannot be abandoned with the timeline from which it descends.
    for (id, held) in inventory.timelines.iter().rev() {
        let left = tree.history(*id).and_then(|h| h.switch_point(parent));
        let Some(left) = left.filter(|left| *left > start) else {
            continue;
        };
        if held.segments.is_empty() || abandoned.contains(id) {
            continue;
        }
        // Recovery reads the child's copy of the segment in which it was left, and the parent's up to there.
        let last = SegmentNumber::of(left, size).0.saturating_sub(1);
        match inventory.has(parent, SegmentNumber(last)) {
            false => doubtful.push(id.decimal().to_string()),
            true => {
                return Err(err!(
                    Refused,
                    "timeline {} leaves timeline {} behind the fork, and has WAL of its own",
                    id.decimal(),
                    parent.decimal()
                )
                .hint(format!(
                    "Nothing was changed. It continues the WAL that is followed now, and could be restored only as that is followed.\nIf it is a drill or a clone: pitr timeline abandon {} --reason TEXT. If it is the cluster, the WAL that is followed is the right one.",
                    id.decimal()
                )));
            }
        }
    }
    Ok((!doubtful.is_empty()).then(|| {
        format!(
            "timeline {} leaves timeline {} behind the fork: what is followed now does not lead to it",
            doubtful.join(" and "),
            parent.decimal()
        )
    }))
}

fn resolution(
    session: &Session,
    decision: &'static str,
    (fork, reason): (Fork, Option<&str>),
    places: Vec<Place>,
    failures: Failures,
) -> Result<Resolution> {
    let segment = fork.segment;
    let mut backups = BTreeSet::new();
    let mut in_use = BTreeSet::new();
    for (reading, inventory) in &places {
        let size = inventory.segment_size;
        let behind = |lsn| {
            SegmentNumber::ending_at(lsn, size) >= segment.number(size).unwrap_or(SegmentNumber(0))
        };
        let own = inventory.backups.iter();
        let own = own.filter(|b| b.timeline == segment.timeline && behind(b.stop_lsn));
        backups.extend(own.map(|b| b.id.to_string()));
        let layout = inventory.layout()?;
        for listed in reading.repository.store().list(&layout.events())? {
            if listed.name.parse::<crate::repo::id::BackupId>().is_err() {
                continue;
            }
            let events = event::read_all(reading.repository.store(), &layout, &listed.name)?;
            let mut backups = inventory.backups.iter();
            let is_committed = backups.any(|backup| backup.id.to_string() == listed.name);
            let claims = event::live_claims(&events, session.host.now());
            // The packs of an interrupted backup wait for the next one without its WAL.
            let mut of_wal = claims
                .iter()
                .filter(|claim| is_committed || claim.event.purpose.as_deref() != Some("prior"));
            if of_wal.next().is_some() {
                in_use.insert(listed.name);
            }
        }
    }
    Ok(Resolution {
        decision,
        timeline: segment.timeline.decimal(),
        segment,
        copy: fork.copy.clone(),
        reason: reason.map(str::to_owned),
        backups: backups.into_iter().collect(),
        in_use: in_use.into_iter().collect(),
        warnings: Vec::new(),
        recorded: Vec::new(),
        confirmed: false,
        failures,
        places,
        changes: Vec::new(),
        deed: Deed::Undo,
    })
}

/// The event has to count, and decisions are ordered by their times.
fn require_proof(reading: &Reading, session: &Session) -> Result<()> {
    if let Some(why) = unproven::warning(&reading.configured, &reading.repository, UNPROVEN) {
        return Err(err!(Key, "{why}"));
    }
    clock::check(reading.repository.store(), session.host.now())
        .map_err(|e: Error| e.context("date the decision"))
}
