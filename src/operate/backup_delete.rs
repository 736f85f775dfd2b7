//! The deletion of one backup, of a cluster or of other content, because a person asks for it.

use std::time::Duration;

use serde::Serialize;

use super::failures::Failures;
use super::found::Found;
use super::of::Of;
use super::reading::Reading;
use super::retention::{Rules, Unread, commands};
use super::session::Session;
use super::unproven;
use crate::config::{self, Retention};
use crate::err;
use crate::error::{Code, Result};
use crate::expire::scope::ExpireScope;
use crate::expire::{Expire, Leftovers, Links, Outcome};
use crate::host::Host;
use crate::pg::segment::{SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::retention::log::Gone;
use crate::plan::retention::{self, ExpirePlan, Fate, Judged, Policy};
use crate::plan::window::Window;
use crate::repo::id::BackupId;
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::aux_root::AuxOutline;
use crate::repo::scope::Scope;
use crate::wal::inventory::Inventory;

/// The danger of a run that cannot tell forged backups.
const FORGED: &str = "a backup that somebody forged counts as the newer one that is left";

/// The moments that recovery reaches on a timeline.
#[derive(Serialize, Clone, PartialEq, Eq)]
pub struct Reached {
    pub timeline: u32,
    /// The first moment.
    pub from: TimestampTz,
    /// The last moment.
    pub to: TimestampTz,
}

impl Reached {
    fn new(window: &Window) -> Reached {
        Reached {
            timeline: window.timeline.decimal(),
            from: window.from,
            to: window.to,
        }
    }
}

/// Segments that nothing needs without the backup.
#[derive(Serialize)]
pub struct Unneeded {
    pub first: String,
    pub last: String,
    pub count: u64,
}

/// The log of a history of Redis that nothing needs without the backup.
#[derive(Serialize)]
pub struct UnneededLog {
    pub replid: String,
    #[serde(flatten)]
    pub gone: Gone,
}

/// The loss of a cluster with the backup.
#[derive(Serialize)]
pub struct Loss {
    /// WAL that goes with it.
    pub wal: Vec<Unneeded>,
    /// WAL that nothing here needs then, and that stays for `min_copies`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub short_of_copies: Vec<Unneeded>,
    /// The repositories for which all of that stays.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Unread>,
    /// Moments that can be reached now; null where that cannot be read without the keys.
    pub windows_now: Option<Vec<Reached>>,
    /// Moments that can be reached without the backup.
    pub windows_then: Option<Vec<Reached>>,
}

/// The deletion of the backup in one repository: as it is planned, and what came of it.
#[derive(Serialize)]
pub struct Deletion {
    pub repository: String,
    /// Bytes that the backup takes there.
    pub stored_bytes: u64,
    /// `keep`, `mark`, `waiting`, `delete`.
    pub fate: &'static str,
    /// In its grace period until then.
    pub not_before: Option<TimestampTz>,
    /// None of other content.
    #[serde(flatten)]
    pub loss: Option<Loss>,
    /// Log of Redis that goes with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<UnneededLog>,
    /// WAL and more that is withheld from deletion, with the cause.
    pub withheld: Vec<String>,
    /// The causes among them that came up while it was carried out.
    #[serde(skip)]
    pub withheld_since: Vec<String>,
    /// Whether it was marked.
    pub marked: bool,
    /// Whether it was deleted.
    pub deleted: bool,
    pub deleted_segments: u64,
    /// Objects that the repository refused to delete.
    pub refused: Vec<String>,
    /// Objects that the store keeps for a time.
    pub locked: Vec<String>,
    #[serde(skip)]
    of: Of,
    #[serde(skip)]
    stored_in: Repository,
    #[serde(skip)]
    policy: Policy,
    #[serde(skip)]
    plan: ExpirePlan,
}

/// The deletion of a backup wherever it is.
pub struct Deletions {
    backup: BackupId,
    /// By repository.
    pub all: Vec<Deletion>,
    /// Errors, repository by repository.
    pub failures: Failures,
}

/// Looks what the deletion of a backup, after `grace`, takes along in every repository that has it.
///
/// # Errors
/// Those of [`Found::look`]; `Refused` when one of the repositories refuses it; the first when it could be planned nowhere.
pub fn plan(session: &Session, backup: &BackupId, grace: Duration) -> Result<Deletions> {
    let Found {
        copies,
        mut failures,
    } = Found::look(session, backup)?;
    let mut all = Vec::new();
    for (reading, inventory, _) in copies {
        let name = reading.configured.name.clone();
        let planned = plan_in(session, (backup, grace), reading, &inventory);
        all.extend(unless_refused(&mut failures, &name, planned)?);
    }
    failures.first_if(session, all.is_empty())?;
    Ok(Deletions {
        backup: backup.clone(),
        all,
        failures,
    })
}

/// As [`plan`], for a backup of other content.
///
/// # Errors
/// `NotFound` where no repository has it; as [`plan`].
pub fn plan_content(
    session: &Session,
    (scope, backup): (&Scope, &BackupId),
    grace: Duration,
) -> Result<Deletions> {
    let settings = session.settings_with_repositories()?;
    let policy = Policy {
        commands: commands(&settings, scope),
        ..policy(backup, grace)
    };
    let (mut all, mut failures) = (Vec::new(), Failures::default());
    for configured in &settings.repositories {
        let planned = plan_content_in(session, configured, (scope, backup), &policy);
        all.extend(unless_refused(&mut failures, &configured.name, planned)?.flatten());
    }
    failures.first_if(session, all.is_empty())?;
    if all.is_empty() {
        let prefix = scope.prefix();
        return Err(err!(
            NotFound,
            "no repository has backup \"{backup}\" of \"{prefix}\""
        )
        .hint("Nothing was changed. \"pitr info\" shows which content there is."));
    }
    Ok(Deletions {
        backup: backup.clone(),
        all,
        failures,
    })
}

/// Takes down what failed in one repository. A deletion that one of them refuses is done in none.
fn unless_refused<T>(
    failures: &mut Failures,
    repository: &str,
    planned: Result<T>,
) -> Result<Option<T>> {
    match planned {
        Err(e) if e.code() == Code::Refused => Err(e),
        planned => Ok(failures.note(planned, format!("look into repository \"{repository}\""))),
    }
}

impl Deletions {
    /// Carries it out in every repository.
    ///
    /// # Errors
    /// The first, when it could be carried out nowhere.
    pub fn carry_out(&mut self, session: &Session) -> Result<()> {
        let mut done = 0;
        for one in &mut self.all {
            let ran = carry_out(one, &self.backup, &session.host);
            let doing = format!("delete it in repository \"{}\"", one.repository);
            done += usize::from(self.failures.note(ran, doing).is_some());
        }
        self.failures.first_if(session, done == 0)
    }
}

fn plan_in(
    session: &Session,
    (backup, grace): (&BackupId, Duration),
    reading: Reading,
    inventory: &Inventory,
) -> Result<Deletion> {
    let host = &session.host;
    if let Some(warning) = unproven::warning(&reading.configured, &reading.repository, FORGED) {
        session.warn(&warning);
    }
    let identifier = inventory.system_identifier;
    let mut registrations = reading.repository.registrations(&reading.name)?;
    registrations.retain(|r| r.system_identifier == identifier);
    let registration = registrations.pop().ok_or_else(|| {
        err!(
            NotFound,
            "system identifier {identifier} is not registered there"
        )
        .hint("Nothing was changed. Run: pitr init --confirm")
    })?;
    let rules = Rules::new(session, reading.settings.clone(), None);
    let policy = policy(backup, grace);
    let (policy, unread) =
        rules.with_wal_of_others(session, &reading.configured, &registration, policy);
    let expire = Expire {
        repository: &reading.repository,
        registration: &registration,
        policy: policy.clone(),
        host,
        links: Links::default(),
        leftovers: Leftovers::default(),
    };
    // The deletions of now, and those in the end, whenever that is.
    let (plan, then) = expire.plan_to_the_end()?;
    let name = reading.configured.name.clone();
    let judged = judged(&plan, &name, backup)?;
    let mut without = inventory.clone();
    without.backups.retain(|b| b.id != *backup);
    let (wal, short_of_copies) = wal(&then, &registration)?;
    let loss = Loss {
        wal,
        short_of_copies,
        unread,
        windows_now: windows(session, &reading, inventory)?,
        windows_then: windows(session, &reading, &without)?,
    };
    let of = (Of::Cluster(registration), reading.repository);
    let planned = Deletion::new((name, of), &judged, policy, plan);
    Ok(Deletion {
        loss: Some(loss),
        ..planned
    })
}

/// None where the repository has no such backup.
fn plan_content_in(
    session: &Session,
    configured: &config::Repository,
    (scope, backup): (&Scope, &BackupId),
    policy: &Policy,
) -> Result<Option<Deletion>> {
    let repository = session.open(configured)?;
    let stored = AuxOutline::stored(repository.store(), scope, backup)?;
    if stored.root().is_none() {
        return Ok(None);
    }
    if let Some(warning) = unproven::warning(configured, &repository, FORGED) {
        session.warn(&warning);
    }
    let expire = ExpireScope {
        repository: &repository,
        scope,
        policy: policy.clone(),
        host: &session.host,
        leftovers: Leftovers::default(),
    };
    let (plan, then) = expire.plan_to_the_end()?;
    let name = configured.name.clone();
    let judged = judged(&plan, &name, backup)?;
    let of = (Of::Scope(scope.clone()), repository);
    let planned = Deletion::new((name, of), &judged, policy.clone(), plan);
    let gone = then.log.into_iter().filter_map(|history| {
        let (replid, gone) = (history.replid, history.gone?);
        Some(UnneededLog { replid, gone })
    });
    Ok(Some(Deletion {
        log: gone.collect(),
        ..planned
    }))
}

/// The policy under which one backup goes, whatever retention says of it.
fn policy(backup: &BackupId, grace: Duration) -> Policy {
    Policy {
        rules: Retention::newest(1),
        grace,
        requested: Some(backup.clone()),
        ..Policy::default()
    }
}

/// The fate of the backup in a plan.
///
/// # Errors
/// `Refused` where a guard speaks; `NotFound` where it is there no more.
fn judged(plan: &ExpirePlan, repository: &str, backup: &BackupId) -> Result<Judged> {
    if let Some(refusal) = &plan.refusal {
        return Err(
            err!(Refused, "repository \"{repository}\": {refusal}").hint("Nothing was changed.")
        );
    }
    let judged = plan.backups.iter().find(|b| b.id == *backup).cloned();
    judged.ok_or_else(|| {
        err!(NotFound, "backup \"{}\" was deleted meanwhile", backup).hint("Nothing was changed.")
    })
}

impl Deletion {
    fn new(
        (repository, (of, stored_in)): (String, (Of, Repository)),
        judged: &Judged,
        policy: Policy,
        plan: ExpirePlan,
    ) -> Deletion {
        Deletion {
            repository,
            stored_bytes: judged.stored_bytes,
            fate: judged.fate.as_str(),
            not_before: match judged.fate {
                Fate::Waiting(due) => Some(due),
                _ => None,
            },
            loss: None,
            log: Vec::new(),
            withheld: plan.withheld.clone(),
            withheld_since: Vec::new(),
            marked: false,
            deleted: false,
            deleted_segments: 0,
            refused: Vec::new(),
            locked: Vec::new(),
            of,
            stored_in,
            policy,
            plan,
        }
    }

    fn run(&self, host: &Host, outcome: &mut Outcome) -> Result<()> {
        let (repository, policy) = (&self.stored_in, self.policy.clone());
        let leftovers = Leftovers::default();
        match &self.of {
            Of::Cluster(registration) => Expire {
                repository,
                registration,
                policy,
                host,
                links: Links::default(),
                leftovers,
            }
            .run(&self.plan, outcome),
            Of::Scope(scope) => ExpireScope {
                repository,
                scope,
                policy,
                host,
                leftovers,
            }
            .run(&self.plan, outcome),
        }
    }
}

/// The WAL that goes with the backup, and that which stays for other repositories.
fn wal(plan: &ExpirePlan, registration: &Registration) -> Result<(Vec<Unneeded>, Vec<Unneeded>)> {
    let size = SegmentSize::new(registration.segment_size_bytes)?;
    let shown = |timeline: TimelineId, first: SegmentNumber, last: SegmentNumber| {
        Some(Unneeded {
            first: first.name(timeline, size)?.to_string(),
            last: last.name(timeline, size)?.to_string(),
            count: last.0 - first.0 + 1,
        })
    };
    let goes = plan.deletions.iter().filter_map(|deletion| match deletion {
        retention::Deletion::Segments(timeline, first, last) => shown(*timeline, *first, *last),
        _ => None,
    });
    let stays = plan.short.iter();
    let stays = stays.filter_map(|(timeline, first, last)| shown(*timeline, *first, *last));
    Ok((goes.collect(), stays.collect()))
}

/// None where the WAL cannot be read without keys.
fn windows(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
) -> Result<Option<Vec<Reached>>> {
    match reading.windows(session, inventory) {
        Ok(found) => Ok(Some(found.windows.iter().map(Reached::new).collect())),
        Err(e) if e.code() == Code::Key => Ok(None),
        Err(e) => Err(e),
    }
}

fn carry_out(one: &mut Deletion, id: &BackupId, host: &Host) -> Result<()> {
    let mut outcome = Outcome::default();
    let ran = one.run(host, &mut outcome);
    one.marked = outcome.marked.contains(id);
    one.deleted = outcome.deleted_backups.contains(id);
    one.deleted_segments = outcome.deleted_segments;
    let known = one.withheld.len();
    outcome.add_withheld(&mut one.withheld);
    one.withheld_since = one.withheld.get(known..).unwrap_or_default().to_vec();
    one.refused = outcome.refused;
    one.locked = outcome.locked;
    ran?;
    if one.fate == Fate::Delete.as_str()
        && !one.deleted
        && one.refused.is_empty()
        && one.locked.is_empty()
    {
        let keeps = "something keeps it by now: a pin, a restore or a copy".to_owned();
        let why = outcome.withheld.into_iter().next().unwrap_or(keeps);
        return Err(err!(Locked, "backup \"{id}\" was not deleted: {why}")
            .hint("It was not deleted. Run the command again: it shows what keeps it."));
    }
    Ok(())
}
