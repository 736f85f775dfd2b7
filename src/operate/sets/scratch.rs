//! `pitr recover test`: every member comes back into a folder that is thrown away, and is looked at.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::own::{self, Owner};
use super::plan::{self, AskedRecovery, Planned};
use super::{cache, cluster};
use crate::config::{MemberKind, SetMember, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::private_folder;
use crate::operate::redis::scratch::require_modules;
use crate::operate::session::Session;
use crate::plan::sets::SetPlan;
use crate::redis::member::Member;

/// A member that was tried.
#[derive(Debug, Serialize)]
pub struct Tried {
    pub member: SetMember,
    /// Why it failed; none where it passed.
    pub failed: Option<String>,
    pub command: String,
    /// How long it took.
    pub ms: u64,
    /// The answer of the command.
    pub answer: Value,
}

/// The result of a test.
#[derive(Serialize)]
pub struct Tested {
    pub set: String,
    pub plan: SetPlan,
    /// Whether every member passed.
    pub passed: bool,
    /// The members; none where the test was only planned.
    pub members: Vec<Tried>,
    /// Things that the test could not try.
    pub warnings: Vec<String>,
}

/// Plans a test.
///
/// # Errors
/// Those of [`plan::run`]; `OutOfReach`.
pub fn prepare(session: &Session, asked: &AskedRecovery) -> Result<(Planned, Tested)> {
    let planned = plan::run(session, asked)?;
    planned.require()?;
    let tested = Tested {
        set: planned.set.name.clone(),
        plan: planned.plan.clone(),
        passed: false,
        members: Vec::new(),
        warnings: Vec::new(),
    };
    Ok((planned, tested))
}

/// Restores each member into a folder below `dir`, which is removed in the end. A cluster is drilled: its server recovers, and is checked.
///
/// # Errors
/// Those of the folder; `Interrupted`. A member that fails is a result.
pub fn run(
    session: &Session,
    (planned, mut tested): (Planned, Tested),
    dir: Option<&Path>,
) -> Result<Tested> {
    let settings = session.settings()?;
    let below = dir.map_or_else(|| session.host.scratch.clone(), Path::to_owned);
    let doing = || format!("make a folder in \"{}\"", below.display());
    let folder = private_folder(&below, "pitr-recover-").map_err(|e| Error::from_io(doing(), e))?;
    tested.passed = true;
    for (member, target) in &planned.words {
        session.host.progress.phase(&format!("test {member}"), None);
        let began = Instant::now();
        let work = Work {
            session,
            settings: &settings,
            member,
            data_set: planned.data_sets.get(member),
            place: folder
                .path()
                .join(format!("{}-{}", member.kind.section(), member.name)),
            dir,
        };
        let mut words = work.words(target);
        let mut done = work.run(&words);
        if let Err(e) = &done
            && work.lacks_key(e)
        {
            tested.warnings.push(format!(
                "{member} was tested without its secrets: no secrets_key is configured, and a recovery in place is refused without one"
            ));
            words.push("--redacted".to_owned());
            done = work.run(&words);
        }
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (failed, answer) = match done {
            Ok(answer) => (None, answer),
            Err(e) if e.code() == Code::Interrupted => return Err(e),
            Err(e) => (Some(e.to_string()), Value::Null),
        };
        tested.passed &= failed.is_none();
        tested.members.push(Tried {
            member: member.clone(),
            failed,
            command: own::line(&words),
            ms,
            answer,
        });
    }
    let path = folder.path().to_owned();
    let removed = folder.close();
    removed.map_err(|e| Error::from_io(format!("remove \"{}\"", path.display()), e))?;
    Ok(tested)
}

struct Work<'w> {
    session: &'w Session,
    settings: &'w Settings,
    member: &'w SetMember,
    /// The backup of a Redis server.
    data_set: Option<&'w Member>,
    place: PathBuf,
    dir: Option<&'w Path>,
}

impl Work<'_> {
    fn words(&self, target: &[String]) -> Vec<String> {
        let name = self.member.name.as_str();
        let to = self.place.to_string_lossy();
        let dir = self.dir.map(Path::to_string_lossy);
        match (self.member.kind, &dir) {
            (MemberKind::Cluster, None) => own::with(&["drill", "--cluster", name], target),
            (MemberKind::Cluster, Some(dir)) => {
                own::with(&["drill", "--cluster", name, "--dir", dir], target)
            }
            (kind, _) => own::with(&[kind.section(), "restore", name, "--to", &to], target),
        }
    }

    /// Whether configuration has secrets, and the host no key of their pair.
    fn lacks_key(&self, failed: &Error) -> bool {
        let mut repositories = self.settings.repositories.iter();
        self.member.kind == MemberKind::Config
            && failed.code() == Code::Key
            && !repositories.any(|repository| repository.secrets_key_file().is_some())
    }

    fn run(&self, words: &[String]) -> Result<Value> {
        let owner = match self.member.kind {
            // Drills refuse root.
            MemberKind::Cluster => {
                let pgdata = cluster(self.settings, &self.member.name)?.pgdata.as_deref();
                let there = pgdata.filter(|pgdata| pgdata.is_dir());
                there.map(Owner::of).transpose()?.flatten()
            }
            _ => None,
        };
        if let Some(data_set) = self.data_set {
            require_modules(self.session, data_set)?;
        }
        let mut answer = own::run(self.session, words, owner)?.json;
        if self.member.kind == MemberKind::Redis {
            answer["loaded"] = cache::load(self.session, &self.place, &answer, None)?;
            return Ok(answer);
        }
        if self.member.kind == MemberKind::Cluster && answer["passed"] == Value::Bool(false) {
            return Err(err!(Findings, "recovery of \"{}\" is broken", self.member));
        }
        Ok(answer)
    }
}
