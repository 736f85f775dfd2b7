//! Expiry of the clusters of every repository.

use std::collections::{BTreeMap, BTreeSet};

use super::audit;
use super::counters;
use super::failures::Failures;
use super::heal;
use super::human;
use super::of::{self, Of, Wanted};
use super::registered::registrations;
use super::retention::{Rules, no_rule};
use super::session::Session;
use super::unproven;
use crate::config;
use crate::error::{Code, Error, Result};
use crate::expire::erasures::{self, Forgotten};
use crate::expire::marks::ExpireMarks;
use crate::expire::scope::ExpireScope;
use crate::expire::{Expire, Leftovers, Links, Outcome, check_now};
use crate::pg::segment::SegmentSize;
use crate::pg::time::TimestampTz;
use crate::plan::retention::{ExpirePlan, Fate, Judged, Policy};
use crate::repo::clock::MAY_DIFFER;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::run_claim;
use crate::repo::scope::Scope;
use crate::repo::set_mark;
use crate::store::Store;
use crate::wal::survey::Root;

/// The danger of a run that cannot tell forged backups.
const FORGED: &str =
    "backups that somebody forged count as kept, and genuine ones can be deleted for them";

/// The outcome of one cluster, or of other content, in one repository.
pub struct Done {
    pub repository: String,
    /// The cluster in it, or other content.
    pub of: Of,
    /// WAL segment size of a cluster.
    pub segment_size: SegmentSize,
    pub plan: ExpirePlan,
    /// The result, where the plan was to be carried out.
    pub outcome: Option<Outcome>,
    /// A warning about the whole repository; only with its first cluster.
    pub warning: Option<String>,
    /// It ended early; what it did before stands in the outcome.
    pub is_cut_short: bool,
}

impl Done {
    /// Warnings of the plan and of the repository.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.warning.iter().chain(&self.plan.warnings)
    }

    /// It was carried out, and nothing stood against it.
    pub fn went_well(&self) -> bool {
        let refused = self.outcome.as_ref().map(|o| o.refused_count);
        let is_stopped = self.plan.refusal.is_some() || self.plan.burst.is_some();
        refused == Some(0) && !self.is_cut_short && !is_stopped
    }
}

/// The operator's request.
pub struct Asked {
    /// `--keep`: the newest backups, in the place of `keep_last`.
    pub keep: Option<u32>,
    /// `--default-keep`: the newest backups of what no rule of the configuration holds for.
    pub default_keep: Option<u32>,
    /// The rest of the policy; rules and zone come from the configuration.
    pub policy: Policy,
    /// Whether the plan is carried out.
    pub is_confirmed: bool,
}

/// Plans expiry in every repository, and carries it out where that is confirmed.
///
/// # Errors
/// `Config` without a repository, and without a rule; the first failure when nothing was planned at all.
pub fn run(session: &Session, asked: &Asked) -> Result<(Vec<Done>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let rules = Rules::new(session, settings.clone(), asked.keep).with_default(asked.default_keep);
    rules.check()?;
    let wanted = Wanted::all(session, &settings)?;
    let mut done = Vec::new();
    let (mut failures, mut of_clusters) = (Failures::default(), Failures::default());
    failures.in_each(&settings.repositories, "expire in", |configured| {
        let found = (&mut done, &mut of_clusters);
        one_repository(session, (configured, &rules), &wanted, asked, found)
    });
    let is_all_read = failures.is_empty();
    failures.take_over(of_clusters);
    failures.first_if(session, done.is_empty())?;
    wanted.check_held(session, is_all_read, done.is_empty())?;
    locked_bytes(session, &done);
    if asked.is_confirmed && is_all_read {
        let all = done.iter().map(|d| (&d.of, d.went_well()));
        counters::succeeded_for((session, "expire"), wanted.only(), &failures.clusters, all);
    }
    match done.is_empty() {
        true => Err(no_rule()),
        false => Ok((done, failures)),
    }
}

/// Has metrics tell how much the stores keep that was to go. A run that was cut short has not seen all of it.
fn locked_bytes(session: &Session, done: &[Done]) {
    let mut bytes: BTreeMap<String, Option<u64>> = BTreeMap::new();
    for one in done {
        if let (Some(outcome), Some(cluster)) = (&one.outcome, one.of.cluster()) {
            let known = Some(outcome.locked_bytes).filter(|_| !one.is_cut_short);
            let sum = bytes
                .entry(counters::locked(cluster, &one.repository))
                .or_insert(Some(0));
            *sum = sum.zip(known).map(|(sum, more)| sum + more);
        }
    }
    for (what, bytes) in bytes {
        if let Some(bytes) = bytes {
            counters::measured(session, &what, bytes);
        }
    }
}

fn one_repository(
    session: &Session,
    (configured, rules): (&config::Repository, &Rules),
    wanted: &Wanted,
    asked: &Asked,
    found: (&mut Vec<Done>, &mut Failures),
) -> Result<()> {
    let repository = session.open(configured)?;
    let place = (configured, &repository, rules);
    let ran = all_scopes(session, place, wanted, asked, found);
    if asked.is_confirmed {
        keep_reserve(session, &configured.name, repository.store());
    }
    ran
}

fn all_scopes(
    session: &Session,
    (configured, repository, rules): (&config::Repository, &Repository, &Rules),
    wanted: &Wanted,
    asked: &Asked,
    (done, failures): (&mut Vec<Done>, &mut Failures),
) -> Result<()> {
    let scopes = of::scopes(session, repository)?;
    if asked.is_confirmed {
        check_now(repository.store(), session.host.now())?;
        // They cost room only: backups are expired all the same.
        if let Err(e) = run_claim::forget(repository.store(), session.host.now()) {
            session.warn(&format!(
                "old claims of jobs stay in repository \"{}\": {e}",
                configured.name
            ));
        }
    }
    let (sets, scopes): (Vec<Scope>, Vec<Scope>) = scopes
        .into_iter()
        .partition(|scope| scope.kind() == Some(set_mark::KIND));
    let clusters = wanted.ruled_beside(session, &scopes, (&configured.name, repository))?;
    let mut names = BTreeSet::new();
    let first = done.len();
    let mut run = Run {
        repository: &configured.name,
        only_writes: configured.only_writes(),
        is_confirmed: asked.is_confirmed,
        warning: unproven::warning(configured, repository, FORGED),
        leftovers: Leftovers::default(),
        done,
    };
    let one = |run: &mut Run<'_>, registration: &Registration| -> Result<()> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        let of = Of::Cluster(registration.clone());
        let place = (&*layout, of.cluster());
        let policy = rules.policy::<Root>(session, configured, place, &asked.policy)?;
        let Some(policy) = policy else {
            session.warn(&unruled(&of, configured));
            return Ok(());
        };
        let proven = Rules::proven(&policy.rules, repository.store(), &layout)?;
        let policy = Policy { proven, ..policy };
        let policy = rules.with_wal_elsewhere(session, configured, registration, policy);
        let expire = Expire {
            repository,
            registration,
            policy,
            host: &session.host,
            links: Links::default(),
            leftovers: run.leftovers.clone(),
        };
        let size = SegmentSize::new(registration.segment_size_bytes)?;
        run.one((of, size), expire.plan()?, |plan, outcome| {
            expire.run(plan, outcome)
        })
    };
    let place = ("expire", configured.name.as_str());
    let ended = of::in_each_cluster(&clusters, place, failures, |name| {
        let found = registrations(session, repository, name)?;
        let mut failed = First::default();
        // A cluster that went through pg_upgrade has several identifiers; each keeps its own backups.
        for registration in &found {
            let several = (found.len() > 1).then(|| Of::Cluster(registration.clone()));
            failed.note(session, one(&mut run, registration), several.as_ref())?;
        }
        failed.ended()?;
        names.extend(found.into_iter().map(|r| r.name));
        Ok(())
    });
    let mut failed = First::default();
    match ended {
        // Command or configuration is wrong, or nobody knows the cluster: nothing else is done.
        Err(e) if matches!(e.code(), Code::Usage | Code::Config | Code::NotFound) => {
            return Err(e);
        }
        ended => failed.note(session, ended, None)?,
    }
    for scope in scopes {
        let of = Of::Scope(scope.clone());
        let done = one_scope(
            session,
            (configured, repository, rules),
            asked,
            &scope,
            &mut run,
        );
        failed.note(session, done, Some(&of))?;
    }
    let oldest = run.done.get(first..).into_iter().flatten();
    let oldest: BTreeMap<_, _> = oldest.filter_map(oldest_left).collect();
    for scope in sets {
        let expire = ExpireMarks {
            repository,
            scope: &scope,
            oldest: &oldest,
            host: &session.host,
        };
        let of = Of::Scope(scope.clone());
        let done = expire.plan().and_then(|plan| {
            let of = (Of::Scope(scope.clone()), SegmentSize::DEFAULT);
            run.one(of, plan, |plan, outcome| expire.run(plan, outcome))
        });
        failed.note(session, done, Some(&of))?;
    }
    if asked.is_confirmed {
        for name in names {
            // They cost room only: a repository that keeps them does no harm.
            let others = || others(session, configured);
            match erasures::forget(repository, &name, others, &session.host) {
                Ok(forgotten) => say_forgotten(session, (&name, &configured.name), &forgotten),
                Err(e) => session.warn(&format!(
                    "erasures of cluster \"{name}\" stay in repository \"{}\": {e}",
                    configured.name
                )),
            }
        }
        let done = audit::expire(session, configured, repository.store());
        failed.note(session, done.map(drop), None)?;
    }
    failed.ended()
}

/// Says of the erasures of a cluster which went, and for whom others stay.
fn say_forgotten(session: &Session, (name, repository): (&str, &str), forgotten: &Forgotten) {
    if forgotten.gone > 0 {
        session.note(&format!(
            "deleted {} of cluster \"{name}\" than which no backup is older",
            human::count(forgotten.gone, "erasure")
        ));
    }
    for other in &forgotten.unread {
        session.warn(&format!(
            "erasures of cluster \"{name}\" stay in repository \"{repository}\": repository \"{other}\" has backups that cannot be read, and they may need them: pitr verify --repository {other}"
        ));
    }
}

fn one_scope(
    session: &Session,
    (configured, repository, rules): (&config::Repository, &Repository, &Rules),
    asked: &Asked,
    scope: &Scope,
    run: &mut Run<'_>,
) -> Result<()> {
    let of = (Of::Scope(scope.clone()), SegmentSize::DEFAULT);
    let place = (scope, None);
    let policy = rules.policy::<AuxBackup>(session, configured, place, &asked.policy)?;
    let Some(policy) = policy else {
        session.warn(&unruled(&of.0, configured));
        return Ok(());
    };
    let expire = ExpireScope {
        repository,
        scope,
        policy,
        host: &session.host,
        leftovers: run.leftovers.clone(),
    };
    run.one(of, expire.plan()?, |plan, outcome| {
        expire.run(plan, outcome)
    })
}

/// The other repositories of the configuration, each with its name.
fn others(session: &Session, own: &config::Repository) -> Result<Vec<(String, Repository)>> {
    let others = heal::others(session, own)?.into_iter();
    let opened = others.map(|(name, other)| match other {
        Ok(other) => Ok((name, other)),
        Err(e) => Err(e.context(format!("ask repository \"{name}\" for them"))),
    });
    opened.collect()
}

/// The first error of several that do not keep the rest from being expired.
#[derive(Default)]
struct First(Option<Error>);

impl First {
    /// Takes down what failed, and names the one of several in which it did; later ones are warnings.
    ///
    /// # Errors
    /// Those that end all: the repository does not answer, or the operator wants no more.
    fn note(&mut self, session: &Session, done: Result<()>, of: Option<&Of>) -> Result<()> {
        let Err(e) = done else {
            return Ok(());
        };
        if of::ends_all(&e) {
            if let Some(first) = self.0.take() {
                session.warn(&first.to_string());
            }
            return Err(e);
        }
        let e = match of {
            Some(of) => e.context(format!("expire {}", of.title())),
            None => e,
        };
        if self.0.is_some() {
            session.warn(&e.to_string());
        } else {
            self.0 = Some(e);
        }
        Ok(())
    }

    /// The first error, where there was one.
    fn ended(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Has the disk keep room for the next run. One that failed has spent some of it, and may have made room.
pub(super) fn keep_reserve(session: &Session, name: &str, store: &dyn Store) {
    if let Err(e) = store.keep_reserve() {
        session.warn(&format!(
            "repository \"{name}\" has no whole reserve of room, which pitr expire needs on a full disk: {e}"
        ));
    }
}

/// The prefix of a scope, and the end of its oldest backup that stays with what lies behind it. There is none where a backup may be there that the plan does
/// not show, and none where one ended under a wrong clock: moments behind it may seem to lie before it.
fn oldest_left(done: &Done) -> Option<(String, TimestampTz)> {
    if done.plan.has_lost || !done.plan.withheld.is_empty() {
        return None;
    }
    // A backup that was to go may have been claimed meanwhile.
    let is_gone = |b: &Judged| match &done.outcome {
        Some(outcome) => outcome.deleted_backups.contains(&b.id),
        None => b.fate == Fate::Delete,
    };
    let stays = |b: &&Judged| !is_gone(b) && !b.is_bounded;
    let left: Vec<&Judged> = done.plan.backups.iter().filter(stays).collect();
    // A copy was stored late: that a clock was ahead then shows in the order of the backups alone.
    let in_order =
        |one: &&Judged, next: &&Judged| one.stop_time <= next.stop_time.saturating_add(MAY_DIFFER);
    if left.iter().any(|b| b.is_ahead) || !left.is_sorted_by(in_order) {
        return None;
    }
    let oldest = left.iter().map(|b| b.stop_time).min()?;
    let prefix = match &done.of {
        Of::Cluster(r) => Scope::cluster(&r.name, r.system_identifier).ok()?.prefix(),
        Of::Scope(scope) => scope.prefix(),
    };
    Some((prefix, oldest))
}

/// No rule holds for one of several.
fn unruled(of: &Of, configured: &config::Repository) -> String {
    format!(
        "no rule says what to keep of {} in repository \"{}\": all of it stays. Rules in [retention] hold for everything",
        of.title(),
        configured.name
    )
}

/// Names where the verification that is waited for is possible: without a reader's key it fails.
fn name_reader(waiting: &mut String) {
    if waiting.ends_with("pitr verify") {
        waiting.push_str(", on a host with a reader's key: this one only writes");
    }
}

/// One run in one repository.
struct Run<'a> {
    repository: &'a str,
    only_writes: bool,
    is_confirmed: bool,
    /// Told with the first plan.
    warning: Option<String>,
    /// Looked for once, for the plans of all.
    leftovers: Leftovers,
    done: &'a mut Vec<Done>,
}

impl Run<'_> {
    /// Carries out a plan, where that is confirmed, and reports it in any case.
    fn one(
        &mut self,
        (of, segment_size): (Of, SegmentSize),
        mut plan: ExpirePlan,
        carry_out: impl FnOnce(&ExpirePlan, &mut Outcome) -> Result<()>,
    ) -> Result<()> {
        if let Some(waiting) = plan.waiting.as_mut().filter(|_| self.only_writes) {
            name_reader(waiting);
        }
        let mut outcome = self.is_confirmed.then(Outcome::default);
        let ran = match &mut outcome {
            Some(outcome) => carry_out(&plan, outcome),
            None => Ok(()),
        };
        if let Some(outcome) = &outcome {
            outcome.add_withheld(&mut plan.withheld);
        }
        self.done.push(Done {
            repository: self.repository.to_owned(),
            segment_size,
            of,
            plan,
            outcome,
            warning: self.warning.take(),
            is_cut_short: ran.is_err(),
        });
        ran
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn judged(at: usize, hour: u64, is_ahead: bool) -> Judged {
        Judged {
            id: format!("2026110{at}T000000Z-full").parse().unwrap(),
            place: None,
            stop_time: hours(hour),
            is_ahead,
            stored_bytes: 1,
            damage: None,
            fate: Fate::Keep,
            reason: String::new(),
            is_promised: true,
            is_bounded: false,
            rules: Vec::new(),
            kept_until: None,
        }
    }

    fn hours(count: u64) -> TimestampTz {
        TimestampTz(0).saturating_add(Duration::from_secs(count * 3600))
    }

    #[test]
    fn x60_no_mark_goes_by_a_backup_whose_clock_was_ahead() {
        let oldest = |backups: &[(u64, bool)]| {
            let backups = (1..).zip(backups);
            let plan = ExpirePlan {
                backups: backups
                    .map(|(at, (hour, is_ahead))| judged(at, *hour, *is_ahead))
                    .collect(),
                ..ExpirePlan::default()
            };
            let done = Done {
                repository: "local".to_owned(),
                of: Of::Scope(Scope::aux("files", "up").unwrap()),
                segment_size: SegmentSize::DEFAULT,
                plan,
                outcome: None,
                warning: None,
                is_cut_short: false,
            };
            oldest_left(&done).map(|(_, oldest)| oldest)
        };
        let (right, ahead) = (false, true);
        assert_eq!(oldest(&[(24, right), (48, right)]), Some(hours(24)));
        // The one of hour 24 was taken under a clock that was 26 hours ahead.
        assert_eq!(oldest(&[(50, ahead), (48, right)]), None);
        assert_eq!(oldest(&[(50, ahead)]), None);
        // It was copied later: the store's time tells nothing.
        assert_eq!(oldest(&[(50, right), (48, right), (72, right)]), None);
    }

    #[test]
    fn a_host_that_only_writes_is_told_where_to_verify() {
        let named = |text: &str| {
            let mut text = text.to_owned();
            name_reader(&mut text);
            text
        };
        let verify = named("no newer one was verified: pitr verify");
        assert!(verify.ends_with("this one only writes"), "{verify}");
        assert_eq!(named("the next one is at noon"), "the next one is at noon");
    }
}
