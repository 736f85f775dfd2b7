//! A target, planned for each member of a set.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use super::own::words;
use super::{cluster, configured, moments, scope};
use crate::config::{MemberKind, RecoverySet, SetMember, Settings};
use crate::err;
use crate::error::{Code, Result};
use crate::operate::choice::{Question, Unless};
use crate::operate::erasure::{self, Lacking};
use crate::operate::opened;
use crate::operate::reading::Reading;
use crate::operate::redis;
use crate::operate::scopes::{self, ScopeBackup};
use crate::operate::search;
use crate::operate::session::Session;
use crate::operate::target::{AskedTarget, Point as Asked};
use crate::operate::{how_long, human};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::estimate::{self, Estimate, Restored};
use crate::plan::recovery::{Action, Plan};
use crate::plan::sets::{self, Extent, Reach, Reached, SetPlan, Wanted};
use crate::plan::target::{Inclusive, Target, TargetTimeline};
use crate::redis::member::Member as DataSet;
use crate::redis::route;
use crate::repo::scope::Scope;
use crate::repo::set_mark::{self, Level, Mark, Marks, Point};
use crate::store::Store;

/// Marks among which one with a runbook is looked for.
pub(super) const MARKS_MAX: usize = 10_080;
/// A moment that is near is planned before it is named; so many are tried.
const TRIALS: usize = 3;

/// The moment that is asked for.
#[derive(Debug, Clone)]
pub enum AskedMoment {
    /// A mark: its name, the beginning of it, or its label.
    Mark(String),
    /// A time.
    Time(AskedTarget),
}

/// A recovery that is asked for.
#[derive(Debug, Clone)]
pub struct AskedRecovery {
    /// The set; none: the only one.
    pub set: Option<String>,
    /// The members.
    pub extent: Extent,
    pub moment: AskedMoment,
    /// Whether it is asked, too, which erasures clusters lack then.
    pub with_erasures: bool,
    /// Whether clusters are restored after the stop.
    pub after_stop: bool,
    /// Whether the directories of clusters are standbys, which recover in their places.
    pub from_standby: bool,
    /// The timelines that clusters follow to a time, as they are typed: `N`, or `CLUSTER=N`.
    pub timelines: Vec<String>,
}

/// The timelines that the moment may mean in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lives {
    /// The one that the plan follows.
    pub followed: Option<TimelineId>,
    /// Those that have commits for the moment as well.
    pub others: Vec<TimelineId>,
}

/// The moment that is wanted, as members understand it.
enum Moment {
    Mark(Box<Mark>),
    Time(TimestampTz),
}

/// A plan, and what it is executed with.
pub struct Planned {
    pub set: RecoverySet,
    pub plan: SetPlan,
    /// The words of each member's target on a command line.
    pub words: BTreeMap<SetMember, Vec<String>>,
    /// The clusters, and the backups of them.
    pub clusters: BTreeMap<SetMember, Restorable>,
    /// The backups of the Redis servers.
    pub data_sets: BTreeMap<SetMember, DataSet>,
    /// The clusters that lack erasures at the moment, where that was asked.
    pub erasures: BTreeMap<SetMember, Lacking>,
    /// The clusters in which the moment may mean several timelines, and nobody has named one.
    pub undecided: BTreeMap<SetMember, Lives>,
}

/// The backup of a cluster that is restored.
#[derive(Debug, Clone, Copy)]
pub struct Restorable {
    /// The major of its servers.
    pub major: u32,
    /// Whether it has tablespaces outside of its data directory.
    pub has_tablespaces: bool,
}

impl Planned {
    /// Requires that every member reaches the moment.
    ///
    /// # Errors
    /// `OutOfReach`, naming those that do not.
    pub fn require(&self) -> Result<()> {
        let lacking: Vec<String> = self
            .plan
            .members
            .iter()
            .filter_map(|one| Some(format!("{}: {}", one.member, one.why.as_ref()?)))
            .collect();
        if self.plan.reachable {
            return Ok(());
        }
        let near = |time: Option<TimestampTz>| time.map(human::exact_time);
        let mut hint = "Nothing was changed.".to_owned();
        for (word, time) in [
            ("before", self.plan.nearest_before),
            ("after", self.plan.nearest_after),
        ] {
            if let Some(time) = near(time) {
                hint.push_str(&format!(
                    "\nThe nearest moment {word} it: --target-time \"{time}\""
                ));
            }
        }
        Err(err!(
            OutOfReach,
            "recovery set \"{}\" does not reach the moment: {}",
            self.set.name,
            lacking.join("; ")
        )
        .hint(hint))
    }
}

/// Plans a recovery. The plan names the nearest moments that every member reaches, where this one is not reached.
///
/// # Errors
/// As [`look`].
pub fn run(session: &Session, asked: &AskedRecovery) -> Result<Planned> {
    let mut planned = look(session, asked)?;
    if !planned.plan.reachable {
        let settings = session.settings_with_repositories()?;
        let plan = &planned.plan;
        let members: Vec<SetMember> = plan.members.iter().map(|m| m.member.clone()).collect();
        let trial = |at| {
            let moment = Moment::Time(at);
            let seen = planned_each(session, &settings, (&planned.set, &members), &moment, asked)?;
            let reaches = seen.reaches;
            Ok(sets::plan(
                (Wanted::Time(at), at),
                session.host.now(),
                reaches,
            ))
        };
        let spans = moments::spans(session, &settings, &members)?;
        let (before, after) = moments::nearest(&spans, plan.time);
        let before = proven(before, &trial, &|plan, at| {
            let earlier = plan.nearest_before.filter(|next| *next < at);
            // Recovery to the time of the last commit would wait for a later one.
            earlier.or_else(|| Some(at.saturating_sub(Duration::from_micros(1))))
        })?;
        let after = proven(after, &trial, &|plan, at| {
            plan.nearest_after.filter(|next| *next > at)
        })?;
        (planned.plan.nearest_before, planned.plan.nearest_after) = (before, after);
    }
    Ok(planned)
}

/// Returns the moment that a plan reaches: this one, else the next one.
fn proven(
    first: Option<TimestampTz>,
    trial: &dyn Fn(TimestampTz) -> Result<SetPlan>,
    next: &dyn Fn(&SetPlan, TimestampTz) -> Option<TimestampTz>,
) -> Result<Option<TimestampTz>> {
    let mut wanted = first;
    for _ in 0..TRIALS {
        let Some(at) = wanted else {
            return Ok(None);
        };
        let plan = trial(at)?;
        if plan.reachable {
            return Ok(Some(at));
        }
        wanted = next(&plan, at);
    }
    Ok(None)
}

/// Plans a recovery, and looks for no other moment where this one is not reached.
///
/// # Errors
/// `Usage`, `NotFound` for a mark that is not there, or is ambiguous; `OutOfReach` for a mark that does not name a member; those of the repositories.
pub fn look(session: &Session, asked: &AskedRecovery) -> Result<Planned> {
    let settings = session.settings_with_repositories()?;
    let set = configured(&settings, asked.set.as_deref())?.clone();
    let mut members: Vec<SetMember> = set.members.clone();
    members.retain(|member| asked.extent.has(member.kind));
    members.sort();
    if members.is_empty() {
        return Err(err!(
            Usage,
            "recovery set \"{}\" has no member of that kind",
            set.name
        ));
    }
    let (moment, wanted, time) = match &asked.moment {
        AskedMoment::Time(asked) => {
            let zone = settings.clusters.iter().find_map(|c| c.timezone.as_deref());
            let target = asked
                .resolve(&session.environment, zone, None)?
                .target
                .target;
            let Target::Time(time) = target else {
                return Err(err!(Usage, "the target of a set is a time, or a mark"));
            };
            (Moment::Time(time), Wanted::Time(time), time)
        }
        AskedMoment::Mark(name) => {
            let mark = find(session, &set, name)?;
            let (id, time) = (mark.id.clone(), mark.ended);
            (Moment::Mark(Box::new(mark)), Wanted::Mark(id), time)
        }
    };
    let each = planned_each(session, &settings, (&set, &members), &moment, asked)?;
    let plan = sets::plan((wanted, time), session.host.now(), each.reaches);
    Ok(Planned {
        set,
        plan,
        words: each.words,
        clusters: each.clusters,
        data_sets: each.data_sets,
        erasures: each.erasures,
        undecided: each.undecided,
    })
}

/// The timelines that are asked for, as they are typed, by cluster.
///
/// # Errors
/// `Usage` for what is no timeline, or names no cluster among the members.
fn timelines(asked: &[String], members: &[SetMember]) -> Result<BTreeMap<SetMember, String>> {
    let clusters = members.iter().filter(|one| one.kind == MemberKind::Cluster);
    let clusters: Vec<&SetMember> = clusters.collect();
    let mut named = BTreeMap::new();
    for text in asked {
        let (cluster, timeline) = match (text.split_once('='), clusters.as_slice()) {
            (Some((name, timeline)), all) => (all.iter().find(|one| one.name == name), timeline),
            (None, [only]) => (Some(only), text.as_str()),
            (None, _) => (None, text.as_str()),
        };
        let Some(cluster) = cluster else {
            return Err(err!(
                Usage,
                "--target-timeline \"{}\" does not name one of the clusters that are recovered",
                text.escape_debug()
            )
            .hint("Nothing was changed. Name the cluster, too: --target-timeline main=1"));
        };
        timeline.parse::<TargetTimeline>()?;
        named.insert((*cluster).clone(), timeline.to_owned());
    }
    Ok(named)
}

/// Requires that the moment means one timeline in each cluster, or that one is named.
///
/// # Errors
/// `Refused`, with the timelines.
pub(super) fn require_decided(undecided: &BTreeMap<SetMember, Lives>) -> Result<()> {
    let Some((member, lives)) = undecided.iter().next() else {
        return Ok(());
    };
    let others: Vec<String> = lives
        .others
        .iter()
        .map(|t| t.decimal().to_string())
        .collect();
    let all = lives.others.iter().chain(&lives.followed);
    let lines: Vec<String> = all
        .map(|timeline| format!("--target-timeline {}={}", member.name, timeline.decimal()))
        .collect();
    let followed = match lives.followed {
        Some(followed) => format!("timeline {}", followed.decimal()),
        None => "the timeline".to_owned(),
    };
    Err(err!(
        Refused,
        "cluster \"{member}\" has commits for this moment on timeline {}, too, and the plan follows {followed}",
        others.join(" and ")
    )
    .hint(format!(
        "Nothing was changed. The warnings of the plan say what each timeline has. Name the one that is meant: {}",
        lines.join(", or ")
    )))
}

/// The members, each of them planned.
#[derive(Default)]
struct Each {
    reaches: Vec<(SetMember, Reach)>,
    words: BTreeMap<SetMember, Vec<String>>,
    clusters: BTreeMap<SetMember, Restorable>,
    data_sets: BTreeMap<SetMember, DataSet>,
    erasures: BTreeMap<SetMember, Lacking>,
    undecided: BTreeMap<SetMember, Lives>,
}

fn planned_each(
    session: &Session,
    settings: &Settings,
    (set, members): (&RecoverySet, &[SetMember]),
    moment: &Moment,
    asked: &AskedRecovery,
) -> Result<Each> {
    let mut each = Each::default();
    let timelines = timelines(&asked.timelines, members)?;
    for member in members {
        let planning = Planning {
            session,
            settings,
            set,
            member,
            asked,
            timelines: &timelines,
            each: &mut each,
        };
        let (reach, own) = planning.of_member(moment)?;
        each.words.insert(member.clone(), own);
        each.reaches.push((member.clone(), reach));
    }
    Ok(each)
}

/// Reads the newest marks of a set that any repository has: one may have let go what another one still leads to.
///
/// # Errors
/// That of the first repository that failed, where no other one has marks.
pub(super) fn marks(session: &Session, set: &RecoverySet, limit: usize) -> Result<Marks> {
    in_any(session, set, limit, &|store, scope| {
        set_mark::newest(store, scope, limit)
    })
}

fn in_any(
    session: &Session,
    set: &RecoverySet,
    limit: usize,
    read_from: &dyn Fn(&dyn Store, &Scope) -> Result<Marks>,
) -> Result<Marks> {
    let scope = scope(set)?;
    let found = RefCell::new(Marks::default());
    let read = search::in_first(session, |repository, _| -> Result<Option<()>> {
        let marks = read_from(repository.store(), &scope)?;
        found.borrow_mut().merge(marks, limit);
        Ok(None)
    });
    let found = found.into_inner();
    if found.marks.is_empty() && found.refused.is_empty() {
        read?;
    }
    Ok(found)
}

/// Finds a mark.
///
/// # Errors
/// `NotFound` when there is none, or more than one.
fn find(session: &Session, set: &RecoverySet, name: &str) -> Result<Mark> {
    let read_from =
        |store: &dyn Store, scope: &Scope| set_mark::meant(store, scope, name, &session.host);
    let mut marks = in_any(session, set, usize::MAX, &read_from)?.marks;
    let hint = format!("pitr info --set {} shows the marks.", set.name);
    match (marks.pop(), marks.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), others) => Err(err!(
            NotFound,
            "{} marks of set \"{}\" are named \"{}\"",
            others + 1,
            set.name,
            name.escape_debug()
        )
        .hint(hint)),
        (None, _) => Err(err!(
            NotFound,
            "set \"{}\" has no mark \"{}\"",
            set.name,
            name.escape_debug()
        )
        .hint(hint)),
    }
}

/// The point of a member in a mark. A cluster's scope has its system identifier besides the name.
fn point<'m>(mark: &'m Mark, member: &SetMember) -> Result<&'m set_mark::Member> {
    let prefix = match member.kind {
        MemberKind::Cluster => format!("clusters/{}/", member.name),
        kind => format!("aux/{}/{}", kind.section(), member.name),
    };
    let mut found = mark.members.iter().filter(|one| match member.kind {
        MemberKind::Cluster => one.scope.starts_with(&prefix),
        _ => one.scope == prefix,
    });
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(err!(
            OutOfReach,
            "mark \"{}\" does not name member \"{member}\"",
            mark.id
        )
        .hint("Nothing was changed: nothing is guessed for a member that joined the set later. Take another mark, or a time.")),
        (Some(_), Some(_)) => Err(err!(
            OutOfReach,
            "mark \"{}\" names two clusters called \"{member}\"",
            mark.id
        )),
    }
}

/// A member that is planned.
struct Planning<'p> {
    session: &'p Session,
    settings: &'p Settings,
    set: &'p RecoverySet,
    member: &'p SetMember,
    asked: &'p AskedRecovery,
    /// The timelines that are asked for.
    timelines: &'p BTreeMap<SetMember, String>,
    each: &'p mut Each,
}

impl Planning<'_> {
    fn of_member(mut self, moment: &Moment) -> Result<(Reach, Vec<String>)> {
        let (session, set, member) = (self.session, self.set, self.member);
        let marked = match moment {
            Moment::Mark(mark) => Some((point(mark, member)?, mark)),
            Moment::Time(_) => None,
        };
        let point = marked.map(|(one, mark)| ((one, &one.point), mark.ended));
        let odd = || {
            err!(
                OutOfReach,
                "the mark of set \"{}\" names a point that \"{member}\" cannot have",
                set.name
            )
        };
        let doing = |e: crate::error::Error| e.context(format!("plan member \"{member}\""));
        let (reach, words, level) = match (member.kind, point, moment) {
            (MemberKind::Cluster, Some(((one, Point::Wal(timeline, lsn)), at)), _) => {
                let identifier = one.scope.rsplit('/').next().and_then(|n| n.parse().ok());
                let target = AskedTarget {
                    inclusive: Inclusive::No,
                    timeline: TargetTimeline::Number(*timeline),
                    ..target(Target::Lsn(*lsn))
                };
                let words = cluster_words(*timeline, &lsn.to_string(), &one.scope);
                let is_behind = one.level < Level::Marker;
                let reach = self.of_cluster(identifier, (&target, at, is_behind));
                (reach, words, one.level)
            }
            (MemberKind::Cluster, None, Moment::Time(at)) => {
                let mut words = words(&["--target-time", &at.to_string()]);
                let mut target = target(Target::Time(*at));
                if let Some(timeline) = self.timelines.get(member) {
                    target.timeline = timeline.parse()?;
                    words.extend(["--target-timeline".to_owned(), timeline.clone()]);
                }
                (
                    self.of_cluster(None, (&target, *at, false)),
                    words,
                    Level::Time,
                )
            }
            (MemberKind::Redis, Some(((one, Point::Log(replid, offset)), at)), _) => {
                let target = route::Target {
                    moment: route::Moment::Position(*offset),
                    replid: Some(replid.clone()),
                };
                let words = words(&["--target-offset", &format!("{replid}:{offset}")]);
                let is_behind = one.level < Level::Marker;
                (self.of_redis((&target, at, is_behind)), words, one.level)
            }
            (MemberKind::Redis, None, Moment::Time(at)) => {
                let micros = at.unix_micros().ok_or_else(odd)?;
                let target = route::Target {
                    moment: route::Moment::Time(micros),
                    replid: None,
                };
                let words = words(&["--target-time", &at.to_string()]);
                (self.of_redis((&target, *at, false)), words, Level::Time)
            }
            (MemberKind::Files | MemberKind::Config, Some(((one, point), _)), _) => {
                let backups = backups(session, member).map_err(doing)?;
                let found = match point {
                    Point::Backup(id) => backups.iter().find(|one| one.id == *id),
                    Point::After(time) => first_after(&backups, *time),
                    _ => return Err(odd()),
                };
                let reach = found.map(|backup| reached(backup, one.level));
                let why = "no undamaged backup of it was taken after the mark yet";
                return Ok(of_files(reach, why));
            }
            (MemberKind::Files | MemberKind::Config, None, Moment::Time(at)) => {
                let backups = backups(session, member).map_err(doing)?;
                let after = first_after(&backups, *at).map(|one| reached(one, Level::Time));
                let before = || {
                    let ended = backups.iter().filter(|one| one.stop_time <= *at);
                    let newest = ended.max_by_key(|one| (one.stop_time, one.id.to_string()));
                    newest.map(|one| reached(one, Level::Nearest))
                };
                return Ok(of_files(
                    after.or_else(before),
                    "it has no undamaged backup",
                ));
            }
            _ => return Err(odd()),
        };
        let reach = match reach.map_err(doing)? {
            Reach::Reached(reached) => Reach::Reached(Reached { level, ..reached }),
            unreached => unreached,
        };
        Ok((reach, words))
    }

    /// Plans a cluster as `pitr plan` does.
    fn of_cluster(
        &mut self,
        identifier: Option<u64>,
        (target, at, is_behind): (&AskedTarget, TimestampTz, bool),
    ) -> Result<Reach> {
        cluster(self.settings, &self.member.name)?;
        let mut own = self.session.on_cluster(&self.member.name);
        own.system_identifier = identifier;
        let first = opened::open(&own, Reading::open(&own)?)?;
        let question = Question {
            target,
            action: Action::Promote,
            is_carried_out: false,
        };
        let chosen = question.answer(&own, first)?;
        let plan = &chosen.plan;
        match chosen.unless {
            Some(Unless::NotKnown(e)) => return Err(e),
            Some(Unless::OutOfReach { why, .. }) => {
                return Ok(Reach::Unreached {
                    why,
                    before: plan.nearest_before.and_then(|moment| moment.time),
                    after: plan.nearest_after.and_then(|moment| moment.time),
                });
            }
            None => {}
        }
        if self.asked.with_erasures
            && let Some(lacking) = erasure::lacking(&own, &chosen.opened, plan)?
            && lacking.count > 0
        {
            self.each.erasures.insert(self.member.clone(), lacking);
        }
        if let Some(backup) = &plan.backup {
            let restorable = Restorable {
                major: backup.major,
                has_tablespaces: !backup.tablespaces.is_empty(),
            };
            self.each.clusters.insert(self.member.clone(), restorable);
        }
        if !plan.others_meant.is_empty() && !self.timelines.contains_key(self.member) {
            let lives = Lives {
                followed: plan.target_timeline,
                others: plan.others_meant.clone(),
            };
            self.each.undecided.insert(self.member.clone(), lives);
        }
        let copied = match self.asked.from_standby {
            true => 0,
            false => plan.bytes_to_copy,
        };
        let done = Plan {
            bytes_to_copy: copied,
            ..plan.clone()
        };
        let estimate = how_long::of_plan(&own, &chosen.opened, &done);
        let (backup, stop) = (plan.backup.as_ref(), plan.stop.as_ref());
        Ok(Reach::Reached(Reached {
            backup: backup.map(|b| b.id.to_string()).unwrap_or_default(),
            moment: Some(match is_behind {
                true => of_follower(plan, at),
                false => at,
            }),
            position: stop.map(|stop| stop.recovery_end_lsn.to_string()),
            bytes: copied.saturating_add(plan.bytes_to_replay),
            ms: estimate.as_ref().map(|estimate| estimate.ms),
            basis: estimate.as_ref().map(Estimate::basis),
            level: Level::Time,
            warnings: plan.warnings.clone(),
        }))
    }

    /// Plans a data set as `pitr redis plan` does.
    fn of_redis(
        &mut self,
        (target, at, is_behind): (&route::Target, TimestampTz, bool),
    ) -> Result<Reach> {
        match redis::plan::run(self.session, &self.member.name, None, target) {
            Ok(planned) => {
                let data_sets = &mut self.each.data_sets;
                data_sets.insert(self.member.clone(), planned.member.clone());
                let bytes = planned.member.bytes().saturating_add(planned.route.bytes());
                let (ms, basis) = estimate::restore(&[], bytes, Restored::DataSet);
                let end = planned.route.end();
                let arrived = planned.route.arrived_us.filter(|_| is_behind);
                let arrived = arrived.and_then(TimestampTz::from_unix_micros);
                Ok(Reach::Reached(Reached {
                    backup: planned.id.to_string(),
                    moment: Some(arrived.map_or(at, |arrived| arrived.min(at))),
                    position: end.map(|(replid, offset)| format!("{replid}:{offset}")),
                    bytes,
                    ms: Some(ms),
                    basis: Some(basis),
                    level: Level::Time,
                    warnings: Vec::new(),
                }))
            }
            Err(e) if e.code() == Code::OutOfReach => Ok(Reach::Unreached {
                why: e.to_string(),
                before: None,
                after: None,
            }),
            Err(e) => Err(e),
        }
    }
}

/// Pure: the moment of a state that a standby had at a time. It is that of the primary then, unless that had committed more; its last commit tells how much older it is.
fn of_follower(plan: &Plan, at: TimestampTz) -> TimestampTz {
    let next = plan.first_excluded_commit.map(|commit| commit.time);
    let last = plan.last_commit.map(|commit| commit.time);
    match next {
        Some(next) if next <= at => last.unwrap_or(next).min(at),
        _ => at,
    }
}

fn target(target: Target) -> AskedTarget {
    AskedTarget::at(Asked::Known(target))
}

fn cluster_words(timeline: TimelineId, lsn: &str, scope: &str) -> Vec<String> {
    let identifier = scope.rsplit('/').next().unwrap_or_default();
    let timeline = timeline.decimal().to_string();
    let point = ["--target-lsn", lsn, "--exclusive"];
    let place = ["--target-timeline", &timeline];
    let server = ["--system-identifier", identifier];
    words(&[&point[..], &place, &server].concat())
}

/// The undamaged backups of files or configuration that any repository has: the one that fits a moment need not be in the first.
///
/// # Errors
/// That of the first repository that failed, where no other one has backups.
fn backups(session: &Session, member: &SetMember) -> Result<Vec<ScopeBackup>> {
    let scope = Scope::aux(member.kind.section(), &member.name)?;
    let found = RefCell::new(BTreeMap::new());
    let read = search::in_first(session, |repository, _| -> Result<Option<()>> {
        for one in scopes::look_at(&repository, &scope, session.host.now())?.backups {
            if one.damage.is_none() && one.expire_not_before.is_none() {
                found.borrow_mut().entry(one.id.clone()).or_insert(one);
            }
        }
        Ok(None)
    });
    let found = found.into_inner();
    if found.is_empty() {
        read?;
    }
    Ok(found.into_values().collect())
}

fn first_after(backups: &[ScopeBackup], time: TimestampTz) -> Option<&ScopeBackup> {
    let after = backups.iter().filter(|one| one.start_time >= time);
    after.min_by_key(|one| (one.start_time, one.id.to_string()))
}

fn reached(backup: &ScopeBackup, level: Level) -> Reached {
    let (ms, basis) = estimate::restore(&[], backup.size_bytes, Restored::Files);
    Reached {
        backup: backup.id.to_string(),
        moment: Some(backup.stop_time),
        position: None,
        bytes: backup.size_bytes,
        ms: Some(ms),
        basis: Some(basis),
        level,
        warnings: Vec::new(),
    }
}

fn of_files(found: Option<Reached>, why: &str) -> (Reach, Vec<String>) {
    match found {
        Some(reached) => {
            let words = words(&["--backup", &reached.backup]);
            (Reach::Reached(reached), words)
        }
        None => {
            let unreached = Reach::Unreached {
                why: why.to_owned(),
                before: None,
                after: None,
            };
            (unreached, Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::from_decimal(&number.to_string()).unwrap()
    }

    #[test]
    fn r210_a_moment_of_two_lives_of_a_cluster_takes_a_named_timeline() {
        let member: SetMember = "main".parse().unwrap();
        assert!(require_decided(&BTreeMap::new()).is_ok());
        let lives = Lives {
            followed: Some(timeline(2)),
            others: vec![timeline(1)],
        };
        let refused = require_decided(&BTreeMap::from([(member, lives)])).unwrap_err();
        assert_eq!(refused.code(), Code::Refused);
        assert!(refused.to_string().contains("timeline 1, too"), "{refused}");
        let hint = refused.hint_text().unwrap();
        for named in ["--target-timeline main=1", "--target-timeline main=2"] {
            assert!(hint.contains(named), "{hint}");
        }
    }

    #[test]
    fn a_timeline_is_that_of_the_cluster_that_is_named_or_of_the_only_one() {
        let members = |texts: &[&str]| -> Vec<SetMember> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let named = |asked: &str, of: &[&str]| {
            let found = timelines(&[asked.to_owned()], &members(of)).ok()?;
            let (member, timeline) = found.into_iter().next()?;
            Some(format!("{member}:{timeline}"))
        };
        let one = ["main", "redis:shop"];
        assert_eq!(named("3", &one).as_deref(), Some("main:3"));
        assert_eq!(named("main=3", &one).as_deref(), Some("main:3"));
        let two = ["main", "other"];
        assert_eq!(named("other=latest", &two).as_deref(), Some("other:latest"));
        for (asked, of) in [
            ("3", &two[..]),
            ("shop=3", &one[..]),
            ("3", &["redis:shop"][..]),
            ("main=x", &one[..]),
        ] {
            assert_eq!(named(asked, of), None, "{asked}");
        }
    }
}
