//! Moves of what has aged to colder storage classes, in every repository that has tiers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::failures::Failures;
use super::of::{self, Of};
use super::retention::Rules;
use super::session::Session;
use crate::config::{self, Location, StorageClass, Tier};
use crate::err;
use crate::error::{Code, Result};
use crate::expire::Expire;
use crate::expire::scope::ExpireScope;
use crate::fault;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::plan::retention::{ExpirePlan, Fate, Policy, whole};
use crate::plan::tiers::{self, Backup, Content, Move, Start, Stored, TierPlan};
use crate::repo::catalog::{Catalog, Needs, Reading, Subject};
use crate::repo::clock;
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::{self, Scope};
use crate::store::Shown;
use crate::store::s3::S3Store;
use crate::store::s3::tiering::Moved;
use crate::wal::survey::{Root, Survey};

/// No more refusals are shown one by one.
const SHOWN_MAX: usize = 100;

/// A plan is made anew after this time, while it is carried out.
const PLANNED_FOR: Duration = Duration::from_secs(60);

/// The moves of one cluster, or of other content, in one repository.
pub struct Done {
    /// The repository.
    pub configured: config::Repository,
    /// The cluster in it, or other content.
    pub of: Of,
    /// The plan.
    pub plan: TierPlan,
    /// Why nothing moves.
    pub withheld: Vec<String>,
    /// The result, where the plan was to be carried out.
    pub outcome: Option<Outcome>,
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
    /// How many it refused.
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
    let rules = Rules::new(session, settings.clone(), None);
    let wanted = settings.cluster_if_named()?;
    let name = wanted.as_ref().map(|c| c.name.as_str());
    let mut done = Vec::new();
    let mut failures = Failures::default();
    failures.in_each(&tiered, "move objects in", |configured| {
        one_repository(session, (configured, &rules), name, is_confirmed, &mut done)
    });
    failures.first_if(session, done.is_empty())?;
    Ok((done, failures))
}

fn one_repository(
    session: &Session,
    (configured, rules): (&config::Repository, &Rules),
    cluster: Option<&str>,
    is_confirmed: bool,
    done: &mut Vec<Done>,
) -> Result<()> {
    let repository = session.open(configured)?;
    clock::check(repository.store(), session.host.now())?;
    let scopes = of::scopes(session, &repository)?;
    let registrations = of::registrations_beside(&scopes, session, &repository, cluster)?;
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
    for registration in registrations {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        let listed = objects.remove(&layout.prefix()).unwrap_or_default();
        let plan = || of_cluster(of, &registration, &layout, &listed);
        run.one(Of::Cluster(registration.clone()), &plan)?;
    }
    for scope in scopes {
        let listed = objects.remove(&scope.prefix()).unwrap_or_default();
        let plan = || of_scope(of, &scope, &listed);
        run.one(Of::Scope(scope.clone()), &plan)?;
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

/// A plan, and why nothing moves.
type Planned = (TierPlan, Vec<String>);

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
    let backups = backups(&survey.catalog, judged.as_ref(), now, facts);
    Ok(planned(
        &survey.catalog,
        &backups,
        &stored(listed, size),
        (configured, now),
    ))
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
    let backups = backups(&catalog, judged.as_ref(), now, facts);
    Ok(planned(
        &catalog,
        &backups,
        &stored(listed, None),
        (configured, now),
    ))
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
fn planned<R>(
    catalog: &Catalog<R>,
    backups: &[Backup<'_>],
    objects: &[Stored],
    (configured, now): (&config::Repository, TimestampTz),
) -> Planned {
    let unreadable = catalog.unreadable.iter();
    let withheld: Vec<String> = unreadable
        .map(|what| format!("nothing is moved, because this cannot be read: {what}"))
        .collect();
    let tiers: &[Tier] = &configured.s3.tiers;
    match withheld.is_empty() {
        true => (tiers::plan(backups, objects, tiers, now), withheld),
        false => (TierPlan::default(), withheld),
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
    fn one(&mut self, of: Of, again: &dyn Fn() -> Result<Planned>) -> Result<()> {
        let (plan, withheld) = again()?;
        let mut outcome = self.is_confirmed.then(Outcome::default);
        let ran = match &mut outcome {
            Some(outcome) => self.carry_out_all(&plan.moves, again, outcome),
            None => Ok(()),
        };
        self.done.push(Done {
            configured: self.configured.clone(),
            of,
            plan,
            withheld,
            outcome,
        });
        ran
    }

    /// A run takes hours where very much moves: what a restore or a new backup reads since then stays where it is.
    fn carry_out_all(
        &self,
        moves: &[Move],
        again: &dyn Fn() -> Result<Planned>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        fault::pause("moves planned");
        let mut planned = Instant::now();
        let mut wanted: Option<BTreeSet<String>> = None;
        for one in moves {
            if planned.elapsed() >= fault::shortened(PLANNED_FOR) {
                let (plan, _) = again()?;
                wanted = Some(plan.moves.into_iter().map(|one| one.key).collect());
                planned = Instant::now();
            }
            match wanted.as_ref().is_none_or(|keys| keys.contains(&one.key)) {
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
            Err(e) if matches!(e.code(), Code::Denied | Code::Refused) => {
                refused(&mut outcome.refused, &mut outcome.refused_count, e);
            }
            Err(e) => {
                return Err(e.hint("What was moved is moved. Run the command again when the repository answers: it goes on."));
            }
        }
        Ok(())
    }
}
