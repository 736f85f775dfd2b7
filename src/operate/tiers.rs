//! Moves of what has aged to colder storage classes, in every repository that has tiers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::failures::Failures;
use super::of::{self, Of, Wanted};
use super::registered::registrations;
use super::retention::Rules;
use super::session::Session;
use crate::config::{self, Location, Price, StorageClass, Tier, TierBy, TierKind};
use crate::err;
use crate::error::{Code, Result};
use crate::expire::scope::ExpireScope;
use crate::expire::{Expire, Leftovers, Links};
use crate::fault;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::plan::retention::{ExpirePlan, Fate, Policy, whole};
use crate::plan::tiers::{self, Backup, Content, Move, Start, Stored, Sum, TierPlan};
use crate::repo::catalog::{Catalog, Manifest, Needs, Reading, Subject};
use crate::repo::clock;
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::{self, Scope};
use crate::store::s3::S3Store;
use crate::store::s3::tiering::Moved;
use crate::store::{Shown, Store, beside};
use crate::wal::survey::{Root, Survey};

/// No more refusals are shown one by one.
const SHOWN_MAX: usize = 100;

/// After this time a look tells whether a plan still holds, while it is carried out; a plan that is made quickly is made anew.
const PLANNED_FOR: Duration = Duration::from_secs(60);
/// A plan holds for so many times as long as it took to make, unless a look finds something new.
const PLANS_RARELY: u32 = 9;

/// The kind of events by which somebody claims a backup.
const CLAIM: &str = "claim";

/// The moves of one cluster, or of other content, in one repository.
pub struct Done {
    pub configured: config::Repository,
    /// The cluster in it, or other content.
    pub of: Of,
    pub plan: TierPlan,
    /// Why nothing moves.
    pub withheld: Vec<String>,
    /// The result, where the plan was to be carried out.
    pub outcome: Option<Outcome>,
}

impl Done {
    /// Sums the moves up by kind, newest backup that needs them, and classes.
    pub fn groups(&self) -> BTreeMap<(TierKind, String, StorageClass, StorageClass), Sum> {
        let mut groups: BTreeMap<_, Sum> = BTreeMap::new();
        for one in &self.plan.moves {
            let backup = one.backup.as_ref();
            let backup = backup.map_or_else(|| "-".to_owned(), ToString::to_string);
            let group = groups.entry((one.kind, backup, one.from, one.to));
            group.or_default().add(one.size_bytes);
        }
        groups
    }

    /// Sums up by class the objects that retention may delete before the time is over for which that class is paid at least.
    pub fn early(&self) -> BTreeMap<StorageClass, Sum> {
        let mut early: BTreeMap<_, Sum> = BTreeMap::new();
        for one in self.plan.moves.iter().filter(|one| one.is_early) {
            early.entry(one.to).or_default().add(one.size_bytes);
        }
        early
    }

    /// The price of the moves, and what a month costs less; none where a price is not known.
    pub fn prices(&self) -> (Option<Price>, Option<String>) {
        let (moves, prices) = (&self.plan.moves, &self.configured.prices);
        let month = |class: StorageClass, one: &Move| {
            let Price(price) = prices.of_bytes(Some(class.name()), one.size_bytes)?;
            i128::try_from(price).ok()
        };
        let saved = moves
            .iter()
            .map(|one| Some(month(one.from, one)? - month(one.to, one)?));
        let saved: Option<i128> = saved.sum();
        let shown = |saved: i128| {
            let sign = if saved < 0 { "-" } else { "" };
            format!("{sign}{}", Price(saved.unsigned_abs()))
        };
        let saved = saved.filter(|_| !prices.is_empty()).map(shown);
        (prices.of_transitions(moves.len() as u64), saved)
    }
}

/// The result of the moves.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Outcome {
    /// Objects that were moved, or tagged for a rule of the bucket.
    pub moved: u64,
    /// Objects that were tagged before, and that no rule has moved yet.
    pub waiting: u64,
    /// Objects that are gone meanwhile.
    pub gone: u64,
    /// Objects that somebody reads or needs since the run began.
    pub kept: u64,
    /// Moves that the store refused, at most the first hundred.
    pub refused: Vec<String>,
    pub refused_count: u64,
    /// Objects that the store keeps as they are, at most the first hundred.
    pub locked: Vec<String>,
    /// How many it keeps so.
    pub locked_count: u64,
}

/// Plans the moves in every repository with tiers, and carries them out where that is confirmed.
///
/// # Errors
/// `Config` without tiers; the first failure when nothing was planned at all.
pub fn run(session: &Session, is_confirmed: bool) -> Result<(Vec<Done>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let all = settings.repositories.iter();
    let tiered: Vec<_> = all.filter(|r| !r.s3.tiers.is_empty()).cloned().collect();
    if tiered.is_empty() {
        return Err(err!(Config, "no repository has tiers").hint(
            "Nothing was moved. Write tier = [{ after = \"90d\", class = \"GLACIER_IR\" }] into the section of a repository in an object store; one in a directory has no storage classes.",
        ));
    }
    for configured in &tiered {
        warn_of_copies(session, configured);
    }
    let rules = Rules::new(session, settings.clone(), None);
    let wanted = Wanted::all(session, &settings)?;
    let mut done = Vec::new();
    let (mut failures, mut of_clusters) = (Failures::default(), Failures::default());
    failures.in_each(&tiered, "move objects in", |configured| {
        let found = (&mut done, &mut of_clusters);
        one_repository(session, (configured, &rules), &wanted, is_confirmed, found)
    });
    let is_all_read = failures.is_empty();
    failures.take_over(of_clusters);
    failures.first_if(session, done.is_empty())?;
    // A repository without tiers may hold what none with tiers does.
    let are_all_read = is_all_read && tiered.len() == settings.repositories.len();
    wanted.check_held(session, are_all_read, done.is_empty())?;
    Ok((done, failures))
}

/// Tells where moves will be refused once they are due. All other moves go on, so it is no reason to refuse them.
fn warn_of_copies(session: &Session, configured: &config::Repository) {
    let pair = config::not_by_copy(&configured.s3.tiers);
    let Some((one, next)) = pair.filter(|_| configured.s3.tier_by == TierBy::Copy) else {
        return;
    };
    session.warn(&format!(
        "what has moved to {one} in repository \"{}\" must be thawed before it can be copied to {next}: name one of the two, or have rules of the bucket move (tier_by = \"rules\")",
        configured.name
    ));
}

fn one_repository(
    session: &Session,
    (configured, rules): (&config::Repository, &Rules),
    wanted: &Wanted,
    is_confirmed: bool,
    (done, failures): (&mut Vec<Done>, &mut Failures),
) -> Result<()> {
    let repository = session.open(configured)?;
    clock::check(repository.store(), session.host.now())?;
    let scopes = of::scopes(session, &repository)?;
    let clusters = wanted.ruled_beside(session, &scopes, (&configured.name, &repository))?;
    // Before the backups: a pack that a backup names which commits meanwhile is then not among them.
    let mut objects = objects(&repository)?;
    let mut run = Run {
        session,
        configured,
        store: store(session, configured)?,
        is_confirmed,
        done,
    };
    let of = (session, configured, rules, &repository);
    let place = ("move objects of", configured.name.as_str());
    of::in_each_cluster(&clusters, place, failures, |name| {
        for registration in registrations(session, &repository, name)? {
            let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
            let listed = objects.remove(&layout.prefix()).unwrap_or_default();
            let plan = || of_cluster(of, &registration, &layout, &listed);
            let place: (&dyn Store, &Scope) = (repository.store(), &layout);
            run.one(Of::Cluster(registration.clone()), place, &plan)?;
        }
        Ok(())
    })?;
    for scope in scopes {
        let listed = objects.remove(&scope.prefix()).unwrap_or_default();
        let plan = || of_scope(of, &scope, &listed);
        let place: (&dyn Store, &Scope) = (repository.store(), &scope);
        run.one(Of::Scope(scope.clone()), place, &plan)?;
    }
    Ok(())
}

/// Opens the store itself: only object stores have classes.
///
/// # Errors
/// `Config` for a directory; those of [`S3Store::open`].
pub fn store(session: &Session, configured: &config::Repository) -> Result<S3Store> {
    match &configured.location {
        Location::S3 { bucket, prefix } => {
            S3Store::open(bucket, prefix, &configured.s3, session.host.random())
        }
        Location::Blob { .. } => Err(err!(
            Config,
            "repository \"{}\" is not in an S3 store: pitr moves nothing between the tiers of \"{}\"",
            configured.name,
            configured.location
        )
        .hint("Rules of the service itself may move what it keeps to a tier that is read at once.")),
        Location::File(_) | Location::Sftp { .. } => Err(err!(
            Config,
            "repository \"{}\" lies in a directory, which has no storage classes",
            configured.name
        )),
    }
}

/// The objects that may move, by the prefix of their scope; of segments the size is not known yet.
type Objects = BTreeMap<String, Vec<Listed>>;

/// An object of a listing.
struct Listed {
    key: String,
    size_bytes: u64,
    class: Option<StorageClass>,
    name: Name,
}

enum Name {
    Pack(crate::repo::id::PartName),
    Segment(SegmentName),
}

fn objects(repository: &Repository) -> Result<Objects> {
    let mut found = Objects::new();
    repository.store().objects(&mut |shown: Shown<'_>| {
        let Some(prefix) = scope::prefix_of(shown.key) else {
            return;
        };
        let rest = shown.key.get(prefix.len() + 1..).unwrap_or_default();
        if let Some(name) = name_of(rest) {
            let class = shown.class.unwrap_or("STANDARD");
            found.entry(prefix.to_owned()).or_default().push(Listed {
                key: shown.key.to_owned(),
                size_bytes: shown.meta.size_bytes,
                class: StorageClass::named(class),
                name,
            });
        }
    })?;
    Ok(found)
}

/// Packs, and whole segments of a timeline's first life; nothing else moves.
fn name_of(rest: &str) -> Option<Name> {
    let parts: Vec<&str> = rest.split('/').collect();
    match parts.as_slice() {
        ["packs", id, number] => format!("{id}/{number}").parse().ok().map(Name::Pack),
        ["wal", _, _, name] => name.parse().ok().map(Name::Segment),
        _ => None,
    }
}

fn stored(listed: &[Listed], size: Option<SegmentSize>) -> Vec<Stored> {
    let one = |listed: &Listed| {
        let content = match &listed.name {
            Name::Pack(name) => Content::Pack(name.clone()),
            Name::Segment(name) => Content::Segment(name.timeline, name.number(size?).ok()?),
        };
        Some(Stored {
            key: listed.key.clone(),
            size_bytes: listed.size_bytes,
            class: listed.class,
            content,
        })
    };
    listed.iter().filter_map(one).collect()
}

/// A plan, why nothing moves, and what was seen of others.
struct Planned {
    plan: TierPlan,
    withheld: Vec<String>,
    seen: Seen,
}

/// The ids that a plan knows, and by what a look finds something new of each; none where nothing new would change the plan.
struct Seen(BTreeMap<BackupId, Option<Watched>>);

/// A sign of something new.
enum Watched {
    /// A claim beside these, on a backup that nobody claimed. A claimed one keeps its packs as long as the plan holds.
    Claim(BTreeSet<String>),
    /// A root where there was none.
    Root,
}

impl Seen {
    fn of<R>(catalog: &Catalog<R>, now: TimestampTz) -> Seen {
        let claims = |subject: &Subject<R>| -> BTreeSet<String> {
            let events = subject.events.iter().map(|e| e.name.clone());
            events
                .filter(|name| event::kind_in(name) == CLAIM)
                .collect()
        };
        let one = |subject: &Subject<R>| match subject.manifest {
            Manifest::Absent => Some(Watched::Root),
            Manifest::Committed(_) if event::live_claims(&subject.events, now).is_empty() => {
                Some(Watched::Claim(claims(subject)))
            }
            _ => None,
        };
        let ids = catalog.ids.iter();
        Seen(
            ids.map(|(id, subject)| (id.clone(), one(subject)))
                .collect(),
        )
    }

    /// Whether a backup began or was completed, or somebody has claimed one, since this was seen. No object is read.
    fn is_outdated(&self, (store, scope): (&dyn Store, &Scope)) -> Result<bool> {
        let listed = store.list(&scope.events())?;
        let mut ids = listed
            .iter()
            .filter_map(|one| one.name.parse::<BackupId>().ok());
        if ids.any(|id| !self.0.contains_key(&id)) {
            return Ok(true);
        }
        let all = self.0.iter();
        let watched = all.filter_map(|(id, watched)| Some((id, watched.as_ref()?)));
        let watched: Vec<(&BackupId, &Watched)> = watched.collect();
        let is_new = |(id, watched): &(&BackupId, &Watched)| -> Result<bool> {
            match watched {
                Watched::Claim(known) => {
                    let names = event::names(store, scope, &id.to_string(), CLAIM)?;
                    Ok(names.iter().any(|name| !known.contains(name)))
                }
                Watched::Root => Ok(store.head(&scope.manifest(id))?.is_some()),
            }
        };
        for is_new in beside(store, &watched, is_new) {
            if is_new? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The newest plan while one is carried out.
struct Plans<'a> {
    place: (&'a dyn Store, &'a Scope),
    again: &'a dyn Fn() -> Result<Planned>,
    /// How long a plan is not even looked at.
    least: Duration,
    seen: Seen,
    /// The keys that move by a newer plan than the first.
    wanted: Option<BTreeSet<String>>,
    planned: Instant,
    looked: Instant,
    /// How long the plan holds where nothing new is seen.
    lasts: Duration,
}

impl<'a> Plans<'a> {
    /// Begins with what a first plan has seen, which took so long to make.
    fn new(
        place: (&'a dyn Store, &'a Scope),
        again: &'a dyn Fn() -> Result<Planned>,
        (seen, took): (Seen, Duration),
        least: Duration,
    ) -> Plans<'a> {
        let now = Instant::now();
        Plans {
            place,
            again,
            least,
            seen,
            wanted: None,
            planned: now,
            looked: now,
            lasts: lasts(took, least),
        }
    }

    /// Whether an object still moves.
    fn has(&mut self, key: &str) -> Result<bool> {
        if self.looked.elapsed() >= self.least {
            if self.planned.elapsed() >= self.lasts || self.seen.is_outdated(self.place)? {
                let (planned, took) = timed(self.again)?;
                let keys = planned.plan.moves.into_iter().map(|one| one.key);
                self.wanted = Some(keys.collect());
                self.seen = planned.seen;
                self.planned = Instant::now();
                self.lasts = lasts(took, self.least);
            }
            self.looked = Instant::now();
        }
        Ok(self.wanted.as_ref().is_none_or(|keys| keys.contains(key)))
    }
}

/// Makes a plan, and measures how long that takes.
fn timed(again: &dyn Fn() -> Result<Planned>) -> Result<(Planned, Duration)> {
    let asked = Instant::now();
    let planned = again()?;
    Ok((planned, asked.elapsed()))
}

/// Pure: how long a plan holds that took so long to make. Most of the time goes into moves then.
fn lasts(took: Duration, least: Duration) -> Duration {
    least.max(took.saturating_mul(PLANS_RARELY))
}

/// The session, the repository with its rules, and what is open of it.
type Place<'a> = (
    &'a Session,
    &'a config::Repository,
    &'a Rules,
    &'a Repository,
);

fn of_cluster(
    (session, configured, rules, repository): Place<'_>,
    registration: &Registration,
    layout: &ClusterLayout,
    listed: &[Listed],
) -> Result<Planned> {
    let survey = Survey::without_leftovers(repository, registration)?;
    let place = (&**layout, Some(registration.name.as_str()));
    let policy = rules.policy::<Root>(session, configured, place, &Policy::default())?;
    let judged = policy.map(|policy| {
        let proven = Rules::proven(&policy.rules, repository.store(), layout)?;
        let host = &session.host;
        let policy = Policy { proven, ..policy };
        Expire {
            repository,
            registration,
            policy,
            host,
            links: Links::default(),
            leftovers: Leftovers::default(),
        }
        .plan()
    });
    let judged = judged.transpose()?;
    // Names of segments mean two positions where the size has changed.
    let size = (!survey.has_other_sizes).then_some(survey.segment_size);
    let now = session.host.now();
    let facts = |root: &Root| Facts {
        line: root.timeline.decimal().to_string(),
        place: root.stop_lsn.0,
        time: root.stop_time,
        is_sound: root.damage.is_none() && root.foreign.is_none(),
        start: Some(Start {
            timelines: timelines(root),
            first: SegmentNumber::of(root.start_lsn, survey.segment_size),
        }),
    };
    let (catalog, stored) = (&survey.catalog, stored(listed, size));
    Ok(planned(catalog, judged, &stored, (configured, now), facts))
}

fn timelines(root: &Root) -> Vec<crate::pg::timeline::TimelineId> {
    let ancestors = root.history.iter().flat_map(|history| history.ancestors());
    let ancestors = ancestors.map(|ancestor| ancestor.timeline);
    [root.timeline, root.start_timeline]
        .into_iter()
        .chain(ancestors)
        .collect()
}

fn of_scope(
    (session, configured, rules, repository): Place<'_>,
    scope: &Scope,
    listed: &[Listed],
) -> Result<Planned> {
    let place = (scope, None);
    let policy = rules.policy::<AuxBackup>(session, configured, place, &Policy::default())?;
    let host = &session.host;
    let judged = policy.map(|policy| {
        ExpireScope {
            repository,
            scope,
            policy,
            host,
            leftovers: Leftovers::default(),
        }
        .plan()
    });
    let judged = judged.transpose()?;
    let catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.everything()?;
    let now = session.host.now();
    let facts = |backup: &AuxBackup| Facts {
        line: backup.root.source.clone().unwrap_or_default(),
        place: u64::try_from(backup.root.stop_time.0).unwrap_or(0),
        time: backup.root.stop_time,
        is_sound: true,
        start: None,
    };
    let stored = stored(listed, None);
    Ok(planned(&catalog, judged, &stored, (configured, now), facts))
}

/// The facts of a root that a plan needs.
struct Facts {
    line: String,
    place: u64,
    time: TimestampTz,
    is_sound: bool,
    start: Option<Start>,
}

fn backups<'a, R: Needs>(
    catalog: &'a Catalog<R>,
    judged: Option<&ExpirePlan>,
    now: TimestampTz,
    facts: impl Fn(&R) -> Facts,
) -> Vec<Backup<'a>> {
    let whole = whole(catalog);
    let one = |(id, subject, root): (&'a BackupId, &'a Subject<R>, &'a R)| {
        let facts = facts(root);
        let judged = judged.and_then(|plan| plan.backups.iter().find(|b| b.id == *id));
        Backup {
            id,
            taken: taken(facts.time, subject.stored).min(now),
            line: facts.line,
            place: facts.place,
            is_good: facts.is_sound && whole.contains(id),
            is_claimed: !event::live_claims(&subject.events, now).is_empty(),
            stays: judged.is_none_or(|b| b.fate == Fate::Keep),
            kept_until: judged.and_then(|b| b.kept_until),
            packs: root.needs().1,
            start: facts.start,
        }
    };
    catalog.committed().map(one).collect()
}

/// When a backup ended: by its own clock, unless that was ahead of the store's.
fn taken(own: TimestampTz, stored: Option<TimestampTz>) -> TimestampTz {
    let stored = stored.unwrap_or(TimestampTz::INFINITY);
    match own > stored.saturating_add(clock::MAY_DIFFER) {
        true => stored,
        false => own,
    }
}

/// Makes the plan. Nothing moves where it is not known what some backup names.
fn planned<R: Needs>(
    catalog: &Catalog<R>,
    judged: Option<ExpirePlan>,
    objects: &[Stored],
    (configured, now): (&config::Repository, TimestampTz),
    facts: impl Fn(&R) -> Facts,
) -> Planned {
    let backups = backups(catalog, judged.as_ref(), now, facts);
    let unreadable = catalog.unreadable.iter();
    let withheld: Vec<String> = unreadable
        .map(|what| format!("nothing is moved, because this cannot be read: {what}"))
        .collect();
    let tiers: &[Tier] = &configured.s3.tiers;
    let plan = match withheld.is_empty() {
        true => tiers::plan(&backups, objects, tiers, now),
        false => TierPlan::default(),
    };
    Planned {
        plan,
        withheld,
        seen: Seen::of(catalog, now),
    }
}

/// The moves in one repository.
struct Run<'a> {
    session: &'a Session,
    configured: &'a config::Repository,
    store: S3Store,
    is_confirmed: bool,
    done: &'a mut Vec<Done>,
}

impl Run<'_> {
    /// Plans, and carries that out where it is confirmed; reports it in any case.
    fn one(
        &mut self,
        of: Of,
        place: (&dyn Store, &Scope),
        again: &dyn Fn() -> Result<Planned>,
    ) -> Result<()> {
        let (planned, took) = timed(again)?;
        let mut outcome = self.is_confirmed.then(Outcome::default);
        let ran = match &mut outcome {
            Some(outcome) => {
                fault::pause("moves planned");
                let least = fault::shortened(PLANNED_FOR);
                let plans = Plans::new(place, again, (planned.seen, took), least);
                self.carry_out_all(&planned.plan.moves, plans, outcome)
            }
            None => Ok(()),
        };
        self.done.push(Done {
            configured: self.configured.clone(),
            of,
            plan: planned.plan,
            withheld: planned.withheld,
            outcome,
        });
        ran
    }

    /// A run takes hours where very much moves: what a restore or a new backup reads since then stays where it is.
    fn carry_out_all(
        &self,
        moves: &[Move],
        mut plans: Plans<'_>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        for one in moves {
            match plans.has(&one.key)? {
                true => self.carry_out(one, outcome)?,
                false => outcome.kept += 1,
            }
        }
        Ok(())
    }

    fn carry_out(&self, one: &Move, outcome: &mut Outcome) -> Result<()> {
        self.session.host.check_stop()?;
        let refused = |list: &mut Vec<String>, count: &mut u64, e| {
            *count += 1;
            if list.len() < SHOWN_MAX {
                list.push(format!("{}: {e}", one.key));
            }
        };
        match self.store.move_to(&one.key, one.to) {
            Ok(Moved::Now) => outcome.moved += 1,
            Ok(Moved::Waits) => outcome.waiting += 1,
            Ok(Moved::Gone) => outcome.gone += 1,
            Err(e) if e.code() == Code::Locked => {
                refused(&mut outcome.locked, &mut outcome.locked_count, e);
            }
            // One that is frozen already, by whomever, holds up no other.
            Err(e) if e.is_frozen() || matches!(e.code(), Code::Denied | Code::Refused) => {
                refused(&mut outcome.refused, &mut outcome.refused_count, e);
            }
            Err(e) => {
                return Err(e.hint("What was moved is moved. Run the command again when the repository answers: it goes on."));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::repo::event::Writer;
    use crate::store::file::FileStore;
    use crate::store::put;

    const NOW: TimestampTz = TimestampTz(1 << 50);
    const LEAST: Duration = Duration::from_millis(1);

    fn id(number: u32) -> BackupId {
        format!("2026112{number}T064049Z-full").parse().unwrap()
    }

    /// A catalog of one backup that is there, and of one that is being taken.
    fn catalog(claims: &[&str]) -> Catalog<()> {
        let mut catalog = Catalog::empty();
        let recorded = |name: &&str| event::Recorded {
            name: (*name).to_owned(),
            event: event::Event {
                event: CLAIM.to_owned(),
                seconds: Some(60),
                ..event::Event::default()
            },
            stored: NOW,
            is_doubted: false,
        };
        let there = Subject {
            manifest: Manifest::Committed(Box::new(())),
            events: claims.iter().map(recorded).collect(),
            ..Subject::default()
        };
        catalog.ids.insert(id(1), there);
        catalog.ids.insert(id(2), Subject::default());
        catalog
    }

    fn a_move(key: String) -> Move {
        Move {
            key,
            size_bytes: 1,
            kind: config::TierKind::Packs,
            from: StorageClass::Standard,
            to: StorageClass::GlacierIr,
            backup: None,
            is_early: false,
        }
    }

    /// Writes a claim on a backup; returns its name.
    fn claim(store: &FileStore, scope: &Scope, id: &BackupId, nonce: u64) -> String {
        let (clock, random) = (|| NOW, || nonce);
        let writer = Writer::new(&clock, &random);
        let event = writer.event(CLAIM, &id.to_string());
        writer.record(store, scope, &event).unwrap()
    }

    #[test]
    fn a_look_finds_new_claims_backups_and_roots() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path(), 1).unwrap();
        let scope = Scope::cluster("main", 7).unwrap();
        let place: (&dyn Store, &Scope) = (&store, &scope);
        let is_outdated = |seen: &Seen| seen.is_outdated(place).unwrap();
        let name = claim(&store, &scope, &id(1), 1);
        // A claim that had ended is nothing new, and neither is the next one of a backup that is claimed.
        let (over, claimed) = (NOW.saturating_add(Duration::from_secs(120)), NOW);
        assert!(!is_outdated(&Seen::of(&catalog(&[&name]), over)));
        assert!(!is_outdated(&Seen::of(&catalog(&[&name]), claimed)));
        assert!(is_outdated(&Seen::of(&catalog(&[]), NOW)));
        claim(&store, &scope, &id(1), 2);
        assert!(is_outdated(&Seen::of(&catalog(&[&name]), over)));
        let seen = Seen::of(&catalog(&[&name]), claimed);
        assert!(!is_outdated(&seen));
        put(&store, &scope.manifest(&id(2)), b"root").unwrap();
        assert!(is_outdated(&seen));
        let mut catalog = catalog(&[&name]);
        catalog.ids.remove(&id(2));
        let seen = Seen::of(&catalog, claimed);
        assert!(!is_outdated(&seen));
        claim(&store, &scope, &id(3), 3);
        assert!(is_outdated(&seen));
    }

    #[test]
    fn plans_that_take_long_are_made_rarely_and_a_claim_brings_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path(), 1).unwrap();
        let scope = Scope::cluster("main", 7).unwrap();
        let plans = Cell::new(0);
        let again = || -> Result<Planned> {
            plans.set(plans.get() + 1);
            std::thread::sleep(Duration::from_millis(200));
            let claims = store.list(&scope.subject(&id(1).to_string()))?;
            let moves: Vec<Move> = match claims.is_empty() {
                true => (0..100_u32).map(|n| a_move(n.to_string())).collect(),
                false => Vec::new(),
            };
            let names: Vec<&str> = claims.iter().map(|one| one.name.as_str()).collect();
            Ok(Planned {
                plan: TierPlan {
                    moves,
                    ..TierPlan::default()
                },
                withheld: Vec::new(),
                seen: Seen::of(&catalog(&names), NOW),
            })
        };
        let (planned, took) = timed(&again).unwrap();
        let mut newest = Plans::new((&store, &scope), &again, (planned.seen, took), LEAST);
        for one in &planned.plan.moves {
            assert!(newest.has(&one.key).unwrap());
            std::thread::sleep(2 * LEAST);
        }
        // By the time alone there would have been a hundred.
        assert!(plans.get() < 10, "{}", plans.get());
        let before = plans.get();
        claim(&store, &scope, &id(1), 1);
        std::thread::sleep(2 * LEAST);
        assert!(!newest.has("5").unwrap());
        assert_eq!(plans.get(), before + 1);
        assert_eq!(lasts(Duration::ZERO, PLANNED_FOR), PLANNED_FOR);
        let minutes = Duration::from_secs(660);
        assert_eq!(lasts(minutes, PLANNED_FOR), 9 * minutes);
    }
}
