//! Executes a plan of expiry (`plan::retention`).
//!
//! Order: marks → the claim under which WAL is deleted (`repo::deletion`) → everything is read anew, claims before roots → tombstones → roots, each gone for good before → server manifests,
//! layers, packs → WAL, ascending per timeline → events, reservations last → claims of copies that are over, as far as the round lasts. Layers, packs, and WAL before all that is needed go several at once.
//! The claim ends where WAL takes long, and everything from it on is done once more. Killed anywhere, the next run goes on: what is
//! gone is gone, and what is left is still marked. A mark is no authority: the second reading decides again, and only what was marked
//! before it is deleted. Only this module deletes objects, but for a failed backup, which takes back its own (`backup`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::plan::cluster::{self, Side};
use crate::plan::retention::wal::Paths;
use crate::plan::retention::{ExpirePlan, Fate, LEFTOVER_AGE, Policy, retention};
use crate::repo::catalog::{self, Catalog, Manifest};
use crate::repo::clock;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::outline::Outline;
use crate::repo::scope::Scope;
use crate::store::{self, Irregular, Key, Store};
use crate::wal::inventory::Inventory;
use crate::wal::link::{Brief, Joined, Link};
use crate::wal::rollup::Rollup;
use crate::wal::survey::Survey;
use run::{Decided, Domain, Run};

pub mod erasures;
pub mod marks;
mod run;
pub mod scope;

/// One run of expiry on one cluster in one repository.
pub struct Expire<'a> {
    /// Repository that holds the cluster.
    pub repository: &'a Repository,
    /// Registration of the cluster.
    pub registration: &'a Registration,
    /// Rules of retention.
    pub policy: Policy,
    /// The host that it runs on.
    pub host: &'a Host,
    /// The links that were read so far: for the plan, or by a run since its beginning.
    pub links: Links,
    /// Leftovers of unfinished writes in the repository; all its scopes share one.
    pub leftovers: Leftovers,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    pub marked: Vec<BackupId>,
    /// Backups that are gone.
    pub deleted_backups: Vec<BackupId>,
    /// Segments that are gone.
    pub deleted_segments: u64,
    /// All objects that are gone.
    pub deleted_objects: u64,
    /// Deletions that the store refused, at most the first hundred.
    pub refused: Vec<String>,
    pub refused_count: u64,
    /// Objects that the store keeps for a time that is not over, and until when; at most the first hundred.
    pub locked: Vec<String>,
    /// How many it keeps.
    pub locked_count: u64,
    /// Their stored bytes, as far as the store tells them, and those of backups whose roots are among them.
    pub locked_bytes: u64,
    /// Claims of copies that were over, and their releases, that are gone; they are not among the objects.
    pub cleared: u64,
    /// Backups of which the store keeps some of these: a later run tries again.
    pub uncleared: u64,
    /// The causes for which the last plan that was carried out leaves something.
    pub withheld: Vec<String>,
}

impl Outcome {
    /// Adds to the causes that were known before.
    pub fn add_withheld(&self, known: &mut Vec<String>) {
        let new = self.withheld.iter().filter(|why| !known.contains(why));
        let new: Vec<String> = new.cloned().collect();
        known.extend(new);
    }
}

impl Expire<'_> {
    /// Computes what a run would do, and changes nothing.
    ///
    /// # Errors
    /// `Refused` when the clocks differ; what the store says.
    pub fn plan(&self) -> Result<ExpirePlan> {
        let mut survey = self.first_survey()?;
        let policy = self.policy_for(&survey)?;
        self.judge(&mut survey, &policy, self.host.now())
    }

    /// Computes what a run would do, and what has gone in the end: the plan of the same policy without a grace period.
    ///
    /// # Errors
    /// As [`Expire::plan`].
    pub fn plan_to_the_end(&self) -> Result<(ExpirePlan, ExpirePlan)> {
        let mut survey = self.first_survey()?;
        let now = self.host.now();
        let policy = self.policy_for(&survey)?;
        let plan = self.judge(&mut survey, &policy, now)?;
        let grace = Duration::ZERO;
        let then = self.judge(&mut survey, &Policy { grace, ..policy }, now)?;
        Ok((plan, then))
    }

    /// Computes what is kept. A backup stands for older ones only where the links of its WAL hold, which are read where anything would go.
    fn judge(&self, survey: &mut Survey, policy: &Policy, now: TimestampTz) -> Result<ExpirePlan> {
        let layout = survey.layout(self.registration)?;
        loop {
            let plan = retention(survey, policy, now);
            if plan.only_clears() {
                return Ok(plan);
            }
            let kept = plan.backups.iter().filter(|b| b.fate == Fate::Keep);
            let good = kept.filter(|b| b.damage.is_none()).map(|b| b.id.clone());
            let paths = Paths::new(survey);
            let mut broken = Vec::new();
            for id in good {
                if let Some(name) = self.first_break((&*survey, &layout), &paths, &id)? {
                    broken.push((id, name));
                }
            }
            drop(paths);
            if broken.is_empty() {
                return Ok(plan);
            }
            // It is judged once more, without those; each time there are fewer.
            for (id, name) in broken {
                let subject = survey.ids.get_mut(&id);
                if let Some(Manifest::Committed(root)) = subject.map(|s| &mut s.manifest) {
                    root.foreign = Some(name);
                }
            }
        }
    }

    /// The first segment from a backup's start to its end that does not continue the one before.
    fn first_break(
        &self,
        (survey, layout): (&Survey, &ClusterLayout),
        paths: &Paths<'_>,
        id: &BackupId,
    ) -> Result<Option<SegmentName>> {
        let Some(Manifest::Committed(root)) = survey.ids.get(id).map(|s| &s.manifest) else {
            return Ok(None);
        };
        let size = survey.segment_size;
        let first = SegmentNumber::of(root.start_lsn, size);
        let last = SegmentNumber::ending_at(root.stop_lsn, size);
        let numbers = (first.0..=last.0).map(SegmentNumber);
        let name = |number: SegmentNumber| number.name(paths.holder(root.timeline, number), size);
        let names: Vec<SegmentName> = numbers.map_while(name).collect();
        let keys: Vec<Key> = names.iter().map(|name| layout.segment(*name)).collect();
        let links = self.links.of(self.repository.store(), &keys)?;
        let mut before: Option<(SegmentName, (Brief, bool))> = None;
        for (name, link) in names.into_iter().zip(links) {
            if let Some((previous, (own, as_keyed))) = before
                && let Some((link, is_keyed)) = link
                // Raw and keyed marks tell nothing of one another.
                && as_keyed == is_keyed
                && link.continues(own.own, previous.timeline) == Joined::No
            {
                return Ok(Some(name));
            }
            before = link.map(|link| (name, link));
        }
        Ok(None)
    }

    /// Returns the rules of retention, with the timelines that may be the cluster.
    fn policy_for(&self, survey: &Survey) -> Result<Policy> {
        let mut policy = self.policy.clone();
        policy.store_clock = pin_clock(self.repository.store(), &survey.catalog)?;
        // With one timeline there is nothing to decide, and what cannot be read is a reason to delete nothing.
        if survey.timelines.len() > 1 && survey.unreadable.is_empty() {
            let registered = self.registration;
            let (name, identifier) = (&registered.name, registered.system_identifier);
            let inventory = Inventory::of_wal(self.repository, name, identifier)?;
            let wal = &Rollup::new(self.repository, &inventory, None)?;
            let inventory = &inventory;
            policy.cluster = cluster::decide_by(&[Side { inventory, wal }])?.candidates();
        }
        Ok(policy)
    }

    fn layout(&self) -> Result<ClusterLayout> {
        ClusterLayout::new(&self.registration.name, self.registration.system_identifier)
    }

    /// Reads what is there but for leftovers, and requires a clock by which it can be judged.
    fn survey(&self) -> Result<Survey> {
        let survey = Survey::compared(self.repository, self.registration)?;
        check_clock(self.repository.store(), &survey.catalog, self.host.now())?;
        Ok(survey)
    }

    /// Reads what is there for a plan.
    fn first_survey(&self) -> Result<Survey> {
        let mut survey = self.survey()?;
        let (layout, now) = (self.layout()?, self.host.now());
        let store = self.repository.store();
        survey.catalog.unfinished = self.leftovers.shown(store, &layout, now)?;
        Ok(survey)
    }

    /// Marks what `shown`, a plan made just now, does not keep, and deletes what was marked before the grace period. `outcome` tells what was
    /// done, be it with an error in the end.
    ///
    /// # Errors
    /// `Refused` when the clocks differ; what the store says, but for refused deletions, which are counted; `Interrupted`. Run again, it goes on.
    pub fn run(&self, shown: &ExpirePlan, outcome: &mut Outcome) -> Result<()> {
        let layout = self.layout()?;
        let place = (self.repository.store(), &*layout);
        // The decisions under the claim, from here on, read the links anew as well.
        self.links.forget();
        Run::new(self, place, &self.policy, self.host, outcome).run(shown, &self.policy)
    }
}

impl Domain for Expire<'_> {
    fn decide(&self, spared: &BTreeSet<BackupId>) -> Result<Decided> {
        let mut survey = self.survey()?;
        // This reading tells the homes of the segments.
        let layout = survey.layout(self.registration)?;
        let (store, now) = (self.repository.store(), self.host.now());
        survey.catalog.unfinished = self.leftovers.to_delete(store, &layout, now)?;
        let policy = self.policy_for(&survey)?;
        let now = self.host.now();
        let judge = |policy: &Policy| self.judge(&mut survey, policy, now);
        let plan = judged_again(policy, spared, judge)?;
        Ok(Decided {
            plan,
            wal: Some((layout, survey.segment_size)),
        })
    }

    fn exists(&self, id: &BackupId) -> Result<bool> {
        let layout = self.layout()?;
        Ok(Outline::read(self.repository.store(), &layout, id)?.is_some())
    }
}

/// Judges once more where the policy would mark something now: a backup without a mark waits for another run, also without grace.
fn judged_again(
    mut policy: Policy,
    spared: &BTreeSet<BackupId>,
    mut judge: impl FnMut(&Policy) -> Result<ExpirePlan>,
) -> Result<ExpirePlan> {
    policy.spared.clone_from(spared);
    let plan = judge(&policy)?;
    if plan.marks.is_empty() {
        return Ok(plan);
    }
    policy.spared.extend(plan.marks);
    judge(&policy)
}

/// The links of stored segments, by their keys. Each is read once in all judgements of a plan, and once more in those of a run, in all its rounds.
#[derive(Default)]
pub struct Links(Mutex<BTreeMap<Key, (Brief, bool)>>);

impl Links {
    /// Forgets all: they are read anew.
    fn forget(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }

    /// The links under some keys, in their order, and whether the marks of each are keyed; none where a segment is not stored whole, or damaged: names and verify
    /// tell of that.
    fn of(&self, store: &dyn Store, keys: &[Key]) -> Result<Vec<Option<(Brief, bool)>>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking: Vec<&Key> = keys.iter().filter(|k| !known.contains_key(*k)).collect();
        let read = store::beside(store, &lacking, |key| match Link::stored(store, key) {
            Err(e) if e.is_damage() || e.code() == Code::Key => Ok(None),
            read => Ok(read?.map(|(link, is_keyed)| (Brief::from(link), is_keyed))),
        });
        for (key, link) in lacking.into_iter().zip(read) {
            if let Some(link) = link? {
                known.insert(key.clone(), link);
            }
        }
        Ok(keys.iter().map(|key| known.get(key).copied()).collect())
    }
}

/// Leftovers of unfinished writes in a repository. To look for them is a walk over everything that is stored: the plans of all scopes share one.
#[derive(Debug, Clone, Default)]
pub struct Leftovers(Arc<Mutex<Option<Vec<Irregular>>>>);

impl Leftovers {
    /// Those of a scope, and of none, that were old enough to go when they were looked for.
    ///
    /// # Errors
    /// Errors of the store.
    fn shown(&self, store: &dyn Store, scope: &Scope, now: TimestampTz) -> Result<Vec<Irregular>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let mut all = store.irregular()?;
            all.retain(|one| one.modified.saturating_add(LEFTOVER_AGE) <= now);
            *known = Some(all);
        }
        let all = known.iter().flatten().cloned();
        Ok(catalog::unfinished_of(scope, all))
    }

    /// Those that may be deleted now. They are looked for once more where a plan has shown any: a deletion hangs on no old answer.
    ///
    /// # Errors
    /// Errors of the store.
    fn to_delete(
        &self,
        store: &dyn Store,
        scope: &Scope,
        now: TimestampTz,
    ) -> Result<Vec<Irregular>> {
        match self.shown(store, scope, now)?.is_empty() {
            true => Ok(Vec::new()),
            false => Ok(catalog::unfinished_of(
                scope,
                store.irregular()?.into_iter(),
            )),
        }
    }
}

/// Requires a clock by which what was read can be judged.
fn check_clock<R>(store: &dyn Store, catalog: &Catalog<R>, now: TimestampTz) -> Result<()> {
    if let Some((stored, key)) = &catalog.newest
        && *stored > now.saturating_add(clock::MAY_DIFFER)
    {
        let what = format!("\"{key}\" was stored at {stored}");
        let refused = not_deleted(clock::differs(now, &what));
        // Clocks that differ now are refused first. A clock that was wrong leaves its date on the object.
        check_now(store, now)?;
        return Err(match store.clock()? {
            Some(_) => refused.hint_last(DATED),
            None => refused,
        });
    }
    check_now(store, now)
}

/// Requires that the clock of this host is that of the store.
///
/// # Errors
/// `Refused` when the clocks differ; what the store says.
pub fn check_now(store: &dyn Store, now: TimestampTz) -> Result<()> {
    clock::check(store, now).map_err(|e| match e.code() {
        Code::Refused => not_deleted(e),
        _ => e,
    })
}

/// The clock by which pins with an end are over, where one is asked.
fn pin_clock<R>(store: &dyn Store, catalog: &Catalog<R>) -> Result<Option<TimestampTz>> {
    let mut events = catalog.ids.values().flat_map(|subject| &subject.events);
    match events.any(|e| e.event.until.is_some()) {
        true => store.clock(),
        false => Ok(None),
    }
}

/// The way out where both clocks are right, and one object is not.
const DATED: &str = "Host and repository agree on the time. The object may have the date of a clock that was wrong: touch its file, or copy it onto itself in its bucket.";

fn not_deleted(clocks_differ: Error) -> Error {
    clocks_differ.hint(
        "Nothing was marked or deleted: grace periods and the claims of running backups and restores are counted by the clock.\nCorrect the clock that is wrong: timedatectl set-ntp true",
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::archive::push::{Push, push};
    use crate::config::Retention;
    use crate::pg::craft::Craft;
    use crate::pg::lsn::Lsn;
    use crate::pg::segment::{SegmentSize, WalFileName};
    use crate::pg::timeline::TimelineId;
    use crate::pg::version::Major;
    use crate::repo::container::Codec;
    use crate::repo::crafted;
    use crate::repo::event::{Event, Recorded};
    use crate::repo::runs::Runs;
    use crate::wal::inventory::Timeline;
    use crate::wal::survey::{Root, Subject};

    const SEGMENT: u64 = 1 << 20;
    const NOW: TimestampTz = TimestampTz(1 << 50);

    fn size() -> SegmentSize {
        SegmentSize::new(SEGMENT).unwrap()
    }

    fn name(number: u64) -> SegmentName {
        SegmentNumber(number)
            .name(TimelineId::FIRST, size())
            .unwrap()
    }

    /// A repository with the five segments that one server wrote.
    fn archived(directory: &Path, byte: u8) -> (Repository, Registration) {
        let mut craft = Craft::new(Major::V17);
        let (repository, registration) = crafted::create(&directory.join("r"), &craft);
        for _ in 0..5 {
            craft.main(0, 0x20, 0, &[byte; 40]);
            craft.switch();
        }
        let whole = usize::try_from(SEGMENT).unwrap();
        std::fs::create_dir_all(directory.join("pg_wal")).unwrap();
        for (n, bytes) in (1..).zip(craft.bytes.chunks_exact(whole)) {
            let path = directory.join("pg_wal").join(name(n).to_string());
            std::fs::write(&path, bytes).unwrap();
            let what = Push {
                repository: &repository,
                cluster: "main",
                path: &path,
                name: WalFileName::Segment(name(n)),
                codec: Codec::Lz4,
                beside_others: true,
                known: None,
                is_backfill: false,
            };
            push(&what).unwrap();
        }
        (repository, registration)
    }

    /// A backup whose WAL is that of these segments.
    fn backup(first: u64, last: u64) -> (BackupId, Subject) {
        let start = Lsn(first * SEGMENT + 40);
        let stop = Lsn((last + 1) * SEGMENT - 40);
        let root = Root::sample(TimelineId::FIRST, start, stop);
        let subject = Subject {
            manifest: Manifest::Committed(Box::new(root)),
            stored: Some(TimestampTz(0)),
            ..Subject::default()
        };
        let id = format!("2026110{last}T000000Z-full");
        (id.parse().unwrap(), subject)
    }

    /// A run that keeps so many backups.
    fn expire<'a>(
        (repository, registration): &'a (Repository, Registration),
        keep: u32,
        host: &'a Host,
    ) -> Expire<'a> {
        Expire {
            repository,
            registration,
            policy: Policy {
                rules: Retention::newest(keep),
                grace: Duration::from_secs(3600),
                ..Policy::default()
            },
            host,
            links: Links::default(),
            leftovers: Leftovers::default(),
        }
    }

    /// Plans for a backup of the first segment, and for one of the last four, which has these events.
    fn judged(expire: &Expire<'_>, events: Vec<Recorded>) -> ExpirePlan {
        let timeline = Timeline {
            segments: Runs::from_numbers((1..=5).collect()),
            ..Timeline::default()
        };
        let (newest, subject) = backup(2, 5);
        let subject = Subject { events, ..subject };
        let mut survey = Survey {
            catalog: Catalog {
                ids: [backup(1, 1), (newest, subject)].into(),
                ..Catalog::empty()
            },
            timelines: [(TimelineId::FIRST, timeline)].into(),
            ..Survey::empty(size())
        };
        expire.judge(&mut survey, &expire.policy, NOW).unwrap()
    }

    fn shown(plan: &ExpirePlan) -> Vec<&'static str> {
        plan.backups.iter().map(|b| b.fate.as_str()).collect()
    }

    /// The fates of the two, of which one is to be kept.
    fn fates(archived: &(Repository, Registration)) -> Vec<&'static str> {
        let host = Host::still(NOW, 7);
        shown(&judged(&expire(archived, 1, &host), Vec::new()))
    }

    /// Puts a segment of another server in the middle of the WAL of the newer backup, where no proof of a backup looks.
    fn mix(own: (&Path, &Registration), others: &Path) {
        let layout = ClusterLayout::new("main", own.1.system_identifier).unwrap();
        let key = layout.segment(name(3));
        let file = |directory: &Path| directory.join("r").join(key.as_str());
        std::fs::copy(file(others), file(own.0)).unwrap();
    }

    #[test]
    fn b60_leftovers_are_looked_for_once_and_again_before_a_deletion() {
        let (directory, store) = crafted::store();
        let scopes = ["one", "two"].map(|name| Scope::aux("files", name).unwrap());
        let [one, two] = &scopes;
        let left = directory.path().join(".tmp.left.1.0");
        std::fs::write(&left, b"x").unwrap();
        // It was young when it was looked for, and its writer may be at it.
        let young = Leftovers::default();
        let shown = young.shown(&store, one, TimestampTz(0)).unwrap();
        assert!(shown.is_empty());
        assert!(young.to_delete(&store, one, NOW).unwrap().is_empty());
        let old = Leftovers::default();
        assert_eq!(old.shown(&store, one, NOW).unwrap().len(), 1);
        assert_eq!(old.to_delete(&store, one, NOW).unwrap().len(), 1);
        std::fs::remove_file(left).unwrap();
        assert_eq!(old.clone().shown(&store, two, NOW).unwrap().len(), 1);
        assert!(old.to_delete(&store, two, NOW).unwrap().is_empty());
    }

    #[test]
    fn a1_a_backup_whose_wal_is_of_two_servers_lets_no_older_one_go() {
        let (own, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = archived(own.path(), 1);
        let other = archived(others.path(), 2);
        assert_eq!(fates(&one), ["mark", "keep"]);
        let host = Host::still(NOW, 7);
        let run = expire(&one, 1, &host);
        assert_eq!(shown(&judged(&run, Vec::new())), ["mark", "keep"]);
        mix((own.path(), &one.1), others.path());
        assert_eq!(fates(&one), ["keep", "keep"]);
        // A plan reads each link once, in whichever of its judgements.
        let plan = judged(&run, Vec::new());
        assert_eq!(shown(&plan), ["mark", "keep"]);
        // A run forgets them first: its decisions under the claim do not go by those.
        let nothing = ExpirePlan::default();
        run.run(&nothing, &mut Outcome::default()).unwrap();
        assert_eq!(shown(&judged(&run, Vec::new())), ["keep", "keep"]);
        drop(other);
    }

    #[test]
    fn x39_no_wal_is_read_where_only_claims_that_are_over_go() {
        let (own, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = archived(own.path(), 1);
        let other = archived(others.path(), 2);
        mix((own.path(), &one.1), others.path());
        let claim = Recorded {
            name: "20000101T000000Z-claim-0000000000000001".to_owned(),
            event: Event {
                event: "claim".to_owned(),
                purpose: Some("sync".to_owned()),
                seconds: Some(3600),
                ..Event::default()
            },
            stored: TimestampTz(0),
            is_doubted: false,
        };
        let host = Host::still(NOW, 7);
        let plan = judged(&expire(&one, 2, &host), vec![claim]);
        assert!(plan.only_clears() && !plan.is_empty(), "{plan:?}");
        // Nobody has looked whether the WAL belongs together.
        assert_eq!(plan.backups[1].damage, None);
        drop(other);
    }
}
