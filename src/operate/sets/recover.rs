//! `pitr recover`: the steps of a plan, carried out and resumed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::cache::Place;
use super::erasures::{self, Erasing};
use super::own::{self, Owner};
use super::plan::{self, AskedRecovery, Lives, Planned};
use super::records;
use super::run::{End, Record, RecordedMember, Run, Runs};
use super::work::Work;
use super::{by_hand, cluster, configured, loads, redis, service, timing, trees};
use crate::config::{MemberKind, RecoverySet, SetMember, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::operate::erasure::apply::Consent;
use crate::operate::quarantine;
use crate::operate::redis::scratch::require_modules;
use crate::operate::session::Session;
use crate::plan::sets::{Clusters, SetPlan, Step, outage, steps};
use crate::restore::replace::Old;

pub(super) const UNCHANGED: &str = "Nothing was changed.";

/// A step that was carried out, or is to be.
#[derive(Debug, Serialize)]
pub struct Done {
    /// The step.
    #[serde(flatten)]
    pub step: ShownStep,
    /// How long it took; none where it was not carried out by this process.
    pub ms: Option<u64>,
}

/// A step, as it is shown.
#[derive(Debug, Serialize)]
pub struct ShownStep {
    /// Its text.
    pub step: String,
    /// The command by which it is done, where there is one.
    pub command: Option<String>,
}

impl ShownStep {
    fn of(step: &Step, work: Option<Work<'_>>) -> ShownStep {
        ShownStep {
            step: step.text(),
            command: work.and_then(|work| work.command().ok().flatten()),
        }
    }
}

/// A recovery, planned or carried out.
#[derive(Serialize)]
pub struct Report {
    pub set: String,
    /// The run; none where it was only planned.
    pub run: Option<String>,
    /// The plan; none of a run that goes on: it was made before.
    pub plan: Option<SetPlan>,
    /// The erasures that clusters lack at the moment, which are repeated before anything is started.
    pub erasures: Vec<Erasing>,
    /// Clusters that are restored after the stop, and why.
    pub after_stop: Vec<AfterStop>,
    /// How long the applications are down, as far as it is known.
    pub outage: Outage,
    pub steps: Vec<Done>,
    /// Whether an earlier run goes on.
    pub is_resumed: bool,
    /// Whether all steps are done.
    pub is_complete: bool,
    /// Things that went less well than they should.
    pub warnings: Vec<String>,
}

/// A cluster that cannot be restored while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AfterStop {
    /// The cluster.
    pub member: SetMember,
    /// Why it is restored after the stop.
    pub why: String,
}

/// The time during which the applications are down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// The expectation of a plan: members that are restored after the stop, and for the rest the newest complete run. None where nothing is known.
    pub expected_ms: Option<u64>,
    /// The members of a plan of which nothing tells how long they take after the stop.
    pub untimed: Vec<SetMember>,
    /// The outage of a complete run, from the stop of the applications to their start.
    pub ms: Option<u64>,
}

/// A recovery that is ready to be carried out.
pub struct Prepared {
    settings: Settings,
    set: RecoverySet,
    runs: Runs,
    record: Record,
    run: Option<Run>,
    plan: Option<SetPlan>,
    erasures: Vec<Erasing>,
    after_stop: Vec<AfterStop>,
    /// The operator's word about erasures, by member.
    consents: BTreeMap<String, Consent>,
    /// Erasures that the operator leaves out.
    skipped: Vec<String>,
    /// The clusters in which the moment may mean several timelines.
    undecided: BTreeMap<SetMember, Lives>,
}

/// Plans a recovery, or finds the one that was interrupted; `words` are those by which the same command is known again.
///
/// # Errors
/// `Refused` while another recovery of the host is unfinished, and for erasures that the operator has to decide about; `OutOfReach`; `Config` for what is missing; those of the repositories.
pub fn prepare(
    session: &Session,
    asked: &AskedRecovery,
    (words, consent): (&str, &Consent),
) -> Result<Prepared> {
    let settings = session.settings_with_repositories()?;
    let set = configured(&settings, asked.set.as_deref())?.clone();
    let runs = records::open(session, &settings, &set)?;
    if let Some(run) = runs.unfinished()? {
        let record = &run.record;
        let is_same =
            record.set == set.name && record.extent == asked.extent && record.moment == words;
        if !is_same || run.back()?.is_some() {
            return Err(err!(
                Refused,
                "run {} of set \"{}\" to {} is not finished",
                record.id,
                record.set,
                record.moment
            )
            .hint(format!(
                "{UNCHANGED} Run the command that began it, or take it back.\npitr recover rollback {} --confirm",
                record.id
            )));
        }
        let consents = erasures::of_run(session, &run, consent)?;
        return Ok(Prepared {
            record: record.clone(),
            run: Some(run),
            plan: None,
            settings,
            set,
            runs,
            erasures: Vec::new(),
            after_stop: Vec::new(),
            consents,
            skipped: consent.skipped.clone(),
            undecided: BTreeMap::new(),
        });
    }
    let mut planned = plan::run(session, asked)?;
    timing::measure(&mut planned.plan, &runs)?;
    planned.require()?;
    let kept = trees::kept(session, &planned)?;
    let mut after_stop = Vec::new();
    let in_place = planned.words.keys();
    let in_place = in_place.filter(|m| !asked.from_standby || m.kind != MemberKind::Cluster);
    let early = record(session, asked, words, (&planned, &[], &kept));
    by_hand::require_all((&settings, &set), in_place, &early)?;
    for (member, words) in &planned.words {
        if asked.from_standby && member.kind == MemberKind::Cluster {
            check_standby(session, &settings, (member, words))?;
            continue;
        }
        let deletes = !kept.contains_key(member);
        let old = check(session, &settings, (member, words), deletes)?;
        if let Some(data_set) = planned.data_sets.get(member) {
            require_modules(session, data_set)?;
        }
        if let Some(why) =
            old.and_then(|old| why_after_stop(session, asked, &planned, (member, &old)))
        {
            let member = member.clone();
            after_stop.push(AfterStop { member, why });
        }
    }
    let (erasures, consents) = erasures::of_plan(session, &planned, consent)?;
    let record = record(session, asked, words, (&planned, &after_stop, &kept));
    Ok(Prepared {
        record,
        run: None,
        plan: Some(planned.plan),
        settings,
        set,
        runs,
        erasures,
        after_stop,
        consents,
        skipped: consent.skipped.clone(),
        undecided: planned.undecided,
    })
}

/// Why a cluster is restored after the stop; none where it can recover aside.
fn why_after_stop(
    session: &Session,
    asked: &AskedRecovery,
    planned: &Planned,
    (member, old): (&SetMember, &Old),
) -> Option<String> {
    if asked.after_stop {
        return Some("--after-stop asks for it".to_owned());
    }
    if let Some(why) = old.why_not_aside() {
        return Some(why.to_owned());
    }
    let backup = planned.clusters.get(member)?;
    if backup.has_tablespaces {
        return Some("its backup has tablespaces outside of the data directory".to_owned());
    }
    let programs = quarantine::programs(&session.environment, backup.major, None);
    programs.err().map(|e| e.to_string())
}

fn record(
    session: &Session,
    asked: &AskedRecovery,
    words: &str,
    (planned, after_stop, kept): (&Planned, &[AfterStop], &BTreeMap<SetMember, String>),
) -> Record {
    let members: Vec<SetMember> = planned.words.keys().cloned().collect();
    let recorded = planned.plan.members.iter().map(|one| RecordedMember {
        member: one.member.to_string(),
        words: planned.words.get(&one.member).cloned().unwrap_or_default(),
        position: one
            .reached
            .as_ref()
            .and_then(|reached| reached.position.clone()),
        bytes: one.reached.as_ref().map(|reached| reached.bytes),
        keeps: kept.get(&one.member).cloned(),
    });
    let named = (planned.set.name.as_str(), asked.extent, words.to_owned());
    let is_late = |member: &SetMember| after_stop.iter().any(|late| late.member == *member);
    let all = members.iter();
    let all = all.filter(|member| member.kind == MemberKind::Cluster);
    let (standbys, others): (Vec<&SetMember>, Vec<&SetMember>) =
        all.partition(|_| asked.from_standby);
    let aside = others.into_iter().filter(|member| !is_late(member));
    let clusters = Clusters {
        aside: aside.cloned().collect(),
        standbys: standbys.into_iter().cloned().collect(),
        erased: planned.erasures.keys().cloned().collect(),
    };
    let steps = steps_with(&planned.set, &members, &clusters);
    Record::new(&session.host, named, recorded.collect(), steps)
}

fn lacking(member: &SetMember, section: &str, key: &str) -> Error {
    err!(
        Config,
        "[{section}.{}] has no {key}, without which it cannot be recovered",
        member.name
    )
    .hint(format!("{UNCHANGED}\npitr recover test needs none of it."))
}

/// Requires what the configuration has to tell of a cluster. Returns its data directory.
fn check_cluster<'s>(settings: &'s Settings, member: &SetMember) -> Result<&'s Path> {
    let cluster = cluster(settings, &member.name)?;
    let lacking = |key: &str| lacking(member, "clusters", key);
    let Some(pgdata) = &cluster.pgdata else {
        return Err(lacking("pgdata"));
    };
    Owner::of(pgdata)?;
    if cluster.conninfo.is_none() {
        return Err(lacking("conninfo"));
    }
    match cluster.service.stop.is_empty() || cluster.service.start.is_empty() {
        true => Err(lacking("service.stop and service.start")),
        false => Ok(pgdata),
    }
}

/// Requires that a cluster's directory is a standby that has not passed the moment.
fn check_standby(
    session: &Session,
    settings: &Settings,
    (member, words): (&SetMember, &[String]),
) -> Result<()> {
    let pgdata = check_cluster(settings, member)?;
    let mut line = from_standby(&member.name, pgdata, words);
    line.push("--dry-run".to_owned());
    own::run(session, &line, Owner::of(pgdata)?).map(|_| ())
}

/// The words of pitr that let a standby recover.
pub(super) fn from_standby(name: &str, pgdata: &Path, words: &[String]) -> Vec<String> {
    let to = pgdata.to_string_lossy();
    let line = ["restore", "--cluster", name, "--to", &to, "--from-standby"];
    own::with(&line, words)
}

/// Requires what the steps of a member need, before the first of them; `deletes` tells whether files go that the backup lacks. Returns the data
/// directory of a cluster.
fn check(
    session: &Session,
    settings: &Settings,
    (member, words): (&SetMember, &[String]),
    deletes: bool,
) -> Result<Option<Old>> {
    match member.kind {
        MemberKind::Cluster => {
            let pgdata = check_cluster(settings, member)?;
            service::require_no_leftover(cluster(settings, &member.name)?)?;
            Old::look_beside(pgdata).map(Some)
        }
        MemberKind::Redis => {
            let redis = redis(settings, &member.name)?;
            Place::of(redis)?;
            if redis.service.stop.is_empty() || redis.service.start.is_empty() {
                return Err(lacking(member, "redis", "service.stop and service.start"));
            }
            loads::require(session, redis).map(|()| None)
        }
        MemberKind::Files => {
            trees::require_in_place(session, (member, words), deletes).map(|()| None)
        }
        MemberKind::Config => trees::require_opened(session, (member, words)).map(|()| None),
    }
}

impl Prepared {
    /// The name of the set.
    pub fn set(&self) -> &str {
        &self.set.name
    }

    /// Requires that the moment means one timeline in each cluster, or that one was named.
    ///
    /// # Errors
    /// `Refused`, before anything was changed.
    pub fn require_decided(&self) -> Result<()> {
        plan::require_decided(&self.undecided)
    }

    /// The steps, and what is known of them, before anything is done.
    ///
    /// # Errors
    /// Those of the record.
    pub fn shown(&self) -> Result<Report> {
        let mut steps = Vec::new();
        for (number, step) in self.record.steps.iter().enumerate() {
            let done = match &self.run {
                Some(run) => run.done(number)?,
                None => None,
            };
            steps.push(Done {
                step: ShownStep::of(step, self.work(step)),
                ms: done.and_then(|done| done["ms"].as_u64()),
            });
        }
        Ok(Report {
            set: self.set.name.clone(),
            run: self.run.as_ref().map(|run| run.record.id.clone()),
            plan: self.plan.clone(),
            erasures: self.erasures.clone(),
            after_stop: self.after_stop.clone(),
            outage: self.outage()?,
            steps,
            is_resumed: self.run.is_some(),
            is_complete: false,
            warnings: self.warnings(),
        })
    }

    fn warnings(&self) -> Vec<String> {
        let members = self.record.members.iter();
        let kept = members.filter_map(|one| Some(trees::told(&one.member, one.keeps.as_ref()?)));
        kept.collect()
    }

    /// The outage that is to be expected.
    fn outage(&self) -> Result<Outage> {
        let Some(plan) = &self.plan else {
            return Ok(Outage::default());
        };
        let is_late = |member: &SetMember| match member.kind {
            MemberKind::Cluster => self.after_stop.iter().any(|late| late.member == *member),
            MemberKind::Redis => false,
            MemberKind::Files | MemberKind::Config => true,
        };
        let (mut expected_ms, mut untimed) = (self.measured()?, Vec::new());
        for one in plan.members.iter().filter(|one| is_late(&one.member)) {
            match one.reached.as_ref().and_then(|reached| reached.ms) {
                Some(ms) => expected_ms = Some(expected_ms.unwrap_or(0) + ms),
                None => untimed.push(one.member.clone()),
            }
        }
        Ok(Outage {
            expected_ms,
            untimed,
            ms: None,
        })
    }

    /// The time that stops, exchanges of names and starts took in the newest complete run of the set; none where there is none.
    fn measured(&self) -> Result<Option<u64>> {
        let is_own = |record: &Record| record.set == self.set.name;
        let Some(run) = self.runs.newest(&is_own)? else {
            return Ok(None);
        };
        if run.end()?.is_none() {
            return Ok(None);
        }
        let steps = &run.record.steps;
        let has_aside = |name: &String| steps.contains(&Step::Aside(name.clone()));
        let is_short = |step: &Step| match step {
            Step::Replace(name) => has_aside(name),
            _ => true,
        };
        down(&run, &is_short).map(Some)
    }

    fn work<'p>(&'p self, step: &'p Step) -> Option<Work<'p>> {
        let work = Work::new((&self.settings, &self.set), &self.record, step)?;
        let consent = step.member().and_then(|member| self.consents.get(member));
        Some(work.with_consent(consent))
    }

    /// Carries the steps out that are not done.
    ///
    /// # Errors
    /// That of the step that failed: the same command goes on with it, and a rollback takes back what was done.
    pub fn carry_out(mut self, session: &Session) -> Result<Report> {
        let mut report = self.shown()?;
        let run = match self.run.take() {
            Some(run) => run,
            None => self.runs.begin(&session.host, self.record.clone())?,
        };
        fault::point("recover-recorded");
        report.run = Some(run.record.id.clone());
        self.stop_again(session, &run)?;
        for number in 0..run.record.steps.len() {
            let Some(step) = run.record.steps.get(number) else {
                break;
            };
            if run.done(number)?.is_some() {
                continue;
            }
            session.host.check_stop()?;
            session.host.progress.phase(&step.text(), None);
            let ms = self.one(session, &run, (number, step), &mut report.warnings);
            let ms = ms.map_err(|e| {
                let id = &run.record.id;
                e.context(step.text()).hint_last(&format!(
                    "Run {id} is recorded: run the same command again to go on, or take it back: pitr recover rollback {id} --confirm"
                ))
            })?;
            if let Some(done) = report.steps.get_mut(number) {
                done.ms = Some(ms);
            }
            fault::point(&format!("recover-done-{number}"));
        }
        run.write_end(&session.host, End::Complete)?;
        report.outage.ms = Some(lasted(&run)?);
        report.is_complete = true;
        Ok(report)
    }

    /// Stops once more what an interrupted run had stopped, as far as something is still to be put in place: the host may have started it meanwhile.
    fn stop_again(&self, session: &Session, run: &Run) -> Result<()> {
        for (number, step) in run.record.steps.iter().enumerate() {
            let Some(work) = self.work(step).filter(|_| step.is_stop()) else {
                continue;
            };
            if run.done(number)?.is_none() || self.is_replaced(run, step)? {
                continue;
            }
            session.host.progress.phase(&step.text(), None);
            let stopped = work.carry_out(session, (run, number), &json!({}), &mut Vec::new());
            stopped.map_err(|e| e.context(step.text()))?;
        }
        Ok(())
    }

    /// Whether all that a stop makes way for is in its place.
    fn is_replaced(&self, run: &Run, stop: &Step) -> Result<bool> {
        for (number, step) in run.record.steps.iter().enumerate() {
            let is_for_it = matches!(step, Step::Replace(member) if stop.member().is_none_or(|own| own == member));
            if is_for_it && run.done(number)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Requires, before anything is stopped and before a cluster is adopted, that nobody was erased since it was restored aside.
    fn require_erasures_known(
        &self,
        session: &Session,
        run: &Run,
        step: &Step,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let is_looked_at = |one: &&RecordedMember| match step {
            Step::StopApplications => true,
            Step::Adopt(member) => *member == one.member,
            _ => false,
        };
        for one in run.record.members.iter().filter(is_looked_at) {
            let member: SetMember = one.member.parse()?;
            if member.kind == MemberKind::Cluster {
                let about = (run, one.member.as_str());
                erasures::require_known(session, about, &self.skipped, warnings)?;
            }
        }
        Ok(())
    }

    fn one(
        &self,
        session: &Session,
        run: &Run,
        (number, step): (usize, &Step),
        warnings: &mut Vec<String>,
    ) -> Result<u64> {
        let Some(work) = self.work(step) else {
            return Err(err!(Internal, "a step of a member that is not recorded"));
        };
        self.require_erasures_known(session, run, step, warnings)?;
        let began = Instant::now();
        let begun = match run.begun(number)? {
            Some(begun) => begun,
            None => {
                let facts = work.before(session)?;
                run.write_begun(&session.host, number, &facts)?;
                facts
            }
        };
        fault::point(&format!("recover-begun-{number}"));
        let mut result = work.carry_out(session, (run, number), &begun, warnings)?;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !result.is_object() {
            result = json!({});
        }
        result["ms"] = Value::from(ms);
        result["ended_ms"] = Value::from(session.host.now().unix_micros().map(|at| at / 1000));
        fault::point(&format!("recover-worked-{number}"));
        run.write_done(&session.host, number, &result)?;
        Ok(ms)
    }
}

/// How long the applications were down, by the clock: the time between two tries of a step counts too.
fn lasted(run: &Run) -> Result<u64> {
    let steps = outage(&run.record.steps);
    let ended = |number: usize| -> Result<Option<(u64, u64)>> {
        let Some(done) = run.done(number)? else {
            return Ok(None);
        };
        let (ended, ms) = (done["ended_ms"].as_u64(), done["ms"].as_u64());
        Ok(ended.zip(ms))
    };
    let worked = down(run, &|_| true)?;
    let last = steps.end.saturating_sub(1);
    let (Some((stopped, ms)), Some((started, _))) = (ended(steps.start)?, ended(last)?) else {
        return Ok(worked);
    };
    // A clock that was set back makes it no shorter than the work.
    Ok((started + ms).saturating_sub(stopped).max(worked))
}

/// How long the steps of a run took during which the applications were down, as far as they count.
fn down(run: &Run, counts: &dyn Fn(&Step) -> bool) -> Result<u64> {
    let mut ms = 0;
    for number in outage(&run.record.steps) {
        if run.record.steps.get(number).is_some_and(counts)
            && let Some(done) = run.done(number)?
        {
            ms += done["ms"].as_u64().unwrap_or(0);
        }
    }
    Ok(ms)
}

/// The steps for some members of a set, without what it does not have.
pub(super) fn steps_with(
    set: &RecoverySet,
    members: &[SetMember],
    clusters: &Clusters,
) -> Vec<Step> {
    let mut steps = steps(members, clusters);
    steps.retain(|step| *step != Step::Hook || !set.hook.is_empty());
    steps
}

/// The record of a full recovery, for people who read about it beforehand.
pub(super) fn example(set: &RecoverySet) -> Record {
    let members = set.members.iter().map(|member| RecordedMember {
        member: member.to_string(),
        words: vec!["TARGET".to_owned()],
        position: None,
        bytes: None,
        keeps: None,
    });
    let clusters = set.members.iter();
    let aside = clusters.filter(|member| member.kind == MemberKind::Cluster);
    let clusters = Clusters {
        aside: aside.cloned().collect(),
        standbys: Vec::new(),
        erased: Vec::new(),
    };
    let steps = steps_with(set, &set.members, &clusters);
    Record::example(&set.name, members.collect(), steps)
}

/// The steps of a full recovery, likewise.
pub(super) fn steps_of(settings: &Settings, set: &RecoverySet) -> Vec<ShownStep> {
    let record = example(set);
    let shown = record
        .steps
        .iter()
        .map(|step| ShownStep::of(step, Work::new((settings, set), &record, step)));
    shown.collect()
}
