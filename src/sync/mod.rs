//! Brings one repository up to date from another: what it lacks is copied byte for byte, and checked while it is copied.
//!
//! Order: registration → histories → per backup, oldest first: reservation, claims, its WAL, packs, layers, server
//! manifest, the WAL proven, root → the rest of the WAL → what lies beside it → events. Objects are only created. After
//! a kill at any point, the next run goes on where this one ended: it does not copy present objects again. An object
//! that fails its check is reported and not copied; the rest goes on.

mod backup;
mod copy;
pub mod fork;
pub mod heal;
mod log;
mod pair;
mod parts;
mod rebuild;
pub mod scope;
mod wal;

use std::collections::BTreeSet;
use std::ops::Deref;

use crate::archive::fetch::check_identity;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::plan::cluster;
use crate::plan::lacking::{Lacking, lacking};
use crate::plan::retention::Policy;
use crate::repo::container::Container;
use crate::repo::erasure;
use crate::repo::event::{self, CLUSTER};
use crate::repo::healed;
use crate::repo::id::BackupId;
use crate::repo::json;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::is_resolution;
use crate::repo::repository::{Registration, Repository, check_registration};
use crate::repo::runs::Runs;
use crate::wal::survey::Survey;
pub use pair::Pair;

/// Kinds of events that are true of the cluster wherever it is stored.
const FACTS: [&str; 5] = ["gap", "adopted", "abandon", "restore", "segment_size"];

/// One cluster, from one repository into another.
pub struct Transfer<'a> {
    pair: Pair<'a>,
    registration: &'a Registration,
    layout: ClusterLayout,
    size: SegmentSize,
}

impl<'a> Deref for Transfer<'a> {
    type Target = Pair<'a>;

    fn deref(&self) -> &Pair<'a> {
        &self.pair
    }
}

/// How a transfer is done.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Objects that are copied at a time.
    pub jobs: usize,
    /// Copy also what the receiving side may have expired.
    pub everything: bool,
    /// The rules of retention of the receiving side: what they do not keep is not copied.
    pub rules: Option<&'a Policy>,
}

/// An object that was not copied although it should have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its key, or the backup.
    pub object: String,
    /// The fault.
    pub detail: String,
    /// The two sides contradict one another; else it is damaged or missing.
    pub is_conflict: bool,
}

/// The work that a transfer has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whole segments.
    pub segments: u64,
    /// Backups, in order.
    pub backups: Vec<BackupId>,
    /// Objects of all kinds.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Objects that should have been copied and were not; at most a thousand.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problem_count: u64,
}

/// Whether an error is about one object, so that others can still be copied.
fn is_of_the_object(e: &Error) -> bool {
    matches!(
        e.code(),
        Code::Damaged | Code::Unsupported | Code::WrongCluster | Code::Conflict | Code::WalName
    )
}

impl<'a> Transfer<'a> {
    /// Puts together what is to be done for one cluster of `from`.
    ///
    /// # Errors
    /// `Refused` when they do not have the same keys; `Conflict` when the cluster is registered differently.
    pub fn new(
        from: &'a Repository,
        to: &'a Repository,
        registration: &'a Registration,
        options: Options<'a>,
        host: &'a Host,
    ) -> Result<Transfer<'a>> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        let transfer = Transfer {
            pair: Pair::new((from, to), &layout, options, host)?,
            registration,
            layout: from.read_lives(&layout)?,
            size: SegmentSize::new(registration.segment_size_bytes)?,
        };
        transfer.check_registration()?;
        Ok(transfer)
    }

    /// Requires that the registrations of both sides mean the same.
    fn check_registration(&self) -> Result<()> {
        let Some(there) = self.to.registration(&self.layout)? else {
            return Ok(());
        };
        let of = |r: &Registration| {
            (
                r.segment_size_bytes,
                r.block_size_bytes,
                r.wal_block_size_bytes,
            )
        };
        match of(&there) == of(self.registration) {
            true => Ok(()),
            false => Err(err!(
                Conflict,
                "cluster \"{}\" is registered with other sizes in \"{}\"",
                self.registration.name,
                self.to.store().location()
            )
            .hint("Nothing was copied: the same names mean other positions there.")),
        }
    }

    /// Returns the objects that the other side lacks. Nothing is changed.
    ///
    /// # Errors
    /// Errors of the stores.
    pub fn plan(&self) -> Result<Lacking> {
        let from = Survey::without_leftovers(self.from, self.registration)?;
        let to = Survey::without_leftovers(self.to, self.registration)?;
        if from.lives != *self.layout.lives() {
            return Err(err!(
                Locked,
                "\"pitr wal resolve\" has just decided about a timeline"
            )
            .hint("Nothing was copied. Run the command again."));
        }
        let followed = self.followed(&from, &to)?;
        let wanted = (self.options.everything, self.options.rules);
        Ok(lacking(&from, &to, wanted, &followed, self.host.now()))
    }

    /// The timelines that may be the cluster, by what both sides hold; none where there is nothing to decide.
    fn followed(&self, from: &Survey, to: &Survey) -> Result<Vec<TimelineId>> {
        if cluster::is_straight(&[from, to]) {
            return Ok(Vec::new());
        }
        let is_there = self.to.registration(&self.layout)?.is_some();
        let there = is_there.then_some(self.to);
        match cluster::candidates_in([self.from].into_iter().chain(there), &self.layout) {
            Err(e) if e.code() != Code::Interrupted => {
                self.host.progress.warn(&format!(
                    "it is not known which timeline is the cluster, and the newest counts for what is copied: {e}"
                ));
                Ok(Vec::new())
            }
            found => found,
        }
    }

    /// Copies what a plan made just now says.
    ///
    /// # Errors
    /// `Refused` when the clocks of host and store differ; what the stores say, but for damage, which is part of the report; `Interrupted`. Run again, it goes on.
    pub fn run(&self, lacking: &Lacking) -> Result<()> {
        if !lacking.backups.is_empty() {
            self.check_clocks()?;
        }
        self.register()?;
        self.copy_resolutions(lacking)?;
        // These tell how to read the rest, so they go first: a copy that was cut short would lead to a timeline that was given up, or bring erased
        // rows back.
        self.copy_erasures()?;
        self.copy_facts()?;
        let wal = wal::Wal::begin(self, lacking)?;
        for id in &lacking.backups {
            self.copy_backup(id, &wal)?;
        }
        wal.copy_rest()?;
        wal.copy_beside()?;
        self.copy_pins(&lacking.pins, &lacking.backups)?;
        self.copy_erasures()?;
        self.copy_facts()
    }

    /// Copies the erasures that the other side lacks, also those that its janitor has let go.
    fn copy_erasures(&self) -> Result<()> {
        let there = erasure::list(self.to.store(), &self.layout)?;
        for one in erasure::list(self.from.store(), &self.layout)? {
            if there.iter().any(|known| known.name == one.name) {
                continue;
            }
            let key = self.layout.erasure(&one.name)?;
            let copied = self.copy_small(&key, json::LIMIT_BYTES, &|bytes| {
                erasure::decode(&key, bytes).map(drop)
            });
            self.settle(key.as_str(), copied)?;
        }
        Ok(())
    }

    /// Copies those of these segments that the other side lacks and may have; nothing of a timeline of which the two sides have different WAL.
    ///
    /// # Errors
    /// Those of [`Transfer::run`].
    pub fn fill(&self, wanted: &BTreeSet<SegmentName>, dry_run: bool) -> Result<Vec<SegmentName>> {
        let mut lacking = self.plan()?;
        let mut names = Vec::new();
        for (timeline, runs) in &mut lacking.segments {
            let of_timeline = wanted.iter().filter(|name| name.timeline == *timeline);
            let numbers =
                of_timeline.filter_map(|name| Some((name.number(self.size).ok()?, *name)));
            let there: Vec<_> = numbers.filter(|(n, _)| runs.contains(*n)).collect();
            names.extend(there.iter().map(|(_, name)| *name));
            *runs = Runs::from_numbers(there.iter().map(|(n, _)| n.0).collect());
        }
        lacking.segments.retain(|_, runs| !runs.is_empty());
        lacking
            .histories
            .retain(|t| wanted.iter().any(|name| name.timeline == *t));
        if dry_run {
            return self.fillable(&lacking, names);
        }
        if names.is_empty() {
            return Ok(names);
        }
        wal::Wal::begin(self, &lacking)?.copy_rest()?;
        let store = self.to.store();
        let mut filled = Vec::new();
        for name in names {
            if store.head(&self.layout.segment(name))?.is_some() {
                filled.push(name);
            }
        }
        Ok(filled)
    }

    /// Those of the lacking segments that would be copied: they are read whole.
    fn fillable(&self, lacking: &Lacking, names: Vec<SegmentName>) -> Result<Vec<SegmentName>> {
        let torn = fork::find(self, lacking)?;
        let mut whole = Vec::new();
        for name in names
            .into_iter()
            .filter(|n| !torn.contains_key(&n.timeline))
        {
            self.check_stop()?;
            let read = Container::stored(self.from.store(), &self.layout.segment(name));
            let read = read.and_then(|container| {
                let container = container.ok_or_else(|| err!(Damaged, "it has gone"))?;
                check_identity(&container, &self.layout, WalFileName::Segment(name))?;
                healed::check_whole(&container)
            });
            match read {
                Ok(()) => whole.push(name),
                Err(e) if is_of_the_object(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(whole)
    }

    fn register(&self) -> Result<()> {
        let key = self.layout.registration();
        if self.to.registration(&self.layout)?.is_some() {
            return Ok(());
        }
        let copied = self.copy_small(&key, json::LIMIT_BYTES, &|bytes| {
            check_registration(self.from.store(), &self.layout, bytes).map(|_| ())
        });
        self.settle(key.as_str(), copied)?;
        Ok(())
    }

    /// Copies the resolutions of forks before any WAL: WAL that is copied after a fork is then never missed under its
    /// former key.
    fn copy_resolutions(&self, lacking: &Lacking) -> Result<()> {
        let (from, to) = (self.from.store(), self.to.store());
        let there = event::read_some(to, &self.layout, CLUSTER, &is_resolution)?;
        for one in event::read_some(from, &self.layout, CLUSTER, &is_resolution)? {
            let segment = one.event.segment.as_deref();
            let segment = segment.and_then(|s| s.parse::<SegmentName>().ok());
            let is_parted = segment.is_none_or(|s| lacking.parted.contains(&s.timeline));
            if !is_parted && !there.iter().any(|t| t.name == one.name) {
                self.copy_event(&self.layout.event(CLUSTER, &one.name)?)?;
            }
        }
        Ok(())
    }

    /// Copies the events that are true of the cluster wherever it is stored: WAL that was lost, copies that became
    /// clusters, decisions about timelines, segment sizes.
    fn copy_facts(&self) -> Result<()> {
        for listed in self.from.store().list(&self.layout.events())? {
            let subject = listed.name.as_str();
            let timeline = subject.strip_prefix("wal-");
            let is_fact =
                subject == "cluster" || timeline.is_some_and(|t| t.parse::<TimelineId>().is_ok());
            if !is_fact {
                continue;
            }
            let prefix = self.layout.subject(subject);
            let there = self.to.store().list(&prefix)?;
            for one in self.from.store().list(&prefix)? {
                let kind = event::kind_in(&one.name);
                let is_known = there.iter().any(|t| t.name == one.name);
                if FACTS.contains(&kind) && !is_known {
                    let key = self.layout.event(subject, &one.name)?;
                    self.copy_event(&key)?;
                }
            }
        }
        Ok(())
    }
}
