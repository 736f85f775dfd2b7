//! `pitr recover`: the steps of a plan, carried out and resumed.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::cache::Place;
use super::erasures::{self, Erasing};
use super::own::Owner;
use super::plan::{self, AskedRecovery, Planned};
use super::records;
use super::run::{End, Record, RecordedMember, Run, Runs};
use super::work::Work;
use super::{cluster, configured, redis};
use crate::config::{MemberKind, RecoverySet, SetMember, Settings};
use crate::err;
use crate::error::Result;
use crate::fault;
use crate::operate::erasure::apply::Consent;
use crate::operate::files_replace;
use crate::operate::session::Session;
use crate::plan::sets::{SetPlan, Step, steps};
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

/// A recovery, planned or carried out.
#[derive(Serialize)]
pub struct Report {
    /// The set.
    pub set: String,
    /// The run; none where it was only planned.
    pub run: Option<String>,
    /// The plan; none of a run that goes on: it was made before.
    pub plan: Option<SetPlan>,
    /// The erasures that clusters lack at the moment, which are repeated before anything is started.
    pub erasures: Vec<Erasing>,
    /// The steps.
    pub steps: Vec<Done>,
    /// Whether an earlier run goes on.
    pub is_resumed: bool,
    /// Whether all steps are done.
    pub is_complete: bool,
    /// Things that went less well than they should.
    pub warnings: Vec<String>,
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
    /// The operator's word about erasures, by member.
    consents: BTreeMap<String, Consent>,
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
            consents,
        });
    }
    let planned = plan::run(session, asked)?;
    planned.require()?;
    for member in planned.words.keys() {
        check(session, &settings, member)?;
    }
    let (erasures, consents) = erasures::of_plan(session, &planned.erasures, consent)?;
    let record = record(session, asked, words, &planned);
    Ok(Prepared {
        record,
        run: None,
        plan: Some(planned.plan),
        settings,
        set,
        runs,
        erasures,
        consents,
    })
}

fn record(session: &Session, asked: &AskedRecovery, words: &str, planned: &Planned) -> Record {
    let members: Vec<SetMember> = planned.words.keys().cloned().collect();
    let recorded = planned.plan.members.iter().map(|one| RecordedMember {
        member: one.member.to_string(),
        words: planned.words.get(&one.member).cloned().unwrap_or_default(),
        position: one
            .reached
            .as_ref()
            .and_then(|reached| reached.position.clone()),
    });
    let named = (planned.set.name.as_str(), asked.extent, words.to_owned());
    let erased: Vec<SetMember> = planned.erasures.keys().cloned().collect();
    let steps = steps(&members, &erased);
    Record::new(&session.host, named, recorded.collect(), steps)
}

/// Requires what the steps of a member need, before the first of them.
fn check(session: &Session, settings: &Settings, member: &SetMember) -> Result<()> {
    let lacking = |section: &str, key: &str| {
        err!(
            Config,
            "[{section}.{}] has no {key}, without which it cannot be recovered",
            member.name
        )
        .hint(format!("{UNCHANGED}\npitr recover test needs none of it."))
    };
    match member.kind {
        MemberKind::Cluster => {
            let cluster = cluster(settings, &member.name)?;
            let Some(pgdata) = &cluster.pgdata else {
                return Err(lacking("clusters", "pgdata"));
            };
            Owner::of(pgdata)?;
            Old::check_place(pgdata)?;
            if cluster.conninfo.is_none() {
                return Err(lacking("clusters", "conninfo"));
            }
            match cluster.service.stop.is_empty() || cluster.service.start.is_empty() {
                true => Err(lacking("clusters", "service.stop and service.start")),
                false => Ok(()),
            }
        }
        MemberKind::Redis => {
            let redis = redis(settings, &member.name)?;
            Place::of(redis)?;
            match redis.service.stop.is_empty() || redis.service.start.is_empty() {
                true => Err(lacking("redis", "service.stop and service.start")),
                false => Ok(()),
            }
        }
        MemberKind::Files => files_replace::source(session, &member.name).map(|_| ()),
        MemberKind::Config => Ok(()),
    }
}

impl Prepared {
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
                step: self.shown_step(step),
                ms: done.and_then(|done| done["ms"].as_u64()),
            });
        }
        Ok(Report {
            set: self.set.name.clone(),
            run: self.run.as_ref().map(|run| run.record.id.clone()),
            plan: self.plan.clone(),
            erasures: self.erasures.clone(),
            steps,
            is_resumed: self.run.is_some(),
            is_complete: false,
            warnings: Vec::new(),
        })
    }

    fn work<'p>(&'p self, step: &'p Step) -> Option<Work<'p>> {
        let work = Work::new((&self.settings, &self.set), &self.record, step)?;
        let consent = step.member().and_then(|member| self.consents.get(member));
        Some(work.with_consent(consent))
    }

    fn shown_step(&self, step: &Step) -> ShownStep {
        let work = self.work(step);
        ShownStep {
            step: step.text(),
            command: work.and_then(|work| work.command().ok().flatten()),
        }
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
                let hint = e.hint_text().map(|hint| format!("{hint}\n")).unwrap_or_default();
                let id = &run.record.id;
                e.context(step.text()).hint(format!(
                    "{hint}Run {id} is recorded: run the same command again to go on, or take it back: pitr recover rollback {id} --confirm"
                ))
            })?;
            if let Some(done) = report.steps.get_mut(number) {
                done.ms = Some(ms);
            }
            fault::point(&format!("recover-done-{number}"));
        }
        run.write_end(&session.host, End::Complete)?;
        report.is_complete = true;
        Ok(report)
    }

    /// Stops once more what an interrupted run had stopped, as far as something is still to be put in place: the host may have started it meanwhile.
    fn stop_again(&self, session: &Session, run: &Run) -> Result<()> {
        for (number, step) in run.record.steps.iter().enumerate() {
            let Some(work) = self.work(step).filter(|_| is_stop(step)) else {
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
        fault::point(&format!("recover-worked-{number}"));
        run.write_done(&session.host, number, &result)?;
        Ok(ms)
    }
}

fn is_stop(step: &Step) -> bool {
    matches!(step, Step::StopApplications | Step::Stop(_))
}

/// The steps of a full recovery, for people who read about it beforehand.
pub(super) fn steps_of(settings: &Settings, set: &RecoverySet) -> Vec<ShownStep> {
    let members = set.members.iter().map(|member| RecordedMember {
        member: member.to_string(),
        words: vec!["TARGET".to_owned()],
        position: None,
    });
    let steps = steps(&set.members, &[]);
    let record = Record::example(&set.name, members.collect(), steps);
    let shown = record.steps.iter().map(|step| {
        let work = Work::new((settings, set), &record, step);
        ShownStep {
            step: step.text(),
            command: work.and_then(|work| work.command().ok().flatten()),
        }
    });
    shown.collect()
}
