//! The items that retention judges: one backup of any content, reduced to the facts that decide about keeping.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Fate;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::{Catalog, Parts, Subject, numbers};
use crate::repo::clock;
use crate::repo::event::{self, Recorded};
use crate::repo::id::{BackupId, PartKind, PartName};

/// No zone or slow commit explains a clock that is further ahead of the store's.
const FAR_AHEAD: Duration = Duration::from_secs(24 * 3600);

/// A committed backup with what is decided about it.
pub struct Item<'a> {
    /// Its place among all items, oldest first; never by anybody's clock.
    pub order: usize,
    pub id: &'a BackupId,
    /// When it ended, by its own clock.
    pub time: TimestampTz,
    /// When the store received its root.
    pub stored: TimestampTz,
    /// When it ended, as retention reads the two: see [`Item::read_time`].
    pub taken: TimestampTz,
    /// It was taken before the WAL window for sure.
    pub precedes_window: bool,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    pub events: &'a [Recorded],
    /// Layers and packs that it needs.
    pub needs: (&'a Parts, &'a Parts),
    /// The timelines that may be the cluster, and to which it leads: empty for one of a branch, and for other content.
    pub leads_to: BTreeSet<TimelineId>,
    /// Timelines to which it may not lead after all: for them it stands for no other one.
    pub unsure: BTreeSet<TimelineId>,
    /// Those beside which it lies, on a branch with a higher number.
    pub beside: BTreeSet<TimelineId>,
    /// Damage of the backup; a damaged one does not count.
    pub damage: Option<String>,
    /// Why it stays.
    pub hold: Option<(String, Hold)>,
    /// The rules that keep it.
    pub kept_by: Vec<KeptBy>,
    /// A person asked for its deletion: it counts for nothing else.
    pub is_asked: bool,
    /// Another backup has the same content: of two the rules count one.
    pub twin: Option<Twin<'a>>,
    /// Fate of the backup.
    pub fate: Fate,
}

/// A backup that stands for another one of the same content, because one was compacted from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twin<'a> {
    /// This newer one was verified, and counts in the place of this backup.
    StoodForBy(&'a BackupId),
    /// This older one counts: the backup was not verified, is marked, or no undamaged one is left.
    StandsLater(&'a BackupId),
}

/// A rule that keeps a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBy {
    /// Its name in the configuration.
    pub rule: &'static str,
    /// It lets the backup go then at the earliest; none where that hangs on backups to come.
    pub until: Option<TimestampTz>,
}

/// Why a backup stays, as far as it matters to what others need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Retention: every point behind it is promised.
    Promise,
    /// Something else, a claim above all: everything behind it stays too.
    Window,
    /// A rule, before the WAL window: it stays restorable to its end.
    End,
    /// A pin alone: likewise.
    Pin,
}

impl<'a> Item<'a> {
    /// One that nobody has judged, with no times and no size.
    pub fn new(
        order: usize,
        id: &'a BackupId,
        events: &'a [Recorded],
        needs: (&'a Parts, &'a Parts),
    ) -> Item<'a> {
        Item {
            order,
            id,
            time: TimestampTz::INFINITY,
            stored: TimestampTz::INFINITY,
            taken: TimestampTz::INFINITY,
            precedes_window: false,
            stored_bytes: 0,
            events,
            needs,
            leads_to: BTreeSet::new(),
            unsure: BTreeSet::new(),
            beside: BTreeSet::new(),
            damage: None,
            hold: None,
            kept_by: Vec::new(),
            is_asked: false,
            twin: None,
            fate: Fate::Keep,
        }
    }
}

impl Item<'_> {
    /// Holds it for the rules of retention, if nothing holds it yet.
    pub fn hold(&mut self, reason: String) {
        let hold = match self.damage {
            None => Hold::Promise,
            Some(_) => Hold::Window,
        };
        self.hold.get_or_insert((reason, hold));
    }

    /// Keeps it for a rule; one that is bounded to its own end promises nothing behind that.
    pub fn keep(&mut self, reason: String, kept_by: KeptBy, is_bounded: bool) {
        let kind = match (&self.damage, is_bounded) {
            (_, true) => Hold::End,
            (None, false) => Hold::Promise,
            (Some(_), false) => Hold::Window,
        };
        self.kept_by.push(kept_by);
        self.hold_also(reason, kind);
    }

    /// Adds a reason why it stays; what holds it only to its end, a pin included, gives way.
    pub fn hold_also(&mut self, reason: String, kind: Hold) {
        self.hold = Some(match self.hold.take() {
            None => (reason, kind),
            Some((before, Hold::End | Hold::Pin)) => (format!("{before}; {reason}"), kind),
            Some((before, held)) => (format!("{before}; {reason}"), held),
        });
    }

    /// Whether it needs no WAL behind its own end.
    pub fn is_bounded(&self, has_window: bool) -> bool {
        match self.hold {
            Some((_, hold)) => matches!(hold, Hold::End | Hold::Pin),
            // A backup that waits for its deletion needs no more than one that stays.
            None => has_window,
        }
    }

    /// Whether its own clock was ahead of the store's.
    pub fn is_ahead(&self) -> bool {
        self.time > self.stored.saturating_add(clock::MAY_DIFFER)
    }

    /// Whether its own clock was days ahead of the store's: the store's time, which may be that of a copy, is then no better.
    pub fn is_far_ahead(&self) -> bool {
        self.time > self.stored.saturating_add(FAR_AHEAD)
    }

    /// Reads when it ended: by its own clock, unless that was ahead. Nothing was taken in the future.
    pub fn read_time(&mut self, now: TimestampTz) {
        let taken = if self.is_ahead() {
            self.stored
        } else {
            self.time
        };
        self.taken = taken.min(now);
    }

    /// Whether a check of it that read everything back found no damage.
    pub fn is_verified(&self) -> bool {
        !event::standing(self.events, "verified", "").is_empty()
    }

    /// The backup that the rules count for it: itself, or a twin.
    pub fn counted(&self) -> &BackupId {
        match self.twin {
            Some(Twin::StoodForBy(id) | Twin::StandsLater(id)) => id,
            None => self.id,
        }
    }

    /// Whether a good twin stays that can stand for this one: one that was verified, or this is the one that does not count yet.
    pub fn has_stand_in(&self, items: &[Item<'_>]) -> bool {
        let is_newer = matches!(self.twin, Some(Twin::StandsLater(_)));
        let stands = |i: &&Item<'_>| i.id != self.id && i.counted() == self.counted();
        let is_good = |i: &Item<'_>| i.damage.is_none() && !i.is_marked();
        let mut others = items.iter().filter(stands);
        others.any(|i| is_good(i) && (i.is_verified() || is_newer && !self.is_verified()))
    }

    /// Whether it is marked for deletion.
    pub fn is_marked(&self) -> bool {
        event::is_marked(self.events)
    }

    /// The same item, of which nothing is decided yet.
    pub fn undecided(&self) -> Self {
        Item {
            damage: self.damage.clone(),
            leads_to: self.leads_to.clone(),
            unsure: self.unsure.clone(),
            beside: self.beside.clone(),
            hold: None,
            kept_by: Vec::new(),
            is_asked: false,
            fate: Fate::Keep,
            ..*self
        }
    }

    /// Whether it still exists after the run.
    pub fn remains(&self) -> bool {
        self.fate != Fate::Delete
    }
}

/// The layers and packs of a scope that a check found damaged.
pub type DamagedParts = BTreeMap<(PartKind, PartName), String>;

/// Returns the known damage to the objects of a backup: a needed part that is not there, or damage that a check found.
pub fn damage<R>(
    (catalog, damaged): (&Catalog<R>, &DamagedParts),
    subject: &Subject<R>,
    needs: (&Parts, &Parts),
) -> Option<String> {
    if let Some(missing) = missing_part(catalog, needs) {
        return Some(format!("{missing} is missing"));
    }
    let own = event::damage(&subject.events);
    let own = own.first().map(|found| found.event.detail.as_deref());
    let shared = || damaged.iter().find(|(part, _)| is_needed(needs, part));
    let detail = own.or_else(|| shared().map(|(_, detail)| Some(detail.as_str())))?;
    let detail = detail.unwrap_or("no detail");
    Some(format!("a check found damage: {detail}"))
}

fn is_needed((layers, packs): (&Parts, &Parts), (kind, part): &(PartKind, PartName)) -> bool {
    let named = match kind {
        PartKind::Layer => layers.get(&part.id),
        PartKind::Pack => packs.get(&part.id),
    };
    named.is_some_and(|numbers| numbers.contains(SegmentNumber(part.number.into())))
}

/// The first layer or pack that a root names and that is not there: such a backup must not stand for a whole one.
fn missing_part<R>(catalog: &Catalog<R>, (layers, packs): (&Parts, &Parts)) -> Option<String> {
    let first = |word: &str, named: &Parts, kind: PartKind| {
        named.iter().find_map(|(id, named)| {
            let have = catalog.ids.get(id).map(|s| s.parts(kind));
            let is_there = |n: u32| have.is_some_and(|h| h.contains(SegmentNumber(n.into())));
            let missing = numbers(named).find(|n| !is_there(*n))?;
            Some(format!("{word} \"{id}/{missing:06}\""))
        })
    };
    first("layer", layers, PartKind::Layer).or_else(|| first("pack", packs, PartKind::Pack))
}
