//! `pitr recover rollback`: what a run put in place goes aside, and what was there before comes back.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::cache::{Place, inode};
use super::commits::{self, Since};
use super::own::{self, Owner};
use super::records;
use super::recover::UNCHANGED;
use super::run::{End, Record, Run, Runs};
use super::work::{Work, control, healthy, optional, pgdata, standing, warn};
use super::{cluster, configured, redis, service, trees};
use crate::archive::datadir::DataDirectory;
use crate::config::{MemberKind, RecoverySet, SetMember, Settings};
use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::operate::session::Session;
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::plan::sets::Step;
use crate::restore::replace::WAITING;

/// A rollback that is asked for.
#[derive(Debug, Clone, Default)]
pub struct AskedBack {
    /// The set, for its configuration.
    pub set: Option<String>,
    /// The run; none: the newest.
    pub run: Option<String>,
    /// Whether what was written since may be lost.
    pub discards: bool,
    /// Whether it is carried out.
    pub is_confirmed: bool,
}

/// A rollback, planned or carried out.
#[derive(Serialize)]
pub struct RolledBack {
    pub run: String,
    /// The writes since the run.
    pub written: Vec<String>,
    /// The steps that are undone, in this order.
    pub steps: Vec<String>,
    /// Whether it was carried out.
    pub confirmed: bool,
    /// Things that went less well than they should.
    pub warnings: Vec<String>,
}

/// Takes a run back: what was there before it is in its place again, and what was restored is kept aside.
///
/// # Errors
/// `NotFound`; `Refused` when it was rolled back, when a later run stands, and when something was written since; that of the step that failed: the same command goes on.
pub fn rollback(session: &Session, asked: &AskedBack) -> Result<RolledBack> {
    let settings = session.settings_with_repositories()?;
    let (set, runs, run) = found(session, &settings, asked)?;
    let is_later =
        |record: &Record| record.id == run.record.id || record.shares_a_member(&run.record);
    let newer = runs.newest(&is_later)?;
    if let Some(newer) = newer.filter(|newer| newer.record.id != run.record.id) {
        return Err(err!(
            Refused,
            "run {} came after run {}",
            newer.record.id,
            run.record.id
        )
        .hint(format!(
            "{UNCHANGED} Only the newest run can be taken back."
        )));
    }
    if run.end()? == Some(End::RolledBack) {
        return Err(err!(Refused, "run {} was rolled back", run.record.id).hint(UNCHANGED));
    }
    let back = Back {
        session,
        settings: &settings,
        set,
        run: &run,
    };
    back.run(asked)
}

/// Returns the name of the set whose run is to be taken back.
///
/// # Errors
/// As [`rollback`], before anything was changed.
pub fn set_of(session: &Session, asked: &AskedBack) -> Result<String> {
    let settings = session.settings_with_repositories()?;
    found(session, &settings, asked).map(|(set, _, _)| set.name.clone())
}

/// Finds the run that is asked for, with the set whose commands it is taken back with.
fn found<'s>(
    session: &Session,
    settings: &'s Settings,
    asked: &AskedBack,
) -> Result<(&'s RecoverySet, Runs, Run)> {
    let mut places = Vec::new();
    let sets = match (&asked.set, &asked.run) {
        // A run has the name of its set.
        (None, Some(_)) if settings.sets.len() > 1 => settings.sets.iter().collect(),
        (named, _) => vec![configured(settings, named.as_deref())?],
    };
    let is_named = |record: &Record| asked.run.as_ref().is_none_or(|run| *run == record.id);
    for set in &sets {
        let runs = records::open(session, settings, set)?;
        let is_own = |record: &Record| is_named(record) && record.set == set.name;
        if let Some(run) = runs.newest(&is_own)? {
            let set = configured(settings, Some(&set.name))?;
            return Ok((set, runs, run));
        }
        let other = runs.newest(&is_named)?;
        if let Some(other) = other.filter(|_| asked.set.is_some() && asked.run.is_some()) {
            return Err(err!(
                Refused,
                "run {} is a recovery of set \"{}\", not of set \"{}\"",
                other.record.id,
                other.record.set,
                set.name
            )
            .hint(format!(
                "{UNCHANGED} It is taken back with the commands of its own set.\npitr recover rollback {} --confirm",
                other.record.id
            )));
        }
        places.push(runs.places());
    }
    let what = match &asked.run {
        Some(run) => format!("no run \"{}\" is recorded", run.escape_debug()),
        None => "no recovery is recorded on this host".to_owned(),
    };
    Err(err!(NotFound, "{what}").hint(format!(
        "{UNCHANGED} Records were looked for in {}. Another user may have recorded one elsewhere: run the command as the user of the recovery.",
        places.join(", ")
    )))
}

/// A run that goes back.
struct Back<'b> {
    session: &'b Session,
    settings: &'b Settings,
    set: &'b RecoverySet,
    run: &'b Run,
}

impl Back<'_> {
    fn run(&self, asked: &AskedBack) -> Result<RolledBack> {
        let is_going = self.run.back()?.is_some();
        let written = match is_going {
            true => Vec::new(),
            false => self.written(asked.discards)?,
        };
        let mut told = RolledBack {
            run: self.run.record.id.clone(),
            steps: self
                .replaced()?
                .iter()
                .rev()
                .map(|(_, work)| format!("take {} back", work.step.member().unwrap_or_default()))
                .collect(),
            written,
            confirmed: asked.is_confirmed,
            warnings: Vec::new(),
        };
        if !asked.is_confirmed {
            return Ok(told);
        }
        self.require_unwritten(&told.written, asked)?;
        if !is_going {
            self.begin(asked, &mut told.warnings)?;
        }
        fault::point("recover-back");
        self.stop(&|_| true)?;
        for (number, work) in self.replaced()?.into_iter().rev() {
            if self.run.is_undone(number)? {
                continue;
            }
            self.undo(number, &work, &mut told.warnings).map_err(|e| {
                e.context(format!(
                    "take {} back",
                    work.step.member().unwrap_or_default()
                ))
            })?;
            fault::point(&format!("recover-undone-{number}"));
            self.run.write_undone(&self.session.host, number)?;
        }
        self.start_all(&mut told.warnings)?;
        for (number, work) in self.begun(&|step| matches!(step, Step::FromStandby(_)))? {
            self.give_back(number, &work, &mut told.warnings)?;
        }
        if !self.begun(&|step| *step == Step::Hook)?.is_empty() {
            let limit = Some(service::SHORT);
            let told_them = optional(self.session, &self.log("hook"), &self.set.hook, limit);
            warn(&Step::Hook, told_them, &mut told.warnings)?;
        }
        let works = healthy(self.session, &self.log("health"), &self.set.health);
        warn(&Step::Health, works, &mut told.warnings)?;
        for (_, work) in self.begun(&|step| matches!(step, Step::Aside(_)))? {
            if work.is_cluster() {
                self.give_up(&work)?;
                continue;
            }
            Place::of(redis(self.settings, &work.member()?.name)?)?.discard()?;
            // A server that was started again begins a new history.
            if let Err(e) = own::run(self.session, &work.backing_up()?, None) {
                told.warnings
                    .push(format!("back {} up: {e}", work.member()?));
            }
        }
        self.run.write_end(&self.session.host, End::RolledBack)?;
        Ok(told)
    }

    /// Stops everything, and records that it goes back. Before that record everything is started again where it cannot.
    fn begin(&self, asked: &AskedBack, warnings: &mut Vec<String>) -> Result<()> {
        let begun = self
            .stop_unwritten(asked, warnings)
            .and_then(|timelines| self.run.write_back(&self.session.host, &timelines));
        begun.map_err(|e| {
            let mut sick = Vec::new();
            let started = match e.code() {
                // A command that starts something would be killed as well.
                Code::Interrupted => Err(None),
                _ => self.start_all(&mut sick).map_err(Some),
            };
            let left = match started {
                Ok(()) => sick.join("\n"),
                Err(None) => self.left_stopped(),
                Err(Some(why)) => format!("{}\n{why}", self.left_stopped()),
            };
            e.hint_last(&left)
        })
    }

    /// Stops everything, unless something was written. Returns the timelines that are left.
    fn stop_unwritten(&self, asked: &AskedBack, warnings: &mut Vec<String>) -> Result<Value> {
        // The writes of applications count until those are stopped, and commits until the clusters are.
        self.stop(&|step| *step == Step::StopApplications)?;
        self.require_unwritten(&self.written(asked.discards)?, asked)?;
        self.stop(&|step| matches!(step, Step::Stop(_)))?;
        self.require_unwritten(&self.written_to_clusters(asked.discards)?, asked)?;
        self.timelines(asked.discards, warnings)
    }

    /// Names what a rollback that did not begin leaves stopped.
    fn left_stopped(&self) -> String {
        let mut left = Vec::new();
        for (_, work) in self.begun(&Step::is_stop).unwrap_or_default() {
            let Some(member) = &work.member else {
                left.push("the applications".to_owned());
                continue;
            };
            let is_stopped = match member.kind {
                MemberKind::Cluster => {
                    cluster(self.settings, &member.name).is_ok_and(service::is_cluster_stopped)
                }
                // It names one too many rather than one too few.
                _ => redis(self.settings, &member.name)
                    .and_then(|redis| service::is_redis_stopped(self.session, redis))
                    .unwrap_or(true),
            };
            left.extend(is_stopped.then(|| member.to_string()));
        }
        format!("STOPPED, AND NOT STARTED AGAIN: {}", left.join(", "))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.run.log(99).with_file_name(format!("back-{name}.log"))
    }

    fn require_unwritten(&self, written: &[String], asked: &AskedBack) -> Result<()> {
        match written.is_empty() || asked.discards {
            true => Ok(()),
            false => Err(err!(
                Refused,
                "since run {} something was written: {}",
                self.run.record.id,
                written.join("; ")
            )
            .hint(format!(
                "What was written would be out of reach of the applications; it is kept aside.\npitr recover rollback {} --discard-changes --confirm",
                self.run.record.id
            ))),
        }
    }

    /// The steps that put something in its place, as far as they were begun, with their numbers.
    fn replaced(&self) -> Result<Vec<(usize, Work<'_>)>> {
        self.begun(&|step| matches!(step, Step::Replace(_)))
    }

    fn begun(&self, is_wanted: &dyn Fn(&Step) -> bool) -> Result<Vec<(usize, Work<'_>)>> {
        let mut found = Vec::new();
        for (number, step) in self.run.record.steps.iter().enumerate() {
            if is_wanted(step)
                && self.run.begun(number)?.is_some()
                && let Some(work) = Work::new((self.settings, self.set), &self.run.record, step)
            {
                found.push((number, work));
            }
        }
        Ok(found)
    }

    /// Finds what was written since the run, in words.
    fn written(&self, discards: bool) -> Result<Vec<String>> {
        let mut written = self.written_to_clusters(discards)?;
        written.extend(self.written_to(&|kind| kind != MemberKind::Cluster, discards)?);
        Ok(written)
    }

    /// Finds what was written to the members of such kinds.
    fn written_to(
        &self,
        is_wanted: &dyn Fn(MemberKind) -> bool,
        discards: bool,
    ) -> Result<Vec<String>> {
        let mut written = Vec::new();
        for (number, work) in self.replaced()? {
            let member = work.member()?;
            if !is_wanted(member.kind) {
                continue;
            }
            let found = match member.kind {
                MemberKind::Cluster => self.written_to_cluster(number, &work),
                MemberKind::Redis => self.written_to_redis(number, &work),
                MemberKind::Files | MemberKind::Config => self.written_to_tree(number, member),
            };
            written.extend(or_unknown(member, found, discards)?);
        }
        Ok(written)
    }

    fn written_to_tree(&self, number: usize, member: &SetMember) -> Result<Option<String>> {
        let kind = member.kind.section();
        let mut changed = 0;
        for run in self.tree_runs(number, member)? {
            let words = [kind, "rollback", &member.name, &run, "--dry-run"];
            let answer = own::run(self.session, &words, None)?;
            changed += answer.json["changed_count"].as_u64().unwrap_or(0);
        }
        Ok((changed > 0).then(|| format!("{changed} entries of {member} were changed")))
    }

    fn written_to_redis(&self, number: usize, work: &Work<'_>) -> Result<Option<String>> {
        let member = work.member()?;
        let redis = redis(self.settings, &member.name)?;
        let Some(baseline) = self.run.done_of(&Step::Start(member.to_string()))? else {
            return self.written_before_its_start(number, work);
        };
        let same = ["run_id", "changes", "saved"];
        let nothing_tells = |why: &str| {
            Ok(Some(format!(
                "{member} {why}, and nothing tells what was written to it"
            )))
        };
        match service::facts(self.session, redis) {
            Ok(now) if same.iter().all(|name| now[name] == baseline[name]) => Ok(None),
            Ok(now) if now["run_id"] != baseline["run_id"] => nothing_tells("was started again"),
            Ok(now) if now["saved"] != baseline["saved"] => {
                nothing_tells("was saved since, by its schedule or for a replica")
            }
            Ok(_) => Ok(Some(format!("{member} was written to"))),
            Err(e) if e.code() == Code::Unreachable => nothing_tells("does not answer"),
            Err(e) => Err(e),
        }
    }

    /// The run did not come to the end of its start: the host may have started it.
    fn written_before_its_start(&self, number: usize, work: &Work<'_>) -> Result<Option<String>> {
        let member = work.member()?;
        let redis = redis(self.settings, &member.name)?;
        let begun = self.run.begun(number)?.unwrap_or_default();
        if !Place::of(redis)?.is_exchanged(&begun)?
            || service::is_redis_stopped(self.session, redis)?
        {
            return Ok(None);
        }
        let aside = self.run.done_of(&Step::Aside(member.to_string()))?;
        let loaded = aside.unwrap_or_default()["loaded"].take();
        let same = ["lasting_keys", "changes"];
        Ok(match service::facts(self.session, redis) {
            Ok(now) if same.iter().all(|name| now[name] == loaded[name]) => None,
            _ => Some(format!(
                "{member} was started by somebody else, and nothing tells what was written to it"
            )),
        })
    }

    fn written_to_clusters(&self, discards: bool) -> Result<Vec<String>> {
        self.written_to(&|kind| kind == MemberKind::Cluster, discards)
    }

    fn written_to_cluster(&self, number: usize, work: &Work<'_>) -> Result<Option<String>> {
        let member = work.member()?;
        if !self.is_in_place(number, work)? {
            return Ok(None);
        }
        Ok(match self.since(work)? {
            Since::Commits(0) => None,
            Since::Commits(_) => Some(format!("transactions have committed in {member}")),
            Since::NotKnown => Some(format!(
                "nothing tells whether transactions committed in {member}: its WAL from the recovery on is neither in pg_wal nor in a repository"
            )),
        })
    }

    /// Whether what was restored is in the place of a cluster.
    fn is_in_place(&self, number: usize, work: &Work<'_>) -> Result<bool> {
        let data = pgdata(cluster(self.settings, &work.member()?.name)?)?;
        let begun = self.run.begun(number)?.unwrap_or_default();
        if self.run.done(number)?.is_some() {
            return Ok(true);
        }
        let there = inode(data)?;
        Ok(match (begun["new"].as_u64(), begun["old"].as_u64()) {
            (Some(new), _) => there == Some(new),
            // A cluster that is restored after the stop is there only when the old one is not any more.
            (None, Some(old)) => there.is_some_and(|there| there != old),
            // Runs of older versions do not tell.
            (None, None) => false,
        })
    }

    /// The timelines of the recovered clusters, by member: once they are out of place nothing tells them any more.
    fn timelines(&self, discards: bool, warnings: &mut Vec<String>) -> Result<Value> {
        let mut timelines = json!({});
        for (number, work) in self.replaced()? {
            let member = work.member()?;
            if member.kind != MemberKind::Cluster {
                continue;
            }
            match self.timeline_in_place(number, &work) {
                Ok(timeline) => {
                    timelines[member.to_string()] = json!(timeline.map(TimelineId::decimal));
                }
                Err(e) if discards && e.code() != Code::Interrupted => warnings.push(format!(
                    "nothing tells the timeline of {member}, which was not abandoned: {e}"
                )),
                Err(e) => return Err(e),
            }
        }
        Ok(timelines)
    }

    /// The timeline of a cluster that was recovered. It is that of before as long as nothing was exchanged: none.
    fn timeline_in_place(&self, number: usize, work: &Work<'_>) -> Result<Option<TimelineId>> {
        match self.is_in_place(number, work)? {
            true => self.timeline(work, pgdata(cluster(self.settings, &work.member()?.name)?)?),
            false => Ok(None),
        }
    }

    /// Counts the commits of a cluster since it was recovered. One that has not ended recovery has none.
    fn since(&self, work: &Work<'_>) -> Result<Since> {
        let data = pgdata(cluster(self.settings, &work.member()?.name)?)?;
        let Some((control, _)) = DataDirectory::at(data).control_with_bytes()? else {
            return Ok(Since::NotKnown);
        };
        let member = self.run.record.member(work.step);
        let planned = member.and_then(|member| member.position.as_deref());
        // The commits of erasures are no writes of anybody.
        let erased = self.run.done_of(&Step::Erase(work.member()?.to_string()))?;
        let position = erased.as_ref().and_then(|done| done["position"].as_str());
        let position = position.or(planned);
        let from = position.and_then(|text| text.parse::<Lsn>().ok());
        match (self.timeline(work, data)?, from) {
            // A cluster that was restored, and never ended recovery since.
            (None, _) => Ok(Since::Commits(0)),
            _ if is_recovering(&control) => Ok(Since::Commits(0)),
            (Some(timeline), Some(from)) => {
                let name = &work.member()?.name;
                let mut fetch = |segment| self.fetch(name, segment);
                commits::since(data, (timeline, from), &mut fetch)
            }
            (Some(_), None) => Ok(Since::NotKnown),
        }
    }

    /// Brings a segment from a repository into the folder of the run.
    fn fetch(&self, cluster: &str, segment: SegmentName) -> Result<Option<PathBuf>> {
        let name = segment.to_string();
        let to = self.log(&name);
        let shown = to.to_string_lossy();
        let words = ["wal", "fetch", &name, &shown, "--cluster", cluster];
        match own::run(self.session, &words, None) {
            Err(e) if e.code() == Code::NotFound => Ok(None),
            done => done.map(|_| Some(to)),
        }
    }

    /// The timeline of the recovered cluster: as its start recorded it, else the newest one whose history is in pg_wal. None where no server has taken
    /// writes in it.
    fn timeline(&self, work: &Work<'_>, data: &Path) -> Result<Option<TimelineId>> {
        let start = Step::Start(work.member()?.to_string());
        if let Some(done) = self.run.done_of(&start)? {
            let timeline = done["timeline"]
                .as_u64()
                .and_then(|n| u32::try_from(n).ok());
            return Ok(timeline.and_then(TimelineId::new));
        }
        let control = DataDirectory::at(data).control()?;
        if control.is_none_or(|control| is_recovering(&control)) || self.is_untouched(work, data)? {
            return Ok(None);
        }
        let entries = std::fs::read_dir(data.join("pg_wal"));
        let names = entries.into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let segments = names.filter_map(|name| name.parse::<SegmentName>().ok());
        Ok(segments.map(|segment| segment.timeline).max())
    }

    /// Whether no server was started in the recovered cluster since the run made it. Each start changes pg_control.
    fn is_untouched(&self, work: &Work<'_>, data: &Path) -> Result<bool> {
        if data.join("recovery.signal").exists() {
            return Ok(true);
        }
        let member = work.member()?.to_string();
        let (replace, erase) = (Step::Replace(member.clone()), Step::Erase(member.clone()));
        let erased = self.run.done_of(&erase)?;
        // Erasures are repeated by a server of the run, and its commits are nobody's.
        if erased.is_none() && self.run.has_begun(&erase)? && self.run.done_of(&replace)?.is_some()
        {
            return Ok(true);
        }
        let number = self.run.number_of(&replace);
        let begun = number.map(|number| self.run.begun(number)).transpose()?;
        let made = [erased, self.run.done_of(&replace)?, begun.flatten()];
        let made: Vec<Value> = made
            .into_iter()
            .flatten()
            .map(|mut of| of["control"].take())
            .filter(Value::is_string)
            .collect();
        // An adoption archives the history of the timeline on which erasures were repeated.
        let has_gone_on = self.run.has_begun(&Step::Start(member.clone()))?
            || self.run.has_begun(&Step::Adopt(member))?;
        match made.is_empty() {
            // Runs of older versions do not tell.
            true => Ok(!has_gone_on),
            false => Ok(!has_gone_on && made.contains(&control(data)?)),
        }
    }

    /// The restores in place of a step, oldest first. One that was killed behind its work was carried out again.
    fn tree_runs(&self, number: usize, member: &SetMember) -> Result<Vec<String>> {
        let done = self.run.done(number)?.unwrap_or_default();
        let before = self.run.begun(number)?.unwrap_or_default();
        let runs = trees::runs(self.session, member)?;
        let last = done["run"].as_str();
        // The clock may have been set back since the restores of before.
        let later = match before["there"].as_array() {
            Some(there) => {
                let is_there = |run: &str| there.iter().any(|one| one.as_str() == Some(run));
                runs.into_iter().filter(|run| !is_there(run)).collect()
            }
            None => trees::behind(runs, before["newest"].as_str()),
        };
        Ok(trees::of_step(later, last))
    }

    /// Makes a standby of a cluster again that had not been promoted. One that was stays as it is.
    fn give_back(&self, number: usize, work: &Work<'_>, warnings: &mut Vec<String>) -> Result<()> {
        let member = work.member()?;
        let cluster = cluster(self.settings, &member.name)?;
        let data = pgdata(cluster)?;
        let to = data.to_string_lossy();
        let name = &member.name;
        let words = ["restore", "--cluster", name, "--to", &to, "--from-standby"];
        let words = [&words[..], &["--undo", "--confirm"]].concat();
        let why = match own::run(self.session, &words, Owner::of(data)?) {
            Err(e) if e.code() == Code::Refused => Some(e.to_string()),
            done => done.map(|_| None)?,
        };
        // Once it is adopted nothing is left that could be taken back.
        if why.is_some() || !data.join("standby.signal").exists() {
            let why = why.unwrap_or_else(|| "it was promoted".to_owned());
            warnings.push(format!("{member} stays as it was recovered: {why}"));
            return Ok(());
        }
        let (_, start) = work.service()?;
        match service::is_cluster_stopped(cluster) {
            true => {
                let log = self.log(&format!("start-{number}"));
                service::command(self.session, &log, &start, None)
            }
            false => Ok(()),
        }
    }

    /// Removes what was restored beside a cluster, and did not take its place.
    fn give_up(&self, work: &Work<'_>) -> Result<()> {
        let name = &work.member()?.name;
        let data = pgdata(cluster(self.settings, name)?)?;
        let to = data.to_string_lossy();
        let words = ["restore", "--to", &to, "--aside", "--undo", "--confirm"];
        own::run(self.session, &words, Owner::of(data)?).map(|_| ())
    }

    fn undo(&self, number: usize, work: &Work<'_>, warnings: &mut Vec<String>) -> Result<()> {
        let member = work.member()?;
        match member.kind {
            MemberKind::Redis => {
                let begun = self.run.begun(number)?.unwrap_or_default();
                Place::of(redis(self.settings, &member.name)?)?.undo(&begun, &self.run.record.id)
            }
            MemberKind::Files | MemberKind::Config => {
                let (kind, name) = (member.kind.section(), member.name.as_str());
                for run in self.tree_runs(number, member)?.iter().rev() {
                    let words = [kind, "rollback", name, run];
                    let words = [&words[..], &["--confirm", "--discard-changes"]].concat();
                    match own::run(self.session, &words, None) {
                        Err(e) if e.code() == Code::NotFound => {}
                        done => drop(done?),
                    }
                }
                Ok(())
            }
            MemberKind::Cluster => self.undo_cluster(number, work, warnings),
        }
    }

    fn undo_cluster(
        &self,
        number: usize,
        work: &Work<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let name = &work.member()?.name;
        let data = pgdata(cluster(self.settings, name)?)?;
        let to = data.to_string_lossy();
        let before = self.run.begun(number)?.unwrap_or_default();
        // The record of a replacement that was there before the step is that of an earlier run: this one has not exchanged anything.
        let is_earlier = before["standing"].is_string() && before["standing"] == standing(&to)?;
        let words = ["restore", "--cluster", name, "--to", &to, "--undo"];
        let words = [&words[..], &["--discard-changes", "--confirm"]].concat();
        let undone = match is_earlier {
            true => None,
            false => match own::run(self.session, &words, Owner::of(data)?) {
                Err(e) if e.code() == Code::NotFound => None,
                done => Some(done?),
            },
        };
        // Nothing was exchanged yet, or an earlier attempt has exchanged it back.
        if undone.is_none() {
            self.tell_waiting(work, &to, warnings);
        }
        let back = self.run.back()?.unwrap_or_default();
        let Some(timeline) = back[name.as_str()].as_u64() else {
            return Ok(());
        };
        let timeline = timeline.to_string();
        let reason = format!("rollback of run {}", self.run.record.id);
        let words = ["timeline", "abandon", &timeline, "--cluster", name];
        let words = [&words[..], &["--reason", &reason, "--confirm"]].concat();
        if let Err(e) = own::run(self.session, &words, None) {
            if e.code() == Code::Interrupted {
                return Err(e);
            }
            // One of which nothing was archived is known to no repository.
            warnings.push(format!(
                "timeline {timeline} of cluster \"{name}\" was not abandoned: {e}"
            ));
        }
        Ok(())
    }

    /// Names a copy that was restored after the stop, and did not take its place.
    fn tell_waiting(&self, work: &Work<'_>, to: &str, warnings: &mut Vec<String>) {
        let waiting = format!("{to}.{WAITING}");
        if !work.is_aside() && Path::new(&waiting).exists() {
            warnings.push(format!(
                "\"{waiting}\" is what was restored so far: remove it before another recovery"
            ));
        }
    }

    /// Stops what is wanted of all that a run stops, as far as it came to that.
    fn stop(&self, is_wanted: &dyn Fn(&Step) -> bool) -> Result<()> {
        let stops = self.begun(&|step| step.is_stop() && is_wanted(step))?;
        for (number, work) in stops {
            match work.step {
                Step::StopApplications => {
                    optional(self.session, &self.log("stop"), &self.set.stop, None)?;
                }
                _ => {
                    work.stop(self.session, &self.log(&format!("stop-{number}")))?;
                }
            }
        }
        Ok(())
    }

    /// Starts it again, databases first. Applications are no member: where they do not start, that is a warning, and the rollback goes on.
    fn start_all(&self, warnings: &mut Vec<String>) -> Result<()> {
        let stops = self.begun(&Step::is_stop)?;
        for (number, work) in stops.into_iter().rev() {
            let log = self.log(&format!("start-{number}"));
            match &work.member {
                None => {
                    let started = optional(self.session, &log, &self.set.start, None);
                    warn(&Step::StartApplications, started, warnings)?;
                }
                Some(member) => {
                    let started = work.start(self.session, &log);
                    started.map_err(|e| e.context(format!("start {member} again")))?;
                }
            }
        }
        Ok(())
    }
}

/// A question that fails keeps nothing from its end where all of it may be lost.
fn or_unknown(
    member: &SetMember,
    found: Result<Option<String>>,
    discards: bool,
) -> Result<Option<String>> {
    found.or_else(|e| match (e.code(), discards) {
        (Code::Interrupted, _) => Err(e),
        (_, true) => Ok(Some(format!(
            "nothing tells what was written to {member}: {e}"
        ))),
        (_, false) => Err(e
            .context(format!("look for what was written to {member}"))
            .hint_last("--discard-changes goes back without an answer.")),
    })
}

fn is_recovering(control: &ControlFile) -> bool {
    matches!(
        control.state,
        ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery
    )
}
