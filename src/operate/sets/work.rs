//! One step of a recovery: its command, what it looks at before, and how it is carried out.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cache::{Place, inode};
use super::loads::{self, Loads};
use super::own::{self, Owner};
use super::recover::from_standby;
use super::run::{Record, RecordedMember, Run};
use super::{cluster, erasures, redis, service, trees};
use crate::archive::datadir::DataDirectory;
use crate::config::{Cluster, MemberKind, RecoverySet, SetMember, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::operate::erasure::apply::{self, Consent};
use crate::operate::human;
use crate::operate::session::Session;
use crate::plan::sets::Step;
use crate::restore::replace::{self, WAITING};

/// A step with all that it needs.
pub struct Work<'p> {
    settings: &'p Settings,
    set: &'p RecoverySet,
    record: &'p Record,
    pub step: &'p Step,
    pub member: Option<SetMember>,
    words: &'p [String],
    /// The operator's word about erasures.
    consent: Option<&'p Consent>,
}

impl<'p> Work<'p> {
    pub fn new(
        (settings, set): (&'p Settings, &'p RecoverySet),
        record: &'p Record,
        step: &'p Step,
    ) -> Option<Work<'p>> {
        let (member, words): (Option<SetMember>, &[String]) = match step.member() {
            None => (None, &[]),
            Some(text) => (Some(text.parse().ok()?), &record.member(step)?.words),
        };
        Some(Work {
            settings,
            set,
            record,
            step,
            member,
            words,
            consent: None,
        })
    }

    /// The same with the operator's word about erasures.
    pub fn with_consent(self, consent: Option<&'p Consent>) -> Work<'p> {
        Work { consent, ..self }
    }

    pub fn member(&self) -> Result<&SetMember> {
        let none = || err!(Internal, "a step without a member");
        self.member.as_ref().ok_or_else(none)
    }

    fn recorded(&self) -> Option<&RecordedMember> {
        self.record.member(self.step)
    }

    /// Whether the step works on a cluster.
    pub fn is_cluster(&self) -> bool {
        let member = self.member.as_ref();
        member.is_some_and(|member| member.kind == MemberKind::Cluster)
    }

    /// The words of its member's target on a command line.
    pub fn target(&self) -> &'p [String] {
        self.words
    }

    /// Whether owners and the like can be made as they were.
    pub fn is_privileged() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// The words of pitr that put the member in its place; none where that is done by renames.
    fn replacing(&self) -> Result<Option<Vec<String>>> {
        let member = self.member()?;
        let name = member.name.as_str();
        let mut words = match member.kind {
            MemberKind::Cluster => {
                let to = self.pgdata()?;
                let mut words = own::words(&["restore", "--cluster", name, "--to", &to]);
                if self.is_aside() {
                    words.extend(own::words(&["--switch", "--confirm"]));
                    return Ok(Some(words));
                }
                words.push("--replace".to_owned());
                if !self.has_step(&Step::Adopt) {
                    words.push("--adopt".to_owned());
                }
                words
            }
            MemberKind::Redis => return Ok(None),
            MemberKind::Files => {
                let mut words = own::words(&["files", "restore", name, "--in-place"]);
                if self.recorded().is_none_or(|one| one.keeps.is_none()) {
                    words.push("--delete".to_owned());
                }
                words
            }
            MemberKind::Config => own::words(&["config", "restore", name, "--in-place"]),
        };
        let is_tree = matches!(member.kind, MemberKind::Files | MemberKind::Config);
        if is_tree && Work::is_privileged() {
            words.push("--privileged".to_owned());
        }
        words.extend(self.words.iter().cloned());
        words.push("--confirm".to_owned());
        Ok(Some(words))
    }

    /// The data directory of a cluster, as a word.
    fn pgdata(&self) -> Result<String> {
        let cluster = cluster(self.settings, &self.member()?.name)?;
        Ok(pgdata(cluster)?.to_string_lossy().into_owned())
    }

    /// Whether the run has a step for the member.
    pub fn has_step(&self, step: &dyn Fn(String) -> Step) -> bool {
        let wanted = self.step.member().map(|member| step(member.to_owned()));
        wanted.is_some_and(|wanted| self.record.steps.contains(&wanted))
    }

    /// Whether a cluster is restored aside, before anything is stopped.
    pub fn is_aside(&self) -> bool {
        self.has_step(&Step::Aside)
    }

    /// The words of pitr that restore a cluster aside.
    fn restoring_aside(&self) -> Result<Vec<String>> {
        let (name, to) = (&self.member()?.name, self.pgdata()?);
        let words = ["restore", "--cluster", name, "--to", &to, "--aside"];
        Ok(own::with(&words, self.words))
    }

    /// The directory of a cluster in which erasures are repeated.
    fn erased(&self) -> Result<String> {
        let pgdata = self.pgdata()?;
        Ok(match self.is_aside() {
            true => format!("{pgdata}.{WAITING}"),
            false => pgdata,
        })
    }

    /// The words of pitr that let the standby recover.
    fn recovering(&self) -> Result<Vec<String>> {
        let name = &self.member()?.name;
        let mut words = from_standby(name, pgdata(cluster(self.settings, name)?)?, self.words);
        words.push("--confirm".to_owned());
        Ok(words)
    }

    /// The words of pitr that let the copy archive.
    fn adopting(&self) -> Result<Vec<String>> {
        let (name, to) = (&self.member()?.name, self.pgdata()?);
        let line = ["adopt", "--cluster", name, "--pgdata", &to, "--confirm"];
        Ok(own::words(&line))
    }

    /// The words of pitr that repeat erasures.
    fn erasing(&self) -> Result<Vec<String>> {
        let (name, to) = (&self.member()?.name, self.erased()?);
        Ok(erasures::applying(name, &to, self.consent))
    }

    /// The command of the step, as an operator would type it.
    pub fn command(&self) -> Result<Option<String>> {
        let line = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
        Ok(match self.step {
            Step::StopApplications => line(&self.set.stop),
            Step::StartApplications => line(&self.set.start),
            Step::Hook => line(&self.set.hook),
            Step::Health => line(&self.set.health),
            Step::Stop(_) => line(&self.service()?.0),
            Step::Start(_) => line(&self.service()?.1),
            Step::Replace(_) => self.replacing()?.map(|words| own::line(&words)),
            Step::Erase(_) => Some(own::line(&self.erasing()?)),
            Step::Adopt(_) => Some(own::line(&self.adopting()?)),
            Step::Aside(_) if self.is_cluster() => Some(own::line(&self.restoring_aside()?)),
            Step::FromStandby(_) => Some(own::line(&self.recovering()?)),
            Step::Aside(_) => {
                let words = ["redis", "restore", &self.member()?.name];
                Some(own::line(&own::with(&words, self.words)))
            }
            Step::Backup(_) => Some(own::line(&self.backing_up()?)),
        })
    }

    pub fn backing_up(&self) -> Result<Vec<String>> {
        let name = self.member()?.name.as_str();
        Ok(match self.is_cluster() {
            true => own::words(&["backup", "--cluster", name]),
            false => own::words(&["redis", "backup", name]),
        })
    }

    /// The commands that stop and start the member's service.
    pub fn service(&self) -> Result<(Vec<String>, Vec<String>)> {
        let member = self.member()?;
        let service = match member.kind {
            MemberKind::Cluster => &cluster(self.settings, &member.name)?.service,
            MemberKind::Redis => &redis(self.settings, &member.name)?.service,
            _ => return Err(err!(Internal, "files have no service")),
        };
        Ok((service.stop.clone(), service.start.clone()))
    }

    /// Looks at what the undo of the step needs, before anything changes.
    pub fn before(&self, session: &Session) -> Result<Value> {
        match self.step {
            Step::Aside(_) if !self.is_cluster() => {
                Place::of(redis(self.settings, &self.member()?.name)?)?.require_free()?;
                Ok(json!({}))
            }
            Step::Replace(_) => match self.member()?.kind {
                MemberKind::Cluster => {
                    let waiting = self.erased()?;
                    let new = match self.is_aside() {
                        true => inode(Path::new(&waiting))?,
                        false => None,
                    };
                    Ok(json!({
                        "standing": standing(&self.pgdata()?)?,
                        "old": inode(Path::new(&self.pgdata()?))?,
                        "control": control(Path::new(&waiting))?,
                        "new": new,
                    }))
                }
                MemberKind::Redis => {
                    Place::of(redis(self.settings, &self.member()?.name)?)?.before()
                }
                MemberKind::Files | MemberKind::Config => {
                    let there = trees::runs(session, self.member()?)?;
                    Ok(json!({ "newest": there.last(), "there": there }))
                }
            },
            _ => Ok(json!({})),
        }
    }

    pub fn carry_out(
        &self,
        session: &Session,
        (run, number): (&Run, usize),
        begun: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<Value> {
        let log = run.log(number);
        match self.step {
            Step::Aside(_) if self.is_cluster() => {
                self.run_foreseen(session, &self.restoring_aside()?)
            }
            Step::Aside(_) => {
                let redis = redis(self.settings, &self.member()?.name)?;
                Place::of(redis)?.aside(session, redis, self.words)
            }
            Step::FromStandby(_) => {
                self.stop(session, &log)?;
                self.run_foreseen(session, &self.recovering()?)
            }
            Step::StopApplications => optional(session, &log, &self.set.stop, None),
            Step::StartApplications => optional(session, &log, &self.set.start, None),
            Step::Hook => {
                // The members run: an operator can lead users to them by hand.
                let told = optional(session, &log, &self.set.hook, Some(service::SHORT));
                warn(self.step, told, warnings).map(|_| json!({}))
            }
            Step::Health => healthy(session, &log, &self.set.health),
            Step::Stop(_) => self.stop(session, &log),
            Step::Start(_) => {
                let facts = self.start(session, &log)?;
                if !self.is_cluster() {
                    self.require_loaded(session, (run, &facts), warnings)?;
                }
                Ok(facts)
            }
            Step::Replace(_) => {
                // Somebody may have started it since the step that stopped it: a server would go on with files that are out of place.
                if matches!(self.member()?.kind, MemberKind::Cluster | MemberKind::Redis) {
                    self.stop(session, &log)?;
                }
                self.replace(session, begun, warnings)
            }
            Step::Erase(_) => {
                if !self.is_aside() {
                    self.stop(session, &log)?;
                }
                self.erase(session)
            }
            Step::Adopt(_) => {
                self.stop(session, &log)?;
                let owner = Owner::of(Path::new(&self.pgdata()?))?;
                own::run(session, &self.adopting()?, owner).map(|_| json!({}))
            }
            Step::Backup(_) => {
                // The recovery is complete without it; what comes until the next one cannot be restored.
                let owner = match self.is_cluster() {
                    true => Owner::of(Path::new(&self.pgdata()?))?,
                    false => None,
                };
                let taken = own::run(session, &self.backing_up()?, owner);
                let taken = warn(self.step, taken, warnings)?;
                Ok(taken.map_or(json!({}), |answer| json!({ "backup": answer.json["id"] })))
            }
        }
    }

    pub fn stop(&self, session: &Session, log: &Path) -> Result<Value> {
        let member = self.member()?;
        let (stop, _) = self.service()?;
        match member.kind {
            MemberKind::Cluster => {
                let cluster = cluster(self.settings, &member.name)?;
                // The service knows nothing of a server that erased, and whose run was killed.
                if let Ok(data) = pgdata(cluster)?.canonicalize() {
                    apply::end_left_behind(&data)?;
                }
                if !service::is_cluster_stopped(cluster) {
                    service::command(session, log, &stop, None)?;
                }
                service::wait_cluster_stopped(session, cluster)?;
            }
            _ => {
                let redis = redis(self.settings, &member.name)?;
                let is_stopped = service::is_redis_stopped(session, redis)?;
                // Without Sentinels nothing tells whether the server runs: its service is asked to stop it in any case.
                let is_unknown = is_stopped && redis.address.is_none();
                if is_unknown || !is_stopped {
                    match service::command(session, log, &stop, None) {
                        Err(e) if is_unknown && e.code() == Code::SourceMissing => {}
                        done => done?,
                    }
                }
                service::wait_redis_stopped(session, redis)?;
            }
        }
        Ok(json!({}))
    }

    pub fn start(&self, session: &Session, log: &Path) -> Result<Value> {
        let member = self.member()?;
        let (_, start) = self.service()?;
        match member.kind {
            MemberKind::Cluster => {
                let cluster = cluster(self.settings, &member.name)?;
                if service::is_cluster_stopped(cluster) {
                    service::command(session, log, &start, None)?;
                }
                service::wait_cluster_started(session, cluster)
            }
            _ => {
                let redis = redis(self.settings, &member.name)?;
                if service::is_redis_stopped(session, redis)? {
                    service::command(session, log, &start, None)?;
                }
                service::wait_redis_started(session, redis)
            }
        }
    }

    /// A server that is configured to load something else starts without a word.
    fn require_loaded(
        &self,
        session: &Session,
        (run, facts): (&Run, &Value),
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let text = self.member()?.to_string();
        let Some(done) = run.done_of(&Step::Aside(text.clone()))? else {
            return Ok(());
        };
        let redis = redis(self.settings, &self.member()?.name)?;
        let loads = loads::ask(session, redis)?;
        match &loads {
            Loads::Own => {}
            Loads::Other(why) => {
                return Err(err!(
                    Refused,
                    "{text} was started on other files than those that were restored: {why}"
                )
                .hint("Stop the server, have it load service.data_directory with the names that Redis gives by itself, and run the same command again."));
            }
            Loads::Untold(why) => warnings.push(format!(
                "the number of its keys alone tells that {text} has loaded what was restored: {why}"
            )),
        }
        let count = |of: &Value| of["lasting_keys"].as_u64().unwrap_or(0);
        let (wanted, found) = (count(&done["loaded"]), count(facts));
        if wanted == found {
            return Ok(());
        }
        // Clients may have written by now, to a server that loads the right directory.
        if found > 0 && matches!(loads, Loads::Own) {
            warnings.push(format!(
                "{text} has {found} keys that do not expire, and {wanted} were restored: clients have written since it was started"
            ));
            return Ok(());
        }
        Err(err!(
            Refused,
            "{text} was started with {found} keys that do not expire, and {wanted} were restored"
        )
        .hint("The server loads another directory, or files of other names: dir, appenddirname, appendfilename and dbfilename must lead to service.data_directory, with the names that Redis gives by itself. Or clients have written already: CONFIG GET dir, for which pitr needs +config|get, would tell."))
    }

    fn replace(
        &self,
        session: &Session,
        begun: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<Value> {
        let member = self.member()?;
        let Some(words) = self.replacing()? else {
            let place = Place::of(redis(self.settings, &member.name)?)?;
            return place.exchange(begun, &self.record.id);
        };
        let owner = match member.kind {
            MemberKind::Cluster => Owner::of(pgdata(cluster(self.settings, &member.name)?)?)?,
            _ => None,
        };
        let answer = own::run(session, &words, owner)?;
        self.require_foreseen(&answer.json)?;
        if answer.has_warned {
            warnings.push(format!(
                "{}: not everything could be made as it was",
                self.step.text()
            ));
        }
        let control = match self.is_cluster() {
            true => control(Path::new(&self.pgdata()?))?,
            false => Value::Null,
        };
        Ok(json!({ "run": answer.json["run"], "control": control }))
    }

    /// Runs a command on the cluster as its owner; it may meet no erasure that the plan lacks.
    fn run_foreseen(&self, session: &Session, words: &[String]) -> Result<Value> {
        let owner = Owner::of(Path::new(&self.pgdata()?))?;
        let known = erasures::known(session, &self.member()?.name)?;
        let answer = own::run(session, words, owner)?;
        self.require_foreseen(&answer.json)?;
        Ok(json!({ (erasures::KNOWN): known }))
    }

    /// Requires that the plan has foreseen the erasures that a cluster lacks: one may have been recorded since it was made.
    fn require_foreseen(&self, answer: &Value) -> Result<()> {
        let count = answer["erasures"]["count"].as_u64().unwrap_or(0);
        if count == 0 || !self.is_cluster() || self.has_step(&Step::Erase) {
            return Ok(());
        }
        Err(err!(
            Refused,
            "{} of the list became known since this run was planned, and cluster \"{}\" lacks them",
            human::count(count, "erasure"),
            self.member()?.name
        )
        .hint("Nothing was started. Take the run back, and begin a new one: its plan has them."))
    }

    /// Repeats erasures in the cluster, which is not started yet. The position behind them tells them from what others commit later.
    fn erase(&self, session: &Session) -> Result<Value> {
        let (name, to) = (&self.member()?.name, self.erased()?);
        let data = Path::new(&to);
        let known = erasures::known(session, name)?;
        let answer = own::run(session, &self.erasing()?, Owner::of(data)?)
            .map_err(|e| e.hint_last(&erasures::next(name, self.is_aside())))?;
        let found = DataDirectory::at(data).control()?;
        let found = found.ok_or_else(|| err!(Damaged, "\"{to}\" has no pg_control"))?;
        Ok(json!({
            "position": found.checkpoint.to_string(),
            "control": control(data)?,
            "erasures": answer.json["erasures"],
            (erasures::KNOWN): known,
        }))
    }
}

/// BLAKE3 of the record of a replacement at a data directory, by which one that was begun later is told from it; null where there is none.
pub fn standing(pgdata: &str) -> Result<Value> {
    let path = replace::record_of(Path::new(pgdata));
    match std::fs::read(&path) {
        Ok(bytes) => Ok(hashed(&bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(Error::from_io(format!("read \"{}\"", path.display()), e)),
    }
}

/// BLAKE3 of a data directory's pg_control, which every start of a server changes; null where there is none.
pub fn control(data: &Path) -> Result<Value> {
    let found = DataDirectory::at(data).control_with_bytes()?;
    Ok(found.map_or(Value::Null, |(_, bytes)| hashed(&bytes)))
}

fn hashed(bytes: &[u8]) -> Value {
    Value::from(blake3::hash(bytes).to_hex().to_string())
}

pub fn pgdata(cluster: &Cluster) -> Result<&Path> {
    let none = || err!(Config, "[clusters.{}] has no pgdata", cluster.name);
    cluster.pgdata.as_deref().ok_or_else(none)
}

/// Runs a command of the set, where there is one.
pub fn optional(
    session: &Session,
    log: &Path,
    words: &[String],
    limit: Option<Duration>,
) -> Result<Value> {
    if !words.is_empty() {
        service::command(session, log, words, limit)?;
    }
    Ok(json!({}))
}

/// Makes a failure of a step a warning; an interruption stays one.
pub fn warn<T>(step: &Step, done: Result<T>, warnings: &mut Vec<String>) -> Result<Option<T>> {
    match done {
        Err(e) if e.code() == Code::Interrupted => Err(e),
        Err(e) => {
            warnings.push(format!("{}: {e}", step.text()));
            Ok(None)
        }
        Ok(done) => Ok(Some(done)),
    }
}

/// Asks until the applications work: they take a while to start.
pub fn healthy(session: &Session, log: &Path, words: &[String]) -> Result<Value> {
    const ATTEMPTS: u32 = 30;
    const PAUSE: Duration = Duration::from_secs(1);
    let began = Instant::now();
    for attempt in 1.. {
        match optional(session, log, words, Some(service::SHORT)) {
            Err(e)
                if e.code() == Code::SourceMissing
                    && attempt < ATTEMPTS
                    && began.elapsed() < fault::shortened(service::SHORT) =>
            {
                session.host.check_stop()?;
                std::thread::sleep(fault::shortened(PAUSE));
            }
            answer => return answer,
        }
    }
    Ok(json!({}))
}
